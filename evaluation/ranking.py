"""Ranks of right answers among all candidates and recalls of ranked lists, with a named tie policy (numpy only).

Notation: a filtered rank is 1 + the number of candidates that are no right answer and score higher. Candidates that
score the same stand above the answer in the pessimistic rank and below it in the optimistic one; the realistic rank is
the mean of both (Berrendorf et al., arXiv 2002.06914).
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

HITS = (1, 3, 10)
# share of the candidates with an equal score that is counted as ranked above: 0 optimistic, 1 pessimistic
TIE_POLICY = 0.5


def realistic(ranks: np.ndarray) -> np.ndarray:
    """(T,) from ranks (T, 2) [pessimistic, optimistic]."""
    return ranks[:, 0] * TIE_POLICY + ranks[:, 1] * (1 - TIE_POLICY)


def rank_metrics(ranks: np.ndarray) -> dict[str, float]:
    """What is reported of the ranks of T right answers.

    Args:
        ranks: (T, 2) [pessimistic, optimistic], from 1.

    Returns:
        `mr`, `mrr`, `hits@1`, `hits@3`, `hits@10` of the realistic ranks; the same with `_pessimistic`.
    """
    if not len(ranks):
        raise ValueError("There is no rank to report: the split has no right answer in its graph.")
    ranks = np.asarray(ranks, dtype=np.float64)
    worst = {f"{name}_pessimistic": value for name, value in _metrics(ranks[:, 0]).items()}
    return _metrics(realistic(ranks)) | worst


def _metrics(ranks: np.ndarray) -> dict[str, float]:
    hits = {f"hits@{k}": float((ranks <= k).mean()) for k in HITS}
    return {"mr": float(ranks.mean()), "mrr": float((1 / ranks).mean())} | hits


def question_metrics(ranks: np.ndarray, owners: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """What is reported of questions that may have several right answers.

    Args:
        ranks: (T, 2) as in `rank_metrics`, of the right answers of all questions as far as they were candidates.
        owners: (T,) which question each belongs to.
        counts: (Q,) right answers of every question, candidates or not; a question without one counts as missed.

    Returns:
        `hits@1`: the share of questions whose best-ranked node is a right answer (a tie with a wrong one is a miss);
        `mrr`: the mean over questions of 1 / rank of the first right answer; `filtered_recall@k`: the mean over
        questions of the share of right answers whose filtered rank is at most k.
    """
    values = realistic(np.asarray(ranks, dtype=np.float64).reshape(-1, 2))
    best = np.full(len(counts), np.inf)
    np.minimum.at(best, owners, values)
    shares = {k: np.bincount(owners, values <= k, len(counts)) / np.maximum(counts, 1) for k in (2, 5, 10)}
    recalls = {f"filtered_recall@{k}": float(share.mean()) for k, share in shares.items()}
    return {"hits@1": float((best <= 1).mean()), "mrr": float((1 / best).mean())} | recalls


def set_recall(ranked: Sequence[Any], gold: Collection[Any], k: int) -> float:
    """Share of the gold items that stand among the first k: the recall that HippoRAG reports."""
    return len(set(ranked[:k]) & set(gold)) / len(set(gold))


def filtered_recall(ranked: Sequence[Any], gold: Collection[Any], k: int) -> float:
    """Share of the gold items above which fewer than k others stand that are not gold themselves.

    Never smaller than `set_recall`, and 1 in many cases where that cannot be (a question with more than k gold items);
    GFM-RAG reports it while it trains. Items that are not ranked at all are not found.
    """
    wrong, found = 0, 0
    wanted = set(gold)
    for item in ranked:
        if item not in wanted:
            wrong += 1
        else:
            found += wrong < k
    return found / len(wanted)
