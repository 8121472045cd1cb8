"""A language model as judge: does an answer agree with the fact, and which of two answers fits it better?

Every call goes through the generator's log, so judging again costs nothing. What the judge skips, or says in no usable
form, is counted apart and never counts as right or as won.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.replies import Unusable, choice, record
from data_processor.schema import Fact, from_json, read_jsonl
from data_processor.text_generator import Task, TextGenerator
from data_processor.wording import Wording
from evaluation.metrics import bootstrap_interval, exact_match

Row = dict[str, Any]

VERDICT = record(verdict=choice("correct", "wrong", "skip"))
WINNER = record(winner=choice("1", "2", "tie", "skip"))
NEW_TOKENS = 64
UNREADABLE = "unreadable"  # the judge gave no usable verdict, also when asked again


def read_facts(path: Path) -> dict[str, str]:
    """The facts of a collection by their ids."""
    return {fact.id: fact.text for fact in (from_json(Fact, row) for _, row in read_jsonl(path))}


def fact_of(row: Row, facts: dict[str, str]) -> str:
    """The fact that a question is about: the one its id begins with, or its gold answers where there is none."""
    return facts.get(row["id"].rsplit("-q", 1)[0]) or f"{row['question']} {' / '.join(row['answers'])}"


def judge(row: Row, facts: dict[str, str], wording: Wording) -> Task[str]:
    """Task: "correct", "wrong", "skip" or "unreadable". A blank prediction is wrong without asking."""
    if not row["prediction"].strip():
        return "wrong"
    fact = fact_of(row, facts)
    values = {"fact": fact, "question": row["question"], "answer": row["prediction"].strip()}
    request = wording.request("judge", fact, VERDICT, NEW_TOKENS, **values)
    try:
        return (yield from wording.ask(request, fact, lambda value: value["verdict"]))
    except Unusable:
        return UNREADABLE


def compare(row: Row, other: Row, facts: dict[str, str], wording: Wording) -> Task[tuple[str, str]]:
    """Task: the winner in both orders of the two answers, each "first" (`row`), "second", "tie", "skip", "unreadable".

    Equal answers tie without asking.
    """
    mine, theirs, fact = row["prediction"].strip(), other["prediction"].strip(), fact_of(row, facts)
    if mine == theirs:
        return "tie", "tie"
    found = []
    for first, second, names in ((mine, theirs, ("first", "second")), (theirs, mine, ("second", "first"))):
        values = {"fact": fact, "question": row["question"], "first": first, "second": second}
        request = wording.request("compare", fact, WINNER, NEW_TOKENS, **values)
        try:
            winner = yield from wording.ask(request, fact, lambda value: value["winner"])
        except Unusable:
            winner = UNREADABLE
        found.append({"1": names[0], "2": names[1]}.get(winner, winner))
    return found[0], found[1]


def outcome(orders: tuple[str, str]) -> str:
    """What both orders say together: a win needs both; orders that disagree are neither's win."""
    for apart in (UNREADABLE, "skip"):
        if apart in orders:
            return apart
    return orders[0] if orders[0] == orders[1] else "order_dependent"


def judge_all(
    rows: Sequence[Row], facts: dict[str, str], generator: TextGenerator, wording: Wording
) -> tuple[dict[str, float], list[str]]:
    """Judges every prediction.

    Returns:
        (metrics, verdicts). `judge_accuracy` is the share of all questions judged correct, with its 95 % bootstrap
        interval; `judge_wrong`, `judge_skipped` and `judge_unreadable` are the other shares; `judge_agreement` is the
        share of the judged questions at which the verdict says what exact match says.
    """
    verdicts = list(generator.run(judge(row, facts, wording) for row in rows))
    shares = {kind: count / len(rows) for kind, count in Counter(verdicts).items()}
    low, high = bootstrap_interval(np.array([verdict == "correct" for verdict in verdicts], dtype=np.float64))
    metrics = {"count": float(len(rows)), "judge_accuracy": shares.get("correct", 0.0)}
    metrics |= {"judge_accuracy_low": low, "judge_accuracy_high": high, "judge_wrong": shares.get("wrong", 0.0)}
    metrics |= {"judge_skipped": shares.get("skip", 0.0), "judge_unreadable": shares.get(UNREADABLE, 0.0)}
    pairs = [(verdict == "correct", exact_match(row["prediction"], row["answers"]) == 1.0)
             for verdict, row in zip(verdicts, rows, strict=True) if verdict in ("correct", "wrong")]
    if pairs:
        metrics["judge_agreement"] = sum(one == other for one, other in pairs) / len(pairs)
    return metrics, verdicts


def compare_all(
    rows: Sequence[Row], others: Sequence[Row], facts: dict[str, str], generator: TextGenerator, wording: Wording
) -> tuple[dict[str, float], list[str]]:
    """Compares two runs question by question, both orders of every pair.

    Returns:
        (metrics, outcomes). Shares of all questions: `win_rate` (the first run wins in both orders), `loss_rate`,
        `tie_rate`, `order_dependent_rate` (the orders disagree), `compare_skipped`, `compare_unreadable`.

    Raises:
        ValueError: the runs do not hold the same questions.
    """
    by_id = {row["id"]: row for row in others}
    missing = [row["id"] for row in rows if row["id"] not in by_id]
    if missing or len(rows) != len(by_id):
        what = f"{missing[0]!r} is missing in the second" if missing else f"{len(rows)} and {len(by_id)} questions"
        raise ValueError(f"the two runs do not answer the same questions: {what}; predict one split with both")
    tasks = (compare(row, by_id[row["id"]], facts, wording) for row in rows)
    outcomes = [outcome(orders) for orders in generator.run(tasks)]
    counts = Counter(outcomes)
    names = {"first": "win_rate", "second": "loss_rate", "tie": "tie_rate", "order_dependent": "order_dependent_rate",
             "skip": "compare_skipped", UNREADABLE: "compare_unreadable"}  # fmt: skip
    return {name: counts[kind] / len(rows) for kind, name in names.items()}, outcomes
