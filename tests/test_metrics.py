"""Every metric against cases scored by hand, and the differences between metrics that share a name elsewhere."""

import numpy as np
import pytest

from evaluation.metrics import (
    any_hit,
    bootstrap_interval,
    chance,
    closed_labels,
    exact_match,
    first_mention,
    first_mention_accuracy,
    majority_baseline,
    normalise_answer,
    paired_bootstrap,
    per_question,
    score,
    set_scores,
    split_answers,
    token_f1,
    webqsp_scores,
)
from evaluation.ranked import hits_at, mean_reciprocal_rank, recall_at
from evaluation.report import check_same_ids


def row(number: int, prediction: str, answers: list[str], kind: str = "lookup", **more) -> dict:
    return {"id": f"q{number}", "question": "?", "prediction": prediction, "answers": answers, "type": kind, **more}


def test_normalisation_drops_case_punctuation_articles_and_space():
    assert normalise_answer("  The  Beatles' an album, a song! ") == "beatles album song"
    assert normalise_answer("Theatre") == "theatre"  # an article inside a word stays


@pytest.mark.parametrize(("prediction", "answers", "expected"), [
    ("The Kamiro.", ["kamiro"], 1),
    ("kamiro sote", ["kamiro"], 0),
    ("sote", ["kamiro", "Sote"], 1),
    ("", ["kamiro"], 0),
    ("The Sote | kamiro", ["Kamiro", "sote"], 1),  # all of them, as training writes them
    ("kamiro\nsote", ["kamiro", "sote"], 1),
    ("b | c | d", ["b|c", "d"], 1),  # an answer that holds the separator
    ("kamiro | sote | lora", ["kamiro", "sote"], 0),
    ("kamiro | sote", ["kamiro", "sote", "lora"], 0),
    ("kamiro | kamiro", ["kamiro"], 0),
    ("", ["kamiro", "sote"], 0),
])
def test_exact_match(prediction, answers, expected):
    assert exact_match(prediction, answers) == expected


def test_token_f1_is_the_best_over_answers_and_counts_repeats():
    assert token_f1("new york city", ["york", "new york"]) == pytest.approx(2 * 2 / 5)
    assert token_f1("york york", ["york"]) == pytest.approx(2 / 3)
    assert token_f1("", ["york"]) == 0
    assert token_f1("the", ["a"]) == 1  # both are empty once normalised
    assert token_f1("kamiro | sote", ["kamiro", "sote"]) == 1  # all of them, as training writes them
    assert token_f1("kamiro", ["kamiro", "sote"]) == 1


def test_any_hit_is_not_top_one():
    prediction = "Paris|London\nBerlin"
    assert any_hit(prediction, ["berlin"]) == 1
    assert hits_at(1, split_answers(prediction), ["berlin"]) == 0
    assert any_hit("parisian", ["paris"]) == 1  # a substring is enough
    assert any_hit("", ["paris"]) == 0


def test_webqsp_precision_may_exceed_one_and_recall_is_over_gold():
    assert webqsp_scores("paris and london", ["Paris", "London", "Rome"]) == pytest.approx((2.0, 2 / 3, 1.0))
    assert webqsp_scores("paris|madrid", ["paris"]) == pytest.approx((0.5, 1.0, 2 / 3))
    assert webqsp_scores("oslo", ["paris"]) == (0.0, 0.0, 0.0)


def test_set_scores_count_whole_names_once():
    assert set_scores("Oslo | rome\nOslo", ["Rome", "Paris", "Bern"]) == pytest.approx((1 / 2, 1 / 3, 2 / 5))
    assert set_scores("parisian", ["paris"]) == (0, 0, 0)
    assert set_scores("", ["paris"]) == (0, 0, 0)
    assert set_scores("b | A", ["a", "b"]) == (1, 1, 1)


def test_first_mention_takes_the_earliest_label_even_inside_a_word():
    labels = ["support", "counter"]
    assert first_mention("It Counters, it does not support.", labels) == "counter"
    assert first_mention_accuracy("They SUPPORT each other", ["support"], labels) == 1
    assert first_mention_accuracy("neither", ["support"], labels) == 0
    assert first_mention("twenty-one", ["one", "twenty-one"]) == "twenty-one"


def test_ranked_metrics_on_exact_names():
    ranked, answers = ["Oslo", "PARIS ", "oslo", "rome", "bern"], ["rome", "Paris", "lima"]
    assert hits_at(1, ranked, answers) == 0
    assert hits_at(2, ranked, answers) == 1
    assert mean_reciprocal_rank(ranked, answers) == 0.5
    assert recall_at(20, ranked, answers) == pytest.approx(2 / 3)
    assert recall_at(2, ranked, answers) == pytest.approx(1 / 3)
    assert mean_reciprocal_rank([], answers) == hits_at(5, [], answers) == 0


def test_an_empty_prediction_or_a_pattern_is_no_hit():
    for prediction in ["", "(", ".*", "a"]:
        assert hits_at(1, split_answers(prediction), ["barack obama"]) == 0
        assert any_hit(prediction, ["barack obama"]) == 0


def test_chance_and_majority_use_the_training_answers_by_type():
    train = [row(i, "", ["yes"], "path") for i in range(3)] + [row(9, "", ["no"], "path")]
    train += [row(i, "", [answer], "count") for i, answer in enumerate(["one", "two"], start=20)]
    assert chance(train) == pytest.approx((3 / 4 + 1 / 2) / 2)
    test = [row(1, "", ["yes"], "path"), row(2, "", ["no"], "path"), row(3, "", ["new"], "unseen")]
    assert majority_baseline(train, test) == pytest.approx(1 / 3)


def test_score_reports_overall_and_by_type():
    rows = [row(1, "sote", ["sote"]), row(2, "kami", ["sote"])]
    rows += [row(3, "yes", ["yes"], "path"), row(4, "yes", ["no"], "path"),
             row(5, "no, yes", ["no"], "path"), row(6, "yes", ["yes"], "path")]
    metrics = score(rows)
    assert metrics["exact_match"] == pytest.approx(3 / 6)
    assert metrics["exact_match/lookup"] == pytest.approx(1 / 2)
    assert metrics["first_mention_accuracy/path"] == pytest.approx(3 / 4)
    assert metrics["count"] == 6 and metrics["count/path"] == 4
    assert "first_mention_accuracy/lookup" in metrics  # two questions, one label: closed
    assert metrics["exact_match_low"] <= metrics["exact_match"] <= metrics["exact_match_high"]
    assert all(isinstance(value, float) for value in metrics.values())


def test_open_types_have_no_first_mention():
    assert closed_labels([["a"], ["b"], ["c"]]) == set()
    assert closed_labels([["a", "b"], ["a"], ["b"], ["b"]]) == set()
    assert closed_labels([["a"], ["A"], ["b"], ["b"]]) == {"a", "b"}
    assert np.isnan(per_question([row(1, "x", ["x"])])["first_mention_accuracy"]).all()


def test_ranked_answers_win_over_the_generated_lines():
    metrics = score([row(1, "oslo", ["rome"], ranked_answers=["oslo", "rome"])])
    assert (metrics["hits@1"], metrics["hits@5"], metrics["mrr"], metrics["any_hit"]) == (0, 1, 0.5, 0)


def test_refusals_name_what_is_wrong():
    with pytest.raises(ValueError, match="not one prediction"):
        score([])
    with pytest.raises(ValueError, match="'q1' is predicted more than once"):
        score([row(1, "a", ["a"]), row(1, "b", ["a"])])
    with pytest.raises(ValueError, match="'q1' has no gold answer"):
        score([row(1, "a", [])])
    with pytest.raises(ValueError, match="1 missing, 0 unknown; 'q2' is missing"):
        check_same_ids([row(1, "", ["a"])], [row(1, "", ["a"]), row(2, "", ["a"])])
    check_same_ids([row(2, "", ["a"]), row(1, "", ["a"])], [row(1, "", ["a"]), row(2, "", ["a"])])


def test_bootstrap_covers_the_mean_and_repeats():
    values = np.array([1.0] * 70 + [0.0] * 30)
    low, high = bootstrap_interval(values)
    assert 0.6 < low < 0.7 < high < 0.8
    assert (low, high) == bootstrap_interval(values)
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)


def test_paired_bootstrap_tells_a_gain_from_noise():
    first = np.array([0.0] * 60 + [1.0] * 40)
    better = np.array([0.0] * 30 + [1.0] * 70)
    gain = paired_bootstrap(first, better)
    assert gain["difference"] == pytest.approx(0.3) and gain["low"] > 0 and gain["p"] < 0.01
    assert paired_bootstrap(first, first) == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
