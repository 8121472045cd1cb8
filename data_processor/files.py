"""Columns on disk that open in milliseconds: memory-mapped Arrow and npy files, and a folder's manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from data_processor.schema import atomic_write, write_json

SCHEMA_VERSION = 1
BATCH_ROWS = 65536  # rows of every Arrow batch but the last: row i lies in batch i // BATCH_ROWS
MANIFEST = "manifest.json"


class ArrowWriter:
    """Writes columns to an Arrow IPC file in batches of BATCH_ROWS, so that any row is found by a division.

    Args:
        path: the file; the caller gives a temporary name where it must be whole or absent.
        schema: names and types of the columns.
    """

    def __init__(self, path: str | Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0

    def __enter__(self) -> ArrowWriter:
        return self

    def write(self, columns: dict[str, Sequence | np.ndarray | pa.Array]) -> None:
        """Appends rows, given as one sequence a column."""
        batch = pa.record_batch([columns[field.name] for field in self._schema], schema=self._schema)
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        if self._waiting_rows >= BATCH_ROWS:
            self._flush(whole_batches_only=True)

    def _flush(self, whole_batches_only: bool) -> None:
        waiting = pa.Table.from_batches(self._waiting, self._schema).combine_chunks()
        keep = waiting.num_rows % BATCH_ROWS if whole_batches_only else 0
        ready = waiting.slice(0, waiting.num_rows - keep)
        for batch in ready.to_batches(max_chunksize=BATCH_ROWS) or self._waiting[:1]:
            self._writer.write_batch(batch)
        self._waiting = waiting.slice(ready.num_rows).to_batches()
        self._waiting_rows = keep

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if kind is None and (self._waiting_rows or not self.rows):
            self._flush(whole_batches_only=False)
        self._writer.close()
        self._file.close()


class ArrowColumns:
    """A memory-mapped Arrow IPC file of `ArrowWriter`; rows are read from the batches they lie in and nothing else."""

    def __init__(self, path: str | Path) -> None:
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is no readable Arrow file ({error}); write it again") from error
        self._batches: dict[int, pa.RecordBatch] = {}

    def batch(self, number: int) -> pa.RecordBatch:
        """Batch `number`: a view of the file."""
        if number not in self._batches:
            self._batches[number] = self._reader.get_batch(number)
        return self._batches[number]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All batches in order."""
        return (self.batch(number) for number in range(self._reader.num_record_batches))

    def take(self, column: str, rows: np.ndarray) -> list:
        """The values of `column` at the rows (n,) in their order, as Python objects; a null is None."""
        values: list = [None] * len(rows)
        numbers = rows // BATCH_ROWS
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            found = self.batch(int(number)).column(column).take(pa.array(rows[places] - number * BATCH_ROWS))
            for place, value in zip(places.tolist(), found.to_pylist(), strict=True):
                values[place] = value
        return values

    def slice(self, column: str, start: int, stop: int) -> np.ndarray:
        """The numbers of `column` in rows start..stop-1, as one array."""
        parts = []
        for number in range(start // BATCH_ROWS, -(-stop // BATCH_ROWS)):
            first = number * BATCH_ROWS
            inside = self.batch(number).column(column).slice(max(start - first, 0), stop - max(start, first))
            parts.append(inside.to_numpy())
        return np.concatenate(parts) if parts else np.zeros(0)


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[dict[str, Sequence]]) -> int:
    """Writes batches of columns to `path`, whole or not at all; returns the number of rows."""
    with atomic_write(path) as temporary, ArrowWriter(temporary, schema) as writer:
        for batch in batches:
            writer.write(batch)
    return writer.rows


def blocks(records: Iterable[Any]) -> Iterator[list[Any]]:
    """The records in lists of BATCH_ROWS."""
    source = iter(records)
    while block := list(islice(source, BATCH_ROWS)):
        yield block


def write_npy(path: Path, array: np.ndarray) -> None:
    """Writes one array, whole or not at all."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def read_npy(path: Path) -> np.ndarray:
    """The array of an npy file as a read-only memory map."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no readable npy file ({error}); write it again") from error


def named_by_values(name: str, array: np.ndarray) -> str:
    """The name with a short digest of the array's values as float32: two files of one name are told apart by it."""
    total = hashlib.blake2b(str(array.shape).encode(), digest_size=4)
    for start in range(0, len(array), BATCH_ROWS):
        total.update(np.ascontiguousarray(array[start : start + BATCH_ROWS], dtype=np.float32).tobytes())
    return f"{name}:{total.hexdigest()}"


def checksum(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_manifest(folder: Path, entries: dict[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """Writes manifest.json, the last file of a folder: the entries, and size and checksum of every file named."""
    manifest = {
        **entries,
        "schema_version": SCHEMA_VERSION,
        "bytes": {name: (folder / name).stat().st_size for name in files},
        "checksums": {name: checksum(folder / name) for name in files},
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path, kind: str, verify: bool = False) -> dict[str, Any]:
    """The manifest of a folder, after a look at the files it names.

    Args:
        folder: a folder that `write_manifest` finished.
        kind: "graph" or "subgraphs": the word in the sentences.
        verify: also read every file and compare its checksum.

    Raises:
        ValueError: no manifest, another schema version, a file that is missing, of another size or checksum.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; it should hold a {kind}: give another path, or write it first")
        raise ValueError(f"{folder} has no {MANIFEST}: it is no {kind}, or its writing was cut short; write it again")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, sizes, sums = manifest["schema_version"], manifest["bytes"], manifest["checksums"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of a {kind} ({error}); write the {kind} again") from error
    if version != SCHEMA_VERSION:
        other = f"schema_version {version}, this program reads {SCHEMA_VERSION}"
        raise ValueError(f"{path} has {other}; write the {kind} again")
    for name, size in sizes.items():
        found_size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found_size != size:
            state = "is missing" if found_size is None else f"has {found_size} bytes, the manifest says {size}"
            raise ValueError(f"{folder / name} {state}; write the {kind} again")
        if verify and checksum(folder / name) != sums[name]:
            raise ValueError(f"{folder / name} was changed: its checksum is another; write the {kind} again")
    return manifest


def remove(folder: Path, names: Sequence[str]) -> None:
    """Deletes files of a folder and what a killed writer left of them.

    The manifest goes first, so that a half-deleted folder is never taken for a whole one.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in names:
        for path in (folder / name, *folder.glob(f".{name}.*.tmp")):
            path.unlink(missing_ok=True)
