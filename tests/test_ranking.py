"""evaluation.ranking against hand-made ranks and a count by hand."""

import numpy as np
import pytest

from evaluation.ranking import filtered_recall, question_metrics, rank_metrics, set_recall


def test_ranks_without_ties_give_the_textbook_figures():
    metrics = rank_metrics(np.array([[1, 1], [2, 2], [4, 4], [20, 20]]))
    assert metrics["mr"] == 27 / 4
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 20) / 4)
    assert (metrics["hits@1"], metrics["hits@3"], metrics["hits@10"]) == (0.25, 0.5, 0.75)
    assert metrics["mrr_pessimistic"] == metrics["mrr"]


def test_a_constant_scorer_gains_nothing_from_ties():
    ranks = np.array([[101, 1]])  # every one of a hundred others scores the same
    metrics = rank_metrics(ranks)
    assert metrics["mr"] == 51
    assert metrics["hits@10"] == metrics["hits@1_pessimistic"] == 0
    assert metrics["mrr_pessimistic"] == 1 / 101


def test_no_rank_is_an_error():
    with pytest.raises(ValueError, match="no right answer"):
        rank_metrics(np.zeros((0, 2)))


def test_questions_are_averaged_not_their_answers_and_one_without_any_is_missed():
    ranks = np.array([[1, 1], [7, 7], [2, 2]])
    metrics = question_metrics(ranks, np.array([0, 0, 1]), counts=np.array([2, 1, 0]))
    assert metrics["hits@1"] == pytest.approx(1 / 3)
    assert metrics["mrr"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert metrics["filtered_recall@2"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert metrics["filtered_recall@10"] == pytest.approx(2 / 3)


def test_an_answer_that_was_no_candidate_counts_in_the_recall():
    metrics = question_metrics(np.array([[1, 1]]), np.array([0]), counts=np.array([4]))
    assert (metrics["hits@1"], metrics["filtered_recall@10"]) == (1, 0.25)


def test_a_tie_with_a_wrong_node_is_no_hit():
    assert question_metrics(np.array([[2, 1]]), np.array([0]), np.array([1]))["hits@1"] == 0


def test_the_two_recalls_differ_where_gold_pushes_gold_down():
    ranked = ["a", "x", "b", "y", "c"]
    assert set_recall(ranked, {"a", "b"}, 2) == 0.5
    assert filtered_recall(ranked, {"a", "b"}, 2) == 1.0
    assert filtered_recall(ranked, {"b", "c"}, 3) == 0.5  # a and x stand above b; a, x and y above c
    assert set_recall(ranked, ["a", "b", "c"], 2) == pytest.approx(1 / 3)  # cannot be more
    assert filtered_recall(ranked, {"z"}, 2) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_the_filtered_recall_is_never_below_the_set_recall(seed):
    rng = np.random.default_rng(seed)
    ranked = rng.permutation(12).tolist()
    gold = set(rng.choice(15, size=4, replace=False).tolist())
    for k in (1, 2, 5):
        assert filtered_recall(ranked, gold, k) >= set_recall(ranked, gold, k)
