"""`python -m serving export`: the flags; serving/prefix.py does it."""

import argparse
from collections.abc import Sequence


def export(argv: Sequence[str]) -> None:
    """Writes the language model and the graph prefix apart, for servers that take prompt embeddings."""
    flags = argparse.ArgumentParser(prog="python -m serving export", description=str(export.__doc__))
    flags.add_argument("--model", required=True, help="folder or repository without adapters")
    flags.add_argument("--output", required=True, help="gets language_model/ and prefix/")
    given = flags.parse_args(argv)
    from serving.prefix import export_prefix

    print(f"Exported: {export_prefix(given.model, given.output)}")
