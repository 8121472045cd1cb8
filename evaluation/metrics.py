"""Scores of generated answers, each under its own name, and their averages (numpy and the standard library only).

Notation: a prediction is the text a model generated; answers are the gold strings. A per-question metric returns a
float; `score` averages them over all questions and over every question type.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from evaluation.ranked import ranked_metrics

Row = dict[str, Any]

# Beyond this many distinct answers a question type is open, and "the first label mentioned" says nothing.
MAX_LABELS = 10

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise_answer(text: str) -> str:
    """Lower-cases, drops ASCII punctuation and the articles a/an/the, squeezes white space.

    Source: the SQuAD 1.1 evaluation (Rajpurkar et al. 2016, arXiv 1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def split_answers(prediction: str) -> list[str]:
    """The answers of a generated list: one a line or separated by `|`; stripped, without empty or repeated ones."""
    pieces = (piece.strip() for piece in prediction.replace("|", "\n").split("\n"))
    return list(dict.fromkeys(piece for piece in pieces if piece))


def ranked_answers(row: Row) -> list[str]:
    """A prediction row's answers, best first: its `ranked_answers` where it has them, else the lines it generated."""
    return row["ranked_answers"] if "ranked_answers" in row else split_answers(row["prediction"])


# ---------------------------------------------------------------------------------------------- one generated answer


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalised prediction equals a normalised answer (SQuAD exact match), or lists all answers and no more.

    Training teaches the list. Alternatives and sets look alike in the data, so either reading of them counts.
    """
    if normalise_answer(prediction) in {normalise_answer(answer) for answer in answers}:
        return 1.0
    return float(len(answers) > 1 and _listed([prediction]) == _listed(answers))


def _listed(texts: Iterable[str]) -> set[str]:
    return {normalise_answer(piece) for text in texts for piece in split_answers(text)}


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is an answer letter for letter, but for case and outer space: accuracy of class labels."""
    return float(prediction.strip().lower() in {answer.strip().lower() for answer in answers})


def contains_answer(prediction: str, answers: Sequence[str]) -> float:
    """1 if an answer is a raw substring of the prediction (G-Retriever's SceneGraphs accuracy, arXiv 2402.07630)."""
    return float(any(answer in prediction for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 over the answers (SQuAD F1), and all of them together, of normalised words; two empty texts agree."""
    golds = [*answers, " ".join(answers)]
    return max(_bag_f1(normalise_answer(prediction).split(), normalise_answer(gold).split()) for gold in golds)


def _bag_f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    shared = (Counter(predicted) & Counter(gold)).total()
    return 2 * shared / (len(predicted) + len(gold))


def any_hit(prediction: str, answers: Sequence[str]) -> float:
    """1 if any normalised answer is a substring of the normalised prediction.

    RoG's `eval_hit` and G-Retriever report it for WebQSP as "Hit@1", though nothing in it looks at the first answer.
    """
    text = normalise_answer(" ".join(prediction.replace("|", "\n").split("\n")))
    return float(any(normalise_answer(answer) in text for answer in answers))


def webqsp_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float, float]:
    """Precision, recall and F1 of one question as G-Retriever's WebQSP evaluation defines them (arXiv 2402.07630).

    matched = answers found as normalised substrings of the whole prediction; precision = matched / lines of the
    prediction (empty lines count, and with several answers on one line it exceeds 1), recall = matched / answers.
    """
    lines = prediction.replace("|", "\n").split("\n")
    text = normalise_answer(" ".join(lines))
    matched = sum(normalise_answer(answer) in text for answer in answers)
    precision, recall = matched / len(lines), matched / len(answers)
    return precision, recall, 2 * precision * recall / (precision + recall) if matched else 0.0


def set_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float, float]:
    """Precision, recall and F1 between the set of listed answers and the set of gold ones (names match but for case).

    For questions with several answers, which a model lists one a line or separated by `|`; the Neo4j and QLoRA
    follow-ups of STaRK report them.
    """
    listed, gold = ({name.strip().lower() for name in names} for names in (split_answers(prediction), answers))
    shared = len(listed & gold)
    return shared / max(1, len(listed)), shared / len(gold), 2 * shared / (len(listed) + len(gold))


def first_mention(prediction: str, labels: Iterable[str]) -> str | None:
    """The label that is mentioned first in the prediction, lower-cased; None if there is none.

    A label counts inside a longer word too ("supports" mentions "support"): G-Retriever's ExplaGraphs evaluation.
    """
    pattern = "|".join(re.escape(label.lower()) for label in sorted(labels, key=len, reverse=True))
    found = re.search(pattern, prediction.lower())
    return found.group() if found else None


def first_mention_accuracy(prediction: str, answers: Sequence[str], labels: Iterable[str]) -> float:
    """1 if the first label mentioned in the prediction is an answer (G-Retriever's ExplaGraphs accuracy)."""
    return float(first_mention(prediction, labels) in {answer.lower() for answer in answers})


# ---------------------------------------------------------------------------------------------------------- baselines


def _answers_by_type(rows: Iterable[Row]) -> dict[str, list[str]]:
    """First answers, normalised, by question type (rows without one fall under "")."""
    grouped = defaultdict(list)
    for row in rows:
        grouped[row.get("type") or ""].append(normalise_answer(row["answers"][0]))
    return grouped


def chance(train_rows: Iterable[Row]) -> float:
    """Share of the commonest training answer of each question type, averaged over the types."""
    grouped = _answers_by_type(train_rows).values()
    return float(np.mean([Counter(answers).most_common(1)[0][1] / len(answers) for answers in grouped]))


def majority_baseline(train_rows: Iterable[Row], test_rows: Sequence[Row]) -> float:
    """Exact match on the test rows of always giving the commonest training answer of the question's type."""
    commonest = {kind: Counter(answers).most_common(1)[0][0] for kind, answers in _answers_by_type(train_rows).items()}
    return float(np.mean([exact_match(commonest.get(row.get("type") or "", ""), row["answers"]) for row in test_rows]))


# ------------------------------------------------------------------------------------------------------------- scoring

def answer_metrics(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Every metric of one generated text."""
    plain = (exact_match, accuracy, token_f1, any_hit, contains_answer)
    values = {metric.__name__: metric(prediction, answers) for metric in plain}
    names = ("precision", "recall", "f1")
    values |= {f"set_{name}": value for name, value in zip(names, set_scores(prediction, answers), strict=True)}
    return values | {f"webqsp_{name}": v for name, v in zip(names, webqsp_scores(prediction, answers), strict=True)}


def per_question(predictions: Sequence[Row]) -> dict[str, np.ndarray]:
    """Every metric of every question: name -> (n,) float64, NaN where the metric is not defined for the question.

    `first_mention_accuracy` is defined for closed question types: single answers, at most MAX_LABELS distinct ones,
    each standing for two questions on average. The labels are the type's own gold answers.
    """
    _check_rows(predictions)
    scored = [
        answer_metrics(row["prediction"], row["answers"]) | ranked_metrics(ranked_answers(row), row["answers"])
        for row in predictions
    ]
    columns = {name: [values[name] for values in scored] for name in scored[0]}
    columns["first_mention_accuracy"] = _first_mentions(predictions)
    return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


def _first_mentions(predictions: Sequence[Row]) -> list[float]:
    by_type = defaultdict(list)
    for row in predictions:
        by_type[row.get("type") or ""].append(row["answers"])
    labels = {kind: closed_labels(answers) for kind, answers in by_type.items()}
    closed = [labels[row.get("type") or ""] for row in predictions]
    return [first_mention_accuracy(row["prediction"], row["answers"], names) if names else float("nan")
            for row, names in zip(predictions, closed, strict=True)]


def closed_labels(answers: Sequence[Sequence[str]]) -> set[str]:
    """The labels of a closed question type, or an empty set if the type is open (see `per_question`)."""
    labels = {answer.lower() for golds in answers for answer in golds}
    single = all(len(golds) == 1 for golds in answers)
    return labels if single and len(labels) <= MAX_LABELS and 2 * len(labels) <= len(answers) else set()


def _check_rows(predictions: Sequence[Row]) -> None:
    if not predictions:
        raise ValueError("There is not one prediction to score. Generate some first: `python -m evaluation generate`.")
    repeated = [name for name, count in Counter(row["id"] for row in predictions).items() if count > 1]
    if repeated:
        raise ValueError(f"The id {repeated[0]!r} is predicted more than once ({len(repeated)} such ids). "
                         "Keep one prediction per question.")
    for row in predictions:
        if not row["answers"]:
            raise ValueError(f"Question {row['id']!r} has no gold answer, so it cannot be scored. Remove its row.")


def score(predictions: Sequence[Row], more: dict[str, np.ndarray] | None = None) -> dict[str, float]:
    """Averages of every metric, over all questions and over each question type.

    Args:
        predictions: rows `{"id", "prediction", "answers", "ranked_answers"?, "type"?}`; ids unique, answers not empty.
        more: further metrics, (n,) one number per question, such as those of text_metrics.py.

    Returns:
        Flat name -> float: `exact_match`, ..., `exact_match/TYPE`, ..., `count`, `count/TYPE`, and the 95 % bootstrap
        interval of the overall exact match as `exact_match_low` and `exact_match_high`.

    Raises:
        ValueError: nothing to score, an id twice, or a question without an answer.
    """
    columns = per_question(predictions) | (more or {})
    kinds = np.array([row.get("type") or "" for row in predictions])
    metrics = _averages(columns, np.ones(len(predictions), dtype=bool), "")
    low, high = bootstrap_interval(columns["exact_match"])
    metrics |= {"exact_match_low": low, "exact_match_high": high}
    for kind in sorted(set(kinds) - {""}):
        metrics |= _averages(columns, kinds == kind, f"/{kind}")
    return metrics


def _averages(columns: dict[str, np.ndarray], chosen: np.ndarray, suffix: str) -> dict[str, float]:
    means = {"count" + suffix: float(chosen.sum())}
    for name, values in columns.items():
        defined = values[chosen][~np.isnan(values[chosen])]
        if len(defined):
            means[name + suffix] = float(defined.mean())
    return means


# ----------------------------------------------------------------------------------------------------------- intervals


def bootstrap_interval(values: np.ndarray, rounds: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over questions (Efron 1979).

    Args:
        values: (n,) one number per question.
        rounds: number of resamples.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(rounds)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(first: np.ndarray, second: np.ndarray, rounds: int = 1000, seed: int = 0) -> dict[str, float]:
    """What the second run gains over the first on the same questions, in the same order.

    Source: Koehn 2004, "Statistical significance tests for machine translation evaluation".

    Args:
        first, second: (n,) one number per question.

    Returns:
        `difference` (second - first), its 95 % interval `low`, `high`, and `p`, the two-sided bootstrap p-value.
    """
    gains = np.asarray(second) - np.asarray(first)
    rng = np.random.default_rng(seed)
    means = np.array([gains[rng.integers(len(gains), size=len(gains))].mean() for _ in range(rounds)])
    low, high = np.percentile(means, [2.5, 97.5])
    p_value = min(1.0, 2 * min((means <= 0).mean(), (means >= 0).mean()))
    return {"difference": float(gains.mean()), "low": float(low), "high": float(high), "p": float(p_value)}
