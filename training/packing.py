"""Packed rows: which language models keep the samples of a row apart, and SDPA that works sample by sample.

`GraphLLMProcessor.pack` puts samples one after another, and their positions begin again. transformers reads from that
where samples end: flash attention gets their lengths, the others a block-diagonal mask. Not every model does it, and
nothing says which: OPT and GPT-OSS take `position_ids` and make their mask without them. So it is tried out, on the
model itself, before the first step.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED_SDPA = "sdpa_packed"
PROBE_LENGTH = 5
# Share of the spread of the logits: 0 where samples are kept apart, 3e-7 where experts sum in another order. The
# weakest leak of the architectures that were tried, with random weights, was 6e-5 (the short convolutions of LFM2).
TOLERANCE = 1e-5
_BLOCKS = WeakTensorKeyDictionary()


def check_packable(language_model: PreTrainedModel) -> None:
    """Raises ValueError for a language model that cannot keep the samples of a row apart by its very build."""
    name = type(language_model).__name__
    if language_model.config.is_encoder_decoder:
        why = "is an encoder-decoder, whose decoder reads one sample a row"
    elif "position_ids" not in inspect.signature(language_model.forward).parameters:
        why = "takes no positions, so a row is one sample to it"
    elif language_model._is_stateful:
        why = "carries a state from token to token, also from one sample into the next"
    else:
        return
    raise ValueError(f"--packing True cannot be used: {name} {why}. Leave it out; --train_sampling_strategy "
                     "group_by_length also saves padding.")  # fmt: skip


def use_packed_sdpa(language_model: PreTrainedModel) -> None:
    """Where SDPA is used, lets it work sample by sample; other kinds of attention stay."""
    if language_model.config._attn_implementation == "sdpa":
        AttentionInterface.register(PACKED_SDPA, packed_sdpa)
        AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
        language_model.set_attn_implementation(PACKED_SDPA)


@torch.compiler.disable
def packed_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, run on each sample of a packed row by itself.

    A row of B samples of n tokens costs B n^2 instead of (B n)^2; the numbers are those of the block-diagonal mask.

    Args:
        module: the attention layer.
        query, key, value: (1, heads, S, D); of any other shape they go through as they are.
        attention_mask: (1, 1, S, S) bool, true where a token sees another; None for a single sample.
        kwargs: of `sdpa_attention_forward`.

    Returns:
        (1, S, heads, D) and None.
    """
    if attention_mask is None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts = []
    for start, stop in blocks(attention_mask):
        own = (one[:, :, start:stop] for one in (query, key, value))
        mask = attention_mask[:, :, start:stop, start:stop]
        parts.append(sdpa_attention_forward(module, *own, mask, **kwargs)[0])
    return torch.cat(parts, dim=1), None


def blocks(attention_mask: Tensor) -> list[tuple[int, int]]:
    """Where the blocks of a block-diagonal causal mask begin and end: a first token does not see the one before it.

    All layers of a step have one mask, so the device is waited for once a step.
    """
    if attention_mask not in _BLOCKS:
        sees_the_one_before = attention_mask[0, 0].diagonal(-1)  # (S - 1,)
        starts = [0, *((~sees_the_one_before).nonzero().flatten() + 1).tolist()]
        _BLOCKS[attention_mask] = list(zip(starts, [*starts[1:], attention_mask.shape[-1]], strict=True))
    return _BLOCKS[attention_mask]


class PackingProbe(TrainerCallback):
    """Before the first step, on the model as it is trained: one sample of a row is replaced, and the logits of the
    next must not move."""

    def on_train_begin(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Raises ValueError if samples of a row see one another."""
        moved = leak(model, args.device)
        if moved > TOLERANCE:
            config = model.config.text_config
            raise ValueError(
                f"--packing True cannot be used: {type(config).__name__.removesuffix('Config')} with "
                f"{config._attn_implementation} attention lets the samples of a row see one another (logits moved by "
                f"{moved:.0e} of their spread). Leave it out, or try another --attn_implementation."
            )


@torch.no_grad()
def leak(model: nn.Module, device: torch.device) -> float:
    """How far the logits of a sample move, as a share of their spread, when the sample before it in the row changes.

    Args:
        model: the whole model, however it is wrapped; it is run twice on `2 * PROBE_LENGTH` tokens.
        device: of its inputs.
    """
    words = min(model.config.text_config.vocab_size, 256)
    draws = torch.arange(3 * PROBE_LENGTH).reshape(3, -1) * 37 % words  # two first samples and the second
    draws[draws == model.config.graph_token_id] = 0
    positions = torch.arange(PROBE_LENGTH).repeat(2)[None].to(device)
    was_training = model.training
    model.eval()
    logits = []
    for first in draws[:2]:
        row = torch.cat([first, draws[2]])[None].to(device)
        whole = model(input_ids=row, position_ids=positions, use_cache=False).logits
        logits.append(whole[:, PROBE_LENGTH:].float())
    model.train(was_training)
    return float((logits[0] - logits[1]).abs().max() / logits[0].std())
