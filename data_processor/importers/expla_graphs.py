"""ExplaGraphs (Saha et al. 2021, arXiv 2104.07644): do two arguments support or counter each other.

    python -m data_processor import expla_graphs --input train_dev.tsv --output DATA
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_processor.graph_store import KnowledgeGraph, write_graph, write_subgraphs
from data_processor.importers.rows import ImportReport, RowReader, require
from data_processor.importers.triple_table import TripleTable
from data_processor.schema import QAPair, Rejected, Subgraph, to_json, write_jsonl

COLUMNS = ["arg1", "arg2", "label", "graph"]
LABELS = ("support", "counter")
TRIPLE = re.compile(r"\(([^()]*)\)")
QUESTION = "Argument 1: {}\nArgument 2: {}\nDo argument 1 and argument 2 support or counter each other?"
SEED = 42  # of the split of G-Retriever


class Row(NamedTuple):
    """One row that can be used: its number from 0, its question, answer and triples of names."""

    number: int
    question: str
    label: str
    triples: list[tuple[str, str, str]]


def import_expla_graphs(source: Path, output: Path) -> ImportReport:
    """Writes a dataset folder: one graph of all rows' triples, the questions, each row's own triples as its subgraph.

    Args:
        source: train_dev.tsv, or the folder that holds it.
        output: the dataset folder: graph/, qa/, subgraphs/ and rejected.jsonl.

    Raises:
        ValueError: no such file, other columns, or no usable row.
    """
    path = source / "train_dev.tsv" if require(source).is_dir() else source
    with Rejected(output / "rejected.jsonl") as rejected:
        reader = RowReader(rejected)
        rows = read_rows(require(path), reader)
        if not rows:
            raise ValueError(f"{path} has no usable row; {rejected.count} were rejected, see {rejected.path}")
        table = TripleTable()
        for number, triple in dict.fromkeys((0, triple) for row in rows for triple in row.triples):
            table.add(list(triple), number)
        triples = table.triples(path, rejected)
        graph = write_graph(output / "graph", table.node_records({}), table.relation_records({}), triples)
        splits = split_numbers(reader.count)
        for split, numbers in splits.items():
            write_split(output, split, [row for row in rows if row.number in numbers], graph, table)
        summary = f"{graph.num_nodes} nodes, {graph.num_edges} edges, {len(rows)} questions in {output}"
        return ImportReport(reader.count, len(rows), rejected.count, summary)


def read_rows(path: Path, reader: RowReader) -> list[Row]:
    """The usable rows of the file; their numbers count all rows, also those that cannot be used."""
    lines = reader.fields(path, "\t", quoted=True)
    if next(lines, (1, None))[1] != COLUMNS:
        raise ValueError(f"{path}: the first line must name the columns {', '.join(COLUMNS)}, separated by tabs")
    reader.count -= 1
    rows = []
    for line, fields in lines:
        try:
            rows.append(parse_row(reader.count - 1, fields))
        except ValueError as error:
            reader.reject(path, line, str(error), fields)
    return rows


def parse_row(number: int, fields: Sequence[str]) -> Row:
    """A row from its four fields; ValueError says what is wrong."""
    if len(fields) != len(COLUMNS):
        raise ValueError(f"{len(fields)} fields, expected {len(COLUMNS)}: {', '.join(COLUMNS)}")
    first, second, label, graph = fields
    if label not in LABELS:
        raise ValueError(f"the label is {label[:40]!r}, expected 'support' or 'counter'")
    triples = [tuple(part.strip().lower() for part in inside.split(";")) for inside in TRIPLE.findall(graph)]
    wrong = [triple for triple in triples if len(triple) != 3 or not all(triple)]
    if not triples or wrong:
        raise ValueError(f"the graph is no list of (concept; relation; concept): {str(wrong or graph)[:80]}")
    return Row(number, QUESTION.format(first, second), label, list(dict.fromkeys(triples)))


def split_numbers(count: int) -> dict[str, set[int]]:
    """Row numbers of train, validation and test, 60 to 20 to 20: the split of G-Retriever.

    It is scikit-learn's train_test_split(test_size=0.4, random_state=42), whose second part is halved the same way:
    one permutation by NumPy's legacy generator each time, the test part first.
    """
    held_out, train = halve(np.arange(count), 0.4)
    test, validation = halve(held_out, 0.5)
    return {"train": set(train.tolist()), "validation": set(validation.tolist()), "test": set(test.tolist())}


def halve(numbers: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(a share of the numbers, rounded up; the rest), in random order."""
    order = np.random.RandomState(SEED).permutation(len(numbers))
    size = int(np.ceil(share * len(numbers)))
    return numbers[order[:size]], numbers[order[size:]]


def write_split(output: Path, split: str, rows: list[Row], graph: KnowledgeGraph, table: TripleTable) -> None:
    """Writes qa/{split}.jsonl and subgraphs/{split}/ of some rows."""
    pairs = [QAPair(f"expla_graphs-{row.number}", row.question, (row.label,), type="stance") for row in rows]
    write_jsonl(output / "qa" / f"{split}.jsonl", map(to_json, pairs))
    edge_rows = {tuple(triple): place for place, triple in enumerate(graph.edges.tolist())}
    subgraphs: list[Subgraph] = []
    for row in rows:
        ids = [(table.nodes[head], table.relations[name], table.nodes[tail]) for head, name, tail in row.triples]
        subgraphs.append(graph.subgraph([], [edge_rows[triple] for triple in ids]))
    report = {
        "mean_nodes": float(np.mean([len(one.nodes) for one in subgraphs])) if subgraphs else 0.0,
        "mean_edges": float(np.mean([len(one.edges) for one in subgraphs])) if subgraphs else 0.0,
    }
    manifest = {"graph": "../../graph", "method": "given", "parameters": {}}
    write_subgraphs(output / "subgraphs" / split, [pair.id for pair in pairs], subgraphs, report, manifest)
