"""Every distinct string is embedded once: vectors on disk, keyed by encoder and text, that outlive a killed run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from data_processor.files import read_npy, write_npy
from data_processor.schema import atomic_write

SHARD_ROWS = 16384  # a killed run loses at most this many embeddings
BLOCK_ROWS = 2048  # embedded in one call of the encoder, which sorts them by length
KEY_BYTES = 16


class Encoder(Protocol):
    """What embeds text: `data_processor.text_encoder.load_encoder` gives one."""

    name: str
    dimension: int

    def encode(self, texts: Sequence[str], batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Vectors (n, dimension) float32 of n texts."""
        ...


def text_key(text: str) -> bytes:
    """BLAKE2b of a text: the name under which its vector is kept."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=KEY_BYTES).digest()


class EmbeddingCache:
    """The vectors of one encoder in a folder of shards NNNNN.keys.npy (n, 16) uint8 and NNNNN.npy (n, d).

    Args:
        folder: of all encoders; each has its own folder in it.
        encoder: embeds what is not known yet.
        dtype: of the stored vectors, "float16" or "float32".
    """

    def __init__(self, folder: str | Path, encoder: Encoder, dtype: str = "float16") -> None:
        slug = re.sub(r"[^A-Za-z0-9.-]+", "_", encoder.name)[:60]
        self.folder = Path(folder) / f"{slug}-{text_key(encoder.name).hex()[:8]}-{dtype}"
        self.encoder = encoder
        self.dtype = dtype
        self._shards: list[np.ndarray] = []
        self._rows: dict[bytes, int] = {}
        while (self.folder / f"{len(self._shards):05d}.npy").is_file():
            self._load_shard(len(self._shards))

    def _load_shard(self, number: int) -> None:
        vectors = read_npy(self.folder / f"{number:05d}.npy")
        keys = read_npy(self.folder / f"{number:05d}.keys.npy")
        if vectors.shape != (len(keys), self.encoder.dimension):
            raise ValueError(
                f"{self.folder} holds vectors of shape {vectors.shape}, the encoder {self.encoder.name} gives width "
                f"{self.encoder.dimension} for {len(keys)} texts; delete the folder to embed again"
            )
        start = sum(len(shard) for shard in self._shards)
        self._rows.update((key.tobytes(), start + place) for place, key in enumerate(keys))
        self._shards.append(vectors)

    def write_vectors(self, texts: Iterable[str], count: int, path: Path, batch_size: int) -> None:
        """Writes the vectors of `count` texts as an npy file (count, d), in their order; embeds what is not yet known.

        Args:
            texts: read once, in one pass.
            path: the npy file, written whole or not at all.
            batch_size: texts a call of the encoder.
        """
        rows = self._rows_of(texts, count, batch_size)
        starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        with atomic_write(path) as temporary:
            shape = (count, self.encoder.dimension)
            vectors = np.lib.format.open_memmap(temporary, mode="w+", dtype=self.dtype, shape=shape)
            shard_of_row = np.searchsorted(starts, rows, side="right") - 1
            for number, shard in enumerate(self._shards):
                places = np.flatnonzero(shard_of_row == number)
                vectors[places] = shard[rows[places] - starts[number]]
            vectors.flush()

    def _rows_of(self, texts: Iterable[str], count: int, batch_size: int) -> np.ndarray:
        rows = np.empty(count, dtype=np.int64)
        waiting: dict[bytes, str] = {}
        title, few = f"embed ({self.encoder.name})", count < SHARD_ROWS // 8
        with tqdm(total=count, unit="text", desc=title, disable=few) as bar:
            for place, text in enumerate(texts):
                key = text_key(text)
                if key not in self._rows:
                    self._rows[key] = len(self._rows)
                    waiting[key] = text
                rows[place] = self._rows[key]
                if len(waiting) == SHARD_ROWS:
                    self._write_shard(waiting, batch_size, bar)
                    waiting = {}
                    bar.update(place + 1 - bar.n)
            self._write_shard(waiting, batch_size, bar)
            bar.update(count - bar.n)
        return rows

    def _write_shard(self, texts: dict[bytes, str], batch_size: int, bar: tqdm) -> None:
        if not texts:
            return
        waiting, found = list(texts.values()), []
        for start in range(0, len(waiting), BLOCK_ROWS):
            found.append(self.encoder.encode(waiting[start : start + BLOCK_ROWS], batch_size=batch_size))
            bar.update(len(found[-1]))
        vectors = np.concatenate(found)
        number = len(self._shards)
        keys = np.frombuffer(b"".join(texts), dtype=np.uint8).reshape(-1, KEY_BYTES)
        # keys before vectors: the presence of the vectors makes the shard whole
        write_npy(self.folder / f"{number:05d}.keys.npy", keys)
        write_npy(self.folder / f"{number:05d}.npy", vectors.astype(self.dtype))
        self._shards.append(read_npy(self.folder / f"{number:05d}.npy"))
