"""How time and memory of the retriever's message passing grow with edges, questions in a batch, and steps.

    python benchmarks/message_growth.py --json results/message_growth.json

Forward and backward of the sum of DistMult messages on drawn graphs, as benchmarks/message_passing.py measures them:
processor time of one thread, and the peak of memory beyond the sums and gradients that are returned. Then the balls
that a network with hold_unreached computes: nodes and edges within so many steps of a test query's entity in WN18RR,
and how often its answer is among them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.message_passing import compare, random_edges
from data_processor.graph_store import KnowledgeGraph
from data_processor.importers import IMPORTERS
from data_processor.schema import write_json
from modeling_gfm import Ball, GFMGraph
from training.record import commit

WIDTH, EDGES, BATCH = 64, (10_000, 100_000, 1_000_000, 10_000_000), 8
BATCHES, BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64), 100_000
STEPS, QUERIES = 6, 600


def row(count: int, batch: int) -> dict[str, float]:
    """Time and memory of one size, and the size of what is returned."""
    edges = random_edges(count)
    found = compare(edges, WIDTH, 2 if count < 10**6 else 1, peers=False, batch=batch)
    returned = 4 * WIDTH * (2 * edges.num_nodes * batch + edges.num_relations)
    one = {"edges": count, "nodes": edges.num_nodes, "width": WIDTH, "batch": batch, "returned_mb": returned / 1e6}
    one |= found
    print(json.dumps(one), flush=True)
    return one


def balls(source: Path) -> list[dict[str, float]]:
    """Of test triples, asked from either end, what lies within 1 to STEPS steps."""
    with tempfile.TemporaryDirectory() as folder:
        IMPORTERS["triples"](source, Path(folder))
        graph = KnowledgeGraph.open(Path(folder) / "graph")
        edges = GFMGraph.from_arrays(np.array(graph.edges), graph.num_nodes, graph.num_relations).edges(False)
        triples = np.load(Path(folder) / "triples" / "test.npy")
    rng = np.random.default_rng(0)
    rows = triples[rng.permutation(len(triples))[:QUERIES]][:, [0, 2]]
    ends = torch.from_numpy(np.where(rng.integers(2, size=(len(rows), 1)), rows, rows[:, ::-1]).astype(np.int64))
    found = np.zeros((STEPS, 3))
    for seed, answer in ends:
        ball = Ball.grow(edges, seed[None], torch.zeros(1, dtype=torch.long), 1, STEPS, False)
        counts = np.array([step.num_nodes for step in ball.steps])
        place = (ball.nodes == answer).nonzero()
        reached = counts > (int(place[0]) if len(place) else counts[-1])
        found += np.stack([counts, [len(step) for step in ball.steps], reached], 1) / len(ends)
    names = ("nodes", "edges", "answer_inside")
    return [{"steps": step, **dict(zip(names, row, strict=True))} for step, row in enumerate(found.tolist(), start=1)]


def main(argv: list[str] | None = None) -> None:
    """The three tables, written as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("results/message_growth.json"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/wn18rr"))
    parser.add_argument("--edges", type=int, nargs="*", default=EDGES)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    begun = time.monotonic()
    with_edges = [row(count, BATCH) for count in arguments.edges]
    with_batch = [row(BATCH_EDGES, batch) for batch in arguments.batches]
    write_json(arguments.json, {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 of {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "minutes": (time.monotonic() - begun) / 60,
        "seeds": [0],
        "with_edges": with_edges,
        "with_batch": with_batch,
        "balls_in_wn18rr": balls(arguments.data),
    })  # fmt: skip


if __name__ == "__main__":
    main()
