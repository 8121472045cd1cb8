"""What answers a question of MetaQA: the question alone, the facts as text, the graph tokens, or both.

Four models begin at the same base, learn the same questions in the same order for as many steps, and differ only in
what stands in their prompts. The one that reads both is asked a second time with the names of the whole graph
exchanged: what it read answers as before, what it recalls is wrong.

    python benchmarks/metaqa_ablation.py --data ../shared/data/metaqa --hops 1

The base models are those of metaqa_qa.py, made here if they are not there.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shlex
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import finetune
from benchmarks.metaqa_base import build_base
from benchmarks.metaqa_data import build_data, shuffle_names
from benchmarks.metaqa_qa import RECIPES, TOKENS, WORK, Asking, hits, nearest_names, record, timed
from data_processor.dataset import GraphQADataset
from evaluation.metrics import paired_bootstrap
from modeling_graphllm import GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from training.record import commit

ARMS = {  # what a prompt shows
    "question_only": ("--use_graph", "False", "--use_text", "False"),
    "text_only": ("--use_graph", "False"),
    "graph_only": ("--use_text", "False"),
    "both": (),
}
SAMPLE = 8  # every so many-th test question is asked


def train(arm: str, hops: int, folder: Path) -> Path:
    """Runs the recipe of so many hops with the arm's prompts, once; returns the model's folder."""
    output = folder / arm
    if not (output / "metrics.json").is_file():
        base, data = str(WORK[hops] / "base"), str(WORK[hops] / "data")
        finetune.main([f"configs/metaqa_{hops}hop.yaml", "--model_name_or_path", base, "--data_path", data,
                       "--output_dir", str(output), "--save_strategy", "no", *ARMS[arm]])  # fmt: skip
    return output


def ask(arm: str, model: Path, data: Path, name: str, hops: int) -> dict[str, np.ndarray]:
    """Whether every asked question is answered (n,), and whether the most similar name of its subgraph would be."""
    from torch.utils.data import Subset

    test = GraphQADataset(data, "test", **{flag.removeprefix("--"): False for flag in ARMS[arm][::2]})
    loaded = GraphLLMForConditionalGeneration.from_pretrained(model)
    asking = Asking(loaded, GraphLLMProcessor.from_pretrained(model), TOKENS[hops])
    rows = asking.answer(Subset(test, range(0, len(test), SAMPLE)), model.parent / f"predictions_{name}.jsonl")
    return {"hits@1": hits(rows), "hits@1_nearest_name": hits(nearest_names(rows, test))}


def main(argv: list[str] | None = None) -> None:
    """Trains and asks the four, and writes the table."""
    import torch

    parser = argparse.ArgumentParser(description="What answers a question of MetaQA: question, text, graph or both.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/metaqa"))
    parser.add_argument("--hops", type=int, choices=(1, 2), default=1)
    parser.add_argument("--json", type=Path, default=Path("results/metaqa_ablation.json"))
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    hops = arguments.hops
    folder = Path(f"output/metaqa_ablation_{hops}hop")
    for fewer in range(1, hops + 1):
        data = build_data(arguments.data, WORK[fewer] / "data", fewer)
        build_base(data, WORK[fewer] / "base", RECIPES[fewer], fewer)
    found = {}
    with timed(folder) as total:
        for arm in ARMS:
            found[arm] = ask(arm, train(arm, hops, folder), WORK[hops] / "data", arm, hops)
        renamed = shuffle_names(WORK[hops] / "data", folder / "renamed")
        found["names_shuffled"] = ask("both", folder / "both", renamed, "names_shuffled", hops)
    metrics = {}
    for arm, one in found.items():
        metrics |= {f"{name}_{hops}hop_{arm}": float(value.mean()) for name, value in one.items()}
    metrics[f"questions_{hops}hop"] = len(found["both"]["hits@1"])
    for arm in found.keys() - {"both"}:
        change = paired_bootstrap(found[arm]["hits@1"], found["both"]["hits@1"])
        metrics |= {f"both_less_{arm}_{hops}hop_{name}": float(value) for name, value in change.items()}
    record(arguments.json, hops, {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, 1 of {os.cpu_count()} CPU cores, torch {torch.__version__}",
        "minutes": total["minutes"],
        "seeds": [RECIPES[hops].seed],
        "metrics": metrics,
    })  # fmt: skip
    for name, value in metrics.items():
        print(f"{name:44} {value:.4f}")


if __name__ == "__main__":
    main()
