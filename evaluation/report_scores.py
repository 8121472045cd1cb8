"""What a report says of answers: verdicts, scores with intervals, differences between runs, question types."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from evaluation.metrics import bootstrap_interval, per_question, score
from evaluation.page import Block, Section, Table, Text
from evaluation.report import LOST, Columns, Row, Run, compare, unlike, verdict
from evaluation.significance import LEVEL, beyond_chance, judged

FEW = 4  # runs that are told of one by one
# metrics of the tables, as far as they are defined
SHOWN = ("exact_match", "token_f1", "set_f1", "hits@1", "any_hit", "recall@20", "mrr", "first_mention_accuracy")


@dataclass(frozen=True)
class Asked:
    """Further metrics that a report was asked for; each set of answers is scored by them once.

    Attributes:
        columns: rows -> metric -> (n,) one number per question. names: of those metrics, known after the first call.
    """

    columns: Columns = lambda rows: {}
    known: dict[tuple[tuple[str, ...], ...], dict[str, np.ndarray]] = field(default_factory=dict)

    def __call__(self, rows: list[Row]) -> dict[str, np.ndarray]:
        key = tuple((row["id"], row["prediction"], *row["answers"]) for row in rows)
        if key not in self.known:
            self.known[key] = self.columns(rows)
        return self.known[key]


@dataclass(frozen=True)
class Gains:
    """What `report.compare` says of the `count` questions that two runs share; nothing where there is none."""

    count: int
    metrics: dict[str, float]


def score_sections(runs: list[Run], more: Columns) -> list[Section]:
    """The sections about the answers of runs, all of which have predictions."""
    if not runs:
        return [Section("What the runs say", [Text("No run has predictions.")])]
    asked = Asked(more)
    names = shown_metrics(runs, asked)
    told, gains = headline(runs, names), [gains_of(runs[0], other, asked) for other in runs[1:]]
    return [
        Section("What the runs say", verdicts(runs, told, gains, asked)),
        scores(runs, names, asked),
        differences(runs, names if len(runs) == 2 else [told], gains),
        by_type(runs, told, asked),
    ]


def shown_metrics(runs: list[Run], asked: Callable[[list[Row]], dict[str, np.ndarray]]) -> list[str]:
    """The metrics of the tables: those of SHOWN that are defined somewhere, and what was asked for."""
    rows = [rows for run in runs for rows in run.predictions.values()]
    defined = {name for one in rows for name in score(one)}
    return [*(name for name in SHOWN if name in defined), *asked(rows[0])]


def headline(runs: list[Run], names: list[str]) -> str:
    """The metric that runs are compared by in a sentence: exact match, unless no run has any; then what was asked for
    first, or token F1."""
    if any(per_question(run.predictions["none"])["exact_match"].any() for run in runs):
        return "exact_match"
    further = [name for name in names if name not in SHOWN]
    return "rougeL" if "rougeL" in further else next(iter(further), "token_f1")


def verdicts(runs: list[Run], metric: str, gains: list[Gains], asked: Columns) -> list[Block]:
    """Sentences: whether runs differ beyond chance, and what each owes to its graph."""
    sentences = difference_sentences(runs, metric, gains)
    for run in runs:
        whole, ablated = run.predictions["none"], [one for one in run.predictions.items() if one[0] in LOST]
        sentences += [f"{run.name}: {verdict(whole, rows, name, metric, asked)}" for name, rows in ablated]
    alone = [run.name for run in runs if not LOST.keys() & run.predictions]
    if alone:
        who = "No run" if len(alone) == len(runs) else f"None of {', '.join(alone)}"
        sentences.append(
            f"{who} was asked with something taken away: nothing is known of what a graph is worth there."
        )
    return [Text(sentence) for sentence in sentences]


def difference_sentences(runs: list[Run], metric: str, gains: list[Gains]) -> list[str]:
    """Whether the runs differ from the first one beyond chance: a sentence for each, for many one."""
    first, others = runs[0].name, [run.name for run in runs[1:]]
    if len(runs) <= FEW:
        return [
            f"From {first} to {other}: {beyond_chance(one.metrics, metric, one.count)}"
            if one.count
            else f"{first} and {other} answered different questions: they cannot be compared."
            for other, one in zip(others, gains, strict=True)
        ]
    both = [(other, one) for other, one in zip(others, gains, strict=True) if one.count]
    far = [other for other, one in both if judged(one.metrics, metric)[1] < LEVEL]
    rest = len(both) - len(far)
    told = f"{', '.join(far) or 'No run'} differ{'s' * (len(far) < 2)} from {first} in {metric} beyond chance"
    return [f"{told}; {rest} of the {len(others)} others do not." if far else f"{told}."]


def gains_of(first: Run, second: Run, asked: Columns) -> Gains:
    """What the second run gains over the first on the questions that both answered, whatever else shares their ids."""
    known = {row["id"]: row for row in first.predictions["none"]}
    shared = [row for row in second.predictions["none"] if row["id"] in known]
    both = {row["id"] for row in shared if not unlike(known[row["id"]], row)}
    one, other = ([row for row in run.predictions["none"] if row["id"] in both] for run in (first, second))
    return Gains(len(both), compare(one, other, asked) if both else {})


def scores(runs: list[Run], names: list[str], asked: Columns) -> Section:
    """Every metric of every run and ablation, with an interval of the first; columns of zeros are left out."""
    found = [
        (run.name, ablation, len(rows), score(rows, asked(rows)))
        for run in runs
        for ablation, rows in run.predictions.items()
    ]
    names = [name for name in names if name == "exact_match" or any(metrics.get(name) for *_, metrics in found)]
    table = [["run", "taken away", "questions", *names, "95 % of exact match"]]
    for run, ablation, count, metrics in found:
        interval = f"{metrics['exact_match_low']:.3f} to {metrics['exact_match_high']:.3f}"
        table.append([run, ablation, str(count), *(figure(metrics.get(name)) for name in names), interval])
    note = "Intervals are bootstraps over questions. evaluation/metrics.py defines each metric."
    return Section("Scores", [Table(table), Text(note, note=True)])


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def differences(runs: list[Run], names: list[str], gains: list[Gains]) -> Section:
    """What each run gains over the first one, metric by metric."""
    header = ["run", "metric", runs[0].name, "here", "difference", "95 % interval", "p", "test", "beyond chance"]
    rows = [
        [other.name, *difference(one.metrics, name)]
        for other, one in zip(runs[1:], gains, strict=True)
        for name in names
        if f"{name}_difference" in one.metrics
    ]
    counts = " or ".join(str(count) for count in sorted({one.count for one in gains if one.count}))
    note = f"Against {runs[0].name}, over the {counts} shared questions. Intervals are paired bootstraps. Of twenty "
    note += "differences, one seems beyond chance by chance."
    return Section("Differences between the runs", [Table([header, *rows]), Text(note, note=True)] if rows else [])


def difference(gains: dict[str, float], name: str) -> list[str]:
    """One metric of `compare` as cells."""
    first, second, gain, low, high = (
        gains[f"{name}_{key}"] for key in ("first", "second", "difference", "low", "high")
    )
    test, p = judged(gains, name)
    far = "yes" if p < LEVEL else "no"
    return [name, figure(first), figure(second), f"{gain:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{p:.4f}", test, far]


def by_type(runs: list[Run], metric: str, asked: Columns) -> Section:
    """A metric for every question type (the number of hops, where types say it), for each run and ablation."""
    found = {
        (run.name, ablation): values_by_type(rows, metric, asked)
        for run in runs
        for ablation, rows in run.predictions.items()
    }
    kinds = sorted({kind for values in found.values() for kind in values})
    table = [["run", "taken away", *kinds]]
    for (run, ablation), values in found.items():
        table.append([run, ablation, *(with_interval(values.get(kind)) for kind in kinds)])
    counts = {kind: max(len(values[kind]) for values in found.values() if kind in values) for kind in kinds}
    note = "Questions: " + ", ".join(f"{kind} {count}" for kind, count in counts.items()) + "."
    title = f"{metric.replace('_', ' ').capitalize()} by question type"
    return Section(title, [Table(table), Text(note, note=True)] if kinds else [])


def values_by_type(rows: list[Row], metric: str, asked: Columns) -> dict[str, np.ndarray]:
    """Type -> (n,) the metric of each of its questions; rows without a type are left out."""
    kinds = np.array([row.get("type") or "" for row in rows])
    values = (per_question(rows) | asked(rows))[metric]
    return {kind: values[kinds == kind] for kind in sorted(set(kinds.tolist()) - {""})}


def with_interval(values: np.ndarray | None) -> str:
    if values is None:
        return "-"
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3f}\n{low:.3f} to {high:.3f}"
