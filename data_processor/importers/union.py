"""Many small graphs over shared names -> one graph, and the part of it that each of them is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.graph_store import KnowledgeGraph, write_graph, write_subgraphs
from data_processor.importers.triple_table import readable
from data_processor.schema import Subgraph

NODE_BITS, RELATION_BITS = 23, 17  # of one 63-bit number that stands for a triple: head, relation, tail


class GraphUnion:
    """Takes small graphs one by one, as triples of names; `write` makes one graph of them.

    A triple is kept as one number, so that a hundred million of them fit into a gigabyte.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, int] = {}
        self.relations: dict[str, int] = {}
        self._parts: list[np.ndarray] = []
        self._edges = np.zeros(0, dtype=np.int64)

    def add(self, triples: Iterable[tuple[str, str, str]], names: Iterable[str] = ()) -> int:
        """Takes one small graph, its triples and the `names` of nodes that may stand in none; returns its number."""
        nodes, relations = self.nodes, self.relations
        for name in names:
            nodes.setdefault(name, len(nodes))
        rows = [
            (nodes.setdefault(head, len(nodes)), relations.setdefault(name, len(relations)),
             nodes.setdefault(tail, len(nodes)))
            for head, name, tail in triples
        ]  # fmt: skip
        if len(nodes) > 1 << NODE_BITS or len(relations) > 1 << RELATION_BITS:
            limits = f"{1 << NODE_BITS} entities or {1 << RELATION_BITS} relations"
            raise ValueError(f"more than {limits}; import fewer questions at once")
        heads, names, tails = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        self._parts.append((heads << (NODE_BITS + RELATION_BITS)) | (names << NODE_BITS) | tails)
        return len(self._parts) - 1

    def write(self, folder: Path, records: dict[str, dict[str, Any]] | None = None) -> KnowledgeGraph:
        """Writes the graph of all triples; `records` describes nodes by name, which else have a name alone."""
        self._edges = np.unique(np.concatenate([self._edges, *self._parts]))
        node_mask, relation_mask = (1 << NODE_BITS) - 1, (1 << RELATION_BITS) - 1
        heads, names = self._edges >> (NODE_BITS + RELATION_BITS), (self._edges >> NODE_BITS) & relation_mask
        edges = np.stack([heads, names, self._edges & node_mask], axis=1)
        nodes = (records[name] if records else {"name": name} for name in self.nodes)
        relations = ({"name": name, "text": readable(name)} for name in self.relations)
        return write_graph(folder, nodes, relations, edges)

    def rows(self, number: int) -> np.ndarray:
        """Row numbers of `edges` of the written graph that are small graph `number`'s triples, in their order."""
        return np.searchsorted(self._edges, self._parts[number])


def write_given(folder: Path, names: list[str], subgraphs: list[Subgraph]) -> None:
    """Writes subgraphs that came with their questions, with their mean sizes as the report."""
    report = {
        "mean_nodes": float(np.mean([len(one.nodes) for one in subgraphs])) if subgraphs else 0.0,
        "mean_edges": float(np.mean([len(one.edges) for one in subgraphs])) if subgraphs else 0.0,
    }
    write_subgraphs(folder, names, subgraphs, report, {"graph": "../../graph", "method": "given", "parameters": {}})
