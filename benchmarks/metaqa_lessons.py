"""What the base models of the MetaQA record learn from: writers of texts, and the tokenizer of all of them.

    lessons = Lessons.paths(Path("output/metaqa_2hop/data"), seed=0, start="output/metaqa_1hop/base")
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.metaqa_data import read_wordings
from benchmarks.metaqa_paths import CLOSED, Paths, PathWriter, Shape, ways_to_ask
from benchmarks.metaqa_texts import Shapes, Writer, question_templates, train_tokenizer
from data_processor.graph_store import KnowledgeGraph
from data_processor.schema import read_qa

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

FREQUENT = 30
HELD_OUT = 10  # one name in so many is kept for the test of the base model


@dataclass(frozen=True)
class Lessons:
    """What is read.

    Attributes:
        writers: of texts to learn from, the second once the first is mastered.
        held_out: writes with names that were never read.
        tokenizer: of these texts and of all questions.
    """

    writers: tuple[Writer, Writer] | tuple[PathWriter, PathWriter]
    held_out: Writer | PathWriter
    tokenizer: PreTrainedTokenizerFast

    def frequent_and_rare(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (n,) of the tokens that stand in the names that are read at least FREQUENT times, and (m,) of the rest.

        Marks and relations belong to neither.
        """
        import torch

        counts = torch.zeros(len(self.tokenizer))
        for ids in self.tokenizer(self.writers[0].names, add_special_tokens=False)["input_ids"]:
            counts[ids] += 1  # a name repeats hardly any token
        marks = [place for token, place in self.tokenizer.get_vocab().items() if token.startswith((" | ", "<|"))]
        rare = counts < FREQUENT
        rare[marks] = False
        return (counts >= FREQUENT).nonzero()[:, 0], rare.nonzero()[:, 0]

    @classmethod
    def one_hop(cls, data: Path, seed: int, most_facts: int) -> Lessons:
        """Facts of one entity, and a new tokenizer."""
        graph, rng = KnowledgeGraph.open(data / "graph"), random.Random(seed)
        names, cut = shuffled_names(graph, rng)
        templates = question_templates(graph, read_qa(data / "qa" / "train.jsonl"))
        wordings = [wording for several in templates.values() for wording in several]
        tokenizer = train_tokenizer(names, wordings, graph.relation_name(np.arange(graph.num_relations)))
        shapes = Shapes.of(graph, 6000, most_facts, rng)
        writers = tuple(Writer(shapes, names[cut:], templates, share) for share in (0.5, 0.1))
        return cls(writers, Writer(shapes, names[:cut], templates, 0.0), tokenizer)

    @classmethod
    def paths(cls, data: Path, seed: int, start: str) -> Lessons:
        """Paths from the entities of training questions; the tokenizer of the model that is gone on from."""
        from transformers import AutoTokenizer

        graph, rng = KnowledgeGraph.open(data / "graph"), random.Random(seed)
        names, cut = shuffled_names(graph, rng)
        method = Paths(read_wordings(data))
        found = (method.find(graph, pair) for pair in read_qa(data / "qa" / "train.jsonl"))
        shapes = [Shape.of(graph, subgraph) for subgraph in found]
        kinds, ids = np.array(graph.node_type(np.arange(graph.num_nodes))), np.arange(graph.num_nodes)
        closed = {kind: graph.node_name(ids[kinds == kind]) for kind in CLOSED}
        ways = ways_to_ask(method.wordings)
        writers = tuple(PathWriter(shapes, names[cut:], closed, ways, share) for share in (0.25, 0.05))
        tokenizer = AutoTokenizer.from_pretrained(start)
        return cls(writers, PathWriter(shapes, names[:cut], closed, ways, 0.0), tokenizer)


def shuffled_names(graph: KnowledgeGraph, rng: random.Random) -> tuple[list[str], int]:
    """(all names in random order, how many of the first are held out)."""
    names = list(dict.fromkeys(graph.node_name(np.arange(graph.num_nodes))))
    rng.shuffle(names)
    return names, len(names) // HELD_OUT
