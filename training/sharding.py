"""How DDP, ZeRO and FSDP divide weights, gradients and optimizer states: bytes on each GPU and on its host.

Sources: ZeRO, arXiv 1910.02054, section 3 and 5; what is rounded up and kept twice, from the code of DeepSpeed 0.19
(runtime/zero/stage_1_and_2.py, stage3.py), torch 2.13 (DDP's buckets, fully_shard) and bitsandbytes 0.50 (optim/).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from training.holdings import Weight, groups

Kind = Literal["alone", "ddp", "zero1", "zero2", "zero3", "fsdp"]
SUB_GROUP = 10**9  # numbers that ZeRO-3 updates at once, DeepSpeed's default
SMALL, BLOCK = 4096, 256  # bitsandbytes: smaller tensors keep 32 bits; numbers that share a scale
TABLES = 2 * 256 * 4  # bitsandbytes: the codes of both states, shared by all tensors


@dataclass(frozen=True)
class Engine:
    """What divides the step.

    Attributes:
        kind: "alone" is one process without DeepSpeed.
        world_size: GPUs.
        optimizer: its name in the Trainer. accumulation: batches whose gradients are summed before an update.
        reduce_bucket: numbers of the buffers that gradients are summed through; double_bucket: there are two.
        persistent: ZeRO-3 keeps weights of at most so many numbers whole. live: and gathers at most so many more.
        offload_optimizer, offload_weights: to the host.
    """

    kind: Kind = "alone"
    world_size: int = 1
    optimizer: str = "adamw_torch"
    half: bool = False
    accumulation: int = 1
    reduce_bucket: int = 0
    double_bucket: bool = False
    persistent: int = 0
    live: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False


@dataclass(frozen=True)
class Row:
    """Bytes on a GPU and on its host, and how they came about."""

    gpu: float
    formula: str
    host: float = 0.0


# ---------------------------------------------------------------------------------------------------- optimizer states
def adam_bytes(tensors: Iterable[tuple[int, int, bool]], optimizer: str) -> int:
    """Bytes of the two states of Adam.

    torch keeps both in the weight's own type and a float32 count of steps; bitsandbytes (arXiv 2110.02861) a byte a
    number and state with a float32 scale for 256 numbers, or float32 for small tensors and embeddings.

    Args:
        tensors: of each tensor the count of numbers, bytes of one, and whether it is an embedding.
        optimizer: its name in the Trainer.
    """
    if not is_bitsandbytes(optimizer):
        return sum(2 * count * item + 4 for count, item, _ in tensors)
    eight = "8bit" in optimizer
    size, tables = 0, 0
    for count, _, embedding in tensors:
        if eight and count >= SMALL and not embedding:
            size += 2 * (count + 4 * math.ceil(count / BLOCK))
            tables = TABLES
        else:
            size += 2 * 4 * count
    return size + tables


def is_bitsandbytes(optimizer: str) -> bool:
    """Whether the Trainer takes this Adam from bitsandbytes."""
    return "8bit" in optimizer or optimizer.startswith("paged_")


def states(optimizer: str) -> str:
    """The size of a number's two states, in words."""
    if "8bit" in optimizer:
        return "2 x (1 byte + 4 bytes / 256) a number; 2 x 4 bytes in tensors below 4096 and embeddings"
    return "2 numbers of its own type each, and 4 bytes a tensor"


# ------------------------------------------------------------------------------------------------------------- engines
def counted(weights: list[Weight], word: str) -> str:
    """How many numbers the parameters among the weights are, and how large one is on average, as text."""
    parameters = [one for one in weights if not one.buffer]
    count = sum(one.numel for one in parameters)
    return f"{count:,} {word} x {sum(one.bytes for one in parameters) / max(1, count):.2f} bytes"


def trained_numbers(weights: list[Weight]) -> str:
    """How many numbers are trained, as text."""
    return f"{sum(one.numel for one in weights if one.trained):,} trained"


def whole(weights: list[Weight], engine: Engine) -> dict[str, Row]:
    """One process, or DDP: every GPU holds everything; DDP copies gradients into buckets to sum them."""
    trained = [one for one in weights if one.trained]
    gradients = sum(one.bytes for one in trained)
    optimizer = adam_bytes(((one.numel, one.item, one.embedding) for one in trained), engine.optimizer)
    rows = {
        "weights": Row(sum(one.bytes for one in weights), f"{counted(weights, 'parameters')}, and buffers"),
        "gradients": Row(gradients, counted(trained, "trained")),
        "optimizer": Row(optimizer, f"{trained_numbers(trained)}: {states(engine.optimizer)}"),
    }
    if engine.kind == "ddp":
        rows["buckets"] = Row(gradients, "gradients once more, as they are summed over GPUs")
    return rows


def zero_1_2(weights: list[Weight], engine: Engine) -> dict[str, Row]:
    """ZeRO-1 and 2: states divided, for ZeRO-2 gradients too; a float32 copy of the own part of the weights."""
    rounded = 2 * engine.world_size
    flat = [(math.ceil(sum(one.numel for one in group) / rounded) * rounded, group) for group in groups(weights)]
    parts = [size // engine.world_size for size, _ in flat]
    frozen = sum(one.bytes for one in weights if not one.trained)
    held = frozen + sum(size * group[0].item for size, group in flat)
    item = flat[0][1][0].item
    rows = {"weights": Row(held, f"{counted(weights, 'parameters')}, rounded up, and buffers")}
    count = trained_numbers(weights)
    if engine.kind == "zero1" and engine.accumulation > 1:
        whole_ones = sum(one.bytes for one in weights if one.trained)
        rows["gradients"] = Row(whole_ones, f"{count} x {item} bytes, whole until the last batch of a step")
    else:
        touched = max(touched_numbers(flat, rank, engine.world_size) for rank in range(engine.world_size))
        rows["gradients"] = Row(touched * item, f"{count} x {item} bytes / {engine.world_size}, cut ones whole")
    rows["master_weights"] = _placed(4 * sum(parts), f"{count} x 4 bytes / {engine.world_size}", engine)
    rows["optimizer"] = _flat_states(parts, engine)
    bucket = engine.reduce_bucket * (1 + engine.double_bucket)
    return rows | {"buckets": _buckets(bucket, item)}


def touched_numbers(flat: list[tuple[int, list[Weight]]], rank: int, world_size: int) -> int:
    """Numbers of the parameters that lie, whole or in part, in the part that a process updates."""
    found = 0
    for size, group in flat:
        begin, end = rank * size // world_size, (rank + 1) * size // world_size
        offset = 0
        for one in group:
            found += one.numel if offset < end and offset + one.numel > begin else 0
            offset += one.numel
    return found


def zero_3(weights: list[Weight], engine: Engine) -> dict[str, Row]:
    """ZeRO-3: every parameter divided, small ones kept whole beside; those of the layers at work are gathered."""
    world = engine.world_size
    parameters = [one for one in weights if not one.buffer]
    shards = sum(part(one, world) * max(1, one.item) + one.scales for one in parameters)
    beside = [one for one in weights if one.buffer or one.cells <= engine.persistent]
    large = [one for one in parameters if one.cells > engine.persistent]
    trained = [[part(one, world) for one in group] for group in groups(weights)]
    own, item = sum(map(sum, trained)), 2 if engine.half else 4
    count = trained_numbers(weights)
    divided = f"{counted(weights, 'parameters')} / {world}; whole those of up to {engine.persistent:,}, and buffers"
    kept = sum(one.bytes - one.scales for one in beside)
    live = min(1.0, engine.live / max(1, sum(one.cells for one in large)))
    gathered = live * sum(one.bytes for one in large)
    return {
        "weights": Row(kept, divided, shards) if engine.offload_weights else Row(shards + kept, divided),
        "gathered": Row(gathered, f"up to {engine.live:,} numbers, whole for a while"),
        "gradients": _placed(own * item, f"{count} x {item} bytes / {world}", engine),
        "master_weights": _placed(4 * own, f"{count} x 4 bytes / {world}", engine),
        "optimizer": _flat_states([size for group in trained for size in sub_groups(group)], engine),
        "buckets": _buckets(engine.reduce_bucket, item),
    }


def part(weight: Weight, world_size: int) -> int:
    """Numbers of a parameter, or bytes of a packed one, that one process holds under ZeRO-3."""
    return math.ceil(weight.cells / world_size)


def sub_groups(parts: list[int]) -> list[int]:
    """Parts of one optimizer group, joined into flat tensors of about SUB_GROUP numbers."""
    joined = [0]
    for size in parts:
        if joined[-1] >= SUB_GROUP:
            joined.append(0)
        joined[-1] += size
    return joined


def fsdp(weights: list[Weight], engine: Engine) -> dict[str, Row]:
    """FSDP2: each parameter divided along its first side, states with it."""
    world = engine.world_size
    trained = [one for one in weights if one.trained]
    held = sum(rows_of(one, world) * one.bytes // max(1, one.shape[0]) if one.shape else one.bytes for one in weights)
    parts = [(rows_of(one, world) * one.numel // one.shape[0], one.item, False) for one in trained]
    gradients = sum(count * item for count, item, _ in parts)
    return {
        "weights": Row(held, f"{counted(weights, 'parameters')} / {world}, rounded up to rows, and buffers"),
        "gradients": Row(gradients, f"{counted(trained, 'trained')} / {world}, rounded up to rows"),
        "optimizer": Row(adam_bytes(parts, engine.optimizer), f"trained / {world}: {states(engine.optimizer)}"),
    }


def rows_of(weight: Weight, world_size: int) -> int:
    """Rows of a parameter that one process holds under FSDP2; buffers and packed weights stay whole."""
    return weight.shape[0] if weight.buffer or weight.packed else math.ceil(weight.shape[0] / world_size)


def _buckets(count: int, item: int) -> Row:
    return Row(count * item, f"{count:,} numbers x {item} bytes, to sum gradients over GPUs")


def _flat_states(parts: list[int], engine: Engine) -> Row:
    if engine.offload_optimizer:  # DeepSpeedCPUAdam counts steps without a tensor
        return _placed(2 * 4 * sum(parts), f"trained / {engine.world_size}: 2 x 4 bytes a number", engine)
    size = adam_bytes(((count, 4, False) for count in parts), engine.optimizer)
    return Row(size, f"trained / {engine.world_size}, in float32: {states(engine.optimizer)}")


def _placed(size: float, formula: str, engine: Engine) -> Row:
    return Row(0, formula, size) if engine.offload_optimizer else Row(size, formula)


ENGINES: dict[Kind, Callable[[list[Weight], Engine], dict[str, Row]]] = {
    "alone": whole, "ddp": whole, "zero1": zero_1_2, "zero2": zero_1_2, "zero3": zero_3, "fsdp": fsdp,
}  # fmt: skip


def divide(weights: list[Weight], engine: Engine) -> dict[str, Row]:
    """What each GPU and its host hold of weights, gradients and states, by row of the memory table."""
    return ENGINES[engine.kind](weights, engine)
