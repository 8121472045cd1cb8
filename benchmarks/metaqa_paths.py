"""Two steps through MetaQA: the pairs of relations that questions ask for, facts on such paths, texts to read them.

A question is answered by the path that was read, without its beginning: ` | directed | Heat | has_genre | Crime`.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zlib import crc32

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.metaqa_texts import AGAIN, Text
from data_processor.demo_texts import ASSISTANT, END, USER
from data_processor.graph_store import KnowledgeGraph
from data_processor.schema import QAPair, Subgraph

Kind = tuple[str, str]  # names of the first and of the second relation
Fact = tuple[int, str, int]  # head, name of the relation, tail
BRANCHES = 3  # entities one step away that are kept for each relation: those with the most kinds of facts
TAILS = 3  # facts of one relation that are kept for each of them
CLOSED = ("year", "language", "genre")  # types with few names, each known from many questions
TURNS = 6  # questions in one text at most


def facts_from(graph: KnowledgeGraph, node: int) -> list[list[int]]:
    """The facts that begin at a node: [row, relation, tail]."""
    rows = graph.out_edges(np.array([node]))
    return np.column_stack([rows, graph.edges[rows, 1:]]).tolist()


def two_step_ends(graph: KnowledgeGraph, seed: int) -> dict[tuple[int, int], set[int]]:
    """What two steps lead to, but for the way back: {(first relation, second relation): nodes}."""
    ends: dict[tuple[int, int], set[int]] = defaultdict(set)
    for _, first, middle in facts_from(graph, seed):
        for _, second, end in facts_from(graph, middle):
            if end != seed:
                ends[first, second].add(end)
    return ends


def asked_kinds(graph: KnowledgeGraph, pairs: Sequence[QAPair]) -> dict[str, Kind]:
    """For every wording, `{}` for the name, the kind of path that most often leads to just the answers."""
    names, votes = graph.relation_name(np.arange(graph.num_relations)), defaultdict(Counter)
    for pair in pairs:
        topic, gold = graph.node_name(pair.seed_nodes)[0], set(pair.answer_nodes)
        if pair.question.count(topic) == 1:
            ends = two_step_ends(graph, pair.seed_nodes[0])
            votes[pair.question.replace(topic, "{}")].update(kind for kind, found in ends.items() if found == gold)
    best = {wording: counts.most_common(1)[0][0] for wording, counts in sorted(votes.items()) if counts}
    return {wording: (names[first], names[second]) for wording, (first, second) in best.items()}


def ways_to_ask(wordings: dict[str, Kind]) -> dict[Kind, list[str]]:
    """The wordings of every kind of path."""
    ways: dict[Kind, list[str]] = defaultdict(list)
    for wording, kind in wordings.items():
        ways[kind].append(wording)
    return dict(ways)


@dataclass(frozen=True)
class Paths:
    """Retrieval of two steps: the facts on paths of the kinds that training questions ask for.

    Attributes:
        wordings: what `asked_kinds` found.
    """

    wordings: dict[str, Kind]
    parameters: ClassVar[dict[str, int]] = {"branches": BRANCHES, "tails": TAILS}

    def find(self, graph: KnowledgeGraph, pair: QAPair) -> Subgraph:
        """The facts on paths from a question's entity, each step followed by what it leads to.

        Of every relation the BRANCHES neighbours that lead on in most ways, best first, and TAILS facts of each
        relation of theirs. Ties and all other order are drawn by the question's id.
        """
        rng, seed = random.Random(crc32(pair.id.encode())), pair.seed_nodes[0]
        ids = {name: place for place, name in enumerate(graph.relation_name(np.arange(graph.num_relations)))}
        kinds = {(ids[first], ids[second]) for first, second in self.wordings.values()}
        branches: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        steps = facts_from(graph, seed)
        rng.shuffle(steps)
        for row, first, middle in steps:
            seconds = [second for relation, second in kinds if relation == first]
            variety, rows = onward(graph, middle, seconds, seed, rng)
            if variety:
                branches[first].append((variety, [row, *rows]))
        best = (sorted(group, key=lambda branch: -branch[0])[:BRANCHES] for group in branches.values())
        kept = list(dict.fromkeys(row for group in best for _, rows in group for row in rows))
        return graph.subgraph(list(dict.fromkeys([seed, *graph.edges[kept][:, [0, 2]].flatten().tolist()])), kept)

    def learnt(self, graph: KnowledgeGraph, pair: QAPair, subgraph: Subgraph) -> QAPair | None:
        """The question with the first path of its kind as its answer; None if no such path was found."""
        seed = pair.seed_nodes[0]
        kind = self.wordings.get(pair.question.replace(graph.node_name([seed])[0], "{}"))
        path = first_path(named_facts(graph, subgraph), seed, kind) if kind else None
        if path is None or path[1] not in pair.answer_nodes:
            return None
        text = "".join(answer_pieces(kind, *graph.node_name(list(path))))
        return dataclasses.replace(pair, answers=(text,), answer_nodes=(path[1],))


def onward(
    graph: KnowledgeGraph, middle: int, seconds: Sequence[int], seed: int, rng: random.Random
) -> tuple[int, list[int]]:
    """(how many of the relations `seconds` lead on from a node but to `seed`, the rows of their first facts)."""
    steps = [step for step in facts_from(graph, middle) if step[1] in seconds and step[2] != seed]
    rng.shuffle(steps)
    listed: dict[int, list[int]] = defaultdict(list)
    for row, relation, _ in steps:
        listed[relation].append(row)
    return len(listed), [row for rows in listed.values() for row in rows[:TAILS]]


def named_facts(graph: KnowledgeGraph, subgraph: Subgraph) -> list[Fact]:
    """The facts of a subgraph in their order, relations by name."""
    edges = graph.edges[subgraph.edges]
    names = graph.relation_name(edges[:, 1])
    return list(zip(edges[:, 0].tolist(), names, edges[:, 2].tolist(), strict=True))


def first_path(facts: Sequence[Fact], seed: int, kind: Kind) -> tuple[int, int] | None:
    """(middle, end) of the path of this kind that is listed first."""
    for head, first, middle in facts:
        if (head, first) == (seed, kind[0]):
            for other, second, end in facts:
                if (other, second) == (middle, kind[1]) and end != seed:
                    return middle, end
    return None


def answer_pieces(kind: Kind, middle: str, end: str) -> list[str]:
    """An answer in pieces that no token spans."""
    return [f" | {kind[0]} | ", middle, f" | {kind[1]} | ", end]


@dataclass(frozen=True)
class Shape:
    """The facts found for a question without their names: nodes by number, the question's entity is 0."""

    types: list[str]
    facts: list[Fact]

    @classmethod
    def of(cls, graph: KnowledgeGraph, subgraph: Subgraph) -> Shape:
        """The shape of what `Paths.find` returned."""
        places = {node: place for place, node in enumerate(subgraph.nodes.tolist())}
        facts = [(places[head], name, places[tail]) for head, name, tail in named_facts(graph, subgraph)]
        return cls(list(graph.node_type(subgraph.nodes)), facts)


@dataclass(frozen=True)
class PathWriter:
    """Makes texts in which every entity bears another's name, so that nothing but reading helps.

    Attributes:
        shapes: to draw from.
        names: for all entities, or in half of the texts for those alone whose type is not closed.
        closed: names of the closed types.
        ways: for every kind of path the ways to ask for it.
        direct: share of questions that name the two relations as the facts do: the easiest to learn from.
    """

    shapes: Sequence[Shape]
    names: Sequence[str]
    closed: dict[str, list[str]]
    ways: dict[Kind, list[str]]
    direct: float

    def write(self, rng: random.Random) -> Text:
        """One text: the facts, then questions of different kinds, each answered by the path that is listed first."""
        shape = rng.choice(self.shapes)
        names, told = self.rename(shape, rng), set()
        text: Text = [(USER, 0.0)] + [("\n", 0.0)] * (rng.random() < 0.5)  # as below a line with a graph
        for head, relation, tail in shape.facts:
            text += [(names[head], AGAIN * (head in told)), (f" | {relation} | ", 0.0), (names[tail], 0.0)]
            text.append(("\n", 0.0))
            told |= {head, tail}
        paths = {kind: path for kind in self.ways if (path := first_path(shape.facts, 0, kind))}
        for i, kind in enumerate(rng.sample(sorted(paths), min(TURNS, len(paths)))):
            text += [("\n", 0.0) if i == 0 else (USER, 0.0), *self.question(rng, names[0], kind), (END, 0.0)]
            answer = answer_pieces(kind, *(names[node] for node in paths[kind]))
            text += [(ASSISTANT, 0.0), *((piece, 1.0) for piece in answer), (END, 1.0)]
        return text

    def rename(self, shape: Shape, rng: random.Random) -> list[str]:
        """A name for every node, no name twice."""
        names = rng.sample(self.names, len(shape.types))
        if rng.random() < 0.5:
            return names
        drawn = {kind: iter(rng.sample(pool, len(pool))) for kind, pool in self.closed.items()}
        return [next(drawn[kind]) if kind in drawn else name for kind, name in zip(shape.types, names, strict=True)]

    def question(self, rng: random.Random, topic: str, kind: Kind) -> Text:
        """The pieces of one question."""
        if rng.random() < self.direct:
            return [(topic, 0.0), *((f" | {relation} | ", 0.0) for relation in kind)]
        return [(rng.choice(self.ways[kind]).replace("{}", topic), 0.0)]
