"""Writes a model as a folder that loads by itself: weights, configuration, code, processor, card; and pushes it."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save

from data_processor.schema import atomic_write, write_json

logger = logging.getLogger(__name__)

BASE = "base"
# weights of any adaptation: those of an earlier run would be taken for this one's
WEIGHTS = ("adapter_*", "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*")
# what a run keeps for itself and the Hub has no use for
NOT_PUBLISHED = ("checkpoint-*", "_*", "*.tmp", "training_args.bin", "rejected*.jsonl", "predictions.jsonl*")
CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- custom_code
- graphllm
{base}---

# {name}

A language model that answers from graphs: {encoder} encoder, {projector} projector, {tokens}.
Node and edge features were made by `{feature_encoder}`; use the same for new graphs.

```python
from transformers import AutoModelForCausalLM, AutoProcessor

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
```

It needs the packages torch_geometric and peft.
"""
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
    if write:
        clear(composite(model), folder, include_base)
    (save_weights or model.save_pretrained)(str(folder))
    if not write:
        return folder
    if include_base:
        copy_base(composite(model), folder)
    write_companions(model, processor, folder)
    write_card(composite(model), folder)
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
    custom_object_save(inner, folder, config=inner.config)
    inner.config.save_pretrained(folder)
    inner.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    name_magnitudes(Path(folder) / "adapter_model.safetensors")
    # the Trainer's pickled copy of its arguments: run.json says the same as text
    (Path(folder) / "training_args.bin").unlink(missing_ok=True)


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


def write_card(model: PreTrainedModel, folder: Path) -> None:
    """README.md: what the model is and how it is loaded."""
    graph, source = model.config.graph_config, model.config.text_model_name_or_path or ""
    named = source and not source.startswith((".", "/")) and not Path(source).exists()
    one_per_node = f"one token for each of at most {graph.max_nodes} nodes"
    card = CARD.format(
        base=f"base_model: {source}\n" if named else "",
        name=model.name_or_path,
        encoder=graph.encoder,
        projector=graph.projector,
        tokens=f"{graph.num_tokens} tokens a graph" if graph.readout == "mean" else one_per_node,
        feature_encoder=model.config.feature_encoder,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def push(folder: str | Path, repository: str, token: str | None, private: bool | None, revision: str | None) -> str:
    """Uploads a loadable folder to the Hub, without its checkpoints and caches; its files first learn their new name.

    Args:
        folder: what `save_output` wrote.
        repository: `owner/name`; made if it is missing.
        token: by default the one of `hf auth login`.
        private: of a new repository.
        revision: the branch that is written.

    Returns:
        The address of the commit.
    """
    rename(Path(folder), repository)
    api = HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository, folder_path=folder, revision=revision, ignore_patterns=list(NOT_PUBLISHED)
    )
    return done.commit_url


def rename(folder: Path, repository: str) -> None:
    """Writes the repository's name where the adapter's configuration and the card name the folder."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        write_json(adapter, json.loads(adapter.read_text(encoding="utf-8")) | {"base_model_name_or_path": repository})
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    named = re.search(r'from_pretrained\("([^"]+)"', text)
    if named:
        text = text.replace(f'"{named[1]}"', f'"{repository}"').replace(f"# {named[1]}\n", f"# {repository}\n")
        card.write_text(text, encoding="utf-8")


def base_folder(model: PreTrainedModel) -> str:
    """The base model's files on this machine, downloaded if need be.

    Raises:
        ValueError: they hold no safetensors, and what is copied would be a model without weights.
    """
    source = model.config.text_model_name_or_path
    where = source
    if not Path(source).is_dir():
        revision = model.config.text_model_revision
        where = snapshot_download(source, revision=revision, ignore_patterns=list(OTHER_FORMATS))
    if not any(Path(where).glob("*.safetensors")):
        raise ValueError(
            f"--include_base copies weights as safetensors, and {source} has none at its top. Load it once, save it "
            "with `save_pretrained`, and name that folder; or leave --include_base out."
        )
    return where


def copy_base(model: PreTrainedModel, folder: Path) -> None:
    """Copies the base model's files into `folder/base` and makes the configuration refer to it."""
    source = base_folder(model)
    if Path(source).resolve() != (folder / BASE).resolve():
        logger.info("Copying the base model from %s into %s", source, folder / BASE)
        shutil.copytree(source, folder / BASE, ignore=shutil.ignore_patterns(*OTHER_FORMATS), dirs_exist_ok=True)
    model.config.text_model_name_or_path = f"./{BASE}"
    model.config.text_model_revision = None
