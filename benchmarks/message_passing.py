"""Message passing of the graph retriever beside plain torch and PyG, and a question's scores near its seeds.

Forward and backward of the sum of DistMult messages, eight questions at once, relation vectors shared: ours,
gather-multiply-index_add, and PyG's `propagate`, in turn in one process. Time is processor time of one thread, the
best of several; memory is the peak above what was held before and what must be returned (the sums, the gradients).
Weights are random: nothing here is about quality.

    python benchmarks/message_passing.py --data ../shared/data --json results/message_passing.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_processor.graph_store import KnowledgeGraph
from data_processor.importers import IMPORTERS
from data_processor.retrieval.folder import link_folder
from data_processor.schema import read_qa, write_json
from modeling_gfm import GFMConfig, GFMForRetrieval, GFMGraph, RelationalEdges, propagate
from training.record import commit

GRAPHS = {"musique_openie": ("openie", "musique_openie", "graph"), "wn18rr": ("triples", "wn18rr", "graph")}
WIDTHS, BATCH, REPEATS, QUESTIONS = (64, 512), 8, 3, 20
GROWTH = (10_000, 100_000, 1_000_000, 10_000_000)


class Peer(MessagePassing):
    """The same sum written as PyG's users write it; states are (N, B, D)."""

    def __init__(self) -> None:
        super().__init__(aggr="sum", node_dim=0)

    def forward(self, states: Tensor, relations: Tensor, edge_index: Tensor, kinds: Tensor) -> Tensor:
        """What arrives at every node (N, B, D)."""
        return self.propagate(edge_index, x=states, relation=relations[kinds])

    def message(self, x_j: Tensor, relation: Tensor) -> Tensor:
        """One message an edge (E, B, D)."""
        return x_j * relation


def index_add(states: Tensor, relations: Tensor, edges: RelationalEdges) -> Tensor:
    """The sum in one line of torch."""
    return torch.zeros_like(states).index_add(0, edges.targets, states[edges.sources] * relations[edges.relations])


def status(name: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (most so far) of this process."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore


def measure(step: Callable[[], Tensor], leaves: list[Tensor], repeats: int) -> tuple[float, float, list[Tensor]]:
    """(processor seconds of forward and backward, peak bytes beyond what is returned, gradients)."""
    best, peak, arriving = float("inf"), 0.0, leaves[0].detach().roll(1, 0)
    returned = leaves[0].nbytes + sum(leaf.nbytes for leaf in leaves)
    for _ in range(repeats):
        for leaf in leaves:
            leaf.grad = None
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        held, begun = status("VmRSS"), time.process_time()
        result = step()
        result.backward(arriving)
        best, peak = min(best, time.process_time() - begun), max(peak, status("VmHWM") - held - returned)
        del result
    return best, peak, [leaf.grad.clone() for leaf in leaves]


def compare(
    edges: RelationalEdges, width: int, repeats: int, peers: bool = True, batch: int = BATCH
) -> dict[str, float]:
    """Ours and, with `peers`, both others on one graph and width, `batch` questions at once."""
    torch.manual_seed(0)
    states = torch.randn(edges.num_nodes, batch, width, requires_grad=True)
    relations = torch.randn(edges.num_relations, 1, width, requires_grad=True)
    arms = {"ours": lambda: propagate(states, relations, edges)}
    if peers:
        ends, peer = torch.stack([edges.sources, edges.targets]), Peer()
        arms["index_add"] = lambda: index_add(states, relations, edges)
        arms["pyg"] = lambda: peer(states, relations, ends, edges.relations)
    propagate(states[:, :, :2], relations[:, :, :2], edges).sum().backward()  # compiles, and sorts for the backward
    found = {name: measure(step, [states, relations], repeats) for name, step in arms.items()}
    row = {f"{name}_{unit}": value for name, (seconds, peak, _) in found.items()
           for unit, value in (("ms", 1000 * seconds), ("mb", peak / 1e6))}  # fmt: skip
    for name in arms:
        for mine, theirs in zip(found["ours"][2], found[name][2], strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-2), f"{name} has another gradient"
    if peers:
        row["speedup_vs_index_add"] = row["index_add_ms"] / row["ours_ms"]
        row["speedup_vs_pyg"] = row["pyg_ms"] / row["ours_ms"]
        row["memory_ratio"] = row["ours_mb"] / row["index_add_mb"]
    # rows read and written by the three sums: one of each kind an edge, one result a node
    moved = 4 * width * (3 * len(edges) * (2 * batch + 1) + 2 * edges.num_nodes * batch)
    return row | {"gb_per_s": moved / row["ours_ms"] / 1e6}


def copy_speed() -> float:
    """GB a second that one thread reads and writes in order: no sum over scattered rows is faster."""
    source = torch.randn(64 * 2**20)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(5):
        begun = time.process_time()
        target.copy_(source)
        best = min(best, time.process_time() - begun)
    return 2 * source.nbytes / best / 1e9


def background(graph: KnowledgeGraph, data: Path) -> dict[str, Any]:
    """Scores of real questions over the whole graph and near their seeds, published shape, random weights."""
    torch.manual_seed(0)
    model = GFMForRetrieval(GFMConfig(feature_dim=64)).eval()
    embeds = np.random.default_rng(0).normal(size=(graph.num_relations, 64))
    model.attach_graphs([GFMGraph.from_arrays(graph.edges, graph.num_nodes, graph.num_relations, embeds)])
    pairs = [pair for path in sorted((data / "qa").glob("*.jsonl")) for pair in read_qa(path) if pair.seed_nodes]
    place, whole_s, near_s, difference, same = torch.tensor([0]), [], [], 0.0, 0
    for pair in pairs[:QUESTIONS]:
        seeds, question = torch.tensor(pair.seed_nodes), torch.randn(1, 64)
        with torch.no_grad():
            begun = time.process_time()
            whole = model(place, seeds, torch.zeros_like(seeds), question_embeds=question).logits[0]
            whole_s.append(time.process_time() - begun)
        model.score_near(place, seeds, question)  # the first call makes the background
        begun = time.process_time()
        near = model.score_near(place, seeds, question)[0]
        near_s.append(time.process_time() - begun)
        difference = max(difference, float(((near - whole).abs() / whole.abs().clamp(min=1e-6)).max()))
        same += int(torch.equal(near.topk(20).indices, whole.topk(20).indices))
    return {
        "background_questions": len(whole_s),
        "background_whole_ms": 1000 * float(np.median(whole_s)),
        "background_near_ms": 1000 * float(np.median(near_s)),
        "background_speedup": float(np.median(whole_s) / np.median(near_s)),
        "background_max_rel_diff": difference,
        "background_same_top20": same / max(len(whole_s), 1),
    }


def edges_of(graph: KnowledgeGraph) -> RelationalEdges:
    triples = torch.from_numpy(np.array(graph.edges))
    whole = GFMGraph.from_arrays(triples.numpy(), graph.num_nodes, graph.num_relations)
    return whole.edges(False)


def random_edges(count: int) -> RelationalEdges:
    """A tenth as many nodes as edges, targets crowded on hubs, a hundred relations."""
    nodes = count // 10
    torch.manual_seed(0)
    targets = (nodes * torch.rand(count, dtype=torch.double) ** 2).long()
    return RelationalEdges.sort(torch.randint(nodes, (count,)), torch.randint(100, (count,)), targets, nodes, 100)


def main(argv: list[str] | None = None) -> None:
    """Every graph and width, the background, the growth; written as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, default=Path("results/message_passing.json"))
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--edges", type=int, nargs="*", default=GROWTH, help="sizes of the growth table")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    begun, results = time.monotonic(), []
    near: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (importer, source, below) in GRAPHS.items():
            output = Path(folder) / name
            IMPORTERS[importer](arguments.data / source, output)
            graph = KnowledgeGraph.open(output / below)
            edges = edges_of(graph)
            for width in arguments.widths:
                row = {"graph": name, "nodes": graph.num_nodes, "edges": len(edges), "width": width, "batch": BATCH}
                results.append(row | compare(edges, width, REPEATS if len(edges) * width < 10**7 else 1))
                print(json.dumps(results[-1]), flush=True)
            if name == "musique_openie":
                link_folder(output, False, None, 0)
                near = background(graph, output)
                print(json.dumps(near), flush=True)
    growth = [{"edges": count, "width": 64, "batch": BATCH, **compare(random_edges(count), 64, 1, peers=False)}
              for count in arguments.edges]  # fmt: skip
    write_json(arguments.json, {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 of {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "minutes": (time.monotonic() - begun) / 60,
        "seeds": [0],
        "copy_gb_per_s": copy_speed(),
        "graphs": results,
        **near,
        "growth": growth,
    })  # fmt: skip


if __name__ == "__main__":
    main()
