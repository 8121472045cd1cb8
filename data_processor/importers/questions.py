"""What importers of questions share: JSON files, names to nodes, and the question files of a dataset folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_processor.importers.conversations import first_character, json_lines, json_list
from data_processor.importers.rows import require
from data_processor.linking import words
from data_processor.schema import QAPair, to_json, write_jsonl

SPLIT_WORDS = {"train": "train", "dev": "validation", "val": "validation", "test": "test"}


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        ValueError: no such file, not UTF-8, not JSON, or another value than an object.
    """
    try:
        value = json.loads(require(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON in UTF-8 ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; it must hold one object")
    return value


def json_items(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (line number, item) of a JSON list or of JSON lines; a line that is no JSON comes as a ValueError."""
    return (json_list if first_character(require(path)) == "[" else json_lines)(path)


def strings(value: Any) -> tuple[str, ...]:
    """A string, or a list of strings, as distinct strings without spaces around them; blank ones are left out.

    Raises:
        ValueError: something else than strings.
    """
    items = [] if value is None else value if isinstance(value, list | tuple) else [value]
    wrong = [item for item in items if not isinstance(item, str)]
    if wrong:
        raise ValueError(f"expected a string or a list of strings, got {str(wrong[0])[:80]!r}")
    return tuple(dict.fromkeys(item.strip() for item in items if item.strip()))


def question_of(row: Any, key: str = "question") -> str:
    """The question's text; ValueError when the row is no object or has none."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with {key!r}, got {type(row).__name__}")
    text = row.get(key)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no text in {key!r}")
    return text.strip()


def answers_of(row: dict[str, Any], *keys: str) -> tuple[str, ...]:
    """All answers under the keys, the first key's first; ValueError when there is none."""
    answers = tuple(dict.fromkeys(answer for key in keys for answer in strings(row.get(key))))
    if not answers:
        raise ValueError(f"no answer in {' or '.join(map(repr, keys))}")
    return answers


def phrase(name: str) -> str:
    """A name without case, accents and marks, by which two spellings of a thing are found to be one."""
    return " ".join(words(name)) or " ".join(name.casefold().split())


class NameIndex:
    """Nodes by name: as it is written, or else by its `phrase`.

    Args:
        names: the name of node i in place i.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, list[int]] = {}
        self._phrases: dict[str, list[int]] = {}
        for node, name in enumerate(names):
            self._exact.setdefault(name, []).append(node)
            self._phrases.setdefault(phrase(name), []).append(node)

    def nodes(self, names: Iterable[str]) -> tuple[int, ...]:
        """The nodes that bear one of the names, in the order of the names."""
        found = (self._exact.get(name) or self._phrases.get(phrase(name), []) for name in names)
        return tuple(dict.fromkeys(node for nodes in found for node in nodes))


def split_of(path: Path) -> str:
    """The split that a file's name tells: train, validation (dev, val, valid) or, where it tells none, test."""
    stem = path.stem.lower()
    return next((split for word, split in SPLIT_WORDS.items() if word in stem), "test")


def write_questions(output: Path, splits: dict[str, list[QAPair]]) -> str:
    """Writes qa/{split}.jsonl of every split; returns their sizes in words."""
    for split, pairs in splits.items():
        write_jsonl(output / "qa" / f"{split}.jsonl", map(to_json, pairs))
    return ", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items()) or "none"
