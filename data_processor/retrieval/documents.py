"""Documents in order for a question without a trained retriever: by words (BM25), by embedding, by a walk.

Every function gives scores (Q, documents) or (documents,), higher is better; `order` makes ranks of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.linking import words
from data_processor.retrieval.pagerank import pagerank
from data_processor.vector_index import unit_rows

BM25_K1, BM25_B = 1.5, 0.75


class BM25:
    """Okapi BM25 (Robertson and Zaragoza 2009, section 3.3) over words without case and accents.

    Args:
        texts: the documents. k1: how soon more of one word stops to count. b: how much long documents are held back.
    """

    def __init__(self, texts: Iterable[str], k1: float = BM25_K1, b: float = BM25_B) -> None:
        self._vocabulary: dict[str, int] = {}
        counted = [Counter(words(text)) for text in texts]
        numbers = [[self._number(word) for word in count] for count in counted]
        lengths = np.array([sum(count.values()) for count in counted], dtype=np.float64)
        documents = np.repeat(np.arange(len(counted)), [len(count) for count in counted])
        terms = np.array([number for row in numbers for number in row], dtype=np.int64)
        counts = np.array([many for count in counted for many in count.values()], dtype=np.float64)
        shares = lengths[documents] / max(lengths.mean() if len(lengths) else 0.0, 1e-12)
        frequency = np.bincount(terms, minlength=len(self._vocabulary))
        rarity = np.log(1 + (len(counted) - frequency + 0.5) / (frequency + 0.5))
        weights = rarity[terms] * counts * (k1 + 1) / (counts + k1 * (1 - b + b * shares))
        by_term = np.argsort(terms, kind="stable")
        self._documents, self._weights = documents[by_term], weights[by_term]
        self._offsets = np.concatenate([[0], np.cumsum(frequency)]).astype(np.int64)
        self.num_documents = len(counted)

    def _number(self, word: str) -> int:
        return self._vocabulary.setdefault(word, len(self._vocabulary))

    def scores(self, question: str) -> np.ndarray:
        """(documents,); a word that no document holds counts nothing."""
        total = np.zeros(self.num_documents)
        for word in words(question):
            term = self._vocabulary.get(word)
            if term is not None:
                part = slice(self._offsets[term], self._offsets[term + 1])
                total[self._documents[part]] += self._weights[part]
        return total


def document_texts(graph: KnowledgeGraph) -> list[str]:
    """Title and text of every document, in the order of their rows.

    Raises:
        ValueError: a graph without documents.
    """
    if not graph.num_documents:
        raise ValueError(f"{graph.path} has no documents to rank; import texts with it, or rank its nodes")
    found = graph.documents(np.arange(graph.num_documents))
    return [f"{one.title}\n{one.text}" if one.title else one.text for one in found]


def by_embedding(questions: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Cosines (Q, documents) of embeddings (Q, F) and (documents, F)."""
    return unit_rows(questions) @ unit_rows(documents).T


def by_walk(graph: KnowledgeGraph, seeds: Sequence[int], restart: float = 0.5) -> np.ndarray:
    """(documents,): the personalised PageRank of the entities that each names, as in HippoRAG (arXiv 2405.14831).

    The walk starts at the seeds with shares 1 / (number of documents that name a seed); without any all scores are 0.
    """
    seeds = np.unique(np.asarray(seeds, dtype=np.int64))
    shares = 1 / np.maximum(document_counts(graph)[seeds], 1)
    found = pagerank(graph, None, seeds, shares, max_nodes=graph.num_nodes, restart=restart, tolerance=1e-7)
    mass = np.zeros(graph.num_nodes)
    mass[found.nodes] = found.node_scores
    return sum_by_document(graph, mass)


def document_counts(graph: KnowledgeGraph) -> np.ndarray:
    """df (N,): how many documents name each node."""
    return np.bincount(graph.document_nodes[:, 1], minlength=graph.num_nodes)


def sum_by_document(graph: KnowledgeGraph, values: np.ndarray) -> np.ndarray:
    """(documents,): the sum of values (N,) over the nodes that each document names."""
    documents, nodes = graph.document_nodes.T
    return np.bincount(documents, values[nodes], minlength=graph.num_documents)


def order(scores: np.ndarray, most: int | None = None) -> np.ndarray:
    """Rows of documents, best first; ties by row. `scores` (.., documents) -> (.., most)."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :most]
