"""Triples of names on their way to a graph: names become ids in order of appearance, repeated triples are rejected."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.schema import Rejected

ROLES = ("head", "relation", "tail")


class TripleTable:
    """Names to ids and the list of triples.

    Args:
        nodes, relations: names that are there before any triple.
        new_nodes, new_relations: whether an unknown name becomes a new node or relation, or its triple is bad.
    """

    def __init__(
        self,
        nodes: Iterable[str] = (),
        relations: Iterable[str] = (),
        new_nodes: bool = True,
        new_relations: bool = True,
    ) -> None:
        self.nodes = {name: place for place, name in enumerate(dict.fromkeys(nodes))}
        self.relations = {name: place for place, name in enumerate(dict.fromkeys(relations))}
        self._open = (new_nodes, new_relations, new_nodes)
        self._ids = array("q")
        self._lines = array("q")

    def add(self, fields: list[str], line: int) -> str | None:
        """Takes the triple [head, relation, tail] of a line; returns why it cannot be taken, or None."""
        if len(fields) != 3:
            return f"{len(fields)} field{'' if len(fields) == 1 else 's'}, expected 3: head, relation, tail"
        if not all(fields):
            return f"the {ROLES[fields.index('')]} is empty"
        tables = (self.nodes, self.relations, self.nodes)
        for name, table, role, is_open in zip(fields, tables, ROLES, self._open, strict=True):
            if not is_open and name not in table:
                return f"the {role} {name[:80]!r} is not in the graph: neither in train nor in a table of names"
        self._ids.extend(table.setdefault(name, len(table)) for name, table in zip(fields, tables, strict=True))
        self._lines.append(line)
        return None

    def triples(self, path: Path, rejected: Rejected) -> np.ndarray:
        """The distinct triples (k, 3) int64 in their order; each repetition is rejected with the line it repeats."""
        triples = np.array(self._ids, dtype=np.int64).reshape(-1, 3)
        _, first, group = np.unique(triples, axis=0, return_index=True, return_inverse=True)
        original = first[group.reshape(-1)]
        repeated = np.flatnonzero(original != np.arange(len(triples)))
        names = [list(self.nodes), list(self.relations), list(self.nodes)] if len(repeated) else []
        for row in repeated.tolist():
            text = " | ".join(names[column][triples[row, column]] for column in range(3))
            rejected.add(path, self._lines[row], f"the same triple stands in line {self._lines[original[row]]}", text)
        return np.delete(triples, repeated, axis=0)

    def node_records(self, texts: dict[str, str]) -> list[dict[str, Any]]:
        """The nodes as `write_graph` takes them, with the texts known by name."""
        return [{"name": name, "text": texts.get(name)} for name in self.nodes]

    def relation_records(self, texts: dict[str, str]) -> list[dict[str, Any]]:
        """The relations as `write_graph` takes them; "directed_by" without a text reads "directed by"."""
        return [{"name": name, "text": texts.get(name, readable(name))} for name in self.relations]


def readable(name: str) -> str:
    """A relation's name in words: underscores are spaces."""
    return name.replace("_", " ").strip() or name
