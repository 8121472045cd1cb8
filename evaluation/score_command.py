"""`python -m evaluation score`, `compare` and `stark`: predictions or scores of nodes in, metrics out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.schema import read_jsonl, read_qa, write_json
from evaluation.metrics import chance, majority_baseline, per_question, score
from evaluation.ranked import stark_scores
from evaluation.report import check_same_ids, compare, read_predictions
from evaluation.significance import beyond_chance
from evaluation.text_metrics import TEXT_METRICS, TextModels, corpus_bleu, text_columns

Row = dict[str, Any]
SAID = ("exact_match", "token_f1")  # of which `compare` says a sentence, beside the metrics that were asked for


def add_score_commands(commands: Any) -> None:
    """The commands `score`, `compare` and `stark`."""
    one = _command(commands, "score", run_score, "predictions -> metrics")
    one.add_argument("--predictions", type=Path, required=True)
    one.add_argument("--output", type=Path, required=True, help="metrics.json to write")
    one.add_argument("--data", type=Path, help="the data set: checks the ids, adds `majority` and `chance`")
    one.add_argument("--split", default="test", help="the split that was predicted")
    two = _command(commands, "compare", run_compare, "what the second run gains over the first, beyond chance or not")
    two.add_argument("first", type=Path, metavar="A", help="a predictions file")
    two.add_argument("second", type=Path, metavar="B", help="a predictions file of the same questions")
    two.add_argument("--output", type=Path, required=True, help="JSON to write")
    for command in (one, two):
        add_text_flags(command)
    three = _command(commands, "stark", run_stark, "scores of retrieved nodes by STaRK's protocol over all candidates")
    three.add_argument("--data", type=Path, required=True, help="folder with graph/, qa/ and subgraphs/")
    three.add_argument("--split", default="test")
    three.add_argument("--candidate_types", nargs="+", metavar="TYPE", help="node types; default: every node")
    three.add_argument("--output", type=Path, required=True, help="metrics.json to write")


def _command(commands: Any, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    return command


def add_text_flags(command: argparse.ArgumentParser) -> None:
    """Flags of the metrics of long answers, which `columns_for` reads."""
    command.add_argument("--metrics", nargs="+", default=[], metavar="NAME",
                         help=f"more metrics, of long answers: {' '.join(TEXT_METRICS)}")
    command.add_argument("--bertscore_model", help="of bertscore: a folder, or a name on the Hub")
    command.add_argument("--bertscore_layers", type=int, help="layers of it (default: the library's choice, or all)")
    command.add_argument("--encoder", help="of similarity: as for `python -m data_processor embed`")
    command.add_argument("--nli_model", help="of entailment: a folder, or a name on the Hub")


def columns_for(arguments: argparse.Namespace) -> Callable[[list[Row]], dict[str, np.ndarray]]:
    """Rows -> the further metrics that the flags name."""
    flags = arguments.bertscore_model, arguments.bertscore_layers, arguments.encoder, arguments.nli_model
    return lambda rows: text_columns(rows, arguments.metrics, TextModels(*flags))


def run_score(arguments: argparse.Namespace) -> None:
    """`score`: writes and prints metrics.json; with the data set also its baselines."""
    predictions = read_predictions(arguments.predictions)
    metrics = score(predictions, columns_for(arguments)(predictions))
    if "bleu" in arguments.metrics:
        answers = [row["answers"] for row in predictions]
        metrics["corpus_bleu"] = corpus_bleu([row["prediction"] for row in predictions], answers)
    if arguments.data:
        test, train = questions_of(arguments.data, arguments.split), questions_of(arguments.data, "train")
        check_same_ids(predictions, test)
        metrics |= {"majority": majority_baseline(train, test), "chance": chance(train)}
    write_json(arguments.output, metrics)
    _print(metrics)


def questions_of(data: Path, split: str) -> list[Row]:
    """The questions of a split; ValueError if the folder has none."""
    path = data / "qa" / f"{split}.jsonl"
    if not path.is_file():
        raise ValueError(f"--data {data} has no qa/{path.name}. Give a dataset folder and --split, or leave it out.")
    return [row for _, row in read_jsonl(path)]


def run_compare(arguments: argparse.Namespace) -> None:
    """`compare`: writes and prints each metric's gain with its interval and tests, and says what is beyond chance."""
    first, second = read_predictions(arguments.first), read_predictions(arguments.second)
    gains = compare(first, second, columns_for(arguments))
    write_json(arguments.output, gains)
    compared = [name.removesuffix("_difference") for name in gains if name.endswith("_difference")]
    for name in compared:
        values = [gains[f"{name}_{key}"] for key in ("first", "second", "difference", "low", "high", "permutation_p")]
        print("{:24} {:.4f} -> {:.4f}  {:+.4f} [{:+.4f}, {:+.4f}]  p {:.4f}".format(name, *values))
    plain = per_question(first[:1])
    for name in (*SAID, *(name for name in compared if name not in plain)):
        print(beyond_chance(gains, name, len(first)))


def run_stark(arguments: argparse.Namespace) -> None:
    """`stark`: writes and prints the means over all questions."""
    graph = KnowledgeGraph.open(arguments.data / "graph")
    store = SubgraphStore.open(arguments.data / "subgraphs" / arguments.split)
    candidates = candidates_of(graph, arguments.candidate_types)
    path = arguments.data / "qa" / f"{arguments.split}.jsonl"
    pairs = read_qa(path)
    if not pairs:
        raise ValueError(f"{path} has no questions. Name another --split.")
    rows = []
    for pair in tqdm(pairs, unit="question", desc="score"):
        found = store.get(pair.id)
        scored = dict(zip(found.nodes.tolist(), found.node_scores.tolist(), strict=True))
        try:
            rows.append(stark_scores(scored, pair.answer_nodes, candidates))
        except ValueError as error:
            raise ValueError(f"Question {pair.id!r}: {error}") from error
    metrics = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    metrics |= {"count": float(len(rows)), "candidates": float(len(candidates))}
    write_json(arguments.output, metrics)
    _print(metrics)


def candidates_of(graph: KnowledgeGraph, types: list[str] | None) -> np.ndarray:
    """(C,) ids of the nodes of some types, or of all.

    Raises:
        ValueError: no node has one of the types.
    """
    if types is None:
        return np.arange(graph.num_nodes)
    known = list(graph.iter_types())
    chosen = np.array([number for number, kind in enumerate(known) if kind in types], dtype=np.int64)
    if not len(chosen):
        there = ", ".join(sorted({kind for kind in known if kind}))
        raise ValueError(f"No node is of type {' or '.join(types)}. The graph's types are: {there or 'none'}.")
    return chosen


def _print(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        print(f"{name:40} {value:.4f}")
