"""Summaries on disk, and the part of the graph that each was written of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.schema import NodeSummary, Subgraph, from_json, read_jsonl

FILE = "summaries.jsonl"


def read_summaries(path: Path) -> list[NodeSummary]:
    """The lines of a summaries.jsonl; ValueError names the one that is none."""
    found = []
    for number, row in read_jsonl(path):
        try:
            found.append(from_json(NodeSummary, row))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return found


def star(graph: KnowledgeGraph, pair: NodeSummary) -> Subgraph:
    """A node, which comes first, its neighbours and the edges between it and them."""
    rows, ends = graph.neighbours(pair.node)
    return graph.subgraph([pair.node, *pair.neighbour_nodes], rows[np.isin(ends, pair.neighbour_nodes)])
