"""The demonstration's dataset folder: a graph of invented entities, questions about them, their subgraphs, and texts.

    python -m data_processor.demo --output data/demo --seed 0 --questions 4200
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_processor.demo_world import RELATIONS, Question, World, make_questions, make_world, name_pool
from data_processor.graph_store import KnowledgeGraph, embed_graph, write_graph
from data_processor.schema import Document, QAPair, Subgraph, to_json, write_jsonl
from data_processor.subgraph_store import write_subgraphs

SMALLEST = 30  # people of a world in which some pairs are linked and some are not


@dataclass(frozen=True)
class Split:
    """One world, what is asked about it, and where its nodes and edges stand in the common graph."""

    world: World
    questions: list[Question]
    first_node: int
    edge_rows: np.ndarray  # (facts,) row of edges.npy that holds each fact


def split_sizes(questions: int) -> dict[str, int]:
    """Questions per split: `questions` to train on, a seventh of that to test, a twenty-first to validate."""
    return {"train": questions, "validation": questions // 21, "test": questions // 7}


def make_splits(seed: int, questions: int) -> dict[str, Split]:
    """One world and its questions per split; no name stands in two of them.

    Raises:
        ValueError: too few questions to fill a split, or more than the reserved names can serve.
    """
    if not 441 <= questions <= 5000:
        raise ValueError(f"--questions {questions} cannot be built: choose a number from 441 to 5000")
    rng = random.Random(seed)
    names = name_pool(reserved=True)
    rng.shuffle(names)
    sizes = split_sizes(questions)
    worlds = {split: make_world(rng, names, max(SMALLEST, size // 21 * 3)) for split, size in sizes.items()}
    nodes = np.cumsum([0] + [len(world.names) for world in worlds.values()])
    facts = np.cumsum([0] + [len(world.facts) for world in worlds.values()])
    heads = [nodes[i] + head for i, world in enumerate(worlds.values()) for head, _, _ in world.facts]
    rows = np.argsort(np.argsort(heads, kind="stable"), kind="stable")  # the graph keeps its edges in order of source
    splits = {}
    for i, (name, world) in enumerate(worlds.items()):
        asked = make_questions(world, rng, sizes[name])
        splits[name] = Split(world, asked, int(nodes[i]), rows[facts[i] : facts[i + 1]])
    return splits


def paragraphs(world: World) -> Iterator[tuple[str, list[int]]]:
    """For each entity a short paragraph of up to six sentences, its own facts first, and the entities it mentions."""
    verbs = {relation.name: relation.verb for relation in RELATIONS}
    incident = world.incident()
    for entity in range(len(world.names)):
        facts = [world.facts[row] for row in incident[entity]]
        facts = sorted(facts, key=lambda fact: fact[0] != entity)[:6]
        text = " ".join(f"{world.names[head]} {verbs[name]} {world.names[tail]}." for head, name, tail in facts)
        yield text, sorted({entity, *(node for head, _, tail in facts for node in (head, tail))})


def write_world(output: Path, splits: dict[str, Split], kinds_alone: bool = False) -> KnowledgeGraph:
    """Write graph/ and documents.jsonl: the worlds of all splits side by side.

    Args:
        output: the dataset folder. splits: the worlds.
        kinds_alone: the text of a node is its type, so that its embedding knows no name.
    """
    relation_ids = {relation.name: i for i, relation in enumerate(RELATIONS)}
    nodes, edges, documents, mentions = [], [], [], []
    for split in splits.values():
        first, world = split.first_node, split.world
        texts = world.types if kinds_alone else [None] * len(world.types)
        nodes += [{"name": name, "type": kind, "text": text}
                  for name, kind, text in zip(world.names, world.types, texts, strict=True)]  # fmt: skip
        edges += [(first + head, relation_ids[name], first + tail) for head, name, tail in world.facts]
        for entity, (text, mentioned) in enumerate(paragraphs(world)):
            mentions += [(len(documents), first + node) for node in mentioned]
            documents.append(Document(f"doc-{first + entity}", world.names[entity], text))
    write_jsonl(output / "documents.jsonl", (to_json(document) for document in documents))
    relations = [{"name": relation.name} for relation in RELATIONS]
    return write_graph(output / "graph", nodes, relations, np.array(edges), documents, np.array(mentions))


def write_questions(output: Path, name: str, split: Split, graph: KnowledgeGraph) -> None:
    """Write qa/NAME.jsonl and subgraphs/NAME."""
    pairs = [qa_pair(f"{name}-{i}", question, split.first_node) for i, question in enumerate(split.questions)]
    subgraphs = [
        graph.subgraph(pair.seed_nodes, split.edge_rows[question.facts])
        for pair, question in zip(pairs, split.questions, strict=True)
    ]
    report = {
        "answer_recall": answer_recall(pairs, subgraphs),
        "mean_nodes": float(np.mean([len(subgraph.nodes) for subgraph in subgraphs])),
        "mean_edges": float(np.mean([len(subgraph.edges) for subgraph in subgraphs])),
    }
    manifest = {"graph": "graph", "method": "demonstration", "parameters": {}}
    write_jsonl(output / "qa" / f"{name}.jsonl", (to_json(pair) for pair in pairs))
    write_subgraphs(output / "subgraphs" / name, [pair.id for pair in pairs], subgraphs, report, manifest)


def qa_pair(id: str, question: Question, first_node: int) -> QAPair:
    """The record of one question; a closed answer is no node, and its text must not be shown."""
    seeds = tuple(first_node + seed for seed in question.seeds)
    closed = question.answer_node is None
    return QAPair(
        id=id,
        question=question.text,
        answers=(question.answer,),
        answer_nodes=() if closed else (first_node + question.answer_node,),
        seed_nodes=seeds,
        supporting_documents=tuple(f"doc-{seed}" for seed in seeds),
        type=question.type,
        text=not closed,
    )


def answer_recall(pairs: list[QAPair], subgraphs: list[Subgraph]) -> float:
    """Share of the questions with answer nodes whose subgraph holds them."""
    found = [
        set(pair.answer_nodes) <= set(subgraph.nodes.tolist())
        for pair, subgraph in zip(pairs, subgraphs, strict=True)
        if pair.answer_nodes
    ]
    return float(np.mean(found)) if found else 1.0


def write_dataset(output: Path, seed: int, questions: int) -> KnowledgeGraph:
    """Write the whole dataset folder but for the features of the nodes.

    Args:
        output: the dataset folder.
        seed: every byte follows from it and `questions`.
        questions: number of training questions.
    """
    splits = make_splits(seed, questions)
    graph = write_world(output, splits)
    for name, split in splits.items():
        write_questions(output, name, split, graph)
    return graph


def main() -> None:
    """Build the demonstration's dataset folder."""
    parser = argparse.ArgumentParser(description="Build the demonstration's dataset folder.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=4200, help="training questions; the other splits follow")
    parser.add_argument("--text_encoder", default="hashing")
    arguments = parser.parse_args()
    from data_processor.text_encoder import load_encoder

    graph = write_dataset(arguments.output, arguments.seed, arguments.questions)
    embed_graph(graph.path, load_encoder(arguments.text_encoder))
    sizes = ", ".join(f"{size} {split}" for split, size in split_sizes(arguments.questions).items())
    print(f"{arguments.output}: {graph.num_nodes} entities, {graph.num_edges} facts, questions: {sizes}")


if __name__ == "__main__":
    main()
