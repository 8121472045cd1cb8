"""The demonstrations' questions, asked with and without their graphs, and their tables of scores."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.metrics import chance, score
from evaluation.report import read_predictions

if TYPE_CHECKING:
    from data_processor.dataset import GraphQADataset

Row = dict[str, Any]


def is_graph_only(row: Row) -> bool:
    """Whether the question's answer stands in the graph alone, never in the prompt's text."""
    return row["type"].startswith("graph_")


def demo_predictions(
    model: Any, processor: Any, dataset: "GraphQADataset", folder: Path, batch_size: int
) -> dict[str, list[Row]]:
    """Answers to the whole split, and to the family that each ablation bears on."""
    from torch.utils.data import Subset

    kinds = [is_graph_only({"type": pair.type}) for pair in dataset.pairs]
    lookups = Subset(dataset, [i for i, graph_only in enumerate(kinds) if not graph_only])
    graph_only = Subset(dataset, [i for i, graph_only in enumerate(kinds) if graph_only])
    asked = {"none": dataset, "question_only": lookups, "zero": graph_only, "shuffle": graph_only}
    return _predictions(model, processor, asked, folder, batch_size, max_new_tokens=16)


def _predictions(
    model: Any, processor: Any, asked: dict[str, Any], folder: Path, batch_size: int, max_new_tokens: int
) -> dict[str, list[Row]]:
    from evaluation.generation import generate_predictions

    predictions = {}
    for ablate, questions in asked.items():
        path = folder / ("predictions.jsonl" if ablate == "none" else f"predictions_{ablate}.jsonl")
        generate_predictions(model, processor, questions, path, batch_size, max_new_tokens, ablate=ablate)
        predictions[ablate] = read_predictions(path)
    return predictions


def demo_metrics(predictions: dict[str, list[Row]], train: list[Row]) -> dict[str, float]:
    """The demonstration's table: exact match of every family, and of every question type under its prefix."""
    whole = predictions["none"]
    graph_train = [row for row in train if is_graph_only(row)]
    parts = {
        "exact_match": [row for row in whole if not is_graph_only(row)],
        "question_only": predictions["question_only"],
        "graph_only": [row for row in whole if is_graph_only(row)],
        "graph_only_zeroed": predictions["zero"],
        "graph_only_shuffled": predictions["shuffle"],
    }
    scores = {name: score(rows) for name, rows in parts.items()}
    metrics = {name: values["exact_match"] for name, values in scores.items()}
    metrics["graph_only_chance"] = chance(graph_train)
    for name, values in scores.items():
        kinds = [key.removeprefix("exact_match/") for key in values if key.startswith("exact_match/")]
        metrics |= {f"{name}/{kind}": values[f"exact_match/{kind}"] for kind in kinds}
    for kind in sorted({row["type"] for row in graph_train}):
        metrics[f"graph_only_chance/{kind}"] = chance([row for row in graph_train if row["type"] == kind])
    return metrics


# ------------------------------------------------------------------------------------------------------ the Translator


def translator_predictions(
    model: Any, processor: Any, dataset: "GraphQADataset", folder: Path, batch_size: int
) -> dict[str, list[Row]]:
    """Answers to the whole split with its graphs, with their tokens zeroed, and with graphs exchanged."""
    asked = dict.fromkeys(("none", "zero", "shuffle"), dataset)
    return _predictions(model, processor, asked, folder, batch_size, max_new_tokens=64)


def translator_metrics(predictions: dict[str, list[Row]], train: list[Row], alignment: Path) -> dict[str, float]:
    """The Translator's table: retrieval of stage 1, then exact match of stage 2 on closed questions; of
    descriptions, where there are some, the F1 of words.

    Args:
        predictions: of `translator_predictions`.
        train: the training questions, for chance.
        alignment: the output of stage 1, whose metrics.json has the retrieval.
    """
    aligned = json.loads((alignment / "metrics.json").read_text(encoding="utf-8"))
    told_of_texts = ("retrieval_r1", "candidates", "texts_in_training")
    metrics = {name: value for name, value in aligned.items() if name.startswith(told_of_texts)}
    names = {"none": "", "zero": "_zeroed", "shuffle": "_shuffled"}
    closed = {ablate: [row for row in rows if is_graph_only(row)] for ablate, rows in predictions.items()}
    told = {ablate: [row for row in rows if not is_graph_only(row)] for ablate, rows in predictions.items()}
    metrics |= {f"answers{names[ablate]}": score(rows)["exact_match"] for ablate, rows in closed.items()}
    metrics["chance"] = chance([row for row in train if is_graph_only(row)])
    if told["none"]:
        metrics |= {f"descriptions_f1{names[ablate]}": score(rows)["token_f1"] for ablate, rows in told.items()}
    for kind in sorted({row["type"] for row in closed["none"]}):
        metrics[f"answers/{kind}"] = score([row for row in closed["none"] if row["type"] == kind])["exact_match"]
        metrics[f"chance/{kind}"] = chance([row for row in train if row["type"] == kind])
    return metrics
