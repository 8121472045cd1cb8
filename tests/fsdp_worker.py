"""Run by torchrun in tests/test_distributed.py: the composite sharded by `fully_shard`, beside one whole copy of it.

    torchrun --nproc_per_node 2 tests/fsdp_worker.py REPORT.json LANGUAGE_MODEL DATA
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from tiny_world import flags  # noqa: E402

from training import qa  # noqa: E402
from training.arguments import parse  # noqa: E402
from training.launch import start  # noqa: E402

STEPS, BATCH = 5, 4


def build(language_model: str, data: str, more: list[str]) -> Any:
    """Model, rows and collator as finetune.py builds them."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = parse(flags(Path(language_model), Path(data), Path(folder), *more))
        start(arguments.training)
        return qa.build(arguments, qa.open_splits(arguments))


def shard(model: nn.Module) -> None:
    """Every decoder layer, the encoder and the projector as units of their own, and the rest as one."""
    composite = model.get_base_model() if "peft" in type(model).__module__ else model
    units = [*composite.language_model.model.layers, composite.graph_encoder, composite.graph_projector]
    for unit in units:
        fully_shard(unit)
    fully_shard(model)


def train(parts: Any, rank: int, world: int) -> list[float]:
    """Losses of the whole batch; each process reads its own rows of it, as the Trainer scales them."""
    optimizer = torch.optim.AdamW([one for one in parts.model.parameters() if one.requires_grad], lr=1e-2)
    losses = []
    for step in range(STEPS):
        rows = [parts.splits["train"][step * BATCH + i] for i in range(BATCH)]
        count = sum(label >= 0 for row in rows for label in row["labels"])
        batch = parts.collator(rows[rank::world])
        loss = parts.model(**batch, num_items_in_batch=count).loss
        (loss * world).backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(total)
        losses.append(float(total))
    return losses


def compare(language_model: str, data: str, more: list[str]) -> dict[str, Any]:
    """The same five steps with one whole copy and with shards."""
    whole = build(language_model, data, more)
    alone = {"losses": train(whole, 0, 1)}
    parts = build(language_model, data, more)
    size = sum(one.numel() for one in parts.model.parameters())
    shard(parts.model)
    held = list(parts.model.parameters())
    local = sum(one.to_local().numel() for one in held)
    losses = train(parts, torch.distributed.get_rank(), torch.distributed.get_world_size())
    gathered = get_model_state_dict(parts.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    difference = 0.0
    if torch.distributed.get_rank() == 0:  # the others get nothing
        expected = whole.model.state_dict()
        assert gathered.keys() == expected.keys(), sorted(gathered.keys() ^ expected.keys())[:5]
        difference = max(float((gathered[name] - expected[name]).abs().max()) for name in gathered)
    dtensors = sum(isinstance(one, DTensor) for one in held)
    sharded = {"losses": losses, "parameters": len(held), "dtensors": dtensors, "local": local, "whole": size}
    return {"alone": alone, "sharded": sharded, "largest_difference": difference}


def main(report: Path, language_model: str, data: str) -> None:
    torch.distributed.init_process_group("gloo")
    seen = {
        name: compare(language_model, data, more)
        for name, more in (("lora", []), ("full", ["--use_lora", "False"]), ("frozen", ["--freeze_lm", "True"]))
    }
    if torch.distributed.get_rank() == 0:
        report.write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
