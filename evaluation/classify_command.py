"""`python -m evaluation classify`: labels ranked for every question, beside the majority and the text alone."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_processor.schema import read_jsonl, write_json
from evaluation.ablations import ABLATIONS
from evaluation.classify import TEXT_ONLY, WAYS, Labels, Row, classification, classify
from evaluation.report import read_predictions


def add_classify(command: argparse.ArgumentParser) -> None:
    """The flags of `classify`, beside those of the model."""
    command.add_argument("--data", type=Path, required=True, help="folder with graph/, qa/ and subgraphs/")
    command.add_argument("--split", default="test")
    command.add_argument("--type", help="only questions of this type")
    command.add_argument("--labels", type=Path, help="a label a line, other names of it after `|` (default: the "
                         "answers of the training questions)")  # fmt: skip
    command.add_argument("--by", choices=WAYS, default="likelihood",
                         help="the labels' likelihood as answers, or the labels that a generated answer names first")
    command.add_argument("--reduction", choices=("sum", "mean"), default="sum", help="of the log-likelihoods of a "
                         "label's tokens: sum is the label's own probability, mean does not favour short labels "
                         "(default: %(default)s)")  # fmt: skip
    command.add_argument("--list_labels", action="store_true", help="write the labels after the question")
    command.add_argument("--output", type=Path, required=True,
                         help="predictions.jsonl to write; metrics.json and the run with the text alone lie beside")
    command.add_argument("--ablate", choices=ABLATIONS, default="none", help="what is taken away from the model")
    command.add_argument("--batch_size", type=int, default=16, help="questions at a time")
    command.add_argument("--max_new_tokens", type=int, default=64, help="longest generated answer")
    command.add_argument("--max_length", type=int, help="longest prompt with answer, in tokens; default: as in "
                         "training")  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the shuffle")
    command.set_defaults(text_style=None, max_text_tokens=None)


def labels_of(arguments: argparse.Namespace) -> tuple[Labels, list[Row]]:
    """The labels to choose from, and the training questions, if there are any."""
    path = arguments.data / "qa" / "train.jsonl"
    train = [row for _, row in read_jsonl(path)] if path.is_file() else []
    train = [row for row in train if arguments.type in (None, row.get("type"))]
    if arguments.labels is not None:
        return Labels.read(arguments.labels), train
    if not train:
        raise ValueError(f"{path} holds no question to take labels from. Give a file with --labels, a label a line.")
    return Labels.of_answers(train), train


def of_type(dataset: Any, kind: str | None) -> Sequence[Any]:
    """The questions of one type; all of them for None.

    Raises:
        ValueError: conversations, or no question of that type.
    """
    from torch.utils.data import Subset

    from data_processor.dataset import ConversationDataset

    if isinstance(dataset, ConversationDataset):
        raise ValueError(f"{dataset.path} holds conversations, whose answers are no labels. Give questions.")
    chosen = [i for i, pair in enumerate(dataset.pairs) if kind in (None, pair.type)]
    if not chosen:
        kinds = ", ".join(sorted({pair.type or "none" for pair in dataset.pairs}))
        raise ValueError(f"No question is of the type {kind!r}; there are: {kinds}.")
    return Subset(dataset, chosen)


def run_classify(
    arguments: argparse.Namespace, model: Any, processor: Any, dataset: Any, longest: int | None, first: bool
) -> None:
    """Asks, asks again with the text alone, writes and prints the metrics.

    Args:
        arguments: the flags. model, processor, dataset: as they say. longest: prompt and answer, in tokens.
        first: whether this process writes.
    """
    questions = of_type(dataset, arguments.type)
    labels, train = labels_of(arguments)
    asked = ({"id": pair.id, "answers": pair.answers} for pair in (dataset.pairs[i] for i in questions.indices))
    for row in (*asked, *train):
        labels.gold(row)  # said before the model is asked anything
    names = ("by", "reduction", "list_labels", "batch_size", "max_new_tokens", "seed")
    how = {name: vars(arguments)[name] for name in names} | {"max_length": longest}
    outputs = {arguments.ablate: arguments.output}
    outputs.setdefault(TEXT_ONLY, arguments.output.with_name(f"{arguments.output.stem}_{TEXT_ONLY}.jsonl"))
    for ablate, path in outputs.items():
        classify(model, processor, questions, labels, path, ablate=ablate, **how)
    if first:
        report(arguments.output, outputs, labels, train, print)


def report(
    output: Path, outputs: dict[str, Path], labels: Labels, train: list[Row], say: Callable[[str], None]
) -> dict[str, float]:
    """Writes metrics.json beside the predictions: the run's own names first, then `text_only_...` of the other."""
    metrics: dict[str, float] = {}
    for path in outputs.values():
        found = classification(read_predictions(path), labels, train)
        prefix = "" if path == output else "text_only_"
        metrics |= {f"{prefix}{name}": v for name, v in found.items() if not prefix or not name.startswith("maj")}
    write_json(output.with_name("metrics.json"), metrics)
    for name, value in metrics.items():
        say(f"{name:32} {value:.4f}")
    return metrics
