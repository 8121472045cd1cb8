"""Writes a model as a folder that loads by itself, here or from the Hub: weights, configuration, code, processor."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save

logger = logging.getLogger(__name__)

BASE = "base"
# a base model's weights are copied as safetensors; other formats of the same weights are left behind
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.gguf", ".*", "original", "*.tmp")


def save_output(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    folder: str | Path,
    include_base: bool = False,
    save_weights: Callable[[str], None] | None = None,
    write: bool = True,
) -> Path:
    """Writes a loadable folder: `from_pretrained(folder)` gives the same model, even where this project is missing.

    With LoRA the weights are one adapter file (adapters, encoder, projector); with a frozen language model one small
    model.safetensors (encoder, projector); otherwise all. `config.text_model_name_or_path` names the base model.

    Args:
        model: the composite, or PEFT around it.
        processor: saved beside it.
        folder: made if it is missing.
        include_base: copy the base model into `folder/base` and refer to it there, so that the folder can be moved.
        save_weights: writes the weights, on every process (`trainer.save_model`); by default `model.save_pretrained`.
        write: false on processes that only take part in `save_weights`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    (save_weights or model.save_pretrained)(str(folder))
    if not write:
        return folder
    if include_base:
        copy_base(composite(model), folder)
    write_companions(model, processor, folder)
    return folder


def composite(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, without PEFT around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def write_companions(model: PreTrainedModel | PeftModel, processor: ProcessorMixin, folder: str | Path) -> None:
    """What makes a folder of weights loadable: configuration, its code, generation settings, processor, tokenizer."""
    inner = composite(model)
    custom_object_save(inner, folder, config=inner.config)
    inner.config.save_pretrained(folder)
    inner.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    # the Trainer's pickled copy of its arguments: run.json says the same as text
    (Path(folder) / "training_args.bin").unlink(missing_ok=True)


def copy_base(model: PreTrainedModel, folder: Path) -> None:
    """Copies the base model's files into `folder/base` and makes the configuration refer to it."""
    source = model.config.text_model_name_or_path
    if not Path(source).is_dir():
        from huggingface_hub import snapshot_download

        source = snapshot_download(
            source, revision=model.config.text_model_revision, ignore_patterns=list(OTHER_FORMATS)
        )
    if Path(source).resolve() != (folder / BASE).resolve():
        logger.info("Copying the base model from %s into %s", source, folder / BASE)
        shutil.copytree(source, folder / BASE, ignore=shutil.ignore_patterns(*OTHER_FORMATS), dirs_exist_ok=True)
    model.config.text_model_name_or_path = f"./{BASE}"
    model.config.text_model_revision = None
