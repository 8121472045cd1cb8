"""Learning rates by room: graph encoder and projector, language model or its adapters, LoRA's second matrices."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_parameter_names

GRAPH_ROOMS = ("graph_encoder.", "graph_projector.")
# as in Trainer.get_decay_parameter_names: biases and norms are not decayed
UNDECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def is_graph_parameter(name: str) -> bool:
    """Whether a parameter belongs to the graph encoder or the projector, however the model is wrapped."""
    return any(room in name for room in GRAPH_ROOMS)


class GroupedOptimizer:
    """A factory for the Trainer's `optimizer_cls_and_kwargs`: groups parameters by room and by weight decay.

    The Trainer calls a factory as `factory()(model, **kwargs)`; schedulers then scale each group's own rate.
    """

    def __call__(
        self, model: nn.Module, arguments: TrainingArguments, graph_learning_rate: float | None, ratio: float | None
    ) -> torch.optim.Optimizer:
        """The optimizer that `arguments.optim` names, over up to six groups.

        Args:
            model: with its trainable parameters marked.
            arguments: `learning_rate` and `weight_decay` of the language model's parameters.
            graph_learning_rate: of the graph encoder and projector; None: the same.
            ratio: LoRA+ (arXiv 2402.12354): LoRA's B learns at so many times the rate of its A; None: at the same.
        """
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        rate = kwargs.pop("lr")
        rates = {
            "language model": rate,
            "graph": rate if graph_learning_rate is None else graph_learning_rate,
            "lora_B": rate * (ratio or 1),
        }
        groups = parameter_groups(model, rates, arguments.weight_decay)
        optimizer = optimizer_class(groups, lr=rate, **kwargs)
        if "bitsandbytes" in optimizer_class.__module__:
            keep_embeddings_in_32_bits(model)
        return optimizer


def room_of_rate(name: str) -> str:
    """Which of the learning rates a parameter has."""
    if is_graph_parameter(name):
        return "graph"
    return "lora_B" if ".lora_B." in name else "language model"


def parameter_groups(model: nn.Module, rates: dict[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters as groups (room of the rate) x (decayed, not); empty groups are left out."""
    decayed = set(get_parameter_names(model, [nn.LayerNorm], UNDECAYED))
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((room_of_rate(name), name in decayed), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[room], "weight_decay": weight_decay if decay else 0.0}
        for (room, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def keep_embeddings_in_32_bits(model: nn.Module) -> None:
    """As the Trainer does for its own optimizers: 8-bit states of embeddings are unstable (arXiv 2110.02861)."""
    from bitsandbytes.optim import GlobalOptimManager

    manager = GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
