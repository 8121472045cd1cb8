"""Which facts were stated before, in the same words or in other ones."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data_processor.key_index import KeyIndex

HELD = 2048  # facts of the present document that a new one is compared with
WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")
PLAIN = frozenset(
    "a an and are as at be been by de for from had has have he her his in into is it its of on or she since that the "
    "their they this to was were which who with".split()
)


class Encoder(Protocol):
    """What `text_encoder.load_encoder` returns."""

    dimension: int

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (n, dimension) of n texts."""


class KnownFacts:
    """The facts taken so far: all of them by their words, those of the present document also by embedding.

    Args:
        encoder: embeds the facts.
        similarity: cosine from which two facts of a document are the same, when `same_things` holds too.
    """

    def __init__(self, encoder: Encoder, similarity: float) -> None:
        self._encoder, self._similarity = encoder, similarity
        self._words = KeyIndex()
        self._count = 0
        self._document: str | None = None
        self._vectors = np.zeros((HELD, encoder.dimension), dtype=np.float32)
        self._texts: list[tuple[str, int]] = []  # with their lines; like the vectors overwritten from the front
        self._taken = 0  # facts of the present document

    def check(self, facts: Sequence[str], document: str) -> list[str | None]:
        """Takes the facts of a chunk: for each one None when it is new, or why it is not."""
        if document != self._document:
            self._document, self._texts, self._taken = document, [], 0
        vectors = unit(self._encoder.encode(facts)) if facts else np.zeros((0, self._encoder.dimension))
        return [self._take(fact, vector) for fact, vector in zip(facts, vectors, strict=True)]

    def _take(self, fact: str, vector: np.ndarray) -> str | None:
        key = hashlib.blake2b(" ".join(words(fact)).encode(), digest_size=16).digest()
        line = self._words.get(key)
        if line is not None:
            return f"the same statement is line {line} of facts.jsonl"
        line = self._similar(fact, vector)
        if line is not None:
            return f"it says what line {line} of facts.jsonl says"
        self._count += 1
        self._words.set(key, self._count)
        place = self._taken % HELD
        self._vectors[place] = vector
        self._texts[place : place + 1] = [(fact, self._count)]
        self._taken += 1
        return None

    def _similar(self, fact: str, vector: np.ndarray) -> int | None:
        cosines = self._vectors[: len(self._texts)] @ vector
        for place in np.flatnonzero(cosines >= self._similarity):
            text, line = self._texts[place]
            if same_things(fact, text):
                return line
        return None


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def words(text: str) -> list[str]:
    """The words of a text without case."""
    return WORD.findall(text.casefold())


def same_things(first: str, second: str) -> bool:
    """Whether two statements name the same things in what may be the same sense.

    Embeddings hardly see a changed name or number, or who did what to whom. So names and numbers must be the same, and
    statements of the same words in another order count as different.
    """
    if names(first) != names(second):
        return False
    one, other = ([word for word in words(text) if word not in PLAIN] for text in (first, second))
    return one == other or sorted(one) != sorted(other)


def names(text: str) -> set[str]:
    """The words of a text that have a capital letter or a digit, in lower case, without little words."""
    found = {word.casefold() for word in WORD.findall(text) if any(one.isupper() or one.isdigit() for one in word)}
    return found - PLAIN
