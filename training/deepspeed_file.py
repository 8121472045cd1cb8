"""What the file behind `--deepspeed` says."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any


def deepspeed_config(flags: Namespace) -> dict[str, Any]:
    """The DeepSpeed configuration that `--deepspeed` names, or {}.

    Raises:
        ValueError: no such file, or not JSON.
    """
    if not flags.deepspeed:
        return {}
    inline = str(flags.deepspeed).lstrip().startswith("{")
    if not inline and not Path(flags.deepspeed).is_file():
        raise ValueError(f"--deepspeed {flags.deepspeed}: no such file. Those of the project are in ds_configs/.")
    try:
        return json.loads(flags.deepspeed if inline else Path(flags.deepspeed).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--deepspeed {flags.deepspeed} is not JSON: {error}") from error


def zero_stage(flags: Namespace) -> int:
    """0 without DeepSpeed, else the stage of ZeRO."""
    return int(deepspeed_config(flags).get("zero_optimization", {}).get("stage", 0))


def offloaded(flags: Namespace, name: str) -> bool:
    """Whether `name`, offload_optimizer or offload_param, moves its share of ZeRO off the GPU."""
    zero = deepspeed_config(flags).get("zero_optimization", {})
    return zero.get(name, {}).get("device", "none") != "none"
