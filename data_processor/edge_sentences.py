"""A sentence for every edge, in words of its two ends, so that an edge can be compared with a question."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_processor.files import BATCH_ROWS
from data_processor.knowledge_graph import KnowledgeGraph

EDGE_TEXTS = ("names", "types")


def distinct_sentences(graph: KnowledgeGraph, style: str) -> tuple[np.ndarray, np.ndarray]:
    """The sentences of a graph: (rows (s,) of an edge that bears each, number (E,) int64 of every edge's sentence).

    Args:
        style: "names": "Ann likes Bob", one an edge; "types": "person likes person", few whatever the size, as in
            Neo4j's example.

    Raises:
        ValueError: another style, or types of nodes that have none.
    """
    if style not in EDGE_TEXTS:
        raise ValueError(f"the text of edges must be one of {', '.join(EDGE_TEXTS)}, got {style!r}")
    if style == "names":
        return np.arange(graph.num_edges), np.arange(graph.num_edges)
    numbers: dict[str | None, int] = {}
    kinds = np.array([numbers.setdefault(kind, len(numbers)) for kind in graph.iter_types()])
    if set(numbers) == {None}:
        raise ValueError(f"no node of {graph.path} has a type; choose the text 'names' for its edges")
    ends = kinds[graph.edges[:, [0, 2]]]
    keys = (ends[:, 0] * graph.num_relations + graph.edges[:, 1]) * len(numbers) + ends[:, 1]
    _, rows, places = np.unique(keys, return_index=True, return_inverse=True)
    return rows, places


def sentences(graph: KnowledgeGraph, rows: np.ndarray, style: str) -> Iterator[str]:
    """Yields the sentence of each edge of `rows` (s,), read in blocks: head, text of the relation, tail."""
    read = graph.node_name if style == "names" else graph.node_type
    for start in range(0, len(rows), BATCH_ROWS):
        heads, relations, tails = graph.edges[rows[start : start + BATCH_ROWS]].T
        for words in zip(read(heads), graph.relation_text(relations), read(tails), strict=True):
            yield " ".join(word for word in words if word)
