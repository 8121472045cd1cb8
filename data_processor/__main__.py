"""The offline steps from raw data to training examples: `python -m data_processor <command> --help`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_processor.importers import IMPORTERS


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace whose `run` does the work."""
    parser = argparse.ArgumentParser(prog="python -m data_processor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("import", help="a foreign format -> graph/, qa/ and subgraphs/")
    command.add_argument("format", choices=sorted(IMPORTERS))
    command.add_argument("--input", type=Path, required=True, help="file or folder of that format")
    command.add_argument("--output", type=Path, required=True, help="graph folder or dataset folder to write")
    command.add_argument("--hops", type=int, nargs="+", choices=(1, 2, 3), help="metaqa only: which question sets")
    command.set_defaults(run=run_import)

    command = commands.add_parser("embed", help="node and relation texts -> vectors in graph/")
    command.add_argument("--graph", type=Path, required=True, help="graph folder")
    command.add_argument("--encoder", default="hashing", help="hashing[:WIDTH], openai:MODEL@BASE_URL, or a "
                         "sentence-transformers name or folder (default: %(default)s)")  # fmt: skip
    command.add_argument("--batch_size", type=int, default=256)
    command.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    command.set_defaults(run=run_embed)
    return parser.parse_args(argv)


def run_import(arguments: argparse.Namespace) -> str:
    """Imports one foreign format; returns what was done."""
    options = {}
    if arguments.hops is not None:
        if arguments.format != "metaqa":
            raise ValueError(f"--hops belongs to the format metaqa, not to {arguments.format}; leave it out")
        options["hops"] = tuple(arguments.hops)
    report = IMPORTERS[arguments.format](arguments.input, arguments.output, **options)
    assert report.rows == report.kept + report.rejected, report
    counts = f"{report.rows} rows read, {report.kept} kept, {report.rejected} rejected"
    where = f" (see {arguments.output / 'rejected.jsonl'})" if report.rejected else ""
    return f"{report.summary}\n{counts}{where}"


def run_embed(arguments: argparse.Namespace) -> str:
    """Embeds a graph's texts; returns what was done."""
    from data_processor.graph_store import KnowledgeGraph, embed_graph
    from data_processor.text_encoder import load_encoder

    KnowledgeGraph.open(arguments.graph)  # a missing graph is said before a model is loaded
    graph = embed_graph(arguments.graph, load_encoder(arguments.encoder), arguments.batch_size, arguments.dtype)
    shape = "x".join(map(str, graph.node_features.shape))
    return f"node features {shape} {arguments.dtype} by {graph.text_encoder} in {graph.path}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 2 and one sentence on stderr when the input is to blame."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    start = time.perf_counter()
    arguments = parse(argv)
    try:
        print(arguments.run(arguments))
    except (ValueError, FileNotFoundError) as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 2
    print(f"{time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
