"""What passes between the rooms as text and ids: the records and their JSON lines, each file whole or absent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

Record = TypeVar("Record")

ROW_LIMIT = 1000  # characters of a bad row that are kept in rejected.jsonl: enough to find it, whatever its length


@dataclasses.dataclass(frozen=True)
class Document:
    """A text: `title` may be missing."""

    id: str
    title: str | None
    text: str


@dataclasses.dataclass(frozen=True)
class Fact:
    """One atomic statement and where it was read: a document's id, and the number of its piece (`chunk`) from 0."""

    id: str
    text: str
    document: str
    chunk: int | None = None
    theme: str | None = None


@dataclasses.dataclass(frozen=True)
class Triple:
    """An edge in words; `document` is the id of the text it was read from."""

    head: str
    relation: str
    tail: str
    document: str | None = None


@dataclasses.dataclass(frozen=True)
class QAPair:
    """A question, its accepted answers, and what is known of them in the graph.

    `answer_nodes` and `seed_nodes` are node ids, `supporting_documents` document ids, `type` a question family that is
    scored on its own. `text=False` keeps the subgraph's text out of the prompt: only graph tokens carry the answer.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    answer_nodes: tuple[int, ...] = ()
    seed_nodes: tuple[int, ...] = ()
    supporting_documents: tuple[str, ...] = ()
    type: str | None = None
    text: bool = True


@dataclasses.dataclass(frozen=True)
class NodeSummary:
    """What a language model wrote about a node: its own text in brief with key words, its neighbours in brief, and
    what it has in common with them.

    `neighbour_nodes` are the neighbours that were shown; a node of `split` "validation" or "test" is not trained on.
    """

    node: int
    summary: str
    neighbours: str | None = None
    common: str | None = None
    key_words: tuple[str, ...] = ()
    neighbour_nodes: tuple[int, ...] = ()
    split: str = "train"

    @property
    def text(self) -> str:
        """All of it, a part a line: what the node's graph is aligned with."""
        parts = [self.summary, ", ".join(self.key_words), self.neighbours, self.common]
        return "\n".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True, eq=False)
class Subgraph:
    """Part of a graph: node ids (n,) int64 and rows of edges.npy (e,) int64, best first, with float32 scores."""

    nodes: np.ndarray
    node_scores: np.ndarray
    edges: np.ndarray
    edge_scores: np.ndarray


ARRAY_TYPES = {"nodes": np.int64, "node_scores": np.float32, "edges": np.int64, "edge_scores": np.float32}
CHECKS = {
    "str": (lambda value: isinstance(value, str), "a string"),
    "str | None": (lambda value: value is None or isinstance(value, str), "a string"),
    "int": (lambda value: is_int(value), "a whole number"),
    "int | None": (lambda value: value is None or is_int(value), "a whole number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "tuple[str, ...]": (lambda value: is_list_of(value, lambda item: isinstance(item, str)), "a list of strings"),
    "tuple[int, ...]": (lambda value: is_list_of(value, lambda item: is_int(item)), "a list of whole numbers"),
    "np.ndarray": (lambda value: isinstance(value, list), "a list of numbers"),
}


def is_int(value: object) -> bool:
    """True for a whole number; JSON's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_list_of(value: object, check: Any) -> bool:
    """True for a list (or tuple) whose items all pass `check`."""
    return isinstance(value, list | tuple) and all(check(item) for item in value)


def to_json(record: Any) -> dict[str, Any]:
    """The record as a JSON object; optional fields that hold their default are left out."""
    line = {}
    for field in dataclasses.fields(record):
        value = vars(record)[field.name]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        elif isinstance(value, tuple):
            value = list(value)
        optional = value is None or field.default is not dataclasses.MISSING
        if not (optional and vars(record)[field.name] in (None, field.default)):
            line[field.name] = value
    return line


def from_json(cls: type[Record], line: dict[str, Any]) -> Record:
    """The record of class `cls` that a JSON object describes.

    Raises:
        ValueError: an unknown or missing field, or a value of another type; the sentence names the field.
    """
    if not isinstance(line, dict):
        raise ValueError(f"expected a JSON object with the fields of {cls.__name__}, got {type(line).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(line) - set(fields))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}: a {cls.__name__} has {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name in line:
            values[name] = field_value(name, str(field.type), line[name])
        elif field.default is dataclasses.MISSING and "None" not in str(field.type):
            raise ValueError(f"a {cls.__name__} needs the field {name!r}")
        elif field.default is dataclasses.MISSING:
            values[name] = None
    return cls(**values)


def field_value(name: str, annotation: str, value: Any) -> Any:
    """`value` as the field's type: lists become tuples or arrays; ValueError when the type is another."""
    check, expected = CHECKS[annotation]
    if not check(value):
        raise ValueError(f"{name!r} must be {expected}, got {str(value)[:80]!r}")
    if annotation == "np.ndarray":
        return np.asarray(value, dtype=ARRAY_TYPES[name])
    return tuple(value) if annotation.startswith("tuple") else value


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, JSON object) for every line that is not blank.

    Raises:
        ValueError: a line is not UTF-8, not JSON or no object; the sentence names file and line.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = json.loads(text) if text else {}
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not a line of JSON in UTF-8 ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
            if text:
                yield number, row


def whole_lines(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a log of JSON lines that were written to their end; none where there is no file yet."""
    text = Path(path).read_bytes() if Path(path).is_file() else b""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`: renamed to `path` when the block ends well, deleted when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes one JSON value, readable, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes one JSON object a line, the file whole or not at all; returns the number of lines."""
    count = 0
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_qa(path: str | Path) -> list[QAPair]:
    """The questions of a qa/*.jsonl file.

    Raises:
        ValueError: a missing or unknown field, a question without an answer, an id used twice; with file and line.
    """
    pairs: list[QAPair] = []
    lines: dict[str, int] = {}
    for number, row in read_jsonl(path):
        try:
            pair = from_json(QAPair, row)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        if not pair.answers:
            raise ValueError(f"{path}:{number}: question {pair.id!r} has no answer; give one or leave it out")
        if pair.id in lines:
            raise ValueError(f"{path}:{number}: id {pair.id!r} was used in line {lines[pair.id]}; ids must differ")
        lines[pair.id] = number
        pairs.append(pair)
    return pairs


class Rejected:
    """The rows that could not be used, with the reason: `rejected.jsonl`.

        with Rejected(folder / "rejected.jsonl") as rejected:
            rejected.add("kg.txt", 17, "2 fields, expected 3", line)
        print(rejected.count)

    The file appears when the block ends, also by an error (it often says why); it is absent when nothing was rejected.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.count = 0
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._file: TextIO | None = None

    def __enter__(self) -> Rejected:
        return self

    def add(self, file: str | Path, line: int, reason: str, row: Any) -> None:
        """Records one bad row: the file and line number it came from, why it cannot be used, and its beginning."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary, "w", encoding="utf-8")
        text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
        entry = {"file": str(file), "line": line, "reason": reason, "row": text[:ROW_LIMIT]}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.count += 1

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            self.path.unlink(missing_ok=True)
            return
        self._file.close()
        os.replace(self._temporary, self.path)
