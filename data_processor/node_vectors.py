"""Vectors that were made elsewhere in the place of a graph's embedded texts: .npy, .pt or .safetensors.

python -m data_processor embed --graph DATA/graph --vectors output/cora/node_states.npy
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_processor.files import named_by_values, read_npy, write_manifest, write_npy
from data_processor.graph_store import FEATURE_FILES, KnowledgeGraph, without_features
from data_processor.text_encoder import load_encoder

ROWS = 65536  # copied at a time


def embed_with(path: Path, vectors: Path, dtype: str = "float32") -> KnowledgeGraph:
    """Takes a file's rows as the vectors of a graph's nodes, and opens the graph again.

    Args:
        path: the graph folder.
        vectors: .npy, read as a memory map; .pt or .safetensors with one tensor, read without running anything.
        dtype: "float16" or "float32", to be written.

    Raises:
        ValueError: no such file, another number of rows than nodes, or a value that is not finite
            or that the dtype cannot hold.
    """
    return write_vectors(path, read_vectors(vectors), vectors.name, dtype)


def read_vectors(path: Path) -> np.ndarray:
    """The array of a file; of a .pt or .safetensors its only tensor."""
    if path.suffix == ".npy":
        if not path.is_file():
            raise ValueError(f"{path} does not exist; name a file of vectors: .npy, .pt or .safetensors")
        return read_npy(path)
    from data_processor.importers.tensors import load_plain  # whose package has an importer that needs this module

    value = load_plain(path)
    tensors = list(value.values()) if isinstance(value, dict) else [value]
    if len(tensors) != 1:
        raise ValueError(f"{path} holds {len(tensors)} tensors; save the vectors of the nodes alone, (nodes, width)")
    return tensors[0].detach().float().numpy()


def write_vectors(path: Path, vectors: np.ndarray, name: str, dtype: str = "float32") -> KnowledgeGraph:
    """Writes node_features.npy and, of the same width, the hashed words of relations; the manifest last."""
    graph = KnowledgeGraph.open(path)
    check_vectors(vectors, graph.num_nodes, name, dtype)
    graph = without_features(graph)
    width, encoder = vectors.shape[1], named_by_values(f"given:{name}", vectors)
    write_npy(graph.path / "node_features.npy", vectors.astype(dtype, copy=False))
    relations = load_encoder(f"hashing:{width}").encode(graph.relation_text(np.arange(graph.num_relations)))
    write_npy(graph.path / "relation_features.npy", relations.astype(dtype))
    entries = {**graph.manifest, "text_encoder": encoder, "feature_width": width}
    write_manifest(graph.path, entries, [*graph.manifest["bytes"], *FEATURE_FILES])
    return KnowledgeGraph.open(graph.path)


def check_vectors(vectors: np.ndarray, nodes: int, name: str, dtype: str) -> None:
    """Raises ValueError unless there is one row a node, finite and within the range of the dtype to be written."""
    if vectors.ndim != 2 or len(vectors) != nodes or vectors.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} holds {vectors.dtype} of shape {vectors.shape}, and the graph has {nodes} nodes. Give one row of "
            f"numbers a node, in the order of their ids: ({nodes}, width)."
        )
    largest = np.finfo(dtype).max
    for start in range(0, len(vectors), ROWS):
        rows = vectors[start : start + ROWS]
        bad = np.argwhere(~np.isfinite(rows))
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"{name} holds {vectors[start + row, column]} in row {start + row}, the vector of that node. A model "
                "would answer with NaN for every graph that holds it: repair the row, or set it to zeros, which stand "
                "for a node without a vector."
            )
        large = np.argwhere((rows > largest) | (rows < -largest))
        if len(large):
            row, column = large[0]
            raise ValueError(
                f"{name} holds {rows[row, column]} in row {start + row}, beyond the {largest:g} of {dtype}, which "
                "would make it infinite. Scale the vectors down or, with float16, say --dtype float32."
            )
