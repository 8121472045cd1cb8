"""Conversations without a graph: KnowledgeUpdate's JSON list and chat JSONL, checked turn by turn.

    python -m data_processor import conversations --input qa_pairs.json --output DATA
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_processor.importers.rows import ImportReport, read_text, require
from data_processor.schema import Rejected, write_jsonl

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def import_conversations(source: Path, output: Path) -> ImportReport:
    """Writes output/conversations.jsonl: {"id", "messages"} lines, and rejected.jsonl.

    Args:
        source: what `iter_conversations` reads.
        output: a folder.

    Raises:
        ValueError: no such file, or no conversation in it.
    """
    counts = {"rows": 0}
    with Rejected(output / "rejected.jsonl") as rejected:
        kept = write_jsonl(output / "conversations.jsonl", iter_conversations(source, rejected, counts))
        if kept == 0:
            raise ValueError(f"{source} holds no usable conversation: {rejected.count} rejected, see {rejected.path}")
        return ImportReport(counts["rows"], kept, rejected.count, f"{kept} conversations in {output}")


def iter_conversations(
    source: Path, rejected: Rejected, counts: dict[str, int] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields {"id", "messages": [{"role", "content"}]} for every conversation that can be trained on.

    Args:
        source: a JSON list or JSON lines of {"messages": [{"role", "content"}], "id"?} or of
            {"conversations": [{"from", "value"}], "id"?} (KnowledgeUpdate).
        rejected: takes the others, with line and reason. An id that is missing or taken is made unique, not rejected.
        counts: its "rows" is counted up by every conversation seen.

    Raises:
        ValueError: no such file, or text that is no JSON.
    """
    taken: set[str] = set()
    items = json_list if first_character(require(source)) == "[" else json_lines
    for line, row in items(source):
        if counts is not None:
            counts["rows"] += 1
        try:
            messages = checked_messages(row)
        except ValueError as error:
            rejected.add(source, line, str(error), row)
            continue
        name = unique_id(str(row.get("id", line)), taken)
        yield {"id": name, "messages": messages}


def first_character(source: Path) -> str:
    """The first character of a file that is no space."""
    with open(source, encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if line.strip():
                return line.strip()[0]
    raise ValueError(f"{source} is empty; it should hold conversations")


def json_list(source: Path) -> Iterator[tuple[int, Any]]:
    """Yields (line number, item) of one JSON list; text that is no JSON ends the reading with a ValueError."""
    text = read_text(source)
    decoder, line, seen = json.JSONDecoder(), 1, 0
    place = skip(text, text.index("[") + 1, " \t\r\n")
    while text[place : place + 1] != "]":
        line, seen = line + text.count("\n", seen, place), place
        try:
            item, place = decoder.raw_decode(text, place)
        except ValueError as error:
            raise ValueError(f"{source}:{line}: not JSON ({error}); the file must be one JSON list") from error
        yield line, item
        place = skip(text, place, " \t\r\n,")


def skip(text: str, place: int, characters: str) -> int:
    """The first place from `place` on whose character is none of `characters`."""
    while text[place : place + 1] and text[place] in characters:
        place += 1
    return place


def json_lines(source: Path) -> Iterator[tuple[int, Any]]:
    """Yields (line number, item) of JSON lines; for a line that is none the error takes the item's place."""
    with open(source, "rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                yield line, json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
            except ValueError as error:
                yield line, ValueError(f"not a line of JSON in UTF-8 ({error})")


def checked_messages(row: Any) -> list[dict[str, str]]:
    """The messages of a conversation; ValueError says what keeps it from being trained on."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"expected an object with 'messages' or 'conversations', got {type(row).__name__}")
    key = "messages" if "messages" in row else "conversations"
    turns, role_key, text_key = row.get(key), *(("role", "content") if key == "messages" else ("from", "value"))
    if not isinstance(turns, list) or not turns:
        raise ValueError("no 'messages' or 'conversations', or an empty list")
    messages = []
    for number, turn in enumerate(turns, start=1):
        role = ROLES.get(str(turn.get(role_key)).lower()) if isinstance(turn, dict) else None
        if role is None:
            raise ValueError(f"turn {number} has no known {role_key!r}: it must be one of {', '.join(ROLES)}")
        text = turn.get(text_key)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"turn {number} has no text in {text_key!r}")
        messages.append({"role": role, "content": text})
    check_order([message["role"] for message in messages])
    return messages


def check_order(roles: list[str]) -> None:
    """ValueError unless the roles are: perhaps a system turn, then user and assistant in turn, an assistant last."""
    spoken = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(spoken) // 2)
    if not spoken or spoken != expected:
        raise ValueError(f"the turns are {', '.join(roles[:6])}; they must be user, assistant, ..., assistant last")


def unique_id(name: str, taken: set[str]) -> str:
    """`name`, or `name#2`, `name#3`, ... when it is taken: KnowledgeUpdate counts from 0 again in each document."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}#{number}"
    taken.add(candidate)
    return candidate
