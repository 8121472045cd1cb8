"""The one door to pcst_fast: the connected subgraph that collects most prize for its cost, as in G-Retriever."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.retrieval.pagerank import random_walk
from data_processor.schema import Subgraph

DECAY = 0.01  # by how much the prize of edges of one rank stays below that of the rank above
INSTALL = "pip install --force-reinstall --no-deps --no-binary pcst_fast pcst_fast"
EDGE_PRIZES = ("relations", "sentences")


def pcst(
    graph: KnowledgeGraph,
    question: np.ndarray | None,
    seeds: np.ndarray,
    seed_scores: np.ndarray,
    top_k_nodes: int = 3,
    top_k_edges: int = 5,
    edge_cost: float = 0.5,
    max_prize: float | None = None,
    append: int = 0,
    edge_prizes: str = "relations",
    clusters: int = 1,
    whole_edges: int = 50_000,
    ball_nodes: int = 5000,
    ball_steps: int = 2,
) -> Subgraph:
    """The prize-collecting Steiner tree around the best seeds (He et al. 2024, arXiv 2402.07630, section 5.3).

    Args:
        graph: embedded; large graphs are cut to the nodes a short walk from the seeds meets most.
        question: (F,) its embedding: edges get prizes by the similarity of their text to it.
        seeds: (s,) node ids. seed_scores: (s,) the best `top_k_nodes` of them get prizes.
        top_k_nodes: number of nodes with a prize: top_k_nodes, ..., 2, 1 from the best down.
        top_k_edges: number of distinct edge similarities with a prize.
        edge_cost: of an edge; with prizes by relations lowered where no edge's prize would reach it.
        max_prize: node prizes fall evenly from it to 0 instead, as in Neo4j's example (4, with 100 nodes).
        append: so many of the best seeds are part of the result wherever they lie (Neo4j's example: 25).
        edge_prizes: "relations": by the text of the relation, edges of one similarity share their rank's prize.
            "sentences": as in Neo4j's example (4 edges there), the best `top_k_edges` edges get prizes top_k_edges,
            ..., 1 by a sentence in words of both ends; of equal ones those whose ends have the higher prizes. The
            sentences are embedded beforehand (`embed --edge_text`), not while a question waits: a neighbourhood has
            thousands, an encoder takes milliseconds each, and a graph's edges are the same for every question.
        clusters: connected parts of the result.
        whole_edges: a graph of at most so many edges is searched whole.
        ball_nodes, ball_steps: size of the neighbourhood searched in a larger one.
    """
    order = np.argsort(-np.asarray(seed_scores), kind="stable")
    seeds = np.asarray(seeds, dtype=np.int64)[order]
    seeds = seeds[np.sort(np.unique(seeds, return_index=True)[1])]
    nodes, rows, triples = surroundings(graph, seeds, whole_edges, ball_nodes, ball_steps)
    best = seeds[:top_k_nodes]
    node_prizes = np.zeros(len(nodes), dtype=np.float32)
    node_prizes[np.searchsorted(nodes, best)] = prizes_by_rank(len(best), max_prize)
    ends = triples[:, ::2]
    edges = ends if len(nodes) == graph.num_nodes else np.searchsorted(nodes, ends)
    if edge_prizes == "sentences":
        of_ends = node_prizes[edges].sum(axis=1)
        prizes = rank_each_edge(sentence_similarity(graph, question, rows), of_ends, top_k_edges)
    elif edge_prizes == "relations":
        similarity = relation_similarity(graph, question)
        prizes, edge_cost = rank_edges(similarity, triples[:, 1], top_k_edges, edge_cost)
    else:
        raise ValueError(f"edge_prizes must be one of {', '.join(EDGE_PRIZES)}, got {edge_prizes!r}")
    tree_nodes, tree_edges = steiner_tree(edges, node_prizes, prizes, edge_cost, clusters)
    ids, scores = nodes[tree_nodes], node_prizes[tree_nodes]
    appended = seeds[:append][~np.isin(seeds[:append], ids)]
    ids, scores = np.concatenate([ids, appended]), np.concatenate([scores, np.zeros(len(appended), np.float32)])
    best_nodes = np.argsort(-scores, kind="stable")
    best_edges = np.argsort(-prizes[tree_edges], kind="stable")
    tree_edges = tree_edges[best_edges]
    return Subgraph(ids[best_nodes], scores[best_nodes], rows[tree_edges], prizes[tree_edges])


def surroundings(
    graph: KnowledgeGraph, seeds: np.ndarray, whole_edges: int, ball_nodes: int, ball_steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(node ids, edge rows, edges (e, 3)): the whole graph when small, else what a walk from the seeds meets most."""
    if len(seeds) == 0:
        return seeds, seeds, graph.edges[:0]
    if graph.num_edges <= whole_edges:
        return np.arange(graph.num_nodes), np.arange(graph.num_edges), np.asarray(graph.edges)
    ball = random_walk(graph, None, seeds, np.ones(len(seeds)), max_nodes=ball_nodes, steps=ball_steps)
    rows = np.sort(ball.edges)
    return np.union1d(ball.nodes, seeds), rows, graph.edges[rows]


def prizes_by_rank(count: int, max_prize: float | None) -> np.ndarray:
    """Prizes (count,) float32 from the best node down."""
    if max_prize is None:
        return np.arange(count, 0, -1, dtype=np.float32)
    return np.linspace(max_prize, 0, count, dtype=np.float32)


def relation_similarity(graph: KnowledgeGraph, question: np.ndarray | None) -> np.ndarray:
    """Cosine of the question and the text of each relation: (R,) float32."""
    if question is None or graph.relation_features is None:
        raise ValueError(f"pcst needs embeddings; run: python -m data_processor embed --graph {graph.path}")
    question = np.asarray(question, dtype=np.float32)
    return graph.relation_directions @ (question / max(float(np.linalg.norm(question)), 1e-12))


def sentence_similarity(graph: KnowledgeGraph, question: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Cosine of the question and the sentence of each edge of `rows` (e,): (e,) float32."""
    if question is None or graph.edge_features is None or graph.edge_sentences is None:
        command = f"python -m data_processor embed --graph {graph.path} --edge_text names"
        raise ValueError(f"edge_prizes sentences needs embedded edges; run: {command} (or types)")
    distinct, places = np.unique(graph.edge_sentences[rows], return_inverse=True)
    vectors = np.asarray(graph.edge_features[distinct], dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(question)
    return (vectors @ np.asarray(question, np.float32) / np.maximum(lengths, 1e-12))[places].astype(np.float32)


def rank_each_edge(similarity: np.ndarray, of_ends: np.ndarray, top_k: int) -> np.ndarray:
    """Prizes (e,) float32: top_k, ..., 2, 1 for the `top_k` edges of highest similarity, 0 for the others.

    Args:
        similarity: (e,) of every edge. of_ends: (e,) the prizes of its two nodes, which decides between equal ones.
    """
    prizes = np.zeros(len(similarity), dtype=np.float32)
    best = np.lexsort((-of_ends, -similarity))[: max(top_k, 0)]
    prizes[best] = np.arange(len(best), 0, -1)
    return prizes


def rank_edges(
    similarity: np.ndarray, relations: np.ndarray, top_k: int, edge_cost: float
) -> tuple[np.ndarray, float]:
    """(prizes (e,) float32, the cost of an edge), in float32 like the reference.

    The edges of the r-th highest distinct similarity share the prize top_k - r between them, each somewhat less than
    the rank above. The cost is lowered below the highest prize, so that one edge at least is worth it.

    Args:
        similarity: (R,) float32 of every relation. relations: (e,) int64 of every edge.
        top_k: number of ranks. edge_cost: before it is lowered.
    """
    if len(relations) == 0 or top_k <= 0:
        return np.zeros(len(relations), dtype=np.float32), edge_cost
    counts = np.bincount(relations, minlength=len(similarity))
    present = np.flatnonzero(counts)
    distinct = np.unique(similarity[present])[::-1][:top_k]
    by_relation = np.zeros(len(similarity), dtype=np.float32)
    above = np.float32(len(distinct))
    for place, value in enumerate(distinct):
        same = present[similarity[present] == value]
        share = np.float32(len(distinct) - place) / np.float32(counts[same].sum())
        by_relation[same] = above = min(share, above - np.float32(DECAY))
        above = above * np.float32(1 - DECAY)
    return by_relation[relations], min(edge_cost, float(by_relation.max()) * (1 - DECAY / 2))


def steiner_tree(
    edges: np.ndarray, node_prizes: np.ndarray, edge_prizes: np.ndarray, edge_cost: float, clusters: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The tree of Hegde, Indyk, Schmidt 2015 ("A Nearly-Linear Time Framework for Graph-Structured Sparsity").

    Args:
        edges: (e, 2) int64. node_prizes: (n,), edge_prizes: (e,) float32.

    Returns:
        (nodes, edges) ascending: numbers of the nodes and of the edges in the tree.
    """
    if len(edges) == 0:
        best = np.argsort(-node_prizes, kind="stable")[:clusters]
        return np.sort(best[node_prizes[best] > 0]), np.zeros(0, dtype=np.int64)
    plain, virtual, problem = steiner_problem(edges, node_prizes, edge_prizes, edge_cost)
    vertices, chosen = solver()(*problem, -1, clusters, "gw", 0)
    count = len(node_prizes)
    tree = np.concatenate([plain[chosen[chosen < len(plain)]], virtual[vertices[vertices >= count] - count]])
    nodes = np.concatenate([vertices[vertices < count], edges[tree].reshape(-1)])
    return np.unique(nodes), np.sort(tree)


def steiner_problem(
    edges: np.ndarray, node_prizes: np.ndarray, edge_prizes: np.ndarray, edge_cost: float
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(edges that stay, edges that are split, (edges, prizes, costs) of a problem without prizes of edges).

    An edge costs its cost less its prize; where the prize is higher it is split by a virtual node, numbered from n on,
    that carries the difference as its prize.
    """
    split = edge_prizes > np.float32(edge_cost)
    plain, virtual = np.flatnonzero(~split), np.flatnonzero(split)
    middles = len(node_prizes) + np.arange(len(virtual))
    halves = np.stack([edges[virtual, 0], middles, middles, edges[virtual, 1]], axis=1).reshape(-1, 2)
    costs = np.concatenate([np.float32(edge_cost) - edge_prizes[plain], np.zeros(len(halves), np.float32)])
    prizes = np.concatenate([node_prizes, edge_prizes[virtual] - np.float32(edge_cost)])
    problem = np.concatenate([edges[plain], halves]), prizes.astype(np.float64), costs.astype(np.float64)
    return plain, virtual, problem


@cache
def solver() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The function pcst_fast.

    Raises:
        ValueError: it is not installed, or its wheel was built for NumPy 1: such a one runs under NumPy 2 without a
            complaint and returns arrays of one number repeated, so a tree of two edges is asked for first.
    """
    if importlib.util.find_spec("pcst_fast") is None:
        raise ValueError(f"the method pcst needs the package pcst_fast, built here: {INSTALL}")
    from pcst_fast import pcst_fast

    vertices, edges = pcst_fast(np.array([[0, 1], [2, 1]]), np.ones(3), np.full(2, 0.1), -1, 1, "gw", 0)
    if sorted(vertices) != [0, 1, 2] or sorted(edges) != [0, 1]:
        raise ValueError(f"the installed pcst_fast is wrong under NumPy {np.__version__}; build it here: {INSTALL}")
    return pcst_fast
