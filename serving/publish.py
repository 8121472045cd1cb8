"""Writes a model as a folder that loads by itself: weights, configuration, code, processor, card."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save

from data_processor.schema import atomic_write
from serving.card import own_card, write_card

logger = logging.getLogger(__name__)

BASE = "base"
# weights of any adaptation: those of an earlier run would be taken for this one's
WEIGHTS = ("adapter_*", "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*")
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
    own = own_card(folder)
    if write:
        clear(composite(model), folder, include_base)
    (save_weights or model.save_pretrained)(str(folder))
    if not write:
        return folder
    if include_base:
        copy_base(composite(model).config, folder)
    write_companions(model, processor, folder)
    write_card(folder, own)
    return folder


def clear(model: PreTrainedModel, folder: Path, include_base: bool) -> None:
    """Deletes the weights that an earlier run left at the top of the folder, and a copied base that is not used."""
    for pattern in WEIGHTS:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink()
    source = model.config.text_model_name_or_path or ""
    used = source == f"./{BASE}" or Path(source).resolve() == (folder / BASE).resolve()
    if not include_base and not used and (folder / BASE).is_dir():
        shutil.rmtree(folder / BASE)


def composite(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model itself, without PEFT around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def write_companions(model: PreTrainedModel | PeftModel, processor: ProcessorMixin, folder: str | Path) -> None:
    """What makes a folder of weights loadable: configuration, its code, generation settings, processor, tokenizer."""
    inner = composite(model)
    pin_base(inner)
    custom_object_save(inner, folder, config=inner.config)
    inner.config.save_pretrained(folder)
    inner.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    name_magnitudes(Path(folder) / "adapter_model.safetensors")
    (Path(folder) / "README.md").unlink(missing_ok=True)  # PEFT's form, with nothing filled in


def pin_base(model: PreTrainedModel) -> None:
    """Names the very commit of the base model that was loaded, so that a later one does not take its place."""
    source, revision = model.config.text_model_name_or_path or "", model.config.text_model_revision
    if not source or source.startswith(".") or Path(source).exists():
        return
    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    if isinstance(cached, str):
        model.config.text_model_revision = Path(cached).parent.name


def name_magnitudes(adapter: Path) -> None:
    """Gives DoRA's lengths in an adapter file the names under which transformers and PEFT both find them.

    PEFT writes `lora_magnitude_vector` and reads that with or without `.weight` behind it, transformers only with.
    """
    state = load_file(adapter) if adapter.is_file() else {}
    bare = [name for name in state if name.endswith("lora_magnitude_vector")]
    if bare:
        for name in bare:
            state[f"{name}.weight"] = state.pop(name)
        with atomic_write(adapter) as temporary:
            save_file(state, temporary, metadata={"format": "pt"})


def base_folder(config: PreTrainedConfig) -> str:
    """The base model's files on this machine, downloaded if need be.

    Raises:
        ValueError: they hold no safetensors, and what is copied would be a model without weights.
    """
    source = config.text_model_name_or_path
    where = source
    if not Path(source).is_dir():
        revision = config.text_model_revision
        where = snapshot_download(source, revision=revision, ignore_patterns=list(OTHER_FORMATS))
    if not any(Path(where).glob("*.safetensors")):
        raise ValueError(
            f"--include_base copies weights as safetensors, and {source} has none at its top. Load it once, save it "
            "with `save_pretrained`, and name that folder; or leave --include_base out."
        )
    return where


def copy_base(config: PreTrainedConfig, folder: Path) -> None:
    """Copies the base model's files into `folder/base` and makes the configuration refer to it."""
    source = base_folder(config)
    if Path(source).resolve() != (folder / BASE).resolve():
        logger.info("Copying the base model from %s into %s", source, folder / BASE)
        shutil.copytree(source, folder / BASE, ignore=shutil.ignore_patterns(*OTHER_FORMATS), dirs_exist_ok=True)
    config.text_model_name_or_path = f"./{BASE}"
    config.text_model_revision = None
