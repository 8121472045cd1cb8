"""Whether two runs differ beyond chance on the same questions: bootstrap, permutation and McNemar tests."""

from fractions import Fraction

import numpy as np

from evaluation.metrics import paired_bootstrap

LEVEL = 0.05
BLOCK = 1 << 20  # signs that are drawn at a time


def permutation_test(first: np.ndarray, second: np.ndarray, rounds: int = 10000, seed: int = 0) -> float:
    """Two-sided p-value of the mean gain, if either run might as well have given either value of each question.

    Source: Fisher's randomisation test with random signs; p = (1 + as extreme) / (1 + rounds), so that it is never 0
    (Phipson and Smyth 2010, "Permutation p-values should never be zero").

    Args:
        first, second: (n,) one number per question, in the same order.
        rounds: random assignments that are drawn.
        seed: of the draw.
    """
    gains = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    moved = gains[gains != 0]  # the others stay 0 under any sign
    rng = np.random.default_rng(seed)
    limit = abs(moved.sum()) - 1e-9 * np.abs(moved).sum()  # sums in another order are not the same to the last bit
    extreme, block = 0, max(1, BLOCK // max(1, len(moved)))
    for start in range(0, rounds, block):
        signs = rng.integers(0, 2, (min(block, rounds - start), len(moved)), dtype=np.int8)  # 0 minus, 1 plus
        extreme += int((np.abs(2 * (signs @ moved) - moved.sum()) >= limit).sum())
    return (1 + extreme) / (1 + rounds)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value that as many questions are won as lost, for metrics that are 0 or 1.

    Source: McNemar 1947, in its exact form: a sign test over the questions on which the two disagree.

    Args:
        first, second: (n,) zeros and ones, in the same order.

    Raises:
        ValueError: another value than 0 and 1.
    """
    first, second = np.asarray(first), np.asarray(second)
    if not (is_binary(first) and is_binary(second)):
        raise ValueError("McNemar's test compares metrics that are 0 or 1. Use the permutation test.")
    won, lost = int((second > first).sum()), int((second < first).sum())
    count, term, total = won + lost, 1, 0
    for i in range(min(won, lost) + 1):
        total += term
        term = term * (count - i) // (i + 1)  # the next binomial coefficient
    return float(min(Fraction(1), Fraction(2 * total, 2**count)))


def is_binary(values: np.ndarray) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def paired_tests(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """What the second run gains over the first on the same questions, and whether chance could have done it.

    Returns:
        `difference`, `low`, `high`, `p` of `metrics.paired_bootstrap`; `permutation_p`; of metrics that are 0 or 1
        also `mcnemar_p`.
    """
    tests = paired_bootstrap(first, second) | {"permutation_p": permutation_test(first, second)}
    if is_binary(first) and is_binary(second):
        tests["mcnemar_p"] = mcnemar(first, second)
    return tests


def judged(gains: dict[str, float], metric: str) -> tuple[str, float]:
    """Name and p-value of the test that judges a metric of `report.compare`: McNemar's where it is 0 or 1."""
    exact = f"{metric}_mcnemar_p"
    return ("McNemar", gains[exact]) if exact in gains else ("permutation", gains[f"{metric}_permutation_p"])


def beyond_chance(gains: dict[str, float], metric: str, count: int) -> str:
    """One sentence on a metric of `report.compare`: the gain, its interval, and whether it is beyond chance.

    Judged at LEVEL.

    Args:
        gains: what `compare` returned. metric: one of its metrics. count: of the questions.
    """
    first, second, gain, low, high = (
        gains[f"{metric}_{key}"] for key in ("first", "second", "difference", "low", "high")
    )
    name, p = judged(gains, metric)
    figures = f"{first:.3f} -> {second:.3f}, {gain:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, {name} p {p:.4f}"
    said = "is beyond chance" if p < LEVEL else "is not beyond chance"
    return f"The difference in {metric} {said} ({figures}, {count} questions)."
