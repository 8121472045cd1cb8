"""Keys and tokens: those that are given as flags go to the environment, and into no file."""

import os
import sys
from typing import Any

# flags whose values leave the command line at once, and the variables that take them
KEY_FLAGS = {"--key": "WANDB_API_KEY", "--wandb_key": "WANDB_API_KEY", "--hub_token": "HF_TOKEN"}


def take_key(argv: list[str]) -> list[str]:
    """Exports the values of KEY_FLAGS and returns the rest; `sys.argv` (trackers copy it) loses them too."""
    rest, words = [], iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        variable = KEY_FLAGS.get("--" + name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if variable is None:
            rest.append(word)
            continue
        value = value or next(words, "")
        if not value:
            raise ValueError(f"{name} was given without a value. Pass it, or set {variable}.")
        os.environ[variable] = value
        sys.argv[:] = [one for one in sys.argv if one not in (word, value)]
    return rest


def without_keys(flags: dict[str, Any]) -> dict[str, Any]:
    """Exports the values of KEY_FLAGS among flags of a file, and returns the others."""
    rest = {}
    for name, value in flags.items():
        variable = KEY_FLAGS.get("--" + str(name).replace("-", "_"))
        if variable is None:
            rest[name] = value
        elif value is not None:
            os.environ[variable] = str(value)
    return rest
