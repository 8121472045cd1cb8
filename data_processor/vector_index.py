"""The one door to FAISS: the nearest of many vectors by cosine, exactly by numpy or approximately by an index."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.schema import atomic_write, write_json

BLOCK_ROWS = 65536  # vectors compared at a time: the memory of an exact search does not grow with the graph
KINDS = ("exact", "hnsw", "ivf")
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 80, 128
TRAIN_ROWS_PER_LIST, SEARCHED_SHARE = 40, 12  # ivf: an index of L lists searches max(8, L / SEARCHED_SHARE) of them
COMPARED = 4  # ivf: so many times as many as are wanted are found by bytes and compared exactly


class ExactIndex:
    """Every vector is compared.

    Args:
        vectors: (n, d), also a memory map of float16; up to BLOCK_ROWS are held in memory, more are read in blocks.
    """

    kind = "exact"

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors if len(vectors) > BLOCK_ROWS else unit_rows(vectors)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each query (q, d): (cosines (q, k) float32, row numbers (q, k) int64), best first."""
        k = min(k, len(self._vectors))
        queries = unit_rows(queries)
        scores, rows = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        for start in range(0, len(self._vectors), BLOCK_ROWS):
            block = self._vectors[start : start + BLOCK_ROWS]
            found = queries @ (block if len(self._vectors) <= BLOCK_ROWS else unit_rows(block)).T
            numbers = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
            scores, rows = np.concatenate([scores, found], axis=1), np.concatenate([rows, numbers], axis=1)
            best = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k < scores.shape[1] else slice(None)
            scores, rows = pick(scores, best), pick(rows, best)
        order = np.lexsort((rows, -scores), axis=1)
        return pick(scores, order), pick(rows, order)


class FaissIndex:
    """An approximate index; `kind` "hnsw" (a graph of links) or "ivf" (lists of near vectors, a byte a number).

    Args:
        vectors: (n, d), those that the index was built of, also a memory map: what "ivf" finds is compared with them.
    """

    def __init__(self, index: Any, kind: str, vectors: np.ndarray) -> None:
        self._index, self._vectors = index, vectors
        self.kind = kind

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `ExactIndex.search`; where fewer than k are found the rows are -1."""
        queries, k = unit_rows(queries), min(k, self._index.ntotal)
        if self.kind != "ivf":
            return self._index.search(queries, k)
        _, found = self._index.search(queries, min(COMPARED * k, self._index.ntotal))
        scores, rows = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
        for place, query in enumerate(queries):
            candidates = np.sort(found[place][found[place] >= 0])  # in the order in which they lie on disk
            cosines = unit_rows(self._vectors[candidates]) @ query
            best = np.argsort(-cosines, kind="stable")[:k]
            scores[place, : len(best)], rows[place, : len(best)] = cosines[best], candidates[best]
        return scores, rows


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their length, float32; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def pick(values: np.ndarray, places: np.ndarray | slice) -> np.ndarray:
    """The values at the places of each row."""
    return values[:, places] if isinstance(places, slice) else np.take_along_axis(values, places, axis=1)


def build_index(vectors: np.ndarray, kind: str) -> ExactIndex | FaissIndex:
    """An index over vectors (n, d).

    Args:
        kind: "exact"; "hnsw": fast and precise, most memory, longest to build; "ivf": a quarter of the memory.

    Raises:
        ValueError: another kind, or FAISS is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of index must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "exact":
        return ExactIndex(vectors)
    faiss = import_faiss(kind)
    count, width = vectors.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    else:
        lists = max(1, min(int(2 * count**0.5), count // TRAIN_ROWS_PER_LIST))
        index = faiss.index_factory(width, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).permutation(count)[: lists * TRAIN_ROWS_PER_LIST]
        index.train(unit_rows(vectors[np.sort(sample)]))
        index.nprobe = max(8, lists // SEARCHED_SHARE)
    for start in range(0, count, BLOCK_ROWS):
        index.add(unit_rows(vectors[start : start + BLOCK_ROWS]))
    return FaissIndex(index, kind, vectors)


def open_index(vectors: np.ndarray, folder: str | Path, key: str, kind: str = "exact") -> ExactIndex | FaissIndex:
    """The index kept in a folder, built and kept when it is not there or belongs to other vectors.

    Args:
        vectors: (n, d). key: changes when the vectors do, such as their checksum.
        folder: gets index-KIND.faiss and index-KIND.json; nothing for "exact".
    """
    if kind == "exact":
        return build_index(vectors, kind)
    path = Path(folder) / f"index-{kind}.faiss"
    about = path.with_suffix(".json")
    if path.is_file() and about.is_file() and json.loads(about.read_text(encoding="utf-8")) == {"key": key}:
        faiss = import_faiss(kind)
        return FaissIndex(faiss.read_index(str(path), faiss.IO_FLAG_MMAP if kind == "ivf" else 0), kind, vectors)
    index = build_index(vectors, kind)
    about.unlink(missing_ok=True)
    with atomic_write(path) as temporary:
        import_faiss(kind).write_index(index._index, str(temporary))
    write_json(about, {"key": key})
    return index


def import_faiss(kind: str) -> Any:
    """The faiss module; ValueError when it is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise ValueError(f"the index {kind!r} needs FAISS: pip install faiss-cpu, or choose 'exact'")
    import faiss

    return faiss
