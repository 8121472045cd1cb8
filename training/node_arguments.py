"""The flags of the stage `graph`, which trains an encoder on the graph itself."""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg


@dataclass
class NodeArguments:
    graph_objective: Literal["link", "label"] = HfArg(
        default="link", help="Of --stage graph: tell linked nodes from others (needs nothing but the graph), or tell "
        "the class of a node, the answer of its question in qa/."
    )  # fmt: skip
    nodes_per_batch: int = HfArg(default=1024, help="Nodes, or links, that a batch of --stage graph asks for.")
    neighbours_per_node: int = HfArg(
        default=0, help="Most edges of a node that a batch of --stage graph reads, drawn anew each time; 0 for all."
    )
    feature_dropout: float = HfArg(default=0.0, help="Dropout of the nodes' own vectors in --stage graph.")
