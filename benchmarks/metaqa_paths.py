"""Paths through MetaQA: the relations that questions ask for in turn, the facts on such paths, texts to read them.

A question is answered by the path that was read, without its beginning: ` | directed | Heat | has_genre | Crime`.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm import tqdm

from benchmarks.metaqa_texts import AGAIN, Text
from data_processor.demo_texts import ASSISTANT, END, USER
from data_processor.graph_store import KnowledgeGraph
from data_processor.schema import QAPair, Subgraph

Kind = tuple[str, ...]  # names of the relations of a path in their order
Fact = tuple[int, str, int]  # head, name of the relation, tail
LISTED = {2: (3, 3), 3: (2, 2, 1)}  # facts of one relation that are kept at every step, by the length of the paths
LOOKED_AT = 6  # of the facts of one relation in the middle of a path
HUB = 100  # whoever has more facts is not walked through to learn what wordings ask for
CLOSED = ("year", "language", "genre")  # types with few names, each known from many questions
TURNS = 6  # questions in one text at most


@cache
def facts_from(graph: KnowledgeGraph, node: int) -> list[list[int]]:
    """The facts that begin at a node: [row, relation, tail]; remembered, because paths cross."""
    rows = graph.out_edges(np.array([node]))
    return np.column_stack([rows, graph.edges[rows, 1:]]).tolist()


def path_ends(graph: KnowledgeGraph, seed: int, steps: int) -> dict[tuple[int, ...], set[int]]:
    """What paths of so many steps lead to, but for the way back: {relations: nodes}."""
    reached: dict[tuple[int, ...], set[int]] = {(): {seed}}
    for step in range(steps):
        ends: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for kind, nodes in reached.items():
            walked = (facts for node in nodes if len(facts := facts_from(graph, node)) <= HUB or step == 0)
            for _, relation, end in chain.from_iterable(walked):
                ends[*kind, relation].add(end)
        reached = {kind: nodes - {seed} for kind, nodes in ends.items()}
    return reached


def asked_kinds(graph: KnowledgeGraph, pairs: Sequence[QAPair], steps: int) -> dict[str, Kind]:
    """For every wording, `{}` for the name, the kind of path that most often leads to just the answers."""
    names, votes = graph.relation_name(np.arange(graph.num_relations)), defaultdict(Counter)
    for pair in tqdm(pairs, desc="wordings", unit=" questions", delay=2):
        topic, gold = graph.node_name(pair.seed_nodes)[0], set(pair.answer_nodes)
        if pair.question.count(topic) == 1:
            ends = path_ends(graph, pair.seed_nodes[0], steps)
            votes[pair.question.replace(topic, "{}")].update(kind for kind, found in ends.items() if found == gold)
    best = {wording: counts.most_common(1)[0][0] for wording, counts in sorted(votes.items()) if counts}
    return {wording: tuple(names[relation] for relation in kind) for wording, kind in best.items()}


def ways_to_ask(wordings: dict[str, Kind]) -> dict[Kind, list[str]]:
    """The wordings of every kind of path."""
    ways: dict[Kind, list[str]] = defaultdict(list)
    for wording, kind in wordings.items():
        ways[kind].append(wording)
    return dict(ways)


@dataclass(frozen=True)
class Paths:
    """Retrieval of paths: the facts on paths of the kinds that training questions ask for.

    Attributes:
        wordings: what `asked_kinds` found; all kinds are of one length.
    """

    wordings: dict[str, Kind]

    @property
    def parameters(self) -> dict[str, Any]:
        """For the manifest of the subgraphs."""
        steps = len(next(iter(self.wordings.values())))
        return {"steps": steps, "listed": LISTED[steps]}

    def find(self, graph: KnowledgeGraph, pair: QAPair) -> Subgraph:
        """The facts on paths from a question's entity, each step followed by what it leads to.

        Of every relation the few neighbours that lead on in most ways are kept, best first. Ties and all other order
        are drawn by the question's id.
        """
        return self.walked(graph, pair, None)

    def among(self, graph: KnowledgeGraph, pair: QAPair, found: Subgraph) -> Subgraph:
        """The same among the nodes that another method found; those paths first that end at its best nodes."""
        best_first = found.nodes[np.argsort(-found.node_scores, kind="stable")].tolist()
        return self.walked(graph, pair, {node: rank for rank, node in enumerate(best_first)})

    def walked(self, graph: KnowledgeGraph, pair: QAPair, ranks: dict[int, int] | None) -> Subgraph:
        """What a walk from a question's entity keeps."""
        rng, seed = random.Random(crc32(pair.id.encode())), pair.seed_nodes[0]
        ids = {name: place for place, name in enumerate(graph.relation_name(np.arange(graph.num_relations)))}
        kinds = {tuple(ids[name] for name in kind) for kind in self.wordings.values()}
        _, rows = Walk(graph, seed, rng, self.parameters["listed"], ranks).on(seed, kinds)
        kept = list(dict.fromkeys(rows))
        return graph.subgraph(list(dict.fromkeys([seed, *graph.edges[kept][:, [0, 2]].flatten().tolist()])), kept)

    def learnt(self, graph: KnowledgeGraph, pair: QAPair, subgraph: Subgraph) -> QAPair | None:
        """The question with the first path of its kind as its answer; None if no such path was found."""
        seed = pair.seed_nodes[0]
        kind = self.wordings.get(pair.question.replace(graph.node_name([seed])[0], "{}"))
        path = first_path(named_facts(graph, subgraph), seed, kind) if kind else None
        if path is None or path[-1] not in pair.answer_nodes:
            return None
        text = "".join(answer_pieces(kind, graph.node_name(list(path))))
        return dataclasses.replace(pair, answers=(text,), answer_nodes=(path[-1],))


@dataclass(frozen=True)
class Walk:
    """The walk from one question's entity.

    Attributes:
        rng: of the order.
        listed: a row of LISTED.
        ranks: of the nodes that may be walked on, best 0; None: all, and paths are chosen by their variety.
    """

    graph: KnowledgeGraph
    seed: int
    rng: random.Random
    listed: tuple[int, ...]
    ranks: dict[int, int] | None = None

    def on(self, node: int, kinds: set[tuple[int, ...]]) -> tuple[int, list[int]]:
        """(how good the paths that lead on from a node are, the rows of their facts); never back to the entity.

        They are the better the more kinds they are of, or, with ranks, the better the best node where one ends.
        """
        rests: dict[int, set[tuple[int, ...]]] = defaultdict(set)
        for first, *rest in kinds:
            rests[first].add(tuple(rest))
        branches: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for row, relation, middle in self.steps(node, set(rests)):
            if relation not in rests or (self.ranks is None and node != self.seed
                                         and len(branches[relation]) == LOOKED_AT):  # fmt: skip
                continue
            last = rests[relation] == {()}
            worth, rows = (self.worth(middle), []) if last else self.on(middle, rests[relation])
            if last or rows:
                branches[relation].append((worth, [row, *rows]))
        listed = self.listed[-len(next(iter(kinds)))]
        best = [sorted(group, key=lambda branch: -branch[0])[:listed] for group in branches.values() if group]
        kept = [row for group in best for _, rows in group for row in rows]
        tops = [group[0][0] for group in best]
        return (sum(tops) if self.ranks is None else max(tops, default=0)), kept

    def steps(self, node: int, relations: set[int]) -> list[list[int]]:
        """The facts from a node that may be walked on, in random order, or in that of the ranks of their ends."""
        steps = [step for step in facts_from(self.graph, node) if step[2] != self.seed]
        if node != self.seed:
            steps = [step for step in steps if step[1] in relations]
        self.rng.shuffle(steps)
        if self.ranks is not None:
            steps = sorted((step for step in steps if step[2] in self.ranks), key=lambda step: self.ranks[step[2]])
        return steps

    def worth(self, end: int) -> int:
        """How good a path is that ends here."""
        return 1 if self.ranks is None else -self.ranks[end]


def named_facts(graph: KnowledgeGraph, subgraph: Subgraph) -> list[Fact]:
    """The facts of a subgraph in their order, relations by name."""
    edges = graph.edges[subgraph.edges]
    names = graph.relation_name(edges[:, 1])
    return list(zip(edges[:, 0].tolist(), names, edges[:, 2].tolist(), strict=True))


def first_path(facts: Sequence[Fact], seed: int, kind: Kind) -> tuple[int, ...] | None:
    """The nodes, behind the entity, of the path of this kind that is listed first and never comes back to it."""
    return path_on(facts, seed, kind, seed)


def path_on(facts: Sequence[Fact], node: int, kind: Kind, seed: int) -> tuple[int, ...] | None:
    """The first path from a node; () where no relation is left."""
    if not kind:
        return ()
    for head, relation, tail in facts:
        if (head, relation) == (node, kind[0]) and tail != seed:
            rest = path_on(facts, tail, kind[1:], seed)
            if rest is not None:
                return (tail, *rest)
    return None


def answer_pieces(kind: Kind, names: Sequence[str]) -> list[str]:
    """An answer in pieces that no token spans."""
    return [piece for relation, name in zip(kind, names, strict=True) for piece in (f" | {relation} | ", name)]


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
        direct: share of questions that name the relations as the facts do: the easiest to learn from.
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
            answer = answer_pieces(kind, [names[node] for node in paths[kind]])
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
