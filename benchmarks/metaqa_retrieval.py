"""MetaQA: how many answers a walk of k steps holds, stage by stage, and the smallest budgets that keep .95 of them.

    python benchmarks/metaqa_retrieval.py --data ../shared/data/metaqa --json results/metaqa_retrieval.json
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm import tqdm

from data_processor.graph_store import KnowledgeGraph, parse_triples
from data_processor.importers import IMPORTERS
from data_processor.retrieval import METHODS
from data_processor.schema import QAPair, Subgraph, read_qa, write_json

BUDGETS = {1: 60, 2: 400, 3: 1500}  # nodes kept, by hops
TEXT_TOKENS = 1024
LADDER_SAMPLE = 300
KEPT_SHARE = 0.95
TOKEN = re.compile(r"\w+|[^\w\s]")


def tokenizer(texts: Sequence[str], add_special_tokens: bool = False) -> dict[str, list[list[str]]]:
    """Words and marks, for a count of tokens without a language model."""
    return {"input_ids": [TOKEN.findall(text) for text in texts]}


def answer_ranks(subgraph: Subgraph, answers: Sequence[int]) -> np.ndarray:
    """The rank from 0 of each answer among the nodes, best first; a large number where it is not among them."""
    places = {node: place for place, node in enumerate(subgraph.nodes.tolist())}
    return np.array([places.get(answer, 10**9) for answer in answers])


def smallest_budget(ranks: list[np.ndarray], sizes: np.ndarray) -> tuple[int, float]:
    """(the least number of nodes at which KEPT_SHARE of the answers are held, the mean number of nodes then)."""
    low, high = 1, int(sizes.max())
    while low < high:
        middle = (low + high) // 2
        enough = np.mean([(one < middle).mean() for one in ranks]) >= KEPT_SHARE
        low, high = (low, middle) if enough else (middle + 1, high)
    return low, float(np.minimum(sizes, low).mean())


def text_recall(graph: KnowledgeGraph, pair: QAPair, text: str) -> float:
    """The share of a question's answers that stand in the text."""
    held = {name for row in parse_triples(text) for name in row}
    return float(np.mean([name in held for name in graph.node_name(pair.answer_nodes)]))


def ladder(graph: KnowledgeGraph, pairs: Sequence[QAPair], hops: int) -> list[dict[str, Any]]:
    """Answers, nodes, edges and tokens after every stage, means over the questions."""
    rows: dict[str, list[tuple[float, int, int, int]]] = {}
    for pair in tqdm(pairs, desc=f"{hops}-hop ladder", unit=" questions", delay=2):
        seeds, ones = np.array(pair.seed_nodes), np.ones(len(pair.seed_nodes))
        walk = METHODS["random_walk"]
        stages = {
            "seeds": graph.induced_subgraph(seeds),
            f"{hops} steps": walk(graph, None, seeds, ones, max_nodes=graph.num_nodes, steps=hops),
            f"best {BUDGETS[hops]} nodes": walk(graph, None, seeds, ones, max_nodes=BUDGETS[hops], steps=hops),
        }
        for name, subgraph in stages.items():
            text = graph.to_text(subgraph)
            recall = float((answer_ranks(subgraph, pair.answer_nodes) < 10**9).mean())
            row = (recall, len(subgraph.nodes), len(subgraph.edges), len(TOKEN.findall(text)))
            rows.setdefault(name, []).append(row)
        cut, kept, _ = graph.text_rows(subgraph, TEXT_TOKENS, tokenizer)
        row = (text_recall(graph, pair, cut), len(subgraph.nodes), kept, len(TOKEN.findall(cut)))
        rows.setdefault(f"text of {TEXT_TOKENS} tokens", []).append(row)
    names = ("answer_recall", "nodes", "edges", "tokens")
    means = ((name, np.mean(values, axis=0).tolist()) for name, values in rows.items())
    return [{"stage": stage, **dict(zip(names, numbers, strict=True))} for stage, numbers in means]


def measure(graph: KnowledgeGraph, pairs: Sequence[QAPair], hops: int) -> dict[str, float]:
    """Recall, size and time over all questions of a hop, and the smallest budget."""
    ranks, sizes, edges, times = [], [], [], []
    for pair in tqdm(pairs, desc=f"{hops}-hop", unit=" questions", delay=2):
        seeds, ones = np.array(pair.seed_nodes), np.ones(len(pair.seed_nodes))
        clock, processor = time.perf_counter(), time.process_time()
        subgraph = METHODS["random_walk"](graph, None, seeds, ones, max_nodes=BUDGETS[hops], steps=hops)
        times.append((1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - processor)))
        ranks.append(answer_ranks(subgraph, pair.answer_nodes))
        sizes.append(len(subgraph.nodes))
        edges.append(len(subgraph.edges))
    clocks, processors = np.array(times).T
    budget, mean_at_budget = smallest_budget(ranks, np.array(sizes))
    figures = {
        "questions": len(pairs),
        "answer_recall": float(np.mean([(one < 10**9).mean() for one in ranks])),
        "mean_nodes": float(np.mean(sizes)),
        "mean_edges": float(np.mean(edges)),
        "median_ms": float(np.median(clocks)),
        "p95_ms": float(np.percentile(clocks, 95)),
        "median_cpu_ms": float(np.median(processors)),
        "p95_cpu_ms": float(np.percentile(processors, 95)),
        "budget_for_95": budget,
        "mean_nodes_for_95": mean_at_budget,
    }
    return {f"{name}_{hops}hop": value for name, value in figures.items()}


def show(hops: int, rows: list[dict[str, Any]]) -> None:
    """Prints a ladder."""
    print(f"{hops}-hop{'':22}recall     nodes     edges    tokens")
    for row in rows:
        numbers = f"{row['answer_recall']:8.4f}{row['nodes']:10.1f}{row['edges']:10.1f}{row['tokens']:10.1f}"
        print(f"  {row['stage']:24}{numbers}")


def main(argv: Sequence[str] | None = None) -> None:
    """Imports MetaQA, retrieves for every test question, prints the ladders and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/metaqa"))
    parser.add_argument("--json", type=Path, default=Path("results/metaqa_retrieval.json"))
    arguments = parser.parse_args(argv)
    start, metrics, ladders = time.perf_counter(), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        IMPORTERS["metaqa"](arguments.data, Path(folder))
        graph = KnowledgeGraph.open(Path(folder) / "graph")
        test = read_qa(Path(folder) / "qa" / "test.jsonl")
        for hops in BUDGETS:
            pairs = [pair for pair in test if pair.type == f"{hops}-hop" and pair.answer_nodes]
            sample = pairs[:: max(1, len(pairs) // LADDER_SAMPLE)][:LADDER_SAMPLE]
            ladders[f"{hops}hop"] = ladder(graph, sample, hops)
            show(hops, ladders[f"{hops}hop"])
            metrics.update(measure(graph, pairs, hops))
    for name, value in metrics.items():
        print(f"{name:26}{value:.4f}")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    result = {
        "command": f"python benchmarks/metaqa_retrieval.py --data {arguments.data} --json {arguments.json}",
        "commit": commit,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, 1 thread of a CPU",
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "seeds": [],
        "method": {"random_walk": {"max_nodes": BUDGETS}},
        "metrics": metrics,
        "ladder": ladders,
    }
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
