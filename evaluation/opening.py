"""What `generate` asks: a dataset folder, a table or conversations, shown as the model saw them in training."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from data_processor.dataset import ConversationDataset, GraphQADataset
from data_processor.importers.conversations import iter_conversations
from data_processor.questions import QuestionDataset, open_questions, without_graph
from data_processor.schema import Rejected
from data_processor.tables import TRAIN
from evaluation.trained import shown_in_training

logger = logging.getLogger(__name__)

Row = dict[str, Any]
OVERRIDES = ("context", "columns", "documents", "document_encoder", "top_documents", "max_text_tokens")
WHOLE = {"test_rows": None, "test_size": 0, "validation": False, "subset": None, "train_split": TRAIN}


def open_dataset(
    arguments: argparse.Namespace, processor: Any, trained: Row
) -> GraphQADataset | QuestionDataset | ConversationDataset:
    """The questions, with graphs, facts and documents as in training where flags do not say otherwise.

    Args:
        arguments: `data`, `split`, `output`, `text_style`, and those of OVERRIDES.
        trained: the flags of the training.
    """
    given = {name: vars(arguments)[name] for name in OVERRIDES if vars(arguments)[name] is not None}
    flags, path = trained | given, str(arguments.data)
    if not without_graph(path, flags.get("context"), flags.get("columns")):
        if arguments.data.is_file():
            return _conversations(arguments)
        shown = shown_in_training(flags, arguments.text_style, arguments.max_text_tokens)
        read = {"tokenizer": processor.tokenizer, "readout": processor.graph_readout}
        return GraphQADataset(arguments.data, arguments.split, **read, **shown)
    key = arguments.split if arguments.split in ("train", "validation") else "test"
    wanted = {key: arguments.split}
    if arguments.data.is_file() and not same_place(arguments.data, trained.get("data_path")):
        flags, key, wanted = flags | WHOLE, "train", {"train": TRAIN}  # another file than that of training
    elif key == "train" and not arguments.data.is_dir() and same_place(arguments.data, trained.get("data_path")):
        wanted |= validated_on(trained)
    with _rejected(arguments) as rejected:
        opened = open_questions(path, wanted, flags, rejected, processor.tokenizer)
    _tell(rejected, arguments.data)
    return opened[key]


def validated_on(trained: Row) -> dict[str, str]:
    """The split beside "train" for which training took rows out of the table's."""
    if trained.get("do_eval"):
        return {"validation": trained["validation_split"]}
    answered = trained.get("do_predict") and trained["test_split"] == "validation"
    return {"validation": "validation"} if answered else {}


def same_place(path: Path, other: str | None) -> bool:
    """Whether both name one file."""
    return other is not None and path.resolve() == Path(other).resolve()


def _conversations(arguments: argparse.Namespace) -> ConversationDataset:
    with _rejected(arguments) as rejected:
        rows = list(iter_conversations(arguments.data, rejected))
    _tell(rejected, arguments.data)
    return ConversationDataset(rows, arguments.data)


def _rejected(arguments: argparse.Namespace) -> Rejected:
    return Rejected(arguments.output.with_name(f"rejected_{arguments.output.name}"))


def _tell(rejected: Rejected, data: Path) -> None:
    if rejected.count:
        logger.warning("%d rows of %s left out, reasons in %s", rejected.count, data, rejected.path)
