"""A live Neo4j database: two Cypher queries, for nodes and for relationships, streamed through its driver.

    NEO4J_PASSWORD=... python -m data_processor import neo4j --input bolt://localhost:7687 --output DATA/graph
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_processor.graph_store import write_graph
from data_processor.importers.rows import ImportReport
from data_processor.importers.triple_table import TripleTable
from data_processor.schema import Rejected

NODE_QUERY = "MATCH (n) RETURN elementId(n) AS id, labels(n) AS labels, properties(n) AS properties"
RELATIONSHIP_QUERY = (
    "MATCH (a)-[r]->(b) RETURN elementId(a) AS source, type(r) AS relation, elementId(b) AS target"
)
NAMES, TEXTS = ("name", "title", "label"), ("text", "description", "summary")
FETCH_SIZE = 1000  # records that travel at once


def import_neo4j(
    source: str | Path,
    output: Path,
    node_query: str = NODE_QUERY,
    relationship_query: str = RELATIONSHIP_QUERY,
    user: str = "neo4j",
    database: str | None = None,
) -> ImportReport:
    """Writes a graph folder from a database; nothing is written to the database.

    Args:
        source: its address, bolt://HOST:7687 or neo4j+s://HOST. The password is read from NEO4J_PASSWORD alone.
        output: the graph folder.
        node_query: Cypher that returns `id` and, as far as known, `name`, `type` or `labels`, `text` and `properties`.
            Without `name` and `text` the properties name, title, label and text, description, summary are taken.
        relationship_query: Cypher that returns `source`, `relation` and `target`; source and target are ids as above.
        user, database: of the server; by default its default database.

    Raises:
        ValueError: no driver installed, no password set, a server that does not answer, or Cypher it refuses.
    """
    password = os.environ.get("NEO4J_PASSWORD")
    if not password:
        raise ValueError("NEO4J_PASSWORD is not set; export the password of the database there")
    with Rejected(output / "rejected.jsonl") as rejected:
        nodes: dict[str, dict[str, Any]] = {}
        rows = 0
        for rows, row in enumerate(records(source, (user, password), database, node_query), start=1):
            reason = add_node(nodes, row)
            if reason is not None:
                rejected.add("node_query", rows, reason, row)
        table = TripleTable(nodes, new_nodes=False)
        edges, count = read_relationships(
            records(source, (user, password), database, relationship_query), table, rejected
        )
        graph = write_graph(output, nodes.values(), table.relation_records({}), edges)
        summary = f"{graph.num_nodes} nodes, {graph.num_relations} relations, {graph.num_edges} edges in {output}"
        return ImportReport(rows + count, len(nodes) + len(edges), rejected.count, summary)


def records(
    source: str | Path, user: tuple[str, str], database: str | None, query: str
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a read-only Cypher query as they arrive."""
    try:
        import neo4j
    except ImportError as error:
        raise ValueError("reading from Neo4j needs its driver; run: pip install neo4j") from error
    try:
        with (
            neo4j.GraphDatabase.driver(str(source), auth=user) as driver,
            driver.session(
                database=database, default_access_mode=neo4j.READ_ACCESS, fetch_size=FETCH_SIZE
            ) as session,
        ):
            for record in tqdm(session.run(query), desc="records", unit=" records", delay=2):
                yield record.data()
    except (neo4j.exceptions.Neo4jError, neo4j.exceptions.DriverError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{source}: {said}; check address, user, NEO4J_PASSWORD and query") from error


def add_node(nodes: dict[str, dict[str, Any]], row: dict[str, Any]) -> str | None:
    """Takes one row of the node query; returns why it cannot be taken, or None."""
    if row.get("id") in (None, ""):
        return "no 'id': the node query must return one, as in elementId(n) AS id"
    key = str(row["id"])
    if key in nodes:
        return f"a second node {key[:80]!r}"
    properties = {name: plain(value) for name, value in (row.get("properties") or {}).items()}
    labels = row.get("labels") or []
    name = row.get("name") or first_of(properties, NAMES) or key
    kind, text = row.get("type") or (labels[0] if labels else None), row.get("text") or first_of(properties, TEXTS)
    nodes[key] = {"name": str(name), "attributes": properties}
    if kind:
        nodes[key]["type"] = str(kind)
    if text:
        nodes[key]["text"] = f"{name}, {kind}: {text}" if kind else f"{name}: {text}"
    return None


def first_of(properties: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of the properties that is set, or None."""
    return next((properties[name] for name in names if properties.get(name)), None)


def plain(value: Any) -> Any:
    """A property as JSON takes it: numbers, texts and lists of them as they are; dates, points and bytes as text."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def read_relationships(
    rows: Iterator[dict[str, Any]], table: TripleTable, rejected: Rejected
) -> tuple[np.ndarray, int]:
    """The distinct triples (k, 3) of the relationship query, and the number of its rows."""
    count = 0
    for count, row in enumerate(rows, start=1):
        values = (row.get(name) for name in ("source", "relation", "target"))
        reason = table.add(["" if value is None else str(value) for value in values], count)
        if reason is not None:
            rejected.add("relationship_query", count, reason, row)
    return table.triples(Path("relationship_query"), rejected), count
