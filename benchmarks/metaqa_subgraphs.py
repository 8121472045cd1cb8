"""The readers of MetaQA's paths, asked with the subgraphs of retrieval methods that they were not trained on.

A method finds nodes; the reader is shown the facts on paths among them, those first that end at the method's best
nodes. The readers are those of metaqa_qa.py, which trained on the facts that every path of a known kind has; with
--learn each of them goes on learning from so many training questions with the subgraphs of its method, and is asked
again.

    python benchmarks/metaqa_subgraphs.py --data output/metaqa_gfm/data --hops 2 --model output/metaqa_gfm/2hop/model
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import finetune
from benchmarks.metaqa_data import retriever
from benchmarks.metaqa_qa import TOKENS, WORK, Asking, hits, nearest_names, record
from data_processor.dataset import GraphQADataset
from data_processor.gfm_dataset import masked
from data_processor.graph_store import KnowledgeGraph, write_subgraphs
from data_processor.retrieval import METHODS
from data_processor.retrieval.gfm import hides_seeds, reads_tokens
from data_processor.schema import QAPair, Subgraph, read_qa, to_json, write_jsonl
from data_processor.text_encoder import load_encoder
from modeling_graphllm import GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from training.record import commit

SAMPLE = {2: 32, 3: 64}  # every so many-th test question is asked
NODES = 50  # of a subgraph at most; PCST chooses its own number
Finder = Callable[[QAPair], Subgraph]
Found = tuple[list[Subgraph], list[Subgraph]]  # what was found, what of it is shown


def finder(method: str, graph: KnowledgeGraph, model: Path | None) -> Finder:
    """The method as a function of a question, whose entity is its only seed."""
    encoder = load_encoder(graph.text_encoder)
    options: dict[str, Any] = {} if method == "pcst" else {"max_nodes": NODES}
    if method == "gfm":
        options["model"] = str(model)
    hidden = method == "gfm" and hides_seeds(str(model))
    tokens = method == "gfm" and reads_tokens(str(model))

    def find(pair: QAPair) -> Subgraph:
        text = masked(pair.question, graph.node_name(pair.seed_nodes)) if hidden else pair.question
        read = np.vstack([encoder.encode([text]), *(encoder.encode_tokens([text]) if tokens else ())])
        seeds = np.array(pair.seed_nodes)
        return METHODS[method](graph, read if tokens else read[0], seeds, np.ones(len(seeds)), **options)

    return find


def held(pairs: list[QAPair], found: list[Subgraph]) -> tuple[float, float]:
    """(the mean share of a question's answers among the nodes, the share of questions with any answer there)."""
    there = [np.isin(pair.answer_nodes, one.nodes) for pair, one in zip(pairs, found, strict=True)]
    return float(np.mean([one.mean() for one in there])), float(np.mean([one.any() for one in there]))


def retrieve(method: str, find: Finder | None, hops: int, pairs: list[QAPair]) -> Found:
    """The nodes that a method finds for questions, and the facts that are shown; with no `find`, those of training."""
    data = WORK[hops] / "data"
    graph, paths = KnowledgeGraph.open(data / "graph"), retriever(data)
    if find is None:
        found = [paths.find(graph, pair) for pair in pairs]
        return found, found
    found = [find(pair) for pair in tqdm(pairs, desc=f"{hops}-hop {method}", unit=" questions", mininterval=10)]
    return found, [paths.among(graph, pair, one) for pair, one in zip(pairs, found, strict=True)]


def write_split(folder: Path, split: str, hops: int, pairs: list[QAPair], shown: list[Subgraph]) -> None:
    """A split of a dataset folder whose graph is that of the hops."""
    data = WORK[hops] / "data"
    write_jsonl(folder / "qa" / f"{split}.jsonl", map(to_json, pairs))
    if not (folder / "graph").exists():
        (folder / "graph").symlink_to((data / "graph").resolve())
    manifest = {"graph": "../../graph", "method": folder.name, "parameters": retriever(data).parameters}
    write_subgraphs(folder / "subgraphs" / split, [pair.id for pair in pairs], shown, {}, manifest)


def go_on_learning(method: str, find: Finder, hops: int, questions: Path, count: int) -> Path:
    """Trains the reader on so many training questions with the subgraphs of a method; returns the new model.

    A question whose path is not among the facts that are shown is left out: the reader could only guess.
    """
    folder = WORK[hops] / "methods" / method
    graph, paths = KnowledgeGraph.open(WORK[hops] / "data" / "graph"), retriever(WORK[hops] / "data")
    pairs = [pair for pair in read_qa(questions) if pair.type == f"{hops}-hop"][:count]
    _, shown = retrieve(method, find, hops, pairs)
    learnt = [paths.learnt(graph, pair, one) for pair, one in zip(pairs, shown, strict=True)]
    kept = [(pair, one) for pair, one in zip(learnt, shown, strict=True) if pair]
    write_split(folder, "train", hops, *map(list, zip(*kept, strict=True)))
    finetune.main([f"configs/metaqa_{hops}hop.yaml", "--init_from", str(WORK[hops] / "model"), "--data_path",
                   str(folder), "--output_dir", str(folder / "model"), "--max_steps", str(len(kept) // 16),
                   "--save_strategy", "no", "--validation", "False"])  # fmt: skip
    return folder / "model"


def asking_of(model: Path, hops: int) -> Asking:
    """A reader that is ready to be asked."""
    loaded = GraphLLMForConditionalGeneration.from_pretrained(model)
    return Asking(loaded, GraphLLMProcessor.from_pretrained(model), TOKENS[hops])


def ask_with(folder: Path, hops: int, pairs: list[QAPair], retrieved: Found, asking: Asking) -> dict[str, float]:
    """Asks questions with what was retrieved for them; returns the figures."""
    found, shown = retrieved
    write_split(folder, "test", hops, pairs, shown)
    dataset = GraphQADataset(folder, "test")
    rows = asking.answer(dataset, folder / "predictions.jsonl")
    (recall, any_recall), (text_recall, any_text_recall) = held(pairs, found), held(pairs, shown)
    return {
        "hits@1": float(hits(rows).mean()),
        "hits@1_nearest_name": float(hits(nearest_names(rows, dataset)).mean()),
        "answer_recall": recall,
        "any_answer_recall": any_recall,
        "mean_nodes": float(np.mean([len(one.nodes) for one in found])),
        "answer_recall_of_text": text_recall,
        "any_answer_recall_of_text": any_text_recall,
        "mean_facts_of_text": float(np.mean([len(one.edges) for one in shown])),
        "questions": len(pairs),
    }


def main(argv: list[str] | None = None) -> None:
    """Asks with every method and writes the result file."""
    import torch

    parser = argparse.ArgumentParser(description="MetaQA readers with the subgraphs of several retrieval methods.")
    parser.add_argument("--data", type=Path, required=True, help="a folder with MetaQA's graph/, embedded")
    parser.add_argument("--model", type=Path, help="a trained graph retriever, for the method gfm")
    parser.add_argument("--hops", type=int, choices=(2, 3), default=2)
    parser.add_argument("--learn", type=int, default=0, help="training questions from which a reader goes on learning")
    parser.add_argument("--json", type=Path, default=Path("results/metaqa_qa_gfm.json"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    begun, metrics, hops = time.monotonic(), {}, arguments.hops
    graph, questions = KnowledgeGraph.open(arguments.data / "graph"), arguments.data / "qa" / "train.jsonl"
    methods = ["gfm"] * (arguments.model is not None) + ["pcst", "pagerank"]
    finders = {"paths": None} | {method: finder(method, graph, arguments.model) for method in methods}
    asking, pairs = asking_of(WORK[hops] / "model", hops), read_qa(WORK[hops] / "data/qa/test.jsonl")[:: SAMPLE[hops]]
    for method, find in finders.items():
        folder, retrieved = WORK[hops] / "methods" / method, retrieve(method, find, hops, pairs)
        asked = {method: ask_with(folder, hops, pairs, retrieved, asking)}
        if arguments.learn and find:
            learnt = asking_of(go_on_learning(method, find, hops, questions, arguments.learn), hops)
            asked[f"{method}_learnt"] = ask_with(folder, hops, pairs, retrieved, learnt)
        for name, figures in asked.items():
            metrics |= {f"{key}_{hops}hop_{name}": value for key, value in figures.items()}
            print(f"{hops}-hop {name:16}", *(f"{key} {value:.4f}" for key, value in figures.items()), flush=True)
    record(arguments.json, hops, {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 of {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "minutes": (time.monotonic() - begun) / 60,
        "seeds": [0],
        "metrics": metrics,
    })  # fmt: skip


if __name__ == "__main__":
    main()
