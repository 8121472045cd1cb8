"""GraphML, read element by element: the nodes and edges of one graph with their data.

    python -m data_processor import graphml --input graph.graphml --output DATA/graph
"""

from __future__ import annotations

import xml.sax
import xml.sax.handler
from pathlib import Path
from typing import Any

from data_processor.graph_store import write_graph
from data_processor.importers.rows import ImportReport, require
from data_processor.importers.triple_table import TripleTable
from data_processor.schema import Rejected

NAMES, TYPES = ("name", "label", "title", "entity_id"), ("type", "entity_type", "labels")
TEXTS = ("text", "description", "summary")
RELATIONS = ("relation", "label", "predicate", "type", "name", "keywords", "description")
NO_RELATION = "linked to"


def import_graphml(source: Path, output: Path) -> ImportReport:
    """Writes a graph folder from a GraphML file.

    A node is named by its data `name`, `label`, `title` or `entity_id`, or else by its id; `type` or `entity_type` is
    its type, `text`, `description` or `summary` its text, the rest are attributes. An edge's relation is its data
    `relation`, `label`, `predicate`, `type`, `name`, `keywords` or `description`, or else "linked to". Undirected
    edges are kept once, as they are written.

    Args:
        source: the file.
        output: the graph folder.

    Raises:
        ValueError: no such file, no XML, or no usable edge.
    """
    with Rejected(output / "rejected.jsonl") as rejected:
        reader = Reader(source, rejected)
        parse(require(source), reader)
        table = TripleTable(reader.nodes, new_nodes=False)
        for line, fields in reader.edges:
            reason = table.add(fields, line)
            if reason is not None:
                rejected.add(source, line, reason, fields)
        edges = table.triples(source, rejected)
        graph = write_graph(output, reader.nodes.values(), table.relation_records({}), edges)
        summary = f"{graph.num_nodes} nodes, {graph.num_relations} relations, {graph.num_edges} edges in {output}"
        return ImportReport(reader.count, len(reader.nodes) + len(edges), rejected.count, summary)


def parse(source: Path, reader: Reader) -> None:
    """Sends a file through the reader; a name of an outside entity or file is not followed."""
    parser = xml.sax.make_parser()
    parser.setFeature(xml.sax.handler.feature_external_ges, False)
    parser.setContentHandler(reader)
    try:
        with open(source, "rb") as file:
            parser.parse(file)
    except xml.sax.SAXParseException as error:
        found = f"{source}:{error.getLineNumber()}: no XML ({error.getMessage()})"
        raise ValueError(f"{found}; the file must be GraphML") from error


class Reader(xml.sax.handler.ContentHandler):
    """Takes nodes and edges as the parser meets them; edges are resolved by the caller, when all nodes are known."""

    def __init__(self, source: Path, rejected: Rejected) -> None:
        super().__init__()
        self.count = 0
        self.nodes: dict[str, dict[str, Any]] = {}
        self.edges: list[tuple[int, list[str]]] = []
        self._source, self._rejected = source, rejected
        self._keys: dict[str, str] = {}  # id of a <key> -> its name
        self._open: list[tuple[str, int, dict[str, str], dict[str, str]]] = []  # (element, line, attributes, data)
        self._data: str | None = None  # the name of the <data> that is open
        self._text: list[str] = []

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802
        element, values = name.rpartition(":")[2], dict(attrs)
        if element == "key":
            self._keys[values.get("id", "")] = values.get("attr.name", values.get("id", ""))
        elif element in ("node", "edge"):
            self._open.append((element, self._locator.getLineNumber(), values, {}))
        elif element == "data" and self._open:
            key = values.get("key", "")
            self._data, self._text = self._keys.get(key, key), []

    def characters(self, content: str) -> None:
        if self._data is not None:
            self._text.append(content)

    def endElement(self, name: str) -> None:  # noqa: N802
        element = name.rpartition(":")[2]
        if element == "data" and self._data is not None:
            self._open[-1][3][self._data] = "".join(self._text).strip()
            self._data = None
        elif element in ("node", "edge"):
            _, line, values, data = self._open.pop()
            self.count += 1
            if element == "node":
                self._node(line, values.get("id", ""), data)
            else:
                relation = first(data, RELATIONS) or NO_RELATION
                self.edges.append((line, [values.get("source", ""), relation, values.get("target", "")]))

    def _node(self, line: int, key: str, data: dict[str, str]) -> None:
        if not key or key in self.nodes:
            reason = f"a second node {key[:80]!r}" if key else "a node without 'id'"
            self._rejected.add(self._source, line, reason, data)
            return
        name, kind, text = first(data, NAMES) or key, first(data, TYPES), first(data, TEXTS)
        used = {*NAMES, *TYPES, *TEXTS}
        attributes = {part: value for part, value in data.items() if value and part not in used}
        record: dict[str, Any] = {"name": name, "attributes": attributes}
        if kind:
            record["type"] = kind
        if text:
            record["text"] = f"{name}, {kind}: {text}" if kind else f"{name}: {text}"
        self.nodes[key] = record


def first(data: dict[str, str], names: tuple[str, ...]) -> str:
    """The first of the data that is not empty, or ""."""
    return next((data[name] for name in names if data.get(name)), "")
