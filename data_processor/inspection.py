"""One question of a dataset folder laid open: its subgraph as text and picture, and where its answers were lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.files import MANIFEST
from data_processor.graph_store import KnowledgeGraph, SubgraphStore, parse_triples
from data_processor.picture import draw
from data_processor.retrieval.folder import qa_files
from data_processor.schema import QAPair, Subgraph, atomic_write, read_qa


def find_question(data: Path, name: str) -> tuple[str, QAPair]:
    """(split, question) of the id; ValueError when no split has it."""
    files = qa_files(data)
    for split, path in files.items():
        for pair in read_qa(path):
            if pair.id == name:
                return split, pair
    raise ValueError(f"{data}/qa has no question {name!r} in {', '.join(files)}; ids are the 'id' of its lines")


def inspect_question(data: Path, name: str, picture: Path, max_tokens: int | None, tokenizer: Any) -> str:
    """Writes the picture of a question's subgraph and returns what is to be said about it.

    Args:
        data: a dataset folder after retrieve. name: the question's id. picture: the SVG file.
        max_tokens, tokenizer: of the text, as in `KnowledgeGraph.to_text`.

    Raises:
        ValueError: no such question, or no subgraph for it.
    """
    split, pair = find_question(data, name)
    graph, store = KnowledgeGraph.open(data / "graph"), SubgraphStore.open(data / "subgraphs" / split)
    subgraph = store.get(name)
    text, kept, rows = graph.text_rows(subgraph, max_tokens, tokenizer)
    with atomic_write(picture) as temporary:
        temporary.write_text(picture_of(graph, pair, subgraph), encoding="utf-8")
    method = json.loads((store.path / MANIFEST).read_text(encoding="utf-8"))
    cut = f"; {rows - kept} cut, the worst first, to hold the text to {max_tokens} tokens" if kept < rows else ""
    lines = [
        f"question  {pair.question}",
        f"answers   {', '.join(pair.answers)}",
        f"seeds     {', '.join(graph.node_name(pair.seed_nodes)) or 'none: run link'}",
        f"method    {method['method']} {json.dumps(method.get('parameters', {}))}",
        f"subgraph  {len(subgraph.nodes)} nodes, {len(subgraph.edges)} edges; {kept} of {rows} rows of text kept{cut}",
        *answer_lines(graph, pair, subgraph, text),
        f"picture   {picture}",
        "",
        text,
    ]
    return "\n".join(lines)


def picture_of(graph: KnowledgeGraph, pair: QAPair, subgraph: Subgraph, shrunk: float = 1.0) -> str:
    """The subgraph as SVG text, the question above it, seeds and answers in colour; `shrunk` as in `draw`."""
    edge_index, relations = graph.local(subgraph)
    names = graph.node_name(subgraph.nodes)
    return draw(names, edge_index, graph.relation_name(relations), kinds(pair, subgraph), pair.question, shrunk)


def kinds(pair: QAPair, subgraph: Subgraph) -> list[str]:
    """What each node of the subgraph is to the question: "seed", "answer", "both" or "other"."""
    seeds, answers = np.isin(subgraph.nodes, pair.seed_nodes), np.isin(subgraph.nodes, pair.answer_nodes)
    names = np.array(["other", "seed", "answer", "both"])
    return names[seeds + 2 * answers].tolist()


def answer_lines(graph: KnowledgeGraph, pair: QAPair, subgraph: Subgraph, text: str) -> list[str]:
    """Where each answer is: its rank among the nodes, or the stage at which it was lost."""
    ranks = {node: place for place, node in enumerate(subgraph.nodes.tolist(), start=1)}
    written = {name for row in parse_triples(text) for name in row}
    lines = []
    for node, name in zip(pair.answer_nodes, graph.node_name(pair.answer_nodes), strict=True):
        if node not in ranks:
            state = "not in the subgraph: the method did not reach it, or kept better nodes (more --max_nodes)"
        elif name not in written:
            state = f"node {ranks[node]} of {len(ranks)}, but its rows were cut from the text (more --max_tokens)"
        else:
            state = f"node {ranks[node]} of {len(ranks)}, in the text"
        lines.append(f"answer    {name}: {state}")
    known = set(graph.node_name(pair.answer_nodes))
    unknown = "no node of the graph is known for it" + ("" if pair.answer_nodes else " (link --answers looks for one)")
    return [*lines, *(f"answer    {name}: {unknown}" for name in pair.answers if name not in known)]
