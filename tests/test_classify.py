"""Choosing among labels: what a text mentions, the metrics by hand, and the command from end to end."""

import json

import numpy as np
import pytest

from data_processor.schema import read_qa
from evaluation.__main__ import main
from evaluation.classification import (
    class_metrics,
    link_metrics,
    majority_metrics,
    mentions,
    ranking_metrics,
)
from evaluation.classify import Labels, classification
from tests.tiny_world import write_dataset, write_model

NAMES = {"learning": "learning", "machine learning": "machine learning", "ml": "machine learning", "art": "art"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is Machine Learning.", ["machine learning"]),
        ("learning, then machine learning", ["learning", "machine learning"]),
        ("ML; machine learning; Art", ["machine learning", "art"]),
        ("an article about smart starts", []),
        ("machine-learning", ["learning"]),
        ("", []),
    ],
)
def test_labels_are_read_in_the_order_of_the_text_and_the_longest_name_counts(text, found):
    assert mentions(text, NAMES) == found


def test_metrics_count_answers_without_a_label_as_wrong():
    ranked, gold = [["a", "b"], ["b"], [], ["c", "a", "b"]], ["a", "a", "b", "b"]
    found = ranking_metrics(ranked, gold)
    assert found["legality"] == 0.75 and found["top1"] == found["accuracy"] == 0.25 and found["top3"] == 0.5
    assert found["top1_of_legal"] == pytest.approx(1 / 3)
    assert found["macro_f1"] == pytest.approx((2 * 1 / (1 + 2) + 0) / 2)
    assert class_metrics(["a", "b", None, "b"], gold)["macro_f1"] == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert majority_metrics(["b", "a", "b"], gold) == {"majority": 0.5, "majority_macro_f1": pytest.approx(1 / 3)}


def test_link_metrics_equal_counting_all_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(6, size=40).astype(float), rng.integers(2, size=40)
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert link_metrics(scores, labels)["auc"] == pytest.approx(wins)
    found = link_metrics(np.array([3.0, 2, 1]), np.array([1, 0, 1]))
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_a_name_of_two_labels_a_label_twice_and_a_stranger_are_one_sentence(tmp_path):
    (tmp_path / "labels.txt").write_text("cs.LG | machine learning | ML\n\ncs.AI | artificial intelligence\n")
    labels = Labels.read(tmp_path / "labels.txt")
    assert labels.labels == ["cs.LG", "cs.AI"] and labels.gold({"id": "1", "answers": ["Machine Learning"]}) == "cs.LG"
    with pytest.raises(ValueError, match="'biology' of question 'q1' is none of 2 labels"):
        labels.gold({"id": "q1", "answers": ["biology"]})
    with pytest.raises(ValueError, match="'ML' names two labels"):
        Labels({"a": ["ml"], "b": ["ML"]})
    (tmp_path / "labels.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match="label 'a' twice"):
        Labels.read(tmp_path / "labels.txt")


def test_scores_of_yes_and_no_tell_links():
    rows = [
        {"id": str(i), "prediction": best, "ranked_answers": [best, "yes" if best == "no" else "no"],
         "scores": [0.0, -margin], "answers": [gold]}
        for i, (best, margin, gold) in enumerate([("yes", 3, "yes"), ("no", 1, "yes"), ("no", 2, "no")])
    ]  # fmt: skip
    found = classification(rows, Labels({"yes": (), "no": ()}), [])
    assert found["auc"] == 1.0 and found["accuracy"] == pytest.approx(2 / 3) and "majority" not in found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classify")
    return write_dataset(folder / "data"), write_model(folder, {})


def test_the_command_ranks_every_label_and_stands_beside_majority_and_text(world, tmp_path, capsys):
    data, model = world
    words = ["classify", "--model", str(model), "--data", str(data), "--device", "cpu"]
    main([*words, "--output", str(tmp_path / "p.jsonl"), "--reduction", "mean"])
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    labels = sorted({pair.answers[0] for pair in read_qa(data / "qa" / "train.jsonl")})
    assert len(rows) == 6 and all(sorted(row["ranked_answers"]) == labels for row in rows)
    assert all(row["scores"] == sorted(row["scores"], reverse=True) for row in rows)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"top5", "macro_f1", "majority", "text_only_accuracy"} <= metrics.keys() and metrics["legality"] == 1.0
    assert "text_only_accuracy" in capsys.readouterr().out
    bare = [json.loads(line) for line in (tmp_path / "p_no_graph.jsonl").read_text().splitlines()]
    assert [row["id"] for row in bare] == [row["id"] for row in rows] and bare[0]["scores"] != rows[0]["scores"]


def test_generated_answers_are_read_and_what_names_no_label_is_illegal(world, tmp_path):
    data, model = world
    (tmp_path / "labels.txt").write_text("".join(f"thing{i}\n" for i in range(20)))
    words = ["classify", "--model", str(model), "--data", str(data), "--device", "cpu", "--by", "generation"]
    words += ["--labels", str(tmp_path / "labels.txt"), "--list_labels", "--max_new_tokens", "4"]
    main([*words, "--output", str(tmp_path / "p.jsonl"), "--type", "look_up"])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["legality"] == metrics["accuracy"] == 0.0, "letters at random name nothing"
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert all(row["ranked_answers"] == [] and row["prediction"] for row in rows)


def test_questions_that_no_label_answers_are_said_before_the_model_is_asked(world, tmp_path, capsys):
    data, model = world
    (tmp_path / "labels.txt").write_text("yes\nno\n")
    words = ["classify", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "p.jsonl")]
    for more, sentence in (
        (["--labels", str(tmp_path / "labels.txt")], "is none of 2 labels"),
        (["--type", "class"], "No question is of the type 'class'; there are: look_up"),
    ):
        with pytest.raises(SystemExit):
            main([*words, "--device", "cpu", *more])
        assert sentence in capsys.readouterr().err and not (tmp_path / "p.jsonl").exists()
    answers = {pair.answers[0] for pair in read_qa(data / "qa" / "test.jsonl")}
    (tmp_path / "labels.txt").write_text("".join(f"{answer}\n" for answer in sorted(answers)))
    with pytest.raises(SystemExit):
        main([*words, "--device", "cpu", "--labels", str(tmp_path / "labels.txt")])
    assert "of question 'train-0' is none of 6 labels" in capsys.readouterr().err
    assert not (tmp_path / "p.jsonl").exists()
    said = tmp_path / "said.jsonl"
    said.write_text('{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]}\n')
    with pytest.raises(SystemExit):
        main([*words[:4], str(said), *words[5:], "--labels", str(tmp_path / "labels.txt")])
    assert "holds conversations, whose answers are no labels" in capsys.readouterr().err


ARXIV = """Artificial Intelligence|AI, Hardware Architecture|AR, Computational Complexity|CC, Computational
Engineering|CE, Computational Geometry|CG, Computation and Language|CL, Cryptography and
Security|CR, Computer Vision|CV, Computers and Society|CY, Databases|DB, Distributed Computing|DC,
Digital Libraries|DL, Discrete Mathematics|DM, Data Structures and Algorithms|DS, Emerging
Technologies|ET, Formal Languages and Automata Theory|FL, General Literature|GL, Graphics|GR,
Computer Science and Game Theory|GT, Human-Computer Interaction|HC, Information Retrieval|IR,
Information Theory|IT, Machine Learning|LG, Logic in Computer Science|LO, Multiagent Systems|MA,
Multimedia|MM, Mathematical Software|MS, Numerical Analysis|NA, Neural and Evolutionary
Computing|NE, Networking and Internet Architecture|NI, Other Computer Science|OH, Operating
Systems|OS, Performance|PF, Programming Languages|PL, Robotics|RO, Symbolic Computation|SC,
Sound|SD, Software Engineering|SE, Social and Information Networks|SI, Systems and Control|SY"""


@pytest.mark.data
def test_graphtranslators_published_answers_never_name_the_right_class_first(real_data):
    """All 100 are of cs.LG; its own scoring, by the numbers of the classes, finds .27 of them right."""
    classes = [" ".join(one.split()).partition("|") for one in ARXIV.split(",")]
    labels = Labels({f"cs.{code}": (name,) for name, _, code in classes})
    lines = (real_data / "graphtranslator_arxiv" / "pred.txt").read_text(encoding="utf-8").splitlines()
    ranked = [mentions(line.split("\t")[2], labels.known) for line in lines]
    found = ranking_metrics(ranked, ["cs.LG"] * 100)
    assert found["top1"] == 0.0 and found["legality"] == 1.0 and found["top3"] > 0.5
