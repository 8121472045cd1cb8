"""What a graph says to a live question: linking, retrieval and documents, by the same code as for a data set's."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.files import MANIFEST
from data_processor.gfm_dataset import masked
from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.linking import Linker
from data_processor.retrieval import METHODS
from data_processor.retrieval.documents import by_walk, order
from data_processor.retrieval.folder import checked_parameters, node_index, qa_files
from data_processor.retrieval.gfm import hides_seeds, rank_documents
from data_processor.retrieval.split import Retriever
from data_processor.schema import QAPair, Subgraph, read_qa
from data_processor.text_encoder import TextEncoder, load_encoder

logger = logging.getLogger(__name__)

FIRST = ("test", "validation", "train")  # splits, in the order in which a question is looked for
SEEDS = {"similarity": "similar", "pcst": "similar"}  # where a method's seeds come from; the others start at names
TOP_K = 10  # similar nodes; also nodes from which documents are sought where the question names none
DOCUMENTS = 5
FALLBACK, FALLBACK_NODES = "pagerank", 50


@dataclass(frozen=True)
class Node:
    """A retrieved node; `seed`: the question names it."""

    id: int
    name: str
    kind: str | None
    score: float
    seed: bool


@dataclass(frozen=True)
class Edge:
    """A retrieved edge; `source` and `target` are places in the nodes of its `Evidence`."""

    source: int
    relation: str
    target: int
    score: float


@dataclass(frozen=True)
class Passage:
    """A document that bears on the question."""

    id: str
    title: str | None
    text: str
    score: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was retrieved for a question.

    Attributes:
        subgraph: as the prompt is made of it.
        nodes, edges, documents: the same in words, best first.
        named: whether the question names a node; otherwise the nodes nearest to its text were taken.
        method: how it was retrieved.
        text: whether the facts are shown to the model as text beside the graph.
    """

    subgraph: Subgraph
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    documents: tuple[Passage, ...]
    named: bool
    method: str
    text: bool = True

    @property
    def facts(self) -> list[tuple[str, str, str, float]]:
        """(head, relation, tail, score) of every edge, best first."""
        return [(self.nodes[e.source].name, e.relation, self.nodes[e.target].name, e.score) for e in self.edges]

    @property
    def scored(self) -> bool:
        """Whether the edges have scores; those of subgraphs that came with the data have none."""
        return any(edge.score for edge in self.edges)


@dataclass(frozen=True)
class Plan:
    """How subgraphs are made; `stored`: those of the data's own questions cannot be made again and are read."""

    method: str
    parameters: dict[str, Any]
    seed_source: str
    top_k: int
    stored: bool


def plan_for(data: Path, method: str | None, parameters: dict[str, Any] | None) -> Plan:
    """The method that is asked for, or else the one by which DATA/subgraphs was made.

    Raises:
        ValueError: an unknown method or parameter, or parameters without a method.
    """
    if method is None and parameters:
        raise ValueError(f"parameters {', '.join(parameters)} belong to no method; name the method, too")
    if method is not None:
        if method not in METHODS:
            raise ValueError(f"the method {method!r} is not known; choose one of {', '.join(sorted(METHODS))}")
        wanted = checked_parameters(method, parameters or {})
        if method == "gfm" and wanted["model"] is None:
            raise ValueError("the method gfm needs the parameter model, the folder of a trained graph retriever")
        return Plan(method, wanted, SEEDS.get(method, "linked"), TOP_K, stored=False)
    written, report = recorded(data)
    if written.get("method") not in METHODS:
        nodes = math.ceil(report.get("mean_nodes") or FALLBACK_NODES)
        made = f"were made by {written['method']!r}, which is no method of retrieval" if written else "is not there"
        logger.warning(
            "%s %s: questions that do not stand in %s are answered from the %d nodes that %s finds. Name a method to "
            "choose another.", data / "subgraphs", made, data / "qa", nodes, FALLBACK,
        )  # fmt: skip
        return Plan(FALLBACK, checked_parameters(FALLBACK, {"max_nodes": nodes}), "linked", TOP_K, stored=True)
    used = dict(written["parameters"])
    seeds, top_k = used.pop("seed_source", "linked"), used.pop("top_k", TOP_K)
    return Plan(written["method"], used, seeds, top_k, stored=used.pop("within_given", False))


def recorded(data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(manifest, report) of the subgraphs of a split; two empty ones where nothing was retrieved."""
    for split in FIRST:
        folder = data / "subgraphs" / split
        if (folder / MANIFEST).is_file():
            files = (folder / MANIFEST, folder / "report.json")
            return tuple(json.loads(file.read_text(encoding="utf-8")) for file in files)
    return {}, {}


class EvidenceFinder:
    """Evidence for live questions on the graph of a dataset folder.

    A question of the folder's own qa/, word for word, starts at its recorded seeds, and where its subgraph came with
    the data (or was sought within a part that did) it gets that one; every other question is linked and retrieved, as
    is one that qa/ asks of several seeds in the same words.

    Args:
        data: a folder with graph/ and, as far as there are any, qa/ and subgraphs/.
        method, parameters: of `retrieval.METHODS`; by default those of subgraphs/.
        index: the search for similar nodes: "exact", "hnsw" or "ivf".

    Raises:
        ValueError: no graph, an unknown method or parameter.
    """

    def __init__(
        self,
        data: str | Path,
        method: str | None = None,
        parameters: dict[str, Any] | None = None,
        index: str = "exact",
    ) -> None:
        self.data = Path(data)
        self.graph = KnowledgeGraph.open(self.data / "graph")
        self.plan = plan_for(self.data, method, parameters)
        self._index = index
        self._retrievers: dict[bool, Retriever] = {}

    @cached_property
    def _encoder(self) -> TextEncoder:
        return load_encoder(self.graph.text_encoder)

    @cached_property
    def _linker(self) -> Linker:
        return Linker(self.graph.iter_names())

    @cached_property
    def _known(self) -> dict[str, tuple[str, QAPair]]:
        """Question -> (split, record), without those that are asked of several seeds in the same words."""
        files = qa_files(self.data) if (self.data / "qa").is_dir() else {}
        known: dict[str, tuple[str, QAPair]] = {}
        ambiguous = set()
        for split in sorted(files, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
            for pair in read_qa(files[split]):
                _, first = known.setdefault(pair.question, (split, pair))
                if first.seed_nodes != pair.seed_nodes:
                    ambiguous.add(pair.question)
        return {question: found for question, found in known.items() if question not in ambiguous}

    def examples(self, count: int) -> list[str]:
        """So many questions of the data's own, spread over its test split; none where it has none."""
        splits = {split for split, _ in self._known.values()}
        best = next((split for split in (*FIRST, *sorted(splits)) if split in splits), None)
        first = [question for question, (split, _) in self._known.items() if split == best]
        return first[:: max(1, len(first) // count)][:count]

    def find(self, question: str) -> Evidence:
        """What the graph says to a question.

        Raises:
            ValueError: an empty question, or one that names no node of a graph without features.
        """
        if not question.strip():
            raise ValueError("the question is empty; ask about something in the graph")
        split, pair = self._known.get(question, (None, None))
        seeds = pair.seed_nodes if pair else ()
        seeds = seeds or tuple(dict.fromkeys(node for link in self._linker.link(question) for node in link.nodes))
        method = self.plan.method
        if pair and self.plan.stored and (self.data / "subgraphs" / split / MANIFEST).is_file():
            subgraph, method = SubgraphStore.open(self.data / "subgraphs" / split).get(pair.id), f"subgraphs/{split}"
        else:
            ((subgraph, _),) = self._retriever(question, seeds).retrieve([question], [seeds])
        documents = self._documents(question, seeds or subgraph.nodes[:TOP_K].tolist())
        return described(self.graph, subgraph, seeds, documents, method, pair is None or pair.text)

    def about(self, name: str) -> Evidence:
        """What the graph says about a node: the subgraph that retrieval finds from it.

        Raises:
            ValueError: no node has this name.
        """
        seeds = self._linker.named(name)
        if not seeds:
            raise ValueError(f"no node of {self.graph.path} is called {name!r}; give a name as the graph has it")
        ((subgraph, _),) = self._retriever(name, seeds).retrieve([name], [seeds])
        return described(self.graph, subgraph, seeds, self._documents(name, seeds), self.plan.method, True)

    def _retriever(self, question: str, seeds: Sequence[int]) -> Retriever:
        """Reads vectors only where the method or a question without a name needs them."""
        by_vector = not seeds or self.plan.seed_source != "linked" or self.plan.method in ("similarity", "pcst", "gfm")
        if by_vector and self.graph.text_encoder is None:
            raise ValueError(
                f"{question!r} names no node of {self.graph.path}, and the graph is not embedded, so that near ones "
                f"cannot be sought; use a name of the graph, or run: python -m data_processor embed --graph "
                f"{self.graph.path}"
            )
        if by_vector not in self._retrievers:
            search = {"encoder": self._encoder, "index": node_index(self.graph, self._index)} if by_vector else {}
            self._retrievers[by_vector] = Retriever(
                self.graph, METHODS[self.plan.method], self.plan.parameters, self.plan.seed_source,
                top_k=self.plan.top_k, worded=self._worded if self._hides_seeds else None, **search,
            )  # fmt: skip
        return self._retrievers[by_vector]

    @cached_property
    def _hides_seeds(self) -> bool:
        return self.plan.method == "gfm" and hides_seeds(self.plan.parameters["model"])

    def _worded(self, question: str, seeds: Sequence[int]) -> str:
        return masked(question, self.graph.node_name(list(seeds)))

    def _documents(self, question: str, seeds: Sequence[int]) -> tuple[Passage, ...]:
        """The best documents: the trained retriever's where it is the method, else those that a walk meets."""
        if not self.graph.num_documents or not len(seeds):
            return ()
        if self.plan.method == "gfm":
            read = self._worded(question, seeds) if self._hides_seeds else question
            vectors = self._encoder.encode([read])
            (found,) = rank_documents(self.graph, vectors, [seeds], self.plan.parameters["model"], DOCUMENTS)
        else:
            scores = by_walk(self.graph, seeds)
            found = [(row, float(scores[row])) for row in order(scores, DOCUMENTS).tolist() if scores[row] > 0]
        texts = self.graph.documents([row for row, _ in found])
        return tuple(
            Passage(one.id, one.title, one.text, score) for one, (_, score) in zip(texts, found, strict=True)
        )


def described(
    graph: KnowledgeGraph, subgraph: Subgraph, seeds: Sequence[int], documents: tuple[Passage, ...], method: str,
    text: bool,
) -> Evidence:  # fmt: skip
    """A subgraph in words, with the documents that go with it."""
    edge_index, relations = graph.local(subgraph)
    node_columns = (
        subgraph.nodes.tolist(), graph.node_name(subgraph.nodes), graph.node_type(subgraph.nodes),
        subgraph.node_scores.tolist(), np.isin(subgraph.nodes, seeds).tolist(),
    )  # fmt: skip
    edge_columns = (edge_index[0].tolist(), graph.relation_name(relations), edge_index[1].tolist())
    nodes = tuple(Node(*values) for values in zip(*node_columns, strict=True))
    edges = tuple(Edge(*values) for values in zip(*edge_columns, subgraph.edge_scores.tolist(), strict=True))
    return Evidence(subgraph, nodes, edges, documents, bool(len(seeds)), method, text)
