"""What each `--stage` trains, in one plain table: its data, its model, its scores. All else is the same Trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evaluation.metrics import score
from training.data import open_splits
from training.model import build_model


@dataclass(frozen=True)
class Stage:
    """One way to train.

    Attributes:
        open_splits: flags and tokenizer -> the raw splits that the run reads.
        build_model: flags, graph reader, processor, feature encoder -> the model with its trained parameters marked.
        score: rows of predictions.jsonl -> metrics.
    """

    open_splits: Callable[..., dict[str, Any]]
    build_model: Callable[..., Any]
    score: Callable[..., dict[str, float]]


STAGES = {"qa": Stage(open_splits=open_splits, build_model=build_model, score=score)}
