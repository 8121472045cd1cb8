"""A subgraph in words: triples that parse back, or two CSV tables; whole rows are cut to a token budget."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

SEPARATOR = " | "


class Row(NamedTuple):
    """One line of text: the edge or node (`kind`) at `index` of the subgraph, and the node rows it leans on."""

    kind: str
    index: int
    text: str
    needs: tuple[int, ...] = ()


def quote(name: str) -> str:
    """`name` as it stands in a line of triples: itself, or a JSON string where it could be misread."""
    plain = name and SEPARATOR not in name and "\n" not in name and "\r" not in name
    if plain and name[0] not in '"|' and name[-1] != "|":
        return name
    return json.dumps(name, ensure_ascii=False)


def parse_triples(text: str) -> list[tuple[str, ...]]:
    """The rows of a "triples" text: (head, relation, tail) for an edge, (name,) for a node that stands alone.

    Raises:
        ValueError: a line that `to_text` cannot have written.
    """
    return [tuple(parse_line(line)) for line in text.split("\n") if line]


def parse_line(line: str) -> list[str]:
    """The names of one line of a "triples" text."""
    names, place = [], 0
    while True:
        if line.startswith('"', place):
            name, end = json.JSONDecoder().raw_decode(line, place)
        else:
            end = line.find(SEPARATOR, place)
            end = len(line) if end < 0 else end
            name = line[place:end]
        names.append(name)
        if end == len(line):
            break
        if not line.startswith(SEPARATOR, end):
            raise ValueError(f"{line[:80]!r} is no row of triples: {SEPARATOR!r} must follow {name[:40]!r}")
        place = end + len(SEPARATOR)
    if len(names) not in (1, 3):
        raise ValueError(f"{line[:80]!r} has {len(names)} fields; a row has 3 (head | relation | tail) or 1 (a node)")
    return names


def triple_rows(names: Sequence[str], relations: Sequence[str], edge_index: np.ndarray) -> list[Row]:
    """Rows `head | relation | tail`, one an edge, and one for every node without an edge; best first, both in turn.

    Args:
        names: the n node names of the subgraph, best first.
        relations: the e relation names of its edges, best first.
        edge_index: (2, e) positions in `names`.
    """
    heads, tails = edge_index.tolist()
    edges = [
        Row("edge", place, SEPARATOR.join((quote(names[head]), quote(relation), quote(names[tail]))))
        for place, (head, relation, tail) in enumerate(zip(heads, relations, tails, strict=True))
    ]
    touched = set(heads) | set(tails)
    alone = [Row("node", place, quote(name)) for place, name in enumerate(names) if place not in touched]
    return in_turn(edges, alone)


def table_rows(texts: Sequence[str], relations: Sequence[str], edge_index: np.ndarray) -> list[Row]:
    """CSV rows of the two tables, best first, nodes and edges in turn; an edge needs the rows of its two nodes."""
    nodes = [Row("node", place, csv_line(place, text)) for place, text in enumerate(texts)]
    heads, tails = edge_index.tolist()
    edges = [
        Row("edge", place, csv_line(head, relation, tail), (head, tail))
        for place, (head, relation, tail) in enumerate(zip(heads, relations, tails, strict=True))
    ]
    return in_turn(nodes, edges)


def in_turn(first: list[Row], second: list[Row]) -> list[Row]:
    """Two ranked lists merged by relative rank, so that a cut takes the same share of both."""
    ranked = [((place + 1) / len(rows), row) for rows in (first, second) for place, row in enumerate(rows)]
    return [row for _, row in sorted(ranked, key=lambda pair: pair[0])]


def csv_line(*fields: str | int) -> str:
    """One line of CSV without its end; quotes, commas and newlines are escaped by the csv rules."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def join_triples(rows: Sequence[Row]) -> str:
    """The text of kept rows: edges best first, then the nodes that stand alone."""
    ordered = sorted(rows, key=lambda row: (row.kind, row.index))
    return "\n".join(row.text for row in ordered)


def join_tables(rows: Sequence[Row]) -> str:
    """The text of kept rows: `node_id,node_attr`, then `src,edge_attr,dst`, ids local to the subgraph."""
    ordered = sorted(rows, key=lambda row: row.index)
    if not ordered:
        return ""
    nodes = [row.text for row in ordered if row.kind == "node"]
    edges = [row.text for row in ordered if row.kind == "edge"]
    return "\n".join(["node_id,node_attr", *nodes, "", "src,edge_attr,dst", *edges])


def cut_rows(rows: list[Row], join: Callable[[Sequence[Row]], str], max_tokens: int, tokenizer: Any) -> list[Row]:
    """The longest beginning of `rows` whose joined text has at most `max_tokens` tokens; no row is cut inside.

    Args:
        rows: best first; a row's `needs` are node rows that come with it.
        join: `join_triples` or `join_tables`.
        tokenizer: a Hugging Face tokenizer, called as tokenizer(texts, add_special_tokens=False).
    """
    node_rows = {row.index: row for row in rows if row.kind == "node"}
    lengths = dict(zip(rows, row_lengths([row.text for row in rows], tokenizer), strict=True))
    groups, taken = [], set()
    for row in rows:
        wanted = dict.fromkeys([*(node_rows[place] for place in row.needs), row])
        group = [one for one in wanted if one not in taken]
        taken.update(group)
        groups.append(group)
    totals = np.cumsum([sum(lengths[row] for row in group) for group in groups])
    count = int(np.searchsorted(totals, max_tokens, side="right"))
    while True:
        kept = [row for group in groups[:count] for row in group]
        if count == 0 or row_lengths([join(kept)], tokenizer, end="")[0] <= max_tokens:
            return kept
        count -= 1


def row_lengths(texts: Sequence[str], tokenizer: Any, end: str = "\n") -> list[int]:
    """Tokens of each text with its line end."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer([text + end for text in texts], add_special_tokens=False)["input_ids"]]
