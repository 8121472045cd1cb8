"""What a model holds and what a step of it costs: the parameter table and the memory estimate of `--dry_run`.

Weights, gradients and optimizer states are counted to the byte (training/sharding.py), activations are traced
(training/activations.py).
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from training.activations import Activations, Pass, activations
from training.arguments import TrainingArguments
from training.deepspeed_file import deepspeed_config, offloaded, zero_stage
from training.holdings import Weight, weights_of
from training.optimizer import is_graph_parameter
from training.quantised import kind_of, packed_bytes, whole_shape
from training.sharding import Engine, Kind, Row, divide

GIB = 2**30
# what is there all through a step; gradients and activations come and go
STEADY = ("weights", "master_weights", "optimizer", "buckets", "gathered")
COUNTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Step:
    """A step of training as far as its memory is concerned.

    Attributes:
        engine: how it is divided. how: how it is computed.
        several_rates: rooms have learning rates of their own.
        foreach: the optimizer updates all tensors at once, as torch's AdamW does on a GPU.
    """

    engine: Engine = Engine()
    how: Pass = Pass()
    several_rates: bool = False
    foreach: bool = False


def step_of(training: TrainingArguments | Namespace, hidden_size: int, lora_plus: float | None = None) -> Step:
    """The step that the flags describe.

    Args:
        training: all training flags.
        hidden_size: width of the language model, from which DeepSpeed's "auto" values follow.
        lora_plus: `--loraplus_lr_ratio`.
    """
    half = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
    # ZeRO-3 loads the language model in that type and leaves the graph's modules and adapters as they are
    cast = half if training.deepspeed and zero_stage(training) < 3 else None
    checkpointing = None
    if training.activation_checkpointing:
        given = dict(training.activation_checkpointing_kwargs or {})
        own = {name: given.pop(name) for name in ("every_n_layers", "offload") if name in given}
        checkpointing = own | {"activation_checkpointing_kwargs": given or None}
    return Step(
        engine_of(training, hidden_size),
        Pass(autocast=None if training.deepspeed else half, cast=cast, checkpointing=checkpointing),
        training.graph_learning_rate is not None or lora_plus is not None,
        foreach=training.optim == "adamw_torch" and not training.use_cpu,
    )


def engine_of(training: TrainingArguments | Namespace, hidden_size: int) -> Engine:
    """What divides the step, with DeepSpeed's own defaults where its file says nothing."""
    config = deepspeed_config(training).get("zero_optimization", {})
    stage = zero_stage(training)
    bucket = _number(config.get("reduce_bucket_size", 5e8), hidden_size**2)
    return Engine(
        kind=_kind(stage, bool(training.fsdp), training.world_size),
        world_size=training.world_size,
        optimizer=training.optim,
        half=bool(training.deepspeed) and (training.bf16 or training.fp16),
        accumulation=training.gradient_accumulation_steps,
        reduce_bucket=bucket if config.get("contiguous_gradients", True) else 0,
        double_bucket=bool(config.get("overlap_comm", False)),
        persistent=_number(config.get("stage3_param_persistence_threshold", 1e5), 10 * hidden_size),
        live=_number(config.get("stage3_max_live_parameters", 1e9), 10**9),
        offload_optimizer=offloaded(training, "offload_optimizer"),
        offload_weights=offloaded(training, "offload_param"),
    )


def _kind(stage: int, fsdp: bool, world_size: int) -> Kind:
    if stage:
        return {1: "zero1", 2: "zero2", 3: "zero3"}[stage]
    if fsdp:
        return "fsdp"
    return "ddp" if world_size > 1 else "alone"


def _number(value: Any, auto: int) -> int:
    return auto if value == "auto" else int(value)


# ---------------------------------------------------------------------------------------------------------- parameters
def room_of(name: str) -> str:
    """The room that a parameter is listed under, by its name."""
    if "lora_" in name:
        return "LoRA adapters"
    if not is_graph_parameter(name):
        return "language_model"
    if ".original_module." in name:
        return "frozen copies of PEFT"
    return "graph_encoder" if "graph_encoder." in name else "graph_projector"


def parameter_table(model: nn.Module, room_of: Callable[[str], str] = room_of) -> dict[str, dict[str, int]]:
    """`{room: {"total", "trainable", "bytes"}}` and the row `all`; a tied weight counts once, a packed one in full.

    Args:
        model: whose parameters are counted.
        room_of: name of a parameter -> the room that it is listed under.
    """
    table: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        size = torch.Size(whole_shape(parameter)).numel()
        plain = kind_of(parameter) == "plain"
        for room in (room_of(name), "all"):
            row = table.setdefault(room, {"total": 0, "trainable": 0, "bytes": 0})
            row["total"] += size
            row["trainable"] += size * parameter.requires_grad
            row["bytes"] += size * parameter.element_size() if plain else sum(packed_bytes(parameter))
    table["all"] = table.pop("all")
    return table


# -------------------------------------------------------------------------------------------------------- the estimate
@dataclass(frozen=True)
class Estimate:
    """What a step takes, for any number of GPUs.

    Attributes:
        weights: every parameter and buffer. traced: what activations take.
        rows: of what was traced, with their formulas. step: how it is divided and computed.
    """

    weights: list[Weight]
    traced: Activations
    rows: dict[str, Row]
    step: Step

    def table(self, world_size: int | None = None) -> dict[str, Row]:
        """The memory table: a row for each thing that fills a GPU, and `all`. What the allocator loses comes on top.

        Args:
            world_size: GPUs, if they are others than those of the step.
        """
        engine = self.step.engine
        if world_size is not None:
            engine = replace(engine, world_size=world_size)
        rows = divide(self.weights, engine) | self.rows
        if update := update_row(rows, self.step):
            rows["update"] = update
        return rows | {"all": together(rows, self.traced, self.step)}

    def elsewhere(self) -> dict[int, float]:
        """`all` in bytes a GPU on other numbers of GPUs, where the engine divides anything."""
        if self.step.engine.kind in ("alone", "ddp"):
            return {}
        return {count: self.table(count)["all"].gpu for count in COUNTS}


def estimate(model: nn.Module, batch: dict[str, Any], step: Step) -> Estimate:
    """Counts the weights and traces the activations.

    Args:
        model: the composite model as it is trained, with or without memory of its own.
        batch: the largest arguments of its forward; whole numbers must be real.
        step: how it is divided and computed.
    """
    traced = activations(model, batch, step.how)
    weights = weights_of(model, step.how.cast, step.several_rates)
    return Estimate(weights, traced, traced_rows(traced, batch, model.config.text_config), step)


def update_row(rows: dict[str, Row], step: Step) -> Row | None:
    """What an update takes for its own duration: torch's AdamW on a GPU roots all second moments at once (torch 2.13,
    optim/adam.py, `_multi_tensor_adam`), ZeRO turns gradients to float32."""
    rooted = rows["optimizer"].gpu / 2 if step.foreach else 0
    turned = rows["master_weights"].gpu if step.engine.half and "master_weights" in rows else 0
    said = ["one state of AdamW once more"] * bool(rooted) + ["gradients in float32"] * bool(turned)
    return Row(rooted + turned, f"{' and '.join(said)}, while weights are updated") if said else None


def together(rows: dict[str, Row], traced: Activations, step: Step) -> Row:
    """The highest point of a step: gradients grow while activations shrink, and an update needs no activations."""
    steady = sum(row.gpu for name, row in rows.items() if name in STEADY)
    gradients, most = rows["gradients"].gpu, sum(traced.parts.values())
    backward = gradients + most
    if step.engine.accumulation == 1 and step.engine.kind in ("alone", "ddp"):
        backward = traced.highest
    update = gradients + rows["update"].gpu if "update" in rows else 0.0
    host = sum(row.host for row in rows.values())
    said = "the most at once: activations make way for gradients, and an update needs none"
    return Row(steady + max(backward, update), said, host)


def traced_rows(traced: Activations, batch: dict[str, Any], text_config: Any) -> dict[str, Row]:
    """The rows of what was traced, with a formula that gives the same bytes again."""
    samples, tokens = batch["input_ids"].shape
    each = samples * tokens
    stacks = zip(traced.layers, traced.per_layer, strict=True)
    layers = [f"layers {count} x {size / each:,.1f}" for count, size in stacks]
    sums = " + ".join([*layers, f"{traced.base / each:,.1f}"])
    labels = batch["labels"]
    columns = labels.shape[1] if text_config.is_encoder_decoder else int((labels[:, 1:] >= 0).any(dim=0).sum())
    cells = samples * columns * text_config.vocab_size
    nodes = len(batch["graph_node_features"]) if "graph_node_features" in batch else 0
    logits = f"batch {samples} x labels {columns} x vocabulary {text_config.vocab_size:,}"
    each_logit = traced.parts["logits"] / max(1, cells)
    formulas = {
        "activations": f"batch {samples} x tokens {tokens} x ({sums}) bytes, traced",
        "graph_activations": f"{nodes:,} nodes and what surrounds the language model, traced",
        "logits": f"{logits} x {each_logit:.1f} bytes, traced" if each_logit else f"{logits}: gone before the peak",
    }
    return {name: Row(traced.parts[name], formula) for name, formula in formulas.items()}


# ------------------------------------------------------------------------------------------------------------- as text
def format_parameters(table: dict[str, dict[str, int]]) -> str:
    """The parameter table as text."""
    lines = [f"{'parameters':<24}{'total':>16}{'trainable':>16}{'MiB':>10}"]
    for room, row in table.items():
        lines.append(f"{room:<24}{row['total']:>16,}{row['trainable']:>16,}{row['bytes'] / 2**20:>10.1f}")
    return "\n".join(lines)


def format_memory(rows: dict[str, Row]) -> str:
    """The memory estimate as text, in MiB where all is less than a GiB; a column for the host where it holds any."""
    unit, name_of_unit = (GIB, "GiB") if max(rows["all"].gpu, rows["all"].host) >= GIB else (2**20, "MiB")
    host = rows["all"].host > 0
    heads = f"{name_of_unit:>10}" + f"{'on host':>10}" * host
    lines = [f"{'memory per GPU':<20}{heads}  formula"]
    for name, row in rows.items():
        sizes = f"{row.gpu / unit:>10.3f}" + f"{row.host / unit:>10.3f}" * host
        lines.append(f"{name:<20}{sizes}  {row.formula}")
    return "\n".join(lines)
