"""Prompts to answers: one batch, in which what all prompts begin with is read once; or one answer in pieces."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import (
    DynamicCache,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from evaluation.generation import PLAIN_SEARCH
from processing_graphllm import GraphLLMProcessor

LEAST_SHARED = 16  # tokens: reading fewer of them once is not worth a pass of its own

Encoded = dict[str, Any]
Message = dict[str, Any]


def answer_texts(
    model: PreTrainedModel,
    processor: GraphLLMProcessor,
    prompts: Sequence[list[Message]],
    max_new_tokens: int = 32,
    max_length: int | None = None,
    share: bool = True,
) -> list[str]:
    """The model's answers to B prompts by greedy search, as `evaluation.generation` gives them.

    Args:
        model, processor: in evaluation mode, and its processor.
        prompts: messages that end with a user's, see `PromptWriter`.
        max_new_tokens, max_length: the longest answer and prompt, in tokens.
        share: the beginning that the prompts have in common, graph and facts, goes through the model once. The
            answers are the same without.
    """
    encoded = [processor.encode(prompt, max_length) for prompt in prompts]
    shared = shared_tokens(encoded, processor.graph_token_id) if share and len(encoded) > 1 else 0
    if shared < LEAST_SHARED or model.config.is_encoder_decoder:
        inputs = dict(processor.pad(encoded).to(model.device))
    else:
        inputs = begun_together(model, processor, encoded, shared)
    tokens = generate(model, processor, inputs, max_new_tokens)
    return [text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


@torch.no_grad()
def generate(
    model: PreTrainedModel, processor: GraphLLMProcessor, inputs: dict[str, Any], max_new_tokens: int, **more: Any
) -> torch.Tensor:
    """The new tokens (B, at most `max_new_tokens`) of a batch; `more` goes to the model's `generate`."""
    length = {"num_beams": 1, "max_new_tokens": max_new_tokens, "pad_token_id": processor.tokenizer.pad_token_id}
    tokens = model.generate(**inputs, **PLAIN_SEARCH, **length, **more)
    return tokens if model.config.is_encoder_decoder else tokens[:, inputs["input_ids"].shape[1] :]


def shared_tokens(encoded: Sequence[Encoded], graph_token_id: int) -> int:
    """The number of tokens with which all prompts begin; placeholders count only if they stand for the same graphs.

    At least one token of each prompt is left out, and all placeholders or none are in.
    """
    rows = [one["input_ids"] for one in encoded]
    shortest, least, most = min(map(len, rows)) - 1, min(rows), max(rows)  # what these two share, all share
    shared = next((place for place in range(shortest) if least[place] != most[place]), shortest)
    if graph_token_id not in least:
        return shared
    whole = graph_token_id not in least[shared:] and graph_token_id not in most[shared:]
    return shared if whole and same_graphs(encoded) else min(shared, least.index(graph_token_id))


def same_graphs(encoded: Sequence[Encoded]) -> bool:
    """Whether all prompts hold the same graphs."""
    first = encoded[0]["graphs"]
    return all(
        len(one["graphs"]) == len(first)
        and all(
            mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
            for mine, other in zip(one["graphs"], first, strict=True)
        )
        for one in encoded[1:]
    )


@torch.no_grad()
def begun_together(
    model: PreTrainedModel, processor: GraphLLMProcessor, encoded: Sequence[Encoded], shared: int
) -> dict[str, Any]:
    """The batch for `generate` whose first `shared` tokens have been read once, for all rows, into a cache.

    Rows are padded between the common beginning and their own end; positions count no padding.
    """
    has_graphs = processor.graph_token_id in encoded[0]["input_ids"][:shared]
    beginning = {"input_ids": encoded[0]["input_ids"][:shared], "graphs": encoded[0]["graphs"] if has_graphs else []}
    first = dict(processor.pad([beginning]).to(model.device))
    ends = [{**one, "input_ids": one["input_ids"][shared:]} for one in encoded]
    rest = dict(processor.pad([{**one, "graphs": []} if has_graphs else one for one in ends]).to(model.device))
    cache = DynamicCache(config=model.config.text_config)
    model(**first, cache=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(len(encoded))
    whole = {
        name: torch.cat([first[name].expand(len(encoded), -1), rest[name]], dim=1)
        for name in ("input_ids", "attention_mask")
    }
    return {**rest, **whole, model.cache_argument: cache}


class Stopped(StoppingCriteria):
    """Ends a generation, after the token it is at, once `event` is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def stream_text(
    model: PreTrainedModel,
    processor: GraphLLMProcessor,
    prompt: list[Message],
    max_new_tokens: int = 32,
    max_length: int | None = None,
) -> Iterator[str]:
    """The pieces of one answer as they come, words or parts of them; together they are what `answer_texts` gives.

    The model runs in a thread; it stops soon after the iterator is closed.
    """
    inputs = dict(processor.pad([processor.encode(prompt, max_length)]).to(model.device))
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    closed = threading.Event()
    stop = StoppingCriteriaList([Stopped(closed)])
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(
            generate, model, processor, inputs, max_new_tokens, streamer=streamer, stopping_criteria=stop
        )
        running.add_done_callback(lambda _: streamer.on_finalized_text("", stream_end=True))  # also after an error
        try:
            yield from stripped(streamer)
        finally:
            closed.set()
        running.result()


def stripped(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces of a text without white space at its two ends; none is empty."""
    begun, held = False, ""
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        kept = text.rstrip()
        held = text[len(kept) :]
        if kept:
            begun = True
            yield kept
