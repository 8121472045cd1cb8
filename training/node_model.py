"""The model of the stage `graph`: an encoder of modeling_graphllm.py with a head for links or for classes."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import ModelOutput

from modeling_graphllm import GraphConfig, GraphEncoder, GraphLLMPreTrainedModel


class NodeConfig(PreTrainedConfig):
    """An encoder and what it is trained to tell.

    Args:
        graph_config: the encoder.
        objective: `link` or `label`.
        classes: names of the classes, of `label`.
        feature_dropout: of the nodes' own vectors.
        feature_encoder: made those vectors.
    """

    model_type = "graphllm_nodes"
    sub_configs_defaults = {"graph_config": SubConfigSpec(config_class=GraphConfig)}

    graph_config: dict | PreTrainedConfig | None = None
    objective: str = "link"
    classes: list[str] | None = None
    feature_dropout: float = 0.0
    feature_encoder: str | None = None


@dataclass
class NodeOutput(ModelOutput):
    """`logits`: (1, B) scores of pairs, or (1, B, C) of classes."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class GraphEncoderForNodes(GraphLLMPreTrainedModel):
    r"""States of nodes, :math:`z_i`, trained on the graph itself.

    link: :math:`p(i \sim j) = \sigma(a\, z_i^\top z_j / \sqrt{D} + b)`, binary cross-entropy over links and as many
    random pairs (GraphSAGE, arXiv 1706.02216, eq. 1, with pairs of edges instead of walks; :math:`a, b` are learned).
    label: a linear layer over :math:`z_i`, with the encoder's dropout before it, cross-entropy.
    """

    config_class = NodeConfig
    base_model_prefix = "nodes"
    main_input_name = "node_features"
    _keep_in_fp32_modules_strict = ["graph_encoder"]

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self.graph_encoder = GraphEncoder(config.graph_config)
        outputs = len(config.classes) if config.objective == "label" else 1
        width = config.graph_config.output_dim if config.objective == "label" else 1
        self.head = nn.Linear(width, outputs)
        self.post_init()
        if config.objective == "link":
            nn.init.ones_(self.head.weight)

    def states(self, node_features: Tensor, edge_index: Tensor, edge_features: Tensor | None = None) -> Tensor:
        """(n, F), (2, e), (e, F') -> (n, D)"""
        dropped = F.dropout(node_features, self.config.feature_dropout, self.training)
        batch = torch.zeros(len(node_features), dtype=torch.long, device=node_features.device)
        return self.graph_encoder(dropped, edge_index, edge_features, batch)

    def forward(
        self,
        node_features: Tensor,
        edge_index: Tensor,
        targets: Tensor,
        edge_features: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> NodeOutput:
        """One pass over a neighbourhood.

        Args:
            node_features: (n, F). edge_index: (2, e) rows of it. edge_features: (e, F') or None.
            targets: (1, B) rows of nodes, or (2, B) of both ends of pairs.
            labels: (1, B) classes, or 1 for a link and 0 for none.
        """
        states = self.states(node_features, edge_index, edge_features)
        if self.config.objective == "label":
            states = F.dropout(states, self.config.graph_config.dropout, self.training)
            logits = self.head(states[targets])  # (1, B, C)
            loss = None if labels is None else F.cross_entropy(logits[0], labels[0])
            return NodeOutput(loss, logits)
        logits = self.head(link_scores(states, targets)[..., None]).squeeze(-1)  # (1, B)
        loss = None if labels is None else F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return NodeOutput(loss, logits)


def link_scores(states: Tensor, targets: Tensor) -> Tensor:
    """Scaled inner products of pairs. (n, D), (2, B) -> (1, B)"""
    first, second = states[targets]  # (B, D) each
    return ((first * second).sum(-1) / states.shape[-1] ** 0.5)[None]


def shape_of(config: NodeConfig) -> dict[str, Any]:
    """What weights depend on."""
    return {**config.graph_config.to_dict(), "classes": config.classes, "objective": config.objective}
