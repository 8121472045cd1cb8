"""A dataset folder through linking and retrieval: qa/ -> seed nodes in qa/, graph/ + qa/ -> subgraphs/."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_processor.files import MANIFEST, checksum
from data_processor.graph_store import Encoder, KnowledgeGraph, SubgraphStore, write_subgraphs
from data_processor.linking import Linker
from data_processor.retrieval import METHODS
from data_processor.retrieval.split import Retriever, retrieve_split
from data_processor.schema import QAPair, read_qa, to_json, write_jsonl
from data_processor.vector_index import ExactIndex, FaissIndex, open_index

SPLITS = ("train", "validation", "test")


def qa_files(data: Path, splits: Sequence[str] | None = None) -> dict[str, Path]:
    """The question files of a dataset folder by split: every qa/*.jsonl, train, validation and test first.

    Raises:
        ValueError: a split that was asked for is missing, or there is no question file at all.
    """
    names = sorted(path.stem for path in (data / "qa").glob("*.jsonl") if not path.name.startswith("."))
    there = [*(name for name in SPLITS if name in names), *(name for name in names if name not in SPLITS)]
    missing = [name for name in splits or () if name not in there]
    if missing or not there:
        found = f"it has {', '.join(there)}" if there else "import questions first"
        raise ValueError(f"{data}/qa has no {missing[0] if missing else 'train'}.jsonl; {found}")
    return {split: data / "qa" / f"{split}.jsonl" for split in splits or there}


def link_folder(
    data: Path, overwrite: bool, encoder: Encoder | None, similar: int, answers: bool = False
) -> dict[str, Counter]:
    """Writes the seed nodes of every question into qa/*.jsonl; returns counts by split.

    Args:
        data: the dataset folder.
        overwrite: link questions that have seeds already, too.
        encoder: the graph's; with `similar` > 0 a question without a name in it gets so many of the nearest nodes.
        answers: also give a question without answer nodes those that are named like an answer.
    """
    graph = KnowledgeGraph.open(data / "graph")

    @cache
    def linker() -> Linker:  # the names are read when the first question needs them
        return Linker(tqdm(graph.iter_names(), total=graph.num_nodes, desc="names", unit=" nodes", delay=2))

    counts = {}
    for split, path in qa_files(data).items():
        pairs, counts[split] = read_qa(path), Counter()
        for place, pair in enumerate(tqdm(pairs, desc=f"link {split}", unit=" questions", delay=2)):
            if answers and not pair.answer_nodes:
                nodes = tuple(dict.fromkeys(node for answer in pair.answers for node in linker().named(answer)))
                counts[split]["with answer nodes now"] += bool(nodes)
                pairs[place] = pair = dataclasses.replace(pair, answer_nodes=nodes)
            if pair.seed_nodes and not overwrite:
                counts[split]["had seeds"] += 1
                continue
            links = linker().link(pair.question)
            seeds = tuple(dict.fromkeys(node for link in links for node in link.nodes))
            kind = max((link.how for link in links), default="none")  # "normalised" stands above "exact"
            counts[split][kind] += 1
            pairs[place] = dataclasses.replace(pair, seed_nodes=seeds)
        if encoder is not None and similar:
            counts[split]["similar"] = add_similar(graph, pairs, encoder, similar)
            counts[split]["none"] -= counts[split]["similar"]
        write_jsonl(path, map(to_json, pairs))
    return counts


def add_similar(graph: KnowledgeGraph, pairs: list[QAPair], encoder: Encoder, similar: int) -> int:
    """Gives every question without seeds the `similar` nearest nodes; returns how many questions that were."""
    places = [place for place, pair in enumerate(pairs) if not pair.seed_nodes]
    if not places:
        return 0
    vectors = encoder.encode([pairs[place].question for place in places])
    _, nodes = node_index(graph, "exact").search(vectors, similar)
    for place, found in zip(places, nodes.tolist(), strict=True):
        pairs[place] = dataclasses.replace(pairs[place], seed_nodes=tuple(found))
    return len(places)


def node_index(graph: KnowledgeGraph, kind: str) -> ExactIndex | FaissIndex:
    """The index of a graph's node features; ValueError when it has none."""
    if graph.node_features is None:
        raise ValueError(f"{graph.path} is not embedded; run: python -m data_processor embed --graph {graph.path}")
    return open_index(graph.node_features, graph.path, graph.manifest["checksums"]["node_features.npy"], kind)


def checked_parameters(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the method's defaults; ValueError for one that the method does not have."""
    signature = list(inspect.signature(METHODS[method]).parameters.values())[4:]
    known = {parameter.name: parameter.default for parameter in signature}
    for name in parameters:
        if name not in known:
            raise ValueError(f"the method {method} has no --{name}; it has {', '.join('--' + key for key in known)}")
    return {**known, **parameters}


def retrieve_folder(
    data: Path,
    method: str,
    parameters: dict[str, Any],
    retriever_options: dict[str, Any],
    splits: Sequence[str] | None = None,
    within_given: bool = False,
) -> dict[str, dict[str, Any]]:
    """Writes subgraphs/{split}/ of a dataset folder; returns the reports by split.

    A split that was retrieved before with the same graph, questions and parameters is not retrieved again. Subgraphs
    that came with the questions are kept: they move from subgraphs/{split}/ to given/{split}/.

    Args:
        data: the dataset folder.
        method, parameters: of `METHODS`.
        retriever_options: further arguments of `Retriever`.
        within_given: search only the subgraph that came with a question (RoG's WebQSP and CWQ), not the whole graph.

    Raises:
        ValueError: a split or a parameter that is not there, or no subgraph came with the questions.
    """
    if within_given and method == "gfm":
        raise ValueError("the method gfm scores all nodes of the graph it was given; omit --within_given")
    graph = KnowledgeGraph.open(data / "graph")
    parameters = checked_parameters(method, parameters)
    retriever = Retriever(graph, METHODS[method], parameters, **retriever_options)
    described = {name: value for name, value in retriever_options.items() if isinstance(value, str | int)}
    reports = {}
    for split, path in qa_files(data, splits).items():
        manifest = {
            "graph": "../../graph",
            "graph_checksum": checksum(graph.path / MANIFEST),
            "questions_checksum": checksum(path),
            "method": method,
            "parameters": {**parameters, **described, **({"within_given": True} if within_given else {})},
            "weights": weights_of(parameters.get("model")),
        }
        folder, report = data / "subgraphs" / split, {}
        if is_done(folder, manifest):
            reports[split] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            continue
        given, pairs = given_subgraphs(data, split), read_qa(path)
        if within_given and given is None:
            raise ValueError(f"no subgraphs came with the questions of {data}/qa/{split}.jsonl; omit --within_given")
        within = (given.get(pair.id) for pair in pairs) if within_given and given is not None else None
        subgraphs = retrieve_split(retriever, graph, pairs, f"retrieve {split}", report, within)
        write_subgraphs(folder, [pair.id for pair in pairs], subgraphs, report, manifest)
        reports[split] = report
    return reports


def weights_of(model: str | None) -> str | None:
    """The checksum of the weights in a model's folder; None where no local folder is named."""
    path = Path(model or "") / "model.safetensors"
    return checksum(path) if model is not None and path.is_file() else None


def given_subgraphs(data: Path, split: str) -> SubgraphStore | None:
    """The subgraphs that came with the questions of a split, moved where retrieval does not replace them; or None."""
    folder, kept = data / "subgraphs" / split, data / "given" / split
    if is_done(folder, {"method": "given"}):
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        folder.rename(kept)
    return SubgraphStore.open(kept) if kept.is_dir() else None


def is_done(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the folder was finished with these entries in its manifest."""
    if not (folder / MANIFEST).is_file():
        return False
    written = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return all(written.get(name) == value for name, value in json.loads(json.dumps(manifest)).items())
