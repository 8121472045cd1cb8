"""`python -m data_processor produce` and `export`: their flags, what they print, and the order of their steps."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

from data_processor.collect_command import counter, read_prompts, table
from data_processor.describe import QUESTION, add_descriptions
from data_processor.files import checksum
from data_processor.graph_store import KnowledgeGraph
from data_processor.importers.graphtranslator import export_graphtranslator
from data_processor.node_stars import FILE
from data_processor.producer import STAGES, Settings, Splits, asked_nodes, shown_nodes, summaries
from data_processor.prompts import DOMAINS, Prompts
from data_processor.schema import Rejected, to_json, write_json, write_jsonl
from data_processor.stages import Stages
from data_processor.text_generator import add_flags, open_generator, source_from
from data_processor.wording import Wording

logger = logging.getLogger(__name__)

REPORT = "summaries_report.json"
CALLS = 3  # of a node with neighbours


def add_produce(commands: argparse._SubParsersAction) -> None:
    """The command `produce`."""
    command = commands.add_parser("produce", help="nodes -> summaries of them and their neighbours: summaries.jsonl")
    command.add_argument("--data", type=Path, required=True, help="dataset folder with graph/; a stopped run goes on")
    default = Settings()
    group = command.add_argument_group("what is produced")
    group.add_argument("--domain", choices=tuple(DOMAINS), default=default.domain,
                       help="what a node is called in the prompts (default: %(default)s)")  # fmt: skip
    group.add_argument("--max_neighbours", type=int, default=default.max_neighbours,
                       help="shown, drawn by degree where there are more (default: %(default)s)")  # fmt: skip
    group.add_argument("--max_text_tokens", type=int, default=default.max_text_tokens,
                       help="of a node's text, and of its neighbours' together (default: %(default)s)")  # fmt: skip
    group.add_argument("--types", nargs="+", default=(), help="only nodes of these types")
    group.add_argument("--limit", type=int, help="only the first so many nodes")
    group.add_argument("--validation_share", type=float, default=default.validation_share,
                       help="of the nodes that no question is about (default: %(default)s)")  # fmt: skip
    group.add_argument("--test_share", type=float, default=default.test_share)
    group.add_argument("--seed", type=int, default=default.seed, help="of the neighbours (default: %(default)s)")
    group.add_argument("--language", choices=("auto", "en", "zh"), default=default.language, help="of the prompts")
    group.add_argument("--prompts", type=Path, help="YAML or JSON {en: {NAME: text}} in place of some prompts")
    group.add_argument("--tokenizer", help="model whose tokens are counted (default: the local model's; else about)")
    add_flags(command)
    command.set_defaults(run=run_produce)


def add_describe(commands: argparse._SubParsersAction) -> None:
    """The command `describe`."""
    command = commands.add_parser("describe", help="summaries.jsonl -> questions about each node in qa/, subgraphs/")
    command.add_argument("--data", type=Path, required=True, help="dataset folder with graph/ and summaries.jsonl")
    command.add_argument("--question", default=QUESTION, help="what is asked (default: %(default)s)")
    command.set_defaults(run=run_describe)


def add_export(commands: argparse._SubParsersAction) -> None:
    """The command `export`."""
    command = commands.add_parser("export", help="summaries and node vectors -> GraphTranslator's CSV")
    command.add_argument("format", choices=("graphtranslator",))
    command.add_argument("--data", type=Path, required=True, help="dataset folder with graph/ and summaries.jsonl")
    command.add_argument("--output", type=Path, required=True, help="summary_embeddings.csv to write")
    command.set_defaults(run=lambda arguments: export_graphtranslator(arguments.data, arguments.output))


def run_describe(arguments: argparse.Namespace) -> str:
    """Adds a question for each summary; returns how many."""
    counts = add_descriptions(arguments.data, arguments.question)
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    return f"questions that ask for a description: {told}, in {arguments.data / 'qa'}"


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The numbers that the flags give."""
    values = {field.name: vars(arguments)[field.name] for field in dataclasses.fields(Settings)}
    return Settings(**{**values, "types": tuple(values["types"])})


def run_produce(arguments: argparse.Namespace) -> str:
    """Asks about every node; returns what was done."""
    settings, source, data = settings_from(arguments), source_from(arguments), arguments.data
    wording = Wording(Prompts(read_prompts(arguments.prompts)), settings.language)
    graph = KnowledgeGraph.open(data / "graph")
    nodes = shown_nodes(graph, settings, counter(arguments.tokenizer, source))
    try:
        with Rejected(data / "rejected_summaries.jsonl") as rejected:
            stages = Stages(rejected, STAGES)
            with open_generator(source, data / "calls.jsonl") as generator:
                generator.expect(CALLS * len(asked_nodes(graph, settings)))
                found = summaries(nodes, generator, wording, settings, Splits(data, settings), stages)
                kept = write_jsonl(data / FILE, map(to_json, found))
    except KeyboardInterrupt as stop:
        where = f"stopped; what was replied is kept in {data / 'calls.jsonl'}"
        raise ValueError(f"{where}, and the same command goes on from there") from stop
    report = {"stages": stages.counts, "settings": dataclasses.asdict(settings), "model": generator.backend.model}
    write_json(data / REPORT, {**report, "checksum": checksum(data / FILE)})
    made = f"{generator.asked} calls made ({generator.failed} without a reply), {generator.found} found in the log"
    return f"{table(stages)}\n{made}; {kept} summaries in {data / FILE}"
