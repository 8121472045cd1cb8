"""Run by torchrun in tests/test_distributed.py: the aligner's losses and gradients on two processes and on one.

    torchrun --nproc_per_node 2 tests/aligner_worker.py REPORT.json
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from test_aligner import build, pairs  # noqa: E402

import modeling_aligner  # noqa: E402


def rows_of(batch: dict[str, Tensor], rows: slice, nodes: slice) -> dict[str, Tensor]:
    """Some pairs of a batch, with texts and graphs no wider than they need."""
    width = int(batch["attention_mask"][rows].sum(dim=1).max())
    edges = batch["graph_edge_index"]
    inside = (edges[0] >= nodes.start) & (edges[0] < nodes.stop)
    return {
        "input_ids": batch["input_ids"][rows, :width],
        "attention_mask": batch["attention_mask"][rows, :width],
        "text_index": batch["text_index"][rows],
        "graph_node_features": batch["graph_node_features"][nodes],
        "graph_edge_index": edges[:, inside] - nodes.start,
        "graph_batch": batch["graph_batch"][nodes] - batch["graph_batch"][nodes.start],
    }


def likeliest(scores: Tensor, same: Tensor) -> Tensor:
    """A hard negative without chance: on any number of processes the same."""
    return scores.masked_fill(same, -torch.inf).argmax(dim=1).masked_fill(same.all(dim=1), -1)


def figures(model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, float], list[Tensor]]:
    """The losses, averaged over the processes, and the gradients."""
    model.zero_grad()
    out = model(**batch)
    out.loss.backward()
    losses = {name: value.detach().clone() for name, value in out.items()}
    for value in losses.values() if dist.is_initialized() else ():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return {name: float(value) for name, value in losses.items()}, [one.grad.clone() for one in model.parameters()]


def main(report: Path) -> None:
    """Compares one process that has all pairs with two that have three of them and one."""
    modeling_aligner.hard_negatives = likeliest
    model, batch = build().train(), pairs()
    expected, whole = figures(model, batch)
    dist.init_process_group("gloo")
    parts = [(slice(0, 3), slice(0, 6)), (slice(3, 4), slice(6, 8))]
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    found, gradients = figures(wrapped, rows_of(batch, *parts[dist.get_rank()]))
    differences = [float((one - two).abs().max()) for one, two in zip(whole, gradients, strict=True)]
    largest = max(float(one.abs().max()) for one in whole)
    if dist.get_rank() == 0:
        result = {"expected": expected, "found": found, "difference": max(differences), "largest": largest}
        report.write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
