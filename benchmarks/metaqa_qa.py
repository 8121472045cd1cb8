"""MetaQA through GraphLLM, from the raw files to Hits@1 on the test questions, on a CPU.

No pretrained language model is needed: a small one learns to read from texts in which every entity bears another's
name, then finetune.py trains it with the graph encoder on the dev questions (a tenth of them held back), and the test
questions are asked with graph and text, without either, and with all names of the graph shuffled.

    python benchmarks/metaqa_qa.py --data ../shared/data/metaqa --hops 1
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import finetune
from benchmarks.metaqa_base import Recipe, build_base
from benchmarks.metaqa_data import build_data, shuffle_names
from data_processor.dataset import GraphQADataset
from data_processor.schema import write_json
from evaluation.ablations import ABLATIONS
from evaluation.generation import generate_predictions
from evaluation.metrics import per_question
from evaluation.report import read_predictions
from modeling_graphllm import GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from training.record import commit

RECIPE = "configs/metaqa_1hop.yaml"
SAMPLE = 16  # ablations are asked every so many-th test question
TOKENS, BATCH = 16, 64
PUBLISHED = {  # Hits@1 of one hop, trained on the 96,106 questions of qa_train: table 3 of arXiv 2101.03737
    "KV-Mem": 0.962, "GraftNet": 0.970, "PullNet": 0.970, "SRN": 0.970, "EmbedKGQA": 0.975, "NSM": 0.971,
}  # fmt: skip


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


def train(folder: Path) -> None:
    """Runs the recipe, once."""
    output = folder / "model"
    if not (output / "metrics.json").is_file():
        finetune.main([RECIPE, "--data_path", str(folder / "data"), "--model_name_or_path", str(folder / "base"),
                       "--output_dir", str(output)])  # fmt: skip


def hits(model: Any, processor: Any, dataset: Any, path: Path, ablate: str = "none") -> np.ndarray:
    """Hits@1 of every question (n,): 1 where the generated name is one of the answers."""
    generate_predictions(model, processor, dataset, path, batch_size=BATCH, max_new_tokens=TOKENS, ablate=ablate)
    return per_question(read_predictions(path))["hits@1"]


def ask(folder: Path) -> dict[str, float]:
    """Asks the test questions, a sample of them under every ablation, and again with all names shuffled."""
    from torch.utils.data import Subset

    model = GraphLLMForConditionalGeneration.from_pretrained(folder / "model")
    processor = GraphLLMProcessor.from_pretrained(folder / "model")
    test = GraphQADataset(folder / "data", "test")
    whole = hits(model, processor, test, folder / "predictions.jsonl")
    sample = range(0, len(test), SAMPLE)
    figures = {
        "hits@1_1hop": float(whole.mean()),
        "hits@1_1hop_standard_error": float(whole.std() / np.sqrt(len(whole))),
        "questions_1hop": len(whole),
        "hits@1_1hop_sample": float(whole[::SAMPLE].mean()),
        "questions_1hop_sample": len(sample),
    }
    for ablate in ABLATIONS[1:]:
        path = folder / f"predictions_{ablate}.jsonl"
        figures[f"hits@1_1hop_{ablate}"] = float(hits(model, processor, Subset(test, sample), path, ablate).mean())
    renamed = GraphQADataset(shuffle_names(folder / "data", folder / "renamed"), "test")
    path = folder / "predictions_names_shuffled.jsonl"
    figures["hits@1_1hop_names_shuffled"] = float(hits(model, processor, Subset(renamed, sample), path).mean())
    return figures


def main(argv: list[str] | None = None) -> None:
    """Everything from the raw files to the result file."""
    import torch

    parser = argparse.ArgumentParser(description="Hits@1 on MetaQA with a language model trained from scratch.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/metaqa"))
    parser.add_argument("--hops", type=int, choices=(1,), default=1)
    parser.add_argument("--json", type=Path, default=Path("results/metaqa_qa.json"))
    parser.add_argument("--work", type=Path, default=Path("output/metaqa_1hop"))
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    recipe = Recipe()
    with timed(arguments.work) as total:
        data = build_data(arguments.data, arguments.work / "data")
        base = build_base(data, arguments.work / "base", recipe)
        train(arguments.work)
        figures = ask(arguments.work) | base
    counted = {name: value for name, value in figures.items() if name.startswith("hits@1")}
    write_json(arguments.json, counted | {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 of {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "minutes": total["minutes"],
        "seeds": [recipe.seed],
        "published_1hop": PUBLISHED,
        "metrics": figures,
    })  # fmt: skip
    for name, value in figures.items():
        print(f"{name:32} {value:.4f}")


if __name__ == "__main__":
    main()
