"""A saved PyG Data, as .pt or .safetensors: edges, node vectors and whatever names there are.

    python -m data_processor import pyg --input data.pt --output DATA/graph
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_processor.files import named_by_values, write_manifest, write_npy
from data_processor.graph_store import FEATURE_FILES, KnowledgeGraph, write_graph
from data_processor.importers.rows import ImportReport, read_text, require
from data_processor.importers.tensors import load_plain
from data_processor.importers.triple_table import readable
from data_processor.schema import Rejected
from data_processor.text_encoder import load_encoder

NODE_NAMES, RELATION_NAMES = ("node_names", "node_name", "names"), ("relation_names", "edge_type_names", "relations")
READ = {"x", "edge_index", "edge_type", "edge_attr", "y", "num_nodes", *NODE_NAMES, *RELATION_NAMES}


def import_pyg(source: Path, output: Path) -> ImportReport:
    """Writes a graph folder from a homogeneous graph; a row is an edge.

    `edge_type` (E,) numbers relations (without it all edges are of one, "linked to"); `y` (N,) becomes the attribute
    "y". Names are lists of texts `node_names` and `relation_names` in a .pt file, or nodes.txt and relations.txt
    beside it, one a line; without them nodes are called "node 0", relations "relation 0".

    `x` (N, F) becomes node_features.npy. Relation features are the means of `edge_attr` (E, F) by relation where it
    has x's width, or else the hashed words of the relations' names. The manifest names FILE and a digest of x as
    their encoder: nothing else can be embedded like them, so questions need seed nodes. Without `x` run `embed`.

    Args:
        source: torch.save of a Data, of a list with one, or of a dict with its keys; or safetensors with its keys.
        output: the graph folder.

    Raises:
        ValueError: no such file, one that holds other classes (heterogeneous data among them), or tensors that do not
            fit together.
    """
    data = single(load_plain(require(source)), source)
    with Rejected(output / "rejected.jsonl") as rejected:
        edges = edge_rows(data, source)
        nodes = node_records(data, edges, source)
        relations = relation_names(data, edges, source)
        kept = usable(edges, len(nodes), len(relations), source, rejected)
        records = [{"name": name, "text": readable(name)} for name in relations]
        graph = write_graph(output, nodes, records, edges[kept])
        if data.get("x") is not None:
            graph = write_features(graph, data, edges, relations, source)
        unread = sorted(key for key, value in data.items() if key not in READ and value is not None)
        left = f"; left out: {', '.join(unread)}" if unread else ""
        counts = f"{graph.num_nodes} nodes, {graph.num_relations} relations, {graph.num_edges} edges"
        summary = f"{counts} in {output}{left}"
        return ImportReport(len(edges), int(kept.sum()), rejected.count, summary)


def single(value: Any, source: Path) -> dict[str, Any]:
    """The one graph of a file; ValueError when it holds none or several."""
    items = value if isinstance(value, list) else [value]
    if len(items) != 1 or not isinstance(items[0], dict) or "edge_index" not in items[0]:
        found = f"{len(items)} graphs" if len(items) != 1 else "no 'edge_index'"
        raise ValueError(f"{source} holds {found}; save one homogeneous Data, or a dict with edge_index")
    return items[0]


def array(data: dict[str, Any], key: str, shape: tuple[int | None, ...], source: Path) -> np.ndarray:
    """A tensor of the file as an array; ValueError when its shape is another (None: any size)."""
    try:
        value = np.asarray(data[key])
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{source}: {key} is no plain tensor ({error}); save it dense, on the CPU") from error
    sizes_agree = all(size in (None, found) for size, found in zip(shape, value.shape, strict=False))
    if value.ndim != len(shape) or not sizes_agree:
        wanted = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"{source}: {key} has shape {value.shape}, it must be {wanted}")
    return value


def edge_rows(data: dict[str, Any], source: Path) -> np.ndarray:
    """The edges (E, 3) int64 [source, relation, target]."""
    ends = array(data, "edge_index", (2, None), source)
    types = np.zeros(ends.shape[1], dtype=np.int64)
    if data.get("edge_type") is not None:
        types = array(data, "edge_type", (ends.shape[1],), source)
    return np.stack([ends[0], types, ends[1]], axis=1).astype(np.int64)


def names_of(data: dict[str, Any], keys: tuple[str, ...], path: Path) -> list[str]:
    """The names under one of the keys, or the lines of the file beside it; none where there is neither."""
    found = next((data[key] for key in keys if data.get(key) is not None), None)
    if found is not None:
        return [str(name) for name in found]
    return read_text(path).splitlines() if path.is_file() else []


def node_records(data: dict[str, Any], edges: np.ndarray, source: Path) -> list[dict[str, Any]]:
    """The nodes as `write_graph` takes them."""
    names = names_of(data, NODE_NAMES, source.with_name("nodes.txt"))
    if data.get("x") is not None:
        count = len(data["x"])
    else:
        count = int(data.get("num_nodes") or len(names) or edges[:, [0, 2]].max(initial=-1) + 1)
    if names and len(names) != count:
        raise ValueError(f"{source}: {len(names)} names of nodes for {count} nodes; give one name a node")
    records: list[dict[str, Any]] = [{"name": name} for name in names or (f"node {i}" for i in range(count))]
    if data.get("y") is not None and len(data["y"]) == count:
        for record, label in zip(records, np.asarray(data["y"]).tolist(), strict=True):
            record["attributes"] = {"y": label}
    return records


def relation_names(data: dict[str, Any], edges: np.ndarray, source: Path) -> list[str]:
    """The names of the relations, given or made up."""
    names = names_of(data, RELATION_NAMES, source.with_name("relations.txt"))
    if names:
        return names
    if data.get("edge_type") is None:
        return ["linked to"]
    return [f"relation {number}" for number in range(int(edges[:, 1].max(initial=-1)) + 1)]


def usable(edges: np.ndarray, nodes: int, relations: int, source: Path, rejected: Rejected) -> np.ndarray:
    """(E,) bool: the first of equal edges whose ends and relation are there; others are rejected by place from 1."""
    ends = edges[:, [0, 2]]
    dangling = ((ends < 0) | (ends >= nodes)).any(axis=1) | (edges[:, 1] < 0) | (edges[:, 1] >= relations)
    first = np.zeros(len(edges), dtype=bool)
    first[np.unique(edges, axis=0, return_index=True)[1]] = True
    for row in np.flatnonzero(dangling | ~first).tolist():
        reason = "the same edge stands earlier"
        if dangling[row]:
            reason = f"an id is out of range: there are {nodes} nodes and {relations} relations"
        rejected.add(source, row + 1, reason, edges[row].tolist())
    return first & ~dangling


def write_features(
    graph: KnowledgeGraph, data: dict[str, Any], edges: np.ndarray, relations: list[str], source: Path
) -> KnowledgeGraph:
    """Writes x and the relations' vectors beside the graph, its manifest last, and opens it again."""
    vectors = array(data, "x", (graph.num_nodes, None), source).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError(f"{source}: x holds values that are not finite; repair them, or leave x out and run embed")
    width = vectors.shape[1]
    write_npy(graph.path / "node_features.npy", vectors)
    write_npy(graph.path / "relation_features.npy", relation_vectors(data, edges, relations, width, source))
    encoder = named_by_values(f"given:{source.name}", vectors)
    entries = {**graph.manifest, "text_encoder": encoder, "feature_width": width}
    write_manifest(graph.path, entries, [*graph.manifest["bytes"], *FEATURE_FILES])
    return KnowledgeGraph.open(graph.path)


def relation_vectors(
    data: dict[str, Any], edges: np.ndarray, relations: list[str], width: int, source: Path
) -> np.ndarray:
    """(R, F) float32: means of edge_attr by relation, or the hashed words of the names."""
    given = data.get("edge_attr")
    if given is None or given.ndim != 2 or given.shape[1] != width:
        return load_encoder(f"hashing:{width}").encode([readable(name) for name in relations])
    values = array(data, "edge_attr", (len(edges), width), source).astype(np.float32)
    inside = (edges[:, 1] >= 0) & (edges[:, 1] < len(relations))
    sums = np.zeros((len(relations), width), dtype=np.float32)
    np.add.at(sums, edges[inside, 1], values[inside])
    counts = np.bincount(edges[inside, 1], minlength=len(relations))
    return sums / np.maximum(counts, 1)[:, None].astype(np.float32)
