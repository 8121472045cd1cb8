"""Some questions of a report with what each run answered, and the subgraph that was retrieved for them drawn."""

import re
from pathlib import Path

from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.inspection import picture_of
from data_processor.schema import read_qa
from evaluation.metrics import exact_match
from evaluation.page import Block, Figure, Section, Table, Text
from evaluation.report import Row, Run

SHRUNK = 0.62  # of the sheet of a file: the column of a page is narrower
MARKS = {1.0: "right", 0.0: "wrong"}


def samples(runs: list[Run], count: int, drawn: int, as_columns: bool) -> Section:
    """`count` questions, half of them answered wrongly by the first run if it has as many; `drawn` of them drawn.

    Args:
        runs: those with predictions.
        as_columns: each run is a column; else a row below the question.
    """
    rows = runs[0].predictions["none"]
    right = [exact_match(row["prediction"], row["answers"]) for row in rows]
    wrong = spread([row for row, mark in zip(rows, right, strict=True) if not mark], count // 2)
    chosen = wrong + spread([row for row, mark in zip(rows, right, strict=True) if mark], count - len(wrong))
    given = {run.name: {row["id"]: row["prediction"] for row in run.predictions["none"]} for run in runs}
    table = [["question", "answer", *(given if as_columns else ["run", "answered"])]]
    for row in chosen:
        said = {name: answered(row, predictions.get(row["id"])) for name, predictions in given.items()}
        asked = [row.get("question", row["id"]), " | ".join(row["answers"])]
        table += [[*asked, *said.values()]] if as_columns else [[*asked, *pair] for pair in said.items()]
    note = (
        f"{len(wrong)} that {runs[0].name} answered wrongly and {len(chosen) - len(wrong)} that it answered rightly."
    )
    return Section("Samples", [Text(note, note=True), Table(table), *pictures(runs[0].data, spread(chosen, drawn))])


def spread(rows: list[Row], count: int) -> list[Row]:
    """So many of the rows, at even distances."""
    return rows[:: max(1, len(rows) // max(1, count))][:count]


def answered(row: Row, prediction: str | None) -> str:
    """What was answered, and whether it is right by exact match."""
    if prediction is None:
        return "not asked"
    return f"{prediction} ({MARKS[exact_match(prediction, row['answers'])]})"


def pictures(data: tuple[Path, str] | None, rows: list[Row]) -> list[Block]:
    """The subgraphs of the questions as they were retrieved, or why there are none."""
    if data is None or not (data[0] / "subgraphs" / data[1] / "manifest.json").is_file():
        return [Text("The data set of these predictions is not at hand, so no subgraph is drawn.", note=True)]
    folder, split = data
    pairs = {pair.id: pair for pair in read_qa(folder / "qa" / f"{split}.jsonl")}
    graph, store = KnowledgeGraph.open(folder / "graph"), SubgraphStore.open(folder / "subgraphs" / split)
    known = [row for row in rows if row["id"] in pairs and row["id"] in store]
    figures: list[Block] = []
    for row in known:
        pair, subgraph = pairs[row["id"]], store.get(row["id"])
        told = f"{pair.question} Answer: {' | '.join(pair.answers)}. Predicted: {row['prediction'] or 'nothing'}. "
        told += f"{len(subgraph.nodes)} nodes and {len(subgraph.edges)} edges were retrieved."
        figures.append(Figure(alone(picture_of(graph, pair, subgraph, SHRUNK), row["id"]), told))
    return figures


def alone(svg: str, name: str) -> str:
    """The drawing with an id of its own for the tip of its arrows: a page holds several."""
    tip = "tip-" + re.sub(r"\W", "-", name)
    return svg.replace('id="tip"', f'id="{tip}"').replace("url(#tip)", f"url(#{tip})")
