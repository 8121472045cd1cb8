"""What a run leaves beside its weights: run.json before it starts, metrics.json when it ends; whose they are."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from data_processor.schema import write_json

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "deepspeed", "torch_geometric", "safetensors")
# flags that leave the weights of a step as they are; all others make a run another run
FREE_PREFIXES = ("logging_", "log_", "eval_", "save_", "hub_", "push_", "wandb_", "trackio_", "dataloader_", "ddp_")
FREE = {
    "output_dir", "resume_from_checkpoint", "dry_run", "json", "include_base", "num_train_epochs", "max_steps",
    "do_train", "do_eval", "do_predict", "max_new_tokens", "per_device_eval_batch_size", "validation_split",
    "test_split", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "use_wandb", "report_to",
    "run_name", "project", "disable_tqdm", "cache_dir", "preprocess_cache", "lazy_preprocess", "no_cache",
    "local_rank", "debug", "skip_memory_metrics", "bf16_full_eval", "fp16_full_eval", "prediction_loss_only",
    "batch_eval_metrics", "include_for_metrics", "enable_jit_checkpoint", "inspect_step", "total_batch_size",
    "publish", "activation_checkpointing", "activation_checkpointing_kwargs",
}  # fmt: skip
# these change the order or the number of the rows, and therefore the steps
NOT_FREE = {"dataloader_drop_last"}


def write_run(
    folder: str | Path, arguments: dict[str, Any], data: dict[str, str], processes: int, sizes: dict[str, int]
) -> None:
    """run.json: every argument, each split's fingerprint and size, versions, machine, the commit of this project."""
    record = {
        "arguments": arguments, "data": data, "sizes": sizes, "processes": processes, "versions": versions(),
        "machine": machine(), "commit": commit(),
    }  # fmt: skip
    write_json(Path(folder) / "run.json", record)


def check_same_run(
    folder: str | Path, arguments: dict[str, Any], data: dict[str, str], processes: int = 1
) -> None:
    """Raises ValueError if a whole checkpoint in the folder was made with other arguments or other rows.

    Args:
        folder: the output folder, with or without an earlier run.
        arguments: every argument of this run.
        data: split -> fingerprint.
        processes: of this run. It may differ where accumulation makes up for it, so that a step has as many examples.
    """
    path = Path(folder) / "run.json"
    if not path.is_file() or not any(Path(folder).glob("checkpoint-*/complete")):
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps({"arguments": arguments, "data": data, "processes": processes}))
    changed = [name for name in differing(before["arguments"], now["arguments"]) if not is_free(name)]
    if examples_a_step(before) == examples_a_step(now):
        changed = [name for name in changed if name != "gradient_accumulation_steps"]
    elif before.get("processes", processes) != processes:
        changed.append("processes (--total_batch_size keeps the examples of a step the same on any number of them)")
    if "train" in differing(before.get("data", {}), now["data"]):
        changed.append("the data that is trained on")
    if changed:
        raise ValueError(
            f"--output_dir {folder} holds checkpoints of a run with other arguments: {', '.join(changed)} (see its "
            "run.json). Choose another folder, or begin again there with --resume_from_checkpoint none."
        )


def examples_a_step(record: dict[str, Any]) -> int | None:
    """Examples of an optimizer step over all processes, None for a record that does not say how many there were."""
    arguments, processes = record["arguments"], record.get("processes")
    if processes is None:
        return None
    return arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] * processes


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names in both that stand for different values."""
    return [name for name, value in now.items() if name in before and before[name] != value]


def is_free(name: str) -> bool:
    """Whether a flag may change between a checkpoint and the run that continues it."""
    return name in FREE or name.startswith(FREE_PREFIXES) and name not in NOT_FREE


def write_metrics(folder: str | Path, metrics: dict[str, Any]) -> None:
    """metrics.json: a flat mapping of names to floats; what is not a number stays out."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    write_json(Path(folder) / "metrics.json", numbers)


def table(metrics: dict[str, float]) -> str:
    """The metrics, a line each."""
    width = max(map(len, metrics), default=0)
    return "\n".join(f"{name:<{width}}  {value:.4f}" for name, value in metrics.items())


def machine() -> str:
    """The processor, and the kind of GPU where there is one."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(gpus)} x {gpus[0]}" if gpus else f"{platform.machine()}, {os.cpu_count()} CPU cores"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit checked out where this file lies, with `+` if files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
