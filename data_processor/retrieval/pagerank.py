"""Nodes near the seeds by random walk: personalised PageRank by bounded push, and the exact walk of k steps."""

from __future__ import annotations

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.schema import Subgraph

DENSE_SHARE = 16  # more edges than nodes / 16 are summed in an array of all nodes, fewer in a sorted list


def pagerank(
    graph: KnowledgeGraph,
    question: np.ndarray | None,
    seeds: np.ndarray,
    seed_scores: np.ndarray,
    max_nodes: int = 200,
    restart: float = 0.5,
    tolerance: float = 1e-6,
    max_steps: int = 30,
    max_edges: int = 1_000_000,
) -> Subgraph:
    """The nodes with the highest personalised PageRank and all edges between them; edges are walked both ways.

    Push of Andersen, Chung, Lang 2006 ("Local graph partitioning using PageRank vectors"), all nodes of a round at
    once: a node whose residue is at least `tolerance` times its degree keeps the share `restart`, passes on the rest.
    Only the neighbourhood that is reached is touched, whatever the size of the graph.

    Args:
        question: not used. seeds: (s,) node ids; seed_scores: (s,) their shares of the start, uniform when all are 0.
        max_nodes: nodes of the subgraph.
        restart: share that stays at a node, between 0 and 1; near 1 keeps to the seeds.
        tolerance: smaller reaches further and takes longer.
        max_steps: rounds at most. max_edges: edges walked in a round at most, those of the heaviest nodes.
    """
    ids, residue = start(seeds, seed_scores)
    reached, score = ids[:0], residue[:0]
    for _ in range(max_steps):
        active = residue >= tolerance * degrees(graph, ids)
        if not active.any():
            break
        pushed, amount = ids[active], residue[active]
        reached, score = add(reached, score, pushed, restart * amount)
        spread_ids, spread_mass = spread(graph, pushed, (1 - restart) * amount, max_edges)
        ids, residue = add(ids[~active], residue[~active], spread_ids, spread_mass)
    reached, score = add(reached, score, ids, restart * residue)
    return best_nodes(graph, reached, score, max_nodes)


def random_walk(
    graph: KnowledgeGraph,
    question: np.ndarray | None,
    seeds: np.ndarray,
    seed_scores: np.ndarray,
    max_nodes: int = 200,
    steps: int = 3,
    max_edges: int = 1_000_000,
) -> Subgraph:
    """The nodes most often met by a walk of `steps` steps from the seeds, and all edges between them.

    The score of a node is the sum, over the steps from 0 to `steps`, of the chance to stand on it; edges are walked
    both ways. Exact while no step has more than `max_edges` edges; then the lightest nodes are not walked on from.

    Args:
        question: not used. seeds, seed_scores: as for `pagerank`.
        max_nodes: nodes of the subgraph.
        steps: the number of edges between a question's entity and its answer, or one more.
    """
    ids, mass = start(seeds, seed_scores)
    reached, score = ids, mass
    for _ in range(steps):
        ids, mass = spread(graph, ids, mass, max_edges)
        reached, score = add(reached, score, ids, mass)
    return best_nodes(graph, reached, score, max_nodes)


def start(seeds: np.ndarray, seed_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct seeds (s,), mass (s,) that sums to 1)."""
    ids, place = np.unique(np.asarray(seeds, dtype=np.int64), return_inverse=True)
    weights = np.maximum(np.asarray(seed_scores, dtype=np.float64), 0)
    mass = np.bincount(place, weights if weights.sum() > 0 else None, minlength=len(ids)).astype(np.float64)
    return ids, mass / max(mass.sum(), 1e-300)


def degrees(graph: KnowledgeGraph, ids: np.ndarray) -> np.ndarray:
    """Edges at each node (n,), both directions."""
    out_degree = graph.out_offsets[ids + 1] - graph.out_offsets[ids]
    return out_degree + graph.in_offsets[ids + 1] - graph.in_offsets[ids]


def spread(
    graph: KnowledgeGraph, ids: np.ndarray, mass: np.ndarray, max_edges: int
) -> tuple[np.ndarray, np.ndarray]:
    """One step from the nodes `ids` (n,): each passes its mass on in equal parts over its edges, both ways.

    A node without edges keeps nothing. Returns (ids (m,) ascending, mass (m,)).
    """
    degree = degrees(graph, ids)
    if degree.sum() > max_edges:
        order = np.argsort(-mass, kind="stable")
        order = order[np.cumsum(degree[order]) <= max_edges]
        ids, mass, degree = ids[order], mass[order], degree[order]
    share = mass / np.maximum(degree, 1)
    out_rows, in_rows = graph.out_edges(ids), graph.in_edges_of(ids)
    ends = np.concatenate([graph.edges[out_rows, 2], graph.edges[in_rows, 0]])
    out_degree = graph.out_offsets[ids + 1] - graph.out_offsets[ids]
    shares = np.concatenate([np.repeat(share, out_degree), np.repeat(share, degree - out_degree)])
    return collect(ends, shares, graph.num_nodes)


def collect(ids: np.ndarray, mass: np.ndarray, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums mass by id: (distinct ids ascending, sums)."""
    if len(ids) > num_nodes // DENSE_SHARE:
        total = np.bincount(ids, mass, minlength=num_nodes)
        found = np.flatnonzero(total)
        return found, total[found]
    found, place = np.unique(ids, return_inverse=True)
    return found, np.bincount(place, mass, minlength=len(found))


def add(ids: np.ndarray, mass: np.ndarray, more_ids: np.ndarray, more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of two sparse vectors."""
    found, place = np.unique(np.concatenate([ids, more_ids]), return_inverse=True)
    return found, np.bincount(place, np.concatenate([mass, more]), minlength=len(found))


def best_nodes(graph: KnowledgeGraph, ids: np.ndarray, score: np.ndarray, max_nodes: int) -> Subgraph:
    """The `max_nodes` best of the nodes `ids` (n,), ascending, and all edges between them.

    An edge has the lower score of its ends; of nodes with equal scores the one with the lower id is better.
    """
    score = score.astype(np.float64)  # without a seed it is the empty sum of whole numbers
    if len(ids) > max_nodes:
        least = np.partition(score, -max_nodes)[-max_nodes]
        ids, score = ids[score >= least], score[score >= least]
    order = np.argsort(-score, kind="stable")[:max_nodes]
    kept = np.sort(order)
    nodes, by_id = ids[kept], score[kept]
    rows = graph.out_edges(nodes)
    sources = np.repeat(np.arange(len(nodes)), graph.out_offsets[nodes + 1] - graph.out_offsets[nodes])
    ends = graph.edges[rows, 2]
    targets = np.minimum(np.searchsorted(nodes, ends), len(nodes) - 1)
    inside = nodes[targets] == ends
    edge_scores = np.minimum(by_id[sources[inside]], by_id[targets[inside]])
    best = np.argsort(-edge_scores, kind="stable")
    node_scores, edge_scores = score[order].astype(np.float32), edge_scores[best].astype(np.float32)
    return Subgraph(ids[order], node_scores, rows[inside][best], edge_scores)
