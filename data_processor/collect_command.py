"""`python -m data_processor collect`: its flags, what it prints, and the order of its steps."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_processor import collection, extract
from data_processor.chunking import Count, load_counter, token_counter, words_and_marks
from data_processor.collect import STAGES, Settings
from data_processor.corpus import Corpus
from data_processor.documents import Documents
from data_processor.local_generator import load_tokenizer
from data_processor.prompts import Prompts
from data_processor.schema import Rejected
from data_processor.stages import Stages
from data_processor.text_encoder import load_encoder
from data_processor.text_generator import Source, add_flags, open_generator, source_from
from data_processor.wording import Wording

logger = logging.getLogger(__name__)

SHOWN_PROMPTS = 3  # of a dry run


def add_collect(commands: argparse._SubParsersAction) -> None:
    """The command `collect`."""
    command = commands.add_parser("collect", help="texts -> facts, questions and conversations; perhaps a graph")
    command.add_argument("--input", type=Path, required=True, help="folder of .txt, one .txt, or documents.jsonl")
    command.add_argument("--output", type=Path, required=True, help="dataset folder; a stopped run goes on from it")
    add_settings(command.add_argument_group("what is collected"))
    command.add_argument("--extract", action="store_true", help="also triples: graph/, linked questions, gfm_rag/")
    command.add_argument("--encoder", default="hashing:256", help="tells facts apart: hashing[:WIDTH], "
                         "openai:MODEL@URL or a sentence-transformers name (default: %(default)s)")  # fmt: skip
    add_reading(command.add_argument_group("what is read"))
    command.add_argument("--dry_run", action="store_true", help="say what it would cost, show prompts, and stop")
    add_flags(command)
    command.set_defaults(run=run_collect)


def add_extract(commands: argparse._SubParsersAction) -> None:
    """The command `extract`."""
    command = commands.add_parser("extract", help="texts -> named things and triples: graph/")
    command.add_argument("--input", type=Path, required=True, help="folder of .txt, one .txt, or documents.jsonl")
    command.add_argument("--output", type=Path, required=True, help="dataset folder; a stopped run goes on from it")
    add_reading(command.add_argument_group("what is read"))
    add_flags(command)
    command.set_defaults(run=run_extract)


def add_reading(group: argparse._ArgumentGroup) -> None:
    """The flags of how texts are read and asked about."""
    default = Settings()
    group.add_argument("--chunk_size_by_token", type=int, default=default.chunk_size_by_token)
    group.add_argument("--limit", type=int, help="only the first so many chunks")
    group.add_argument("--encoding", help="of text files that are not UTF-8, such as gb18030 (default: rejected)")
    group.add_argument("--tokenizer", help="model whose tokens are counted (default: the local model's; else about)")
    group.add_argument("--language", choices=("auto", "en", "zh"), default=default.language, help="of the prompts")
    group.add_argument("--prompts", type=Path, help="YAML or JSON {en: {NAME: text}} in place of some prompts")


def add_settings(group: argparse._ArgumentGroup) -> None:
    """The flags of `Settings` that are not about reading."""
    default = Settings()
    group.add_argument("--qa_amount_per_fact", type=int, default=default.qa_amount_per_fact)
    group.add_argument("--role_amount_per_fact", type=int, default=default.role_amount_per_fact,
                       help="roles that ask; 0: the standard question alone")
    group.add_argument("--similarity", type=float, default=default.similarity, help="cosine of equal facts")
    group.add_argument("--split_by", choices=("fact", "document"), default=default.split_by)
    group.add_argument("--validation_share", type=float, default=default.validation_share)
    group.add_argument("--test_share", type=float, default=default.test_share)


def run_collect(arguments: argparse.Namespace) -> str:
    """Collects from texts; returns what was done."""
    settings = Settings(**{field.name: vars(arguments)[field.name] for field in dataclasses.fields(Settings)})
    corpus, wording, source = reading(arguments, settings)
    if arguments.dry_run:
        return dry_run(corpus, settings, wording, arguments.extract)
    encoder = load_encoder(arguments.encoder)
    with rejecting(arguments.output) as rejected:
        stages = Stages(rejected, (*STAGES, *extract.STAGES) if arguments.extract else STAGES)
        survey(corpus, stages)
        expected = collection.estimate(corpus, settings, arguments.extract)
        logger.info("%s", expected)
        with open_generator(source, arguments.output / "calls.jsonl") as generator:
            generator.expect(expected.calls)
            whole = corpus, generator, wording, settings, encoder, stages, arguments.output, arguments.extract
            report = collection.collect(*whole)
    files = (*collection.FILES, *(collection.GRAPH_FILES if arguments.extract else ()))
    collection.finish(arguments.output, stages, settings, wording, generator.backend.model, report, files)
    made = f"{generator.asked} calls made ({generator.failed} without a reply)"
    return f"{table(stages)}\n{made}, {generator.found} found in the log; in {arguments.output}"


def run_extract(arguments: argparse.Namespace) -> str:
    """Extracts a graph from texts; returns what was done."""
    settings = Settings(arguments.chunk_size_by_token, language=arguments.language, limit=arguments.limit)
    corpus, wording, source = reading(arguments, settings)
    with rejecting(arguments.output) as rejected:
        stages = Stages(rejected, ("documents", "chunks", *extract.STAGES))
        survey(corpus, stages)
        logger.info("%d documents, %d chunks: about %d calls", corpus.documents, corpus.chunks, 2 * corpus.chunks)
        with open_generator(source, arguments.output / "calls.jsonl") as generator:
            generator.expect(2 * corpus.chunks)
            old = collection.clear(arguments.output, (extract.FILE,))
            extract.write_triples(corpus, generator, wording, stages, arguments.output)
        graph = collection.graph_of(arguments.output, old).graph
    collection.finish(arguments.output, stages, settings, wording, generator.backend.model, {}, (extract.FILE,))
    return f"{table(stages)}\n{graph.num_nodes} nodes, {graph.num_edges} edges in {graph.path}"


@contextlib.contextmanager
def rejecting(output: Path) -> Iterator[Rejected]:
    """Yields rejected.jsonl of the output folder; who stops the run by Ctrl-C is told how it goes on."""
    try:
        with Rejected(output / "rejected.jsonl") as rejected:
            yield rejected
    except KeyboardInterrupt as stop:
        kept = f"stopped; what was replied is kept in {output / 'calls.jsonl'}"
        raise ValueError(f"{kept}, and the same command goes on from there") from stop


def reading(arguments: argparse.Namespace, settings: Settings) -> tuple[Corpus, Wording, Source]:
    """What is read, how it is asked about, and who is asked."""
    wording = Wording(Prompts(read_prompts(arguments.prompts)), settings.language)
    source = source_from(arguments)
    documents = Documents(arguments.input, arguments.encoding)
    count = counter(arguments.tokenizer, source)
    return Corpus(documents, settings.chunk_size_by_token, count, settings.limit), wording, source


def survey(corpus: Corpus, stages: Stages) -> None:
    """Reads the corpus once; ValueError when there is nothing in it."""
    corpus.survey(stages)
    if not corpus.chunks:
        reasons = f"{stages.rejected.count} rejected, see {stages.rejected.path}"
        raise ValueError(f"there is no text to collect from ({reasons}); give --input a folder of .txt files")


def dry_run(corpus: Corpus, settings: Settings, wording: Wording, with_graph: bool) -> str:
    """What the run would cost, and its first prompts; nothing is written."""
    with tempfile.TemporaryDirectory() as folder, Rejected(Path(folder) / "rejected.jsonl") as rejected:
        survey(corpus, Stages(rejected, STAGES))
    texts = [chunk.text for chunk in islice(corpus, SHOWN_PROMPTS)]
    shown = [wording.prompts.fill("theme", wording.language(text), {"text": text}) for text in texts]
    bad = f"{rejected.count} documents or lines cannot be read\n" if rejected.count else ""
    return "\n\n".join([f"{collection.estimate(corpus, settings, with_graph)}\n{bad}", *shown])


def counter(tokenizer: str | None, source: Source) -> Count:
    """What counts tokens: the tokenizer that is asked for, a local model's own, or a rule that is near to both."""
    if tokenizer is not None:
        return load_counter(tokenizer)
    if source.backend in ("local", "vllm") and source.model:
        return token_counter(load_tokenizer(source.model))
    return words_and_marks


def read_prompts(path: Path | None) -> dict[str, Any] | None:
    """The prompts of a file; ValueError when it holds something else."""
    if path is None:
        return None
    import yaml

    try:
        changes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts {path} cannot be read ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(changes, dict):
        raise ValueError(f"--prompts {path} must hold {{en: {{NAME: text}}}}")
    return changes


def table(stages: Stages) -> str:
    """The counts of all stages, one a line."""
    counts = stages.counts.items()
    rows = [f"{name:12} {c['in']:8} in {c['kept']:8} kept {c['rejected']:8} rejected" for name, c in counts]
    return "\n".join(rows)
