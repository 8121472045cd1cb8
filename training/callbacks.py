"""Checkpoints that can be trusted: loadable by themselves, and marked `complete` when every process has written."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

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

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if args.should_save:
            self.write_companions(folder)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # other processes may still be writing their random and optimizer states
        if not args.should_save:
            return
        if not args.save_only_model:  # weights alone cannot be resumed from
            (folder / COMPLETE).touch()
        rotate_checkpoints(
            args.output_dir, self.save_total_limit, best_model_checkpoint=state.best_model_checkpoint, use_mtime=False
        )
