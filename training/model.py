"""Flags -> the model as it is trained: frozen, with LoRA, or in full, from a base model or an earlier output."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from modeling_graphllm import GraphConfig, GraphLLMConfig, GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from training.adapters import quantization, with_adapters
from training.align_model import start_from_alignment
from training.arguments import Arguments
from training.data import base_of, explained
from training.deepspeed_file import zero_stage
from training.optimizer import is_graph_parameter

logger = logging.getLogger(__name__)



def build_model(
    arguments: Arguments, graph: GraphConfig, processor: GraphLLMProcessor, feature_encoder: str | None
) -> PreTrainedModel | PeftModel:
    """The model with exactly the parameters marked that this run trains.

    Args:
        arguments: all flags.
        graph: the reader of graphs.
        processor: knows the placeholder's id.
        feature_encoder: what made the features.
    """
    start = arguments.earlier
    if start is not None:
        check_features(start, feature_encoder)
    adapted = start is not None and (Path(start) / "adapter_config.json").is_file()
    if start is None or adapted:
        model = _from_base(arguments, graph, processor, feature_encoder)
    else:
        model = GraphLLMForConditionalGeneration.from_pretrained(start, **language_model_kwargs(arguments))
    if arguments.alignment:
        start_from_alignment(model, arguments.alignment)
    model.config.lean = arguments.adaptation != "full"
    # what an adapter's configuration will call its base: the folder or repository that holds all of it
    model.name_or_path = arguments.training.hub_model_id or str(Path(arguments.training.output_dir).resolve())
    if adapted:
        return _continue_adapter(arguments, model, start)
    if arguments.adaptation == "lora":
        return with_adapters(model, arguments)
    if arguments.adaptation == "frozen":
        freeze_language_model(model)
    elif zero_stage(arguments.training) == 3:
        as_one_type(model)
    return model


def _from_base(
    arguments: Arguments, graph: GraphConfig, processor: GraphLLMProcessor, feature_encoder: str | None
) -> PreTrainedModel:
    name, revision = base_of(arguments)
    # weights are read where a shape does not tell all: an earlier adapter, 4 bits, the partition of ZeRO-3
    read = not arguments.run.dry_run or arguments.earlier or arguments.lora.q_lora
    read = read or zero_stage(arguments.training) == 3
    with explained(name):
        model = GraphLLMForConditionalGeneration.from_components(
            name if read else without_weights(name, revision, language_model_kwargs(arguments)),
            graph,
            graph_token_id=processor.graph_token_id,
            graph_token=processor.graph_token,
            feature_encoder=feature_encoder,
            revision=revision,
            **language_model_kwargs(arguments),
        )
    stop_at(model, processor.end_of_turn_ids)
    return model


def stop_at(model: PreTrainedModel, ends: list[int]) -> None:
    """Adds what closes a turn in the template to the tokens that end a generation: a base model knows others."""
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known]
    model.generation_config.eos_token_id = sorted({*ends, *(one for one in known if one is not None)})


def without_weights(name: str, revision: str | None, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The language model's shape alone, from its configuration: what a dry run needs to know of it."""
    where = {"revision": revision, "cache_dir": kwargs.pop("cache_dir", None)}
    config = AutoConfig.from_pretrained(name, **where)
    if kwargs["dtype"] == "auto":
        kwargs["dtype"] = config.dtype or torch.float32
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, **kwargs)
    model.name_or_path = name
    return model


def _continue_adapter(arguments: Arguments, model: PreTrainedModel, start: str) -> PreTrainedModel | PeftModel:
    """An earlier adapter goes on being trained, or is merged into the language model for a full fine-tune."""
    if arguments.adaptation == "frozen":
        raise ValueError(
            f"{start} holds LoRA adapters, which --freeze_lm True would lose. Continue with --use_lora True, or merge "
            "them with --use_lora False."
        )
    loaded = PeftModel.from_pretrained(model, start, is_trainable=True)
    if arguments.adaptation == "lora":
        logger.info("Continuing the adapters of %s; --lora_* flags are those of that run.", start)
        return loaded
    merged = loaded.merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def check_features(start: str, feature_encoder: str | None) -> None:
    """Raises ValueError if the data's features come from another encoder than those that `start` was trained on."""
    known = GraphLLMConfig.from_pretrained(start).feature_encoder
    if None not in (known, feature_encoder) and known != feature_encoder:
        raise ValueError(
            f"The graph's features were made by {feature_encoder!r}, those that {start} was trained on by {known!r}. "
            f"Embed the graph with `python -m data_processor embed --encoder {known}`, or leave --init_from out."
        )


def graph_config_of(folder: str) -> GraphConfig:
    """The reader of graphs of an earlier output."""
    return GraphLLMConfig.from_pretrained(folder).graph_config


def language_model_kwargs(arguments: Arguments) -> dict[str, Any]:
    """What the language model's `from_pretrained` is told."""
    training, model = arguments.training, arguments.model
    mixed = training.bf16 or training.fp16
    kwargs = {"dtype": model.dtype or ("auto" if mixed and arguments.adaptation != "full" else "float32")}
    if model.attn_implementation:
        kwargs["attn_implementation"] = model.attn_implementation
    if model.cache_dir:
        kwargs["cache_dir"] = model.cache_dir
    if arguments.lora.q_lora:
        kwargs["quantization_config"] = quantization(arguments)
        if zero_stage(training) != 3:  # which places its parts itself
            kwargs["device_map"] = {"": "cpu" if training.use_cpu else int(os.environ.get("LOCAL_RANK", "0"))}
    return kwargs


def as_one_type(model: PreTrainedModel) -> None:
    """The graph's modules in the language model's type: ZeRO-3 joins all trained weights in tensors of one type.

    Its optimizer keeps 32-bit copies of them, as of the language model's.
    """
    kind = next(model.language_model.parameters()).dtype
    model.graph_encoder.to(kind)
    model.graph_projector.to(kind)


def freeze_language_model(model: PreTrainedModel) -> None:
    """Only encoder and projector are trained and saved."""
    model.language_model.requires_grad_(False)
    # the Trainer compares missing names with these when it resumes from a file without the language model
    model._keys_to_ignore_on_save = {name for name in model.state_dict() if name.startswith("language_model.")}


def check_trainable(model: PreTrainedModel | PeftModel, adaptation: str) -> None:
    """Asserts that what is marked for training is what the adaptation says, no more and no less."""
    trainable = {name for name, one in model.named_parameters() if one.requires_grad}
    names = {name for name, _ in model.named_parameters()}
    expected = {
        "full": names,
        "frozen": {name for name in names if is_graph_parameter(name)},
        "lora": {name for name in names if "lora_" in name or ".modules_to_save." in name},
    }[adaptation]
    assert trainable and trainable == expected, f"{adaptation}: {sorted(trainable ^ expected)[:5]} are marked wrongly"
