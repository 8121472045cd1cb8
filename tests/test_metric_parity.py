"""Our metrics beside the libraries that others use, on random inputs; text metrics with tiny models."""

import importlib.util
import json

import numpy as np
import pytest

from evaluation.metrics import answer_metrics, per_question, score
from evaluation.ranked import (
    average_precision,
    dense_scores,
    hits_at,
    mean_reciprocal_rank,
    normalised_gain,
    recall_at,
    stark_scores,
)
from evaluation.significance import beyond_chance, mcnemar, permutation_test
from evaluation.text_metrics import TextModels, corpus_bleu, text_columns

pytestmark = pytest.mark.metrics
WORDS = ["the", "skin", "rash", "itches", "cells", "red", "running", "treatment", "of", "melanoma", "runs", "sun"]


def sentence(rng: np.random.Generator, longest: int = 12) -> str:
    return " ".join(rng.choice(WORDS, size=rng.integers(0, longest)))


def texts(seed: int = 0, count: int = 40) -> tuple[list[str], list[list[str]]]:
    rng = np.random.default_rng(seed)
    answers = [[sentence(rng) or "sun" for _ in range(rng.integers(1, 4))] for _ in range(count)]
    return [sentence(rng) for _ in range(count)], answers


def rows_of(predictions: list[str], answers: list[list[str]]) -> list[dict]:
    pairs = enumerate(zip(predictions, answers, strict=True))
    return [{"id": f"q{i}", "prediction": given, "answers": golds} for i, (given, golds) in pairs]


# ------------------------------------------------------------------------------------------------------- rankings
def dense(seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores, gold = rng.normal(size=200), np.zeros(200, dtype=bool)
    gold[rng.choice(200, size=rng.integers(1, 30), replace=False)] = True
    return (np.round(scores, 1) if ties else scores), gold


@pytest.mark.parametrize("seed", range(5))
def test_dense_scores_are_those_of_the_official_evaluators_library(seed):
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    import torch

    scores, gold = dense(seed)
    # that library takes an answer for none where its score is not positive
    ours, both = dense_scores(scores, gold), (torch.tensor(scores - scores.min() + 1), torch.tensor(gold))
    for name, value in ours.items():
        kind, _, k = name.partition("@")
        function = {
            "hit": retrieval.retrieval_hit_rate, "recall": retrieval.retrieval_recall,
            "ndcg": retrieval.retrieval_normalized_dcg, "map": retrieval.retrieval_average_precision,
            "mrr": retrieval.retrieval_reciprocal_rank, "rprecision": retrieval.retrieval_r_precision,
        }[kind]  # fmt: skip
        assert value == pytest.approx(float(function(*both, **({"top_k": int(k)} if k else {}))), abs=1e-6), name


@pytest.mark.parametrize("seed", range(5))
def test_ties_share_their_discounts_as_in_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, gold = dense(seed, ties=True)
    ours = dense_scores(scores, gold)
    for k in (5, 20, 100):
        assert ours[f"ndcg@{k}"] == pytest.approx(metrics.ndcg_score(gold[None], scores[None], k=k), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_ranked_names_give_what_their_scores_give(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, gold = dense(seed)
    ranked = [f"Name {i}" for i in np.argsort(-scores)]
    answers = [f"name {i} " for i in np.flatnonzero(gold)]
    ours = dense_scores(scores, gold)
    assert average_precision(ranked, answers) == pytest.approx(metrics.average_precision_score(gold, scores), abs=1e-6)
    assert normalised_gain(ranked, answers) == pytest.approx(metrics.ndcg_score(gold[None], scores[None]), abs=1e-6)
    assert mean_reciprocal_rank(ranked, answers) == ours["mrr"]
    assert recall_at(20, ranked, answers) == ours["recall@20"]
    assert [hits_at(k, ranked, answers) for k in (1, 5, 10, 20)] == [ours[f"hit@{k}"] for k in (1, 5, 10, 20)]


def test_starks_protocol_by_hand():
    candidates = np.array([2, 3, 5, 7, 11])
    found = stark_scores({5: 0.9, 2: 0.5, 100: 9.0}, [2, 7], candidates)  # 100 is no candidate, 7 was not scored
    assert found["hit@1"] == 0 and found["hit@3"] == 1 and found["mrr"] == 1 / 2
    assert found["recall@5"] == 1  # all five are ranked; 7 behind the others that were not scored
    assert found["map"] == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert found["rprecision"] == 1 / 2
    shared = np.mean([1 / np.log2(4), 1 / np.log2(5), 1 / np.log2(6)])  # of 3, 7 and 11
    assert found["ndcg@5"] == pytest.approx((1 / np.log2(3) + shared) / (1 + 1 / np.log2(3)))
    assert stark_scores({}, [2], candidates)["mrr"] == 1 / 5  # nothing scored gains nothing
    with pytest.raises(ValueError, match="answer 4 is none of the 5 candidates"):
        stark_scores({2: 1.0}, [4], candidates)
    with pytest.raises(ValueError, match="there is no answer"):
        stark_scores({2: 1.0}, [], candidates)
    with pytest.raises(ValueError, match="not a finite number"):
        stark_scores({2: float("nan")}, [2], candidates)


def test_metrics_of_lists_by_hand():
    assert average_precision(["x", "a", "b"], ["A", "b", "c"]) == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert normalised_gain(["x", "a"], ["a"]) == pytest.approx(1 / np.log2(3))
    assert average_precision([], ["a"]) == normalised_gain([], ["a"]) == 0


def test_accuracy_is_that_of_labels_and_a_raw_substring_is_another_thing():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    given, gold = (rng.choice(["support", "counter", "none"], 50).tolist() for _ in range(2))
    found = score([row | {"prediction": f" {row['prediction']}"} for row in rows_of(given, [[one] for one in gold])])
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(gold, given), abs=1e-6)
    assert answer_metrics("not sure", ["no"])["contains_answer"] == 1
    assert answer_metrics("not sure", ["no"])["accuracy"] == 0
    assert answer_metrics("No", ["no"])["contains_answer"] == 0  # as it is written
    assert answer_metrics("The No", ["no"])["exact_match"] == 1 and answer_metrics("The No", ["no"])["accuracy"] == 0


def test_token_f1_and_exact_match_are_squads():
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    predictions, answers = texts(1)
    single = [golds[:1] for golds in answers]
    found = score(rows_of(predictions, single))
    both = [{"prediction_text": text, "id": str(i)} for i, text in enumerate(predictions)]
    gold = [{"answers": {"answer_start": [0], "text": one}, "id": str(i)} for i, one in enumerate(single)]
    theirs = squad(both, gold)
    assert 100 * found["exact_match"] == pytest.approx(float(theirs["exact_match"]), abs=1e-4)
    assert 100 * found["token_f1"] == pytest.approx(float(theirs["f1"]), abs=1e-4)  # theirs is float32


# ---------------------------------------------------------------------------------------------------- texts
def test_rouge_and_bleu_are_those_of_their_libraries():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, answers = texts(2)
    found = text_columns(rows_of(predictions, answers), ["rouge", "bleu"], TextModels())
    for i, text in enumerate(predictions):
        best = max(scorer.score(gold, text)["rougeL"].fmeasure for gold in answers[i])
        assert found["rougeL"][i] == pytest.approx(best, abs=1e-6)
        single = sacrebleu.sentence_bleu(text, answers[i]).score
        assert 100 * found["sentence_bleu"][i] == pytest.approx(single, abs=1e-6)
    same = [golds[:1] for golds in answers]
    theirs = sacrebleu.corpus_bleu(predictions, [[golds[0] for golds in same]]).score
    assert 100 * corpus_bleu(predictions, same) == pytest.approx(theirs, abs=1e-6)
    assert corpus_bleu(["the rash itches here"], [["red", "the rash itches here"]]) == pytest.approx(1)
    assert found["rougeL"][0] <= 1 and corpus_bleu(predictions, answers) >= corpus_bleu(predictions, same)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders of a tiny random BERT and of a tiny classifier of pairs, with a tokenizer of WORDS."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS])}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.5, **sizes)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "encoder")
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    config.id2label, config.label2id = labels, {label: i for i, label in labels.items()}
    BertForSequenceClassification(config).save_pretrained(folder / "nli")
    for name in ("encoder", "nli"):
        BertTokenizer(vocab=vocabulary).save_pretrained(folder / name)
    return folder


def test_bertscore_is_the_greedy_match_of_its_paper(encoders):
    pytest.importorskip("bert_score")
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoders / "encoder")
    model = AutoModel.from_pretrained(encoders / "encoder").eval()

    def states(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden, dim=-1)

    rows = rows_of(["red skin", "the sun", ""], [["the red rash", "skin"], ["sun"], ["red"]])
    found = text_columns(rows, ["bertscore"], TextModels(bertscore=str(encoders / "encoder")))["bertscore"]
    for value, row in zip(found, rows, strict=True):
        expected = []
        for gold in row["answers"]:
            alike = states(row["prediction"] or ".") @ states(gold).T
            # the library lets words match the marks at the ends, and does not count those themselves
            precision, recall = alike.max(1).values[1:-1].mean(), alike.max(0).values[1:-1].mean()
            expected.append(float(2 * precision * recall / (precision + recall)))
        assert value == pytest.approx(max(expected), abs=1e-5)


def test_entailment_is_the_models_probability_of_that_label(encoders):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = encoders / "nli"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = rows_of(["red skin", "sun"], [["the red rash", "skin"], ["sun"]])
    found = text_columns(rows, ["entailment"], TextModels(nli=str(folder)))["entailment"]
    with torch.no_grad():
        both = [tokenizer(gold, "red skin", return_tensors="pt") for gold in rows[0]["answers"]]
        expected = max(float(model(**one).logits.softmax(-1)[0, 2]) for one in both)
    assert found[0] == pytest.approx(expected, abs=1e-6) and len(found) == 2
    model.classifier.weight.data[:] = float("nan")
    model.save_pretrained(encoders / "broken")
    tokenizer.save_pretrained(encoders / "broken")
    with pytest.raises(ValueError, match="entailment of question 'q0' is not a number"):
        text_columns(rows, ["entailment"], TextModels(nli=str(encoders / "broken")))


def test_similarity_is_the_cosine_of_the_embeddings():
    rows = rows_of(["red skin", "sun"], [["skin red", "x"], ["rash"]])
    found = text_columns(rows, ["similarity"], TextModels(encoder="hashing:64"))["similarity"]
    assert found[0] == pytest.approx(1, abs=1e-6) and abs(found[1]) < 0.6


def test_what_a_text_metric_lacks_is_one_sentence(encoders, monkeypatch):
    rows = rows_of(["a"], [["a"]])
    by_bertscore = (
        (["bertscore"], {}, "needs an encoder: pass --bertscore_model"),
        (["bertscore"], {"bertscore": "no/such"}, "'no/such' is a name on the Hub|cannot load its model: 'no/such'"),
    )
    for names, models, said in (
        (["rogue"], {}, "'rogue' is not known. Choose from rouge, bleu"),
        *(by_bertscore if importlib.util.find_spec("bert_score") else ()),
        (["entailment"], {"nli": str(encoders)}, "cannot load its model.*Check --nli_model"),
        (["entailment"], {}, "pass --nli_model"),
        (["similarity"], {}, "pass --encoder"),
    ):
        with pytest.raises(ValueError, match=said):
            text_columns(rows, names, TextModels(**models))
    from evaluation import text_metrics

    monkeypatch.setattr(text_metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package rouge-score: pip install rouge-score"):
        text_columns(rows, ["rouge"], TextModels())
    with pytest.raises(ValueError, match="no label 'entailment' but a, b"):
        text_metrics.entailment_label("M", {0: "a", 1: "b"})


# ---------------------------------------------------------------------------------------------------- two runs
def test_the_exact_mcnemar_test_is_the_binomial_one():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for share in (0.5, 0.7, 0.9):
        first, second = (rng.random(60) < 0.5).astype(float), (rng.random(60) < share).astype(float)
        won, lost = int((second > first).sum()), int((second < first).sum())
        assert mcnemar(first, second) == pytest.approx(stats.binomtest(won, won + lost).pvalue, abs=1e-9)
    assert mcnemar(first, first) == 1.0
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar(first, first / 2)


def test_the_permutation_test_is_near_its_exact_value_and_keeps_its_level():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    first, second = rng.random(12), rng.random(12) + 0.2
    exact = stats.permutation_test(
        (second, first), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert permutation_test(first, second) == pytest.approx(exact, abs=0.015)
    assert permutation_test(first, first) == 1.0
    null = [permutation_test(rng.random(30), rng.random(30), rounds=200, seed=i) for i in range(200)]
    assert np.mean(np.array(null) < 0.05) < 0.1


def test_a_difference_is_said_to_be_beyond_chance_or_not():
    from evaluation.report import compare

    right, wrong = (rows_of([word] * 12, [["sun"]] * 12) for word in ("sun", "rash"))
    gains = compare(wrong, right, lambda rows: {"long": np.array([len(row["prediction"]) for row in rows])})
    assert gains["exact_match_mcnemar_p"] == 2 / 2**12 and "long_mcnemar_p" not in gains
    said = beyond_chance(gains, "exact_match", 12)
    assert said.startswith("The difference in exact_match is beyond chance (0.000 -> 1.000, +1.000")
    assert "McNemar p 0.0005, 12 questions" in said
    gain_of_one = compare(right[:3] + wrong[3:], right[:4] + wrong[4:])
    assert "is not beyond chance" in beyond_chance(gain_of_one, "accuracy", 12)
    assert "first_mention_accuracy_p" in gains  # one label, so a closed type; of a single question it would be open
    assert "first_mention_accuracy_p" not in compare(wrong[:1], right[:1])


# ---------------------------------------------------------------------------------------- modules of `evaluate`
def test_the_modules_of_evaluate_load_offline_and_agree(monkeypatch, tmp_path):
    evaluate = pytest.importorskip("evaluate")
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path)
    predictions, answers = texts(3, 10)
    columns = per_question(rows_of(predictions, answers))
    for name in ("default", "token_f1", "rouge", "bleu"):
        metric = evaluate.load("evaluation/hf_metrics/graph_qa", name, cache_dir=str(tmp_path))
        found = metric.compute(predictions=predictions, references=answers)
        if name in ("default", "token_f1"):
            assert found["token_f1"] == pytest.approx(columns["token_f1"].mean())
            assert len(found) == (len(answer_metrics("", [""])) if name == "default" else 1)
    assert set(found) == {"sentence_bleu", "corpus_bleu"}
    similarity = evaluate.load("evaluation/hf_metrics/graph_qa", "similarity", cache_dir=str(tmp_path))
    assert similarity.compute(predictions=["sun"], references=[["sun"]], encoder="hashing:8")["similarity"] > 0.99
    ranked = evaluate.load("evaluation/hf_metrics/graph_qa", "mrr", cache_dir=str(tmp_path))
    assert ranked.compute(predictions=[["x", "a"]], references=[["a"]]) == {"mrr": 0.5}
    stark = evaluate.load("evaluation/hf_metrics/stark", cache_dir=str(tmp_path))
    assert stark.compute(predictions=[[0.9, 0.2, 0.1]], references=[[0, 1, 0]])["mrr"] == 0.5
    with pytest.raises(ValueError, match="'f2' is not known"):
        evaluate.load("evaluation/hf_metrics/graph_qa", "f2", cache_dir=str(tmp_path))


# ------------------------------------------------------------------------------------------------------- commands
def test_commands_score_compare_and_stark(tmp_path, capsys):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    from tiny_world import write_dataset

    from data_processor.schema import write_jsonl
    from evaluation.__main__ import main

    predictions, answers = texts(4, 12)
    write_jsonl(tmp_path / "a.jsonl", rows_of(predictions, answers))
    write_jsonl(tmp_path / "b.jsonl", rows_of([golds[0] for golds in answers], answers))
    output = tmp_path / "m.json"
    main(["score", "--predictions", str(tmp_path / "a.jsonl"), "--output", str(output), "--metrics", "rouge", "bleu"])
    assert {"rougeL", "sentence_bleu", "corpus_bleu", "exact_match"} <= set(json.loads(output.read_text()))
    both = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    main(["compare", *both, "--output", str(output), "--metrics", "rouge"])
    assert "The difference in rougeL is beyond chance" in capsys.readouterr().out
    assert json.loads(output.read_text())["rougeL_second"] == pytest.approx(1)
    data = write_dataset(tmp_path / "world")
    for path in (data / "qa").glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write_jsonl(path, [row | {"answer_nodes": [int(row["answers"][0][5:])]} for row in rows])
    main(["stark", "--data", str(data), "--output", str(output)])
    found = json.loads(output.read_text())
    assert (found["candidates"], found["count"], found["recall@20"]) == (20, 6, 1)
    with pytest.raises(SystemExit):
        main(["stark", "--data", str(data), "--output", str(output), "--candidate_types", "person"])
    assert "No node is of type person. The graph's types are: thing." in capsys.readouterr().err
    (data / "qa" / "test.jsonl").write_text("")
    with pytest.raises(SystemExit):
        main(["stark", "--data", str(data), "--output", str(output)])
    assert "test.jsonl has no questions" in capsys.readouterr().err
