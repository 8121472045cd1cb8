"""STaRK (Wu et al. 2024, arXiv 2404.13207): questions with official splits over a semi-structured knowledge base.

    python -m data_processor import stark --input stark_prime/ --output DATA
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np

from data_processor.graph_store import KnowledgeGraph, write_graph
from data_processor.importers.questions import read_object, write_questions
from data_processor.importers.rows import ImportReport, RowReader, require, text_lines
from data_processor.importers.stark_subgraphs import import_subgraphs, subgraph_files
from data_processor.importers.tables import read_edges, read_nodes, table_rows
from data_processor.importers.tensors import load_plain
from data_processor.importers.triple_table import TripleTable, readable
from data_processor.schema import QAPair, Rejected

SPLIT_FILES = {"train": "train", "val": "validation", "test": "test"}
NAMES = ("name", "title", "DisplayName", "brand_name", "category_name", "color_name")
SUMMARIES = ("summary", "description", "mondo_definition", "definition", "def", "mechanism_of_action")


class Base:
    """A knowledge base that was written as a graph: `places` finds the node of an id, `names` holds its name."""

    def __init__(self, graph: KnowledgeGraph, places: dict[str, int], kept: int) -> None:
        self.graph, self.places, self.kept = graph, places, kept
        self.names = list(graph.iter_names())


def import_stark(source: Path, output: Path) -> ImportReport:
    """Writes a dataset folder from STaRK's files, wherever below the folder they lie.

    Questions: stark_qa.csv (id, query, answer_ids) in the splits of train.index, val.index and test.index, each
    looked up by its id; a question in no split is left out as rejected. stark_qa_human_generated_eval.csv becomes
    qa/human.jsonl. Knowledge base: kg.csv as PrimeKG gives it; or edge_index.pt, edge_types.pt, node_info.json and
    edge_type_dict.json (the .pkl files of STaRK's processed folder written as JSON); or nodes.csv (id, name, type)
    and edges.csv. Where {train,val,test}_data.pt lie instead (subgraphs computed before), those are read.

    Args:
        source: the folder.
        output: the dataset folder: graph/, qa/ and rejected.jsonl; subgraphs/ when they are read.

    Raises:
        ValueError: questions, splits or knowledge base are missing.
    """
    if subgraph_files(require(source)):
        return import_subgraphs(source, output)
    with Rejected(output / "rejected.jsonl") as rejected:
        reader = RowReader(rejected)
        questions = the_file(source, "stark_qa.csv")
        if questions is None:
            raise ValueError(f"{source} holds no stark_qa.csv (and no *_data.pt); give the folder with STaRK's files")
        base = read_base(source, output / "graph", reader)
        splits = read_splits(source, questions, base, reader)
        human = the_file(source, "stark_qa_human_generated_eval.csv")
        if human is not None:
            splits["human"] = list(read_questions(human, base, reader, "human-")[0].values())
        sizes = write_questions(output, splits)
        kept = base.kept + sum(map(len, splits.values()))
        summary = f"{base.graph.num_nodes} nodes, {base.graph.num_edges} edges; questions: {sizes}; in {output}"
        return ImportReport(reader.count, kept, rejected.count, summary)


def the_file(source: Path, name: str) -> Path | None:
    """The one file of this name in a folder or below it, or None; ValueError when there are several."""
    found = sorted(source.rglob(name))
    if len(found) > 1:
        raise ValueError(f"{source} holds {name} twice: {found[0]} and {found[1]}; give the folder of one domain")
    return found[0] if found else None


def read_splits(source: Path, path: Path, base: Base, reader: RowReader) -> dict[str, list[QAPair]]:
    """The questions by split, in the order of the index files."""
    pairs, seen = read_questions(path, base, reader, "")
    splits: dict[str, list[QAPair]] = {}
    named: dict[str, str] = {}
    for name, split in SPLIT_FILES.items():
        index = the_file(source, f"{name}.index")
        if index is None:
            raise ValueError(f"{source} holds no {name}.index; put the official split files beside {path.name}")
        ids = dict.fromkeys(text_lines(index))
        twice = next((one for one in ids if one in named), None)
        if twice is not None:
            raise ValueError(f"question {twice} stands in {named[twice]}.index and {name}.index; splits must differ")
        named.update(dict.fromkeys(ids, name))
        for place, one in enumerate(ids, start=1):
            if one not in seen:
                reader.count += 1
                reader.reject(index, place, f"{path.name} has no question with this id", one)
        splits[split] = [pairs[one] for one in ids if one in pairs]
    for one in sorted(set(pairs) - set(named)):
        reader.reject(path, 0, "the question is in no split: its id stands in no .index file", one)
    return splits


def read_questions(path: Path, base: Base, reader: RowReader, prefix: str) -> tuple[dict[str, QAPair], set[str]]:
    """The usable questions of a file by id, and all ids in it; answers are the names of the nodes in `answer_ids`."""
    pairs: dict[str, QAPair] = {}
    seen: set[str] = set()
    for line, row in table_rows(path, reader):
        try:
            seen.add(row["id"])
            if row["id"] in pairs:
                raise ValueError(f"a second question with the id {row['id'][:80]!r}")
            pairs[row["id"]] = parse_question(row, base, prefix)
        except (ValueError, KeyError) as error:
            reader.reject(path, line, str(error), row)
    return pairs, seen


def parse_question(row: dict[str, str], base: Base, prefix: str) -> QAPair:
    """One question; ValueError says what is wrong with it."""
    try:
        ids = ast.literal_eval(row["answer_ids"])
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"'answer_ids' is no list: {row['answer_ids'][:80]!r}") from error
    if not isinstance(ids, list) or not ids or not row["query"]:
        raise ValueError("the question needs a 'query' and a list of 'answer_ids'")
    unknown = [one for one in ids if str(one) not in base.places]
    if unknown:
        raise ValueError(f"the answer {unknown[0]!r} is no node of the knowledge base")
    nodes = tuple(dict.fromkeys(base.places[str(one)] for one in ids))
    names = tuple(dict.fromkeys(base.names[node] for node in nodes))
    return QAPair(f"{prefix}{row['id']}", row["query"], names, nodes)


def read_base(source: Path, folder: Path, reader: RowReader) -> Base:
    """Reads the knowledge base in the first form of which there are files, and writes its graph."""
    triples, edges, tables = (the_file(source, name) for name in ("kg.csv", "edge_index.pt", "edges.csv"))
    if triples is not None:
        return read_primekg(triples, folder, reader)
    if edges is not None:
        return read_processed(edges.parent, folder, reader)
    if tables is None:
        forms = "kg.csv, or edge_index.pt with node_info.json, or nodes.csv with edges.csv"
        raise ValueError(f"{source} holds questions but no knowledge base; put {forms} there")
    nodes = read_nodes(tables.parent, reader)
    table = TripleTable(nodes, new_nodes=False)
    rows = read_edges(tables, table, reader)
    graph = write_graph(folder, nodes.values(), table.relation_records({}), rows)
    return Base(graph, table.nodes, len(nodes) + len(rows))


def read_primekg(path: Path, folder: Path, reader: RowReader) -> Base:
    """kg.csv of PrimeKG: a row an edge, with index, name, type and source of both ends."""
    nodes: dict[str, dict[str, Any]] = {}
    table = TripleTable()
    for line, row in table_rows(path, reader):
        ends = [row.get(f"{end}_index", "") for end in "xy"]
        reason = table.add([ends[0], row.get("display_relation", ""), ends[1]], line)
        if reason is not None:
            reader.reject(path, line, reason, row)
            continue
        for end, key in zip("xy", ends, strict=True):
            if key not in nodes:
                nodes[key] = primekg_node(row, end)
    edges = table.triples(path, reader.rejected)
    records = (nodes[key] for key in table.nodes)
    graph = write_graph(folder, records, table.relation_records({}), edges)
    return Base(graph, table.nodes, len(edges))


def primekg_node(row: dict[str, str], end: str) -> dict[str, Any]:
    """The node at one end ("x" or "y") of a row."""
    attributes = {"stark_id": row[f"{end}_index"], "id": row.get(f"{end}_id"), "source": row.get(f"{end}_source")}
    name, kind = row.get(f"{end}_name"), row.get(f"{end}_type")
    return {"name": name or row[f"{end}_index"], "type": kind or None, "attributes": attributes}


def read_processed(source: Path, folder: Path, reader: RowReader) -> Base:
    """STaRK's processed folder, where a node's id is its key in node_info, whatever "id" stands inside."""
    missing = [name for name in ("node_info.json", "edge_type_dict.json") if not (source / name).is_file()]
    if missing:
        stem = missing[0].removesuffix(".json")
        command = f"json.dump(pickle.load(open('{stem}.pkl', 'rb')), open('{stem}.json', 'w'), default=str)"
        advice = f"pickles can run code and are not read here; if you trust {stem}.pkl, write it as JSON: {command}"
        raise ValueError(f"{source} has no {missing[0]}; {advice}")
    names = read_object(source / "edge_type_dict.json")
    relations = [str(names.get(str(number), number)) for number in range(len(names))]
    ends, kinds = (load_plain(source / name).numpy() for name in ("edge_index.pt", "edge_types.pt"))
    info = read_object(source / "node_info.json")
    places = {key: place for place, key in enumerate(info)}
    by_number = np.full(int(ends.max(initial=0)) + 1, -1)
    for key, place in places.items():
        if key.isdecimal() and int(key) < len(by_number):
            by_number[int(key)] = place
    edges = np.stack([by_number[ends[0]], kinds, by_number[ends[1]]], axis=1).astype(np.int64)
    edges = usable(edges, ends, len(relations), source / "edge_index.pt", reader)
    kinds_by_number = node_kinds(source)
    records = (processed_node(key, value, kinds_by_number) for key, value in info.items())
    graph = write_graph(folder, records, [{"name": name, "text": readable(name)} for name in relations], edges)
    reader.count += len(info)
    return Base(graph, places, len(info) + len(edges))


def usable(edges: np.ndarray, ends: np.ndarray, relations: int, path: Path, reader: RowReader) -> np.ndarray:
    """The distinct edges (k, 3) whose nodes and relation are there; the others are rejected by their place from 1."""
    reader.count += len(edges)
    dangling = (edges < 0).any(axis=1) | (edges[:, 1] >= relations)
    first = np.zeros(len(edges), dtype=bool)
    first[np.unique(edges, axis=0, return_index=True)[1]] = True
    for row in np.flatnonzero(dangling | ~first).tolist():
        reason = "no such node or relation" if dangling[row] else "the same edge stands earlier"
        reader.reject(path, row + 1, reason, [int(ends[0, row]), int(edges[row, 1]), int(ends[1, row])])
    return edges[first & ~dangling]


def node_kinds(source: Path) -> dict[str, str]:
    """The types of nodes by id, where node_types.pt and node_type_dict.json (written from its .pkl) tell them."""
    numbers, names = source / "node_types.pt", source / "node_type_dict.json"
    if not numbers.is_file() or not names.is_file():
        return {}
    known = read_object(names)
    return {str(node): str(known.get(str(kind), kind)) for node, kind in enumerate(load_plain(numbers).tolist())}


def processed_node(key: str, info: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    """A node of node_info: its text is its name, type and, where the details hold one, its description."""
    name = next((str(info[part]) for part in NAMES if info.get(part)), key)
    kind = info.get("type") or kinds.get(key)
    details = info.get("details") if isinstance(info.get("details"), dict) else {}
    said = [str(details[part]) for part in SUMMARIES if details.get(part) and str(details[part]) != "nan"]
    known = {part: value for part, value in info.items() if part != "type" and value != name}
    record: dict[str, Any] = {"name": name, "type": kind, "attributes": {"stark_id": key, **known}}
    if said:
        record["text"] = f"{name}, {kind}: {said[0]}" if kind else f"{name}: {said[0]}"
    return record
