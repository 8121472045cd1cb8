"""The neighbourhood of some nodes out of a graph of any size: a bounded number of edges a node, read from disk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_processor.adjacency import ranges
from data_processor.knowledge_graph import KnowledgeGraph


class Neighbourhood(NamedTuple):
    """Nodes around some seeds and the edges between them, by local ids.

    Attributes:
        nodes: (n,) ids, the seeds first, each once.
        edge_index: (2, e) positions in `nodes`, source above target.
        rows: (e,) row numbers of the graph's edges.
    """

    nodes: np.ndarray
    edge_index: np.ndarray
    rows: np.ndarray


def neighbourhood(
    graph: KnowledgeGraph,
    seeds: np.ndarray,
    steps: int,
    most: int | None = None,
    rng: np.random.Generator | None = None,
    hidden: np.ndarray | None = None,
) -> Neighbourhood:
    """Walks `steps` edges from the seeds, in both directions, along at most `most` edges of each node.

    A node's edges are drawn once, without replacement; what is read of a hub does not depend on its size. Sampling as
    GraphSAGE does (arXiv 1706.02216, section 3.1), on the union of the seeds' neighbourhoods.

    Args:
        graph: memory-mapped.
        seeds: (s,) distinct node ids.
        steps: layers of message passing.
        most: edges of a node; None: all of them.
        rng: draws, where there are more.
        hidden: sorted `pair_keys` of pairs whose edges, in either direction, are left out.
    """
    known, frontier, found = np.unique(seeds), np.asarray(seeds, dtype=np.int64), []
    for _ in range(steps):
        rows = edges_at(graph, frontier, most, rng)
        ends = np.asarray(graph.edges[rows])[:, ::2]
        if hidden is not None and len(rows):
            stays = ~within(pair_keys(ends[:, 0], ends[:, 1], graph.num_nodes), hidden)
            rows, ends = rows[stays], ends[stays]
        found.append(rows)
        frontier = np.setdiff1d(ends, known)
        known = np.union1d(known, frontier)
    rows = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
    nodes = np.concatenate([np.asarray(seeds, dtype=np.int64), np.setdiff1d(known, seeds)])
    order = np.argsort(nodes)
    ends = np.asarray(graph.edges[rows])[:, ::2].T.reshape(2, -1)
    return Neighbourhood(nodes, order[np.searchsorted(nodes, ends, sorter=order)].reshape(2, -1), rows)


def edges_at(
    graph: KnowledgeGraph, nodes: np.ndarray, most: int | None = None, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Row numbers of the edges at the nodes (n,), outgoing and incoming ones, at most `most` drawn of each node.

    An edge between two of the nodes is named twice.
    """
    starts, out = graph.out_offsets[nodes], graph.out_offsets[nodes + 1] - graph.out_offsets[nodes]
    degrees = out + graph.in_offsets[nodes + 1] - graph.in_offsets[nodes]
    few = degrees <= (degrees if most is None else most)
    owners = np.repeat(np.flatnonzero(few), degrees[few])
    places = ranges(np.zeros(few.sum(), dtype=np.int64), degrees[few])
    if not few.all():
        many = np.flatnonzero(~few)
        drawn = [rng.choice(degrees[hub], most, replace=False, shuffle=False) for hub in many]
        owners, places = np.concatenate([owners, np.repeat(many, most)]), np.concatenate([places, *drawn])
    leaves = places < out[owners]
    rows = np.empty(len(owners), dtype=np.int64)
    rows[leaves] = starts[owners[leaves]] + places[leaves]
    arrives, at = owners[~leaves], places[~leaves] - out[owners[~leaves]]
    rows[~leaves] = graph.in_edges[graph.in_offsets[nodes[arrives]] + at]
    return rows


def pair_keys(first: np.ndarray, second: np.ndarray, num_nodes: int) -> np.ndarray:
    """A number for each unordered pair of nodes, the same for both directions."""
    first, second = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
    return np.minimum(first, second) * num_nodes + np.maximum(first, second)


def within(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which values (n,) are among the sorted ones: (n,) bool."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values
