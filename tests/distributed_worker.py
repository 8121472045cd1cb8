"""Run by torchrun in tests/test_distributed.py: several trainings in one launch, and what really ran in each of them.

    torchrun --nproc_per_node 2 tests/distributed_worker.py REPORT.json CASES.json
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import finetune  # noqa: E402


def observe(trainer: Any) -> dict[str, Any]:
    """The engine behind a trainer, by what it is and not by what was asked for."""
    engine = trainer.model_wrapped
    parameters = list(trainer.model.parameters())
    optimizer = trainer.optimizer
    while "optimizer" in vars(optimizer):
        optimizer = optimizer.optimizer
    return {
        "engine": type(engine).__name__,
        "stage": engine.zero_optimization_stage() if type(engine).__name__ == "DeepSpeedEngine" else None,
        "optimizer": type(optimizer).__name__,
        "optimizer_module": type(optimizer).__module__,
        "offloads": type(engine).__name__ == "DeepSpeedEngine" and engine.zero_use_cpu_optimizer(),
        "quantised": sum(type(one).__name__ in ("Params4bit", "Int8Params") for one in parameters),
        "groups": sorted({group["lr"] for group in optimizer.param_groups}),
        "parameters": len(parameters),
        "dtensors": sum(isinstance(one, DTensor) for one in parameters),
        "partitioned": sum("ds_tensor" in vars(one) for one in parameters),
        "world_size": trainer.args.world_size,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "eval_loss": [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row],
    }


def train(argv: list[str]) -> dict[str, Any]:
    """One run of finetune.py in this process."""
    kept = []
    build = finetune.build_trainer

    def keep(*arguments: Any) -> Any:
        kept.append(build(*arguments))
        return kept[0]

    finetune.build_trainer = keep
    try:
        finetune.main(argv)
        return observe(kept[0])
    finally:
        finetune.build_trainer = build


def main(report: Path, cases: dict[str, list[str]]) -> None:
    seen = {}
    for name, argv in cases.items():
        seen[name] = train(argv)
        gc.collect()
    if os.environ["RANK"] == "0":
        report.write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
