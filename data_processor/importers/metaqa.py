"""MetaQA (Zhang et al. 2018, arXiv 1709.04071): films, and questions one, two and three steps away from their entity.

    python -m data_processor import metaqa --input metaqa/ --output DATA [--hops 1 2]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from data_processor.graph_store import write_graph
from data_processor.importers.rows import ImportReport, RowReader, require
from data_processor.importers.triple_table import TripleTable
from data_processor.importers.triples import read_triples
from data_processor.schema import QAPair, Rejected, to_json, write_jsonl

TOPIC = re.compile(r"\[([^\[\]]+)\]")
FILE_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
HELD_BACK = 10  # without a train file one in so many dev questions is kept for validation, the rest is trained on
TYPES = {  # what stands at the other end of a relation whose source is a film
    "directed_by": "person", "written_by": "person", "starred_actors": "person", "release_year": "year",
    "in_language": "language", "has_tags": "tag", "has_genre": "genre", "has_imdb_rating": "rating",
    "has_imdb_votes": "votes",
}  # fmt: skip


def import_metaqa(source: Path, output: Path, hops: Sequence[int] = (1, 2, 3)) -> ImportReport:
    """Writes a dataset folder: the graph of kb.txt and the questions of the chosen hops, each of type "N-hop".

    Where N-hop/qa_train.txt is absent, qa_dev.txt is trained on, but for a tenth of it (by a checksum of the question)
    that becomes validation. The entity in [brackets] is the seed node; the question is written without brackets.

    Args:
        source: the folder with kb.txt and 1-hop/, 2-hop/, 3-hop/ (all files plain or .gz).
        output: the dataset folder: graph/, qa/ and rejected.jsonl.
        hops: which question sets.

    Raises:
        ValueError: a file that is missing.
    """
    with Rejected(output / "rejected.jsonl") as rejected:
        reader, table = RowReader(rejected), TripleTable()
        triples = read_triples(existing(source / "kb.txt"), table, reader)
        nodes = typed_nodes(table, triples.tolist())
        graph = write_graph(output / "graph", nodes, table.relation_records({}), triples)
        splits: dict[str, list[QAPair]] = {split: [] for split in FILE_SPLITS.values()}
        for hop in hops:
            read_hop(source / f"{hop}-hop", hop, table, reader, splits)
        for split, pairs in splits.items():
            write_jsonl(output / "qa" / f"{split}.jsonl", map(to_json, pairs))
        kept = len(triples) + sum(map(len, splits.values()))
        sizes = ", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items())
        summary = f"{graph.num_nodes} nodes, {graph.num_edges} edges; questions: {sizes}; in {output}"
        return ImportReport(reader.count, kept, rejected.count, summary)


def existing(path: Path) -> Path:
    """The file, or the same with .gz; ValueError when there is neither."""
    packed = path.with_name(path.name + ".gz")
    return packed if packed.is_file() else require(path)


def typed_nodes(table: TripleTable, triples: list[list[int]]) -> list[dict[str, Any]]:
    """Node records with a type: a film is what a triple starts from; a relation names its other end."""
    relations = list(table.relations)
    types = {tail: TYPES.get(relations[relation]) for _, relation, tail in reversed(triples)}
    types.update((head, "film") for head, _, _ in triples)
    return [{"name": name, "type": types[place]} for name, place in table.nodes.items()]


def read_hop(
    folder: Path, hop: int, table: TripleTable, reader: RowReader, splits: dict[str, list[QAPair]]
) -> None:
    """Reads the question files of one hop into the splits."""
    has_train = (folder / "qa_train.txt").is_file() or (folder / "qa_train.txt.gz").is_file()
    for name, split in FILE_SPLITS.items():
        if name == "train" and not has_train:
            continue
        path = existing(folder / f"qa_{name}.txt")
        for line, text in reader.lines(path):
            pair = parse_question(f"{hop}-hop-{name}-{line}", f"{hop}-hop", text, table.nodes)
            if isinstance(pair, str):
                reader.reject(path, line, pair, text)
            elif name == "dev" and not has_train and crc32(text.encode("utf-8")) % HELD_BACK:
                splits["train"].append(pair)
            else:
                splits[split].append(pair)


def parse_question(name: str, kind: str, text: str, nodes: dict[str, int]) -> QAPair | str:
    """The question of one line `question with [entity]<TAB>answer|answer`, or why it cannot be used."""
    question, tab, answers = text.partition("\t")
    topic = TOPIC.search(question)
    names = tuple(dict.fromkeys(answer.strip() for answer in answers.split("|") if answer.strip()))
    if not tab or not names:
        return "no answer behind a tab"
    if topic is None:
        return "no [entity] in the question"
    if topic[1] not in nodes:
        return f"the entity {topic[1][:80]!r} is not in the graph"
    answer_nodes = tuple(nodes[answer] for answer in names if answer in nodes)
    return QAPair(name, TOPIC.sub(r"\1", question).strip(), names, answer_nodes, (nodes[topic[1]],), type=kind)
