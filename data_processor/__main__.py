"""The offline steps from raw data to training examples: `python -m data_processor <command> --help`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_processor.collect_command import add_collect, add_extract
from data_processor.edge_sentences import EDGE_TEXTS
from data_processor.gfm_dataset import masked
from data_processor.graph_store import KnowledgeGraph, embed_graph
from data_processor.importers import IMPORTERS
from data_processor.inspection import inspect_question
from data_processor.link_questions import add_ask_links
from data_processor.node_vectors import embed_with
from data_processor.produce_command import add_describe, add_export, add_produce
from data_processor.retrieval import METHODS
from data_processor.retrieval.folder import link_folder, node_index, retrieve_folder
from data_processor.retrieval.gfm import hides_seeds, reads_tokens
from data_processor.retrieval.split import SEED_SOURCES, words_and_marks
from data_processor.synonyms import add_synonyms, recovered
from data_processor.text_encoder import TextEncoder, load_encoder
from data_processor.vector_index import KINDS

NEEDS_EMBEDDING = {"similarity", "pcst", "gfm"}  # methods that look at the question's embedding or search by it

IMPORT_FLAGS = {"hops": "metaqa", "user": "neo4j", "database": "neo4j", "node_query": "neo4j",
                "relationship_query": "neo4j"}  # fmt: skip
PARAMETERS = {
    "max_nodes": int, "steps": int, "restart": float, "tolerance": float, "max_steps": int, "max_edges": int,
    "top_k_nodes": int, "top_k_edges": int, "edge_cost": float, "max_prize": float, "append": int, "clusters": int,
    "whole_edges": int, "ball_nodes": int, "ball_steps": int, "edge_prizes": str,
    "model": str, "candidates": int, "top": int, "least_similarity": float,
}  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace whose `run` does the work."""
    parser = argparse.ArgumentParser(prog="python -m data_processor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_graph_commands(commands)
    add_question_commands(commands)
    add_ask_links(commands)
    add_collect(commands)
    add_extract(commands)
    add_produce(commands)
    add_describe(commands)
    add_export(commands)
    return parser.parse_args(argv)


def add_graph_commands(commands: argparse._SubParsersAction) -> None:
    """import and embed: what makes a graph."""
    command = commands.add_parser(
        "import", help="a foreign format -> graph/, qa/ and subgraphs/", epilog=formats(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("format", choices=sorted(IMPORTERS))
    command.add_argument("--input", required=True, help="file or folder of that format; webqsp: also a name on "
                         "the Hub; neo4j: bolt://HOST:PORT, the password in NEO4J_PASSWORD")  # fmt: skip
    command.add_argument("--output", type=Path, required=True, help="dataset folder to write; graph folder for "
                         "triples of one file, graphml, neo4j and pyg")  # fmt: skip
    command.add_argument("--hops", type=int, nargs="+", choices=(1, 2, 3), help="metaqa only: which question sets")
    command.add_argument("--user", help="neo4j only (default: neo4j)")
    command.add_argument("--database", help="neo4j only (default: the server's)")
    command.add_argument("--node_query", help="neo4j only: Cypher that returns id, name?, type?, text?, properties?")
    command.add_argument("--relationship_query", help="neo4j only: Cypher that returns source, relation, target")
    command.set_defaults(run=run_import)

    command = commands.add_parser("embed", help="node and relation texts -> vectors in graph/")
    command.add_argument("--graph", type=Path, required=True, help="graph folder")
    command.add_argument("--encoder", default="hashing", help="hashing[:WIDTH], openai:MODEL@BASE_URL, or a "
                         "sentence-transformers name or folder (default: %(default)s)")  # fmt: skip
    command.add_argument("--vectors", type=Path, help="instead of embedding: the nodes' vectors from .npy, .pt or "
                         ".safetensors, one row a node, such as node_states.npy of --stage graph")  # fmt: skip
    command.add_argument("--batch_size", type=int, default=256)
    command.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    command.add_argument("--edge_text", choices=EDGE_TEXTS, help="also a sentence an edge, by the names or the types "
                         "of its ends: for --edge_prizes sentences")  # fmt: skip
    command.set_defaults(run=run_embed)

    command = commands.add_parser("synonyms", help="an edge between entities whose embeddings are near -> graph/")
    command.add_argument("--graph", type=Path, required=True, help="embedded graph folder")
    command.add_argument("--threshold", type=float, default=0.8, help="least cosine (default: %(default)s)")
    command.add_argument("--max_neighbours", type=int, default=100, help="of a node (default: %(default)s)")
    command.set_defaults(run=run_synonyms)


def add_question_commands(commands: argparse._SubParsersAction) -> None:
    """link, retrieve and inspect: what is done for questions."""
    command = commands.add_parser("link", help="names in questions -> seed nodes in qa/")
    command.add_argument("--data", type=Path, required=True, help="dataset folder")
    command.add_argument("--overwrite", action="store_true", help="also link questions that have seed nodes")
    command.add_argument("--answers", action="store_true", help="also nodes named like an answer -> answer nodes, for "
                         "questions without any: retrieval can then say how many answers it finds")  # fmt: skip
    command.add_argument("--similar", type=int, default=0, help="nearest nodes for a question that names none")
    command.set_defaults(run=run_link)

    command = commands.add_parser("retrieve", help="a subgraph for every question -> subgraphs/")
    command.add_argument("--data", type=Path, required=True, help="dataset folder")
    command.add_argument("--method", choices=sorted(METHODS), required=True)
    command.add_argument("--splits", nargs="+", help="names of files in DATA/qa (default: all there are)")
    command.add_argument("--within_given", action="store_true", help="search only the subgraph that came with the "
                         "question (webqsp, expla_graphs, stark's subgraphs)")  # fmt: skip
    command.add_argument("--seeds", choices=SEED_SOURCES, help="linked, similar or both (default: by method)")
    command.add_argument("--top_k", type=int, default=10, help="similar nodes a question (default: %(default)s)")
    command.add_argument("--index", choices=KINDS, default="exact", help="search for similar nodes")
    for name, kind in PARAMETERS.items():
        command.add_argument(f"--{name}", type=kind, help="a parameter of the method")
    command.set_defaults(run=run_retrieve)

    command = commands.add_parser("inspect", help="one question: its subgraph as text and picture, what was lost")
    command.add_argument("--data", type=Path, required=True, help="dataset folder after retrieve")
    command.add_argument("--id", required=True, help="the question's id")
    command.add_argument("--picture", type=Path, help="SVG file (default: DATA/inspect.svg)")
    command.add_argument("--max_tokens", type=int, help="of the subgraph's text (default: all of it)")
    command.add_argument("--tokenizer", help="a Hugging Face tokenizer to count with (default: words and marks)")
    command.set_defaults(run=run_inspect)


def formats() -> str:
    """A line a format: its name and the sentence of its importer."""
    sentences = {name: str(sys.modules[one.__module__].__doc__).splitlines()[0] for name, one in IMPORTERS.items()}
    return "formats:\n" + "\n".join(f"  {name:15} {sentence}" for name, sentence in sorted(sentences.items()))


def run_import(arguments: argparse.Namespace) -> str:
    """Imports one foreign format; returns what was done."""
    options = {name: vars(arguments)[name] for name in IMPORT_FLAGS if vars(arguments)[name] is not None}
    for name in options:
        if IMPORT_FLAGS[name] != arguments.format:
            owner = f"--{name} belongs to the format {IMPORT_FLAGS[name]}"
            raise ValueError(f"{owner}, not to {arguments.format}; leave it out")
    source = arguments.input if arguments.format == "neo4j" else Path(arguments.input)
    report = IMPORTERS[arguments.format](source, arguments.output, **options)
    assert report.rows == report.kept + report.rejected, report
    counts = f"{report.rows} rows read, {report.kept} kept, {report.rejected} rejected"
    where = f" (see {arguments.output / 'rejected.jsonl'})" if report.rejected else ""
    return f"{report.summary}\n{counts}{where}"


def run_embed(arguments: argparse.Namespace) -> str:
    """Embeds a graph's texts; returns what was done."""
    KnowledgeGraph.open(arguments.graph)  # a missing graph is said before a model is loaded
    if arguments.vectors is not None:
        graph = embed_with(arguments.graph, arguments.vectors, arguments.dtype)
        return f"node features {'x'.join(map(str, graph.node_features.shape))} of {arguments.vectors} in {graph.path}"
    encoder = load_encoder(arguments.encoder)
    graph = embed_graph(arguments.graph, encoder, arguments.batch_size, arguments.dtype, arguments.edge_text)
    shape = "x".join(map(str, graph.node_features.shape))
    edges = "" if graph.edge_features is None else f", {len(graph.edge_features)} sentences of edges"
    return f"node features {shape} {arguments.dtype}{edges} by {graph.text_encoder} in {graph.path}"


def run_synonyms(arguments: argparse.Namespace) -> str:
    """Adds synonym edges to a graph; returns how many."""
    encoder = load_encoder(encoder_name(KnowledgeGraph.open(recovered(arguments.graph))))
    graph = add_synonyms(arguments.graph, encoder, arguments.threshold, arguments.max_neighbours)
    return f"{graph.manifest['synonyms']['edges']} edges of synonyms, {graph.num_edges} edges in all, in {graph.path}"


def run_link(arguments: argparse.Namespace) -> str:
    """Links the questions of a dataset folder; returns the counts."""
    encoder = graph_encoder(arguments.data) if arguments.similar else None
    counts = link_folder(arguments.data, arguments.overwrite, encoder, arguments.similar, arguments.answers)
    return "\n".join(
        f"{split}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
        for split, found in counts.items()
    )


def run_retrieve(arguments: argparse.Namespace) -> str:
    """Retrieves the subgraphs of a dataset folder; returns its reports."""
    seeds = arguments.seeds or ("similar" if arguments.method in NEEDS_EMBEDDING - {"gfm"} else "linked")
    options: dict = {"seed_source": seeds, "top_k": arguments.top_k}
    if seeds != "linked" or arguments.method in NEEDS_EMBEDDING:
        options["encoder"] = graph_encoder(arguments.data)
        if not arguments.within_given:
            options["index"] = node_index(KnowledgeGraph.open(arguments.data / "graph"), arguments.index)
    parameters = {name: vars(arguments)[name] for name in PARAMETERS if vars(arguments)[name] is not None}
    if arguments.method == "gfm" and arguments.model is not None:
        names = KnowledgeGraph.open(arguments.data / "graph").node_name
        if hides_seeds(arguments.model):
            options["worded"] = lambda question, seeds: masked(question, names(list(seeds)))
        options["tokens"] = reads_tokens(arguments.model)
    where = (arguments.splits, arguments.within_given)
    reports = retrieve_folder(arguments.data, arguments.method, parameters, options, *where)
    return "\n".join(f"{split}: {json.dumps(rounded(report))}" for split, report in reports.items())


def run_inspect(arguments: argparse.Namespace) -> str:
    """Lays one question open; returns the report."""
    tokenizer = words_and_marks
    if arguments.tokenizer is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    picture = arguments.picture or arguments.data / "inspect.svg"
    return inspect_question(arguments.data, arguments.id, picture, arguments.max_tokens, tokenizer)


def graph_encoder(data: Path) -> TextEncoder:
    """The encoder by which a dataset folder's graph was embedded."""
    return load_encoder(encoder_name(KnowledgeGraph.open(data / "graph")))


def encoder_name(graph: KnowledgeGraph) -> str:
    """The name of a graph's encoder; ValueError when it is not embedded."""
    if graph.text_encoder is None:
        raise ValueError(f"{graph.path} is not embedded; run: python -m data_processor embed --graph {graph.path}")
    return graph.text_encoder


def rounded(report: dict) -> dict:
    """The report with four decimals."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in report.items()}


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
