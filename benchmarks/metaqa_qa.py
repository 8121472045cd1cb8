"""MetaQA through GraphLLM, from the raw files to Hits@1 on the test questions, on a CPU.

No pretrained language model is needed: a small one learns to read from texts in which every entity bears another's
name, then finetune.py trains it with the graph encoder on the dev questions (a tenth of them held back), and the test
questions are asked with graph and text, without either, and with all names of the graph shuffled. A question of two
hops is answered by the path to the answer; what stands at its end counts.

    python benchmarks/metaqa_qa.py --data ../shared/data/metaqa --hops 1
    python benchmarks/metaqa_qa.py --data ../shared/data/metaqa --hops 2    # goes on from the base model of one hop
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import finetune
from benchmarks.metaqa_base import Recipe, build_base
from benchmarks.metaqa_data import build_data, shuffle_names
from data_processor.dataset import GraphQADataset
from data_processor.schema import write_json
from evaluation.ablations import ABLATIONS, Example
from evaluation.generation import generate_predictions
from evaluation.metrics import Row, per_question
from evaluation.report import read_predictions
from modeling_graphllm import GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from training.record import commit

SAMPLE = 16  # ablations are asked every so many-th test question
ASKED = {1: 1, 2: 1, 3: 4}  # and without ablation every so many-th
BATCH = 64
PUBLISHED = {  # Hits@1, trained on all of qa_train, 96,106 to 118,980 questions a hop: table 3 of arXiv 2101.03737
    1: {"KV-Mem": 0.962, "GraftNet": 0.970, "PullNet": 0.970, "SRN": 0.970, "EmbedKGQA": 0.975, "NSM": 0.971},
    2: {"KV-Mem": 0.827, "GraftNet": 0.948, "PullNet": 0.999, "SRN": 0.951, "EmbedKGQA": 0.988, "NSM": 0.999},
    3: {"KV-Mem": 0.489, "GraftNet": 0.777, "PullNet": 0.914, "SRN": 0.752, "EmbedKGQA": 0.948, "NSM": 0.989},
}  # fmt: skip
WORK = {hops: Path(f"output/metaqa_{hops}hop") for hops in (1, 2, 3)}
RECIPES = {  # of the base models, each going on from the one before
    1: Recipe(),
    2: Recipe(start=str(WORK[1] / "base"), steps=3000),
    3: Recipe(start=str(WORK[2] / "base"), steps=450, warmup_steps=30),
}
TOKENS = {1: 16, 2: 40, 3: 60}  # of an answer at most


@contextmanager
def timed(folder: Path) -> Iterator[dict[str, float]]:
    """Minutes of this and of every earlier start of the program, which goes on where it stopped: {"minutes"}."""
    path = folder / "minutes.json"
    total = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"minutes": 0.0}
    begun = time.monotonic()
    try:
        yield total
    finally:
        total["minutes"] += (time.monotonic() - begun) / 60
        write_json(path, total)


def train(folder: Path, hops: int) -> None:
    """Runs the recipe, once."""
    output = folder / "model"
    if not (output / "metrics.json").is_file():
        finetune.main([f"configs/metaqa_{hops}hop.yaml", "--data_path", str(folder / "data"), "--model_name_or_path",
                       str(folder / "base"), "--output_dir", str(output)])  # fmt: skip


@dataclass(frozen=True)
class Asking:
    """The trained model and how it is asked."""

    model: GraphLLMForConditionalGeneration
    processor: GraphLLMProcessor
    tokens: int

    def answer(self, dataset: Sequence[Example], path: Path, ablate: str = "none") -> list[Row]:
        """The predictions, also written to `path`; of a path its end is the answer."""
        generate_predictions(self.model, self.processor, dataset, path, BATCH, self.tokens, ablate)
        return [row | {"prediction": row["prediction"].rpartition(" | ")[2]} for row in read_predictions(path)]

    def hits(self, dataset: Sequence[Example], path: Path, ablate: str = "none") -> float:
        """Hits@1: the share of questions whose generated name is one of the answers."""
        return float(hits(self.answer(dataset, path, ablate)).mean())


def hits(rows: list[Row]) -> np.ndarray:
    """1 where the predicted name is one of the answers (n,)."""
    return per_question(rows)["hits@1"]


def nearest_names(rows: list[Row], dataset: GraphQADataset) -> list[Row]:
    """The rows with the most similar name of a question's subgraph in the place of what was generated."""
    found, pairs = [], {pair.id: pair for pair in dataset.pairs}
    for row in rows:
        names = dataset.graph.node_name(dataset.subgraph(pairs[row["id"]]).nodes)
        found.append(row | {"prediction": get_close_matches(row["prediction"], names, 1, 0.0)[0]})
    return found


def ask(folder: Path, hops: int) -> dict[str, float]:
    """Asks the test questions, or many of them, a sample under every ablation, and again with all names shuffled."""
    from torch.utils.data import Subset

    model = GraphLLMForConditionalGeneration.from_pretrained(folder / "model")
    asking = Asking(model, GraphLLMProcessor.from_pretrained(folder / "model"), TOKENS[hops])
    test = GraphQADataset(folder / "data", "test")
    rows = asking.answer(Subset(test, range(0, len(test), ASKED[hops])), folder / "predictions.jsonl")
    whole, sample = hits(rows), range(0, len(test), SAMPLE)
    figures = {
        "hits@1": float(whole.mean()),
        "hits@1_standard_error": float(whole.std() / np.sqrt(len(whole))),
        "hits@1_nearest_name": float(hits(nearest_names(rows, test)).mean()),
        "questions": len(whole),
        "hits@1_sample": float(whole[:: SAMPLE // ASKED[hops]].mean()),
        "questions_sample": len(sample),
    }
    for ablate in ABLATIONS[1:]:
        figures[f"hits@1_{ablate}"] = asking.hits(Subset(test, sample), folder / f"predictions_{ablate}.jsonl", ablate)
    renamed = GraphQADataset(shuffle_names(folder / "data", folder / "renamed"), "test")
    path = folder / "predictions_names_shuffled.jsonl"
    figures["hits@1_names_shuffled"] = asking.hits(Subset(renamed, sample), path)
    return figures


def with_hops(figures: dict[str, float], hops: int) -> dict[str, float]:
    """The figures under names that tell the hops: hits@1_zero -> hits@1_2hop_zero."""
    named = {}
    for name, value in figures.items():
        stem, _, rest = name.partition("_")
        named["_".join(part for part in (stem, f"{hops}hop", rest) if part)] = value
    return named


def record(path: Path, hops: int, run: dict[str, Any]) -> None:
    """Writes the run of one number of hops into the result file, beside the other's."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    runs = dict(sorted((known.get("runs", {}) | {f"{hops}hop": run}).items()))
    metrics = {name: value for one in runs.values() for name, value in one["metrics"].items()}
    latest = {name: run[name] for name in ("commit", "machine", "seeds")}
    write_json(path, {name: value for name, value in metrics.items() if name.startswith("hits@1")} | latest | {
        "command": " && ".join(one["command"] for one in runs.values()),
        "minutes": sum(one["minutes"] for one in runs.values()),
        "metrics": metrics,
        "runs": runs,
    })  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Everything from the raw files to the result file."""
    import torch

    parser = argparse.ArgumentParser(description="Hits@1 on MetaQA with a language model trained from scratch.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/metaqa"))
    parser.add_argument("--hops", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--json", type=Path, default=Path("results/metaqa_qa.json"))
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    hops, recipe = arguments.hops, RECIPES[arguments.hops]
    work, earlier = WORK[hops], 0.0
    for fewer in range(1, hops):
        data = build_data(arguments.data, WORK[fewer] / "data", fewer)
        earlier += build_base(data, WORK[fewer] / "base", RECIPES[fewer], fewer)["base_minutes"]
    with timed(work) as total:
        data = build_data(arguments.data, work / "data", hops)
        base = build_base(data, work / "base", recipe, hops)
        train(work, hops)
        shown = json.loads((data / "data.json").read_text(encoding="utf-8"))["test"]
        held = {f"{name}_of_facts_{hops}hop": shown[name] for name in ("answer_recall", "any_answer_recall")}
        figures = with_hops(ask(work, hops) | base, hops) | held
    record(arguments.json, hops, {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 of {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "minutes": total["minutes"] + earlier,
        "seeds": [recipe.seed],
        "published": PUBLISHED[hops],
        "metrics": figures,
    })  # fmt: skip
    for name, value in figures.items():
        print(f"{name:32} {value:.4f}")


if __name__ == "__main__":
    main()
