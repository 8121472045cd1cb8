"""What the activations of a training step take: the step is traced on tensors that have shapes and no memory.

Nothing is guessed about an architecture. The model is copied with fake tensors (torch's FakeTensorMode) in the place
of its weights and takes a forward and a backward pass on a real batch, while a ledger writes down when each storage
is born and freed. Whole numbers (ids, masks, edges) stay real, so that code which looks at them runs as it does in
training. Repeated layers are traced once and twice; every further layer costs what the second one does.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers.modeling_layers import GradientCheckpointingLayer

from training.ledger import Ledger, RealWholeNumbers
from training.quantised import HollowLinear, quantised_linears, whole_shape

PARTS = ("activations", "graph_activations", "logits")
GRADIENTS = "gradients"


@dataclass(frozen=True)
class Pass:
    """How a step is computed.

    Attributes:
        autocast: the type of mixed precision, None without it.
        cast: the type that DeepSpeed turns all weights into, None where it leaves them.
        checkpointing: keyword arguments of `activation_checkpointing_enable`, None where all activations are kept.
    """

    autocast: torch.dtype | None = None
    cast: torch.dtype | None = None
    checkpointing: dict[str, Any] | None = None


@dataclass(frozen=True)
class Activations:
    """What the tensors of a step take at their peak, in bytes, without weights and gradients of parameters.

    Attributes:
        parts: by PARTS: of the language model, of graph encoder and projector, of logits and loss.
        per_layer: of the language model's part, what one more layer adds, for each stack of layers.
        layers: how many layers each stack has.
        base: the rest of the language model's part.
        early_gradients: of parameters, that are there already at the peak.
        late: activations and gradients of parameters together, at their most, in a model of one layer.
        gradients_per_layer: what a further layer of each stack adds to that: its gradients are there before those of
            the first layer, its activations are gone.
    """

    parts: dict[str, float]
    per_layer: list[float]
    layers: list[int]
    base: float
    early_gradients: float
    late: float
    gradients_per_layer: list[float]

    @property
    def highest(self) -> float:
        """The most that activations and gradients take together, if no gradients are there before: on the way back
        through the last layer, or when all other layers have changed activations for gradients."""
        further = sum(each * (count - 1) for each, count in zip(self.gradients_per_layer, self.layers, strict=True))
        return max(sum(self.parts.values()) + self.early_gradients, self.late + further)


# --------------------------------------------------------------------------------------------------- the hollow model
def stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of layers that repeat each other, by their names."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            repeated = all(isinstance(one, GradientCheckpointingLayer) for one in module)
            if repeated and len(set(map(_kind, module))) == 1:
                found[name] = module
    return found


def _kind(layer: nn.Module) -> tuple:
    return tuple((name, tuple(whole_shape(one)), one.requires_grad) for name, one in layer.named_parameters())


def hollow(model: nn.Module, fake: FakeTensorMode, layers: dict[str, int], how: Pass) -> nn.Module:
    """A copy of the model without memory, with only the first `layers[name]` layers of each stack, ready to train."""
    memo: dict[int, Any] = {id(one): HollowLinear(one) for one in quantised_linears(model)}
    for name, stack in stacks(model).items():
        memo |= {id(one): nn.Identity() for one in list(stack)[layers[name] :]}
    left_out = [one for stack in stacks(model).values() for one in stack if id(one) in memo]
    dropped = {id(one) for layer in left_out for one in layer.parameters()}
    with fake:
        for one in model.parameters():
            if id(one) not in dropped:
                memo[id(one)] = _hollow_parameter(one, how.cast)
        for one in model.buffers():
            memo[id(one)] = _hollow_buffer(one)
        copied = copy.deepcopy(model, memo)
    for name, count in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(copied.get_submodule(parent), last, copied.get_submodule(name)[:count])
    language_model = _language_model(copied)
    if language_model._can_set_experts_implementation():  # the fused kernels know no tensors without memory
        language_model.set_experts_implementation("eager")
    copied.train()
    if how.checkpointing is not None:
        copied.activation_checkpointing_enable(**how.checkpointing)
    return copied


def _language_model(model: nn.Module) -> nn.Module:
    return next(one for name, one in model.named_modules() if name.rpartition(".")[2] == "language_model")


def _hollow_parameter(parameter: nn.Parameter, cast: torch.dtype | None) -> nn.Parameter:
    kind = cast if cast and parameter.is_floating_point() else parameter.dtype
    return nn.Parameter(torch.empty(whole_shape(parameter), dtype=kind), requires_grad=parameter.requires_grad)


def _hollow_buffer(buffer: Tensor) -> Tensor:
    if buffer.is_floating_point():
        return torch.empty(buffer.shape, dtype=buffer.dtype)
    with unset_fake_temporarily():
        return torch.zeros(buffer.shape, dtype=buffer.dtype)


# ----------------------------------------------------------------------------------------------------------- the trace
@dataclass
class Trace:
    """One traced step: the ledger and what of it is no activation."""

    ledger: Ledger
    given: set[int] = field(default_factory=set)  # weights and the batch
    gradients: set[int] = field(default_factory=set)
    vocabulary: int = 0

    def peak(self, within: bool) -> dict[str, float]:
        """Bytes by PARTS at the highest point while the language model works (`within`) or while it does not; under
        "gradients" those of parameters that are there at that point."""
        begin, end = self.ledger.marks["begin"], self.ledger.marks["end"]
        live = dict.fromkeys((*PARTS, GRADIENTS), 0)
        highest = dict(live)
        part_of: dict[int, str] = {}
        for position, entry in enumerate(self.ledger.log):
            number, sign = (entry, 1) if entry >= 0 else (-1 - entry, -1)
            if number in self.given:
                continue
            inside = begin <= position < end
            part = part_of.setdefault(number, self._part(number, inside))
            live[part] += sign * self.ledger.sizes[number]
            if inside == within and total(live) > total(highest):
                highest = dict(live)
        return highest

    def joint_peak(self) -> float:
        """The most bytes at any time, gradients of parameters included."""
        live = most = 0
        for entry in self.ledger.log:
            number, sign = (entry, 1) if entry >= 0 else (-1 - entry, -1)
            live += 0 if number in self.given else sign * self.ledger.sizes[number]
            most = max(most, live)
        return most

    def gradient_bytes(self) -> float:
        """Of all parameters."""
        return sum(self.ledger.sizes[number] for number in self.gradients)

    def _part(self, number: int, within: bool) -> str:
        if number in self.gradients:
            return GRADIENTS
        if not within:
            return "graph_activations"
        return "logits" if self.ledger.widths[number] == self.vocabulary else "activations"


def total(sizes: dict[str, float]) -> float:
    """Bytes of all parts but gradients of parameters."""
    return sum(sizes[part] for part in PARTS)


def trace(model: nn.Module, batch: dict[str, Any], layers: dict[str, int], how: Pass) -> Trace:
    """A forward and a backward pass of the model cut to so many layers of each stack."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    copied = hollow(model, fake, layers, how)
    language_model = _language_model(copied)
    ledger = Ledger()
    with fake:
        batch = {name: _hollow_input(one) for name, one in batch.items()}
    held = [*copied.parameters(), *copied.buffers(), *(one for one in batch.values() if isinstance(one, Tensor))]
    found = Trace(ledger, {ledger.number(one) for one in held}, vocabulary=language_model.config.vocab_size)
    language_model.register_forward_pre_hook(_marks(ledger), with_kwargs=True)
    with fake, RealWholeNumbers(), ledger:
        loss = step_loss(copied, batch, how.autocast)
        loss.backward()
        ledger.marks.setdefault("end", len(ledger.log))
    del loss
    trained = [one.grad for one in copied.parameters() if one.grad is not None]
    found.gradients = {ledger.number(one) for one in trained}
    return found


def _hollow_input(one: Any) -> Any:
    if not isinstance(one, Tensor) or not one.is_floating_point():
        return one
    return torch.empty(one.shape, dtype=one.dtype)


def _marks(ledger: Ledger) -> Callable[..., None]:
    """A hook that names the moments before the language model's forward and after its backward."""

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ledger.mark("begin")
        embeds = kwargs["inputs_embeds"]
        if embeds.requires_grad:
            embeds.register_hook(lambda _: ledger.mark("end"))

    return before


def step_loss(model: nn.Module, batch: dict[str, Any], autocast: torch.dtype | None) -> Tensor:
    """The loss, computed as under the Trainer: in mixed precision accelerate also turns the outputs to float32."""
    mixed = torch.autocast("cpu", dtype=autocast) if autocast else contextlib.nullcontext()
    with mixed:
        outputs = model(**batch)
    logits = outputs.logits.float() if autocast else outputs.logits
    del logits
    return outputs.loss


def activations(model: nn.Module, batch: dict[str, Any], how: Pass) -> Activations:
    """What the activations of one step take at their peak.

    Args:
        model: the composite model as it is trained, with or without PEFT, with or without memory.
        batch: the arguments of its forward, whole numbers real; of other numbers only the shapes are looked at.
        how: precision and checkpointing.
    """
    found = stacks(model)
    period = (how.checkpointing or {}).get("every_n_layers", 1)
    once = dict.fromkeys(found, 1)
    first = trace(model, batch, once, how)
    inside, outside = first.peak(within=True), first.peak(within=False)
    per_layer, gradients = [], []
    for name in found:
        more = trace(model, batch, once | {name: 1 + period}, how)
        per_layer.append((total(more.peak(within=True)) - total(inside)) / period)
        gradients.append((more.gradient_bytes() - first.gradient_bytes()) / period)
    counts = [len(stack) for stack in found.values()]
    base = inside["activations"] - sum(per_layer)
    parts = {name: float(inside[name]) for name in PARTS}
    parts["activations"] += sum(each * (count - 1) for each, count in zip(per_layer, counts, strict=True))
    # where the graph's own backward stands higher than all of the language model
    parts["graph_activations"] += max(0.0, total(outside) - total(parts))
    return Activations(parts, per_layer, counts, base, inside[GRADIENTS], first.joint_peak(), gradients)
