"""Scores of ranked answers and of dense scores over all candidates, each as its source defines it (numpy only).

Notation: ranked is a list of names, best first; answers are the gold ones. Names match but for case and outer space.
"""

from collections.abc import Sequence

import numpy as np

HITS = (1, 5, 10, 20)
RECALL = 20
# what the evaluator of STaRK (arXiv 2404.13207) reports
STARK_HITS = (1, 3, 5, 10, 20, 50)
STARK_RECALLS = (5, 10, 20, 50, 100)
STARK_GAINS = (5, 10, 20, 50, 100)


# ------------------------------------------------------------------------------------------------------ ranked names
def ranks_of(ranked: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Ranks, from 1, of the distinct answers found in the ranking."""
    gold = {answer.strip().lower() for answer in answers}
    names = dict.fromkeys(name.strip().lower() for name in ranked)
    return [rank for rank, name in enumerate(names, start=1) if name in gold]


def distinct(answers: Sequence[str]) -> int:
    """How many answers there are to find."""
    return len({answer.strip().lower() for answer in answers})


def hits_at(k: int, ranked: Sequence[str], answers: Sequence[str]) -> float:
    """1 if an answer stands among the first k (exact names; STaRK and its Neo4j and QLoRA follow-ups)."""
    return float(any(rank <= k for rank in ranks_of(ranked, answers)))


def recall_at(k: int, ranked: Sequence[str], answers: Sequence[str]) -> float:
    """Share of the distinct answers that stand among the first k (STaRK reports k = 20)."""
    return sum(rank <= k for rank in ranks_of(ranked, answers)) / distinct(answers)


def mean_reciprocal_rank(ranked: Sequence[str], answers: Sequence[str]) -> float:
    """1 / rank of the first answer, 0 if none is ranked."""
    return 1 / next(iter(ranks_of(ranked, answers)), float("inf"))


def average_precision(ranked: Sequence[str], answers: Sequence[str]) -> float:
    """Mean over all answers of the precision at their rank, 0 for one that is not ranked; its mean is MAP.

    Source: Manning, Raghavan and Schuetze 2008, "Introduction to Information Retrieval", section 8.4.
    """
    found = ranks_of(ranked, answers)
    return sum(place / rank for place, rank in enumerate(found, start=1)) / distinct(answers)


def normalised_gain(ranked: Sequence[str], answers: Sequence[str]) -> float:
    """nDCG with gain 1 for an answer: the sum of 1 / log2(1 + rank) over that of a ranking that starts with all.

    Source: Jaervelin and Kekaelaeinen 2002, "Cumulated gain-based evaluation of IR techniques".
    """
    ideal = discounts(distinct(answers)).sum()
    return float(sum(1 / np.log2(1 + rank) for rank in ranks_of(ranked, answers)) / ideal)


def discounts(count: int) -> np.ndarray:
    """(count,) 1 / log2(1 + rank) of the first ranks."""
    return 1 / np.log2(np.arange(2, count + 2))


def ranked_metrics(ranked: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Every metric of one ranking."""
    values = {f"hits@{k}": hits_at(k, ranked, answers) for k in HITS}
    values |= {f"recall@{RECALL}": recall_at(RECALL, ranked, answers), "mrr": mean_reciprocal_rank(ranked, answers)}
    return values | {"map": average_precision(ranked, answers), "ndcg": normalised_gain(ranked, answers)}


# ------------------------------------------------------------------------------------------- scores of all candidates
def stark_scores(scored: dict[int, float], answers: Sequence[int], candidates: np.ndarray) -> dict[str, float]:
    """The official protocol of STaRK for one query: every candidate has a score, those not scored one less than all.

    Candidates of equal score are ranked answers last, so that ties gain nothing; in nDCG they share their discounts
    (McSherry and Najork 2008). The official evaluator does the same in nDCG and leaves ties elsewhere to its sort;
    with torchmetrics 1.9 it also finds no answer whose score is 0 or less, where here the order alone counts.

    Args:
        scored: candidate id -> score; others of the ids count as not scored.
        answers: ids of the right candidates.
        candidates: (C,) the ids of all candidates, ascending.

    Returns:
        `hit@k`, `recall@k`, `ndcg@k`, `map`, `mrr`, `rprecision`.

    Raises:
        ValueError: a score that is not finite, or an answer that is no candidate.
    """
    gold = np.isin(candidates, np.asarray(answers, dtype=np.int64))  # (C,)
    if not len(answers) or gold.sum() != len(set(answers)):
        strange = sorted(set(answers) - set(candidates.tolist()))
        what = f"answer {strange[0]} is none of the {len(candidates)} candidates" if strange else "there is no answer"
        raise ValueError(f"The query cannot be scored over all candidates: {what}. Check candidate types and answers.")
    values = np.array(list(scored.values()), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("A candidate's score is not a finite number. Score the query again.")
    dense = np.full(len(candidates), values.min(initial=0.0) - 1)  # (C,)
    ids = np.array(list(scored), dtype=np.int64)
    places = np.searchsorted(candidates, ids)
    known = (places < len(candidates)) & (candidates[np.minimum(places, len(candidates) - 1)] == ids)
    dense[places[known]] = values[known]
    return dense_scores(dense, gold)


def dense_scores(scores: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """STaRK's metrics of one query.

    Args:
        scores: (C,) of all candidates. gold: (C,) bool, at least one of them true.
    """
    order = np.lexsort((gold, -scores))  # of equal scores the answers come last
    hits = gold[order]
    ranks = np.flatnonzero(hits) + 1
    count = len(ranks)
    metrics = {f"hit@{k}": float(hits[:k].any()) for k in STARK_HITS}
    metrics |= {f"recall@{k}": float(hits[:k].sum() / count) for k in STARK_RECALLS}
    metrics |= {f"ndcg@{k}": shared_gain(scores[order], hits, k) for k in STARK_GAINS}
    metrics |= {"map": float((np.arange(1, count + 1) / ranks).mean()), "mrr": float(1 / ranks[0])}
    return metrics | {"rprecision": float(hits[:count].mean())}


def shared_gain(scores: np.ndarray, hits: np.ndarray, k: int) -> float:
    """nDCG of the first k, where candidates of equal score share the discounts of their ranks.

    Args:
        scores: (C,) descending. hits: (C,) bool in that order.
    """
    given = np.zeros(len(scores))
    given[:k] = discounts(min(k, len(scores)))
    _, group, size = np.unique(-scores, return_inverse=True, return_counts=True)
    shares = np.bincount(group, given) / size  # of every group of equal scores
    return float(shares[group][hits].sum() / discounts(min(k, int(hits.sum()))).sum())
