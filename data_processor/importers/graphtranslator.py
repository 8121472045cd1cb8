"""GraphTranslator (Zhang et al. 2024, arXiv 2402.07197): node vectors and summaries in one CSV, read and written.

    python -m data_processor import graphtranslator --input summary_embeddings.csv --output DATA
    python -m data_processor export graphtranslator --data DATA --output summary_embeddings.csv
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_processor.graph_store import KnowledgeGraph, write_graph
from data_processor.importers.rows import ImportReport, RowReader, require
from data_processor.node_stars import FILE, read_summaries
from data_processor.node_vectors import write_vectors
from data_processor.producer import Settings, Splits
from data_processor.schema import NodeSummary, Rejected, atomic_write, to_json, write_jsonl

COLUMNS = ["node_id", "embedding", "paper_summary", "citepapers_summary", "title"]
EDGES = "sample_neighbor_df.csv"
EDGE_COLUMNS = ["src_node", "dst_node"]
ENCODER = "graphtranslator"  # what made the vectors, as the manifest names it


class Row(NamedTuple):
    """One row that can be used."""

    id: str
    vector: np.ndarray
    summary: str
    neighbours: str
    title: str


def import_graphtranslator(source: Path, output: Path) -> ImportReport:
    """Writes a dataset folder: graph/ with the vectors as node features, and summaries.jsonl.

    Edges are those of sample_neighbor_df.csv, where that lies beside the CSV; without it the graph has none.

    Args:
        source: summary_embeddings.csv, or the folder that holds it.
        output: the dataset folder.

    Raises:
        ValueError: no such file, other columns, or no usable row.
    """
    path = require(source) / "summary_embeddings.csv" if require(source).is_dir() else source
    with Rejected(output / "rejected.jsonl") as rejected:
        reader = RowReader(rejected)
        rows = read_rows(require(path), reader)
        if not rows:
            raise ValueError(f"{path} has no usable row; {rejected.count} were rejected, see {rejected.path}")
        places = {row.id: place for place, row in enumerate(rows)}
        edges = read_edges(path.parent / EDGES, places, reader)
    nodes = ({"name": row.title or row.id, "type": "paper", "attributes": {"node_id": row.id}} for row in rows)
    relations = [{"name": "sampled with"}]
    write_graph(output / "graph", nodes, relations, np.array(edges, dtype=np.int64), may_lack_edges=True)
    graph = write_vectors(output / "graph", np.stack([row.vector for row in rows]), ENCODER)
    splits = Splits(output, Settings())
    pairs = (
        NodeSummary(place, row.summary, row.neighbours or None, split=splits.of(place), neighbour_nodes=tuple(
            sorted(set(graph.neighbours(place)[1].tolist()) - {place})))
        for place, row in enumerate(rows)
    )  # fmt: skip
    write_jsonl(output / FILE, map(to_json, pairs))
    width = graph.node_features.shape[1]
    summary = f"{len(rows)} nodes with vectors of {width}, {graph.num_edges} edges, {len(rows)} summaries in {output}"
    return ImportReport(reader.count, reader.count - rejected.count, rejected.count, summary)


def read_rows(path: Path, reader: RowReader) -> list[Row]:
    """The usable rows: a finite vector as wide as the first one, a summary, an id of its own."""
    rows: dict[str, Row] = {}
    columns: list[str] | None = None
    for number, fields in reader.fields(path, ","):
        if columns is None:
            columns = fields
            reader.count -= 1
            if missing := sorted(set(COLUMNS) - set(columns)):
                raise ValueError(f"{path} has the columns {', '.join(columns)[:200]}; {missing[0]!r} is missing")
            continue
        found = row_of(dict(zip(columns, fields, strict=False)), rows)
        if isinstance(found, str):
            reader.reject(path, number, found, ",".join(fields[:1] + fields[2:]))
        else:
            rows[found.id] = found
    return list(rows.values())


def row_of(fields: dict[str, str], rows: dict[str, Row]) -> Row | str:
    """The row, or why it cannot be used."""
    if len(fields) < len(COLUMNS):
        return f"{len(fields)} fields, expected {len(COLUMNS)}"
    try:
        vector = np.array(fields["embedding"].split(","), dtype=np.float32)
    except ValueError:
        return "the embedding is no comma-separated list of numbers"
    width = len(next(iter(rows.values())).vector) if rows else len(vector)
    if len(vector) != width or not np.isfinite(vector).all():
        return f"the embedding must be {width} finite numbers"
    if not fields["paper_summary"].strip("- "):
        return "there is no summary"
    if fields["node_id"] in rows:
        return f"node {fields['node_id']} stands in an earlier row"
    return Row(fields["node_id"], vector, *(fields[name] for name in COLUMNS[2:]))


def read_edges(path: Path, places: dict[str, int], reader: RowReader) -> list[tuple[int, int, int]]:
    """The edges between nodes of the CSV; others are rejected."""
    edges = []
    for number, fields in reader.fields(path, ",") if path.is_file() else ():
        if fields == EDGE_COLUMNS:
            reader.count -= 1
        elif len(fields) == 2 and fields[0] in places and fields[1] in places:
            edges.append((places[fields[0]], 0, places[fields[1]]))
        else:
            reader.reject(path, number, "not two ids of nodes that have a summary", ",".join(fields))
    return edges


def export_graphtranslator(data: Path, output: Path) -> str:
    """Writes summary_embeddings.csv of a dataset folder, whole or not at all; returns what was done.

    Raises:
        ValueError: the graph has no vectors.
    """
    graph = KnowledgeGraph.open(data / "graph")
    if graph.node_features is None:
        raise ValueError(f"{graph.path} has no vectors; run: python -m data_processor embed --graph {graph.path}")
    count = 0
    with atomic_write(output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for pair in read_summaries(data / FILE):
            node = graph.node(pair.node)
            vector = ", ".join(map(str, np.asarray(graph.node_features[pair.node], dtype=np.float32)))
            name = node["attributes"].get("node_id", pair.node)
            summary = pair.summary + (f"\nKey words: {', '.join(pair.key_words)}" if pair.key_words else "")
            writer.writerow([name, vector, summary, pair.neighbours or "-", node["name"]])
            count += 1
    return f"{count} rows in {output}"
