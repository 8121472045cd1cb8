"""Foreign formats, one file each: IMPORTERS[name](source, output) writes a graph or a dataset folder."""

from collections.abc import Callable

from data_processor.importers.conversations import import_conversations, iter_conversations
from data_processor.importers.expla_graphs import import_expla_graphs
from data_processor.importers.metaqa import import_metaqa
from data_processor.importers.rows import ImportReport
from data_processor.importers.triples import import_triples

__all__ = ["IMPORTERS", "ImportReport", "iter_conversations"]

IMPORTERS: dict[str, Callable[..., ImportReport]] = {
    "triples": import_triples,
    "conversations": import_conversations,
    "expla_graphs": import_expla_graphs,
    "metaqa": import_metaqa,
}
