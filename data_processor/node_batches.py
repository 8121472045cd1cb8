"""Batches of nodes with a class, or of pairs that are linked or not, with their neighbourhoods as tensors."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.neighbours import neighbourhood, pair_keys, within
from data_processor.schema import QAPair, read_qa

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT = {"validation": 0.05, "test": 0.10}  # of a graph's links, as Kipf and Welling (arXiv 1611.07308, section 4)
OTHER_TYPES = ("describe", "link")  # of questions: their answers, from `describe` and `ask_links`, are no classes
Batch = dict[str, "Tensor"]


@dataclass(frozen=True)
class Reading:
    """How neighbourhoods are read.

    Attributes:
        graph: embedded. steps: edges from a node. most: edges of each node, None for all.
        edge_features: whether batches hold them.
        hidden: sorted `pair_keys` of held-out links.
        seed: of what is drawn.
    """

    graph: KnowledgeGraph
    steps: int
    most: int | None
    edge_features: bool
    hidden: np.ndarray
    seed: int = 0

    def batch(self, seeds: np.ndarray, number: int, hidden: np.ndarray | None = None) -> Batch:
        """`node_features` (n, F), `edge_index` (2, e) and, if asked for, `edge_features` (e, F'); seeds come first.

        Args:
            seeds: (s,) distinct node ids. number: of the batch, for what is drawn.
            hidden: sorted keys of more links that are left out.
        """
        import torch

        rng = np.random.default_rng([self.seed, number])
        left_out = self.hidden if hidden is None else np.union1d(self.hidden, hidden)
        found = neighbourhood(self.graph, seeds, self.steps, self.most, rng, left_out if len(left_out) else None)
        batch = {
            "node_features": torch.from_numpy(self.graph.node_features[found.nodes].astype(np.float32)),
            "edge_index": torch.from_numpy(found.edge_index),
        }
        if self.edge_features:
            relations = self.graph.edges[found.rows, 1]
            batch["edge_features"] = torch.from_numpy(self.graph.relation_features[relations].astype(np.float32))
        return batch


class NodeBatches:
    """Nodes with a class; a batch also holds `targets` (1, B), places of the nodes, and `labels` (1, B).

    Args:
        reading: of the graph.
        nodes, labels: (k,) ids and class numbers.
        size: nodes a batch.
        shuffle: other batches in every epoch (`set_epoch`).
    """

    def __init__(
        self, reading: Reading, nodes: np.ndarray, labels: np.ndarray, size: int, shuffle: bool = False
    ) -> None:
        self.reading, self.nodes, self.labels, self.size, self.shuffle = reading, nodes, labels, size, shuffle
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draws the order of an epoch."""
        self.epoch, count = epoch, len(self.nodes)
        order = np.random.default_rng([self.reading.seed, epoch]).permutation(count)
        self.order = order if self.shuffle else np.arange(count)

    def __len__(self) -> int:
        return -(-len(self.nodes) // self.size)

    def __getitem__(self, number: int) -> Batch:
        import torch

        chosen = self.order[number * self.size : (number + 1) * self.size]
        nodes = self.nodes[chosen].tolist()
        places = {node: place for place, node in enumerate(dict.fromkeys(nodes))}  # two questions may be about one
        batch = self.reading.batch(np.array(list(places), dtype=np.int64), self.epoch * len(self) + number)
        targets = torch.tensor([places[node] for node in nodes])[None]
        return {**batch, "targets": targets, "labels": torch.from_numpy(self.labels[chosen])[None]}

    @property
    def fingerprint(self) -> str:
        """A digest of what the batches are made of."""
        from data_processor.dataset import digest

        return digest(self.reading.graph.manifest, self.nodes.tolist(), self.labels.tolist(), self.size)


class LinkBatches:
    """Links and as many pairs without one; a batch also holds `targets` (2, B), places of the ends, `labels` (1, B).

    The links of a training batch are left out of its neighbourhoods: a link must not be seen where it is asked for.

    Args:
        reading: of the graph.
        pairs: (k, 2) linked nodes.
        size: links a batch.
        train: new negatives and other batches in every epoch; False: the same ones always.
    """

    def __init__(self, reading: Reading, pairs: np.ndarray, size: int, train: bool = False) -> None:
        self.reading, self.pairs, self.size, self.train = reading, pairs, size, train
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draws the order and the negatives of an epoch."""
        self.epoch, count = epoch, len(self.pairs)
        own = [] if self.train else [zlib.crc32(self.pairs.tobytes())]  # other negatives for validation than for test
        rng = np.random.default_rng([self.reading.seed, epoch, *own])
        self.order = rng.permutation(count) if self.train else np.arange(count)
        self.negatives = unlinked(self.linked, self.reading.graph.num_nodes, count, rng)

    @cached_property
    def linked(self) -> np.ndarray:
        """Sorted keys of all links of the graph, held-out ones too."""
        return linked_keys(self.reading.graph)

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.size)

    def __getitem__(self, number: int) -> Batch:
        import torch

        chosen = self.order[number * self.size : (number + 1) * self.size]
        links = self.pairs[chosen]
        both = np.concatenate([links, self.negatives[chosen]])  # (2 * size, 2)
        nodes, places = np.unique(both, return_inverse=True)
        hidden = np.sort(pair_keys(*links.T, self.reading.graph.num_nodes)) if self.train else None
        batch = self.reading.batch(nodes, self.epoch * len(self) + number, hidden)
        labels = torch.cat([torch.ones(len(links)), torch.zeros(len(links))]).long()[None]
        return {**batch, "targets": torch.from_numpy(places.reshape(-1, 2).T.copy()), "labels": labels}

    @property
    def fingerprint(self) -> str:
        """A digest of what the batches are made of."""
        from data_processor.dataset import digest

        return digest(self.reading.graph.manifest, self.pairs.tobytes(), self.size)


def linked_keys(graph: KnowledgeGraph) -> np.ndarray:
    """Sorted keys of all pairs of different nodes with an edge, each once."""
    ends = np.asarray(graph.edges)[:, ::2]
    ends = ends[ends[:, 0] != ends[:, 1]]
    return np.unique(pair_keys(ends[:, 0], ends[:, 1], graph.num_nodes))


def split_links(graph: KnowledgeGraph, seed: int) -> dict[str, np.ndarray]:
    """The graph's links (k, 2) as train, validation and test: the same for the same seed.

    Raises:
        ValueError: too few links to hold some out.
    """
    keys = np.random.default_rng(seed).permutation(linked_keys(graph))
    counts = {name: int(len(keys) * share) for name, share in HELD_OUT.items()}
    if min(counts.values()) == 0:
        raise ValueError(
            f"{graph.path} links {len(keys)} pairs of nodes; holding out a twentieth for validation leaves none. Give "
            "a graph with 20 links or more, or train on classes with --graph_objective label."
        )
    pairs, first = np.stack(np.divmod(keys, graph.num_nodes), axis=1), counts["validation"]
    second = first + counts["test"]
    return {"validation": pairs[:first], "test": pairs[first:second], "train": pairs[second:]}


def unlinked(linked: np.ndarray, num_nodes: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` pairs (k, 2) of different nodes without a link, drawn evenly; in a full graph linked ones fill up."""
    pairs = np.zeros((0, 2), dtype=np.int64)
    for _ in range(20):
        drawn = rng.integers(num_nodes, size=(2 * count, 2))
        free = (drawn[:, 0] != drawn[:, 1]) & ~within(pair_keys(*drawn.T, num_nodes), linked)
        pairs = np.concatenate([pairs, drawn[free]])
        if len(pairs) >= count:
            return pairs[:count]
    raise ValueError(f"Nearly all pairs of the {num_nodes} nodes are linked: there are no negatives to learn from.")


def labelled(folder: Path, split: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """The nodes of a split's questions and the numbers of their answers; see `class_questions`.

    Returns:
        nodes (k,), labels (k,), and (id, why) of each question that cannot be used.
    """
    number = {name: place for place, name in enumerate(classes)}
    pairs, unusable = class_questions(folder, split, classes)
    nodes = [pair.seed_nodes[0] for pair in pairs]
    labels = [number[pair.answers[0]] for pair in pairs]
    return np.array(nodes, dtype=np.int64), np.array(labels, dtype=np.int64), unusable


def class_questions(
    folder: Path, split: str, classes: Sequence[str] | None = None
) -> tuple[list[QAPair], list[tuple[str, str]]]:
    """A split's questions for the class of one node, and (id, why) of each that is another or cannot be used.

    Args:
        folder: with qa/{split}.jsonl. classes: the possible answers; None: any.
    """
    pairs, unusable = [], []
    for pair in read_qa(folder / "qa" / f"{split}.jsonl"):
        if len(pair.seed_nodes) != 1:
            unusable.append((pair.id, f"it has {len(pair.seed_nodes)} seed nodes; a node's class is asked of one"))
        elif pair.type in OTHER_TYPES:
            unusable.append((pair.id, f"it is of type {pair.type}, whose answers are no classes"))
        elif classes is not None and pair.answers[0] not in classes:
            unusable.append((pair.id, f"its class {pair.answers[0]!r} is not among those of the training questions"))
        else:
            pairs.append(pair)
    return pairs, unusable


def classes_of(folder: Path) -> list[str]:
    """The distinct first answers of the training questions for a node's class, sorted.

    Raises:
        ValueError: no training questions, or none of two classes.
    """
    path = folder / "qa" / "train.jsonl"
    found = class_names(folder, "train") if path.is_file() else []
    if len(found) < 2:
        raise ValueError(
            f"{path} names {len(found)} classes. --graph_objective label needs questions about nodes with two "
            "classes or more as answers; without them use --graph_objective link."
        )
    return found


def class_names(folder: Path, split: str) -> list[str]:
    """The distinct first answers of a split's questions for a node's class, sorted."""
    return sorted({pair.answers[0] for pair in class_questions(folder, split)[0]})


def describe(batches: NodeBatches | LinkBatches) -> dict[str, Any]:
    """Shapes of the first batch."""
    return {name: tuple(one.shape) for name, one in batches[0].items()}
