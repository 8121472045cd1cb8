"""Triples and tables: one file of triples, a folder of train/valid/test triples, or nodes, relations and edges tables.

    python -m data_processor import triples --input kg.txt --output DATA/graph
    python -m data_processor import triples --input umls/ --output DATA
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_processor.files import write_npy
from data_processor.graph_store import write_graph
from data_processor.importers.rows import ImportReport, RowReader, find_delimiter, require, text_lines
from data_processor.importers.tables import find_table, import_tables
from data_processor.importers.triple_table import TripleTable
from data_processor.schema import Rejected

SPLITS = {"train": ("train",), "validation": ("valid", "validation", "dev"), "test": ("test",)}
SUFFIXES = (".txt", ".tsv", ".csv", ".txt.gz", ".tsv.gz", ".csv.gz")
HEADERS = {("head", "relation", "tail"), ("subject", "predicate", "object"), ("subject", "relation", "object"),
           ("source", "relation", "target"), ("h", "r", "t")}  # fmt: skip


def import_triples(source: Path, output: Path) -> ImportReport:
    """Reads triples of names and writes a graph.

    Args:
        source: a file of one triple a line (tab, | or comma; .gz too); or a folder with train, valid or dev, and test
            files of that form; or a folder with nodes, edges and perhaps relations as .csv or .parquet.
        output: the graph's folder; for a folder with train and test the dataset folder: graph/ holds train alone, and
            triples/{validation,test}.npy the ids of the others. rejected.jsonl lies in it.

    Raises:
        ValueError: nothing to read there, or no row of it is a triple.
    """
    with Rejected(output / "rejected.jsonl") as rejected:
        reader = RowReader(rejected)
        if require(source).is_file():
            return import_file(source, output, reader)
        if find_table(source, "edges"):
            return import_tables(source, output, reader)
        return import_splits(source, output, reader)


def import_file(source: Path, output: Path, reader: RowReader) -> ImportReport:
    """One file of triples to the graph folder `output`."""
    table = TripleTable()
    triples = read_triples(source, table, reader)
    graph = write_graph(output, table.node_records({}), table.relation_records({}), triples)
    summary = f"{graph.num_nodes} nodes, {graph.num_relations} relations, {graph.num_edges} edges in {output}"
    return ImportReport(reader.count, len(triples), reader.rejected.count, summary)


def import_splits(source: Path, output: Path, reader: RowReader) -> ImportReport:
    """A folder of train/validation/test triples to output/graph and output/triples."""
    train = find_split(source, "train")
    if train is None:
        raise ValueError(f"{source} holds neither train.txt (or .tsv, .csv) nor edges.csv (or .parquet); give a file")
    texts, relation_texts = pairs_in(source, "entity2text"), pairs_in(source, "relation2text")
    table = TripleTable([*names_in(source / "entities.txt"), *texts], names_in(source / "relations.txt"))
    triples = read_triples(train, table, reader)
    graph = write_graph(output / "graph", table.node_records(texts), table.relation_records(relation_texts), triples)
    summary = [f"{graph.num_nodes} nodes, {graph.num_relations} relations, {graph.num_edges} edges"]
    kept = len(triples)
    for split in ("validation", "test"):
        path = find_split(source, split)
        if path is not None:
            held_out = read_triples(path, TripleTable(table.nodes, table.relations, False, False), reader)
            write_npy(output / "triples" / f"{split}.npy", held_out)
            kept += len(held_out)
            summary.append(f"{len(held_out)} {split} triples")
    return ImportReport(reader.count, kept, reader.rejected.count, f"{', '.join(summary)} in {output}")


def read_triples(path: Path, table: TripleTable, reader: RowReader) -> np.ndarray:
    """The distinct triples (k, 3) of a file as ids of `table`; a first row that names the columns is no triple."""
    for number, (line, fields) in enumerate(reader.fields(path, find_delimiter(path, 3))):
        if number == 0 and tuple(field.lower() for field in fields) in HEADERS:
            reader.count -= 1
            continue
        reason = table.add(fields, line)
        if reason is not None:
            reader.reject(path, line, reason, fields)
    return table.triples(path, reader.rejected)


def find_split(source: Path, split: str) -> Path | None:
    """The file of a split in a folder, or None."""
    names = [stem + suffix for stem in SPLITS[split] for suffix in SUFFIXES]
    return next((source / name for name in names if (source / name).is_file()), None)


def names_in(path: Path) -> list[str]:
    """The names of a list, one a line; none where there is no file."""
    return text_lines(path) if path.is_file() else []


def pairs_in(source: Path, stem: str) -> dict[str, str]:
    """The texts of `entity2text` or `relation2text`: name, tab, text; the long form is taken where there is one."""
    path = next((path for path in (source / f"{stem}long.txt", source / f"{stem}.txt") if path.is_file()), None)
    if path is None:
        return {}
    pairs = (line.partition("\t") for line in text_lines(path))
    return {name.strip(): text.strip() for name, tab, text in pairs if tab and text.strip()}
