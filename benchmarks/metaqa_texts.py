"""What the base model of the MetaQA record reads before the real questions: facts about one entity, with other names.

A text takes the shape of an entity of the graph, which relations it has and how often, and gives it and its neighbours
names of others; then every relation is asked for. No fact of the graph can be learnt from it, only to read. How a
relation is asked for comes from the training questions.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from data_processor.demo_model import CHAT_TEMPLATE
from data_processor.demo_texts import ASSISTANT, END, PAD, SYSTEM, USER
from data_processor.graph_store import KnowledgeGraph
from data_processor.schema import QAPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as Tokens

Text = list[tuple[str, float]]  # pieces and their weights in the loss
AGAIN = 0.2  # weight of a name that stands in the line before, too
VOCABULARY = 8000


def question_templates(graph: KnowledgeGraph, pairs: Sequence[QAPair]) -> dict[str, list[str]]:
    """For every relation the ways to ask for it, `{}` for the name: what most questions of a wording ask for."""
    votes: dict[str, Counter] = defaultdict(Counter)
    for pair in pairs:
        name = graph.node_name(pair.seed_nodes)[0]
        if pair.question.count(name) != 1 or "{" in pair.question:
            continue
        edges = graph.edges[graph.out_edges(np.array(pair.seed_nodes))]
        asked = np.unique(edges[np.isin(edges[:, 2], pair.answer_nodes), 1])
        votes[pair.question.replace(name, "{}")].update(graph.relation_name(asked))
    found: dict[str, list[str]] = defaultdict(list)
    for wording, counts in sorted(votes.items()):
        found[counts.most_common(1)[0][0]].append(wording)
    return dict(found)


def train_tokenizer(names: Sequence[str], wordings: Sequence[str], relations: Sequence[str]) -> Tokens:
    """A byte-level BPE of names and wordings in which ` | relation | ` is one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [PAD, END, USER, ASSISTANT, SYSTEM]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*names, *wordings], trainer)
    backend.add_tokens([AddedToken(f" | {name} | ", normalized=False, special=False) for name in relations])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Shapes:
    """The relations (names, repeated as often as facts have them) of some entities of either kind."""

    films: list[list[str]]
    others: list[list[str]]

    @classmethod
    def of(cls, graph: KnowledgeGraph, count: int, most: int, rng: random.Random) -> Shapes:
        """Those of `count` random entities, of each relation at most `most`; others than films if they have two."""
        films, others = [], []
        kinds = graph.node_type(np.arange(graph.num_nodes))
        names = graph.relation_name(np.arange(graph.num_relations))
        for node in rng.sample(range(graph.num_nodes), min(count, graph.num_nodes)):
            counts = Counter(graph.edges[graph.out_edges(np.array([node])), 1].tolist())
            shape = [names[relation] for relation, times in counts.items() for _ in range(min(times, most))]
            if kinds[node] == "film":
                films.append(shape)
            elif len(counts) > 1 or len(others) < count // 50:
                others.append(shape)
        return cls(films, others)


@dataclass(frozen=True)
class Writer:
    """Makes texts.

    Attributes:
        shapes: what entities look like.
        names: to draw from.
        templates: for every relation the ways to ask for it.
        direct: the share of questions that name the relation as the facts do: the easiest to learn from.
    """

    shapes: Shapes
    names: list[str]
    templates: dict[str, list[str]]
    direct: float

    def write(self, rng: random.Random) -> Text:
        """One text: the facts, then a question for each relation, answered by the fact of it that is listed first."""
        shape = list(rng.choice(self.shapes.films if rng.random() < 0.65 else self.shapes.others))
        rng.shuffle(shape)
        topic, *tails = rng.sample(self.names, len(shape) + 1)
        text: Text = [(USER, 0.0)] + [("\n", 0.0)] * (rng.random() < 0.5)  # as below a line with a graph
        for i, (relation, tail) in enumerate(zip(shape, tails, strict=True)):
            text += [(topic, AGAIN * (i > 0)), (f" | {relation} | ", 0.0), (tail, 0.0), ("\n", 0.0)]
        first = dict(reversed(list(zip(shape, tails, strict=True))))
        asked = [relation for relation in first if relation in self.templates]
        rng.shuffle(asked)
        for i, relation in enumerate(asked):
            text += [("\n", 0.0) if i == 0 else (USER, 0.0), *self.question(rng, topic, relation)]
            text += [(END, 0.0), (ASSISTANT, 0.0), (first[relation], 1.0), (END, 1.0)]
        return text

    def question(self, rng: random.Random, topic: str, relation: str) -> Text:
        """The pieces of one question."""
        if rng.random() < self.direct:
            return [(topic, 0.0), (f" | {relation} | ", 0.0)]
        return [(rng.choice(self.templates[relation]).replace("{}", topic), 0.0)]
