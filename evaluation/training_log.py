"""What training left in a run's folder: the curves of its log, its cost, the sizes of what it held and saved."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_processor.schema import whole_lines
from evaluation.charts import COLOURS, Axis, Series, chart
from evaluation.page import Figure

Row = dict[str, Any]

GIB, MB = 2**30, 10**6
# of an evaluation's row: how fast it was is no result
NOT_METRICS = ("_runtime", "_per_second", "_mem_cpu_alloc_delta")
TOGETHER = 4  # runs whose losses in training and evaluation share a chart
WEIGHTS = ("adapter_model.safetensors", "model*.safetensors")


@dataclass(frozen=True)
class Training:
    """A training's record.

    Attributes:
        record: run.json: arguments, machine, commit, ... log: rows of the Trainer's log, in order.
        metrics: metrics.json. saved: bytes of the weights in the folder, without the base model.
    """

    record: Row
    log: list[Row]
    metrics: dict[str, float]
    saved: int

    @property
    def arguments(self) -> Row:
        return self.record.get("arguments", {})


def read_training(folder: Path) -> Training:
    """What the folder of a training holds; parts that are not there are empty.

    The log is that of log.jsonl, or of the last checkpoint's trainer_state.json.
    """
    files = [path for pattern in WEIGHTS for path in sorted(folder.glob(pattern))]
    saved = sum(path.stat().st_size for path in files)
    return Training(read_json(folder / "run.json"), read_log(folder), read_json(folder / "metrics.json"), saved)


def read_json(path: Path) -> Row:
    """The mapping in a file, empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_log(folder: Path) -> list[Row]:
    """The rows of the Trainer's log."""
    rows = whole_lines(folder / "log.jsonl")
    if rows:
        return rows
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    return read_json(states[-1]).get("log_history", []) if states else []


# ------------------------------------------------------------------------------------------------------------ curves
def curve(log: list[Row], name: str) -> list[tuple[float, float]]:
    """(step, value) of every row that has the name."""
    return [(row["step"], row[name]) for row in log if isinstance(row.get(name), (int, float))]


def curves(runs: dict[str, Training]) -> list[Figure]:
    """Loss in training and in evaluation of all runs in one chart, and a chart for each further figure of evaluations.

    Args:
        runs: name -> training; those without a log are left out.
    """
    if len(runs) > TOGETHER:
        charts = [
            (lines_of(runs, "loss", ""), "Loss in training."),
            (lines_of(runs, "eval_loss", ""), "Loss in evaluation."),
        ]
    else:
        both = zip(lines_of(runs, "loss", ": training"), lines_of(runs, "eval_loss", ": evaluation"), strict=True)
        charts = [([one for pair in both for one in pair], "Loss in training and on the validation split.")]
    figures = [Figure(loss_chart(series), caption) for series, caption in charts]
    for name in evaluated(runs):
        series = lines_of(runs, name, "")
        shown = name.removeprefix("eval_")
        figures.append(Figure(chart(series, Axis("optimizer step"), Axis(shown)), f"{shown} on the validation split."))
    return figures


def lines_of(runs: dict[str, Training], name: str, word: str) -> list[Series]:
    """A figure of each run's log, in the colour of the run; evaluations are dashed."""
    hollow = name.startswith("eval_")
    return [
        Series(run_name + word, curve(run.log, name), colour=COLOURS[i % len(COLOURS)], hollow=hollow)
        for i, (run_name, run) in enumerate(runs.items())
    ]


def loss_chart(series: list[Series]) -> str:
    """Losses over steps, by their logarithms where all are above 0; "" where no run has two of them."""
    if all(len(one.points) < 2 for one in series):
        return ""
    values = [value for one in series for _, value in one.points]
    log = all(value > 0 for value in values)
    axis = Axis("loss per token, logarithmic" if log else "loss per token", log=log)
    return chart([one for one in series if one.points], Axis("optimizer step"), axis)


def evaluated(runs: dict[str, Training]) -> list[str]:
    """Figures of evaluations, beside the loss, that some log has at least twice."""
    names = {name for run in runs.values() for row in run.log for name in row if name.startswith("eval_")}
    names = {name for name in names if not name.endswith(NOT_METRICS) and name != "eval_loss"}
    return sorted(name for name in names if any(len(curve(run.log, name)) > 1 for run in runs.values()))


# -------------------------------------------------------------------------------------------------------------- cost
def costs(runs: dict[str, Training]) -> list[list[str]]:
    """A table: how each run trained its language model, in what time and memory, and what it saved."""
    header = [
        "run",
        "language model",
        "evaluation loss",
        "parameters, M",
        "trained, M",
        "weights held, MB",
        "saved, MB",
        "peak, GiB",
    ]
    table = [[*header, "minutes", "tokens", "tokens a second"]]
    for name, run in runs.items():
        figures = run.metrics
        tokens, seconds = figures.get("tokens"), figures.get("train_runtime")
        rate = figures.get("tokens_per_s", tokens / seconds if tokens and seconds else None)
        table.append([
            name,
            adaptation(run.arguments),
            number(figures.get("eval_loss"), 1, 3),
            number(figures.get("parameters"), 1e6, 2),
            number(figures.get("parameters_trained"), 1e6, 2),
            number(figures.get("weight_bytes"), MB, 1),
            number(run.saved or None, MB, 1),
            number(figures.get("peak_gib"), 1, 2),
            number(figures.get("minutes"), 1, 1),
            number(tokens, 1, 0),
            number(rate, 1, 0),
        ])  # fmt: skip
    return table if any(run.metrics for run in runs.values()) else table[:1]


def adaptation(arguments: Row) -> str:
    """How the language model was trained, in words; "-" where nothing is known."""
    if not arguments or arguments.get("stage", "qa") != "qa":
        return "-" if not arguments else "none"
    if arguments.get("freeze_lm"):
        return "frozen"
    if not arguments.get("use_lora", True):
        return "full"
    bits = f", {arguments['q_bits']} bits" if arguments.get("q_lora") else ""
    return f"LoRA, r {arguments.get('lora_r')}{bits}"


def number(value: float | None, unit: float, digits: int) -> str:
    """The value in the unit, "-" for None."""
    return "-" if value is None else f"{value / unit:,.{digits}f}"
