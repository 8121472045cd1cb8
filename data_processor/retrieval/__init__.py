"""The part of the graph a question needs: METHODS[name](graph, question, seeds, seed_scores, **parameters)."""

from collections.abc import Callable

from data_processor.retrieval.gfm import gfm
from data_processor.retrieval.pagerank import pagerank, random_walk
from data_processor.retrieval.pcst import pcst
from data_processor.retrieval.similarity import similarity
from data_processor.schema import Subgraph

__all__ = ["METHODS"]

METHODS: dict[str, Callable[..., Subgraph]] = {
    "similarity": similarity,
    "pagerank": pagerank,
    "random_walk": random_walk,
    "pcst": pcst,
    "gfm": gfm,
}
