"""The readers of MetaQA's paths, asked with the subgraphs of retrieval methods that they were not trained on.

A method finds nodes; the reader is shown the facts on paths among them, those first that end at the method's best
nodes. The readers are those of metaqa_qa.py, which trained on the facts that every path of a known kind has.

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


def ask_with(method: str, find: Finder | None, hops: int, asking: Asking) -> dict[str, float]:
    """Retrieves for a sample of the test questions and asks; with no `find`, as in training. Returns the figures."""
    work, folder = WORK[hops], WORK[hops] / "methods" / method
    graph, paths = KnowledgeGraph.open(work / "data" / "graph"), retriever(work / "data")
    pairs = read_qa(work / "data" / "qa" / "test.jsonl")[:: SAMPLE[hops]]
    if find is None:
        found = shown = [paths.find(graph, pair) for pair in pairs]
    else:
        found = [find(pair) for pair in tqdm(pairs, desc=f"{hops}-hop {method}", unit=" questions")]
        shown = [paths.among(graph, pair, one) for pair, one in zip(pairs, found, strict=True)]
    write_jsonl(folder / "qa" / "test.jsonl", map(to_json, pairs))
    if not (folder / "graph").exists():
        (folder / "graph").symlink_to((work / "data" / "graph").resolve())
    manifest = {"graph": "../../graph", "method": method, "parameters": paths.parameters}
    write_subgraphs(folder / "subgraphs" / "test", [pair.id for pair in pairs], shown, {}, manifest)
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
    parser.add_argument("--json", type=Path, default=Path("results/metaqa_qa_gfm.json"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    begun, metrics, hops = time.monotonic(), {}, arguments.hops
    graph = KnowledgeGraph.open(arguments.data / "graph")
    methods = ["gfm"] * (arguments.model is not None) + ["pcst", "pagerank"]
    finders = {"paths": None} | {method: finder(method, graph, arguments.model) for method in methods}
    model = GraphLLMForConditionalGeneration.from_pretrained(WORK[hops] / "model")
    asking = Asking(model, GraphLLMProcessor.from_pretrained(WORK[hops] / "model"), TOKENS[hops])
    for method, find in finders.items():
        figures = ask_with(method, find, hops, asking)
        metrics |= {f"{name}_{hops}hop_{method}": value for name, value in figures.items()}
        print(f"{hops}-hop {method:12}", *(f"{name} {value:.4f}" for name, value in figures.items()), flush=True)
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
