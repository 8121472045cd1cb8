"""Documents to a knowledge graph: named things and triples of every chunk, spellings resolved, chunks as documents.

    python -m data_processor extract --input my_texts/ --output DATA --backend api --base_url URL --model NAME
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_processor.chunking import Chunk
from data_processor.graph_store import KnowledgeGraph, write_graph
from data_processor.linking import Linker, words
from data_processor.replies import Unusable, list_of, record, text
from data_processor.schema import Document, read_jsonl, write_jsonl
from data_processor.stages import Stages
from data_processor.text_generator import Task, TextGenerator
from data_processor.wording import Wording, some_of

STAGES = ("entities", "triple_lists", "triples")
FILE = "triples.jsonl"
LONGEST_NAME = 200  # characters: what is longer is a sentence, no name
ARTICLES = {"a", "an", "the"}
SHORT_FORM = re.compile(r"^(?P<name>.{3,}?)\s*[(（](?P<short>[^()（）]{1,20})[)）]$")
ENTITIES = record(entities=list_of(text()))
TRIPLES = record(triples=list_of(record(head=text(), relation=text(), tail=text())))

Triple = tuple[str, str, str]


class Extracted(NamedTuple):
    """What came of a chunk: named things and triples, or the stage at which it ended and why."""

    chunk: Chunk
    entities: tuple[str, ...] = ()
    triples: tuple[Triple, ...] = ()
    ended: tuple[str, str] | None = None


def extract(chunk: Chunk, wording: Wording) -> Task[Extracted]:
    """Task: the named things of a chunk, then the triples between them."""
    values = {"text": chunk.text}
    try:
        request = wording.request("entities", chunk.text, ENTITIES, 1024, **values)
        entities = yield from wording.ask(request, chunk.text, some_of("entities", 0))
    except Unusable as error:
        return Extracted(chunk, ended=("entities", str(error)))
    try:
        request = wording.request("triples", chunk.text, TRIPLES, 4096, entities="; ".join(entities), **values)
        triples = yield from wording.ask(request, chunk.text, all_triples)
    except Unusable as error:
        return Extracted(chunk, entities, ended=("triple_lists", str(error)))
    return Extracted(chunk, entities, triples)


def all_triples(value: dict[str, list[dict[str, str]]]) -> tuple[Triple, ...]:
    """The triples of a reply, spaces made single; fields may be empty here."""
    rows = ([" ".join(row[name].split()) for name in ("head", "relation", "tail")] for row in value["triples"])
    return tuple((head, relation, tail) for head, relation, tail in rows)


def write_triples(
    corpus: Iterable[Chunk], generator: TextGenerator, wording: Wording, stages: Stages, output: Path
) -> None:
    """Writes triples.jsonl: {"id", "title", "text", "entities", "triples"} of every chunk, in order."""
    found = generator.run(extract(chunk, wording) for chunk in corpus)
    write_jsonl(output / FILE, (chunk_row(one, stages) for one in found))


def chunk_row(found: Extracted, stages: Stages) -> dict[str, Any]:
    """The line of one chunk, with the triples that are some; counts every step."""
    chunk, kept = found.chunk, []
    for stage in ("entities", "triple_lists"):
        if found.ended and found.ended[0] == stage:
            stages.reject(stage, chunk.document, chunk.number + 1, found.ended[1], chunk.text)
            break
        stages.keep(stage)
    for triple in found.triples:
        reason = why_not(triple, kept)
        if reason is None:
            kept.append(triple)
            stages.keep("triples")
        else:
            stages.reject("triples", chunk.document, chunk.number + 1, reason, list(triple))
    row = {"id": f"{chunk.document}#{chunk.number}", "title": chunk.title, "text": chunk.text}
    return {**row, "entities": list(found.entities), "triples": kept}


def why_not(triple: Triple, kept: list[Triple]) -> str | None:
    """Why a triple is none, or None."""
    head, relation, tail = triple
    if not key_of(head) or not key_of(tail) or not relation:
        return "head, relation or tail is empty"
    if max(len(head), len(relation), len(tail)) > LONGEST_NAME:
        return f"a head, relation or tail of more than {LONGEST_NAME} characters is no name"
    return "the same triple stands earlier in this chunk" if triple in kept else None


# -------------------------------------------------------------------------------------------- entity resolution


def key_of(name: str) -> str:
    """What two spellings of a thing share: the words without case, accents, marks and an article in front."""
    found = words(name)
    return " ".join(found[1:] if len(found) > 1 and found[0] in ARTICLES else found)


class Entities:
    """Names to nodes. `names` is the first spelling of each node, `aliases` every key that leads to one.

    "World Health Organization (WHO)" makes the short form lead to the long one when it is made of its initials.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.aliases: dict[str, int] = {}

    def learn(self, name: str) -> None:
        """Notes a short form, before any name is given a node."""
        match = SHORT_FORM.match(name)
        if match and is_short_form(match["short"], match["name"]):
            self.aliases[key_of(match["short"])] = self.aliases[key_of(name)] = self.node(match["name"])

    def node(self, name: str) -> int:
        """The node of a name; a new one for a new name."""
        key = key_of(name)
        if key not in self.aliases:
            self.aliases[key] = len(self.names)
            self.names.append(name)
        return self.aliases[key]


def is_short_form(short: str, name: str) -> bool:
    """Whether a short form is made of the initials of a name, small words left out or not."""
    letters = [word[0] for word in words(name)]
    capitals = [word[0].casefold() for word in name.split() if word[0].isupper()]
    return "".join(words(short)) in ("".join(letters), "".join(capitals))


class GraphIndex(NamedTuple):
    """The graph of the extracted triples, and the nodes of every chunk's triples and named things."""

    graph: KnowledgeGraph
    nodes_of: dict[str, np.ndarray]


def build_graph(output: Path) -> GraphIndex:
    """Writes graph/ from triples.jsonl: one node a thing, one relation a verb phrase, the chunks as its documents.

    Raises:
        ValueError: not one triple was extracted.
    """
    entities, relations = Entities(), {}
    for _, row in read_jsonl(output / FILE):
        for name in names_of(row):
            entities.learn(name)
    edges: dict[tuple[int, int, int], None] = {}
    nodes_of: dict[str, np.ndarray] = {}
    for _, row in read_jsonl(output / FILE):
        nodes_of[row["id"]] = np.array(sorted({entities.node(name) for name in names_of(row)}), dtype=np.int64)
        for head, relation, tail in row["triples"]:
            number = relations.setdefault(relation.casefold(), len(relations))
            edges[entities.node(head), number, entities.node(tail)] = None
    if not edges:
        none = f"no triple was extracted from {len(nodes_of)} chunks, see {output / 'rejected.jsonl'}"
        raise ValueError(f"{none}; ask another model, or collect without --extract")
    links = [np.stack([np.full(len(nodes), place), nodes], 1) for place, nodes in enumerate(nodes_of.values())]
    graph = write_graph(
        output / "graph",
        ({"name": name} for name in entities.names),
        ({"name": name} for name in relations),
        np.array(list(edges), dtype=np.int64).reshape(-1, 3),
        chunk_documents(output / FILE),
        np.concatenate([*links, np.zeros((0, 2), dtype=np.int64)]),
    )
    return GraphIndex(graph, nodes_of)


def open_graph(output: Path) -> GraphIndex:
    """The graph that `build_graph` wrote from the present triples.jsonl."""
    graph = KnowledgeGraph.open(output / "graph")
    names = [row["id"] for _, row in read_jsonl(output / FILE)]
    nodes_of: dict[str, list[int]] = {name: [] for name in names}
    for document, node in np.load(output / "graph" / "document_nodes.npy").tolist():
        nodes_of[names[document]].append(node)
    return GraphIndex(graph, {name: np.array(nodes, dtype=np.int64) for name, nodes in nodes_of.items()})


def names_of(row: dict[str, Any]) -> list[str]:
    """The names in a line of triples.jsonl, in order."""
    named = [name for name in row["entities"] if key_of(name) and len(name) <= LONGEST_NAME]
    return [*named, *(name for head, _, tail in row["triples"] for name in (head, tail))]


def chunk_documents(path: Path) -> Iterator[Document]:
    """The chunks as documents of the graph."""
    return (Document(row["id"], row["title"], row["text"]) for _, row in read_jsonl(path))


# ---------------------------------------------------------------------------------------------------- questions


class QuestionLinks:
    """Questions and answers to nodes by the names in them: exact where it can be, free, and the same every time."""

    def __init__(self, index: GraphIndex) -> None:
        self._index, self._names = index, list(index.graph.iter_names())
        self._linker = Linker(self._names)
        self._by_key: dict[str, list[int]] = {}
        for node, name in enumerate(self._names):
            self._by_key.setdefault(key_of(name), []).append(node)

    def nodes(self, question: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(seed nodes, answer nodes): what the question names, and what the answer is or names beside that."""
        seeds = self._linked(question)
        answers = self._by_key.get(key_of(answer)) or [node for node in self._linked(answer) if node not in seeds]
        return tuple(seeds), tuple(answers)

    def _linked(self, words: str) -> list[int]:
        return list(dict.fromkeys(node for link in self._linker.link(words) for node in link.nodes))

    def gfm_row(self, name: str, question: str, answer: str, passage: str) -> dict[str, Any]:
        """The question as GFM-RAG's train.json has it."""
        names, supporting = self._names, self._index.nodes_of.get(passage, np.zeros(0, dtype=np.int64))
        return {
            "id": name,
            "question": question,
            "answer": answer,
            "supporting_facts": [passage],
            "question_entities": [names[node] for node in self._linked(question)],
            "supporting_entities": [names[node] for node in supporting],
        }
