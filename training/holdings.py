"""What a model's weights are, one line each: the sizes that every estimate of memory starts from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from training.optimizer import UNDECAYED, room_of_rate
from training.quantised import kind_of, packed_bytes, whole_shape


@dataclass(frozen=True)
class Weight:
    """One parameter, or a buffer, which is never trained.

    Attributes:
        shape: before it is packed or divided.
        item: bytes of one number where it is held as it is, 0 where it is packed into 4 or 8 bits.
        packed: bytes of a weight of 4 or 8 bits, else 0. scales: bytes of what is needed to read it.
        trained: it has a gradient. embedding: it is that of an embedding layer.
        group: which of the optimizer's groups it is in.
    """

    shape: tuple[int, ...]
    item: int
    packed: int = 0
    scales: int = 0
    trained: bool = False
    embedding: bool = False
    buffer: bool = False
    group: tuple[str, bool] = ("", False)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.packed + self.scales + self.numel * self.item

    @property
    def cells(self) -> int:
        """Numbers, or bytes of a packed weight: what ZeRO-3 counts and divides."""
        return self.packed or self.numel


def weights_of(model: nn.Module, cast: torch.dtype | None = None, several_rates: bool = False) -> list[Weight]:
    """Every parameter and buffer of the model once, in the model's order.

    Args:
        model: with its trained parameters marked; with or without memory, packed into 4 or 8 bits or not yet.
        cast: the type that DeepSpeed turns weights into, None where it leaves them.
        several_rates: rooms have learning rates, and therefore optimizer groups, of their own.
    """
    decayed = set(get_parameter_names(model, [nn.LayerNorm], UNDECAYED))
    embeddings = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    found = []
    for name, one in model.named_parameters():
        packed, scales = (0, 0) if kind_of(one) == "plain" else packed_bytes(one)
        item = 0 if packed else (cast or one.dtype).itemsize
        group = (room_of_rate(name) if several_rates else "", name in decayed)
        embedding = id(one) in embeddings
        found.append(Weight(whole_shape(one), item, packed, scales, one.requires_grad, embedding, False, group))
    return found + [Weight(tuple(one.shape), one.element_size(), buffer=True) for one in model.buffers()]


def groups(weights: list[Weight]) -> Iterator[list[Weight]]:
    """The trained weights by the optimizer's groups, each in the model's order."""
    trained = [one for one in weights if one.trained]
    for group in sorted({one.group for one in trained}):
        yield [one for one in trained if one.group == group]
