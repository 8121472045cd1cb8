"""What a run leaves beside its weights: run.json before it starts, metrics.json when it ends."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from data_processor.schema import write_json

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "deepspeed", "torch_geometric", "safetensors")


def write_run(folder: str | Path, arguments: dict[str, Any]) -> None:
    """run.json: every argument, the versions that matter, and the commit of this project."""
    record = {"arguments": arguments, "versions": versions(), "commit": commit()}
    write_json(Path(folder) / "run.json", record)


def write_metrics(folder: str | Path, metrics: dict[str, Any]) -> None:
    """metrics.json: a flat mapping of names to floats; what is not a number stays out."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    write_json(Path(folder) / "metrics.json", numbers)


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
