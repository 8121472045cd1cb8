"""A graph whose missing triples are asked for: which are held out, which are trained on, which are true."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.knowledge_graph import ranges

logger = logging.getLogger(__name__)

HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 2000  # of a graph without triples/: for validation, and as many for the test


def both_directions(triples: np.ndarray, num_relations: int) -> np.ndarray:
    """Queries (2k, 3) [node, relation, answer] of k triples: (h, r, ?) = t, then (t, r + R, ?) = h."""
    heads, relations, tails = triples.T
    return np.concatenate(
        [np.stack([heads, relations, tails], 1), np.stack([tails, relations + num_relations, heads], 1)]
    )


class Answers:
    """For every query (node, relation) its right answers, each once and in order.

    Args:
        triples: (k, 3) [head, relation, tail].
        num_relations: R; relation r + R asks for the head.
    """

    def __init__(self, triples: np.ndarray, num_relations: int) -> None:
        queries = np.unique(both_directions(triples, num_relations), axis=0)
        self.width = 2 * num_relations
        keys = queries[:, 0] * self.width + queries[:, 1]
        self._keys, starts = np.unique(keys, return_index=True)
        self._offsets = np.append(starts, len(keys))
        self._answers = queries[:, 2]

    def spans(self, nodes: np.ndarray, relations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, stops) (B,) of each query's answers in `all`; equal where there are none."""
        keys = nodes * self.width + relations
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        there = self._keys[places] == keys
        return self._offsets[places], np.where(there, self._offsets[places + 1], self._offsets[places])

    def of(self, nodes: np.ndarray, relations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(answers (K,), which query each is of (K,)) of B queries."""
        starts, stops = self.spans(nodes, relations)
        return self._answers[ranges(starts, stops)], np.repeat(np.arange(len(nodes)), stops - starts)

    def wrong(self, node: int, relation: int, num_nodes: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` nodes drawn evenly, with repetition, from those that are no answer of the query."""
        starts, stops = self.spans(np.array([node]), np.array([relation]))
        right = self._answers[starts[0] : stops[0]]
        drawn = rng.integers(num_nodes - len(right), size=count)
        # the n-th wrong node lies behind as many right ones as have at most n wrong nodes before them
        return drawn + np.searchsorted(right - np.arange(len(right)), drawn, side="right")


@dataclass(frozen=True)
class CompletionGraph:
    """A graph and the triples that are held out from it.

    Attributes:
        graph: the folder's graph: names, texts and features.
        edges: (E, 3) what messages pass along and what is trained on.
        held_out: "validation" and "test" -> (k, 3).
    """

    graph: KnowledgeGraph
    edges: np.ndarray
    held_out: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return str(self.graph.path.parent)

    @cached_property
    def known(self) -> Answers:
        """What is true in the training triples."""
        return Answers(self.edges, self.graph.num_relations)

    @cached_property
    def true(self) -> Answers:
        """What is true anywhere: the filter of an evaluation."""
        return Answers(np.concatenate([self.edges, *self.held_out.values()]), self.graph.num_relations)


def open_completion(folder: str | Path, seed: int) -> CompletionGraph:
    """The graph of a dataset folder with the triples of triples/; without that folder some edges are held out.

    Args:
        folder: with graph/ and perhaps triples/{validation,test}.npy.
        seed: of the choice of held-out edges.

    Raises:
        ValueError: no graph, no edges, or a triple of ids that the graph does not have.
    """
    folder = Path(folder)
    graph = KnowledgeGraph.open(folder / "graph")
    edges = np.asarray(graph.edges, dtype=np.int64)
    if not len(edges):
        raise ValueError(f"The graph in {graph.path} has no edges: there is nothing to learn from. Import triples.")
    files = {split: folder / "triples" / f"{split}.npy" for split in ("validation", "test")}
    held_out = {split: read_triples(path, graph) for split, path in files.items() if path.is_file()}
    if held_out:
        return CompletionGraph(graph, edges, held_out)
    rows = hold_out(edges, seed)
    logger.info("%s has no triples/: %d of its %d edges are held out.", folder, 2 * len(rows[0]), len(edges))
    kept = np.delete(edges, np.concatenate(rows), axis=0)
    return CompletionGraph(graph, kept, {"validation": edges[rows[0]], "test": edges[rows[1]]})


def read_triples(path: Path, graph: KnowledgeGraph) -> np.ndarray:
    """The triples (k, 3) of a file, checked against the graph."""
    triples = np.load(path, allow_pickle=False).astype(np.int64).reshape(-1, 3)
    limits = np.array([graph.num_nodes, graph.num_relations, graph.num_nodes])
    wrong = np.flatnonzero(((triples < 0) | (triples >= limits)).any(1))
    if len(wrong):
        raise ValueError(
            f"{path} row {wrong[0]} is {triples[wrong[0]].tolist()}, but the graph in {graph.path} has "
            f"{graph.num_nodes} nodes and {graph.num_relations} relations. Import both together."
        )
    unseen = ~np.isin(triples[:, 1], graph.edges[:, 1])
    if unseen.any():
        names = graph.relation_name(np.unique(triples[unseen, 1])[:3])
        logger.warning("%s: %d triples have a relation without an edge in the graph, such as %s: only its text says "
                       "what it is.", path, int(unseen.sum()), ", ".join(names))  # fmt: skip
    return triples


def hold_out(edges: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `edges` for validation and test, such that every node and relation of them keeps another edge.

    Raises:
        ValueError: there are no such edges.
    """
    wanted = 2 * min(max(1, int(len(edges) * HELD_OUT_SHARE)), HELD_OUT_MOST)
    nodes, relations = np.bincount(edges[:, [0, 2]].reshape(-1)), np.bincount(edges[:, 1])
    chosen: list[int] = []
    for row in np.random.default_rng(seed).permutation(len(edges)):
        if len(chosen) == wanted:
            break
        source, relation, target = edges[row]
        loop = source == target
        if nodes[source] > 1 + loop and nodes[target] > 1 + loop and relations[relation] > 1:
            chosen.append(int(row))
            relations[relation] -= 1
            nodes[source] -= 1
            nodes[target] -= 1
    if len(chosen) < 2:
        raise ValueError(
            f"Of {len(edges)} edges none can be held out without leaving a node or relation without any. Add triples, "
            "or give triples/validation.npy and triples/test.npy."
        )
    half = len(chosen) // 2
    return np.array(chosen[:half]), np.array(chosen[half : 2 * half])
