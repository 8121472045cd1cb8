"""Batches of (head, relation, ?) queries from graphs: what a graph retriever is pre-trained and evaluated on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_processor.completion_graph import Answers, CompletionGraph, both_directions
from data_processor.knowledge_graph import ranges

Batch = dict[str, Any]


class TrainingQueries:
    """Batches of training triples of one graph each; every epoch has other batches and asks the other end.

    An item holds the arguments of `GFMForRetrieval.forward`: `graph_index` (1,), `query_relations`, `seed_nodes`,
    `seed_batch`, `target_nodes`, `target_batch` (B,), `removed_edges`, the rows of the batch's own triples; then
    `negative_nodes` (B, C), or `known_nodes` and `known_batch` (K,) where every other node is compared with.

    Args:
        graphs: in the order of `graph_index`.
        questions_per_batch: B.
        num_negatives: C; 0 for every other node.
        seed: of all choices.
        max_batches: the most batches of each graph in an epoch, None for all.

    Attributes:
        unusable: (graph, row) of triples that every node answers from both ends.
    """

    def __init__(
        self,
        graphs: Sequence[CompletionGraph],
        questions_per_batch: int,
        num_negatives: int,
        seed: int,
        max_batches: int | None = None,
    ) -> None:
        self.graphs, self.size, self.num_negatives, self.seed = graphs, questions_per_batch, num_negatives, seed
        self.epoch = 0
        self._same = [group_rows(one.edges) for one in graphs]
        self._askable = [askable(one) for one in graphs]
        self.unusable = [(one, int(row)) for one, ends in zip(graphs, self._askable, strict=True)
                         for row in np.flatnonzero(~ends.any(0))]  # fmt: skip
        counts = [-(-int(ends.any(0).sum()) // questions_per_batch) for ends in self._askable]
        self._starts = np.cumsum([0, *(min(count, max_batches or count) for count in counts)])
        self._plans: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the batches of an epoch; the same number always gives the same ones."""
        if epoch != self.epoch:
            self.epoch, self._plans = epoch, {}

    def _plan(self, place: int) -> np.ndarray:
        """Queries (k, 2) [row, direction] of an epoch in their order."""
        if place not in self._plans:
            ends = self._askable[place]
            rng = np.random.default_rng((self.seed, place))
            coins = rng.integers(2, size=ends.shape[1]) ^ (self.epoch % 2)
            directions = np.where(ends[coins, np.arange(len(coins))], coins, 1 - coins)
            rows = np.random.default_rng((self.seed, place, self.epoch)).permutation(np.flatnonzero(ends.any(0)))
            self._plans[place] = np.stack([rows, directions[rows]], 1)
        return self._plans[place]

    def __getitem__(self, index: int) -> Batch:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        number = index - int(self._starts[place])
        rows, directions = self._plan(place)[number * self.size : (number + 1) * self.size].T
        one = self.graphs[place]
        triples = one.edges[rows]
        queries = np.where(directions[:, None], triples[:, [2, 1, 0]], triples)
        queries[:, 1] += directions * one.graph.num_relations
        batch = query_batch(place, queries) | {"removed_edges": self._same[place](rows)}
        if not self.num_negatives:
            return tensors(batch | known(one.known, queries))
        rng = np.random.default_rng((self.seed, place, self.epoch, number))
        wrong = [one.known.wrong(*query[:2], one.graph.num_nodes, self.num_negatives, rng) for query in queries]
        return tensors(batch | {"negative_nodes": np.stack(wrong)})

    @property
    def fingerprint(self) -> str:
        """A digest of what the items depend on but for flags."""
        return fingerprint([one.graph.manifest for one in self.graphs], *(one.edges for one in self.graphs))


class HeldOutQueries:
    """Batches of held-out triples, both ends asked, for ranks filtered by all that is known to be true.

    Items are as those of `TrainingQueries`, with `known_nodes`; queries that ask the same stand in one row, so there
    may be more targets than queries.

    Args:
        graphs: in the order of `graph_index`; those without triples of the split are passed over.
        split: "validation" or "test".
        questions_per_batch: B.
        sample: at most so many triples of each graph, None for all.
        seed: of the sample.

    Attributes:
        places: (n,) the graph of every item.
    """

    def __init__(
        self,
        graphs: Sequence[CompletionGraph],
        split: str,
        questions_per_batch: int,
        sample: int | None = None,
        seed: int = 0,
    ) -> None:
        self.graphs, self.split = graphs, split
        self._batches: list[tuple[int, np.ndarray]] = []
        for place, one in enumerate(graphs):
            triples = one.held_out.get(split, np.zeros((0, 3), dtype=np.int64))
            if sample is not None and sample < len(triples):
                triples = triples[np.sort(np.random.default_rng(seed).permutation(len(triples))[:sample])]
            queries = np.unique(both_directions(triples, one.graph.num_relations), axis=0)
            _, groups = np.unique(queries[:, :2], axis=0, return_inverse=True)
            groups = groups.reshape(-1) // questions_per_batch
            cuts = np.flatnonzero(np.diff(groups)) + 1
            self._batches += [(place, part) for part in np.split(queries, cuts) if len(part)]
        self.places = np.array([place for place, _ in self._batches])
        if not self._batches:
            raise ValueError(f"None of the graphs has {split} triples: {', '.join(one.name for one in graphs)}.")

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:
        place, answers = self._batches[index]
        asked, target_batch = np.unique(answers[:, :2], axis=0, return_inverse=True)
        queries = np.concatenate([asked, np.zeros_like(asked[:, :1])], 1)
        batch = query_batch(place, queries) | known(self.graphs[place].true, queries)
        return tensors(batch | {"target_nodes": answers[:, 2], "target_batch": target_batch.reshape(-1)})

    @property
    def fingerprint(self) -> str:
        """A digest of what the items depend on but for flags."""
        return fingerprint([one.graph.manifest for one in self.graphs], *(part for _, part in self._batches))


def askable(one: CompletionGraph) -> np.ndarray:
    """(2, E) bool: whether some node is a wrong answer of the triple's query by its tail (0), by its head (1)."""
    queries = both_directions(one.edges, one.graph.num_relations)
    starts, stops = one.known.spans(queries[:, 0], queries[:, 1])
    return (stops - starts < one.graph.num_nodes).reshape(2, -1)


def group_rows(edges: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function: rows of edges -> all rows that hold one of the same triples."""
    _, groups, counts = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
    groups = groups.reshape(-1)
    if len(counts) == len(edges):
        return np.unique
    order = np.argsort(groups, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(counts)])

    def same(rows: np.ndarray) -> np.ndarray:
        chosen = np.unique(groups[rows])
        return np.sort(order[ranges(offsets[chosen], offsets[chosen + 1])])

    return same


def query_batch(place: int, queries: np.ndarray) -> Batch:
    """The arrays that every batch of queries (B, 3) [node, relation, answer] has."""
    numbers = np.arange(len(queries))
    return {
        "graph_index": np.array([place]),
        "query_relations": queries[:, 1],
        "seed_nodes": queries[:, 0],
        "seed_batch": numbers,
        "target_nodes": queries[:, 2],
        "target_batch": numbers,
    }


def known(answers: Answers, queries: np.ndarray) -> Batch:
    """`known_nodes` and `known_batch`: all right answers of the queries; those that are targets stay targets."""
    nodes, batch = answers.of(queries[:, 0], queries[:, 1])
    return {"known_nodes": nodes, "known_batch": batch}


def tensors(batch: Batch) -> Batch:
    """The arrays as tensors, int64 or float32."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}


def fingerprint(settings: Any, *arrays: np.ndarray) -> str:
    """A digest of a JSON value and arrays."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
