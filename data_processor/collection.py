"""A collection on disk: facts.jsonl, qa/, conversations.json and the manifest, whole or absent, always the same."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from data_processor import extract
from data_processor.collect import TOKENS_A_FACT, Inquiry, Pair, Settings, facts_of, inquiries
from data_processor.corpus import Corpus
from data_processor.files import MANIFEST, checksum, write_manifest
from data_processor.known_facts import Encoder, KnownFacts
from data_processor.schema import Fact, QAPair, atomic_write, from_json, read_jsonl, to_json, write_jsonl
from data_processor.stages import Stages
from data_processor.text_generator import TextGenerator
from data_processor.wording import Wording

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
RECALL = "recall"  # standard questions of the facts trained on: in these words they are never trained on
# of each split the questions, and the same as conversations: those trained on under the name that --data_path takes
CONVERSATIONS = {"train": "conversations.json"}
CONVERSATIONS |= {split: f"conversations_{split}.json" for split in (*SPLITS[1:], RECALL)}
FILES = ("facts.jsonl", *CONVERSATIONS.values(), *(f"qa/{split}.jsonl" for split in (*SPLITS, RECALL)))
GRAPH_FILES = (extract.FILE, *(f"gfm_rag/{split}.json" for split in SPLITS))  # graph/ has its own manifest


class Estimate(NamedTuple):
    """What a collection will cost: calls and tokens, at about a fact in every TOKENS_A_FACT tokens."""

    documents: int
    chunks: int
    calls: int
    tokens_read: int
    tokens_written: int

    def __str__(self) -> str:
        size = f"{self.documents} documents, {self.chunks} chunks"
        tokens = f"{self.tokens_read:,} tokens read and {self.tokens_written:,} written"
        return f"{size}: about {self.calls:,} calls, {tokens}, less what calls.jsonl holds already"


def estimate(corpus: Corpus, settings: Settings, with_graph: bool) -> Estimate:
    """What the collection of a surveyed corpus will cost."""
    facts, chunks, roles = corpus.tokens // TOKENS_A_FACT, corpus.chunks, settings.role_amount_per_fact
    chunk_calls, fact_calls = (4 if with_graph else 2) * chunks, facts * (1 + roles) + min(facts, chunks) * bool(roles)
    read = (4 if with_graph else 2) * (corpus.tokens + 120 * chunks) + fact_calls * (150 + TOKENS_A_FACT)
    written = corpus.tokens * (2 if with_graph else 1) + facts * 40 * (1 + settings.qa_amount_per_fact * bool(roles))
    return Estimate(corpus.documents, chunks, chunk_calls + fact_calls, read, written)


def collect(corpus: Corpus, generator: TextGenerator, wording: Wording, settings: Settings, encoder: Encoder,
            stages: Stages, output: Path, with_graph: bool = False) -> dict[str, Any]:
    """Writes facts.jsonl, qa/ and conversations.json, perhaps graph/ and gfm_rag/; returns what is said of them.

    Args:
        corpus: surveyed.
        generator, wording: who is asked, and how.
        settings: the numbers.
        encoder: tells facts apart that are worded differently.
        stages: counts rows.
        output: the dataset folder.
        with_graph: also extract triples, and link the questions to their graph.
    """
    old = clear(output, (*FILES, *GRAPH_FILES))
    known = KnownFacts(encoder, settings.similarity)
    write_jsonl(output / "facts.jsonl", map(to_json, facts_of(corpus, generator, wording, known, stages)))
    kept, roles = stages.counts["facts"]["kept"], settings.role_amount_per_fact
    generator.expect(generator.asked + generator.found + kept * (1 + roles + bool(roles)))  # now known, not estimated
    links = None
    if with_graph:
        extract.write_triples(corpus, generator, wording, stages, output)
        links = extract.QuestionLinks(graph_of(output, old))
    facts = (from_json(Fact, row) for _, row in read_jsonl(output / "facts.jsonl"))
    with writers(output, with_graph) as files:
        report = write_pairs(inquiries(facts, generator, wording, settings, stages), settings, files, links)
    logger.info("%s", ", ".join(f"{count} {split}" for split, count in report["questions"].items()))
    return report


def graph_of(output: Path, old: dict[str, str]) -> extract.GraphIndex:
    """The graph of triples.jsonl, written anew (its embeddings are lost) only when the triples have changed."""
    same = old.get(extract.FILE) == checksum(output / extract.FILE) and (output / "graph" / MANIFEST).is_file()
    return extract.open_graph(output) if same else extract.build_graph(output)


def clear(output: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Deletes the manifest (until the new one stands the folder is not whole) and what killed processes left.

    Returns:
        The checksums that the manifest held.
    """
    path = output / MANIFEST
    old = json.loads(path.read_text(encoding="utf-8"))["checksums"] if path.is_file() else {}
    path.unlink(missing_ok=True)
    for path in map(output.joinpath, (MANIFEST, "rejected.jsonl", *names)):
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            if f".{os.getpid()}." not in left.name:
                left.unlink()
    return old


@contextlib.contextmanager
def writers(output: Path, with_graph: bool) -> Iterator[dict[str, TextIO]]:
    """Yields an open file for every split and for the conversations; all take their names together, or none does."""
    with contextlib.ExitStack() as stack:
        paths = {split: output / "qa" / f"{split}.jsonl" for split in (*SPLITS, RECALL)}
        paths |= {f"conversations_{split}": output / name for split, name in CONVERSATIONS.items()}
        if with_graph:
            paths |= {f"gfm_{split}": output / "gfm_rag" / f"{split}.json" for split in SPLITS}
        temporary = {name: stack.enter_context(atomic_write(path)) for name, path in paths.items()}
        with contextlib.ExitStack() as files:
            yield {name: files.enter_context(open(path, "w", encoding="utf-8")) for name, path in temporary.items()}


def write_pairs(
    found: Iterable[Inquiry], settings: Settings, files: dict[str, TextIO], links: extract.QuestionLinks | None
) -> dict[str, Any]:
    """Writes the pairs of every fact into its split; returns the counts of questions, and of facts by their pairs."""
    questions, coverage = Counter(dict.fromkeys((*SPLITS, RECALL), 0)), Counter()
    lists = {name: ListFile(file) for name, file in files.items() if name not in questions}
    for one in found:
        split = split_of(one.fact, settings)
        pairs = one.pairs if settings.role_amount_per_fact else [one.standard] if one.standard else []
        coverage[len(pairs)] += 1
        for number, pair in enumerate(pairs):
            name = f"{one.fact.id}-q{number}"
            write_question(files[split], name, pair, one.fact, links)
            lists[f"conversations_{split}"].add(conversation(name, pair, one.fact))
            if links is not None:
                lists[f"gfm_{split}"].add(links.gfm_row(name, pair.question, pair.answer, passage_of(one.fact)))
            questions[split] += 1
        if split == "train" and one.pairs and one.standard:
            write_question(files[RECALL], f"{one.fact.id}-q", one.standard, one.fact, links)
            lists[f"conversations_{RECALL}"].add(conversation(f"{one.fact.id}-q", one.standard, one.fact))
            questions[RECALL] += 1
    for file in lists.values():
        file.end()
    return {"questions": dict(questions), "facts_by_pairs": {str(n): coverage[n] for n in sorted(coverage)}}


class ListFile:
    """One JSON list, an item a line, written as it comes."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._mark = file, "[\n"

    def add(self, item: dict[str, Any]) -> None:
        """Writes one item."""
        self._file.write(self._mark + json.dumps(item, ensure_ascii=False))
        self._mark = ",\n"

    def end(self) -> None:
        """Writes the end of the list."""
        self._file.write("[]\n" if self._mark == "[\n" else "\n]\n")


def write_question(file: TextIO, name: str, pair: Pair, fact: Fact, links: extract.QuestionLinks | None) -> None:
    """Writes one line of a qa file."""
    seeds, answers = links.nodes(pair.question, pair.answer) if links is not None else ((), ())
    row = to_json(QAPair(name, pair.question, (pair.answer,), answers, seeds, (passage_of(fact),)))
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def passage_of(fact: Fact) -> str:
    """The id of the chunk that a fact was read from."""
    return f"{fact.document}#{fact.chunk}"


def conversation(name: str, pair: Pair, fact: Fact) -> dict[str, Any]:
    """One row of conversations.json."""
    turns = [{"from": "user", "value": pair.question}, {"from": "assistant", "value": pair.answer}]
    row = {"id": name, "conversations": turns, "fact": fact.text, "file_name": fact.document}
    return row if pair.role is None else {**row, "role": pair.role}


def split_of(fact: Fact, settings: Settings) -> str:
    """The split of a fact: follows from its words (or its document's name) alone and stays as texts are added."""
    owner = fact.document if settings.split_by == "document" else fact.text
    place = int.from_bytes(hashlib.blake2b(owner.encode(), digest_size=8).digest(), "big") / 2**64
    if place < settings.test_share:
        return "test"
    return "validation" if place < settings.test_share + settings.validation_share else "train"


def finish(output: Path, stages: Stages, settings: Settings, wording: Wording, model: str, report: dict[str, Any],
           files: tuple[str, ...]) -> None:
    """Writes the manifest, last: counts of every stage, the numbers, the model, and a checksum of every file."""
    prompts = json.dumps(wording.prompts.texts(), sort_keys=True, ensure_ascii=False).encode()
    about = {
        "stages": stages.counts,
        "settings": dataclasses.asdict(settings),
        "model": model,
        "prompts": hashlib.blake2b(prompts, digest_size=16).hexdigest(),
        **report,
    }
    write_manifest(output, about, files)
