"""Two learning rates: one for the graph encoder and projector, one for the language model or its adapters."""

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
        self, model: nn.Module, arguments: TrainingArguments, graph_learning_rate: float
    ) -> torch.optim.Optimizer:
        """The optimizer that `arguments.optim` names, over up to four groups.

        Args:
            model: with its trainable parameters marked.
            arguments: `learning_rate` and `weight_decay` of the language model's parameters.
            graph_learning_rate: of the graph encoder and projector.
        """
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        rate = kwargs.pop("lr")
        groups = parameter_groups(model, rate, graph_learning_rate, arguments.weight_decay)
        return optimizer_class(groups, lr=rate, **kwargs)


def parameter_groups(
    model: nn.Module, learning_rate: float, graph_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trainable parameters as groups (language model, graph) x (decayed, not); empty groups are left out."""
    decayed = set(get_parameter_names(model, [nn.LayerNorm], UNDECAYED))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((is_graph_parameter(name), name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": graph_learning_rate if graph else learning_rate,
            "weight_decay": weight_decay if decay else 0.0,
        }
        for (graph, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
