"""Models without memory: their shape from a configuration alone, as they would be trained."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import replace_with_bnb_linear

from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
from training.adapters import GRAPH_MODULES, INSIDE


def language_model_shape(config: PreTrainedConfig, dtype: torch.dtype, bits: int | None = None) -> PreTrainedModel:
    """A language model whose tensors take no memory.

    Args:
        config: its configuration.
        dtype: of its weights.
        bits: 4 (NF4, double quantisation) or 8 for all linear layers but the head, None for none.
    """
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype)
    if bits is None:
        return model
    kept = [name for name, one in model.named_modules() if one is model.get_output_embeddings()]
    replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=packing(bits, dtype))
    model.requires_grad_(False)
    model.is_quantized, model.is_loaded_in_4bit, model.is_loaded_in_8bit = True, bits == 4, bits == 8
    return model


def packing(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """The configuration of bitsandbytes for weights of 4 or 8 bits."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def with_graphs(language_model: PreTrainedModel, graph: GraphConfig, graph_token_id: int) -> PreTrainedModel:
    """The language model with a reader of graphs, on the same device."""
    return GraphLLMForConditionalGeneration.from_components(language_model, graph, graph_token_id=graph_token_id)


def with_adapters(model: PreTrainedModel, rank: int, names: list[str]) -> PeftModel:
    """LoRA on the named layers of the language model; encoder and projector are trained whole."""
    seq2seq = model.config.is_encoder_decoder
    settings = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
        r=rank,
        lora_dropout=0.05,
        target_modules=f"{INSIDE}(?:{'|'.join(names)})",
        modules_to_save=GRAPH_MODULES,
    )
    return get_peft_model(model, settings)


def freeze(model: PreTrainedModel) -> nn.Module:
    """Only encoder and projector are trained."""
    model.language_model.requires_grad_(False)
    return model
