"""The page about some runs: what they say, scores, differences, types, training, cost, samples."""

import json
from pathlib import Path

import numpy as np

from evaluation.metrics import bootstrap_interval, per_question, score
from evaluation.page import Block, Section, Table, Text, write_page
from evaluation.report import LOST, Row, Run, compare, verdict
from evaluation.report_samples import samples
from evaluation.significance import LEVEL, beyond_chance, judged
from evaluation.training_log import costs, curves

# metrics of the tables, as far as they are defined
SHOWN = ("exact_match", "token_f1", "set_f1", "hits@1", "any_hit", "recall@20", "mrr", "first_mention_accuracy")
SAMPLES, DRAWN = 8, 3
# flags that only name places or steer the log
NO_DIFFERENCE = {"output_dir", "run_name", "logging_dir", "wandb_run_name", "local_rank"}


def write_report(runs: list[Run], output: str | Path, title: str = "Evaluation") -> Path:
    """Writes `output` (HTML) and the same as Markdown beside it; returns `output`."""
    told = f"{len(runs)} runs: " if len(runs) > 1 else ""
    return write_page(output, title, build_sections(runs), told + ", ".join(run.name for run in runs))


def build_sections(runs: list[Run]) -> list[Section]:
    """What a report says of some runs."""
    answered = [run for run in runs if run.predictions]
    trained = {run.name: run.training for run in runs}
    sections = [
        Section("What the runs say", [*verdicts(answered), *([] if answered else [Text("No run has predictions.")])]),
        scores(answered),
        differences(answered),
        by_type(answered),
        Section("Training", curves(trained)),
        Section("Size and cost", cost_blocks(runs)),
        Section("What differs between the runs", [Table(changed(runs))] if len(runs) > 1 else []),
        samples(answered, SAMPLES, DRAWN) if answered else Section("", []),
        Section("Where the runs come from", [Table(origins(runs))]),
    ]
    return sections


# ------------------------------------------------------------------------------------------------------------ scores
def verdicts(runs: list[Run]) -> list[Block]:
    """Sentences: whether runs differ beyond chance, and what each owes to its graph."""
    sentences = [difference_sentence(runs[0], other) for other in runs[1:]]
    for run in runs:
        ablated = {name: rows for name, rows in run.predictions.items() if name in LOST}
        sentences += [f"{run.name}: {verdict(run.predictions['none'], rows, name)}" for name, rows in ablated.items()]
        if not ablated:
            sentences.append(f"{run.name}: no ablation was run, so nothing is known of what its graph is worth.")
    return [Text(sentence) for sentence in sentences]


def shared(first: Run, second: Run) -> tuple[list[Row], list[Row]]:
    """The predictions of the questions that both answered."""
    both = {row["id"] for row in first.predictions["none"]} & {row["id"] for row in second.predictions["none"]}
    one, other = ([row for row in run.predictions["none"] if row["id"] in both] for run in (first, second))
    return one, other


def difference_sentence(first: Run, second: Run) -> str:
    """Whether the second run's exact match differs from the first one's beyond chance."""
    before, after = shared(first, second)
    if not before:
        return f"{first.name} and {second.name} answered different questions: they cannot be compared."
    return f"From {first.name} to {second.name}: {beyond_chance(compare(before, after), 'exact_match', len(before))}"


def scores(runs: list[Run]) -> Section:
    """Every metric of every run and ablation, with an interval of the first."""
    found = [(run.name, name, rows, score(rows)) for run in runs for name, rows in run.predictions.items()]
    names = [name for name in SHOWN if any(name in metrics for *_, metrics in found)]
    table = [["run", "taken away", "questions", *names, "95 % of exact match"]]
    for run, ablation, rows, metrics in found:
        interval = f"{metrics['exact_match_low']:.3f} to {metrics['exact_match_high']:.3f}"
        table.append([run, ablation, str(len(rows)), *(figure(metrics.get(name)) for name in names), interval])
    note = "Intervals are bootstraps over questions. evaluation/metrics.py defines each metric."
    return Section("Scores", [Table(table), Text(note, note=True)] if found else [])


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def differences(runs: list[Run]) -> Section:
    """What each run gains over the first one, metric by metric."""
    blocks: list[Block] = []
    for other in runs[1:]:
        before, after = shared(runs[0], other)
        if before:
            gains = compare(before, after)
            header = ["metric", runs[0].name, other.name, "difference", "95 % interval", "p", "test", "beyond chance"]
            rows = [difference(gains, name) for name in SHOWN if f"{name}_difference" in gains]
            blocks += [
                Text(f"From {runs[0].name} to {other.name}, {len(before)} shared questions."),
                Table([header, *rows]),
            ]
    note = "Intervals are paired bootstraps. Several metrics are tested at once: of twenty, one differs by chance."
    return Section("Differences between the runs", [*blocks, Text(note, note=True)] if blocks else [])


def difference(gains: dict[str, float], name: str) -> list[str]:
    """One metric of `compare` as cells."""
    first, second, gain, low, high = (
        gains[f"{name}_{key}"] for key in ("first", "second", "difference", "low", "high")
    )
    test, p = judged(gains, name)
    far = "yes" if p < LEVEL else "no"
    return [name, figure(first), figure(second), f"{gain:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{p:.4f}", test, far]


def by_type(runs: list[Run]) -> Section:
    """Exact match of every question type (the number of hops, where types say it), for each run and ablation."""
    found = {run.name: {name: matches_by_type(rows) for name, rows in run.predictions.items()} for run in runs}
    ablations = list(dict.fromkeys(name for columns in found.values() for name in columns))
    kinds = sorted({kind for columns in found.values() for column in columns.values() for kind in column})
    table = [["type", "run", "questions", *("nothing taken away" if name == "none" else name for name in ablations)]]
    for kind in kinds:
        for run, columns in found.items():
            matches = [columns[name].get(kind) if name in columns else None for name in ablations]
            count = max((len(values) for values in matches if values is not None), default=0)
            table.append([kind, run, str(count), *(with_interval(values) for values in matches)])
    return Section("Exact match by question type", [Table(table)])


def matches_by_type(rows: list[Row]) -> dict[str, np.ndarray]:
    """Type -> (n,) whether each of its questions is answered; rows without a type are left out."""
    kinds = np.array([row.get("type") or "" for row in rows])
    matches = per_question(rows)["exact_match"]
    return {kind: matches[kinds == kind] for kind in sorted(set(kinds.tolist()) - {""})}


def with_interval(values: np.ndarray | None) -> str:
    if values is None:
        return "-"
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3f}\n{low:.3f} to {high:.3f}"


# ---------------------------------------------------------------------------------------------------------- training
def cost_blocks(runs: list[Run]) -> list[Block]:
    """The table of costs, and what its columns mean."""
    table = Table(costs({run.name: run.training for run in runs}))
    note = (
        "Weights held: all parameters as they lie in memory, 4 and 8 bits as packed bytes with their scales. Saved: "
        "the weight files of the folder, without the base model. Peak: of the GPU's tensors, on a CPU of the process. "
        "Tokens: read in training, without padding."
    )
    return [table, Text(note, note=True)] if len(table.rows) > 1 else []


def changed(runs: list[Run]) -> list[list[str]]:
    """Arguments whose values are not the same in all runs."""
    names = sorted({name for run in runs for name in run.arguments} - NO_DIFFERENCE)
    values = {name: [json.dumps(run.arguments.get(name), ensure_ascii=False) for run in runs] for name in names}
    table = [["argument", *(run.name for run in runs)]]
    return table + [[name, *given] for name, given in values.items() if len(set(given)) > 1]


def origins(runs: list[Run]) -> list[list[str]]:
    """Model, data, commit and machine of every run whose training is known."""
    table = [["run", "base model", "data", "seed", "commit", "machine"]]
    for run in runs:
        if run.training.record:
            record, arguments = run.training.record, run.arguments
            said = [arguments.get(name) for name in ("model_name_or_path", "data_path", "seed")]
            said += [(record.get("commit") or "not recorded")[:10], record.get("machine")]
            table.append([run.name, *("-" if one is None else str(one) for one in said)])
    return table
