"""A graph as tables: nodes and edges, perhaps relations, as .csv or .parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from data_processor.graph_store import write_graph
from data_processor.importers.rows import ImportReport, RowReader
from data_processor.importers.triple_table import TripleTable

NODE_COLUMNS = {"id", "name", "type", "text"}
ALIASES = {
    "head": "source", "src": "source", "subject": "source", "tail": "target", "dst": "target", "object": "target",
    "predicate": "relation", "edge_type": "relation", "description": "text", "node_id": "id", "label": "type",
}  # fmt: skip


def find_table(source: Path, stem: str) -> Path | None:
    """The table `stem`.csv or `stem`.parquet in a folder, or None."""
    return next((path for path in (source / f"{stem}.parquet", source / f"{stem}.csv") if path.is_file()), None)


def import_tables(source: Path, output: Path, reader: RowReader) -> ImportReport:
    """Writes the graph of nodes, edges and perhaps relations tables.

    Nodes: `name` (or `id`), perhaps `type` and `text`; other columns become attributes. Edges: `source`, `relation`,
    `target`; they name nodes by `id` where nodes have one, by `name` otherwise. Relations: `name`, perhaps `text`.
    The usual other words for these columns are understood (head, src; tail, dst; predicate; ...).
    """
    nodes = read_nodes(source, reader)
    relations = read_relations(source, reader)
    edges_path = find_table(source, "edges")
    assert edges_path is not None
    table = TripleTable(nodes, relations, new_nodes=not nodes, new_relations=not relations)
    triples = read_edges(edges_path, table, reader)
    records = list(nodes.values()) or table.node_records({})
    texts = {name: text for name, text in relations.items() if text}
    graph = write_graph(output, records, table.relation_records(texts), triples)
    summary = f"{graph.num_nodes} nodes, {graph.num_relations} relations, {graph.num_edges} edges in {output}"
    kept = len(triples) + len(nodes) + len(relations)
    return ImportReport(reader.count, kept, reader.rejected.count, summary)


def read_edges(path: Path, table: TripleTable, reader: RowReader) -> np.ndarray:
    """The distinct triples (k, 3) of a table of edges as ids of `table`."""
    for line, row in table_rows(path, reader):
        reason = table.add([row.get(column, "") for column in ("source", "relation", "target")], line)
        if reason is not None:
            reader.reject(path, line, reason, row)
    return table.triples(path, reader.rejected)


def read_nodes(source: Path, reader: RowReader) -> dict[str, dict[str, Any]]:
    """Node records by the key that edges use."""
    nodes: dict[str, dict[str, Any]] = {}
    path = find_table(source, "nodes")
    for line, row in table_rows(path, reader) if path else ():
        key, name = row.get("id") or row.get("name"), row.get("name") or row.get("id")
        if not key or not name:
            reader.reject(path, line, "a node without 'id' and 'name'", row)
        elif key in nodes:
            reader.reject(path, line, f"a second node {key[:80]!r}; nodes need different ids (or names)", row)
        else:
            attributes = {column: value for column, value in row.items() if value and column not in NODE_COLUMNS}
            optional = {column: row[column] for column in ("type", "text") if row.get(column)}
            nodes[key] = {"name": name, **optional, "attributes": attributes}
    return nodes


def read_relations(source: Path, reader: RowReader) -> dict[str, str]:
    """Texts of relations by name; "" where there is none."""
    relations: dict[str, str] = {}
    path = find_table(source, "relations")
    for line, row in table_rows(path, reader) if path else ():
        name = row.get("name") or row.get("relation") or row.get("id")
        if not name or name in relations:
            reason = "a relation without 'name'" if not name else f"a second relation {name[:80]!r}"
            reader.reject(path, line, reason, row)
        else:
            relations[name] = row.get("text", "")
    return relations


def table_rows(path: Path, reader: RowReader) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line number, {column: value as text}) of a table."""
    if path.suffix == ".parquet":
        for line, row in parquet_rows(path):
            reader.count += 1
            yield line, row
        return
    columns: list[str] = []
    for line, fields in reader.fields(path, ","):
        if not columns:
            reader.count -= 1
            columns = [canonical(field) for field in fields]
        elif len(fields) != len(columns):
            reader.reject(path, line, f"{len(fields)} fields, the first line names {len(columns)} columns", fields)
        else:
            yield line, dict(zip(columns, fields, strict=True))


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (row number from 1, {column: value as text}) of a parquet file, read in batches."""
    start = 1
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        columns = [canonical(name) for name in batch.schema.names]
        for line, row in enumerate(batch.to_pylist(), start=start):
            values = ("" if value is None else str(value).strip() for value in row.values())
            yield line, dict(zip(columns, values, strict=True))
        start += batch.num_rows


def canonical(column: str) -> str:
    """The one name of a column."""
    column = column.strip().lower().lstrip(":")
    return ALIASES.get(column, column)
