"""Part of a graph as a graph of its own, in memory: where a question may use no more than the part it came with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_processor.adjacency import offsets
from data_processor.files import ArrowColumns
from data_processor.knowledge_graph import KnowledgeGraph
from data_processor.schema import Subgraph


class GraphPart(KnowledgeGraph):
    """The nodes and edges of a subgraph with ids of their own, from 0; relations keep theirs.

    Retrieval methods read it as they read a whole graph. Names, types and texts are read by id; the node features are
    copied, no other column is.

    Args:
        graph: the whole graph. subgraph: its part.

    Attributes:
        node_ids: (n,) ids in the whole graph, ascending. edge_rows: (e,) row numbers there, ascending.
    """

    def __init__(self, graph: KnowledgeGraph, subgraph: Subgraph) -> None:
        checked = graph.subgraph(subgraph.nodes, subgraph.edges)
        self.node_ids, self.edge_rows = np.sort(checked.nodes), np.sort(checked.edges)
        self.path: Path = graph.path
        self.manifest: dict[str, Any] = graph.manifest
        self.num_nodes, self.num_edges = len(self.node_ids), len(self.edge_rows)
        self.num_relations, self.num_documents, self.text_encoder = graph.num_relations, 0, graph.text_encoder
        edges = np.asarray(graph.edges[self.edge_rows]).reshape(-1, 3)
        self.edges = edges.copy()  # sorted by source as the whole graph's edges are: ids keep their order
        self.edges[:, ::2] = np.searchsorted(self.node_ids, edges[:, ::2])
        self.out_offsets, self.in_offsets = (offsets(self.edges[:, column], self.num_nodes) for column in (0, 2))
        self.in_edges = np.argsort(self.edges[:, 2], kind="stable")
        has_features = graph.node_features is not None
        self.node_features = graph.node_features[self.node_ids] if has_features else None
        self.relation_features = graph.relation_features
        self.relation_directions = graph.relation_directions if has_features else None
        self.edge_features, self.edge_sentences = graph.edge_features, None
        if graph.edge_sentences is not None:
            self.edge_sentences = graph.edge_sentences[self.edge_rows]
        self._nodes = Rows(graph._nodes, self.node_ids)
        self._relations = graph._relations

    def inside(self, nodes: np.ndarray) -> np.ndarray:
        """The own ids of those of `nodes` (k,), ids of the whole graph, that lie in this part."""
        return np.searchsorted(self.node_ids, nodes[np.isin(nodes, self.node_ids)])

    def outside(self, subgraph: Subgraph) -> Subgraph:
        """A subgraph of this part as one of the whole graph."""
        nodes, edges = self.node_ids[subgraph.nodes], self.edge_rows[subgraph.edges]
        return Subgraph(nodes, subgraph.node_scores, edges, subgraph.edge_scores)


class Rows:
    """Some rows of a table, numbered from 0."""

    def __init__(self, table: ArrowColumns, rows: np.ndarray) -> None:
        self._table, self._rows = table, rows

    def take(self, column: str, rows: np.ndarray) -> list:
        """The values of `column` at the rows (n,)."""
        return self._table.take(column, self._rows[rows])
