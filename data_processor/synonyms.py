"""Synonym edges: entities whose embeddings are near get an edge "equivalent", so that two spellings are one place.

    python -m data_processor synonyms --graph DATA/graph --threshold .8 --max_neighbours 100
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from data_processor.embedding_cache import KEY_BYTES, Encoder, text_key
from data_processor.files import write_arrow, write_manifest, write_npy
from data_processor.graph_store import EDGE_FEATURE_FILES, RELATION_SCHEMA, checked_edges, write_edges
from data_processor.knowledge_graph import KnowledgeGraph
from data_processor.schema import atomic_write
from data_processor.vector_index import unit_rows

RELATION = "equivalent"
LEAST_LETTERS = 3  # names with fewer letters and digits have no synonyms
ROWS, COLUMNS = 1024, 16384  # vectors compared at a time
SAVE_SECONDS = 60.0


class Neighbours:
    """The nearest entities of those seen so far, in memory and in one file: a killed or later run goes on from it.

    A row is known by its key, not by its place, so a graph that has grown compares only what is new with all.

    Args:
        path: the file. threshold: least cosine of two neighbours. most: neighbours kept of each row, the nearest.
    """

    def __init__(self, path: Path, threshold: float, most: int) -> None:
        self.path, self.threshold, self.most = path, threshold, most
        self.rows = np.zeros(0, np.int64)  # rows seen so far
        self.pairs = np.zeros((0, 2), np.int64)  # every pair in both directions
        self.cosines = np.zeros(0, np.float32)

    def load(self, keys: np.ndarray) -> None:
        """Takes up what the file knows of the rows with these keys (n, 16) uint8.

        A row that has lost a neighbour while others may have been cut off at `most` counts as not seen.
        """
        if not self.path.is_file():
            return
        kept = load_file(self.path)
        places = {key.tobytes(): row for row, key in enumerate(keys)}
        rows = np.array([places.get(key.tobytes(), -1) for key in kept["keys"]], dtype=np.int64)
        pairs = rows[kept["pairs"]]
        full = np.bincount(kept["pairs"][:, 0], minlength=len(rows)) >= self.most
        lost = full & (np.bincount(kept["pairs"][pairs[:, 1] < 0, 0], minlength=len(rows)) > 0)
        rows[lost] = -1
        whole = (rows[kept["pairs"]] >= 0).all(1)
        self.rows = rows[rows >= 0]
        self.pairs, self.cosines = pairs[whole], kept["cosines"][whole]

    def save(self, keys: np.ndarray) -> None:
        """Writes the file."""
        place = np.full(len(keys), -1)
        place[self.rows] = np.arange(len(self.rows))
        values = {"keys": keys[self.rows], "pairs": place[self.pairs].reshape(-1, 2), "cosines": self.cosines}
        with atomic_write(self.path) as temporary:
            save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, temporary)

    def add(self, vectors: np.ndarray, new: np.ndarray) -> None:
        """Compares the rows `new` (m,) with themselves and with all rows seen before."""
        self.rows = np.concatenate([self.rows, new])
        mine, found, cosines = unit_rows(vectors[new]), [self.pairs], [self.cosines]
        for start in range(0, len(self.rows), COLUMNS):
            others = self.rows[start : start + COLUMNS]
            products = mine @ unit_rows(vectors[others]).T
            left, right = np.nonzero(products >= self.threshold)
            pairs = np.stack([new[left], others[right]], axis=1)
            apart = pairs[:, 0] != pairs[:, 1]
            pairs, near = pairs[apart], products[left, right][apart]
            found += [pairs, pairs[:, ::-1]]
            cosines += [near, near]
        self.pairs, self.cosines = nearest(np.concatenate(found), np.concatenate(cosines), self.most)


def nearest(pairs: np.ndarray, cosines: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs (p, 2) with cosines (p,) each once, and of those with one first row the `most` nearest."""
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    cosines = cosines[first]
    order = np.lexsort((pairs[:, 1], -cosines, pairs[:, 0]))
    pairs, cosines = pairs[order], cosines[order]
    starts = np.searchsorted(pairs[:, 0], pairs[:, 0])
    kept = np.arange(len(pairs)) - starts < most
    return pairs[kept], cosines[kept]


def find_synonyms(graph: KnowledgeGraph, threshold: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of nodes whose embeddings have at least this cosine: ((p, 2) in both directions, cosines (p,)).

    All pairs are compared, in blocks; what was found lies in `synonyms/` beside the graph's folder.

    Args:
        graph: embedded. threshold: least cosine. most: neighbours kept of a node; it may be a neighbour of more.
    """
    keys, able = node_keys(graph)
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{graph.text_encoder}-{threshold:g}-{most}")
    known = Neighbours(graph.path.parent / "synonyms" / f"{name}.safetensors", threshold, most)
    known.load(keys)
    new, saved = np.setdiff1d(able, known.rows), time.monotonic()
    with tqdm(total=len(new), desc="synonyms", unit=" nodes", delay=2) as bar:
        for start in range(0, len(new), ROWS):
            block = new[start : start + ROWS]
            known.add(graph.node_features, block)
            bar.update(len(block))
            if time.monotonic() - saved > SAVE_SECONDS:
                known.save(keys)
                saved = time.monotonic()
    if len(new):
        known.save(keys)
    return known.pairs, known.cosines


def node_keys(graph: KnowledgeGraph) -> tuple[np.ndarray, np.ndarray]:
    """(keys (N, 16) uint8 of the nodes' texts, nodes (n,) whose names are long enough to have synonyms).

    Of several nodes with one text the second and later ones have keys of their own.
    """
    keys, able, seen = np.zeros((graph.num_nodes, KEY_BYTES), np.uint8), [], {}
    for node, (name, text) in enumerate(zip(graph.iter_names(), graph.iter_texts(), strict=True)):
        seen[text] = seen.get(text, 0) + 1
        keys[node] = np.frombuffer(text_key(f"{text}\0{seen[text]}"), np.uint8)
        if sum(letter.isalnum() for letter in name) >= LEAST_LETTERS:
            able.append(node)
    return keys, np.array(able, dtype=np.int64)


def add_synonyms(path: str | Path, encoder: Encoder, threshold: float = 0.8, most: int = 100) -> KnowledgeGraph:
    """Adds the relation "equivalent" to a graph folder and opens it again; synonyms of an earlier run are replaced.

    Every other edge stays, also one between the same two nodes. Both directions of a pair are written. Edges get new
    row numbers: subgraphs must be retrieved again, and sentences of edges embedded again.

    Args:
        path: an embedded graph's folder.
        encoder: the graph's, for the embedding of the new relation.
        threshold: least cosine of two names that mean the same. most: see `find_synonyms`.

    Raises:
        ValueError: a graph that is not embedded, or by another encoder; a threshold that is not between 0 and 1.
    """
    folder = recovered(Path(path))
    graph = KnowledgeGraph.open(folder)
    if graph.node_features is None:
        raise ValueError(f"{folder} is not embedded; run: python -m data_processor embed --graph {folder}")
    if encoder.name != graph.text_encoder:
        raise ValueError(f"the graph was embedded by {graph.text_encoder}, not by {encoder.name}; use one encoder")
    if not 0 < threshold <= 1 or most < 1:
        given = f"threshold {threshold}, max_neighbours {most}"
        raise ValueError(f"{given}: a threshold lies between 0 and 1, and at least one neighbour is kept")
    pairs, _ = find_synonyms(graph, threshold, most)
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    with_synonyms(graph, pairs, encoder, {"threshold": threshold, "max_neighbours": most})
    return KnowledgeGraph.open(folder)


def with_synonyms(graph: KnowledgeGraph, pairs: np.ndarray, encoder: Encoder, settings: dict[str, Any]) -> None:
    """Writes the graph with these synonyms into a folder beside it and lets the two change places."""
    edges, own, entries = np.array(graph.edges), graph.num_relations, dict(graph.manifest)
    if "synonyms" in entries:
        own = entries["synonyms"]["relation"]
        edges = edges[edges[:, 1] != own]
    new = np.stack([pairs[:, 0], np.full(len(pairs), own), pairs[:, 1]], axis=1)
    edges = checked_edges(np.concatenate([edges, new]))
    ids = np.arange(own)
    names, texts = [*graph.relation_name(ids), RELATION], [*graph.relation_text(ids), RELATION]
    features = np.concatenate([graph.relation_features[:own], encoder.encode([RELATION])])
    target = graph.path.with_name(f".{graph.path.name}.new")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    files = [name for name in entries["bytes"] if name not in EDGE_FEATURE_FILES]
    for name in files:
        os.link(graph.path / name, target / name)  # what does not change is the same file; writers rename, never edit
    write_edges(target, edges, graph.num_nodes)
    write_arrow(target / "relations.arrow", RELATION_SCHEMA, [{"id": range(own + 1), "name": names, "text": texts}])
    write_npy(target / "relation_features.npy", features.astype(graph.relation_features.dtype))
    entries["counts"] = {**entries["counts"], "edges": len(edges), "relations": own + 1}
    entries["synonyms"] = {"relation": own, "edges": len(new), **settings}
    entries["edge_sentences"] = None
    write_manifest(target, entries, files)
    swap(graph.path, target)


def swap(folder: Path, new: Path) -> None:
    """Puts the folder `new` in the place of `folder`, which is deleted."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old)


def recovered(folder: Path) -> Path:
    """The folder, put back where a killed run had moved it aside."""
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and old.is_dir():
        old.rename(folder)
    return folder


