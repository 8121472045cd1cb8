"""`python -m serving merge`: the flags; serving/export.py does it."""

import argparse
from collections.abc import Sequence


def merge(argv: Sequence[str]) -> None:
    """Makes one whole checkpoint of a base model and its adapters."""
    flags = argparse.ArgumentParser(prog="python -m serving merge", description=str(merge.__doc__))
    flags.add_argument("--model", required=True, help="folder that finetune.py wrote, or repository")
    flags.add_argument("--revision", help="branch, tag or commit of that repository")
    flags.add_argument("--output", required=True, help="new folder of the whole model")
    flags.add_argument("--dtype", default="auto", help="auto (as the base model is stored), float32, bfloat16, ...")
    given = flags.parse_args(argv)
    from serving.export import merged_checkpoint

    merged_checkpoint(given.model, given.output, given.revision, given.dtype)
    print(f"Merged: {given.output}")
