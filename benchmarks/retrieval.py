"""Retrieval beside PyG in one run, and how ours grows: PCST on a WebQSP-sized graph, then graphs of rising size.

PCST: 1,371 nodes, 4,253 edges, 1,024 dimensions, random vectors; per question `retrieval_via_pcst` of PyG, ours
(search, tree, text), and the bare `pcst_fast` call on the arrays that our tree gives it, in turn, one thread, CPU
time, the best of three calls each. The trees must be equal; pcst_over_bare is our tree, without search and text.
Beside: one question, once, on WN18RR and the graph of MetaQA (where --data has them) and on the generated graphs; PyG
is given up after CPU_LIMIT seconds, and not tried where its vectors need too much memory.
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
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"  # waiting threads would count as processor time

import numpy as np

from benchmarks.beside_pyg import compare, make_questions, memory_needed
from data_processor.graph_store import KnowledgeGraph, embed_graph, write_graph
from data_processor.retrieval import METHODS
from data_processor.retrieval.folder import node_index
from data_processor.schema import write_json
from data_processor.vector_index import build_index

WEBQSP = {"nodes": 1371, "edges": 4253, "relations": 180, "width": 1024}
EDGES_A_NODE, RELATIONS, WIDTH, CLUSTER = 10, 100, 384, 50
TOP_K, REPEATS = 10, 3
CPU_LIMIT, MEMORY_SHARE = 240, 0.4  # seconds of one call of PyG's; the part of the free memory that it may fill
REAL = {"WN18RR": ("wn18rr", "graph"), "MetaQA": ("metaqa/kb.txt.gz", "")}  # input below --data, graph below output
WARM_UP = 30  # questions before the clock starts: the first ones read the mapped files from disk


class Vectors:
    """An encoder of made-up vectors; of names such as "n17" and "r3" with `cluster` nodes near each other, or any."""

    def __init__(self, width: int, cluster: int) -> None:
        self.name, self.dimension, self._cluster = f"made-up-{cluster}", width, cluster
        self._noise = np.random.default_rng(1).normal(size=(65537, width)).astype(np.float32)

    def encode(self, texts: Sequence[str], batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Vectors (n, width) float32."""
        if self._cluster == 0:
            numbers = np.array([zlib.crc32(text.encode()) for text in texts])  # two parts, or some would be alike
            return self._noise[numbers % 65537] + self._noise[numbers // 65537 % 65537]
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


def webqsp_sized(folder: Path, questions: int) -> dict[str, float]:
    """PCST by PyG, by us and bare, question by question in turn, on a graph that all three search whole."""
    make_graph(folder, WEBQSP["nodes"], WEBQSP["edges"], WEBQSP["relations"])
    graph = embed_graph(folder, Vectors(WEBQSP["width"], 1), dtype="float32")
    vectors = [np.random.default_rng(number).normal(size=WEBQSP["width"]) for number in range(questions)]
    found = compare(graph, np.array(vectors, dtype=np.float32), REPEATS)
    ratios = {
        "pcst_speedup_vs_pyg": found["pyg_ms"] / found["whole_ms"],
        "pcst_over_bare": found["tree_ms"] / found["bare_ms"],
        "pcst_equal": found["equal"],
    }
    return {**ratios, **{name: found[name] for name in ("pyg_ms", "search_ms", "tree_ms", "text_ms", "bare_ms")}}


def real_graphs(data: Path) -> list[dict[str, Any]]:
    """PyG and ours on the graphs that are there, with made-up vectors: what words mean does not matter to the time."""
    from data_processor.importers import IMPORTERS  # here, or the process whose memory is measured would hold them

    rows = []
    for name, (source, below) in REAL.items():
        if not (data / source).exists():
            print(f"{name}: {data / source} is not there, left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            IMPORTERS["triples"](data / source, Path(folder) / "imported")
            path = Path(folder) / "imported" / below
            embed_graph(path, Vectors(WIDTH, 0), batch_size=16384)
            rows.append({"graph": name, **beside_pyg(path)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def beside_pyg(folder: Path) -> dict[str, Any]:
    """PyG and ours on one graph; PyG is bounded in memory and processor time, and what kept it is said."""
    graph = KnowledgeGraph.open(folder)
    row = {"nodes": graph.num_nodes, "edges": graph.num_edges, "needs_gb": memory_needed(graph), "pyg_ms": None}
    free = 1e-6 * int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1])  # type: ignore
    if row["needs_gb"] > MEMORY_SHARE * free:
        return {**row, "why": f"its vectors need {row['needs_gb']:.1f} GB of memory, {free:.1f} GB were free"}
    result = folder / "beside.json"
    child = get_context("fork").Process(target=ask_pyg, args=(folder, result))  # it need not import PyG again
    child.start()
    child.join()
    if child.exitcode == -signal.SIGXCPU:
        return {**row, "why": f"not finished in {CPU_LIMIT} s of processor time"}
    assert child.exitcode == 0, child.exitcode
    return {**row, **json.loads(result.read_text())}


def ask_pyg(folder: Path, result: Path) -> None:
    """The comparison of one graph, one question, within CPU_LIMIT seconds; its figures into a file."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT + 10))
    graph = KnowledgeGraph.open(folder)
    write_json(result, compare(graph, make_questions(graph, 1), 1))


def grow(folder: Path, nodes: int, questions: int) -> dict[str, Any]:
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
    return {"nodes": nodes, "edges": EDGES_A_NODE * nodes, **asked, **sizes, "pyg": beside_pyg(folder)}


def ask(folder: Path, questions: int) -> dict[str, float]:
    """Opens a graph and its index and retrieves: times, memory, and the recall of the seeds against exact search."""
    start = time.perf_counter()
    graph = KnowledgeGraph.open(folder)
    open_seconds = time.perf_counter() - start
    index, vectors = node_index(graph, "ivf"), make_questions(graph, WARM_UP + questions)
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
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRAPHLLM_DATA", "../shared/data")))
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.ask is not None:
        print(json.dumps(ask(arguments.ask, arguments.questions)))
        return
    start, growth = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        metrics: dict[str, Any] = webqsp_sized(Path(folder) / "graph", min(arguments.questions, 20))
    print(json.dumps(metrics), flush=True)
    metrics["beside"] = real_graphs(arguments.data)
    for nodes in arguments.nodes:
        with tempfile.TemporaryDirectory() as folder:
            growth.append(grow(Path(folder) / "graph", nodes, arguments.questions))
        print(json.dumps(growth[-1]), flush=True)
    write_record(arguments, metrics | {"growth": growth}, time.perf_counter() - start)


def write_record(arguments: argparse.Namespace, metrics: dict[str, Any], seconds: float) -> None:
    """Writes the figures with the command, commit and machine that gave them."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    sizes = " ".join(map(str, arguments.nodes))
    result = {
        "command": f"python benchmarks/retrieval.py --json {arguments.json} --nodes {sizes}",
        "commit": commit,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, CPU",
        "minutes": round(seconds / 60, 2),
        "seeds": [0, 1],
        "metrics": metrics,
    }
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()
