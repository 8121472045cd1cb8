"""One question at a time through PyG's `retrieval_via_pcst` and through ours, on the same graph, in turn.

PyG's function is given what it asks for: the whole graph as tensors with the vectors of all nodes and edges in
memory, and its texts as data frames. Processor time, one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.retrieval import METHODS
from data_processor.retrieval.pcst import rank_edges, relation_similarity, solver, steiner_problem
from data_processor.vector_index import build_index


class PyG:
    """The graph as PyG's function wants it: `ask(question)` gives its nodes and edges."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        import pandas
        import torch

        torch.set_num_threads(1)
        self._data = graph.to_pyg()
        ids = np.arange(graph.num_nodes)
        self._data.node_idx, self._data.edge_idx = ids, np.arange(graph.num_edges)
        self._nodes = pandas.DataFrame({"node_id": ids, "node_attr": graph.node_name(ids)})
        source, relation, target = np.asarray(graph.edges).T
        names = np.array(graph.relation_name(np.arange(graph.num_relations)))[relation]
        self._edges = pandas.DataFrame({"src": source, "edge_attr": names, "dst": target})

    def ask(self, question: np.ndarray) -> tuple[set[int], set[int]]:
        """(nodes, edges) of the answer; question: (F,) float32."""
        import torch
        from torch_geometric.llm.utils.backend_utils import retrieval_via_pcst

        found, _ = retrieval_via_pcst(self._data, torch.from_numpy(question), self._nodes, self._edges)
        return set(found.node_idx.tolist()), set(found.edge_idx.tolist())


def memory_needed(graph: KnowledgeGraph) -> float:
    """Gigabytes of the vectors alone that PyG's function wants in memory: all nodes' and all edges', float32."""
    assert graph.node_features is not None
    return 4e-9 * graph.node_features.shape[1] * (graph.num_nodes + graph.num_edges)


def make_questions(graph: KnowledgeGraph, count: int) -> np.ndarray:
    """(count, F) float32: the vectors of random nodes, moved by three tenths of their length in a random direction."""
    rng = np.random.default_rng(0)
    vectors = np.asarray(graph.node_features[rng.integers(0, graph.num_nodes, count)], dtype=np.float32)
    noise = rng.normal(size=vectors.shape).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return vectors + 0.3 * lengths * noise


def compare(graph: KnowledgeGraph, questions: np.ndarray, repeats: int) -> dict[str, float]:
    """Medians over the questions (q, F), the best of `repeats` calls each.

    Returns:
        pyg_ms; search_ms, tree_ms, text_ms of ours on the whole graph, whole_ms their sum; bare_ms, the solver alone
        on the arrays that our tree gives it; ours_ms, ours with its own defaults, which on a large graph looks near
        the seeds only; equal, the share of questions for which PyG's tree and ours on the whole graph are the same.
    """
    index, peer = build_index(graph.node_features, "exact"), PyG(graph)
    times, equal = [], 0
    for question in questions:
        (scores, nodes), search = milliseconds(lambda: index.search(question[None], 3), repeats)  # noqa: B023
        arguments = (graph, question, nodes[0], scores[0])
        expected, pyg = milliseconds(lambda: peer.ask(question), repeats)  # noqa: B023
        found, tree = milliseconds(lambda: METHODS["pcst"](*arguments, whole_edges=10**12), repeats)  # noqa: B023
        near, near_tree = milliseconds(lambda: METHODS["pcst"](*arguments), repeats)  # noqa: B023
        _, text = milliseconds(lambda: graph.to_text(found, style="tables"), repeats)  # noqa: B023
        _, near_text = milliseconds(lambda: graph.to_text(near, style="tables"), repeats)  # noqa: B023
        problem = bare_problem(graph, question, nodes[0])
        _, bare = milliseconds(lambda: solver()(*problem), repeats)  # noqa: B023
        times.append((pyg, search, tree, text, bare, search + tree + text, search + near_tree + near_text))
        equal += (set(found.nodes.tolist()), set(found.edges.tolist())) == expected
    names = ("pyg_ms", "search_ms", "tree_ms", "text_ms", "bare_ms", "whole_ms", "ours_ms")
    medians = dict(zip(names, np.median(times, axis=0).tolist(), strict=True))
    return {**medians, "equal": equal / len(questions), "questions": len(questions)}


def bare_problem(graph: KnowledgeGraph, question: np.ndarray, seeds: np.ndarray) -> tuple:
    """The arguments with which our method calls pcst_fast on the whole graph."""
    edges, prizes = np.asarray(graph.edges), np.zeros(graph.num_nodes, np.float32)
    prizes[seeds] = np.arange(len(seeds), 0, -1)
    edge_prizes, cost = rank_edges(relation_similarity(graph, question), edges[:, 1], 5, 0.5)
    return *steiner_problem(edges[:, ::2], prizes, edge_prizes, cost)[2], -1, 1, "gw", 0


def milliseconds(call: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """(what the call returns, the least processor time of `repeats` calls: other processes do not count)."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        value = call()
        times.append(1000 * (time.process_time() - start))
    return value, min(times)
