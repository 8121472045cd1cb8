"""Summaries on disk -> pairs of a node's graph and a text: what the Translator's first stage is trained on.

pairs = NodePairs("DATA", "train")
pairs[0]["graph"], pairs[0]["text"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from data_processor.dataset import PromptWriter, digest
from data_processor.graph_store import KnowledgeGraph
from data_processor.node_stars import FILE, read_summaries, star


class NodePairs(Dataset):
    """The nodes of one split, each with its graph and its text.

    An item is `{"node", "graph", "text", "text_index"}`: the graph is the node, which comes first, the neighbours that
    its text was written of, and the edges between node and neighbours; `text_index` is equal where texts are.

    Args:
        data_path: a folder with an embedded graph/ and summaries.jsonl.
        split: train, validation or test.
        hide_node: the first node's vector is zeros, so that its text has to be told by what is around it; where
            vectors were made of the very texts, they would give them away.

    Raises:
        ValueError: a part is missing, the graph has no features, or a node is not in it.
    """

    def __init__(self, data_path: str | Path, split: str, hide_node: bool = False) -> None:
        folder = Path(data_path)
        self.path = folder / FILE
        if not self.path.is_file():
            raise ValueError(f"{folder} has no {FILE}. Run: python -m data_processor produce --data {folder} --help")
        self.graph = KnowledgeGraph.open(folder / "graph")
        self._writer, self.hide_node = PromptWriter(self.graph), hide_node
        self.split, self.pairs = split, [one for one in read_summaries(self.path) if one.split == split]
        if not self.pairs:
            raise ValueError(f"{self.path} holds no summary of the split {split!r}.")
        wrong = [one.node for one in self.pairs if max(one.node, *one.neighbour_nodes, 0) >= self.graph.num_nodes]
        if wrong:
            raise ValueError(
                f"{self.path} names node {wrong[0]} or a neighbour of it, and {self.graph.path} has "
                f"{self.graph.num_nodes} nodes: they do not belong together. Run produce again."
            )
        texts: dict[str, int] = {}
        self.text_index = [texts.setdefault(one.text, len(texts)) for one in self.pairs]

    @property
    def feature_dim(self) -> int:
        """F, width of the node features."""
        return self.graph.node_features.shape[1]

    @property
    def edge_feature_dim(self) -> int:
        """F', width of the edge features."""
        return self.graph.relation_features.shape[1]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        graph = self._writer.tensors(star(self.graph, pair))
        if self.hide_node:
            graph["node_features"][0] = 0
        return {
            "node": pair.node,
            "graph": graph,
            "text": pair.text,
            "text_index": self.text_index[index],
        }

    def pooled(self) -> np.ndarray:
        """A graph in one vector each, for a linear baseline: the node's features, the mean of its neighbours' and that
        of its edges'. (n, 2F + F')"""
        return torch.stack([pooled(self[index]["graph"]) for index in range(len(self))]).numpy()

    @property
    def fingerprint(self) -> str:
        """A digest of everything that an item depends on."""
        return digest(self.path.read_bytes(), self.graph.manifest, self.split, self.hide_node)


def pooled(graph: dict[str, torch.Tensor]) -> torch.Tensor:
    """Own features, mean of the others', mean of the edges'; zeros where there are none. -> (2F + F',)"""
    nodes, edges = graph["node_features"], graph["edge_features"]
    others = nodes[1:].mean(dim=0) if len(nodes) > 1 else torch.zeros_like(nodes[0])
    ties = edges.mean(dim=0) if len(edges) else torch.zeros(edges.shape[1])
    return torch.cat([nodes[0], others, ties])
