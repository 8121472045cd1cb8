"""MetaQA as this record trains and tests on it: every fact in both directions, and the facts near a question's entity.

    data = build_data(Path("../shared/data/metaqa"), Path("output/metaqa_1hop/data"), hops=1)
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zlib import crc32

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.metaqa_paths import Kind, Paths, asked_kinds
from data_processor.graph_store import KnowledgeGraph, embed_graph, write_graph, write_subgraphs
from data_processor.importers import IMPORTERS
from data_processor.importers.triple_table import readable
from data_processor.schema import QAPair, Subgraph, read_qa, to_json, write_json, write_jsonl
from data_processor.text_encoder import load_encoder

ENCODER = "hashing"
FACTS = 8  # facts of one relation that are listed at most
INVERSE = {
    "directed_by": "directed", "written_by": "wrote", "starred_actors": "acted_in", "release_year": "year_of",
    "in_language": "language_of", "has_tags": "tag_of", "has_genre": "genre_of", "has_imdb_rating": "rating_of",
    "has_imdb_votes": "votes_of",
}  # fmt: skip


@dataclass(frozen=True)
class Star:
    """Retrieval of one step: the facts of a question's entity."""

    parameters: ClassVar[dict[str, int]] = {"facts": FACTS}

    def find(self, graph: KnowledgeGraph, pair: QAPair) -> Subgraph:
        """See `star`."""
        return star(graph, pair)

    def learnt(self, graph: KnowledgeGraph, pair: QAPair, subgraph: Subgraph) -> QAPair:
        """See `first_listed`."""
        return first_listed(graph, pair, subgraph)


def build_data(source: Path, folder: Path, hops: int) -> Path:
    """Writes the dataset folder of the questions of one to three hops; returns it. What is finished is not done again.

    A question of train and validation keeps one answer, the one that is listed first (of more hops the path to it; the
    questions without one are left out and counted); test keeps all.
    """
    if (folder / "data.json").is_file():
        return folder
    IMPORTERS["metaqa"](source, folder, (hops,))
    graph = embed_graph(both_directions(KnowledgeGraph.open(folder / "graph")).path, load_encoder(ENCODER))
    if hops > 1:
        write_json(folder / "wordings.json", asked_kinds(graph, read_qa(folder / "qa" / "train.jsonl"), hops))
    report = {split: retrieve(graph, folder, split, retriever(folder)) for split in ("train", "validation", "test")}
    write_json(folder / "data.json", report)
    return folder


def retriever(folder: Path) -> Star | Paths:
    """What finds the facts for the questions of a dataset folder."""
    return Paths(read_wordings(folder)) if (folder / "wordings.json").is_file() else Star()


def read_wordings(folder: Path) -> dict[str, Kind]:
    """For every wording of a question the kind of path that it asks for."""
    wordings = json.loads((folder / "wordings.json").read_text(encoding="utf-8"))
    return {wording: tuple(kind) for wording, kind in wordings.items()}


def both_directions(graph: KnowledgeGraph) -> KnowledgeGraph:
    """The graph, written anew with the inverse of every fact under a relation of its own."""
    edges, count = np.array(graph.edges), graph.num_relations
    inverse = np.stack([edges[:, 2], edges[:, 1] + count, edges[:, 0]], axis=1)
    names = graph.relation_name(np.arange(count))
    relations = [{"name": name, "text": readable(name)} for name in [*names, *(INVERSE[name] for name in names)]]
    return write_graph(graph.path, list(node_records(graph)), relations, np.concatenate([edges, inverse]))


def node_records(graph: KnowledgeGraph) -> Iterator[dict[str, str]]:
    """Name and type of every node, as `write_graph` takes them."""
    ids = np.arange(graph.num_nodes)
    for name, kind in zip(graph.node_name(ids), graph.node_type(ids), strict=True):
        yield {"name": name, "type": kind}


def star(graph: KnowledgeGraph, pair: QAPair) -> Subgraph:
    """The facts that begin at a question's entity, in an order drawn by its id; of each relation the first few."""
    rows = graph.out_edges(np.array(pair.seed_nodes)).tolist()
    random.Random(crc32(pair.id.encode())).shuffle(rows)
    listed: dict[int, int] = defaultdict(int)
    kept = []
    for row in rows:
        relation = int(graph.edges[row, 1])
        listed[relation] += 1
        if listed[relation] <= FACTS:
            kept.append(row)
    nodes = dict.fromkeys([*pair.seed_nodes, *graph.edges[kept, 2].tolist()])
    return graph.subgraph(list(nodes), kept)


def retrieve(graph: KnowledgeGraph, folder: Path, split: str, method: Star | Paths) -> dict[str, float]:
    """Writes subgraphs/SPLIT and, but for test, the answers that are learnt; returns what was found."""
    path = folder / "qa" / f"{split}.jsonl"
    pairs = read_qa(path)
    found = [method.find(graph, pair) for pair in pairs]
    held = [np.isin(pair.answer_nodes, one.nodes) for pair, one in zip(pairs, found, strict=True)]
    report = {
        "questions": len(pairs),
        "answer_recall": float(np.mean([one.mean() for one in held])),
        "any_answer_recall": float(np.mean([one.any() for one in held])),
        "mean_nodes": float(np.mean([len(one.nodes) for one in found])),
        "mean_edges": float(np.mean([len(one.edges) for one in found])),
    }
    if split != "test":
        learnt = [method.learnt(graph, *both) for both in zip(pairs, found, strict=True)]
        found = [one for one, pair in zip(found, learnt, strict=True) if pair]
        pairs = [pair for pair in learnt if pair]
        report["left_out"] = len(learnt) - len(pairs)
        write_jsonl(path, map(to_json, pairs))
    manifest = {"graph": "../../graph", "method": type(method).__name__.lower(), "parameters": method.parameters}
    write_subgraphs(folder / "subgraphs" / split, [pair.id for pair in pairs], found, report, manifest)
    return report


def first_listed(graph: KnowledgeGraph, pair: QAPair, subgraph: Subgraph) -> QAPair:
    """The question with the answer alone that stands first among the facts; as it was where none stands there."""
    listed = [node for node in graph.edges[subgraph.edges, 2].tolist() if node in pair.answer_nodes]
    if not listed:
        return pair
    return dataclasses.replace(pair, answers=tuple(graph.node_name(listed[:1])), answer_nodes=(listed[0],))


def shuffle_names(data: Path, folder: Path, seed: int = 0) -> Path:
    """The test questions over a graph in which every entity bears the name of another of its type; returns the folder.

    Graph, question and answers are renamed alike, so whoever reads the facts answers as before, and whoever recalls
    them fails.
    """
    graph = KnowledgeGraph.open(data / "graph")
    records = list(node_records(graph))
    given = shuffled_within_types(records, seed)
    renamed = [{**record, "name": given[place]} for place, record in enumerate(records)]
    relations = [{"name": graph.relation_name([i])[0], "text": graph.relation_text([i])[0]} for i in
                 range(graph.num_relations)]  # fmt: skip
    embed_graph(write_graph(folder / "graph", renamed, relations, np.array(graph.edges)).path, load_encoder(ENCODER))
    pairs = [rename(pair, graph, given) for pair in read_qa(data / "qa" / "test.jsonl")]
    write_jsonl(folder / "qa" / "test.jsonl", map(to_json, pairs))
    retrieve(KnowledgeGraph.open(folder / "graph"), folder, "test", retriever(data))
    return folder


def shuffled_within_types(records: list[dict[str, str]], seed: int) -> list[str]:
    """For every node the name of another one of the same type: a random cycle through each type."""
    rng, groups = random.Random(seed), defaultdict(list)
    for place, record in enumerate(records):
        groups[record["type"]].append(place)
    given = [record["name"] for record in records]
    for group in groups.values():
        rng.shuffle(group)
        for place, other in zip(group, [*group[1:], group[0]], strict=True):
            given[place] = records[other]["name"]
    return given


def rename(pair: QAPair, graph: KnowledgeGraph, given: list[str]) -> QAPair:
    """The question with its entity and its answers under their new names."""
    seed = pair.seed_nodes[0]
    question = pair.question.replace(graph.node_name([seed])[0], given[seed], 1)
    return dataclasses.replace(pair, question=question, answers=tuple(given[node] for node in pair.answer_nodes))
