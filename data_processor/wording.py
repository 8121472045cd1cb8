"""Prompts to calls in the language of what they are about, and the checks that several kinds of reply share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from data_processor.calls import Request
from data_processor.prompts import Prompts, language_of
from data_processor.replies import Schema, Unusable, ask
from data_processor.text_generator import Task

Value = TypeVar("Value")


class Wording:
    """How things are asked.

    Args:
        prompts: the texts.
        language: "en", "zh", or "auto": by the text.
    """

    def __init__(self, prompts: Prompts, language: str = "auto") -> None:
        self.prompts, self._language = prompts, language

    def language(self, about: str) -> str:
        """The language that is used for a text."""
        return language_of(about) if self._language == "auto" else self._language

    def request(self, name: str, about: str, schema: Schema | None, limit: int, **values: str) -> Request:
        """The call of that name; `about` decides on the language, `values` fill the prompt; no schema: plain words."""
        words = self.prompts.fill(name, self.language(about), values)
        return Request(({"role": "user", "content": words},), schema, limit, name, values)

    def ask(self, request: Request, about: str, check: Callable[[Any], Value]) -> Task[Value]:
        """Task: the checked reply, asked for once more when it cannot be used; raises Unusable after that."""
        language = self.language(about)
        return ask(request, lambda reason: self.prompts.fill("repair", language, {"reason": reason}), check)


def a_name(field: str, longest: int) -> Callable[[dict[str, str]], str]:
    """Checks that the field is a short line."""

    def check(value: dict[str, str]) -> str:
        name = " ".join(value[field].split())
        if not name or len(name) > longest:
            raise Unusable(f"{field!r} must have 1 to {longest} characters, it has {len(name)}")
        return name

    return check


def some_of(field: str, least: int = 1) -> Callable[[dict[str, list[str]]], tuple[str, ...]]:
    """Checks that the field is a list of at least so many texts."""

    def check(value: dict[str, list[str]]) -> tuple[str, ...]:
        items = tuple(" ".join(item.split()) for item in value[field] if item.strip())
        if len(items) < least:
            raise Unusable(f"{field!r} must have at least {least} texts, it has {len(items)}")
        return items

    return check
