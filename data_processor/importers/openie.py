"""OpenIE output in the form of HippoRAG: passages with their entities and triples, and questions about them.

    python -m data_processor import openie --input musique_openie/ --output DATA
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_processor.graph_store import write_graph
from data_processor.importers.conversations import unique_id
from data_processor.importers.questions import (
    answers_of,
    json_items,
    phrase,
    question_of,
    read_object,
    split_of,
    strings,
    write_questions,
)
from data_processor.importers.rows import ImportReport, require
from data_processor.importers.triple_table import TripleTable
from data_processor.schema import Document, QAPair, Rejected


class Passages:
    """Passages on their way to a graph: entities and triples by phrase, and which passage names which entity.

    Args:
        path: the OpenIE file, named with every rejected row; the "line" of a passage is its place from 1.
        rejected: takes the rows that cannot be used.
    """

    def __init__(self, path: Path, rejected: Rejected) -> None:
        self.count = self.kept = 0
        self.documents: list[Document] = []
        self.names: dict[str, str] = {}  # phrase -> the first way it was written
        self.triples: dict[tuple[str, str, str], int] = {}
        self.mentions: dict[tuple[int, str], None] = {}  # (document, phrase)
        self._path, self._rejected = path, rejected
        self._ids: set[str] = set()
        self._by_text: dict[tuple[str, str], str] = {}
        self._by_title: dict[str, list[str]] = {}

    def add(self, line: int, row: Any) -> None:
        """Takes one passage {"title", "text" or "passage", "extracted_entities", "extracted_triples"}."""
        self.count += 1
        try:
            title, text = title_and_text(row)
            entities = strings(row.get("extracted_entities"))
            triples = row.get("extracted_triples") or []
            if not isinstance(triples, list):
                raise ValueError(f"'extracted_triples' is no list but {type(triples).__name__}")
        except ValueError as error:
            self._rejected.add(self._path, line, str(error), row)
            return
        document = self.add_document(title, text)
        if document is None:
            self._rejected.add(self._path, line, "the same passage stands earlier in the file", row)
            return
        self.kept += 1
        for name in entities:
            self._mention(document, name)
        self._add_triples(document, line, triples)

    def _add_triples(self, document: int, line: int, triples: list[Any]) -> None:
        seen: set[tuple[str, str, str]] = set()
        for fields in triples:
            self.count += 1
            key = triple_of(fields)
            if isinstance(key, str) or key in seen:
                reason = key if isinstance(key, str) else "the same triple stands earlier in this passage"
                self._rejected.add(self._path, line, reason, fields)
                continue
            seen.add(key)
            self.kept += 1
            self._mention(document, fields[0])
            self._mention(document, fields[2])
            self.triples.setdefault(key, len(self.triples))

    def _mention(self, document: int, name: str) -> None:
        key = phrase(name)
        self.names.setdefault(key, " ".join(name.split()))
        self.mentions[document, key] = None

    def add_document(self, title: str, text: str) -> int | None:
        """Takes a text and returns its number; None when the same title and text is there already."""
        if (title, text) in self._by_text:
            return None
        name = unique_id(title or str(len(self.documents)), self._ids)
        self._by_text[title, text] = name
        self._by_title.setdefault(title, []).append(name)
        self.documents.append(Document(name, title or None, text))
        return len(self.documents) - 1

    def document_id(self, title: str, text: str | None) -> str:
        """The id of the document with this title and text; by title alone when only one document bears it."""
        if text is not None and (title, text) in self._by_text:
            return self._by_text[title, text]
        found = self._by_title.get(title, [])
        if len(found) != 1:
            raise ValueError(f"{len(found)} passages are called {title[:80]!r}, and none has the supporting text")
        return found[0]


def import_openie(source: Path, output: Path) -> ImportReport:
    """Writes a dataset folder: entities and triples with the passages that name them, and the questions.

    Entities that differ in case, accents and marks only are one node, named as it was first written. A passage is
    linked to every entity extracted from it. Documents of a corpus file that went through no extraction are kept too.

    Args:
        source: the OpenIE file {"docs": [...]}, or a folder with one file openie*.json, perhaps *corpus*.json, and
            questions in other .json files (MuSiQue, HotpotQA, 2WikiMultihopQA), whose names tell their split.
        output: the dataset folder: graph/, qa/ and rejected.jsonl.

    Raises:
        ValueError: no or several OpenIE files, or none of its triples can be used.
    """
    path = openie_file(require(source))
    docs = read_object(path).get("docs")
    if not isinstance(docs, list):
        raise ValueError(f"{path} has no list 'docs'; give the file that OpenIE wrote")
    others = sorted(file for file in path.parent.glob("*.json") if file != path) if source.is_dir() else []
    with Rejected(output / "rejected.jsonl") as rejected:
        passages = Passages(path, rejected)
        for line, row in enumerate(tqdm(docs, desc=path.name, unit=" passages", delay=2), start=1):
            passages.add(line, row)
        for file in [file for file in others if "corpus" in file.name]:
            read_corpus(file, passages, rejected)
        graph = write_passages(output / "graph", passages)
        splits: dict[str, list[QAPair]] = {}
        for file in [file for file in others if "corpus" not in file.name]:
            read_questions(file, passages, rejected, splits)
        sizes = write_questions(output, splits)
        kept = passages.kept + sum(map(len, splits.values()))
        counts = f"{graph[0]} nodes, {graph[1]} edges, {len(passages.documents)} documents"
        summary = f"{counts}; questions: {sizes}; in {output}"
        return ImportReport(passages.count, kept, rejected.count, summary)


def openie_file(source: Path) -> Path:
    """The file itself, or the one openie*.json of a folder."""
    if source.is_file():
        return source
    found = sorted(source.glob("openie*.json"))
    if len(found) != 1:
        raise ValueError(f"{source} holds {len(found)} files openie*.json; give the one to read as --input")
    return found[0]


def title_and_text(row: Any) -> tuple[str, str]:
    """Title ("" where there is none) and text of a passage; a `passage` alone is its title, a line break, its text."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with 'title' and 'text', got {type(row).__name__}")
    title, text = row.get("title") or "", row.get("text")
    if text is None and isinstance(row.get("passage"), str):
        first, line_break, rest = row["passage"].partition("\n")
        title, text = (first, rest) if line_break and not title else (title, row["passage"])
    if not isinstance(title, str) or not isinstance(text, str) or not (title + text).strip():
        raise ValueError("a passage without 'text' (or 'passage')")
    return title, text


def triple_of(fields: Any) -> tuple[str, str, str] | str:
    """The phrases of head and tail with the relation in lower case between them, or why it is no triple."""
    if not isinstance(fields, list) or len(fields) != 3:
        return f"{len(fields) if isinstance(fields, list) else 'no'} fields, expected 3: head, relation, tail"
    if not all(isinstance(field, str) and field.strip() for field in fields):
        return "head, relation or tail is empty or no text"
    return phrase(fields[0]), " ".join(fields[1].lower().split()), phrase(fields[2])


def read_corpus(path: Path, passages: Passages, rejected: Rejected) -> None:
    """Adds the documents [{"title", "text"}] of a corpus file that the OpenIE file does not hold."""
    for line, row in json_items(path):
        passages.count += 1
        try:
            passages.add_document(*title_and_text(row))
            passages.kept += 1
        except ValueError as error:
            rejected.add(path, line, str(error), row)


def write_passages(folder: Path, passages: Passages) -> tuple[int, int]:
    """Writes the graph; returns its numbers of nodes and edges."""
    places = {key: place for place, key in enumerate(passages.names)}
    table = TripleTable(relations=(relation for _, relation, _ in passages.triples))
    numbers = table.relations
    edges = [(places[head], numbers[relation], places[tail]) for head, relation, tail in passages.triples]
    links = [(document, places[key]) for document, key in passages.mentions]
    graph = write_graph(
        folder,
        ({"name": name} for name in passages.names.values()),
        table.relation_records({}),
        np.array(edges, dtype=np.int64),
        passages.documents,
        np.array(links, dtype=np.int64).reshape(-1, 2),
    )
    return graph.num_nodes, graph.num_edges


def read_questions(path: Path, passages: Passages, rejected: Rejected, splits: dict[str, list[QAPair]]) -> None:
    """Reads the questions of one file into its split."""
    places = {key: place for place, key in enumerate(passages.names)}
    pairs = splits.setdefault(split_of(path), [])
    taken = {pair.id for pair in pairs}
    for line, row in json_items(path):
        passages.count += 1
        try:
            question, answers = question_of(row), answers_of(row, "answer", "answer_aliases")
            supporting = dict.fromkeys(passages.document_id(*key) for key in supporting_keys(row))
        except ValueError as error:
            rejected.add(path, line, str(error), row)
            continue
        nodes = dict.fromkeys(places[key] for key in map(phrase, answers) if key in places)
        name = unique_id(str(row.get("id") or row.get("_id") or line), taken)
        kind = row.get("type") if isinstance(row.get("type"), str) else None
        pairs.append(QAPair(name, question, answers, tuple(nodes), (), tuple(supporting), kind))


def supporting_keys(row: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(title, text) of the passages that a question rests on, in the forms of MuSiQue and of HotpotQA."""
    try:
        for paragraph in row.get("paragraphs") or ():
            if paragraph.get("is_supporting"):
                yield paragraph["title"], paragraph.get("paragraph_text") or paragraph.get("text")
        texts = {title: "".join(sentences) for title, sentences in row.get("context") or ()}
        for title in dict.fromkeys(fact[0] for fact in row.get("supporting_facts") or ()):
            yield title, texts.get(title)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"the supporting passages are in no known form ({error!r})") from error
