"""A graph of nodes with vectors, classes and a split in one .npz, as Planetoid's graphs are handed on.

python -m data_processor import npz --input cora.npz --output DATA
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_processor.graph_store import KnowledgeGraph, write_graph
from data_processor.importers.pyg import usable
from data_processor.importers.rows import ImportReport, require
from data_processor.node_vectors import write_vectors
from data_processor.schema import QAPair, Rejected, to_json, write_jsonl

SPLITS = {"train": "train", "val": "validation", "test": "test"}
QUESTION = "Which class does {} belong to?"


def import_npz(source: Path, output: Path) -> ImportReport:
    """Writes graph/, and a question a labelled node into qa/; a row is an edge, or a label that names no class.

    Arrays: `edges` (M, 2) node ids; `x` (N, F), or in CSR form `x_indptr` (N + 1,), `x_indices` (of ones, or with
    `x_data`) and `num_features`; `y` (N,) class numbers; `train`, `val`, `test` node ids; optionally `class_names`
    and `node_names`. Without names classes are called "class 0", nodes "node 0". The question of a node has the node
    as its seed and the name of its class as its answer.

    Args:
        source: the file. output: the dataset folder.

    Raises:
        ValueError: no such file, an array that is missing, of another shape, or holds objects (which could run code).
    """
    arrays = load_arrays(source)
    with Rejected(output / "rejected.jsonl") as rejected:
        ends = needed(arrays, "edges", source)
        if ends.ndim != 2 or ends.shape[1] != 2:
            raise ValueError(f"{source}: edges has shape {ends.shape}, expected (M, 2), an edge a row; transpose it")
        edges = np.stack([ends[:, 0], np.zeros(len(ends), ends.dtype), ends[:, 1]], axis=1).astype(np.int64)
        vectors = dense(arrays, source)
        kept = usable(edges, len(vectors), 1, source, rejected)
        names = [str(name) for name in arrays.get("node_names", [f"node {i}" for i in range(len(vectors))])]
        graph = write_graph(output / "graph", ({"name": name} for name in names), [{"name": "linked to"}], edges[kept])
        write_vectors(graph.path, vectors, source.name)
        counts = write_questions(output, graph, arrays, source, rejected) if "y" in arrays else {}
        told = ", ".join(f"{count} {split}" for split, count in counts.items())
        summary = f"{graph.num_nodes} nodes, {graph.num_edges} edges; questions: {told or 'none'}; in {output}"
        return ImportReport(int(kept.sum()) + rejected.count, int(kept.sum()), rejected.count, summary)


def load_arrays(source: Path) -> dict[str, np.ndarray]:
    """The arrays of the file."""
    try:
        with np.load(require(source), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise ValueError(f"{source} is no npz of plain arrays ({error}); save numbers and strings only") from error


def needed(arrays: dict[str, np.ndarray], name: str, source: Path) -> np.ndarray:
    """An array by its name; ValueError where it is missing."""
    if name not in arrays:
        raise ValueError(f"{source} has no array {name!r}; it holds {', '.join(sorted(arrays))}")
    return arrays[name]


def dense(arrays: dict[str, np.ndarray], source: Path) -> np.ndarray:
    """The nodes' vectors (N, F) float32."""
    if "x" in arrays:
        return arrays["x"].astype(np.float32)
    starts, columns = needed(arrays, "x_indptr", source), needed(arrays, "x_indices", source)
    vectors = np.zeros((len(starts) - 1, int(needed(arrays, "num_features", source))), dtype=np.float32)
    rows = np.repeat(np.arange(len(vectors)), np.diff(starts))
    vectors[rows, columns] = arrays.get("x_data", np.ones(len(columns), dtype=np.float32))
    return vectors


def write_questions(
    output: Path, graph: KnowledgeGraph, arrays: dict[str, np.ndarray], source: Path, rejected: Rejected
) -> dict[str, int]:
    """Writes qa/; returns the number of questions by split. A label outside the classes is rejected."""
    labels, counts = arrays["y"], {}
    if labels.shape != (graph.num_nodes,) or labels.dtype.kind not in "iu":
        found = f"y holds {labels.dtype} of shape {labels.shape}"
        raise ValueError(f"{source}: {found}; give a whole number for each of the {graph.num_nodes} nodes")
    classes = arrays.get("class_names", [f"class {number}" for number in range(int(labels.max()) + 1)])
    for name, split in SPLITS.items():
        nodes = arrays.get(name, np.zeros(0, dtype=np.int64)).astype(np.int64)
        pairs = []
        for node, title in zip(nodes.tolist(), graph.node_name(nodes), strict=True):
            if 0 <= labels[node] < len(classes):
                answer = str(classes[labels[node]])
                pairs.append(QAPair(f"{split}-{node}", QUESTION.format(title), (answer,), seed_nodes=(node,)))
            else:
                reason = f"its class {labels[node]} is none of {len(classes)}, which are counted from 0"
                rejected.add(source, node + 1, reason, {"split": split, "node": node})
        if pairs:
            counts[split] = write_jsonl(output / "qa" / f"{split}.jsonl", (to_json(pair) for pair in pairs))
    return counts
