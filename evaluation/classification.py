"""Scores of choosing a class and of telling links, and reading classes out of a text (numpy only)."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

TOPS = (1, 3, 5)
UNKNOWN = -1  # the number of an answer that is no class


def mentions(text: str, names: Mapping[str, str]) -> list[str]:
    """The labels that a text names, in the order of their first mention, each once.

    Whole words only, in any case; where one name lies inside another the longest counts, and what it covers does not
    count again: "machine learning" is no mention of "learning". Order is that of the text: GraphTranslator's own
    scoring ranks by the numbers of the classes instead.

    Args:
        text: what a model said.
        names: every way to name a label -> the label.
    """
    known = {name.lower(): label for name, label in names.items()}
    longest_first = sorted(known, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    return list(dict.fromkeys(known[found.group()] for found in pattern.finditer(text.lower())))


def class_metrics(predicted: Sequence[str | None], gold: Sequence[str]) -> dict[str, float]:
    """`accuracy`, and `macro_f1` over the classes that occur in `gold`; None is a wrong answer of no class."""
    numbers = {name: place for place, name in enumerate(sorted(set(gold)))}
    found = np.array([numbers.get(name, UNKNOWN) for name in predicted])
    return number_metrics(found, np.array([numbers[name] for name in gold]))


def number_metrics(predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """As `class_metrics`, of class numbers (n,)."""
    scores = []
    for number in np.unique(gold):
        right = float(((predicted == number) & (gold == number)).sum())
        scores.append(2 * right / ((predicted == number).sum() + (gold == number).sum()))
    return {"accuracy": float((predicted == gold).mean()), "macro_f1": float(np.mean(scores))}


def ranking_metrics(ranked: Sequence[Sequence[str]], gold: Sequence[str]) -> dict[str, float]:
    """Of labels in order: `legality`, the share of answers that name any, `top1`, `top3`, `top5`, and `class_metrics`.

    All over all answers: one that names no label is wrong. `top1_of_legal` leaves those out, as GraphTranslator does.
    """
    legal = np.array([len(names) > 0 for names in ranked])
    hits = {k: np.array([name in names[:k] for names, name in zip(ranked, gold, strict=True)]) for k in TOPS}
    metrics = {"legality": float(legal.mean()), **{f"top{k}": float(hit.mean()) for k, hit in hits.items()}}
    metrics["top1_of_legal"] = float(hits[1][legal].mean()) if legal.any() else 0.0
    return metrics | class_metrics([names[0] if names else None for names in ranked], gold)


def majority_metrics(train: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """`majority` and `majority_macro_f1`: always the commonest class of training, in a tie the first by name."""
    names, counts = np.unique(np.array(train), return_counts=True)
    commonest = class_metrics([str(names[counts.argmax()])] * len(gold), gold)
    return {"majority": commonest["accuracy"], "majority_macro_f1": commonest["macro_f1"]}


def link_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`auc` and `average_precision` of scores (n,) of pairs that are linked (1) or not (0).

    AUC is the chance that a linked pair scores above another one, ties half (Mann-Whitney); average precision is the
    mean over linked pairs of the precision at their rank, ties in the worst order.
    """
    values, places = np.unique(scores, return_inverse=True)
    counts = np.bincount(places, minlength=len(values))
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # from 1, the mean of a tie
    positive, negative = int(labels.sum()), int((1 - labels).sum())
    auc = (ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative)
    ordered = labels[np.lexsort((labels, -scores))]
    precision = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
    return {"auc": float(auc), "average_precision": float(precision[ordered == 1].mean())}
