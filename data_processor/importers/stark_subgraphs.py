"""Subgraphs of STaRK questions computed before, as the neo4j and qlora_graphrag examples save them in .pt files."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_processor.graph_store import KnowledgeGraph
from data_processor.importers.questions import write_questions
from data_processor.importers.rows import LINE_LIMIT, ImportReport
from data_processor.importers.tensors import load_plain
from data_processor.importers.union import GraphUnion, write_given
from data_processor.schema import QAPair, Rejected, Subgraph

SPLITS = {"train": "train", "val": "validation", "test": "test"}
NAMED = re.compile(r"name: (.*?), description: ", flags=re.DOTALL)
QUESTION = re.compile(r"\s*(?:Question:)?\s*(.*?)\s*(?:Answer:)?\s*", flags=re.DOTALL)


class Example:
    """One question with the nodes and triples that its `desc` lists; nodes go by their ids.

    Args:
        item: {"question", "label", "desc"} of one saved Data.
    """

    def __init__(self, item: Any) -> None:
        texts = [item.get(key) for key in ("question", "label", "desc")] if isinstance(item, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("expected a Data with texts 'question', 'label' and 'desc'")
        self.question = QUESTION.fullmatch(item["question"])[1]
        self.answers = tuple(dict.fromkeys(name.strip() for name in item["label"].split("|") if name.strip()))
        if not self.question or not self.answers:
            raise ValueError("the question or its answers are empty")
        nodes, edges = tables_of(item["desc"])
        self.texts = {row["node_id"]: row["node_attr"] for row in nodes}
        self.scores = {row["node_id"]: float(row.get("vector_similarity") or 0) for row in nodes}
        self.triples = list(dict.fromkeys((row["src"], row["edge_attr"], row["dst"]) for row in edges))
        for head, _, tail in self.triples:
            for node in (head, tail):
                if node not in self.texts:
                    raise ValueError(f"an edge of 'desc' names the node {node[:40]!r}, which its nodes do not list")
        self.part = -1


def subgraph_files(source: Path) -> dict[str, Path]:
    """{train,val,test}_data.pt of a folder, or below its processed/, by split."""
    places = (source, source / "processed")
    found = {split: place / f"{name}_data.pt" for place in places for name, split in SPLITS.items()
             if (place / f"{name}_data.pt").is_file()}  # fmt: skip
    return {split: found[split] for split in SPLITS.values() if split in found}


def import_subgraphs(source: Path, output: Path) -> ImportReport:
    """Writes a dataset folder: the union of all subgraphs as the graph, the questions, and each one's own subgraph.

    Nodes are named by the `name: ..., description: ...` of `desc`, which is their text, and scored by its
    `vector_similarity`. The saved node vectors `x` are left out (they stand in another order than `desc`, and
    relations have none): run `embed`.

    Args:
        source: the folder with {train,val,test}_data.pt: lists of PyG Data or of dicts, or InMemoryDataset's form.
        output: the dataset folder.

    Raises:
        ValueError: no item can be used, or a file holds more than tensors and texts.
    """
    union, texts, count = GraphUnion(), {}, 0
    splits: dict[str, list[Example]] = {}
    with Rejected(output / "rejected.jsonl") as rejected:
        for split, path in subgraph_files(source).items():
            items = load_plain(path)
            splits[split] = []
            for line, item in enumerate(tqdm(items, desc=path.name, unit=" questions", delay=2), start=1):
                count += 1
                try:
                    example = Example(item)
                except ValueError as error:
                    rejected.add(path, line, str(error), str(item))
                    continue
                splits[split].append(example)
                texts.update(example.texts)
                example.part = union.add(example.triples, example.texts)
        graph = union.write(output / "graph", {node: record(node, text) for node, text in texts.items()})
        pairs = {split: write_split(output, split, examples, graph, union) for split, examples in splits.items()}
        sizes = write_questions(output, pairs)
        kept = sum(map(len, pairs.values()))
        summary = f"{graph.num_nodes} nodes, {graph.num_edges} edges; questions: {sizes}; in {output}"
        return ImportReport(count, kept, rejected.count, summary)


def tables_of(text: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the two CSV tables of a `desc`: nodes (node_id, node_attr, ...) and edges (src, edge_attr, dst)."""
    csv.field_size_limit(LINE_LIMIT)
    tables: list[list[dict[str, str]]] = []
    columns: list[str] = []
    try:
        for fields in csv.reader(text.splitlines(keepends=True), strict=True):
            if {"node_id", "node_attr"} <= set(fields) or {"src", "edge_attr", "dst"} <= set(fields):
                columns = fields
                tables.append([])
            elif fields:
                tables[-1].append(dict(zip(columns, fields, strict=True)))
    except (csv.Error, ValueError, IndexError) as error:
        raise ValueError(f"'desc' is no pair of CSV tables ({error})") from error
    if len(tables) != 2 or not tables[0]:
        raise ValueError("'desc' must be a table with node_id and node_attr, then one with src, edge_attr and dst")
    return tables[0], tables[1]


def record(node: str, text: str) -> dict[str, Any]:
    """A node as `write_graph` takes it."""
    named = NAMED.match(text)
    return {"name": named[1] if named else text, "text": text, "attributes": {"stark_id": node}}


def write_split(
    output: Path, split: str, examples: list[Example], graph: KnowledgeGraph, union: GraphUnion
) -> list[QAPair]:
    """Writes the subgraphs of one split; returns its questions, whose answer nodes bear an answer's name."""
    pairs: list[QAPair] = []
    subgraphs: list[Subgraph] = []
    for number, one in enumerate(examples):
        nodes = [union.nodes[node] for node in one.texts]
        names = [name.lower() for name in graph.node_name(nodes)]
        answers = tuple(node for node, name in zip(nodes, names, strict=True) if name in one.answers)
        pairs.append(QAPair(f"{split}-{number}", one.question, one.answers, answers))
        scores = np.array([one.scores[node] for node in one.texts])
        subgraphs.append(graph.subgraph(nodes, union.rows(one.part), scores))
    write_given(output / "subgraphs" / split, [pair.id for pair in pairs], subgraphs)
    return pairs
