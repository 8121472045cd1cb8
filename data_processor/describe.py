"""Summaries to questions: each node's description becomes the answer to a question about its graph (stage 2).

    python -m data_processor describe --data DATA
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_processor.graph_store import KnowledgeGraph, SubgraphStore, write_subgraphs
from data_processor.node_stars import FILE, read_summaries, star
from data_processor.schema import NodeSummary, QAPair, Subgraph, read_qa, to_json, write_jsonl

TYPE = "describe"
QUESTION = "Describe this node and what surrounds it."
METHOD = {"graph": "graph", "method": "neighbours", "parameters": {}}


def add_descriptions(data: Path, question: str = QUESTION) -> dict[str, int]:
    """Adds a question for each summary to qa/ and subgraphs/, in the summary's own split; returns how many to each.

    Questions that are there stay, with their subgraphs; those of an earlier call are replaced. Only graph tokens can
    answer the new ones (`"text": false`): their subgraph is the node with the neighbours that it was described by.

    Raises:
        ValueError: there is no summaries.jsonl.
    """
    if not (data / FILE).is_file():
        raise ValueError(f"{data} has no {FILE}. Run: python -m data_processor produce --data {data} --help")
    graph, counts = KnowledgeGraph.open(data / "graph"), {}
    summaries = read_summaries(data / FILE)
    for split in ("train", "validation", "test"):
        own = [one for one in summaries if one.split == split]
        if own:
            write_split(data, split, own, graph, question)
            counts[split] = len(own)
    return counts


def write_split(data: Path, split: str, own: list[NodeSummary], graph: KnowledgeGraph, question: str) -> None:
    """Writes the questions and subgraphs of one split, the earlier ones first."""
    path, folder = data / "qa" / f"{split}.jsonl", data / "subgraphs" / split
    pairs, subgraphs, manifest = [], [], METHOD
    if path.is_file():
        pairs = [pair for pair in read_qa(path) if pair.type != TYPE]
    if pairs:
        store = SubgraphStore.open(folder)
        subgraphs = [store.get(pair.id) for pair in pairs]
        manifest = {name: store.manifest[name] for name in METHOD}
    pairs += [described(one, split, question) for one in own]
    subgraphs += [star(graph, one) for one in own]
    write_jsonl(path, map(to_json, pairs))
    write_subgraphs(folder, [pair.id for pair in pairs], subgraphs, report_of(pairs, subgraphs), manifest)


def described(one: NodeSummary, split: str, question: str) -> QAPair:
    """The question whose answer is a summary."""
    return QAPair(f"{TYPE}-{split}-{one.node}", question, (one.text,), seed_nodes=(one.node,), type=TYPE, text=False)


def report_of(pairs: list[QAPair], subgraphs: list[Subgraph]) -> dict[str, float]:
    """Sizes, and the share of the answer nodes that the subgraphs hold."""
    found = [
        float(np.isin(pair.answer_nodes, subgraph.nodes).mean())
        for pair, subgraph in zip(pairs, subgraphs, strict=True)
        if pair.answer_nodes
    ]
    sizes = {"nodes": [len(one.nodes) for one in subgraphs], "edges": [len(one.edges) for one in subgraphs]}
    report = {f"mean_{name}": float(np.mean(values)) for name, values in sizes.items()}
    return report | ({"answer_recall": float(np.mean(found))} if found else {})
