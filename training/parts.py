"""What a stage hands to the driver: the opened data, then model, data sets and collator for the stock Trainer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback


@dataclass(frozen=True)
class Opened:
    """The data of a run before any model is built.

    Attributes:
        splits: "train", "validation", "test", as far as the run reads them; each has a `fingerprint`.
        tokenizer, text_config: of the language model; None for a stage without one.
    """

    splits: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase | None = None
    text_config: PreTrainedConfig | None = None


@dataclass(frozen=True)
class Parts:
    """What the Trainer is given, and what is needed after it.

    Attributes:
        model: with its trained parameters marked.
        splits: "train" and "validation" as the Trainer reads them.
        test: what `--do_predict` answers.
        collator: items of a split -> a batch.
        write_companions: writes what makes a folder of weights loadable.
        processor: None for a stage without text.
        compute_metrics, prepare_metrics: of the Trainer's evaluations, None for the loss alone.
        callbacks: of this stage.
        first_factors: what adapters that took weights out of the base model started as, by their names in its file.
    """

    model: PreTrainedModel | Any
    splits: dict[str, Dataset]
    test: Any
    collator: Callable[[list[Any]], dict[str, Any]]
    write_companions: Callable[[Path], None]
    processor: ProcessorMixin | None = None
    compute_metrics: Callable[..., dict[str, float]] | None = None
    prepare_metrics: Callable[..., Any] | None = None
    callbacks: list[TrainerCallback] = field(default_factory=list)
    first_factors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One way to train; every function takes all flags first.

    Attributes:
        open: flags -> Opened.
        build: flags, Opened -> Parts.
        dry_run: flags, Parts -> (the report as text, its figures by name).
        check: flags, Parts -> None; raises ValueError for what would fail at the end of the run.
        save: flags, Parts, the Trainer -> None; every process takes part.
        predict: flags, Parts, the Trainer -> metrics of the test split.
        published: whether its folder is for others to load, and has a card.
    """

    open: Callable[..., Opened]
    build: Callable[..., Parts]
    dry_run: Callable[..., tuple[str, dict[str, float]]]
    check: Callable[..., None]
    save: Callable[..., None]
    predict: Callable[..., dict[str, float]]
    published: bool = True
