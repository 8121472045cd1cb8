"""One split of questions through a retrieval method: seeds, subgraphs, and how many answers they hold."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from tqdm import tqdm

from data_processor.graph_part import GraphPart
from data_processor.graph_store import Encoder, KnowledgeGraph
from data_processor.schema import QAPair, Subgraph
from data_processor.vector_index import ExactIndex, FaissIndex

BLOCK_QUESTIONS = 256
TEXT_SAMPLE = 200  # questions whose subgraph's text is counted
KNOWN_TEXTS = 65536  # embeddings of questions that are kept
SEED_SOURCES = ("linked", "similar", "both")
TOKEN = re.compile(r"\w+|[^\w\s]")


class Retriever:
    """Seeds and a method: questions in, subgraphs out; the same for a split and for a live question.

    Args:
        graph: the graph.
        method: one of `data_processor.retrieval.METHODS`.
        parameters: keyword arguments of the method.
        seed_source: "linked": the seeds that come with a question, and the similar nodes where none do; "similar": the
            nodes most similar to the question; "both".
        encoder, index: embed the question and search the node features; None: linked seeds only. Within parts of the
            graph the index is not used: their few nodes are all compared.
        top_k: similar nodes a question.
        worded: (question, its linked seeds) -> what the encoder reads in its place; None: the question as it stands.
        tokens: the method reads the vectors of a question's tokens, too: it gets (1 + t, F), the whole question first.
    """

    def __init__(
        self,
        graph: KnowledgeGraph,
        method: Callable[..., Subgraph],
        parameters: dict[str, Any],
        seed_source: str = "linked",
        encoder: Encoder | None = None,
        index: ExactIndex | FaissIndex | None = None,
        top_k: int = 10,
        worded: Callable[[str, Sequence[int]], str] | None = None,
        tokens: bool = False,
    ) -> None:
        if seed_source not in SEED_SOURCES:
            raise ValueError(f"the seeds must be one of {', '.join(SEED_SOURCES)}, got {seed_source!r}")
        if seed_source != "linked" and encoder is None:
            raise ValueError(f"seeds {seed_source!r} need an embedded graph; run embed first")
        if encoder is not None and encoder.name != graph.text_encoder:
            raise ValueError(f"the graph was embedded by {graph.text_encoder}, not by {encoder.name}; use one encoder")
        self._graph, self._method, self._parameters = graph, method, parameters
        self._seed_source, self._encoder, self._index, self._top_k = seed_source, encoder, index, top_k
        self._worded, self._tokens, self._known = worded, tokens, dict[str, np.ndarray]()

    def retrieve(
        self,
        questions: Sequence[str],
        linked: Sequence[Sequence[int]],
        within: Iterable[Subgraph] | None = None,
    ) -> Iterator[tuple[Subgraph, float]]:
        """Yields (subgraph, milliseconds of the method and the search) for every question.

        Args:
            linked: the seeds that come with each question.
            within: the part of the graph that each question may use; None: all of it.
        """
        parts = repeat(None) if within is None else iter(within)
        if self._worded is not None:
            questions = [self._worded(*both) for both in zip(questions, linked, strict=True)]
        for start in range(0, len(questions), BLOCK_QUESTIONS):
            block = slice(start, start + BLOCK_QUESTIONS)
            vectors, scores, nodes, shared = self._search(list(questions[block]), within is None)
            read = self._with_tokens(vectors, questions[block]) if self._tokens else vectors
            for place, seeds in enumerate(linked[block]):
                part, ids = next(parts), np.asarray(seeds, np.int64)
                begin = time.perf_counter()
                if part is None:
                    ids, weights = self._seeds(ids, scores[place], nodes[place])
                    subgraph = self._method(self._graph, read[place], ids, weights, **self._parameters)
                else:
                    subgraph = self._within(part, vectors[place], ids)
                yield subgraph, shared + 1000 * (time.perf_counter() - begin)

    def _within(self, part: Subgraph, vector: np.ndarray | None, linked: np.ndarray) -> Subgraph:
        """The subgraph of a question that may use one part of the graph only."""
        if len(part.nodes) == 0:
            return part
        graph = GraphPart(self._graph, part)
        scores, similar = np.zeros((1, 0)), np.zeros((1, 0), np.int64)
        if vector is not None and graph.node_features is not None:
            scores, similar = ExactIndex(graph.node_features).search(vector[None], self._top_k)
        ids, weights = self._seeds(graph.inside(linked), scores[0], similar[0])
        return graph.outside(self._method(graph, vector, ids, weights, **self._parameters))

    def _search(self, questions: list[str], everywhere: bool) -> tuple[Any, np.ndarray, np.ndarray, float]:
        """(vectors of the questions, cosines and ids (q, k) of the similar nodes, milliseconds a question)."""
        nothing = np.zeros((len(questions), 0))
        if self._encoder is None:
            return [None] * len(questions), nothing, nothing.astype(np.int64), 0.0
        vectors = self._vectors(questions)
        if self._index is None or not everywhere:
            return vectors, nothing, nothing.astype(np.int64), 0.0
        begin = time.perf_counter()
        scores, nodes = self._index.search(vectors, self._top_k)
        return vectors, scores, nodes, 1000 * (time.perf_counter() - begin) / len(questions)

    def _vectors(self, questions: list[str]) -> np.ndarray:
        """(q, F): each distinct text is embedded once, as long as KNOWN_TEXTS hold them all."""
        if len(self._known) > KNOWN_TEXTS:
            self._known.clear()
        new = [text for text in dict.fromkeys(questions) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encoder.encode(new), strict=True))
        return np.stack([self._known[text] for text in questions])

    def _with_tokens(self, vectors: np.ndarray, questions: Sequence[str]) -> list[np.ndarray]:
        """(1 + t, F) of every question: its vector (F,), then those of its tokens."""
        distinct = list(dict.fromkeys(questions))
        tokens = dict(zip(distinct, self._encoder.encode_tokens(distinct), strict=True))
        return [np.vstack([row, tokens[text]]) for row, text in zip(vectors, questions, strict=True)]

    def _seeds(self, linked: np.ndarray, scores: np.ndarray, similar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, similar = scores[similar >= 0], similar[similar >= 0]
        if self._seed_source == "linked" and len(linked):
            return linked, np.ones(len(linked))
        if self._seed_source == "both":
            new = ~np.isin(similar, linked)
            return np.concatenate([linked, similar[new]]), np.concatenate([np.ones(len(linked)), scores[new]])
        return similar, scores


def retrieve_split(
    retriever: Retriever,
    graph: KnowledgeGraph,
    pairs: list[QAPair],
    title: str,
    report: dict[str, Any],
    within: Iterable[Subgraph] | None = None,
) -> Iterator[Subgraph]:
    """Yields the subgraph of every question and, at the end, fills the report.

    Args:
        retriever: makes the subgraphs.
        pairs: the questions, with their seed nodes.
        title: of the progress bar.
        report: gets answer_recall (the mean share of a question's answer nodes that its subgraph has, over questions
            that have any), mean_nodes, mean_edges, mean_tokens (words and marks of the triples' text, of a sample),
            median_ms, p95_ms, and counts.
        within: the part of the graph that each question may use; None: all of it.
    """
    sizes, recalls, times, tokens = [], [], [], []
    found = retriever.retrieve([pair.question for pair in pairs], [pair.seed_nodes for pair in pairs], within)
    sample = set(range(0, len(pairs), max(1, len(pairs) // TEXT_SAMPLE)))
    bar = tqdm(zip(pairs, found, strict=True), total=len(pairs), unit=" questions", desc=title, delay=2)
    for place, (pair, (subgraph, milliseconds)) in enumerate(bar):
        sizes.append((len(subgraph.nodes), len(subgraph.edges)))
        times.append(milliseconds)
        if pair.answer_nodes:
            recalls.append(float(np.isin(pair.answer_nodes, subgraph.nodes).mean()))
        if place in sample:
            tokens.append(len(words_and_marks([graph.to_text(subgraph)])["input_ids"][0]))
        yield subgraph
    counts = np.array(sizes).reshape(-1, 2)
    report.update(
        questions=len(pairs),
        questions_with_answer_nodes=len(recalls),
        questions_without_seeds=sum(not pair.seed_nodes for pair in pairs),
        empty=int((counts[:, 0] == 0).sum()),
        answer_recall=mean(recalls),
        mean_nodes=mean(counts[:, 0]),
        mean_edges=mean(counts[:, 1]),
        mean_tokens=mean(tokens),
        median_ms=float(np.median(times)) if times else None,
        p95_ms=float(np.percentile(times, 95)) if times else None,
    )


def words_and_marks(texts: Sequence[str], add_special_tokens: bool = False) -> dict[str, list[list[str]]]:
    """Words and marks of each text, called as a tokenizer is: a count of tokens without a language model."""
    return {"input_ids": [TOKEN.findall(text) for text in texts]}


def mean(values: Sequence[float] | np.ndarray) -> float | None:
    """The mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None
