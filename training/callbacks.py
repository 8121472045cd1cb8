"""Steps and checkpoints that can be trusted: finite, loadable by themselves, marked `complete` when all have "
"written."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from data_processor.schema import write_json
from training.engines import asked_engine

logger = logging.getLogger(__name__)

COMPLETE = "complete"


def checkpoints(output_dir: str | Path) -> dict[int, Path]:
    """The checkpoint folders of a run by their step, whole or not."""
    found = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = folder.name.rpartition("-")[2]
        if folder.is_dir() and step.isdigit():
            found[int(step)] = folder
    return dict(sorted(found.items()))


def last_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """The latest checkpoint that carries the marker; later ones without it were cut off while they were written."""
    found = checkpoints(output_dir)
    whole = [folder for folder in found.values() if (folder / COMPLETE).exists()]
    cut_off = [folder.name for folder in found.values() if not (folder / COMPLETE).exists()]
    if cut_off:
        logger.warning("Not whole, and therefore not resumed from: %s", ", ".join(cut_off))
    return whole[-1] if whole else None


class WholeCheckpoints(TrainerCallback):
    """Writes configuration, code and processor beside the weights, then the marker, and only then drops old ones.

    Args:
        write_companions: writes what makes a folder of weights loadable.
        save_total_limit: checkpoints to keep, None for all. The Trainer's own limit must be off: it would delete the
            last whole checkpoint before the new one is marked.
    """

    def __init__(self, write_companions: Callable[[Path], None], save_total_limit: int | None) -> None:
        self.write_companions = write_companions
        self.save_total_limit = save_total_limit

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What lies ahead of the step that this run starts from belongs to another course: it loses its marker."""
        if args.should_save:
            for step, folder in checkpoints(args.output_dir).items():
                if step > state.global_step:
                    (folder / COMPLETE).unlink(missing_ok=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ends the run where the disk has no room for another checkpoint, before a part of one is written."""
        last = last_whole_checkpoint(args.output_dir) if control.should_save and args.should_save else None
        if last is None:
            return
        needed, free = size_of(last) / 2**20, shutil.disk_usage(args.output_dir).free / 2**20
        if free < needed:
            raise ValueError(
                f"The disk of {args.output_dir} has {free:,.0f} MiB left, and a checkpoint takes {needed:,.0f}. Make "
                "room, or keep fewer (--save_total_limit), and start the same command again: it goes on from "
                f"{last.name}, which is whole."
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if args.should_save:
            self.write_companions(folder)
            drop_pickle(folder)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # other processes may still be writing their random and optimizer states
        if not args.should_save:
            return
        if not args.save_only_model:  # weights alone cannot be resumed from
            written_by = {"engine": asked_engine(args, args.world_size), "processes": args.world_size}
            write_json(folder / COMPLETE, written_by)
        rotate_checkpoints(
            args.output_dir, self.save_total_limit, best_model_checkpoint=state.best_model_checkpoint, use_mtime=False
        )


def drop_pickle(folder: str | Path) -> None:
    """Deletes the Trainer's pickled copy of its arguments: run.json says the same as text."""
    (Path(folder) / "training_args.bin").unlink(missing_ok=True)


def written_by(checkpoint: Path) -> dict[str, Any]:
    """{"engine", "processes"} of a whole checkpoint; {} if its marker is of a version that said neither."""
    text = (checkpoint / COMPLETE).read_text(encoding="utf-8")
    return json.loads(text) if text else {}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class FiniteSteps(TrainerCallback):
    """Ends a run at a step whose loss is not a number, before it reaches the weights, and at weights that are none."""

    def __init__(self) -> None:
        self.step, self.folder, self.handle = 0, "", None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.folder = args.output_dir
        self.handle = model.register_forward_hook(self._check_loss)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step = state.global_step + 1

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._check_weights(model, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.handle.remove()
        self._check_weights(model, state.global_step)

    def _check_loss(self, model: nn.Module, arguments: Any, output: Any) -> None:
        if model.training and output.loss is not None and not torch.isfinite(output.loss):
            raise ValueError(
                f"The loss of step {self.step} is {output.loss.item()}. {self._kept()} --inspect_step {self.step} "
                f"shows the examples of that step; a lower --learning_rate or --max_grad_norm, more --warmup_steps, "
                f"or --bf16 instead of --fp16 help where they are sound."
            )

    def _check_weights(self, model: nn.Module, step: int) -> None:
        broken = [name for name, one in model.named_parameters() if one.requires_grad and not finite(one)]
        if broken:
            raise ValueError(
                f"After step {step} {len(broken)} weights hold numbers that are not finite, first {broken[0]}: a "
                f"gradient was not. {self._kept()} Set --max_grad_norm, or lower --learning_rate."
            )

    def _kept(self) -> str:
        last = last_whole_checkpoint(self.folder)
        return "No checkpoint was written before." if last is None else f"The last whole checkpoint is {last}."


def finite(parameter: nn.Parameter) -> bool:
    """Whether every number of a parameter is finite, or of the part that ZeRO-3 or FSDP holds here."""
    held: Tensor = parameter.ds_tensor if "ds_tensor" in vars(parameter) else parameter.detach()
    held = held.to_local() if isinstance(held, DTensor) else held
    return bool(torch.isfinite(held).all())


class SeededLengthGroups(TrainerCallback):
    """Draws an epoch's groups of like length from the seed and the epoch alone.

    The Trainer's sampler draws them from the process's random state: a resumed run would draw others, and processes
    whose states differ would leave examples out.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any,
        **kwargs: Any,
    ) -> None:
        batches = train_dataloader.batch_sampler
        sampler = (batches.batch_sampler if isinstance(batches, BatchSamplerShard) else batches).sampler
        if isinstance(sampler, LengthGroupedSampler):
            seed = args.seed if args.data_seed is None else args.data_seed
            sampler.generator = torch.Generator().manual_seed(seed + int(state.epoch + 1e-6))
