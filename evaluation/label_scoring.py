"""The likelihood of each label as a model's answer: a prompt is read once, its labels follow together.

scores = label_scores(model, processor, prompts, ["support", "counter"])     # (B, C) log-probabilities
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from evaluation.ablations import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

GRAPH_INPUTS = ("graph_node_features", "graph_edge_index", "graph_edge_features", "graph_batch")
REDUCTIONS = ("sum", "mean")


@torch.no_grad()
def label_scores(
    model: "PreTrainedModel",
    processor: "ProcessorMixin",
    prompts: Sequence[list[Message]],
    labels: Sequence[str],
    reduction: str = "sum",
    max_length: int | None = None,
    batch_size: int = 64,
    zero: bool = False,
) -> Tensor:
    r"""How likely a model is to give each label as its whole answer.

    .. math:: s(y \mid x) = \sum_{t=1}^{|y|+1} \log p(y_t \mid x, y_{<t}) \quad \text{(sum)}, \qquad
              s(y \mid x) / (|y| + 1) \quad \text{(mean)}

    where :math:`y_{|y|+1}` is the token that ends an answer, as in training. With it a label that another one begins
    with ("machine" and "machine learning") is no longer the likelier by construction. The sum is the log-probability
    of the answer: right for a model that was trained to give these labels. A model that never saw them gives short
    labels more; `mean` takes that back, and gives more to long labels whose ends follow from their beginnings.

    Args:
        model, processor: in evaluation mode, on its device, and its processor.
        prompts: B conversations that end with a user's turn; graphs are encoded once for all labels.
        labels: C distinct answers.
        reduction: `sum` or `mean` over an answer's tokens.
        max_length: the longest prompt and label together, in tokens; the prompt loses text, a label never.
        batch_size: labels at a time, of all prompts of a batch together.
        zero: the graph tokens are zeros, see `ablations`.

    Returns:
        (B, C) float32, on the CPU.

    Raises:
        ValueError: an unknown reduction, a label that is empty, given twice, or too long for `max_length`.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"The reduction {reduction!r} is not known. Choose one of {', '.join(REDUCTIONS)}.")
    answers = answer_tokens(processor, labels, max_length)
    longest = None if max_length is None else max_length - max(map(len, answers))
    at_once, found = max(1, batch_size // len(labels)), []
    for start in range(0, len(prompts), at_once):
        encoded = [processor.encode(prompt, longest) for prompt in prompts[start : start + at_once]]
        batch = dict(processor.pad(encoded).to(model.device))
        read = _read_encoder if model.config.is_encoder_decoder else _read_prompt
        score = read(model, batch, zero)
        blocks = [score(answers[first : first + batch_size]) for first in range(0, len(answers), batch_size)]
        found.append(torch.cat(blocks, dim=1).cpu())
    scores = torch.cat(found)  # (B, C)
    return scores / torch.tensor([len(one) for one in answers]) if reduction == "mean" else scores


def answer_tokens(processor: "ProcessorMixin", labels: Sequence[str], max_length: int | None) -> list[list[int]]:
    """The tokens of each label as an answer, up to the one that ends it.

    Raises:
        ValueError: a label that is empty, given twice, or leaves no room for a prompt.
    """
    _check_labels(labels)
    ends, answers = {*processor.end_of_turn_ids}, []
    for label in labels:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": label}]
        tokens = [token for token in processor.encode(turns)["labels"] if token != -100]
        end = next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))
        answers.append(tokens[:end])
        if max_length is not None and end >= max_length:
            raise ValueError(
                f"The label {label[:60]!r} is {end} tokens long, and {max_length} is the most that the model reads, "
                "prompt included. Shorten the label, or raise --max_length as far as the model allows."
            )
    return answers


def _check_labels(labels: Sequence[str]) -> None:
    if not labels:
        raise ValueError("There is not one label to choose from. Give a file with a label a line.")
    seen: set[str] = set()
    for label in labels:
        if not label.strip():
            raise ValueError("A label is empty: no answer could be that. Remove the empty line.")
        if label in seen:
            raise ValueError(f"The label {label!r} is given twice. Keep it once.")
        seen.add(label)


@dataclass(frozen=True)
class _Read:
    """Prompts (B, T), padded on the left, that a decoder has read: its cache, their mask, what comes first after them.

    Attributes:
        first: (B, V) log-probabilities of an answer's first token.
    """

    model: "PreTrainedModel"
    cache: DynamicCache
    mask: Tensor
    first: Tensor


def _read_prompt(model: "PreTrainedModel", batch: dict[str, Any], zero: bool) -> Callable[[list[list[int]]], Tensor]:
    """One pass over the prompts; returns what scores answers after them, `(answers) -> (B, c)`."""
    cache, mask = DynamicCache(config=model.config.text_config), batch["attention_mask"]
    how = {"position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0), "cache": cache, "use_cache": True}
    outputs = model(**_graphs_zeroed(model, batch, zero), **how, logits_to_keep=1)
    read = _Read(model, cache, mask, outputs.logits[:, -1].float().log_softmax(dim=-1))
    return partial(_score_tree if takes_trees(model) else _score_rows, read)


def takes_trees(model: "PreTrainedModel") -> bool:
    """Whether a decoder can read answers as one tree: an attention mask and positions of any kind, in every layer."""
    config = model.config.text_config
    whole = all(kind == "full_attention" for kind in config.to_dict().get("layer_types") or ())
    can_place = "position_ids" in inspect.signature(model.language_model.forward).parameters
    return whole and can_place and config._attn_implementation in ("sdpa", "eager")


def _score_tree(read: _Read, answers: list[list[int]]) -> Tensor:
    """All answers in one row a prompt, what they begin with in common once; the cache is not copied.

    Each token attends to the prompt and to what stands before it in its answers.
    """
    scores = read.first[:, [one[0] for one in answers]]  # (B, c)
    prefixes = sorted({tuple(one[:end]) for one in answers for end in range(1, len(one))})
    if not prefixes:
        return scores
    place, device = {prefix: i for i, prefix in enumerate(prefixes)}, scores.device
    depth = torch.tensor([len(prefix) - 1 for prefix in prefixes], device=device)
    outputs = read.model(
        input_ids=torch.tensor([prefix[-1] for prefix in prefixes], device=device).expand(len(read.mask), -1),
        attention_mask=_tree_mask(read, place),
        position_ids=read.mask.sum(dim=1, keepdim=True) + depth,
        cache=read.cache,
        use_cache=True,
    )
    read.cache.crop(-len(prefixes))
    steps = [(i, place[tuple(one[:end])], one[end]) for i, one in enumerate(answers) for end in range(1, len(one))]
    owner, node, target = torch.tensor(steps, device=device).T
    logits = outputs.logits.float()  # (B, prefixes, V)
    return scores.index_add(1, owner, logits[:, node, target] - logits.logsumexp(dim=-1)[:, node])


def _tree_mask(read: _Read, place: dict[tuple[int, ...], int]) -> Tensor:
    """(B, 1, prefixes, T + prefixes), to be added to attention weights.

    Not a boolean one: under eager attention that is silently added as ones and zeros.
    """
    before = torch.zeros(len(place), len(place), dtype=torch.bool, device=read.mask.device)
    for prefix, row in place.items():
        before[row, [place[prefix[:end]] for end in range(1, len(prefix) + 1)]] = True
    prompt = read.mask.bool()[:, None].expand(-1, len(place), -1)
    seen = torch.cat([prompt, before.expand(len(prompt), -1, -1)], dim=2)[:, None]
    mask = torch.zeros(seen.shape, dtype=read.model.dtype, device=seen.device)
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def _score_rows(read: _Read, answers: list[list[int]]) -> Tensor:
    """A row an answer, each with a copy of its prompt's cache."""
    targets, real = _padded(answers, read.mask.device)  # (c, L)
    scores = read.first[:, targets[:, 0]]  # (B, c)
    if targets.shape[1] == 1:
        return scores
    prompts, count = len(read.mask), len(answers)
    cache = copy.deepcopy(read.cache)
    cache.batch_repeat_interleave(count)
    places = torch.arange(targets.shape[1] - 1, device=targets.device)
    rows, known = targets.repeat(prompts, 1), real.repeat(prompts, 1)
    outputs = read.model(
        input_ids=rows[:, :-1],
        attention_mask=torch.cat([read.mask.repeat_interleave(count, dim=0), known[:, :-1].long()], dim=1),
        position_ids=(read.mask.sum(dim=1, keepdim=True) + places).repeat_interleave(count, dim=0),
        cache=cache,
        use_cache=True,
    )
    return scores + _log_likelihood(outputs.logits, rows[:, 1:], known[:, 1:]).view(prompts, count)


def _read_encoder(model: "PreTrainedModel", batch: dict[str, Any], zero: bool) -> Callable[[list[list[int]]], Tensor]:
    """One pass of the encoder over the prompts; returns what scores answers after them, `(answers) -> (B, c)`."""
    inputs = _graphs_zeroed(model, batch, zero)
    mask = inputs.pop("attention_mask")
    graphs = {name: inputs.get(name) for name in GRAPH_INPUTS}
    merged = model.get_merged_embeddings(inputs["input_ids"], inputs.get("graph_embeds"), **graphs)
    return partial(_score_decoder, model, model.get_encoder()(inputs_embeds=merged, attention_mask=mask)[0], mask)


def _score_decoder(model: "PreTrainedModel", states: Tensor, mask: Tensor, answers: list[list[int]]) -> Tensor:
    """A row an answer, beside its prompt's encoder states (B, T, H)."""
    targets, real = _padded(answers, mask.device)
    prompts, count = mask.shape[0], len(answers)
    rows = targets.repeat(prompts, 1)
    outputs = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat_interleave(count, dim=0)),
        attention_mask=mask.repeat_interleave(count, dim=0),
        decoder_input_ids=model.language_model.prepare_decoder_input_ids_from_labels(rows),
    )
    return _log_likelihood(outputs.logits, rows, real.repeat(prompts, 1)).view(prompts, count)


def _graphs_zeroed(model: "PreTrainedModel", batch: dict[str, Any], zero: bool) -> dict[str, Any]:
    if not zero or "graph_batch" not in batch:
        return dict(batch)
    graphs = {name: batch.get(name) for name in GRAPH_INPUTS}
    rest = {name: value for name, value in batch.items() if name not in GRAPH_INPUTS}
    return {**rest, "graph_embeds": torch.zeros_like(model.encode_graphs(batch["input_ids"], **graphs))}


def _padded(answers: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens (c, L), zeros on the right, and which of them are real."""
    lengths = torch.tensor([len(one) for one in answers], device=device)
    tokens = pad_sequence([torch.tensor(one) for one in answers], batch_first=True).to(device)
    return tokens, torch.arange(tokens.shape[1], device=device) < lengths[:, None]


def _log_likelihood(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Sum over the real targets of their log-probabilities. (R, L, V), (R, L), (R, L) -> (R,)"""
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1).float()  # (R, L)
    return ((chosen - logits.float().logsumexp(dim=-1)) * real).sum(dim=-1)
