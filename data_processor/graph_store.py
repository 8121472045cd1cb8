"""The graph store: a knowledge graph written to disk once, embedded once, and opened in milliseconds.

    write_graph("DATA/graph", nodes, relations, edges)
    embed_graph("DATA/graph", load_encoder("hashing"))
    graph = KnowledgeGraph.open("DATA/graph")
    print(graph.to_text(graph.induced_subgraph([0, 1, 2])))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_processor.adjacency import offsets
from data_processor.edge_sentences import distinct_sentences, sentences
from data_processor.embedding_cache import EmbeddingCache, Encoder
from data_processor.files import blocks, remove, write_arrow, write_manifest, write_npy
from data_processor.graph_text import parse_triples
from data_processor.knowledge_graph import NODE_SCHEMA, KnowledgeGraph
from data_processor.schema import Document
from data_processor.subgraph_store import SubgraphStore, write_subgraphs

__all__ = [
    "Encoder", "KnowledgeGraph", "SubgraphStore", "embed_graph", "parse_triples", "write_graph", "write_subgraphs",
]  # fmt: skip

RELATION_SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.large_string()), ("text", pa.large_string())])
DOCUMENT_SCHEMA = pa.schema([(name, pa.large_string()) for name in ("id", "title", "text")])
GRAPH_FILES = ("nodes.arrow", "relations.arrow", "edges.npy", "out_offsets.npy", "in_offsets.npy", "in_edges.npy")
DOCUMENT_FILES = ("documents.arrow", "document_nodes.npy")
FEATURE_FILES = ("node_features.npy", "relation_features.npy")
EDGE_FEATURE_FILES = ("edge_features.npy", "edge_sentences.npy")


def write_graph(
    path: str | Path,
    nodes: Iterable[dict[str, Any]],
    relations: Iterable[dict[str, Any]],
    edges: np.ndarray,
    documents: Iterable[Document] | None = None,
    document_nodes: np.ndarray | None = None,
    may_lack_edges: bool = False,
) -> KnowledgeGraph:
    """Writes a graph folder (a graph that lies there is replaced) and opens it.

    Args:
        path: the folder.
        nodes: {"name", "type"?, "text"?, "attributes"?}, node i in place i; read once, in batches.
        relations: {"name", "text"?}.
        edges: (E, 3) whole numbers [source, relation, target]; kept in order of source, ties in the given order.
        documents: texts behind the graph. document_nodes: (k, 2) [document, node], row numbers of both.
        may_lack_edges: a graph of nodes alone is what was given, and no accident.

    Raises:
        ValueError: no nodes or no edges, an id out of range, a node or relation without a name or with an unknown key.
    """
    folder = Path(path)
    edges = checked_edges(edges, may_lack_edges)
    remove(folder, (*GRAPH_FILES, *DOCUMENT_FILES, *FEATURE_FILES, *EDGE_FEATURE_FILES))
    node_rows = record_batches(nodes, NODE_SCHEMA, "node")
    relation_rows = record_batches(relations, RELATION_SCHEMA, "relation")
    counts = {
        "nodes": write_arrow(folder / "nodes.arrow", NODE_SCHEMA, node_rows),
        "edges": len(edges),
        "relations": write_arrow(folder / "relations.arrow", RELATION_SCHEMA, relation_rows),
        "documents": 0,
    }
    check_range(edges[:, [0, 2]], counts["nodes"], "edge", "node")
    check_range(edges[:, 1:2], counts["relations"], "edge", "relation")
    write_edges(folder, edges, counts["nodes"])
    files = list(GRAPH_FILES)
    if documents is not None:
        counts["documents"] = write_documents(folder, documents, document_nodes, counts["nodes"])
        files += DOCUMENT_FILES
    write_manifest(folder, {"counts": counts, "text_encoder": None, "feature_width": None}, files)
    return KnowledgeGraph.open(folder)


def checked_edges(edges: np.ndarray, may_lack_edges: bool = False) -> np.ndarray:
    """Edges (E, 3) as int64, sorted by source; ValueError for another shape or type, or none where there must be."""
    edges = np.asarray(edges)
    if edges.size == 0 and may_lack_edges:
        return np.zeros((0, 3), dtype=np.int64)
    if edges.size == 0:
        raise ValueError("the graph has no edges; an import needs at least one triple that can be read")
    if edges.ndim != 2 or edges.shape[1] != 3 or not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(f"edges must be whole numbers of shape (E, 3), got {edges.dtype} of shape {edges.shape}")
    return edges[np.argsort(edges[:, 0], kind="stable")].astype(np.int64)


def check_range(ids: np.ndarray, count: int, owner: str, kind: str) -> None:
    """ValueError when one of the ids (k, c) is not in 0..count-1."""
    wrong = np.argwhere((ids < 0) | (ids >= count))
    if len(wrong):
        row, column = wrong[0]
        found = f"{owner} {row} names {kind} {ids[row, column]}"
        raise ValueError(f"{found}, but there are {count} {kind}s (ids 0 to {count - 1})")


def record_batches(records: Iterable[dict[str, Any]], schema: pa.Schema, kind: str) -> Iterator[dict[str, list]]:
    """Columns of nodes or relations in batches, ids counted from 0."""
    known = set(schema.names) - {"id"}
    start = 0
    for block in blocks(records):
        for place, record in enumerate(block):
            if not isinstance(record.get("name"), str) or not known.issuperset(record):
                keys = ", ".join(sorted(known - {"name"}))
                found = f"{kind} {start + place} is {str(record)[:80]}"
                raise ValueError(f"{found}; it needs a string 'name' and may have {keys}")
        columns: dict[str, list] = {name: [record.get(name) for record in block] for name in known}
        if "attributes" in known:
            values = columns["attributes"]
            columns["attributes"] = [json.dumps(value, ensure_ascii=False) if value else None for value in values]
        yield {"id": list(range(start, start + len(block))), **columns}
        start += len(block)
    if start == 0:
        raise ValueError(f"the graph has no {kind}s; an import needs at least one triple that can be read")


def write_edges(folder: Path, edges: np.ndarray, num_nodes: int) -> None:
    """Writes edges.npy (sorted by source) and both directions' offsets."""
    write_npy(folder / "edges.npy", edges)
    write_npy(folder / "out_offsets.npy", offsets(edges[:, 0], num_nodes))
    write_npy(folder / "in_offsets.npy", offsets(edges[:, 2], num_nodes))
    write_npy(folder / "in_edges.npy", np.argsort(edges[:, 2], kind="stable"))


def write_documents(folder: Path, documents: Iterable[Document], links: np.ndarray | None, num_nodes: int) -> int:
    """Writes documents.arrow and document_nodes.npy (k, 2) [document, node]; returns the number of documents."""
    names = DOCUMENT_SCHEMA.names
    rows = ({name: [vars(item)[name] for item in block] for name in names} for block in blocks(documents))
    count = write_arrow(folder / "documents.arrow", DOCUMENT_SCHEMA, rows)
    links = np.zeros((0, 2), dtype=np.int64) if links is None else np.asarray(links, dtype=np.int64).reshape(-1, 2)
    check_range(links[:, :1], count, "document_nodes row", "document")
    check_range(links[:, 1:], num_nodes, "document_nodes row", "node")
    write_npy(folder / "document_nodes.npy", links)
    return count


def embed_graph(
    path: str | Path,
    encoder: Encoder,
    batch_size: int = 256,
    dtype: str = "float16",
    edge_text: str | None = None,
) -> KnowledgeGraph:
    """Embeds the texts of all nodes and relations, of edges where asked, and opens the graph again.

    Each distinct string is embedded once and kept in `embedding_cache/` beside the graph's folder, keyed by encoder
    and text: a killed run goes on where it stopped, and a graph that has grown embeds only what is new. The cache may
    be deleted.

    Args:
        path: a graph folder.
        encoder: its name goes into the manifest.
        batch_size: texts a call of the encoder.
        dtype: "float16" or "float32".
        edge_text: "names" or "types": also embed a sentence an edge (see `edge_sentences`), for the edge prizes of
            `pcst`. "names" costs a vector an edge, "types" one for each distinct pair of types and relation.

    Raises:
        ValueError: another dtype or edge text, or a cache whose vectors have another width than the encoder's.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be 'float16' or 'float32', got {dtype!r}")
    graph = without_features(KnowledgeGraph.open(path))
    cache = EmbeddingCache(graph.path.parent / "embedding_cache", encoder, dtype)
    entries = {**graph.manifest, "text_encoder": encoder.name, "feature_width": encoder.dimension}
    files = list(entries["bytes"])
    cache.write_vectors(graph.iter_texts(), graph.num_nodes, graph.path / "node_features.npy", batch_size)
    relation_texts = graph.relation_text(np.arange(graph.num_relations))
    cache.write_vectors(relation_texts, graph.num_relations, graph.path / "relation_features.npy", batch_size)
    files += FEATURE_FILES
    if edge_text is not None:
        entries["edge_sentences"] = write_edge_features(graph, cache, edge_text, batch_size)
        files += EDGE_FEATURE_FILES
    write_manifest(graph.path, entries, files)
    return KnowledgeGraph.open(path)


def write_edge_features(graph: KnowledgeGraph, cache: EmbeddingCache, style: str, batch_size: int) -> int:
    """Writes the vectors of the edges' distinct sentences and each edge's place among them; returns their number."""
    rows, places = distinct_sentences(graph, style)
    write_npy(graph.path / "edge_sentences.npy", places)
    cache.write_vectors(sentences(graph, rows, style), len(rows), graph.path / "edge_features.npy", batch_size)
    return len(rows)


def without_features(graph: KnowledgeGraph) -> KnowledgeGraph:
    """The same graph, whole without its features, so that it stays whole while they are written anew."""
    if graph.text_encoder is None:
        return graph
    files = [name for name in graph.manifest["bytes"] if name not in (*FEATURE_FILES, *EDGE_FEATURE_FILES)]
    entries = {**graph.manifest, "text_encoder": None, "feature_width": None, "edge_sentences": None}
    write_manifest(graph.path, entries, files)
    for name in EDGE_FEATURE_FILES:
        (graph.path / name).unlink(missing_ok=True)
    return KnowledgeGraph.open(graph.path)
