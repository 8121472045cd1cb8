"""Foreign formats, one file each: IMPORTERS[name](source, output) writes a graph or a dataset folder."""

from collections.abc import Callable

from data_processor.importers.conversations import import_conversations, iter_conversations
from data_processor.importers.expla_graphs import import_expla_graphs
from data_processor.importers.gfm_rag import import_gfm_rag
from data_processor.importers.graphml import import_graphml
from data_processor.importers.graphtranslator import import_graphtranslator
from data_processor.importers.metaqa import import_metaqa
from data_processor.importers.neo4j import import_neo4j
from data_processor.importers.npz import import_npz
from data_processor.importers.openie import import_openie
from data_processor.importers.pyg import import_pyg
from data_processor.importers.rows import ImportReport
from data_processor.importers.stark import import_stark
from data_processor.importers.triples import import_triples
from data_processor.importers.webqsp import import_webqsp

__all__ = ["IMPORTERS", "ImportReport", "iter_conversations"]

IMPORTERS: dict[str, Callable[..., ImportReport]] = {
    "triples": import_triples,
    "conversations": import_conversations,
    "expla_graphs": import_expla_graphs,
    "gfm_rag": import_gfm_rag,
    "graphml": import_graphml,
    "graphtranslator": import_graphtranslator,
    "metaqa": import_metaqa,
    "neo4j": import_neo4j,
    "npz": import_npz,
    "openie": import_openie,
    "pyg": import_pyg,
    "stark": import_stark,
    "webqsp": import_webqsp,
}
