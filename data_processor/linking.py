"""Names in a question to nodes of the graph: exact, then without case, marks and accents, then by embedding."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

WORD = re.compile(r"\w+")
MAX_WORDS = 14  # longest name looked for, in words
STOP_WORDS = frozenset(
    "a about all also an and any are as at be been both but by can could did do does each else ever for from get "
    "give go had has have he her him his how i if in into is it its just list many me more most my name no not of "
    "on one or other our out over same she show so some such tell than that the their them then there these they "
    "this those to two up us was we were what when where which who whom whose why will with would you your".split()
)


class Link(NamedTuple):
    """A place in the question and the nodes it names; `how` is "exact" or "normalised"."""

    text: str
    nodes: tuple[int, ...]
    how: str


class Linker:
    """Finds the names of nodes in questions; longer names win over those inside them.

    Args:
        names: the name of node i in place i; a name that several nodes bear links to all of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._nodes: dict[str, list[tuple[int, str]]] = {}
        for node, name in enumerate(names):
            key = " ".join(words(name))
            if key:
                self._nodes.setdefault(key, []).append((node, name))
        self._longest = min(MAX_WORDS, max((key.count(" ") + 1 for key in self._nodes), default=0))

    def named(self, name: str) -> tuple[int, ...]:
        """The nodes that bear a name: as it is written, or else without case, marks and accents."""
        nodes = self._nodes.get(" ".join(words(name)), [])
        return tuple(node for node, known in nodes if known == name) or tuple(node for node, _ in nodes)

    def link(self, question: str) -> list[Link]:
        """The links of a question in their order.

        Words such as "what" or "the" link only with a capital inside the question, or when nothing else does. Where
        some linked places hold a capital or a digit, as names do, the others are taken for common words and dropped.
        """
        found = self._spans(question, common_words=False) or self._spans(question, common_words=True)
        named = [link for link in found if any(letter.isupper() or letter.isdigit() for letter in link.text)]
        if named or not found:
            return named
        longest = max(len(link.text.split()) for link in found)
        return [link for link in found if len(link.text.split()) == longest]

    def _spans(self, question: str, common_words: bool) -> list[Link]:
        tokens = [(match.start(), match.end()) for match in WORD.finditer(question)]
        free = [True] * len(tokens)
        found: dict[int, Link] = {}
        for length in range(min(self._longest, len(tokens)), 0, -1):
            for first in range(len(tokens) - length + 1):
                if not all(free[first : first + length]):
                    continue
                text = question[tokens[first][0] : tokens[first + length - 1][1]]
                key = " ".join(words(text))
                is_name = key not in STOP_WORDS or (first > 0 and text[0].isupper())
                if key in self._nodes and (common_words or is_name):
                    found[first] = self._resolve(question, text, key)
                    free[first : first + length] = [False] * length
        return [found[first] for first in sorted(found)]

    def _resolve(self, question: str, text: str, key: str) -> Link:
        exact = [(node, name) for node, name in self._nodes[key] if name in question]
        if exact:
            longest = max(len(name) for _, name in exact)
            return Link(text, tuple(node for node, name in exact if len(name) == longest), "exact")
        return Link(text, tuple(node for node, _ in self._nodes[key]), "normalised")


def words(text: str) -> list[str]:
    """The words of a text without case and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return WORD.findall("".join(letter for letter in plain if not unicodedata.combining(letter)))
