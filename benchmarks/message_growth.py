"""How time and memory of the retriever's message passing grow with edges and with questions in a batch.

    python benchmarks/message_growth.py --json results/message_growth.json

Forward and backward of the sum of DistMult messages on drawn graphs, as benchmarks/message_passing.py measures them:
processor time of one thread, and the peak of memory beyond the sums and gradients that are returned.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.message_passing import compare, random_edges
from data_processor.schema import write_json
from training.record import commit

WIDTH, EDGES, BATCH = 64, (10_000, 100_000, 1_000_000, 10_000_000), 8
BATCHES, BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64), 100_000


def row(count: int, batch: int) -> dict[str, float]:
    """Time and memory of one size, and the size of what is returned."""
    edges = random_edges(count)
    found = compare(edges, WIDTH, 2 if count < 10**6 else 1, peers=False, batch=batch)
    returned = 4 * WIDTH * (2 * edges.num_nodes * batch + edges.num_relations)
    one = {"edges": count, "nodes": edges.num_nodes, "width": WIDTH, "batch": batch, "returned_mb": returned / 1e6}
    one |= found
    print(json.dumps(one), flush=True)
    return one


def main(argv: list[str] | None = None) -> None:
    """Both tables, written as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("results/message_growth.json"))
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
    })  # fmt: skip


if __name__ == "__main__":
    main()
