"""Documents in the prompt: texts in chunks, embedded once, and for each question the k nearest by cosine."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.chunking import Chunk, chunks, words_and_marks
from data_processor.documents import Documents
from data_processor.embedding_cache import EmbeddingCache
from data_processor.files import read_npy
from data_processor.graph_store import KnowledgeGraph
from data_processor.text_encoder import load_encoder
from data_processor.vector_index import build_index

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DocumentSearch:
    """Which documents a question is shown; every field is a flag of finetune.py of the same name.

    Attributes:
        documents: a folder of texts, a text or documents.jsonl. None: documents.jsonl of the data set, or its graph's.
        document_encoder: what `load_encoder` takes.
        top_documents: chunks that a question is shown.
        chunk_tokens: the longest chunk, in parts of words.
        document_index: exact, hnsw or ivf (FAISS).
    """

    documents: str | None = None
    document_encoder: str = "hashing"
    top_documents: int = 5
    chunk_tokens: int = 256
    document_index: str = "exact"

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> DocumentSearch:
        """From flags by name, others are left out."""
        return cls(**{field.name: flags[field.name] for field in fields(cls) if field.name in flags})


class Passages:
    """The chunks of all documents, ready to be searched.

    Args:
        search: what is searched, and how.
        data: the data set, whose own documents are taken where `search` names none.
        cache: folder in which embeddings are kept from run to run; None keeps none.

    Raises:
        ValueError: no documents, or an encoder or index that cannot be had.
    """

    def __init__(self, search: DocumentSearch, data: str | Path, cache: Path | None = None) -> None:
        self.search = search
        self.chunks = list(read_chunks(search, Path(data)))
        if not self.chunks:
            raise ValueError(f"There is no text in {search.documents or data}. Name other documents with --documents.")
        self._encoder = load_encoder(search.document_encoder)
        self._cache = cache
        texts = [shown(chunk) for chunk in self.chunks]
        logger.info("%d chunks of documents are embedded by %s", len(texts), search.document_encoder)
        self._index = build_index(self._embed(texts), search.document_index)

    def find(self, questions: Sequence[str]) -> list[list[str]]:
        """The texts of the nearest chunks of each question, best first."""
        _, rows = self._index.search(self._embed(questions), self.search.top_documents)  # (q, k)
        return [[shown(self.chunks[row]) for row in nearest if row >= 0] for nearest in rows.tolist()]

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        if self._cache is None:
            return self._encoder.encode(texts, progress=len(texts) > 1000)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.npy"
            EmbeddingCache(self._cache, self._encoder, "float32").write_vectors(texts, len(texts), path, 256)
            return np.array(read_npy(path))


def read_chunks(search: DocumentSearch, data: Path) -> Iterator[Chunk]:
    """The chunks of all documents, in order."""
    for name, title, pieces in read_documents(search, data):
        yield from chunks(name, title, pieces, search.chunk_tokens, words_and_marks)


def read_documents(search: DocumentSearch, data: Path) -> Iterator[tuple[str, str | None, Sequence[str]]]:
    """(id, title, text in pieces) of every document."""
    own = data / "documents.jsonl"
    if search.documents or own.is_file():
        path = Path(search.documents or own)
        if not path.exists():
            raise ValueError(f"--documents {path} does not exist. Give a folder of texts, a text or documents.jsonl.")
        documents = Documents(path)
        for source in documents.sources(left_out):
            try:
                yield source.id, source.title, list(documents.pieces(source))
            except ValueError as error:
                logger.warning("%s is left out: %s", source.path, error)
        return
    graph = KnowledgeGraph.open(data / "graph") if (data / "graph").is_dir() else None
    if graph is None or not graph.num_documents:
        raise ValueError(
            f"--context documents needs documents, and {data} has none. Name a folder of texts or documents.jsonl "
            "with --documents."
        )
    for document in graph.documents(np.arange(graph.num_documents)):
        yield document.id, document.title, [document.text]


def left_out(file: str, line: int, reason: str, row: Any) -> None:
    """Says which text is no document, and why."""
    logger.warning("%s:%d is left out of the documents: %s", file, line, reason)


def shown(chunk: Chunk) -> str:
    """A chunk as the prompt holds it."""
    return f"{chunk.title}: {chunk.text}" if chunk.title else chunk.text
