"""The demonstration's base language model before training: its tokenizer, a small Llama, its first weights.

A small Transformer spends most of a short training on inventing the two steps of an induction head: look a few
tokens back, then find the place whose past resembles the present. `wire` starts it with both as rough linear maps, and
training does the rest. Sources: Olsson et al. 2022, "In-context learning and induction heads" (arXiv 2209.11895);
Trockman and Kolter 2023, "Mimetic initialization of self-attention layers" (arXiv 2305.09828).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from data_processor.demo_texts import ASSISTANT, END, PAD, SYSTEM, USER, phrases

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
EMBEDDING_STD = 0.08
CONSTANT = 0.3  # value of the first dimension of every embedding: what the look-back heads see in all tokens alike
LOOK_BACK = ((0.42, 0.5), (0.18, 0.3), (0.075, 0.2))  # (radians a token, share): a bump over one to three back
LOOK_BACK_CENTRE, LOOK_BACK_SHARPNESS = 1.9, 10.0
OWN, SHARPNESS = 3.0, 2.0  # weight of a query's own token beside its past; scale of the matching scores
COPY, LATER_COPY = 6.0, 0.6  # strength of copying in the second layer and in those after it
SLOW = 0.006  # rotations slower than this, in radians a token, do not disturb matching over a prompt's length


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A unigram tokenizer of the demonstration's phrases and syllables; bytes stand in for all else."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    special = [PAD, END, USER, ASSISTANT, SYSTEM]
    scores = {phrase: -1.0 if len(phrase) > 1 else -3.0 for phrase in phrases()}
    rare = [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    vocabulary = [*((token, 0.0) for token in special), ("<|unknown|>", -20.0), *scores.items(), *rare]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=len(special), byte_fallback=True))
    backend.add_special_tokens(special)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    rope_theta: float,
) -> LlamaForCausalLM:
    """The wired, untrained model, by torch's random generator. Input and output embeddings are not tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    wire(model)
    return model


def wire(model: LlamaForCausalLM) -> None:
    """Set the starting weights.

    With e the embedding of a token, P and T random rotations: the first layer adds P times the mean embedding of the
    last few tokens; the second asks with a token's own e and its past (P) and answers with the past alone, so that the
    token after a repeated context is found, whose e it adds as T e; the output matrix reads T e. The layers above
    start as weaker copies of the second.
    """
    import torch

    hidden = model.config.hidden_size
    with torch.no_grad():
        past, copied = rotation(hidden), rotation(hidden)
        embedding = model.model.embed_tokens.weight
        embedding.normal_(0.0, EMBEDDING_STD)
        embedding[:, 0] = CONSTANT
        model.lm_head.weight.copy_(embedding @ copied.T)
        scale = float(embedding.norm(dim=1).mean()) / math.sqrt(hidden)  # RMS of an embedding
        for i, layer in enumerate(model.model.layers):
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                linear.weight.normal_(0.0, 0.02)
            attention = layer.self_attn
            query, key = look_back(model, scale) if i == 0 else match(model, past)
            attention.q_proj.weight.normal_(0.0, 0.02).add_(query)
            attention.k_proj.weight.normal_(0.0, 0.02).add_(key)
            value = torch.linalg.qr(torch.randn(hidden, hidden))[0]
            written = past if i == 0 else copied * (COPY if i == 1 else LATER_COPY)
            attention.v_proj.weight.copy_(value)
            attention.o_proj.weight.copy_(scale * written @ value.T)


def rotation(size: int) -> torch.Tensor:
    """A random orthogonal matrix (size, size) that neither reads nor writes the first dimension, the constant."""
    import torch

    matrix = torch.linalg.qr(torch.randn(size, size))[0]
    matrix[0], matrix[:, 0] = 0.0, 0.0
    return matrix


def frequencies(model: LlamaForCausalLM) -> torch.Tensor:
    """Radians a token of each pair of dimensions of a head (head_dim / 2,)."""
    import torch

    size = model.config.head_dim
    return model.config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)


def look_back(model: LlamaForCausalLM, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key weights (hidden, hidden) whose score depends on distance alone: highest a token or two back.

    Both read the constant c only. A rotary pair with query (a, 0) and key a (cos fm, sin fm) scores a^2 cos f(d - m)
    at distance d.
    """
    import torch

    hidden, size = model.config.hidden_size, model.config.head_dim
    rates = frequencies(model)
    shares = torch.zeros(size // 2)
    for rate, share in LOOK_BACK:
        shares[(rates - rate).abs().argmin()] += share
    constant = CONSTANT / scale  # after RMSNorm
    amplitude = (shares * LOOK_BACK_SHARPNESS * math.sqrt(size)).sqrt() / constant
    turn = rates * LOOK_BACK_CENTRE
    query, key = torch.zeros(hidden, hidden), torch.zeros(hidden, hidden)
    heads = model.config.num_attention_heads
    query[:, 0] = torch.cat([amplitude, torch.zeros_like(amplitude)]).repeat(heads)
    key[:, 0] = torch.cat([amplitude * turn.cos(), amplitude * turn.sin()]).repeat(heads)
    return query, key


def match(model: LlamaForCausalLM, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key weights (hidden, hidden): a token's own embedding and its past against the past of the others."""
    import torch

    hidden, size, heads = model.config.hidden_size, model.config.head_dim, model.config.num_attention_heads
    slow = (frequencies(model) < SLOW).repeat(2)
    query, key = [], []
    for _ in range(heads):
        view = rotation(hidden)[-size:] * slow[:, None] * SHARPNESS * math.sqrt(heads)
        query.append(view @ (OWN * torch.eye(hidden) + past.T))
        key.append(view @ past.T)
    return torch.cat(query), torch.cat(key)
