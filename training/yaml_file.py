"""A YAML file that holds `key: value` lines."""

from pathlib import Path
from typing import Any

import yaml


def read_mapping(path: str | Path, needed: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file. needed: a sentence on where a file is expected, for who named none.

    Raises:
        ValueError: no such file, no YAML, or no mapping.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {str(path)!r}. {needed}")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}; it must hold `key: value` lines.")
    return values
