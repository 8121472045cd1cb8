"""Flags and pairs -> the model of the stage `align`, and what stage `qa` takes over from its output."""

import logging
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_processor.dataset import GraphQADataset
from data_processor.node_pairs import NodePairs
from modeling_aligner import GraphAligner, GraphAlignerConfig
from modeling_graphllm import ONE_STATE, GraphConfig
from training.arguments import Arguments
from training.data import GRAPH_CONFIG_NAMES, explained
from training.rooms import AlignArguments

logger = logging.getLogger(__name__)

# what stage 2 may choose anew: no weight of stage 1 depends on it
FREE_FIELDS = {
    "dropout", "qformer_dropout", "max_nodes", "projector", "projector_hidden_dim", "projector_dropout",
    "projector_scale", "token_dropout",
}  # fmt: skip
ALIGN_CONFIG_NAMES = {
    "align_text_tokens": "max_text_tokens", "align_dim": "contrastive_dim", "align_temperature": "temperature",
    "align_smoothing": "label_smoothing", "contrastive_weight": "contrastive_weight",
    "matching_weight": "matching_weight", "captioning_weight": "captioning_weight", "hide_node": "hide_node",
}  # fmt: skip
LOSS_FIELDS = ("label_smoothing", "contrastive_weight", "matching_weight", "captioning_weight")


def graph_flags(arguments: Arguments) -> dict[str, Any]:
    """The fields of GraphConfig that flags name."""
    given = {name: value for name, value in asdict(arguments.graph).items() if value is not None}
    given.pop("graph_token")
    return {GRAPH_CONFIG_NAMES.get(name, name.removeprefix("graph_")): value for name, value in given.items()}


def build_aligner(arguments: Arguments, pairs: NodePairs, tokenizer: PreTrainedTokenizerBase) -> GraphAligner:
    """The model of --init_from, or a new one as wide as the graph's vectors.

    Raises:
        ValueError: vectors or words of another kind than --init_from was trained with, or a flag that would change
            it; graphs of one node and one state; a BERT that does not fit.
    """
    settings = {ours: vars(arguments.align)[flag] for flag, ours in ALIGN_CONFIG_NAMES.items()}
    if arguments.run.init_from:
        start = arguments.run.init_from
        config = GraphAlignerConfig.from_pretrained(start)
        check_vectors(start, config, pairs)
        check_unchanged(start, config, arguments, len(tokenizer))
        return GraphAligner.from_pretrained(start, **{name: settings[name] for name in LOSS_FIELDS})
    graph = GraphConfig(feature_dim=pairs.feature_dim, edge_feature_dim=pairs.edge_feature_dim,
                        **graph_flags(arguments) | {"readout": "qformer"})  # fmt: skip
    check_states(graph, pairs)
    encoder = pairs.graph.text_encoder
    config = GraphAlignerConfig(graph_config=graph, vocab_size=len(tokenizer), feature_encoder=encoder, **settings)
    model = GraphAligner(config)
    if arguments.align.qformer_init == "bert":
        name = arguments.model.model_name_or_path
        with explained(name):
            model.start_from_bert(name, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return model


def check_states(graph: GraphConfig, data: NodePairs | GraphQADataset) -> None:
    """Raises ValueError if the Q-Former would attend to a single state in every graph; warns if in most."""
    if graph.num_states * graph.states_per_vector > 1:
        return
    if isinstance(data, NodePairs):
        alone = sum(not one.neighbour_nodes for one in data.pairs)
    else:
        alone = sum(len(data.subgraph(pair).nodes) < 2 for pair in data.pairs)
    if alone == len(data):
        raise ValueError(ONE_STATE.format(f"Every graph of {data.path} has one node"))
    if 2 * alone > len(data):
        logger.warning("%d of %d graphs have one node: attention over its one state is constant there. "
                       "--states_per_vector 8 gives queries something to choose from.", alone, len(data))  # fmt: skip


def check_unchanged(start: str, config: GraphAlignerConfig, arguments: Arguments, words: int) -> None:
    """Raises ValueError for a tokenizer of other words than `start` reads, and for flags that it would not follow."""
    if words != config.vocab_size:
        raise ValueError(
            f"{start} reads texts by a tokenizer of {config.vocab_size} tokens, the one that was named has {words}. "
            "Leave --model_name_or_path out."
        )
    known = config.graph_config.to_dict() | config.to_dict()
    given = graph_flags(arguments)
    for flag, default in asdict(AlignArguments()).items():
        name, value = ALIGN_CONFIG_NAMES.get(flag), vars(arguments.align)[flag]
        if name and name not in LOSS_FIELDS and value != default:
            given[name] = value
    changed = [name for name, value in given.items() if known[name] != value]
    if changed:
        raise ValueError(
            f"{changed[0]} {given[changed[0]]} is not that of {start}, which has {known[changed[0]]}. Leave the flag "
            "out, or leave --init_from out to begin anew."
        )


def check_vectors(start: str, config: GraphAlignerConfig, data: NodePairs | GraphQADataset) -> None:
    """Raises ValueError if the graph's vectors are not of the kind that `start` was trained on."""
    known, width = config.feature_encoder, config.graph_config.feature_dim
    if data.graph.text_encoder != known or data.feature_dim != width:
        raise ValueError(
            f"The vectors of {data.graph.path} were made by {data.graph.text_encoder!r} (width {data.feature_dim}), "
            f"{start} reads those of {known!r} (width {width}). Embed the graph in the same way, or leave --init_from "
            "out."
        )


# ------------------------------------------------------------------------------------------------------------ stage 2
def aligned_config(arguments: Arguments, data: GraphQADataset) -> GraphConfig:
    """The reader of graphs of an alignment, with the projector that the flags describe.

    Raises:
        ValueError: vectors of another kind, or a flag that would change the shape of what was aligned.
    """
    start = arguments.alignment
    config = GraphAlignerConfig.from_pretrained(start)
    check_vectors(start, config, data)
    known, given = config.graph_config.to_dict(), graph_flags(arguments)
    changed = [name for name, value in given.items() if name not in FREE_FIELDS and known[name] != value]
    if changed:
        raise ValueError(
            f"{changed[0]} {given[changed[0]]} is not the shape of {start}, which has {known[changed[0]]}. Leave the "
            "flag out, or leave --init_from out to begin anew."
        )
    fields = {name: value for name, value in known.items() if name in GraphConfig.__annotations__}
    return GraphConfig(**fields | given)


def start_from_alignment(model: PreTrainedModel, folder: str) -> None:
    """Puts the encoder and the Q-Former of an alignment into a model that reads graphs the same way."""
    aligner = GraphAligner.from_pretrained(folder)
    model.graph_encoder.load_state_dict(aligner.graph_encoder.state_dict())
    qformer, aligned = model.graph_projector.qformer, aligner.qformer.state_dict()
    # its feed-forward networks of text are for stage 1 alone
    qformer.load_state_dict({name: aligned[name] for name in qformer.state_dict()})
