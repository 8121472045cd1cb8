"""What a model holds and what a step of it costs: the parameter table and the memory estimate of `--dry_run`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from training.optimizer import is_graph_parameter

GIB = 2**30


@dataclass(frozen=True)
class Step:
    """What the estimate needs to know of a step.

    Attributes:
        batch: samples per GPU. tokens: longest sample. labels: tokens with a label in one sample, the mean.
        world_size: GPUs. zero_stage: 0 to 3. half: bf16 or fp16 under DeepSpeed, which keeps fp32 master weights.
        activation_bytes: 2 in mixed precision, else 4. checkpointing: activations are recomputed.
        optimizer: its name in the Trainer.
    """

    batch: int
    tokens: int
    labels: float
    world_size: int = 1
    zero_stage: int = 0
    half: bool = False
    activation_bytes: int = 4
    checkpointing: bool = False
    optimizer: str = "adamw_torch"


def room_of(name: str) -> str:
    """The room that a parameter is listed under, by its name."""
    if "lora_" in name:
        return "LoRA adapters"
    if not is_graph_parameter(name):
        return "language_model"
    if ".original_module." in name:
        return "frozen copies of PEFT"
    return "graph_encoder" if "graph_encoder." in name else "graph_projector"


def numel(parameter: nn.Parameter) -> int:
    """Numbers in the whole parameter, also where ZeRO-3 holds a part of it here."""
    return parameter.ds_numel if "ds_numel" in vars(parameter) else parameter.numel()


def parameter_table(model: nn.Module, room_of: Callable[[str], str] = room_of) -> dict[str, dict[str, int]]:
    """`{room: {"total", "trainable", "bytes"}}` and the row `all`; a tied weight counts once.

    Args:
        model: whose parameters are counted.
        room_of: name of a parameter -> the room that it is listed under.
    """
    table: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        size = numel(parameter)
        for room in (room_of(name), "all"):
            row = table.setdefault(room, {"total": 0, "trainable": 0, "bytes": 0})
            row["total"] += size
            row["trainable"] += size * parameter.requires_grad
            row["bytes"] += size * parameter.element_size()
    table["all"] = table.pop("all")
    return table


def estimate(model: nn.Module, text_config: Any, step: Step) -> dict[str, tuple[float, str]]:
    """Bytes per GPU and the formula, for each thing that fills memory; buffers and fragmentation come on top.

    Sources: ZeRO, arXiv 1910.02054, section 3 (weights, gradients, states); Korthikanti et al., arXiv 2205.05198, eq.
    2 and table 2 (activations of a layer, without the attention scores that fused attention never stores).
    """
    held = sum(numel(one) * one.element_size() for one in model.parameters())
    trainable = [one for one in model.parameters() if one.requires_grad]
    gradients = sum(numel(one) * one.element_size() for one in trainable)
    count = sum(numel(one) for one in trainable)
    per_parameter = (2 if "8bit" in step.optimizer else 8) + (4 if step.half else 0)
    split = [step.world_size if step.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    width, layers = text_config.hidden_size, text_config.num_hidden_layers
    per_layer = (1 if step.checkpointing else 17) * step.activation_bytes
    activations = step.batch * step.tokens * width * layers * per_layer
    logits = step.batch * step.labels * text_config.vocab_size * (4 + step.activation_bytes)
    rows = {
        "weights": (held / split[0], f"bytes of all parameters / {split[0]}"),
        "gradients": (gradients / split[1], f"bytes of the trainable ones / {split[1]}"),
        "optimizer": (count * per_parameter / split[2], f"trainable x {per_parameter} bytes / {split[2]}"),
        "activations": (
            activations,
            f"batch {step.batch} x tokens {step.tokens} x width {width} x layers {layers} x {per_layer} bytes",
        ),
        "logits": (
            logits,
            f"batch {step.batch} x labels {step.labels:.1f} x vocabulary {text_config.vocab_size} "
            f"x {4 + step.activation_bytes} bytes",
        ),
    }
    return rows | {"all": (sum(size for size, _ in rows.values()), "sum")}


def format_parameters(table: dict[str, dict[str, int]]) -> str:
    """The parameter table as text."""
    lines = [f"{'parameters':<24}{'total':>16}{'trainable':>16}{'MiB':>10}"]
    for room, row in table.items():
        lines.append(f"{room:<24}{row['total']:>16,}{row['trainable']:>16,}{row['bytes'] / 2**20:>10.1f}")
    return "\n".join(lines)


def format_memory(rows: dict[str, tuple[float, str]]) -> str:
    """The memory estimate as text."""
    lines = [f"{'memory per GPU':<16}{'GiB':>8}  formula"]
    return "\n".join(lines + [f"{name:<16}{size / GIB:>8.2f}  {formula}" for name, (size, formula) in rows.items()])
