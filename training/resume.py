"""How a run begins or goes on: whose the output folder is, and the checkpoint, as engine and processes allow."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from training.arguments import Arguments, TrainingArguments
from training.callbacks import last_whole_checkpoint, written_by
from training.engines import DDP, ONE, asked_engine
from training.record import check_same_run, write_run

logger = logging.getLogger(__name__)

UNIVERSAL = "universal"  # ends the name of a checkpoint that ZeRO reads on any number of processes


def begin(arguments: Arguments, raw: dict[str, Any]) -> None:
    """Claims the output folder with run.json, unless its checkpoints are another run's and would be continued.

    A run that only answers questions says so there, too, beside its predictions, where no training has.
    """
    training = arguments.training
    answers = training.do_predict and not (Path(training.output_dir) / "run.json").exists()
    if not (training.do_train or answers) or not training.should_save:
        return
    if arguments.run.dry_run or training.inspect_step is not None:
        return
    data = {name: split.fingerprint for name, split in raw.items()}
    if training.resume_from_checkpoint == "auto":
        check_same_run(training.output_dir, arguments.flat(), data, training.world_size)
    sizes = {name: len(split) for name, split in raw.items()}
    write_run(training.output_dir, arguments.flat(), data, training.world_size, sizes)


def resume_point(arguments: Arguments) -> str | None:
    """The checkpoint to go on from: the one that was named, or the last whole one of the output folder."""
    training = arguments.training
    named = training.resume_from_checkpoint
    if named in (None, "none") or not training.do_train or arguments.run.dry_run or training.inspect_step is not None:
        return None
    found = last_whole_checkpoint(training.output_dir) if named == "auto" else Path(named)
    if found is None:
        return None
    logger.info("Going on from %s (--resume_from_checkpoint none begins again).", found)
    fit(found, training)
    steps = TrainerState.load_from_json(found / TRAINER_STATE_NAME).global_step
    if 0 < training.max_steps <= steps:
        # the Trainer would take one step more; without an epoch to run it loads the checkpoint and ends
        training.max_steps, training.num_train_epochs = -1, 0
    return str(found)


def fit(checkpoint: Path, training: TrainingArguments) -> None:
    """Prepares the run to read a checkpoint that another number of processes wrote, where that gives the same states.

    Whole copies (one process, DDP) do not depend on it. ZeRO-1 and 2 read a checkpoint that is converted once.

    Raises:
        ValueError: another engine wrote it; or ZeRO-3 did, on another number of processes: converted, its run goes on
            otherwise than the uninterrupted one.
    """
    before = written_by(checkpoint)
    now = {"engine": asked_engine(training, training.world_size), "processes": training.world_size}
    if not before or before == now:
        return
    told = {name: f"{one['engine']} on {one['processes']} processes" for name, one in (("was", before), ("is", now))}
    if {before["engine"], now["engine"]} <= {ONE, DDP}:
        logger.info("%s was written by %s; %s goes on from it.", checkpoint, told["was"], told["is"])
    elif before["engine"] == now["engine"] and now["engine"].startswith(("ZeRO-1", "ZeRO-2")):
        with training.main_process_first(desc="converting the checkpoint"):
            convert(checkpoint)
        training.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
    else:
        raise ValueError(
            f"{checkpoint} was written by {told['was']} and cannot be gone on from by {told['is']} with the same "
            f"result. Start it as before, or begin a new run from its weights with --init_from and another "
            f"--output_dir."
        )


def convert(checkpoint: Path) -> None:
    """Writes ZeRO's states of a checkpoint beside them in DeepSpeed's universal form, once.

    Raises:
        ValueError: DeepSpeed could not.
    """
    (source,) = (path for path in checkpoint.glob("global_step*") if not path.name.endswith(UNIVERSAL))
    target = checkpoint / f"{source.name}_{UNIVERSAL}"
    if (checkpoint / f"latest_{UNIVERSAL}").is_file():  # written last
        return
    logger.info("Converting the optimizer states of %s for another number of processes.", checkpoint)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(source), "--output_folder", str(target)]
    done = subprocess.run([*command, *folders], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ValueError(f"DeepSpeed could not convert {source}: {last}. Start with as many processes as before.")
