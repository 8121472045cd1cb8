"""Runs side by side as Markdown and as one HTML page that needs no network: metrics, ablations, differences, samples.

A run is a folder with predictions.jsonl, possibly predictions_ABLATION.jsonl for ablations, and possibly run.json; or
one predictions file.
"""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_processor.schema import atomic_write, read_jsonl
from evaluation.metrics import paired_bootstrap, per_question, score

Row = dict[str, Any]
Table = list[list[str]]

SHOWN = ("exact_match", "token_f1", "set_f1", "hits@1", "any_hit", "recall@20", "mrr", "first_mention_accuracy")
LOST = {
    "zero": "the graph tokens are zeroed",
    "shuffle": "graphs are shuffled between samples",
    "no_text": "the graph's text is left out",
    "no_graph": "the graph tokens are left out",
    "question_only": "graph and text are left out",
}
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .75rem;border-bottom:1px solid #ccc;text-align:left;
vertical-align:top}th{border-bottom:2px solid #666}td:not(:first-child){font-variant-numeric:tabular-nums}"""


@dataclass(frozen=True)
class Run:
    """Predictions of one model by ablation ("none" first where it is there) and the arguments it was trained with."""

    name: str
    predictions: dict[str, list[Row]]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A heading, sentences, and a table whose first row is its header (empty: no table)."""

    title: str
    sentences: list[str]
    table: Table


def read_predictions(path: str | Path) -> list[Row]:
    """The rows of a predictions file.

    Raises:
        ValueError: the file is missing, or a row lacks `id`, `prediction` or `answers`.
    """
    if not Path(path).is_file():
        raise ValueError(f"There are no predictions at {path}. Make them with `python -m evaluation generate`.")
    rows = []
    for number, row in read_jsonl(path):
        missing = [name for name in ("id", "prediction", "answers") if name not in row]
        if missing:
            raise ValueError(f"{path}:{number}: a prediction needs {missing[0]!r}.")
        rows.append(row)
    return rows


def read_run(path: str | Path) -> Run:
    """A run from its folder or from one predictions file."""
    path = Path(path)
    if path.is_file():
        return Run(str(path), {"none": read_predictions(path)}, {})
    prefix, record = "predictions_", path / "run.json"
    predictions = {"none": read_predictions(path / "predictions.jsonl")}
    for file in sorted(path.glob(f"{prefix}*.jsonl")):
        predictions[file.stem.removeprefix(prefix)] = read_predictions(file)
    arguments = json.loads(record.read_text(encoding="utf-8"))["arguments"] if record.is_file() else {}
    return Run(str(path), predictions, arguments)


def check_same_ids(predictions: list[Row], references: list[Row]) -> None:
    """Raises ValueError, naming the counts and one id, if the two do not hold the same questions."""
    given, wanted = {row["id"] for row in predictions}, {row["id"] for row in references}
    if given == wanted:
        return
    missing, unknown = sorted(wanted - given), sorted(given - wanted)
    example = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not among the references"
    raise ValueError(f"The predictions are not of the same questions as the references: {len(missing)} missing, "
                     f"{len(unknown)} unknown; {example}. Generate them again from the same split.")


def compare(first: list[Row], second: list[Row]) -> dict[str, float]:
    """What the second predictions gain over the first, on the same questions, for every metric defined on all of them.

    Returns:
        Flat `METRIC_first`, `METRIC_second`, `METRIC_difference`, `METRIC_low`, `METRIC_high`, `METRIC_p`; see
        `metrics.paired_bootstrap`.

    Raises:
        ValueError: the two do not hold the same questions.
    """
    check_same_ids(second, first)
    by_id = {row["id"]: row for row in second}
    before, after = per_question(first), per_question([by_id[row["id"]] for row in first])
    gains: dict[str, float] = {}
    for name, values in before.items():
        if not (values != values).any():  # NaN: not defined for some question
            gains |= {f"{name}_first": float(values.mean()), f"{name}_second": float(after[name].mean())}
            gains |= {f"{name}_{key}": value for key, value in paired_bootstrap(values, after[name]).items()}
    return gains


def verdict(whole: list[Row], ablated: list[Row], ablate: str) -> str:
    """One sentence: how far exact match falls under an ablation of the same questions, or that it does not move."""
    wanted = {row["id"] for row in ablated}
    gains = compare([row for row in whole if row["id"] in wanted], ablated)
    before, after = gains["exact_match_first"], gains["exact_match_second"]
    figures = f"{before:.3f} -> {after:.3f}, 95 % interval of the change {gains['exact_match_low']:+.3f} to "
    figures += f"{gains['exact_match_high']:+.3f}, {len(ablated)} questions"
    if gains["exact_match_low"] <= 0 <= gains["exact_match_high"]:
        return f"The score does not move when {LOST[ablate]} ({figures})."
    return f"Exact match {'falls' if after < before else 'RISES'} when {LOST[ablate]} ({figures})."


def build_sections(runs: list[Run], samples: int = 10) -> list[Section]:
    """What a report says of some runs."""
    sections = [_scores(runs), *(_by_type(run) for run in runs)]
    sections.append(Section("What the graph is worth", _verdicts(runs), []))
    if len(runs) > 1:
        sections.append(_differences(runs))
    return [*sections, _samples(runs, samples)]


def _scores(runs: list[Run]) -> Section:
    table = [["run", "ablation", "questions", *SHOWN, "95 % of exact match"]]
    for run in runs:
        for ablate, rows in run.predictions.items():
            metrics = score(rows)
            interval = f"{metrics['exact_match_low']:.3f} to {metrics['exact_match_high']:.3f}"
            table.append([run.name, ablate, str(len(rows)), *(_figure(metrics, name) for name in SHOWN), interval])
    return Section("Scores", ["Each metric is defined in evaluation/metrics.py."], table)


def _figure(metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:.3f}" if name in metrics else "-"


def _by_type(run: Run) -> Section:
    scores = {ablate: score(rows) for ablate, rows in run.predictions.items()}
    kinds = sorted({row["type"] for rows in run.predictions.values() for row in rows if "type" in row})
    table = [["type", *scores]]
    table += [[kind, *(_figure(metrics, f"exact_match/{kind}") for metrics in scores.values())] for kind in kinds]
    return Section(f"Exact match by question type: {run.name}", [], table if kinds else [])


def _verdicts(runs: list[Run]) -> list[str]:
    sentences = []
    for run in runs:
        whole = run.predictions["none"]
        ablated = {name: rows for name, rows in run.predictions.items() if name in LOST}
        sentences += [f"{run.name}: {verdict(whole, rows, name)}" for name, rows in ablated.items()]
        if not ablated:
            sentences.append(f"{run.name}: no ablation was run, so nothing is known of what its graph is worth.")
    return sentences


def _differences(runs: list[Run]) -> Section:
    names = sorted({name for run in runs for name in run.arguments})
    values = {name: [json.dumps(run.arguments.get(name), ensure_ascii=False) for run in runs] for name in names}
    table = [["argument", *(run.name for run in runs)]]
    table += [[name, *given] for name, given in values.items() if len(set(given)) > 1]
    return Section("What differs between the runs", [], table if len(table) > 1 else [])


def _samples(runs: list[Run], count: int) -> Section:
    given = {run.name: {row["id"]: row["prediction"] for row in run.predictions["none"]} for run in runs}
    rows = runs[0].predictions["none"]
    chosen = rows[:: max(1, len(rows) // count)][:count]  # spread over the file, so that every type is likely seen
    table = [["question", "answer", *given]]
    for row in chosen:
        predictions = [answers.get(row["id"], "-") for answers in given.values()]
        table.append([row.get("question", row["id"]), " | ".join(row["answers"]), *predictions])
    return Section("Samples", [], table)


def to_markdown(title: str, sections: list[Section]) -> str:
    """The report as Markdown."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", *(f"{sentence}\n" for sentence in section.sentences)]
        for i, row in enumerate(section.table):
            cells = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") for cell in row]
            lines.append("| " + " | ".join(cells) + " |")
            lines += ["|" + " --- |" * len(row)] if i == 0 else []
        lines.append("")
    return "\n".join(lines)


def to_html(title: str, sections: list[Section]) -> str:
    """The report as one HTML page without scripts, pictures or links."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [f"<p>{html.escape(sentence)}</p>" for sentence in section.sentences]
        rows = [_html_row(row, "td" if i else "th") for i, row in enumerate(section.table)]
        body += ["<table>", *rows, "</table>"] if rows else []
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return "\n".join(["<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>", ""])


def _html_row(cells: list[str], tag: str) -> str:
    escaped = (html.escape(cell).replace("\n", "<br>") for cell in cells)
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in escaped) + "</tr>"


def write_report(runs: list[Run], output: str | Path, title: str = "Evaluation") -> Path:
    """Writes `output` (HTML) and the same as Markdown beside it; returns `output`."""
    output, sections = Path(output), build_sections(runs)
    for path, text in ((output, to_html(title, sections)), (output.with_suffix(".md"), to_markdown(title, sections))):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return output
