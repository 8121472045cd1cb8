"""Run by torchrun in tests/test_memory.py: trainings in one launch, and the bytes that each of them really held.

    torchrun --nproc_per_node 2 tests/memory_worker.py REPORT.json CASES.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import finetune  # noqa: E402
from benchmarks.held import held, held_by  # noqa: E402
from training.holdings import weights_of  # noqa: E402
from training.memory import step_of  # noqa: E402
from training.sharding import divide  # noqa: E402


def inner(optimizer: Any) -> Any:
    while "optimizer" in vars(optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def flat(value: Any) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(value)


class Census(TrainerCallback):
    """The most that gradients took: between two batches of a step, or when all are there and none was used yet."""

    def __init__(self) -> None:
        self.gradients, self.buckets, self.trainer = 0, 0, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        engine = self.trainer.model_wrapped
        if type(engine).__name__ == "DeepSpeedEngine":
            before(engine, "step", self.count)
            before(engine.optimizer, "independent_gradient_partition_epilogue", self.count_buckets)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if type(self.trainer.model_wrapped).__name__ != "DeepSpeedEngine":
            self.count()

    def state(self) -> dict[str, Any]:
        return vars(vars(self.trainer.model_wrapped).get("optimizer") or self.trainer.optimizer)

    def count(self) -> None:
        names = ("averaged_gradients", "grads_in_partition", "grad_partitions_flat_buffer")
        kept = [self.state().get(name) for name in names]
        found = held([*(one.grad for one in self.trainer.model.parameters()), *flat(kept)], set())
        self.gradients = max(self.gradients, found)

    def count_buckets(self) -> None:
        buffers = [vars(one).get("buffer") for one in self.state()["ipg_buckets"].values()]
        self.buckets = max(self.buckets, held(flat(buffers), set()))


def before(thing: Any, name: str, act: Any) -> None:
    """From now on `act` is called before the method."""
    method = vars(type(thing))[name].__get__(thing)

    def called(*arguments: Any, **settings: Any) -> Any:
        act()
        return method(*arguments, **settings)

    setattr(thing, name, called)


def measure(trainer: Any, census: Census) -> dict[str, Any]:
    known: set[int] = set()
    weights = held_by(trainer.model, known)
    weights += held((vars(one).get("ds_tensor") for one in trainer.model.parameters()), known)
    optimizer = inner(trainer.optimizer)
    master = held((one for group in optimizer.param_groups for one in group["params"]), known)
    engine = vars(vars(trainer.model_wrapped).get("optimizer") or trainer.optimizer)
    master += held(engine.get("fp32_partitioned_groups_flat", []), known)
    state = [value for row in optimizer.state.values() for value in row.values()]
    return {
        "engine": type(trainer.model_wrapped).__name__,
        "weights": weights, "master_weights": master, "gradients": census.gradients, "optimizer": held(state, known),
        "buckets": census.buckets,
    }  # fmt: skip


def predict(arguments: Any, parts: Any) -> dict[str, float]:
    """The rows that are counted and not traced, as --dry_run gives them."""
    step = step_of(arguments.training, parts.model.config.text_config.hidden_size)
    rows = divide(weights_of(parts.model, step.how.cast, step.several_rates), step.engine)
    return {name: row.gpu for name, row in rows.items()}


def train(argv: list[str]) -> dict[str, Any]:
    """One run of finetune.py in this process: what it held, and what was predicted for it."""
    census, kept = Census(), {}
    build = finetune.build_trainer

    def keep(arguments: Any, parts: Any) -> Any:
        kept["predicted"] = predict(arguments, parts)
        census.trainer = build(arguments, parts)
        census.trainer.add_callback(census)
        return census.trainer

    finetune.build_trainer = keep
    try:
        finetune.main(argv)
    finally:
        finetune.build_trainer = build
    return {"measured": measure(census.trainer, census), "predicted": kept["predicted"]}


def main(report: Path, cases: dict[str, list[str]]) -> None:
    seen = {name: train(argv) for name, argv in cases.items()}
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, seen)
    if torch.distributed.get_rank() == 0:
        report.write_text(json.dumps(everyone))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
