"""Where a run starts, and what a refusal of its flags is."""

import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Machine:
    """Where the run starts.

    Attributes:
        gpus: how many this process sees.
        launched: torchrun or its like started this process.
        first: it is the first of all processes; the others must not judge an output folder that it is already filling.
        processes: of the whole run.
        bf16: what it trains on calculates in bfloat16.
        accelerate_deepspeed: a configuration of accelerate asks for DeepSpeed.
    """

    gpus: int
    launched: bool
    first: bool = True
    processes: int = 1
    bf16: bool = True
    accelerate_deepspeed: bool = False

    @classmethod
    def here(cls) -> "Machine":
        gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
        bf16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        by_accelerate = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
        first = os.environ.get("RANK", "0") == "0"
        return cls(gpus, "LOCAL_RANK" in os.environ, first, processes, bf16, by_accelerate)

    def accumulation(self, flags: Namespace) -> int:
        """Batches of one process in one optimizer step: as many as make up --total_batch_size, or as the flags say."""
        if flags.total_batch_size is None:
            return flags.gradient_accumulation_steps
        return flags.total_batch_size // (flags.per_device_train_batch_size * self.processes)


Refused = Callable[[Namespace, Machine], Any]


@dataclass(frozen=True)
class Check:
    """One refusal: `refused` is true where the flags cannot work; `message` is formatted with flags and machine."""

    name: str
    refused: Refused
    message: str
