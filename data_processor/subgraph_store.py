"""One subgraph a question, in columns on disk: written once by retrieval, read by id in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_processor.files import (
    BATCH_ROWS,
    ArrowColumns,
    ArrowWriter,
    read_manifest,
    read_npy,
    remove,
    write_manifest,
    write_npy,
)
from data_processor.schema import Subgraph, atomic_write, write_json

FILES = ("nodes.arrow", "edges.arrow", "offsets.npy", "report.json")


def row_schema(column: str) -> pa.Schema:
    """Columns question_id (a dictionary of all questions), `column` ("node" or "edge") and score."""
    id_type = pa.dictionary(pa.int32(), pa.large_string())
    return pa.schema([("question_id", id_type), (column, pa.int64()), ("score", pa.float32())])


def write_subgraphs(
    folder: str | Path,
    question_ids: Sequence[str],
    subgraphs: Iterable[Subgraph],
    report: dict[str, Any],
    manifest: dict[str, Any],
) -> None:
    """Writes nodes.arrow, edges.arrow, offsets.npy, report.json and, last, manifest.json.

    Args:
        folder: DATA/subgraphs/{split}; what lies there is replaced.
        question_ids: one id a subgraph, all different; an empty subgraph is written too.
        subgraphs: in the order of the ids; read one at a time. `report` may still be filled while they are read.
        report: figures of the retrieval (answer_recall, mean_nodes, ...).
        manifest: how they were made: graph, method, parameters.

    Raises:
        ValueError: an id that occurs twice, or more or fewer subgraphs than ids.
    """
    folder = Path(folder)
    if len(set(question_ids)) != len(question_ids):
        twice = next(name for place, name in enumerate(question_ids) if name in question_ids[:place])
        raise ValueError(f"question id {twice!r} occurs twice; every question needs its own id")
    remove(folder, FILES)
    with (
        atomic_write(folder / "nodes.arrow") as nodes_path,
        atomic_write(folder / "edges.arrow") as edges_path,
        ArrowWriter(nodes_path, row_schema("node")) as nodes,
        ArrowWriter(edges_path, row_schema("edge")) as edges,
    ):
        offsets = write_rows(nodes, edges, list(question_ids), subgraphs)
    write_npy(folder / "offsets.npy", offsets)
    write_json(folder / "report.json", report)
    counts = {"questions": len(question_ids), "nodes": int(offsets[-1, 0]), "edges": int(offsets[-1, 1])}
    write_manifest(folder, {**manifest, "counts": counts}, FILES)


class RowWriter:
    """Rows (question, node or edge, score) on their way to an Arrow file, written in large batches over questions."""

    def __init__(self, writer: ArrowWriter, column: str, names: pa.Array) -> None:
        self.rows = 0
        self._writer, self._column, self._names = writer, column, names
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting_rows = 0

    def add(self, question: int, values: np.ndarray, scores: np.ndarray) -> None:
        """Takes the rows of one question: its place among the names, values (n,) and scores (n,)."""
        self._waiting.append((np.full(len(values), question), values, scores))
        self._waiting_rows += len(values)
        self.rows += len(values)
        if self._waiting_rows >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what waits; a file without any row still gets the names."""
        empty = (np.zeros(0), np.zeros(0), np.zeros(0))
        numbers, values, scores = (np.concatenate(parts) for parts in zip(empty, *self._waiting, strict=True))
        ids = pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), self._names)
        columns = {"question_id": ids, self._column: values.astype(np.int64), "score": scores.astype(np.float32)}
        self._writer.write(columns)
        self._waiting, self._waiting_rows = [], 0


def write_rows(nodes: ArrowWriter, edges: ArrowWriter, ids: list[str], subgraphs: Iterable[Subgraph]) -> np.ndarray:
    """Writes the rows of every subgraph; returns (q + 1, 2) int64: where each question's node and edge rows begin."""
    names = pa.array(ids, pa.large_string())
    node_rows, edge_rows = RowWriter(nodes, "node", names), RowWriter(edges, "edge", names)
    offsets = np.zeros((len(ids) + 1, 2), dtype=np.int64)
    count = 0
    for count, subgraph in enumerate(subgraphs, start=1):
        if count > len(ids):
            break
        node_rows.add(count - 1, subgraph.nodes, subgraph.node_scores)
        edge_rows.add(count - 1, subgraph.edges, subgraph.edge_scores)
        offsets[count] = node_rows.rows, edge_rows.rows
    if count != len(ids):
        found = "more" if count > len(ids) else count
        raise ValueError(f"{len(ids)} question ids, {found} subgraphs; give one subgraph a question")
    node_rows.flush()
    edge_rows.flush()
    return offsets


class SubgraphStore:
    """The subgraphs of one split, memory-mapped: `SubgraphStore.open(folder).get(question_id)`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._nodes = ArrowColumns(path / "nodes.arrow")
        self._edges = ArrowColumns(path / "edges.arrow")
        self._offsets = read_npy(path / "offsets.npy")
        self.ids: list[str] = self._nodes.batch(0).column("question_id").dictionary.to_pylist()
        self._places = {name: place for place, name in enumerate(self.ids)}

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> SubgraphStore:
        """Opens DATA/subgraphs/{split}; `verify` compares checksums. ValueError when absent, half written, changed."""
        return cls(Path(path), read_manifest(Path(path), "subgraphs", verify))

    def __reduce__(self) -> tuple:
        return SubgraphStore.open, (str(self.path),)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, question_id: object) -> bool:
        return question_id in self._places

    def _place(self, question_id: str) -> int:
        if question_id not in self._places:
            found = f"{self.path} has no subgraph for question {question_id!r}"
            raise ValueError(f"{found}; run retrieve again after a change of qa/")
        return self._places[question_id]

    def nodes(self, question_id: str) -> np.ndarray:
        """The nodes (n,) int64 of a question's subgraph, best first; ValueError when there is none."""
        place = self._place(question_id)
        start, stop = self._offsets[place : place + 2, 0].tolist()
        return self._nodes.slice("node", start, stop).astype(np.int64)

    def get(self, question_id: str) -> Subgraph:
        """The subgraph of a question; ValueError when there is none."""
        place = self._place(question_id)
        (node_start, edge_start), (node_stop, edge_stop) = self._offsets[place : place + 2].tolist()
        return Subgraph(
            nodes=self._nodes.slice("node", node_start, node_stop).astype(np.int64),
            node_scores=self._nodes.slice("score", node_start, node_stop).astype(np.float32),
            edges=self._edges.slice("edge", edge_start, edge_stop).astype(np.int64),
            edge_scores=self._edges.slice("score", edge_start, edge_stop).astype(np.float32),
        )
