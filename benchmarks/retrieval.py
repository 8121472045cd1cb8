"""Retrieval beside PyG in one run, and how ours grows: PCST on a WebQSP-sized graph, then graphs of rising size.

PCST: 1,371 nodes, 4,253 edges, 1,024 dimensions, random vectors; per question `retrieval_via_pcst` of PyG, ours
(search, tree, text), and the bare `pcst_fast` call on the arrays that our tree gives it, in turn, one thread, CPU
time, the best of five calls each. The trees must be equal; pcst_over_bare is our tree, without search and text.
Growth: n nodes in clusters, 10 n edges towards few hubs, 384 dimensions; seeds by an IVF index, walk, tree, text;
opening, time (clock and processor) and memory (the peak in /proc) are taken in a process of their own.

    python benchmarks/retrieval.py --json results/retrieval.json [--nodes 10000 100000 1000000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"  # waiting threads would count as processor time

import numpy as np

from data_processor.graph_store import KnowledgeGraph, embed_graph, write_graph
from data_processor.retrieval import METHODS
from data_processor.retrieval.folder import node_index
from data_processor.retrieval.pcst import rank_edges, relation_similarity, solver, steiner_problem
from data_processor.schema import write_json
from data_processor.vector_index import build_index

WEBQSP = {"nodes": 1371, "edges": 4253, "relations": 180, "width": 1024}
EDGES_A_NODE, RELATIONS, WIDTH, CLUSTER = 10, 100, 384, 50
TOP_K, REPEATS = 10, 5
WARM_UP = 30  # questions before the clock starts: the first ones read the mapped files from disk


class Vectors:
    """An encoder of made-up vectors: nodes "n17", relations "r3"; the nodes of one cluster lie near each other."""

    def __init__(self, width: int, cluster: int) -> None:
        self.name, self.dimension, self._cluster = f"made-up-{cluster}", width, cluster
        self._noise = np.random.default_rng(1).normal(size=(65537, width)).astype(np.float32)

    def encode(self, texts: Sequence[str], batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Vectors (n, width) float32."""
        numbers = np.array([int(text[1:]) for text in texts])
        if texts[0][0] == "r" or self._cluster == 1:
            return self._noise[(numbers * 7919 + ord(texts[0][0])) % 65537]
        return self._noise[numbers // self._cluster * 31 % 65537] + 0.6 * self._noise[numbers * 7919 % 65537]


def make_graph(folder: Path, nodes: int, edges: int, relations: int, seed: int = 0) -> None:
    """A random graph whose targets crowd on the first nodes, as hubs do."""
    rng = np.random.default_rng(seed)
    targets = (nodes * rng.random(edges) ** 2).astype(np.int64)
    triples = np.stack([rng.integers(0, nodes, edges), rng.integers(0, relations, edges), targets], axis=1)
    names = ({"name": f"n{number}"} for number in range(nodes))
    write_graph(folder, names, [{"name": f"r{number}"} for number in range(relations)], triples)


def bare_problem(graph: KnowledgeGraph, question: np.ndarray, seeds: np.ndarray) -> tuple:
    """The arguments with which our method calls pcst_fast."""
    edges, prizes = np.asarray(graph.edges), np.zeros(graph.num_nodes, np.float32)
    prizes[seeds] = np.arange(len(seeds), 0, -1)
    edge_prizes, cost = rank_edges(relation_similarity(graph, question), edges[:, 1], 5, 0.5)
    return *steiner_problem(edges[:, ::2], prizes, edge_prizes, cost)[2], -1, 1, "gw", 0


def milliseconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """(what the call returns, the least processor time of REPEATS calls: other processes do not count)."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        value = call()
        times.append(1000 * (time.process_time() - start))
    return value, min(times)


def beside_pyg(folder: Path, questions: int) -> dict[str, float]:
    """PCST by PyG, by us and bare, question by question in turn."""
    import pandas
    import torch

    torch.set_num_threads(1)
    from torch_geometric.llm.utils.backend_utils import retrieval_via_pcst

    make_graph(folder, WEBQSP["nodes"], WEBQSP["edges"], WEBQSP["relations"])
    graph = embed_graph(folder, Vectors(WEBQSP["width"], 1), dtype="float32")
    index, data = build_index(graph.node_features, "exact"), graph.to_pyg()
    data.node_idx, data.edge_idx = np.arange(graph.num_nodes), np.arange(graph.num_edges)
    ids = np.arange(graph.num_nodes)
    textual_nodes = pandas.DataFrame({"node_id": ids, "node_attr": graph.node_name(ids)})
    source, relation, target = np.asarray(graph.edges).T
    textual_edges = pandas.DataFrame({"src": source, "edge_attr": graph.relation_name(relation), "dst": target})
    times, equal = [], 0
    for number in range(questions):
        question = np.random.default_rng(number).normal(size=WEBQSP["width"]).astype(np.float32)

        tensor = torch.from_numpy(question)
        (found, _), pyg = milliseconds(lambda: retrieval_via_pcst(data, tensor, textual_nodes, textual_edges))  # noqa: B023
        (scores, nodes), search = milliseconds(lambda: index.search(question[None], 3))  # noqa: B023
        subgraph, tree = milliseconds(lambda: METHODS["pcst"](graph, question, nodes[0], scores[0]))  # noqa: B023
        _, text = milliseconds(lambda: graph.to_text(subgraph, style="tables"))  # noqa: B023
        problem = bare_problem(graph, question, nodes[0])
        _, bare = milliseconds(lambda: solver()(*problem))  # noqa: B023
        times.append((pyg, search, tree, text, bare))
        same_nodes = set(found.node_idx.tolist()) == set(subgraph.nodes.tolist())
        equal += same_nodes and set(found.edge_idx.tolist()) == set(subgraph.edges.tolist())
    pyg, search, tree, text, bare = np.median(times, axis=0)
    ours = search + tree + text
    ratios = {"pcst_speedup_vs_pyg": pyg / ours, "pcst_over_bare": tree / bare, "pcst_equal": equal / questions}
    return {**ratios, "pyg_ms": pyg, "search_ms": search, "tree_ms": tree, "text_ms": text, "bare_ms": bare}


def grow(folder: Path, nodes: int, questions: int) -> dict[str, float]:
    """Builds a graph of so many nodes and its index, and asks it questions in a process of its own."""
    start = time.perf_counter()
    make_graph(folder, nodes, EDGES_A_NODE * nodes, RELATIONS)
    graph = embed_graph(folder, Vectors(WIDTH, CLUSTER), batch_size=16384)
    node_index(graph, "ivf")
    build = time.perf_counter() - start
    command = [sys.executable, __file__, "--ask", str(folder), "--questions", str(questions)]
    asked = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    disk = sum(path.stat().st_size for path in folder.iterdir())
    index_bytes = (folder / "index-ivf.faiss").stat().st_size
    sizes = {"index_mb": index_bytes / 1e6, "build_s": build, "disk_mb": disk / 1e6}
    return {"nodes": nodes, "edges": EDGES_A_NODE * nodes, **asked, **sizes}


def ask(folder: Path, questions: int) -> dict[str, float]:
    """Opens a graph and its index and retrieves: times, memory, and the recall of the seeds against exact search."""
    start = time.perf_counter()
    graph = KnowledgeGraph.open(folder)
    open_seconds = time.perf_counter() - start
    index, rng = node_index(graph, "ivf"), np.random.default_rng(0)
    vectors = graph.node_features[rng.integers(0, graph.num_nodes, WARM_UP + questions)].astype(np.float32)
    vectors += 0.3 * rng.normal(size=vectors.shape).astype(np.float32)
    times, seeds = [], []
    for vector in vectors:
        clock, processor = time.perf_counter(), time.process_time()
        scores, nodes = index.search(vector[None], TOP_K)
        graph.to_text(METHODS["pcst"](graph, vector, nodes[0], scores[0], ball_nodes=2000))
        times.append((1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - processor)))
        seeds.append(nodes[0])
    memory = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert memory is not None
    clocks, processors = np.array(times[WARM_UP:]).T
    _, exact = build_index(graph.node_features, "exact").search(vectors, TOP_K)
    recall = np.mean([np.isin(right, found).mean() for right, found in zip(exact, seeds, strict=True)])
    return {
        "median_ms": float(np.median(clocks)),
        "p95_ms": float(np.percentile(clocks, 95)),
        "median_cpu_ms": float(np.median(processors)),
        "open_s": open_seconds,
        "rss_mb": int(memory[1]) / 1000,
        "seed_recall": float(recall),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs both parts, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("results/retrieval.json"))
    parser.add_argument("--nodes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.ask is not None:
        print(json.dumps(ask(arguments.ask, arguments.questions)))
        return
    start, growth = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        metrics: dict[str, Any] = beside_pyg(Path(folder) / "graph", min(arguments.questions, 20))
    print(json.dumps({name: round(value, 3) for name, value in metrics.items()}))
    for nodes in arguments.nodes:
        with tempfile.TemporaryDirectory() as folder:
            growth.append(grow(Path(folder) / "graph", nodes, arguments.questions))
        print(json.dumps({name: round(value, 3) for name, value in growth[-1].items()}), flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    sizes = " ".join(map(str, arguments.nodes))
    result = {
        "command": f"python benchmarks/retrieval.py --json {arguments.json} --nodes {sizes}",
        "commit": commit,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, CPU",
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "seeds": [0, 1],
        "metrics": {**metrics, "growth": growth},
    }
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
