"""The nodes most similar to the question, and the edges between them."""

from __future__ import annotations

import numpy as np

from data_processor.graph_store import KnowledgeGraph
from data_processor.retrieval.pagerank import best_nodes
from data_processor.schema import Subgraph


def similarity(
    graph: KnowledgeGraph,
    question: np.ndarray | None,
    seeds: np.ndarray,
    seed_scores: np.ndarray,
    max_nodes: int = 50,
) -> Subgraph:
    """The best `max_nodes` of the seeds, which a search by the question's embedding has found, and their edges.

    Args:
        question: not used beyond the search. seeds: (s,) node ids. seed_scores: (s,) their similarities.
        max_nodes: nodes of the subgraph.
    """
    ids, first = np.unique(np.asarray(seeds, dtype=np.int64), return_index=True)
    return best_nodes(graph, ids, np.asarray(seed_scores, dtype=np.float64)[first], max_nodes)
