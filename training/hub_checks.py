"""What is refused about publishing, and why: with --push_to_hub, and with --publish, which does nothing else."""

import re
from argparse import Namespace
from pathlib import Path

from huggingface_hub.constants import HF_HUB_OFFLINE

from training.machine import Check, Machine

NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def _misnamed(flags: Namespace, machine: Machine) -> bool:
    name = flags.hub_model_id or ""
    return bool(name) and (not re.fullmatch(NAME, name) or ".." in name or name.endswith((".git", ".")))


NAME_CHECK = Check(
    "name on the Hub",
    _misnamed,
    "--hub_model_id {hub_model_id} is no name on the Hub. Pass OWNER/NAME: letters, digits, - _ . and one slash.",
)
OFFLINE = "HF_HUB_OFFLINE is set, so nothing can be published. Unset it, or publish later with --publish {output_dir}."

HUB_CHECKS = (
    NAME_CHECK,
    Check(
        "push without a name",
        lambda f, m: f.push_to_hub and not f.hub_model_id,
        "--push_to_hub needs to know where. Pass --hub_model_id OWNER/NAME.",
    ),
    Check(
        "push of a local base",
        lambda f, m: (
            f.push_to_hub
            and f.stage == "qa"
            and (f.use_lora or f.freeze_lm)
            and not f.include_base
            and Path(f.model_name_or_path or f.init_from).is_dir()
        ),
        "The published model would look for its base model in a folder of this machine. Add --include_base True, or "
        "name a base model of the Hub.",
    ),
    Check(
        "hub strategy",
        lambda f, m: f.hub_strategy not in ("end", "every_save"),
        "--hub_strategy {hub_strategy} would publish optimizer and random states, which are pickles and large, to "
        "people who want the model. Use end, or every_save: the model at each checkpoint.",
    ),
    Check(
        "every save without saves",
        lambda f, m: f.push_to_hub and f.hub_strategy == "every_save" and f.save_strategy == "no",
        "--hub_strategy every_save publishes at checkpoints, and --save_strategy no writes none. Change one of them.",
    ),
    Check("push offline", lambda f, m: f.push_to_hub and HF_HUB_OFFLINE, OFFLINE),
)
PUBLISH_CHECKS = (
    NAME_CHECK,
    Check(
        "publish without a name",
        lambda f, m: not f.hub_model_id,
        "--publish {publish} needs to know where. Pass --hub_model_id OWNER/NAME.",
    ),
    Check(
        "publish nothing",
        lambda f, m: not Path(f.publish).is_dir(),
        "--publish {publish} is no folder. Give one that finetune.py wrote (--output_dir).",
    ),
    Check("publish offline", lambda f, m: HF_HUB_OFFLINE, OFFLINE.replace("{output_dir}", "{publish}")),
)
