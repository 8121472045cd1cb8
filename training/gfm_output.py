"""Writes a graph retriever as a folder that loads by itself: weights, configuration, code and card."""

from collections.abc import Callable
from pathlib import Path

from transformers import TrainingArguments
from transformers.dynamic_module_utils import custom_object_save

from modeling_gfm import GFMForRetrieval
from serving.card import write_card


def save_retriever(
    model: GFMForRetrieval, training: TrainingArguments, save_weights: Callable[[str], None], write: bool
) -> None:
    """Writes the folder --output_dir.

    Args:
        model: what was trained.
        training: names the folder.
        save_weights: writes the weights, on every process.
        write: false on processes that only take part in that.
    """
    folder = Path(training.output_dir)
    for path in folder.glob("model*.safetensors*") if write else ():
        path.unlink()
    save_weights(str(folder))
    if write:
        write_companions(model, folder)
        write_card(folder)


def write_companions(model: GFMForRetrieval, folder: Path) -> None:
    """What makes a folder of weights loadable: configuration and code."""
    custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
