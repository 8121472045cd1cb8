"""Vectors of questions and of their single tokens, made once and kept in a file named after the texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_processor.completion import fingerprint
from data_processor.files import read_npy, write_npy
from data_processor.text_encoder import load_encoder


def text_vectors(texts: list[str], encoder: str, folder: Path) -> np.ndarray:
    """(n, F) float32 vectors of n texts, read from `folder` if the same texts were embedded before."""
    path = folder / f"questions-{fingerprint([encoder, texts])}.npy"
    if not path.is_file():
        write_npy(path, load_encoder(encoder).encode(texts, progress=len(texts) > 1000))
    return np.array(read_npy(path))


def token_vectors(texts: list[str], encoder: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(vectors of all tokens (t, F) float32, offsets (n + 1,) of each text's), kept like `text_vectors`."""
    name = fingerprint([encoder, texts])
    paths = folder / f"tokens-{name}.npy", folder / f"tokens-{name}-offsets.npy"
    if not paths[1].is_file():  # written last
        found = load_encoder(encoder).encode_tokens(texts)
        write_npy(paths[0], np.concatenate(found).astype(np.float32))
        write_npy(paths[1], np.cumsum([0, *map(len, found)]))
    return np.array(read_npy(paths[0])), np.array(read_npy(paths[1]))
