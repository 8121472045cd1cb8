"""WebQSP and CWQ as RoG gives them (Luo et al. 2024, arXiv 2310.01061): questions, each with its part of Freebase.

    python -m data_processor import webqsp --input rmanluo/RoG-webqsp --output DATA
    python -m data_processor import webqsp --input RoG-cwq/ --output DATA
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
from tqdm import tqdm

from data_processor.graph_store import KnowledgeGraph
from data_processor.importers.questions import answers_of, json_items, question_of, split_of, strings, write_questions
from data_processor.importers.rows import ImportReport
from data_processor.importers.union import GraphUnion, write_given
from data_processor.schema import QAPair, Rejected, Subgraph

SUFFIXES = (".parquet", ".jsonl", ".json")


class Question(NamedTuple):
    """One question as it was read, its answers and seeds still names; `part` is its number in the union of graphs."""

    id: str
    text: str
    answers: tuple[str, ...]
    answer_names: tuple[str, ...]
    seed_names: tuple[str, ...]
    part: int


class Reader:
    """Questions and their graphs as they are read; counts rows: questions and triples."""

    def __init__(self, rejected: Rejected) -> None:
        self.rows = self.kept = 0
        self.union = GraphUnion()
        self.splits: dict[str, list[Question]] = {}
        self._rejected = rejected
        self._taken: set[tuple[str, str]] = set()

    def read(self, split: str, file: str, rows: Iterable[tuple[int, Any]]) -> None:
        """Takes the rows (line, {"id", "question", "answer", "q_entity", "a_entity", "graph"}) of one file."""
        questions = self.splits.setdefault(split, [])
        for line, row in tqdm(rows, desc=f"{split} {Path(file).name}", unit=" questions", delay=2):
            self.rows += 1
            try:
                question, answers = question_of(row), answers_of(row, "answer")
                answer_names, seed_names = strings(row.get("a_entity")), strings(row.get("q_entity"))
                name = str(row.get("id", line))
                if (split, name) in self._taken:
                    raise ValueError(f"a second question with the id {name[:80]!r}")
                graph = row.get("graph")
                if not isinstance(graph, list):
                    raise ValueError(f"'graph' is no list of triples but {type(graph).__name__}")
            except ValueError as error:
                self._rejected.add(file, line, str(error), row)
                continue
            self._taken.add((split, name))
            part = self.union.add(self._triples(file, line, graph))
            questions.append(Question(name, question, answers, answer_names, seed_names, part))
            self.kept += 1

    def _triples(self, file: str, line: int, graph: list[Any]) -> dict[tuple[str, str, str], None]:
        found: dict[tuple[str, str, str], None] = {}
        self.rows += len(graph)
        for fields in graph:
            reason = why_no_triple(fields)
            triple = None if reason else tuple(field.strip() for field in fields)
            if reason or triple in found:
                self._rejected.add(file, line, reason or "the same triple stands earlier in this graph", fields)
                continue
            found[triple] = None
        self.kept += len(found)
        return found


def import_webqsp(source: Path, output: Path) -> ImportReport:
    """Writes a dataset folder: the union of all graphs, the questions, and each question's own graph as its subgraph.

    Args:
        source: a data set of the Hub such as rmanluo/RoG-webqsp or rmanluo/RoG-cwq; or a .parquet, .jsonl or .json
            file of its layout, or a folder of them, whose names tell the split.
        output: the dataset folder: graph/, qa/, subgraphs/ and rejected.jsonl. `retrieve` writes smaller subgraphs.

    Raises:
        ValueError: nothing to read there, or no usable question with a graph.
    """
    with Rejected(output / "rejected.jsonl") as rejected:
        reader = Reader(rejected)
        for split, file, rows in local_files(source) if source.exists() else hub_splits(source):
            reader.read(split, file, rows)
        if not any(reader.splits.values()):
            raise ValueError(f"{source} has no usable question: {rejected.count} rejected, see {rejected.path}")
        graph = reader.union.write(output / "graph")
        splits = {
            split: write_split(output / "subgraphs" / split, questions, graph, reader.union)
            for split, questions in reader.splits.items()
        }
        sizes = write_questions(output, splits)
        summary = f"{graph.num_nodes} nodes, {graph.num_edges} edges; questions: {sizes}; in {output}"
        return ImportReport(reader.rows, reader.kept, rejected.count, summary)


def local_files(source: Path) -> Iterator[tuple[str, str, Iterator[tuple[int, Any]]]]:
    """Yields (split, file, rows) of a file, or of every file of the layout in a folder and below it."""
    files = [source] if source.is_file() else sorted(one for one in source.rglob("*") if one.suffix in SUFFIXES)
    if not files or files[0].suffix not in SUFFIXES:
        raise ValueError(f"{source} holds no {', '.join(SUFFIXES)} file; give one, a folder of them, or a Hub name")
    for path in files:
        yield split_of(path), str(path), parquet_items(path) if path.suffix == ".parquet" else json_items(path)


def parquet_items(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row number from 1, row) of a parquet file, a few at a time: each holds thousands of triples."""
    number = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64):
        for row in batch.to_pylist():
            number += 1
            yield number, row


def hub_splits(source: Path) -> Iterator[tuple[str, str, Iterator[tuple[int, Any]]]]:
    """Yields (split, name, rows) of a data set that `datasets` finds on the Hub or in its cache."""
    if source.is_absolute() or len(source.parts) != 2:
        raise ValueError(f"{source} does not exist and is no name such as rmanluo/RoG-webqsp; check --input")
    import datasets

    name = source.as_posix()
    try:
        found = datasets.load_dataset(name)
    except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{name} is no local file, and the Hub does not give it ({error}); check --input") from error
    for split, rows in found.items():
        yield str(split), f"{name}/{split}", enumerate(rows, start=1)


def why_no_triple(fields: Any) -> str | None:
    """Why something is no triple [head, relation, tail] of texts, or None."""
    if not isinstance(fields, list | tuple) or len(fields) != 3:
        return f"{len(fields) if isinstance(fields, list | tuple) else 'no'} fields, expected 3: head, relation, tail"
    if not all(isinstance(field, str) and field.strip() for field in fields):
        return "head, relation or tail is empty or no text"
    return None


def write_split(folder: Path, questions: list[Question], graph: KnowledgeGraph, union: GraphUnion) -> list[QAPair]:
    """Writes the subgraphs of one split, seed nodes first; returns its questions."""
    pairs: list[QAPair] = []
    subgraphs: list[Subgraph] = []
    for one in questions:
        answers, seeds = (
            tuple(union.nodes[name] for name in names if name in union.nodes)
            for names in (one.answer_names, one.seed_names)
        )
        pairs.append(QAPair(one.id, one.text, one.answers, answers, seeds))
        rows = union.rows(one.part)
        inside = set(graph.edges[rows][:, [0, 2]].reshape(-1).tolist())
        subgraphs.append(graph.subgraph([seed for seed in seeds if seed in inside], rows))
    write_given(folder, [pair.id for pair in pairs], subgraphs)
    return pairs
