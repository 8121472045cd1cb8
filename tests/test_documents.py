"""Rankings of documents against small cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_processor.graph_store import write_graph
from data_processor.retrieval.documents import (
    BM25,
    by_embedding,
    by_walk,
    document_texts,
    order,
)
from data_processor.schema import Document

TEXTS = ["the cat sat", "the dog sat on the mat", "a Café in Paris"]


@pytest.fixture
def graph(tmp_path):
    """Nodes 0 - 1 - 2 and 3 - 4; documents name {0, 1}, {1, 2}, {3, 4}, {1} and nothing."""
    nodes = [{"name": name} for name in "abcde"]
    edges = np.array([[0, 0, 1], [1, 0, 2], [3, 0, 4]])
    documents = [Document(str(i), None if i else "Title", f"text {i}") for i in range(5)]
    links = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 3], [2, 4], [3, 1]])
    return write_graph(tmp_path / "graph", nodes, [{"name": "r"}], edges, documents, links)


def test_bm25_is_the_sum_over_words_of_rarity_times_a_saturating_count():
    scores = BM25(TEXTS, k1=1.2, b=0.5).scores("sat the")
    mean = (3 + 6 + 4) / 3

    def part(count, frequency, length):
        rarity = math.log(1 + (3 - frequency + 0.5) / (frequency + 0.5))
        return rarity * count * 2.2 / (count + 1.2 * (0.5 + 0.5 * length / mean))

    np.testing.assert_allclose(scores, [part(1, 2, 3) + part(1, 2, 3), part(1, 2, 6) + part(2, 2, 6), 0])


def test_bm25_knows_no_case_and_no_accents_and_unknown_words_count_nothing():
    index = BM25(TEXTS)
    assert index.scores("CAFE zebra").argmax() == 2 and index.scores("CAFE zebra")[0] == 0
    assert BM25([]).scores("x").shape == (0,)
    assert BM25(["", "word"]).scores("word")[0] == 0


def test_embeddings_are_compared_by_cosine():
    scores = by_embedding(np.array([[2.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0]]))
    np.testing.assert_allclose(scores, [[1, 0, 0.5**0.5]], rtol=1e-6)


def test_a_walk_prefers_documents_near_the_seeds_and_rare_seeds(graph):
    scores = by_walk(graph, [0])
    assert scores[0] > scores[1] > scores[2] == scores[4] == 0
    both = by_walk(graph, [1, 3])  # node 1 stands in three documents, node 3 in one
    assert both[2] == both.max()
    assert not by_walk(graph, []).any()


def test_an_order_is_stable_and_may_be_cut():
    assert order(np.array([[1.0, 3.0, 3.0]]), 2).tolist() == [[1, 2]]


def test_texts_have_their_titles_and_a_graph_without_documents_says_so(graph, tmp_path):
    assert document_texts(graph)[:2] == ["Title\ntext 0", "text 1"]
    bare = write_graph(tmp_path / "bare", [{"name": "a"}], [{"name": "r"}], np.array([[0, 0, 0]]))
    with pytest.raises(ValueError, match="no documents to rank"):
        document_texts(bare)
