"""KnowledgeGraph: a graph of any size read from memory-mapped arrays: neighbours, subgraphs and their text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from data_processor.adjacency import ranges
from data_processor.files import ArrowColumns, read_manifest, read_npy
from data_processor.graph_text import cut_rows, join_tables, join_triples, table_rows, triple_rows
from data_processor.schema import Document, Subgraph

if TYPE_CHECKING:
    from torch_geometric.data import Data

TEXT = pa.large_string()
NODE_SCHEMA = pa.schema([("id", pa.int64()), ("name", TEXT), ("type", TEXT), ("text", TEXT), ("attributes", TEXT)])


class KnowledgeGraph:
    """A whole graph on disk. Node, relation and edge ids are row numbers from 0; edges are [source, relation, target].

    Attributes:
        num_nodes, num_edges, num_relations, num_documents: its size.
        text_encoder: name of the encoder of the features; None before `embed_graph`.
        edges: (E, 3) int64, sorted by source. out_offsets, in_offsets: (N + 1,) int64. in_edges: (E,) int64, rows of
            `edges` sorted by target. All four are memory maps.
        node_features, relation_features: (N, F) and (R, F) memory maps, float16 or float32; None before `embed_graph`.
        edge_features, edge_sentences: (S, F) vectors of the edges' distinct sentences, (E,) the sentence of each edge;
            None unless `embed_graph` was asked for them.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        counts = manifest["counts"]
        self.num_nodes, self.num_edges, self.num_relations = counts["nodes"], counts["edges"], counts["relations"]
        self.num_documents: int = counts["documents"]
        self.text_encoder: str | None = manifest["text_encoder"]
        self.edges = self._array("edges.npy", (self.num_edges, 3))
        self.out_offsets = self._array("out_offsets.npy", (self.num_nodes + 1,))
        self.in_offsets = self._array("in_offsets.npy", (self.num_nodes + 1,))
        self.in_edges = self._array("in_edges.npy", (self.num_edges,))
        self.node_features = self._features("node_features.npy", self.num_nodes)
        self.relation_features = self._features("relation_features.npy", self.num_relations)
        self.edge_features = self.edge_sentences = None
        if manifest.get("edge_sentences"):
            self.edge_features = self._features("edge_features.npy", manifest["edge_sentences"])
            self.edge_sentences = self._array("edge_sentences.npy", (self.num_edges,))
        self._nodes = ArrowColumns(path / "nodes.arrow")
        self._relations = ArrowColumns(path / "relations.arrow")

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> KnowledgeGraph:
        """Opens the graph in folder `path`, reading the manifest and the files' heads only.

        Args:
            verify: also compare the checksum of every file, which reads them all.

        Raises:
            ValueError: no whole graph there, files that are missing or changed, arrays that do not fit together.
        """
        return cls(Path(path), read_manifest(Path(path), "graph", verify))

    def __reduce__(self) -> tuple:
        return KnowledgeGraph.open, (str(self.path),)

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = read_npy(self.path / name)
        if array.shape != shape:
            found = f"{self.path / name} has shape {array.shape}, the manifest says {shape}"
            raise ValueError(f"{found}; write the graph again")
        return array

    def _features(self, name: str, rows: int) -> np.ndarray | None:
        width = self.manifest["feature_width"]
        return None if width is None else self._array(name, (rows, width))

    @cached_property
    def relation_directions(self) -> np.ndarray:
        """The relation features (R, F) as unit vectors, float32, kept in memory."""
        vectors = np.asarray(self.relation_features, dtype=np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _ids(self, ids: Any, count: int, kind: str) -> np.ndarray:
        array = np.atleast_1d(np.asarray(ids))
        if array.size == 0:
            return array.reshape(-1).astype(np.int64)
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{kind} ids must be whole numbers, got {array.dtype}")
        wrong = array[(array < 0) | (array >= count)]
        if wrong.size:
            found = f"{kind} id {int(wrong[0])} is out of range"
            raise ValueError(f"{found}: the graph in {self.path} has {count} {kind}s, ids 0 to {count - 1}")
        return array.reshape(-1).astype(np.int64)

    def node_name(self, ids: Any) -> list[str]:
        """Names of the nodes `ids` (array-like of ints)."""
        return self._nodes.take("name", self._ids(ids, self.num_nodes, "node"))

    def node_type(self, ids: Any) -> list[str | None]:
        """Types of the nodes; None where none was given."""
        return self._nodes.take("type", self._ids(ids, self.num_nodes, "node"))

    def node_text(self, ids: Any) -> list[str]:
        """Texts of the nodes; "name, type" or the name where none was given."""
        ids = self._ids(ids, self.num_nodes, "node")
        columns = (self._nodes.take(column, ids) for column in ("name", "type", "text"))
        return [text_or_name(*values) for values in zip(*columns, strict=True)]

    def relation_name(self, ids: Any) -> list[str]:
        """Names of the relations `ids`."""
        return self._relations.take("name", self._ids(ids, self.num_relations, "relation"))

    def relation_text(self, ids: Any) -> list[str]:
        """Texts of the relations; the name where none was given."""
        ids = self._ids(ids, self.num_relations, "relation")
        names, texts = self._relations.take("name", ids), self._relations.take("text", ids)
        return [text_or_name(name, None, text) for name, text in zip(names, texts, strict=True)]

    def node(self, id: int) -> dict[str, Any]:
        """One node: {"id", "name", "type", "text", "attributes"}."""
        row = self._ids(id, self.num_nodes, "node")
        record = {column: self._nodes.take(column, row)[0] for column in NODE_SCHEMA.names}
        return {**record, "text": self.node_text(row)[0], "attributes": json.loads(record["attributes"] or "{}")}

    def documents(self, rows: Any) -> list[Document]:
        """The documents of these row numbers."""
        rows = self._ids(rows, self.num_documents, "document")
        columns = ArrowColumns(self.path / "documents.arrow") if len(rows) else None
        values = [columns.take(name, rows) if columns else [] for name in ("id", "title", "text")]
        return [Document(*fields) for fields in zip(*values, strict=True)]

    @cached_property
    def document_nodes(self) -> np.ndarray:
        """(k, 2) [document, node]: which nodes a document names; (0, 2) for a graph without documents."""
        has_documents = "document_nodes.npy" in self.manifest["bytes"]
        return read_npy(self.path / "document_nodes.npy") if has_documents else np.zeros((0, 2), dtype=np.int64)

    def iter_names(self) -> Iterator[str]:
        """All node names in the order of their ids, read in batches."""
        for batch in self._nodes.batches():
            yield from batch.column("name").to_pylist()

    def iter_types(self) -> Iterator[str | None]:
        """All node types in the order of their ids, None where there is none."""
        for batch in self._nodes.batches():
            yield from batch.column("type").to_pylist()

    def iter_texts(self) -> Iterator[str]:
        """All node texts in the order of their ids, read in batches."""
        for batch in self._nodes.batches():
            columns = (batch.column(column).to_pylist() for column in ("name", "type", "text"))
            for values in zip(*columns, strict=True):
                yield text_or_name(*values)

    def neighbours(self, node: int, direction: str = "both") -> tuple[np.ndarray, np.ndarray]:
        """Edges at a node: (row numbers of `edges` (k,), ids of the nodes at their other ends (k,)).

        Args:
            direction: "out" (node is the source), "in" (node is the target) or "both"; a self-loop counts once.
        """
        if direction not in ("both", "out", "in"):
            raise ValueError(f"direction must be 'both', 'out' or 'in', got {direction!r}")
        (node,) = self._ids(node, self.num_nodes, "node")
        out_rows = np.arange(self.out_offsets[node], self.out_offsets[node + 1])
        in_rows = np.asarray(self.in_edges[self.in_offsets[node] : self.in_offsets[node + 1]])
        out_ends, in_ends = self.edges[out_rows, 2], self.edges[in_rows, 0]
        if direction == "out":
            return out_rows, out_ends
        if direction == "in":
            return in_rows, in_ends
        seen_once = in_ends != node
        return np.concatenate([out_rows, in_rows[seen_once]]), np.concatenate([out_ends, in_ends[seen_once]])

    def out_edges(self, nodes: np.ndarray) -> np.ndarray:
        """Row numbers of all edges whose source is one of `nodes` (n,), node by node."""
        starts, stops = self.out_offsets[nodes], self.out_offsets[nodes + 1]
        return ranges(starts, stops)

    def in_edges_of(self, nodes: np.ndarray) -> np.ndarray:
        """Row numbers of all edges whose target is one of `nodes` (n,), node by node."""
        return self.in_edges[ranges(self.in_offsets[nodes], self.in_offsets[nodes + 1])]

    def subgraph(self, nodes: Any, edges: Any, node_scores: Any = None, edge_scores: Any = None) -> Subgraph:
        """A checked subgraph: each node and edge once, best score first, endpoints of its edges among its nodes.

        Args:
            nodes: (n,) node ids. edges: (e,) row numbers of `edges`.
            node_scores, edge_scores: (n,) and (e,); without them the given order stands and scores are 0. A node that
                only an edge brings in gets the lowest score (at most 0).

        Raises:
            ValueError: an id out of range, or as many scores as there are no ids.
        """
        nodes, edges = self._ids(nodes, self.num_nodes, "node"), self._ids(edges, self.num_edges, "edge")
        nodes, node_scores = ranked(nodes, node_scores, "node")
        edges, edge_scores = ranked(edges, edge_scores, "edge")
        ends = self.edges[edges][:, [0, 2]].reshape(-1)
        missing = ends[~np.isin(ends, nodes)]
        _, first = np.unique(missing, return_index=True)
        missing = missing[np.sort(first)]
        lowest = min(0.0, float(node_scores.min(initial=0.0)))
        scores = np.concatenate([node_scores, np.full(len(missing), lowest, dtype=np.float32)])
        return Subgraph(np.concatenate([nodes, missing]), scores, edges, edge_scores)

    def induced_subgraph(self, nodes: Any, node_scores: Any = None) -> Subgraph:
        """The given nodes and every edge between two of them; edges in the order of their row numbers."""
        nodes = self._ids(nodes, self.num_nodes, "node")
        sources = np.unique(nodes)
        rows = self.out_edges(sources)
        return self.subgraph(nodes, rows[np.isin(self.edges[rows, 2], sources)], node_scores)

    def local(self, subgraph: Subgraph) -> tuple[np.ndarray, np.ndarray]:
        """(edge_index (2, e) int64: positions in subgraph.nodes, source above target; relation ids (e,) int64)."""
        triples = self.edges[subgraph.edges]
        order = np.argsort(subgraph.nodes)
        found = np.searchsorted(subgraph.nodes, triples[:, [0, 2]].T, sorter=order)
        return order[found].reshape(2, -1), triples[:, 1]

    def to_text(
        self, subgraph: Subgraph, max_tokens: int | None = None, tokenizer: Any = None, style: str = "triples"
    ) -> str:
        """The subgraph in words.

        Args:
            subgraph: of this graph.
            max_tokens: rows are left out whole, worst first, nodes and edges alike, until so many tokens hold it.
            tokenizer: a Hugging Face tokenizer, needed with `max_tokens`.
            style: "triples": a line `head | relation | tail` an edge and a line for each node without edges;
                `parse_triples` reads it back. "tables": CSV tables `node_id,node_attr` and `src,edge_attr,dst` with
                local ids, the form of G-Retriever (He et al. 2024, arXiv 2402.07630).
        """
        return self.text_rows(subgraph, max_tokens, tokenizer, style)[0]

    def text_rows(
        self, subgraph: Subgraph, max_tokens: int | None = None, tokenizer: Any = None, style: str = "triples"
    ) -> tuple[str, int, int]:
        """As `to_text`, with the numbers of rows kept and of rows there were."""
        if style not in ("triples", "tables"):
            raise ValueError(f"style must be 'triples' or 'tables', got {style!r}")
        if max_tokens is not None and tokenizer is None:
            raise ValueError("max_tokens needs a tokenizer to count with; pass tokenizer=")
        edge_index, relation_ids = self.local(subgraph)
        unique, places = np.unique(relation_ids, return_inverse=True)
        names = self.relation_name(unique)
        relations = [names[place] for place in places]
        if style == "triples":
            rows, join = triple_rows(self.node_name(subgraph.nodes), relations, edge_index), join_triples
        else:
            rows, join = table_rows(self.node_text(subgraph.nodes), relations, edge_index), join_tables
        kept = rows if max_tokens is None else cut_rows(rows, join, max_tokens, tokenizer)
        return join(kept), len(kept), len(rows)

    def to_pyg(self, subgraph: Subgraph | None = None) -> Data:
        """The subgraph, or the whole graph, as PyG Data: edge_index, edge_type, node_id; embedded: x, edge_attr."""
        import torch
        from torch_geometric.data import Data

        if subgraph is None:
            zeros = np.zeros(self.num_nodes, np.float32), np.zeros(self.num_edges, np.float32)
            subgraph = Subgraph(np.arange(self.num_nodes), zeros[0], np.arange(self.num_edges), zeros[1])
        edge_index, relations = self.local(subgraph)
        data = Data(edge_index=torch.from_numpy(edge_index), num_nodes=len(subgraph.nodes))
        data.edge_type, data.node_id = torch.from_numpy(relations), torch.from_numpy(subgraph.nodes)
        if self.node_features is not None:
            data.x = torch.from_numpy(self.node_features[subgraph.nodes].astype(np.float32))
            data.edge_attr = torch.from_numpy(self.relation_features[relations].astype(np.float32))
        return data


def text_or_name(name: str, kind: str | None, text: str | None) -> str:
    """The text of a node or relation, or what stands for it."""
    if text is not None:
        return text
    return name if kind is None else f"{name}, {kind}"


def ranked(ids: np.ndarray, scores: Any, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Each id once with its best score, best first; ties and missing scores (0) keep the given order."""
    values = np.zeros(len(ids), np.float32) if scores is None else np.asarray(scores, dtype=np.float32).reshape(-1)
    if len(values) != len(ids):
        raise ValueError(f"{len(ids)} {kind} ids, {len(values)} {kind} scores; give one score an id")
    order = np.argsort(-values, kind="stable")
    _, first = np.unique(ids[order], return_index=True)
    kept = order[np.sort(first)]
    return ids[kept], values[kept]
