"""The flags that chat and web share, and the pipeline that they describe."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_processor.vector_index import KINDS

if TYPE_CHECKING:
    from serving.pipeline import GraphQAPipeline


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags of `GraphQAPipeline.from_pretrained`."""
    flags = argparse.ArgumentParser(prog=f"python -m serving {command}", description=description)
    flags.add_argument("--model", required=True, help="folder that finetune.py wrote, or repository")
    flags.add_argument("--revision", help="branch, tag or commit of the repository")
    flags.add_argument("--data", type=Path, required=True, help="folder with graph/ and, if there are any, qa/ and "
                       "subgraphs/")  # fmt: skip
    flags.add_argument("--method", help="of retrieval (default: that of DATA/subgraphs)")
    flags.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE",
                       help="of the method, such as max_nodes=20; may be repeated")  # fmt: skip
    flags.add_argument("--index", choices=KINDS, default="exact", help="search for similar nodes")
    flags.add_argument("--max_new_tokens", type=int, default=32, help="longest answer (default: %(default)s)")
    flags.add_argument("--device", help="default: the GPU if there is one")
    return flags


def parameters(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE words; a value is a number where it reads as one, else a string.

    Raises:
        ValueError: a word without a name or "=".
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ValueError(f"--parameter {word!r} is not NAME=VALUE, such as max_nodes=20")
        found[name] = number(value)
    return found


def number(value: str) -> int | float | str:
    """The value as a whole number or a fraction, if it is one."""
    if re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    return float(value) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value) else value


def load(arguments: argparse.Namespace) -> "GraphQAPipeline":
    """The pipeline that the flags describe."""
    given = parameters(arguments.parameter)  # said before torch is imported
    from transformers.utils.logging import disable_progress_bar

    from serving.pipeline import GraphQAPipeline

    disable_progress_bar()
    return GraphQAPipeline.from_pretrained(
        arguments.model, arguments.data, arguments.method, given, arguments.index, arguments.max_new_tokens,
        arguments.device, revision=arguments.revision,
    )  # fmt: skip
