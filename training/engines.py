"""The engines of a run: which one is asked for, what each of them trains, and which one really came up."""

import os
from argparse import Namespace
from typing import Any

from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.deepspeed_file import offloaded, zero_stage

ONE, DDP, FSDP = "one process", "DDP", "FSDP2"
ZERO = ("", "ZeRO-1", "ZeRO-2", "ZeRO-3")
OFFLOADED = " + offload"
SHARDED = ("ZeRO-3", "ZeRO-3 + offload", FSDP)  # no process holds whole weights
# starts of adapters that take weights out of the base model
TAKES_FROM_BASE = ("pissa", "olora")
ADAPTATIONS = ("frozen", "LoRA", "full", "4-bit LoRA", "8-bit LoRA")

TESTED, UNVERIFIED = "yes", "not verified"
GATHERS_BYTES = "ZeRO-3 partitions numbers that it can gather as they are, not 8-bit weights with their scales"
SHARDS_FLOATS = "FSDP shards weights of a floating-point type, which 8-bit weights are not"
NEEDS_ADAPTERS = "quantised weights cannot be trained themselves"
# what each engine trains: TESTED on a CPU with two processes, UNVERIFIED (needs a GPU, passed through), or why not
ENGINES: dict[str, dict[str, str]] = {
    engine: dict(zip(ADAPTATIONS, row, strict=True))
    for engine, row in {
        ONE: (TESTED,) * 5,
        DDP: (TESTED,) * 5,
        "ZeRO-1": (TESTED,) * 5,
        "ZeRO-2": (TESTED,) * 5,
        "ZeRO-2 + offload": (TESTED,) * 5,
        "ZeRO-3": (TESTED, TESTED, TESTED, TESTED, GATHERS_BYTES),
        "ZeRO-3 + offload": (TESTED, TESTED, TESTED, TESTED, GATHERS_BYTES),
        FSDP: (UNVERIFIED, UNVERIFIED, UNVERIFIED, UNVERIFIED, SHARDS_FLOATS),
    }.items()
}


def asked_engine(flags: Namespace | TrainingArguments, processes: int) -> str:
    """The key of ENGINES that the flags and the launcher's environment ask for.

    Args:
        flags: with `deepspeed` and `fsdp`.
        processes: of the whole run.
    """
    if flags.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return FSDP
    stage = zero_stage(flags)
    if stage:
        return ZERO[stage] + (OFFLOADED if offloads(flags) else "")
    return DDP if processes > 1 else ONE


def offloads(flags: Namespace | TrainingArguments) -> bool:
    """Whether the DeepSpeed configuration moves optimizer states or parameters off the GPU."""
    return offloaded(flags, "offload_optimizer") or offloaded(flags, "offload_param")


def adaptation_of(flags: Namespace) -> str:
    """The column of ENGINES that the flags stand in."""
    if flags.freeze_lm:
        return "frozen"
    if not flags.use_lora:
        return "full"
    return f"{flags.q_bits}-bit LoRA" if flags.q_lora else "LoRA"


def refusal(flags: Namespace, processes: int) -> str:
    """Why the engine that is asked for does not train what the flags say; empty if it does."""
    if flags.stage != "qa":
        return ""
    answer = ENGINES[asked_engine(flags, processes)][adaptation_of(flags)]
    return "" if answer in (TESTED, UNVERIFIED) else answer


def markdown_table() -> str:
    """ENGINES as the table of the README; what is refused is numbered below it."""
    reasons = list(dict.fromkeys(
        cell for row in ENGINES.values() for cell in row.values() if cell not in (TESTED, UNVERIFIED)
    ))  # fmt: skip
    marks = {TESTED: TESTED, UNVERIFIED: UNVERIFIED} | {one: f"no ({i})" for i, one in enumerate(reasons, start=1)}
    lines = [f"| | {' | '.join(ADAPTATIONS)} |", "|---" * (len(ADAPTATIONS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(marks[cell] for cell in row.values())} |" for name, row in ENGINES.items()]
    notes = [f"({i}) {one}." for i, one in enumerate(reasons, start=1)]
    return "\n".join([*lines, "", " ".join(notes)])


def running_engine(trainer: Trainer) -> str:
    """The engine behind a Trainer whose training has begun, by what wraps the model and not by what was asked for."""
    engine: Any = trainer.model_wrapped
    kind = type(engine).__name__
    if isinstance(engine, FSDPModule):
        return FSDP
    if kind == "DeepSpeedEngine":
        places = [one.device for one in (engine.zero_offload_optimizer(), engine.zero_offload_param()) if one]
        return ZERO[engine.zero_optimization_stage()] + (OFFLOADED if any(one != "none" for one in places) else "")
    if kind == "DataParallel":
        return kind
    return DDP if kind == "DistributedDataParallel" and trainer.args.world_size > 1 else ONE


class RunningEngine(TrainerCallback):
    """Stops a run at its start if another engine came up than the one that was asked for: some fall back in silence.

    Args:
        trainer: whose engine is looked at.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        asked, running = asked_engine(args, args.world_size), running_engine(self.trainer)
        if asked != running:
            raise ValueError(
                f"{asked} was asked for, but {running} came up ({args.world_size} processes on "
                f"{args.device.type}). Start with torchrun or `accelerate launch` on a machine that can run it, or "
                "leave --deepspeed and --fsdp out."
            )
