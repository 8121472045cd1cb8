"""Runs read from their folders and compared: what a report's page says is reckoned here.

A run is a folder with predictions.jsonl, possibly predictions_ABLATION.jsonl for ablations, and either run.json of its
training or asked.json, which names the model that was asked; or one predictions file.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.schema import read_jsonl
from evaluation.metrics import per_question
from evaluation.significance import LEVEL, judged, paired_tests
from evaluation.training_log import Training, read_json, read_training

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Columns = Callable[[list[Row]], dict[str, np.ndarray]]

LOST = {
    "zero": "the graph tokens are zeroed",
    "shuffle": "graphs are shuffled between samples",
    "no_text": "the graph's text is left out",
    "no_graph": "the graph tokens are left out",
    "question_only": "graph and text are left out",
}
ASKED = "asked.json"  # {model, data, split}: who was asked for the predictions beside it, and what


@dataclass(frozen=True)
class Run:
    """What one model answered and how it was trained.

    Attributes:
        predictions: by ablation, "none" first; empty for a training that answered nothing.
        training: what its folder holds, empty where it is not known.
        data: the dataset folder of the questions, and their split; None where they are not known.
    """

    name: str
    predictions: dict[str, list[Row]]
    training: Training
    data: tuple[Path, str] | None = None

    @property
    def arguments(self) -> Row:
        return self.training.arguments


def read_predictions(path: str | Path) -> list[Row]:
    """The rows of a predictions file.

    Raises:
        ValueError: the file is missing, or a row lacks `id`, `prediction` or `answers`, or holds them in another form.
    """
    if not Path(path).is_file():
        raise ValueError(f"There are no predictions at {path}. Make them with `python -m evaluation generate`.")
    return [checked(row, f"{path}:{number}") for number, row in read_jsonl(path)]


def checked(row: Row, where: str) -> Row:
    """The row of a prediction, its type as text: data sets that number their types write numbers."""
    missing = [name for name in ("id", "prediction", "answers") if name not in row]
    if missing:
        raise ValueError(f"{where}: a prediction needs {missing[0]!r}.")
    kind = row.get("type")
    row = row | {"type": str(kind)} if isinstance(kind, (int, float)) else row
    for name in ("prediction", "type"):
        if not isinstance(row.get(name), str) and not (name == "type" and kind is None):
            raise ValueError(f"{where}: {name} must be a text, got {row[name]!r}.")
    for name in ("answers", "ranked_answers"):
        if name in row and not (isinstance(row[name], list) and all(isinstance(one, str) for one in row[name])):
            raise ValueError(f"{where}: {name} must be a list of texts, got {row[name]!r}.")
    return row


def read_run(path: str | Path) -> Run:
    """A run from its folder or from one predictions file.

    Raises:
        ValueError: there are neither predictions nor the record of a training.
    """
    path = Path(path)
    if path.is_file():
        return Run(str(path), {"none": read_predictions(path)}, Training({}, [], {}, 0))
    prefix, asked = "predictions_", read_json(path / ASKED)
    training = read_training(Path(asked["model"]) if asked else path)
    predictions = {}
    if (path / "predictions.jsonl").is_file() or not training.record:
        predictions["none"] = read_predictions(path / "predictions.jsonl")
    for file in sorted(path.glob(f"{prefix}*.jsonl")) if predictions else []:
        predictions[file.stem.removeprefix(prefix)] = read_predictions(file)
    return Run(str(path), predictions, training, where_asked(asked, training.arguments))


def where_asked(asked: Row, arguments: Row) -> tuple[Path, str] | None:
    """Where the predicted questions stand: folder and split."""
    data, split = (asked["data"], asked["split"]) if asked else (
        arguments.get("data_path"), arguments.get("test_split", "test")
    )  # fmt: skip
    return (Path(data), split) if isinstance(data, str) and Path(data).is_dir() else None


def check_same_ids(predictions: list[Row], references: list[Row]) -> None:
    """Raises ValueError, naming the counts and one id, if the two do not hold the same questions."""
    given, wanted = {row["id"] for row in predictions}, {row["id"] for row in references}
    if given == wanted:
        return
    missing, unknown = sorted(wanted - given), sorted(given - wanted)
    example = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not among the references"
    raise ValueError(f"The predictions are not of the same questions as the references: {len(missing)} missing, "
                     f"{len(unknown)} unknown; {example}. Generate them again from the same split.")


def unlike(one: Row, other: Row) -> str:
    """What two rows of one id differ in that belongs to the question, "" where they are the same question."""
    if sorted(one["answers"]) != sorted(other["answers"]):
        return "answers"
    both = "question" in one and "question" in other
    return "question" if both and one["question"] != other["question"] else ""


def compare(first: list[Row], second: list[Row], more: Columns | None = None) -> dict[str, float]:
    """What the second predictions gain over the first, on the same questions, for every metric defined on all of them.

    Args:
        first, second: predictions of the same questions, in any order.
        more: rows -> further metrics, (n,) one number per question, such as those of text_metrics.py.

    Returns:
        Flat `METRIC_first`, `METRIC_second`, `METRIC_difference`, `METRIC_low`, `METRIC_high`, `METRIC_p`, ...; see
        `significance.paired_tests`.

    Raises:
        ValueError: the two do not hold the same questions, or one id stands for two of them.
    """
    check_same_ids(second, first)
    by_id = {row["id"]: row for row in second}
    second = [by_id[row["id"]] for row in first]
    for one, other in zip(first, second, strict=True):
        if name := unlike(one, other):
            raise ValueError(
                f"{one['id']!r} is not the same question in both: {name} {one[name]!r} in one, {other[name]!r} in the "
                "other. Compare answers to the same data; ids that are row numbers change with the rows."
            )
    before, after = ({**per_question(rows), **(more(rows) if more else {})} for rows in (first, second))
    gains: dict[str, float] = {}
    for name, values in before.items():
        if (values != values).any() or (after[name] != after[name]).any():  # NaN
            logger.info("%s is not defined for every question: it is not compared.", name)
            continue
        gains |= {f"{name}_first": float(values.mean()), f"{name}_second": float(after[name].mean())}
        gains |= {f"{name}_{key}": value for key, value in paired_tests(values, after[name]).items()}
    return gains


def verdict(
    whole: list[Row], ablated: list[Row], ablate: str, metric: str = "exact_match", more: Columns | None = None
) -> str:
    """One sentence: how far a metric falls under an ablation of the same questions, or that it moves no more than
    chance would have it.

    Args:
        whole, ablated: predictions with and without what was taken away. ablate: a key of LOST.
        metric: one of those of `compare`. more: see there.
    """
    wanted = {row["id"] for row in ablated}
    gains = compare([row for row in whole if row["id"] in wanted], ablated, more)
    before, after, low, high = (gains[f"{metric}_{key}"] for key in ("first", "second", "low", "high"))
    figures = f"{before:.3f} -> {after:.3f}, 95 % interval of the change {low:+.3f} to {high:+.3f}, "
    figures += f"{len(ablated)} questions"
    named = "Exact match" if metric == "exact_match" else metric
    if judged(gains, metric)[1] >= LEVEL:
        return f"{named} does not move when {LOST[ablate]} ({figures})."
    return f"{named} {'falls' if after < before else 'RISES'} when {LOST[ablate]} ({figures})."
