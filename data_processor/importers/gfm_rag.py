"""Indexes of GFM-RAG: a graph of triples or of three tables, the documents behind it, and questions about them.

    python -m data_processor import gfm_rag --input hotpotqa/ --output DATA
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.graph_store import KnowledgeGraph, write_graph
from data_processor.importers.questions import (
    NameIndex,
    answers_of,
    json_items,
    question_of,
    read_object,
    split_of,
    strings,
    write_questions,
)
from data_processor.importers.rows import ImportReport, RowReader, require
from data_processor.importers.tables import table_rows
from data_processor.importers.triple_table import TripleTable
from data_processor.importers.triples import read_triples
from data_processor.schema import Document, QAPair, Rejected

PLACES = (".", "processed/stage1", "stage1", "raw")
QUESTION_FILES = ("train.json", "dev.json", "valid.json", "test.json")
CONTENT = ("description", "content", "text", "summary")  # attributes of a node that say what it is


def import_gfm_rag(source: Path, output: Path) -> ImportReport:
    """Writes a dataset folder from either version of the format.

    Version 1: kg.txt (head,relation,tail), dataset_corpus.json {document: text}, document2entities.json {document:
    [entity]}. Version 2: nodes.csv (name or uid, type, attributes), relations.csv, edges.csv, perhaps documents.json
    (without it nodes of type "document" are the documents); there a document is linked to its own node and to the
    nodes beside it. Both: train.json, test.json. Files are looked for in the folder, processed/stage1/ and raw/.
    `answer_nodes` are a question's target nodes (version 2) or supporting entities (version 1), and where it has
    neither the nodes named like an answer.

    Args:
        source: the folder of one data set.
        output: the dataset folder: graph/, qa/ and rejected.jsonl.

    Raises:
        ValueError: neither kg.txt nor nodes.csv and edges.csv, or no usable triple.
    """
    with Rejected(output / "rejected.jsonl") as rejected:
        index = Index(require(source), RowReader(rejected))
        graph = index.write(output / "graph")
        splits: dict[str, list[QAPair]] = {}
        names = NameIndex(graph.iter_names())
        for name in QUESTION_FILES:
            path = find_file(source, name)
            if path is not None:
                index.read_questions(path, names, splits)
        sizes = write_questions(output, splits)
        kept = index.kept + sum(map(len, splits.values()))
        counts = f"{graph.num_nodes} nodes, {graph.num_edges} edges, {graph.manifest['counts']['documents']} documents"
        summary = f"{counts}; questions: {sizes}; in {output}{index.left_out()}"
        return ImportReport(index.reader.count, kept, rejected.count, summary)


def find_file(source: Path, name: str) -> Path | None:
    """The file `name` of a data set in the first of PLACES that has it, or None."""
    return next((source / place / name for place in PLACES if (source / place / name).is_file()), None)


class Index:
    """The graph and documents of one data set as they are read.

    Args:
        source: its folder.
        reader: counts rows and takes the bad ones.
    """

    def __init__(self, source: Path, reader: RowReader) -> None:
        self.reader, self.source = reader, source
        self.kept = self.edge_attributes = self.unknown_nodes = 0
        self.keys: dict[str, int] = {}  # nodes by uid, or by name where they have none
        self.documents: dict[str, Document] = {}
        self.links: dict[tuple[int, int], None] = {}  # (document, node)

    def write(self, folder: Path) -> KnowledgeGraph:
        """Reads graph and documents of either version and writes them."""
        triples, tables = find_file(self.source, "kg.txt"), find_file(self.source, "nodes.csv")
        if triples is None and (tables is None or find_file(self.source, "edges.csv") is None):
            raise ValueError(f"{self.source} holds neither kg.txt nor nodes.csv with edges.csv; check --input")
        for name in ("dataset_corpus.json", "documents.json"):
            path = find_file(self.source, name)
            if path is not None and not self.documents:
                self._read_documents(path)
        nodes, table, edges = self._triples(triples) if triples is not None else self._tables(tables)
        self.kept += len(edges)
        self.keys = table.nodes
        links = np.array(list(self.links), dtype=np.int64).reshape(-1, 2)
        documents = self.documents.values() if self.documents else None
        return write_graph(folder, nodes, table.relation_records({}), edges, documents, links)

    def _read_documents(self, path: Path) -> None:
        for number, (name, value) in enumerate(read_object(path).items(), start=1):
            self.reader.count += 1
            title, text = name, value
            if isinstance(value, dict):
                title, text = value.get("title") or name, value.get("text") or value.get("content")
            if isinstance(text, str) and isinstance(title, str):
                self.documents[name] = Document(name, title, text)
                self.kept += 1
            else:
                self.reader.reject(path, number, f"the document {name[:80]!r} has no text", value)

    def _triples(self, path: Path) -> tuple[Iterable[dict[str, Any]], TripleTable, np.ndarray]:
        table = TripleTable()
        edges = read_triples(path, table, self.reader)
        linked = find_file(self.source, "document2entities.json")
        places = {name: place for place, name in enumerate(self.documents)}
        for number, (document, names) in enumerate(read_object(linked).items() if linked else (), start=1):
            for name in names if isinstance(names, list) else [names]:
                self._link(linked, number, document, name, places, table.nodes)
        return table.node_records({}), table, edges

    def _link(
        self, path: Path, number: int, document: str, name: Any, documents: dict[str, int], nodes: dict[str, int]
    ) -> None:
        self.reader.count += 1
        node = nodes.get(name.strip()) if isinstance(name, str) else None
        link = (documents.get(document), node)
        if None in link:
            unknown = f"the document {document[:80]!r}" if link[0] is None else f"the entity {str(name)[:80]!r}"
            self.reader.reject(path, number, f"{unknown} is not there", [document, name])
        elif link in self.links:
            self.reader.reject(path, number, "the document names this entity already", [document, name])
        else:
            self.links[link] = None
            self.kept += 1

    def _tables(self, path: Path) -> tuple[Iterable[dict[str, Any]], TripleTable, np.ndarray]:
        nodes = self._read_nodes(path)
        relations = find_file(self.source, "relations.csv")
        names = self._read_relations(relations) if relations else []
        table = TripleTable(nodes, names, new_nodes=False, new_relations=not names)
        edges_path = find_file(self.source, "edges.csv")
        for line, row in table_rows(edges_path, self.reader):
            reason = table.add([row.get(column, "") for column in ("source", "relation", "target")], line)
            if reason is not None:
                self.reader.reject(edges_path, line, reason, row)
            self.edge_attributes += row.get("attributes", "") not in ("", "{}")
        edges = table.triples(edges_path, self.reader.rejected)
        if not self.documents:
            texts = {key: node for key, node in nodes.items() if node.get("type") == "document"}
            self.documents = {key: Document(key, node["name"], node.get("text", "")) for key, node in texts.items()}
        self._link_neighbours(table.nodes, edges)
        return nodes.values(), table, edges

    def _read_nodes(self, path: Path) -> dict[str, dict[str, Any]]:
        nodes: dict[str, dict[str, Any]] = {}
        for line, row in table_rows(path, self.reader):
            key = row.get("uid") or row.get("name", "")
            attributes = attributes_of(row.get("attributes", ""))
            if not key or key in nodes or isinstance(attributes, str):
                reason = f"a second node {key[:80]!r}" if key else "a node without 'name' or 'uid'"
                self.reader.reject(path, line, attributes if isinstance(attributes, str) else reason, row)
                continue
            nodes[key] = node_record(row.get("name") or key, row.get("type", ""), attributes)
        self.kept += len(nodes)
        return nodes

    def _read_relations(self, path: Path) -> list[str]:
        names: dict[str, None] = {}
        for line, row in table_rows(path, self.reader):
            name = row.get("name", "")
            if name and name not in names:
                names[name] = None
            else:
                reason = f"a second relation {name[:80]!r}" if name else "a relation without 'name'"
                self.reader.reject(path, line, reason, row)
        self.kept += len(names)
        return list(names)

    def _link_neighbours(self, nodes: dict[str, int], edges: np.ndarray) -> None:
        documents = {nodes[name]: place for place, name in enumerate(self.documents) if name in nodes}
        self.links = {(place, node): None for node, place in documents.items()}
        beside = edges[np.isin(edges[:, [0, 2]], list(documents)).any(axis=1)]
        for head, _, tail in beside.tolist():
            if head in documents:
                self.links[documents[head], tail] = None
            if tail in documents:
                self.links[documents[tail], head] = None

    def read_questions(self, path: Path, names: NameIndex, splits: dict[str, list[QAPair]]) -> None:
        """Reads the questions of one file into its split."""
        pairs = splits.setdefault(split_of(path), [])
        taken = {pair.id for pair in pairs}
        for line, row in json_items(path):
            self.reader.count += 1
            try:
                pair = self._question(line, row, names)
                if pair.id in taken:
                    raise ValueError(f"a second question with the id {pair.id[:80]!r}")
            except ValueError as error:
                self.reader.reject(path, line, str(error), row)
                continue
            taken.add(pair.id)
            pairs.append(pair)

    def _question(self, line: int, row: Any, names: NameIndex) -> QAPair:
        question, answers = question_of(row), answers_of(row, "answer", "answer_aliases")
        supporting = titles(row.get("supporting_documents") or row.get("supporting_facts") or [])
        unknown = [title for title in supporting if title not in self.documents]
        if unknown:
            raise ValueError(f"the supporting document {unknown[0][:80]!r} is not there")
        seeds = self._named(row, ("question_entities", "start_nodes"), names)
        targets = self._named(row, ("supporting_entities", "target_nodes"), names) or names.nodes(answers)
        return QAPair(str(row.get("id", line)), question, answers, targets, seeds, supporting)

    def _named(self, row: dict[str, Any], columns: tuple[str, ...], names: NameIndex) -> tuple[int, ...]:
        """The nodes that a question names in some columns, each a list of names or a list by type."""
        found: dict[int, None] = {}
        for value in filter(None, map(row.get, columns)):
            lists = value.values() if isinstance(value, dict) else [value]
            for name in dict.fromkeys(one for part in lists for one in strings(part)):
                nodes = (self.keys[name],) if name in self.keys else names.nodes([name])
                self.unknown_nodes += not nodes
                found.update(dict.fromkeys(nodes))
        return tuple(found)

    def left_out(self) -> str:
        """What the graph folder has no place for, in words."""
        edges = f"; attributes of {self.edge_attributes} edges are left out" if self.edge_attributes else ""
        nodes = f"; {self.unknown_nodes} names of nodes in questions are in no node" if self.unknown_nodes else ""
        return edges + nodes


def titles(supporting: Any) -> tuple[str, ...]:
    """Names of supporting documents: a list of them, or of [name, number of a sentence]."""
    if not isinstance(supporting, list):
        raise ValueError(f"the supporting documents are no list but {type(supporting).__name__}")
    return strings([item[0] if isinstance(item, list) and item else item for item in supporting])


def attributes_of(text: str) -> dict[str, Any] | str:
    """The attributes of a cell, written as JSON or as a Python literal; or why it cannot be read."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text) if text else {}
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, dict) else f"'attributes' holds {type(value).__name__}, expected a mapping"
    return f"'attributes' is no mapping: {text[:80]!r}"


def node_record(name: str, kind: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """A node as `write_graph` takes it; its text is its name, type and what its attributes say of it."""
    said = [str(attributes[key]) for key in CONTENT if attributes.get(key)]
    record: dict[str, Any] = {"name": name, "attributes": json.loads(json.dumps(attributes, default=str))}
    if kind:
        record["type"] = kind
    if said:
        record["text"] = ": ".join([f"{name}, {kind}" if kind else name, said[0]])
    return record
