"""What a trained graph network finds for a question: entities, the edges that made it so, and documents.

    python -m data_processor retrieve --data DATA --method gfm --model MODEL
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.retrieval.pagerank import random_walk
from data_processor.retrieval.similarity import similarity
from data_processor.schema import Subgraph

if TYPE_CHECKING:
    import torch

    from modeling_gfm import GFMForRetrieval

logger = logging.getLogger(__name__)


def gfm(
    graph: KnowledgeGraph,
    question: np.ndarray | None,
    seeds: np.ndarray,
    seed_scores: np.ndarray,
    model: str | None = None,
    max_nodes: int = 50,
    candidates: int = 1500,
    top: int = 10,
    least_similarity: float = 0.3,
) -> Subgraph:
    """The best entities and the edges that contributed most to their scores, seeds included.

    The nodes that a walk from the seeds meets most are scored; where the model holds unreached nodes at zero this is
    what it gives them on the whole graph, as far as the cut to `candidates` lets messages through. An edge's score is
    its importance (`GFMForRetrieval.evidence`), a node's the model's logit. Edges come in by importance, with their
    ends, until there are `max_nodes` nodes. Without a seed the nodes nearest to the question's text stand instead.

    Args:
        question: (F,) embedding of the question by the graph's encoder; for a model with question_attention
            (1 + t, F): behind it those of its t tokens.
        seeds, seed_scores: (s,) node ids and 1 for those that the question names, cosines for those that are similar.
        model: folder or Hub name of a `GFMForRetrieval`.
        max_nodes: nodes of the subgraph. candidates: nodes that are scored.
        top: best entities, whose scores the edges are judged by.
        least_similarity: seeds with a lower score are none.

    Raises:
        ValueError: no model, one of another text encoder than the graph's, or one that reads tokens and got none.
    """
    if model is None or question is None:
        raise ValueError("the method gfm needs an embedded graph and --model, the folder of a trained graph retriever")
    kept = np.asarray(seed_scores) >= least_similarity
    if not kept.any():
        logger.warning("no entity of the question is in %s; its nodes are ranked by text alone", graph.path)
        return similarity(graph, np.atleast_2d(question)[0], seeds, seed_scores, max_nodes)
    seeds, seed_scores = np.asarray(seeds)[kept], np.asarray(seed_scores)[kept]
    network = attached(model, graph)
    steps = network.config.num_layers
    near = random_walk(graph, None, seeds, seed_scores, max_nodes=candidates, steps=steps)
    scores, importances = score_part(network, graph, near, question, seeds, top)
    return strongest(graph, near, scores, importances, seeds, max_nodes, top)


def score_part(
    network: GFMForRetrieval, graph: KnowledgeGraph, part: Subgraph, question: np.ndarray, seeds: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """(logits (n,) of the nodes, importances (e,) of the edges of one part of the graph)."""
    import torch

    edge_index, relations = graph.local(part)
    places = np.flatnonzero(np.isin(part.nodes, seeds))
    found = network.evidence(
        graph_index=torch.zeros(1, dtype=torch.long),
        seed_nodes=torch.from_numpy(places),
        seed_batch=torch.zeros(len(places), dtype=torch.long),
        **read_by(network, question),
        edge_index=torch.from_numpy(edge_index),
        edge_relations=torch.from_numpy(relations),
        node_batch=torch.zeros(len(part.nodes), dtype=torch.long),
        top=top,
    )
    return found[0].numpy(), found[1].numpy()


def strongest(
    graph: KnowledgeGraph, part: Subgraph, scores: np.ndarray, importances: np.ndarray, seeds: np.ndarray,
    max_nodes: int, top: int,
) -> Subgraph:  # fmt: skip
    """The `top` best nodes of a part and the seeds, then edges by importance until there are `max_nodes` nodes.

    Args:
        scores: (n,) of part.nodes. importances: (e,) of part.edges; edges of none, or that spoke against, stay out.
    """
    edge_index, _ = graph.local(part)
    chosen = np.zeros(len(part.nodes), dtype=bool)
    chosen[np.flatnonzero(np.isin(part.nodes, seeds))] = True
    chosen[np.argsort(-scores, kind="stable")[: min(top, max_nodes)]] = True
    edges, count = [], int(chosen.sum())
    for edge in np.argsort(-importances, kind="stable").tolist():
        source, target = edge_index[0, edge], edge_index[1, edge]
        new = int(not chosen[source]) + int(source != target and not chosen[target])
        if importances[edge] <= 0:
            break
        if count + new <= max_nodes:
            chosen[[source, target]] = True
            edges.append(edge)
            count += new
    places = np.flatnonzero(chosen)
    return graph.subgraph(part.nodes[places], part.edges[edges], scores[places], importances[edges])


def rank_documents(
    graph: KnowledgeGraph, questions: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], model: str, most: int = 20
) -> list[list[tuple[int, float]]]:
    """For every question the best documents: (row, score), best first; none for a question without a seed.

    Args:
        questions: of each as for `gfm`. seeds: node ids of each. model: as for `gfm`. most: documents a question.

    Raises:
        ValueError: a graph without documents.
    """
    import torch

    from modeling_gfm import rank_documents as ranked

    network, found = attached(model, graph), []
    for question, nodes in zip(questions, seeds, strict=True):
        if not len(nodes):
            found.append([])
            continue
        logits = score_whole(network, torch.tensor(nodes, dtype=torch.long), question)
        config = network.config
        order, scores = ranked(logits, network.graphs[0], config.ranker, config.top_entities)
        found.append(list(zip(order[0, :most].tolist(), scores[0, :most].tolist(), strict=True)))
    return found


def score_whole(network: GFMForRetrieval, seeds: torch.Tensor, question: np.ndarray) -> torch.Tensor:
    """(1, N) scores of one question: near its seeds (s,) where that gives the same as the whole graph."""
    import torch

    place, read = torch.zeros(1, dtype=torch.long), read_by(network, question)
    if network.scores_near:
        return network.score_near(place, seeds, **read)
    with torch.no_grad():
        return network(place, seeds, torch.zeros_like(seeds), **read).logits


def read_by(network: GFMForRetrieval, question: np.ndarray) -> dict[str, torch.Tensor]:
    """One question (F,), or (1 + t, F) with its tokens, as the arguments of the model that hold a question.

    Raises:
        ValueError: the model reads tokens, and there are none.
    """
    import torch

    rows = torch.from_numpy(np.atleast_2d(np.asarray(question, dtype=np.float32)))
    if not network.config.question_attention:
        return {"question_embeds": rows[:1]}
    if len(rows) < 2:
        raise ValueError(
            f"{network.name_or_path} reads the single tokens of a question (question_attention), but one vector "
            "of it was given; give (1 + t, F): the question's vector, then those of encode_tokens"
        )
    mask = torch.ones(1, len(rows) - 1, dtype=torch.bool)
    return {"question_embeds": rows[:1], "question_tokens": rows[None, 1:], "question_token_mask": mask}


def attached(model: str, graph: KnowledgeGraph) -> GFMForRetrieval:
    """The model with this graph as its only one.

    Raises:
        ValueError: the graph was embedded by another encoder.
    """
    network = load(model)
    if not network.graphs or network.graphs[0].name != graph_name(graph):
        wanted = network.config.feature_encoder
        if graph.relation_features is None or wanted not in (None, graph.text_encoder):
            by = "is not embedded" if graph.relation_features is None else f"was embedded by {graph.text_encoder}"
            raise ValueError(f"{graph.path} {by}, {model} reads {wanted}; run embed with --encoder {wanted}")
        network.attach_graphs([as_gfm_graph(graph)])
    return network


def as_gfm_graph(graph: KnowledgeGraph) -> Any:
    """The graph as the model holds it."""
    from modeling_gfm import GFMGraph

    return GFMGraph.from_arrays(
        np.array(graph.edges), graph.num_nodes, graph.num_relations,
        np.asarray(graph.relation_features, dtype=np.float32),
        graph.document_nodes, graph.num_documents, graph_name(graph),
    )  # fmt: skip


def graph_name(graph: KnowledgeGraph) -> str:
    """What tells one graph from another: its folder and the checksum of its edges."""
    return f"{graph.path} ({graph.manifest['checksums']['edges.npy'][:8]})"


def hides_seeds(model: str) -> bool:
    """Whether the model was trained on questions in which the names of the seeds are hidden."""
    return load(model).config.mask_seeds


def reads_tokens(model: str) -> bool:
    """Whether the model reads the vectors of a question's single tokens."""
    return load(model).config.question_attention


@lru_cache(maxsize=1)
def load(model: str) -> GFMForRetrieval:
    """The model in a folder or on the Hub, ready to score."""
    from modeling_gfm import GFMForRetrieval

    return GFMForRetrieval.from_pretrained(model).eval()
