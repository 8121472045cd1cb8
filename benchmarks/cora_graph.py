"""Cora on the split of Planetoid (140 / 500 / 1000 nodes): what an encoder learns of the graph, beside templates.

Four ways to a node's class, all with the same vectors (bags of words) and the same 140 labels:

    encoders     --stage graph --graph_objective label, each of them, by configs/cora.yaml; the weights of the step
                 that does best on the validation nodes
    link states  --stage graph --graph_objective link, which sees no label; then a linear classifier on the states
    templates    LLaGA's two (arXiv 2402.08170) without parameters: the vectors of hops 0 to 4 side by side (HO), and
                 the mean of each level of the tree of a node, its ten neighbours and ten of each (ND); then the same
                 linear classifier
    vectors      the linear classifier on the vectors alone

GCN's own figure is 81.5 (arXiv 1609.02907, table 2: a hundred runs from random weights); the settings here were chosen
on the validation nodes. The link AUC is of a tenth of the links, held out, with as many pairs that are none; beside it
that of the cosine of the vectors.

    python benchmarks/cora_graph.py --data ../shared/data/cora --json results/cora_graph.json

Finished runs below --work are read again, so that a stopped program goes on; remove the folder to measure anew.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import finetune
from data_processor.graph_store import KnowledgeGraph
from data_processor.importers import IMPORTERS
from data_processor.node_batches import classes_of, labelled
from data_processor.node_vectors import write_vectors
from data_processor.schema import write_json
from evaluation.probe import linear_probe
from modeling_graphllm import hop_states, tree_states
from training.record import commit

RECIPE, HOPS, BRANCHES = "configs/cora.yaml", 4, 10
LINKS = (
    "--graph_objective", "link", "--graph_encoder", "sage", "--feature_dropout", "0.2", "--graph_dropout", "0",
    "--graph_hidden_dim", "64", "--nodes_per_batch", "1024", "--neighbours_per_node", "10", "--num_train_epochs", "12",
    "--learning_rate", "1e-2", "--weight_decay", "0.01", "--load_best_model_at_end", "False", "--save_strategy", "no",
    "--eval_strategy", "no",
)  # fmt: skip
PUBLISHED = {"gcn_published": 0.815}


def build_data(source: Path, folder: Path) -> None:
    """The dataset folder; the vectors are divided by their sums, as GCN does."""
    IMPORTERS["npz"](source, folder)
    vectors = np.array(KnowledgeGraph.open(folder / "graph").node_features)
    write_vectors(folder / "graph", vectors / np.maximum(vectors.sum(axis=1, keepdims=True), 1), "cora.npz by rows")


def run(folder: Path, name: str, seed: int, *more: str) -> dict[str, float]:
    """One run of finetune.py, and what it measured; a finished one is read."""
    output = folder / f"{name}-{seed}"
    if (output / "metrics.json").is_file():
        return json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    paths = ("--data_path", str(folder / "data"), "--output_dir", str(output))
    return finetune.main([RECIPE, *paths, "--seed", str(seed), "--data_seed", str(seed), *more])


def collect(runs: list[dict[str, float]], names: tuple[str, ...], prefix: str) -> dict[str, float]:
    """Mean and standard deviation over the seeds of some metrics."""
    figures = {}
    for name in names:
        values = [one[name] for one in runs]
        figures[f"{prefix}{name}"] = float(np.mean(values))
        if len(values) > 1:
            figures[f"{prefix}{name}_std"] = float(np.std(values, ddof=1))
    return figures


def templates(data: Path) -> dict[str, float]:
    """Test accuracy of the linear classifier on HO, on ND and on the bare vectors."""
    graph, classes = KnowledgeGraph.open(data / "graph"), classes_of(data)
    splits = {split: labelled(data, split, classes)[:2] for split in ("train", "validation", "test")}
    vectors = torch.from_numpy(np.array(graph.node_features, dtype=np.float32))
    edge_index = torch.from_numpy(np.array(graph.edges)[:, ::2].T.copy())
    hops = hop_states(vectors, edge_index, HOPS)  # (N, 5, F)
    levels = torch.cat([tree_levels(vectors, edge_index, nodes) for nodes in torch.arange(len(vectors)).split(100)])
    read = {"vectors": vectors, "ho": hops.flatten(1), "nd": levels.flatten(1)}
    found = {name: linear_probe(states.numpy(), splits, len(classes)) for name, states in read.items()}
    figures = {f"{name}_accuracy": one["probe_accuracy"] for name, one in found.items()}
    return figures | {f"{name}_validation": one["probe_validation"] for name, one in found.items()}


def tree_levels(vectors: torch.Tensor, edge_index: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """The mean of each level of the trees, over places that hold a node. (N, F), (2, E), (n,) -> (n, 3, F)"""
    tree = tree_states(vectors, edge_index, nodes, BRANCHES, torch.zeros(vectors.shape[1]))
    levels = tree.split([1, BRANCHES, BRANCHES**2], dim=1)
    return torch.stack([one.sum(1) / one.any(-1).sum(1, keepdim=True).clamp(min=1) for one in levels], dim=1)


def main(argv: list[str] | None = None) -> None:
    """Everything from the raw file to the result file."""
    parser = argparse.ArgumentParser(description="Cora: encoders, link states and templates on Planetoid's split.")
    parser.add_argument("--data", type=Path, required=True, help="folder with cora.npz")
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--work", type=Path, default=Path("output/cora"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--encoders", nargs="+", default=["gcn", "sage"])
    arguments = parser.parse_args(argv)
    seeds = range(arguments.seeds)
    torch.set_num_threads(1)
    if not (arguments.work / "data" / "qa" / "test.jsonl").is_file():
        build_data(arguments.data / "cora.npz", arguments.work / "data")
    figures, minutes = dict(PUBLISHED), 0.0
    for encoder in arguments.encoders:
        # the first encoder with every seed, the others with one: they are here to show that they learn at all
        runs = [
            run(arguments.work, encoder, seed, "--graph_encoder", encoder)
            for seed in (seeds if encoder == arguments.encoders[0] else seeds[:1])
        ]
        figures |= collect(runs, ("accuracy", "macro_f1", "eval_accuracy"), f"{encoder}_")
        minutes += sum(one["minutes"] for one in runs)
    figures["majority"] = runs[0]["majority"]
    runs = [run(arguments.work, "link", seed, *LINKS) for seed in seeds]
    figures |= collect(runs, ("link_auc", "link_average_precision", "link_auc_features", "probe_accuracy"), "sage_")
    minutes, begun = minutes + sum(one["minutes"] for one in runs), time.time()
    figures |= templates(arguments.work / "data")
    for key, value in figures.items():
        print(f"{key:36}{value:8.4f}")
    write_json(arguments.json, {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, 1 used",
        "minutes": minutes + (time.time() - begun) / 60,
        "seeds": list(seeds),
        "metrics": figures,
    })  # fmt: skip


if __name__ == "__main__":
    main()
