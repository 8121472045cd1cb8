"""The stage `graph`: an encoder trained on the graph itself, whose node states the later stages read."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import EvalPrediction, Trainer

from data_processor.graph_store import KnowledgeGraph
from data_processor.node_batches import (
    LinkBatches,
    NodeBatches,
    Reading,
    class_names,
    class_questions,
    classes_of,
    describe,
    labelled,
    split_links,
)
from data_processor.schema import QAPair, Rejected, atomic_write, write_jsonl
from evaluation.classification import link_metrics, majority_metrics, number_metrics, ranking_metrics
from evaluation.probe import linear_probe
from modeling_graphllm import READS_EDGES, GraphConfig
from training.arguments import Arguments
from training.data import GRAPH_CONFIG_NAMES, folder_of_rejected
from training.dry_run import stage_report
from training.gfm import NewBatches, the_only
from training.node_model import GraphEncoderForNodes, NodeConfig, link_scores, shape_of
from training.parts import Opened, Parts

logger = logging.getLogger(__name__)

STATES = "node_states.npy"
Batches = NodeBatches | LinkBatches


# ---------------------------------------------------------------------------------------------------------------- data
def open_batches(arguments: Arguments) -> Opened:
    """Links of the graph with some held out, or nodes with a class.

    Raises:
        ValueError: a graph without vectors, without links to hold out, or without classes.
    """
    graph, config = open_graph(arguments), encoder_config(arguments)
    size, training = arguments.node.nodes_per_batch, arguments.training
    links = split_links(graph, training.data_seed or 0)
    hidden = np.zeros(0, dtype=np.int64)
    if arguments.node.graph_objective == "link":
        held_out = np.concatenate([links["validation"], links["test"]])
        hidden = np.sort(held_out[:, 0] * graph.num_nodes + held_out[:, 1])
    # a convolution that weighs a neighbour by its degree needs the neighbour's own edges, too
    steps = config.num_layers + (config.encoder == "gcn")
    most = arguments.node.neighbours_per_node or None
    reading = Reading(graph, steps, most, config.encoder in READS_EDGES, hidden, training.seed)
    if arguments.node.graph_objective == "link":
        return Opened({name: LinkBatches(reading, pairs, size, name == "train") for name, pairs in links.items()})
    classes, data = classes_of(Path(arguments.data.path)), arguments.data
    return Opened({
        name: NodeBatches(reading, *usable(arguments, split, classes), size, name == "train")
        for name, split in (
            ("train", data.train_split), ("validation", data.validation_split), ("test", data.test_split),
        )
    })  # fmt: skip


def open_graph(arguments: Arguments) -> KnowledgeGraph:
    """The embedded graph of --data_path."""
    graph = KnowledgeGraph.open(Path(arguments.data.path) / "graph")
    if graph.node_features is None:
        raise ValueError(
            f"The graph in {graph.path} has no features. Run: python -m data_processor embed --graph {graph.path} "
            "--encoder hashing, or --vectors FILE.npy where there are any."
        )
    return graph


def usable(arguments: Arguments, split: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and class numbers of a split; questions that cannot be used are listed in rejected_SPLIT.jsonl."""
    folder = Path(arguments.data.path)
    nodes, labels, unusable = labelled(folder, split, classes)
    if arguments.training.process_index == 0:
        with Rejected(folder_of_rejected(arguments) / f"rejected_{split}.jsonl") as rejected:
            for name, why in unusable:
                rejected.add(folder / "qa" / f"{split}.jsonl", 0, why, name)
        if unusable:
            logger.warning("%d questions of %s are left out, reasons in %s", len(unusable), split, rejected.path)
    if not len(nodes):
        raise ValueError(f"{folder}/qa/{split}.jsonl holds no question about one node whose class is known.")
    return nodes, labels


# --------------------------------------------------------------------------------------------------------------- model
def encoder_config(arguments: Arguments) -> GraphConfig:
    """The encoder that the flags describe; the widths follow from the graph.

    Raises:
        ValueError: `none`, which has nothing to train.
    """
    given = {name: value for name, value in asdict(arguments.graph).items() if value is not None}
    settings = {GRAPH_CONFIG_NAMES.get(name, name.removeprefix("graph_")): value for name, value in given.items()}
    settings.pop("token")
    config = GraphConfig(**{"encoder": "sage", "num_layers": 2, **settings})
    if config.encoder == "none":
        raise ValueError(
            "--graph_encoder none has nothing to train: vectors that are there already are read as they are. Put them "
            "into the graph by `python -m data_processor embed --graph DATA/graph --vectors FILE`."
        )
    return config


def build(arguments: Arguments, opened: Opened) -> Parts:
    """The model of --init_from, or a new one, and its batches."""
    graph = opened.splits["train"].reading.graph
    config = encoder_config(arguments)
    config.feature_dim, config.edge_feature_dim = graph.node_features.shape[1], graph.relation_features.shape[1]
    objective = arguments.node.graph_objective
    whole = NodeConfig(
        graph_config=config,
        objective=objective,
        classes=classes_of(Path(arguments.data.path)) if objective == "label" else None,
        feature_dropout=arguments.node.feature_dropout,
        feature_encoder=graph.text_encoder,
    )
    return Parts(
        model=start_from(arguments.run.init_from, whole) if arguments.run.init_from else GraphEncoderForNodes(whole),
        splits={name: split for name, split in opened.splits.items() if name != "test"},
        test=opened.splits["test"],
        collator=the_only,
        write_companions=partial(write_companions, whole),
        compute_metrics=class_figures if objective == "label" else link_figures,
        prepare_metrics=first_class if objective == "label" else None,
        callbacks=[NewBatches(opened.splits["train"])],
    )


def start_from(folder: str, config: NodeConfig) -> GraphEncoderForNodes:
    """The encoder of an earlier output, for the same graph vectors, classes and shape."""
    before = shape_of(NodeConfig.from_pretrained(folder))
    changed = [name for name, value in shape_of(config).items() if before.get(name) != value and name in before]
    if changed:
        raise ValueError(
            f"--init_from {folder} has {changed[0]} {before[changed[0]]}, this run asks for "
            f"{shape_of(config)[changed[0]]}. Give the flags and the data of that run, or leave --init_from out."
        )
    return GraphEncoderForNodes.from_pretrained(folder, config=config)


def write_companions(config: NodeConfig, folder: Path) -> None:
    """What makes a folder of weights loadable."""
    config.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------------------- metrics
def first_class(logits: Tensor, labels: Tensor) -> Tensor:
    """(1, B, C) -> (1, B), the likeliest class: the Trainer gathers rows."""
    return logits.argmax(dim=-1)


def class_figures(prediction: EvalPrediction) -> dict[str, float]:
    """`accuracy` and `macro_f1` of an evaluation."""
    labels = prediction.label_ids.reshape(-1)
    known = labels >= 0
    return number_metrics(prediction.predictions.reshape(-1)[known], labels[known])


def link_figures(prediction: EvalPrediction) -> dict[str, float]:
    """`auc` and `average_precision` of an evaluation."""
    labels = prediction.label_ids.reshape(-1)
    known = labels >= 0
    return link_metrics(prediction.predictions.reshape(-1)[known], labels[known])


# ------------------------------------------------------------------------------------------------------ the rest of it
def dry_run(arguments: Arguments, parts: Parts) -> tuple[str, dict[str, float]]:
    """The parameter table, what a batch holds, and the steps of the run."""
    train = parts.splits["train"]
    first = "\n".join(f"{name:<24}{shape}" for name, shape in describe(train).items())
    return stage_report(arguments, parts.model, len(train), f"the first batch\n{first}")


def check(arguments: Arguments, parts: Parts) -> None:
    """Every parameter is trained: nothing can be marked wrongly."""
    assert all(one.requires_grad for one in parts.model.parameters())


def save(arguments: Arguments, parts: Parts, trainer: Trainer) -> None:
    """Weights and configuration, and the states of all nodes: node_states.npy."""
    folder = Path(arguments.training.output_dir)
    trainer.save_model(str(folder), _internal_call=True)
    if trainer.is_world_process_zero():
        write_companions(parts.model.config, folder)
        write_states(parts.model, parts.test.reading, arguments.node.nodes_per_batch, folder / STATES)


@torch.no_grad()
def write_states(model: GraphEncoderForNodes, reading: Reading, size: int, path: Path) -> None:
    """Writes the states (N, D) float32 of all nodes, `size` at a time; held-out links are not seen."""
    nodes, width = reading.graph.num_nodes, model.config.graph_config.output_dim
    model.eval()
    with atomic_write(path) as temporary:
        states = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(nodes, width))
        for start in tqdm(range(0, nodes, size), desc="node states", unit="batch", delay=2):
            seeds = np.arange(start, min(start + size, nodes))
            batch = {name: value.to(model.device) for name, value in reading.batch(seeds, start).items()}
            states[seeds] = model.states(**batch)[: len(seeds)].float().cpu().numpy()
        states.flush()


def predict(arguments: Arguments, parts: Parts, trainer: Trainer) -> dict[str, float]:
    """What the written states say: links held out, classes by a linear probe, and by the trained head."""
    folder, states = Path(arguments.training.output_dir), None
    if trainer.is_world_process_zero():
        if not arguments.training.do_train:
            write_states(parts.model, parts.test.reading, arguments.node.nodes_per_batch, folder / STATES)
        states = np.load(folder / STATES, mmap_mode="r")
    if states is None:
        return {}
    graph, metrics = parts.test.reading.graph, {}
    if isinstance(parts.test, LinkBatches):
        metrics |= link_signal(states, graph.node_features, parts.test)
    else:
        metrics |= head_signal(arguments, parts, states)
    return metrics | probe_signal(arguments, states, graph.node_features)


def link_signal(states: np.ndarray, features: np.ndarray, links: LinkBatches) -> dict[str, float]:
    """`link_auc` and `link_average_precision` of held-out links; `link_auc_features`: cosine of the nodes' vectors."""
    pairs = np.concatenate([links.pairs, links.negatives])
    labels = np.repeat([1, 0], [len(links.pairs), len(links.negatives)])
    found = {f"link_{name}": value for name, value in link_metrics(pair_scores(states, pairs), labels).items()}
    rows, places = np.unique(pairs, return_inverse=True)
    vectors = features[rows].astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    before = link_metrics(pair_scores(vectors, places.reshape(-1, 2)), labels)
    return found | {"link_auc_features": before["auc"]}


def pair_scores(vectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Inner products (k,) of the rows that pairs (k, 2) name."""
    rows, places = np.unique(pairs, return_inverse=True)
    states = torch.from_numpy(vectors[rows].astype(np.float32))
    return link_scores(states, torch.from_numpy(places.reshape(-1, 2).T.copy()))[0].numpy()


@torch.no_grad()
def head_signal(arguments: Arguments, parts: Parts, states: np.ndarray) -> dict[str, float]:
    """The trained classifier on the test nodes, its predictions.jsonl, and the majority class beside it."""
    model, classes, folder = parts.model, parts.model.config.classes, Path(arguments.data.path)
    rows = torch.from_numpy(states[parts.test.nodes]).to(model.device)
    order = model.head(rows).argsort(dim=-1, descending=True).cpu().tolist()
    ranked = [[classes[place] for place in row] for row in order]
    asked, _ = class_questions(folder, arguments.data.test_split, classes)
    write_jsonl(Path(arguments.training.output_dir) / "predictions.jsonl", map(answered, asked, ranked))
    gold = [classes[label] for label in parts.test.labels]
    train = [classes[label] for label in parts.splits["train"].labels]
    return ranking_metrics(ranked, gold) | majority_metrics(train, gold)


def answered(pair: QAPair, ranked: Sequence[str]) -> dict[str, Any]:
    """A row of predictions.jsonl."""
    row = {"id": pair.id, "question": pair.question, "prediction": ranked[0], "answers": list(pair.answers)}
    return row | {"ranked_answers": list(ranked)} | ({"type": pair.type} if pair.type else {})


def probe_signal(arguments: Arguments, states: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """`probe_accuracy` of the states and `probe_accuracy_features` of the nodes' vectors, where nodes have classes."""
    folder, data = Path(arguments.data.path), arguments.data
    splits = {"train": data.train_split, "validation": data.validation_split, "test": data.test_split}
    if not all((folder / "qa" / f"{split}.jsonl").is_file() for split in splits.values()):
        return {}
    classes = class_names(folder, data.train_split)
    rows = {name: labelled(folder, split, classes)[:2] for name, split in splits.items()}
    if len(classes) < 2 or not all(len(nodes) for nodes, _ in rows.values()):
        return {}
    before = linear_probe(features, rows, len(classes))
    return linear_probe(states, rows, len(classes)) | {f"{name}_features": value for name, value in before.items()}
