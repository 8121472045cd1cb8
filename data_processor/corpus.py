"""All chunks of an input: counted once, read anew on every pass, never held."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

from data_processor.chunking import Chunk, Count, chunks
from data_processor.documents import Documents, Source
from data_processor.stages import Stages


class Corpus:
    """The chunks of all documents.

    Args:
        documents: the input.
        size: tokens a chunk.
        count: the number of tokens of a text.
        limit: chunks in all, None for no limit.

    `documents`, `chunks` and `tokens` are counted by `survey`.
    """

    def __init__(self, documents: Documents, size: int, count: Count, limit: int | None = None) -> None:
        self._documents, self._size, self._count, self._limit = documents, size, count, limit
        self.documents = self.chunks = self.tokens = 0

    def survey(self, stages: Stages) -> None:
        """Reads everything once: counts documents, chunks and tokens, and rejects what cannot be read."""
        for source in self._documents.sources(partial(stages.reject, "documents")):
            if self._limit is not None and self.chunks >= self._limit:
                break
            try:
                lengths = [chunk.tokens for chunk in self._cut(source)]
            except ValueError as error:
                stages.reject("documents", source.id, 1, str(error), source.path.name)
                continue
            if not lengths:
                stages.reject("documents", source.id, 1, "there is no text in it", source.path.name)
                continue
            stages.keep("documents")
            lengths = lengths[: None if self._limit is None else self._limit - self.chunks]
            self.documents += 1
            self.chunks += len(lengths)
            self.tokens += sum(lengths)
        stages.keep("chunks", self.chunks)

    def _cut(self, source: Source) -> Iterator[Chunk]:
        return chunks(source.id, source.title, self._documents.pieces(source), self._size, self._count)

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the chunks in the order of the documents."""
        return islice((chunk for source in self._documents.sources() for chunk in self._cut(source)), self._limit)
