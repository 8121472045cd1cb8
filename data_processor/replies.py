"""Replies of a language model to values: JSON by a schema, plain lists and Q/A lines where it wrote those instead.

A reply that cannot be used is asked for once more with the reason; parsing needs nothing but the stored text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from data_processor.calls import CUT, Reply, Request

Value = TypeVar("Value")
Schema = dict[str, Any]

SHOWN = 2000  # characters of an unusable reply that are shown to the model again
THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):、])\s*(.+)$")
LABEL = re.compile(
    r"^\W*(?:\d+\s*[.):、])?\W*(?:(?P<question>Q|Question|问题|问)|A|Answer|答案|答)\s*\d*[*\s]*[:：][*\s]*(?P<rest>.*)$",
    re.IGNORECASE,
)
PYTHON_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


class Unusable(ValueError):
    """Why a reply cannot be used, in words that also tell the model what to mend."""


def text() -> Schema:
    """The schema of a string."""
    return {"type": "string"}


def list_of(items: Schema) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": items}


def record(**fields: Schema) -> Schema:
    """The schema of an object with exactly these fields, in the strict form that servers take."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def choice(*values: str) -> Schema:
    """The schema of one of several strings."""
    return {"type": "string", "enum": list(values)}


def ask(
    request: Request, repair: Callable[[str], str], check: Callable[[Any], Value]
) -> Generator[Request, Reply, Value]:
    """Task: the checked value of the reply, or of one repaired reply.

    Args:
        request: with a schema.
        repair: the words that ask again, given the reason.
        check: turns the parsed value into what is wanted; raises Unusable where it cannot.

    Raises:
        Unusable: neither reply could be used, or there was no reply.
    """
    reply = yield request
    try:
        return read(reply, request.schema, check)
    except Unusable as error:
        if reply.error is not None:
            raise
        again = {"role": "assistant", "content": reply.text[:SHOWN]}, {"role": "user", "content": repair(str(error))}
        messages = (*request.messages, *again)
        values = {**request.values, "repair": str(error)}
        second = yield Request(messages, request.schema, request.max_new_tokens, request.name, values)
    try:
        return read(second, request.schema, check)
    except Unusable as error:
        raise Unusable(f"{error}; asked again after: {first_words(reply.text)!r}") from error


def read(reply: Reply, schema: Schema | None, check: Callable[[Any], Value]) -> Value:
    """The checked value of one reply; Unusable says why there is none."""
    if reply.error is not None:
        raise Unusable(reply.error)
    if reply.finish_reason == CUT:
        raise Unusable("the reply was cut at the limit of new tokens; be brief")
    if reply.finish_reason == "content_filter":
        raise Unusable("the server's content filter withheld the reply")
    value = parse(reply.text, schema or text())
    problem = mismatch(value, schema or text())
    if problem:
        raise Unusable(problem)
    return check(value)


def parse(reply: str, schema: Schema) -> Any:
    """The value in a reply: its JSON, alone or among other words, or the plain form of what the schema asks for.

    Raises:
        Unusable: neither is there.
    """
    reply = THOUGHTS.sub("", reply).strip()
    found = json_in(reply, schema)
    if found is None:
        found = plain_form(reply, schema)
    if found is None:
        raise Unusable(f"expected a JSON object with {fields_of(schema)}, got {first_words(reply)!r}")
    return found


def json_in(reply: str, schema: Schema) -> Any:
    """The first JSON value of a reply that fits the schema, or the first that is there; None when none is.

    A list or string alone stands for the object that has it as its only field.
    """
    decoder, first, only = json.JSONDecoder(), None, only_field(schema)
    for match in re.finditer(r"[\[{]", reply):
        if first is not None and match.start() < first[1]:
            continue
        try:
            value, end = decoder.raw_decode(reply, match.start())
        except (ValueError, RecursionError):
            continue
        value = {only: value} if only and isinstance(value, list) else value
        if not mismatch(value, schema):
            return value
        first = first or (value, end)
    return first[0] if first else None


def plain_form(reply: str, schema: Schema) -> Any:
    """A numbered or dashed list for a list of strings, Q: and A: lines for questions with answers; else None."""
    fields = schema.get("properties", {})
    only = only_field(schema)
    if set(fields) == {"question", "answer"}:
        return next(iter(labelled_pairs(reply)), None)
    if only is None or fields[only].get("type") != "array":
        return None
    inner = fields[only]["items"]
    if inner.get("type") == "string":
        items = [match[1].strip() for line in reply.splitlines() if (match := ITEM.match(line))]
        return {only: items} if items else None
    pairs = labelled_pairs(reply)
    return {only: pairs} if pairs and set(inner.get("properties", {})) == {"question", "answer"} else None


def labelled_pairs(reply: str) -> list[dict[str, str]]:
    """The questions with answers in lines that begin with Q: and A: (or 问题： and 答案：); unlabelled lines go on."""
    pairs: list[dict[str, str]] = []
    field = None
    for line in reply.splitlines():
        label = LABEL.match(line)
        if label and label["question"]:
            pairs.append({"question": label["rest"]})
        elif label and pairs:
            pairs[-1]["answer"] = label["rest"]
        elif field and line.strip():
            pairs[-1][field] += f"\n{line.strip()}"
        field = ("answer" if "answer" in pairs[-1] else "question") if pairs else None
    pairs = [{name: words.strip() for name, words in pair.items()} for pair in pairs]
    return [pair for pair in pairs if pair["question"] and pair.get("answer")]


def only_field(schema: Schema) -> str | None:
    """The name of an object's only field."""
    fields = list(schema.get("properties", {}))
    return fields[0] if len(fields) == 1 else None


def fields_of(schema: Schema) -> str:
    """The names of an object's fields in words."""
    return ", ".join(repr(name) for name in schema.get("properties", {})) or schema["type"]


def mismatch(value: Any, schema: Schema, place: str = "the reply") -> str | None:
    """What keeps a value from fitting a schema of the kinds above, or None."""
    kind = schema["type"]
    if not isinstance(value, PYTHON_TYPES[kind]):
        return f"{place} must be a JSON {kind}, got {first_words(json.dumps(value, ensure_ascii=False))}"
    if kind == "object":
        missing = [name for name in schema["required"] if name not in value]
        if missing:
            return f"{place} lacks {missing[0]!r}; it needs {fields_of(schema)}"
        inner = schema["properties"].items()
        return next((found for name, one in inner if (found := mismatch(value[name], one, repr(name)))), None)
    if kind == "array":
        return next((found for one in value if (found := mismatch(one, schema["items"], f"an item of {place}"))), None)
    if "enum" in schema and value not in schema["enum"]:
        return f"{place} must be one of {', '.join(schema['enum'])}, got {first_words(value)!r}"
    return None


def first_words(reply: str, length: int = 80) -> str:
    """The beginning of a reply on one line."""
    return " ".join(reply.split())[:length]
