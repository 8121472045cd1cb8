"""Nodes to words: what a node is, what its neighbours are, what they have in common: the Translator's training pairs.

    python -m data_processor produce --data DATA --backend api --base_url URL --model NAME --domain papers

Source of the three texts: GraphTranslator (Zhang et al. 2024, arXiv 2402.07197, section 4.2), its Producer.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_processor.chunking import Count
from data_processor.graph_store import KnowledgeGraph
from data_processor.prompts import DOMAINS
from data_processor.replies import Schema, Unusable, list_of, record, text
from data_processor.schema import NodeSummary, read_qa
from data_processor.stages import Stages
from data_processor.text_generator import Task, TextGenerator
from data_processor.wording import Wording, a_name

STAGES = ("nodes", "summaries", "neighbours", "common")
KEY_WORDS = 5
LONGEST = 4000  # characters of a reply's field: more is no summary
LIMITS = {"node": 512, "neighbours": 512, "common": 256}  # new tokens of a reply
SCHEMAS: dict[str, Schema] = {
    "node": record(summary=text(), key_words=list_of(text())),
    "neighbours": record(summary=text()),
    "common": record(common=text()),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers of a production; the flags of the command bear the same names.

    Five neighbours, as GraphTranslator samples; all their texts together have as many tokens as the node's own.
    """

    domain: str = "general"
    max_neighbours: int = 5
    max_text_tokens: int = 2048
    types: tuple[str, ...] = ()
    limit: int | None = None
    validation_share: float = 0.05
    test_share: float = 0.1
    language: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ValueError(f"--domain {self.domain!r} is not known; choose one of {', '.join(DOMAINS)}")
        if self.max_neighbours < 0 or self.max_text_tokens < 16:
            numbers = f"--max_neighbours {self.max_neighbours} and --max_text_tokens {self.max_text_tokens}"
            raise ValueError(f"{numbers}: the first must be 0 or more, the second at least 16")
        if min(self.validation_share, self.test_share) < 0 or self.validation_share + self.test_share >= 1:
            raise ValueError("--validation_share and --test_share must be positive and leave something to train on")


class Shown(NamedTuple):
    """What is shown of a node: its text, and the neighbours that were drawn with a line each."""

    node: int
    text: str
    neighbours: tuple[int, ...]
    lines: str


class Produced(NamedTuple):
    """What came of a node: its summary, or none, and (stage, reason or None) of every step."""

    shown: Shown
    summary: NodeSummary | None
    steps: list[tuple[str, str | None]]


# ---------------------------------------------------------------------------------------------------- what is shown


def sample_neighbours(graph: KnowledgeGraph, node: int, most: int, seed: int) -> tuple[int, ...]:
    """Up to `most` different neighbours of a node, itself left out; always the same ones for one seed.

    Of more, those with many edges are drawn sooner: in proportion to degree, without replacement, by the first of
    exponential clocks (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir").
    """
    ends = np.unique(graph.neighbours(node)[1])
    ends = ends[ends != node]
    if len(ends) > most:
        degrees = sum(offsets[ends + 1] - offsets[ends] for offsets in (graph.out_offsets, graph.in_offsets))
        clocks = np.random.default_rng((seed, node)).exponential(size=len(ends)) / degrees
        ends = ends[np.argsort(clocks)[:most]]
    return tuple(ends.tolist())


def asked_nodes(graph: KnowledgeGraph, settings: Settings) -> list[int]:
    """The nodes that are asked about; ValueError when there are none."""
    asked = np.arange(graph.num_nodes)
    if settings.types:
        asked = np.flatnonzero([kind in settings.types for kind in graph.iter_types()])
    if not len(asked):
        raise ValueError(f"no node has a type of --types {' '.join(settings.types)}; leave it out for all nodes")
    return asked[: settings.limit].tolist()


def shown_nodes(graph: KnowledgeGraph, settings: Settings, count: Count) -> Iterator[Shown]:
    """Yields what is shown of each node that is asked about, in order of their ids."""
    for node in asked_nodes(graph, settings):
        neighbours = sample_neighbours(graph, node, settings.max_neighbours, settings.seed)
        share = settings.max_text_tokens // max(1, len(neighbours))
        lines = [first_tokens(line, share, count) for line in neighbour_lines(graph, node, neighbours)]
        (own,) = graph.node_text([node])
        yield Shown(node, first_tokens(own.strip(), settings.max_text_tokens, count), neighbours, "\n".join(lines))


def neighbour_lines(graph: KnowledgeGraph, node: int, neighbours: tuple[int, ...]) -> list[str]:
    """A line for each neighbour: how it is joined to the node, and its text."""
    rows, ends = graph.neighbours(node)
    kept = np.isin(ends, neighbours)
    rows, ends = rows[kept], ends[kept]
    edges = np.asarray(graph.edges[rows]).reshape(-1, 3)
    names = graph.relation_name(edges[:, 1])
    ties: dict[int, list[str]] = {end: [] for end in neighbours}
    for end, name, source in zip(ends.tolist(), names, edges[:, 0].tolist(), strict=True):
        ties[end].append(f"{name} →" if source == node else f"← {name}")
    texts = graph.node_text(list(neighbours))
    return [f"- {', '.join(dict.fromkeys(ties[end]))} {text}" for end, text in zip(neighbours, texts, strict=True)]


def first_tokens(text: str, most: int, count: Count) -> str:
    """The text, or as many of its first words as have at most `most` tokens."""
    if count(text) <= most:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= most else (low, middle - 1)
    return text[:low].rsplit(" ", 1)[0] if " " in text[:low] else text[:low]


# ------------------------------------------------------------------------------------------------------ what is asked


def produce(shown: Shown, wording: Wording, domain: str, split: str) -> Task[Produced]:
    """Task: the summary of a node, of its neighbours, and what they have in common.

    A node without text or summary ends here; without neighbours, or a reply about them, its summary stands alone.
    """
    found = Produced(shown, None, [])
    if not shown.text:
        found.steps.append(("nodes", "the node has no text: neither a name nor a text"))
        return found
    found.steps.append(("nodes", None))
    thing, ties = DOMAINS[domain][wording.language(shown.text)]
    words = {"thing": thing, "ties": ties}
    try:
        summary, key_words = yield from asked(wording, "node", shown.text, KeyWords(), text=shown.text, **words)
    except Unusable as error:
        found.steps.append(("summaries", str(error)))
        return found
    found.steps.append(("summaries", None))
    neighbours = common = None
    if shown.neighbours:
        neighbours = yield from part(found, wording, "neighbours", "summary", {"text": shown.lines, **words})
    if neighbours is not None:
        values = {"summary": summary, "neighbours": neighbours, **words}
        common = yield from part(found, wording, "common", "common", values)
    whole = NodeSummary(shown.node, summary, neighbours, common, key_words, shown.neighbours, split)
    return found._replace(summary=whole)


def part(found: Produced, wording: Wording, name: str, field: str, values: dict[str, str]) -> Task[str | None]:
    """Task: one of the texts that may be missing; notes why."""
    try:
        words = yield from asked(wording, name, found.shown.text, a_name(field, LONGEST), **values)
    except Unusable as error:
        found.steps.append((name, str(error)))
        return None
    found.steps.append((name, None))
    return words


def asked(wording: Wording, name: str, about: str, check: Any, **values: str) -> Task[Any]:
    """Task: the checked reply to one of the calls of SCHEMAS."""
    return wording.ask(wording.request(name, about, SCHEMAS[name], LIMITS[name], **values), about, check)


class KeyWords:
    """Checks that there are a summary and five key words; of a repaired reply also fewer are taken, but not none."""

    def __init__(self) -> None:
        self._least = KEY_WORDS

    def __call__(self, value: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        least, self._least = self._least, 1
        words = tuple(dict.fromkeys(word.strip() for word in value["key_words"] if word.strip()))
        if len(words) < least:
            raise Unusable(f"{least} different key words are needed, there are {len(words)}")
        return a_name("summary", LONGEST)(value), words[:KEY_WORDS]


def summaries(nodes: Iterable[Shown], generator: TextGenerator, wording: Wording, settings: Settings, splits: Splits,
              stages: Stages) -> Iterator[NodeSummary]:
    """Yields the summaries of all nodes that got one, in order; counts every step."""
    tasks = (produce(shown, wording, settings.domain, splits.of(shown.node)) for shown in nodes)
    for found in generator.run(tasks):
        for stage, reason in found.steps:
            if reason is None:
                stages.keep(stage)
            else:
                stages.reject(stage, "graph", found.shown.node, reason, found.shown.text)
        generator.rejected = stages.rejected.count
        if found.summary is not None:
            yield found.summary


# ------------------------------------------------------------------------------------------------------------- splits


class Splits:
    """Which split a node belongs to.

    A node that a question of qa/test.jsonl or qa/validation.jsonl is about (its first seed) belongs to that split, so
    that stage 1 never reads what stage 2 is tested on; a node that training asks about to train; others by a hash of
    their id.
    """

    def __init__(self, data: Path, settings: Settings) -> None:
        self._settings, self._known = settings, dict[int, str]()
        for split in ("train", "validation", "test"):
            path = data / "qa" / f"{split}.jsonl"
            for pair in read_qa(path) if path.is_file() else ():
                self._known |= {node: split for node in pair.seed_nodes[:1]}

    def of(self, node: int) -> str:
        """The split of a node."""
        if node in self._known:
            return self._known[node]
        place = int.from_bytes(hashlib.blake2b(str(node).encode(), digest_size=8).digest(), "big") / 2**64
        if place < self._settings.test_share:
            return "test"
        return "validation" if place < self._settings.test_share + self._settings.validation_share else "train"
