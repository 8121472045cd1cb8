"""What bitsandbytes holds for a weight of 4 or 8 bits, and a layer without memory that works as its layers do."""

import math
from typing import Any

import torch
from torch import Tensor, nn

# tables and block sizes of bitsandbytes 0.50, functional.py: quantize_4bit, quantize_blockwise
TABLE_4BIT = 16 * 4  # float32 values of the 16 codes, one table a weight
NESTED_BLOCK = 256  # scales that share a scale of their own
NESTED_TABLE = 256 * 4 + 4  # float32 codes of the scales, and their mean


def kind_of(parameter: Tensor) -> str:
    """ "4bit" and "8bit" for weights of bitsandbytes, else "plain"."""
    return {"Params4bit": "4bit", "Int8Params": "8bit"}.get(type(parameter).__name__, "plain")


def whole_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape that a weight has before it is packed into 4 bits or divided by ZeRO-3."""
    if kind_of(parameter) == "4bit" and parameter.quant_state is not None:
        return tuple(parameter.quant_state.shape)
    return tuple(vars(parameter).get("ds_shape", parameter.shape))


def packed_bytes(parameter: Tensor) -> tuple[int, int]:
    """Bytes of a weight of 4 or 8 bits, and of what is needed to read it, whether it is packed already or not.

    4 bits (QLoRA, arXiv 2305.14314, section 3): half a byte a number, a scale for each block of 64 numbers; with
    double quantisation the scales are bytes with a float32 scale for each 256 of them. 8 bits (LLM.int8(), arXiv
    2208.07339, section 2): a byte a number and a float32 scale for each row.
    """
    shape = whole_shape(parameter)
    count = math.prod(shape)
    if kind_of(parameter) == "8bit":
        return count, 4 * shape[0]
    scales = math.ceil(count / parameter.blocksize)
    if not parameter.compress_statistics:
        return math.ceil(count / 2), TABLE_4BIT + 4 * scales
    return math.ceil(count / 2), TABLE_4BIT + scales + 4 * math.ceil(scales / NESTED_BLOCK) + NESTED_TABLE


def quantised_linears(model: nn.Module) -> list[nn.Linear]:
    """The linear layers whose weight has 4 or 8 bits."""
    linears = [one for one in model.modules() if isinstance(one, nn.Linear)]
    return [one for one in linears if kind_of(one.weight) != "plain"]


class HollowLinear(nn.Module):
    """Takes and frees the memory that a linear layer of bitsandbytes takes in training, whose weight is frozen.

    Args:
        linear: the layer that it stands for.

    Shapes: (..., in) -> (..., out)
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.shape = (linear.out_features, linear.in_features)
        self.step = {"4bit": _FourBits, "8bit": _EightBits}[kind_of(linear.weight)]
        self.compute_dtype = linear.compute_dtype if self.step is _FourBits else None

    def forward(self, x: Tensor) -> Tensor:
        return self.step.apply(x.to(self.compute_dtype or x.dtype), self.shape).to(x.dtype)


class _FourBits(torch.autograd.Function):
    """The weight is unpacked in either pass; the input is not kept (MatMul4Bit of bitsandbytes)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shape = shape
        return nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ gradient.new_empty(ctx.shape), None


class _EightBits(torch.autograd.Function):
    """The input is rounded to bytes and kept as it was; the weight is unpacked on the way back (MatMul8bitLt)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.kept, ctx.shape = x, shape
        half = x.to(torch.float16)
        half.to(torch.int8)
        sums = x.new_empty((*x.shape[:-1], shape[0]), dtype=torch.int32)
        return sums.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ gradient.new_empty(ctx.shape), None
