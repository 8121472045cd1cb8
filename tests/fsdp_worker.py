"""Run by torchrun in tests/test_distributed.py: the composite sharded by FSDP2, beside one whole copy of it.

    torchrun --nproc_per_node 2 tests/fsdp_worker.py REPORT.json LANGUAGE_MODEL DATA
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from tiny_world import flags  # noqa: E402

from training import qa  # noqa: E402
from training.arguments import parse  # noqa: E402
from training.launch import start  # noqa: E402

STEPS, BATCH = 5, 4
CASES = {
    "lora": [],
    "full": ["--use_lora", "False"],
    "frozen": ["--freeze_lm", "True"],
    "4-bit": ["--q_lora", "True"],
}


def build(language_model: str, data: str, more: list[str]) -> Any:
    """Model, rows and collator as finetune.py builds them."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = parse(flags(Path(language_model), Path(data), Path(folder), *more))
        start(arguments.training)
        return qa.build(arguments, qa.open_splits(arguments))


def shard(model: nn.Module) -> nn.Module:
    """As accelerate does it for the Trainer on GPUs: every decoder layer is a unit, and so is the rest."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP")
    stand_in = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no", device=torch.device("cpu"),
        is_main_process=torch.distributed.get_rank() == 0,
    )  # fmt: skip
    return fsdp2_prepare_model(stand_in, model)


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
    model = shard(parts.model)
    assert isinstance(model, FSDPModule)
    held = list(model.parameters())
    quantised = sum(type(one).__name__ == "Params4bit" for one in whole.model.parameters())
    local = sum(one.to_local().numel() for one in held)
    losses = train(parts, torch.distributed.get_rank(), torch.distributed.get_world_size())
    gathered = get_model_state_dict(parts.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    difference = 0.0
    if torch.distributed.get_rank() == 0:  # the others get nothing
        expected = whole.model.state_dict()
        missing = expected.keys() - gathered.keys()  # scales of 4-bit weights are no weights
        assert all(".weight." in name for name in missing), sorted(missing)[:5]
        difference = max(float((gathered[name] - expected[name]).abs().max()) for name in gathered)
    dtensors = sum(isinstance(one, DTensor) for one in held)
    units = sum(isinstance(one, FSDPModule) for one in model.modules())
    sharded = {"losses": losses, "parameters": len(held), "dtensors": dtensors, "local": local, "whole": size}
    sharded |= {"units": units, "quantised": quantised}
    return {"alone": alone, "sharded": sharded, "largest_difference": difference}


def main(report: Path, language_model: str, data: str) -> None:
    torch.distributed.init_process_group("gloo")
    os.environ["ACCELERATE_USE_FSDP"] = "true"  # four bits are then stored in numbers that can be sharded
    seen = {
        name: compare(language_model, data, more)
        for name, more in CASES.items()
    }
    if torch.distributed.get_rank() == 0:
        report.write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
