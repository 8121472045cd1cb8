"""The page about some runs: scores, training, cost, what differs between them, samples, where they come from."""

import json
import os
from dataclasses import replace
from pathlib import Path

from evaluation.page import Block, Section, Table, Text, write_page
from evaluation.report import Columns, Run
from evaluation.report_samples import samples
from evaluation.report_scores import FEW, score_sections
from evaluation.training_log import costs, curves

SAMPLES, DRAWN = 8, 3
# flags that only name places or steer the log
NO_DIFFERENCE = {"output_dir", "run_name", "logging_dir", "wandb_run_name", "local_rank"}


def write_report(
    runs: list[Run],
    output: str | Path,
    title: str = "Evaluation",
    note: str = "",
    more: Columns = lambda rows: {},
) -> Path:
    """Writes `output` (HTML) and the same as Markdown beside it; returns `output`.

    Args:
        note: a sentence at the top.
        more: further metrics of rows, see `report.compare`.
    """
    told = f"{len(runs)} runs: " if len(runs) > 1 else ""
    runs = shortened(runs)
    sections = build_sections(runs, more)
    about = Section("", [Text(note)] if note else [])
    return write_page(output, title, [about, *sections], told + ", ".join(run.name for run in runs))


def shortened(runs: list[Run]) -> list[Run]:
    """The runs by what their paths do not share."""
    if len({run.name for run in runs}) < 2:
        return runs
    above = os.path.commonpath([os.path.dirname(os.path.abspath(run.name)) for run in runs])
    return [replace(run, name=os.path.relpath(run.name, above)) for run in runs]


def build_sections(runs: list[Run], more: Columns = lambda rows: {}) -> list[Section]:
    """What a report says of some runs."""
    answered = [run for run in runs if run.predictions]
    differing = changed(runs) if len(runs) > 1 else []
    return [
        *score_sections(answered, more),
        Section("Training", curves({run.name: run.training for run in runs})),
        Section("Size and cost", cost_blocks(runs)),
        Section("What differs between the runs", [Table(turned(differing) if len(runs) > FEW else differing)]),
        samples(answered, SAMPLES, DRAWN, as_columns=len(runs) <= FEW) if answered else Section("", []),
        Section("Where the runs come from", [Table(origins(runs))]),
    ]


def cost_blocks(runs: list[Run]) -> list[Block]:
    """The table of costs, and what its columns mean."""
    table = Table(costs({run.name: run.training for run in runs}))
    note = (
        "Weights held: all parameters as they lie in memory, 4 and 8 bits as packed bytes with their scales. Saved: "
        "the weight files of the folder, without the base model. Peak: of the GPU's tensors, on a CPU of the process. "
        "Tokens: read in training, without padding. Minutes: of the last start, where a run was resumed."
    )
    return [table, Text(note, note=True)] if len(table.rows) > 1 else []


def changed(runs: list[Run]) -> list[list[str]]:
    """Arguments whose values are not the same in all runs."""
    names = sorted({name for run in runs for name in run.arguments} - NO_DIFFERENCE)
    values = {name: [json.dumps(run.arguments.get(name), ensure_ascii=False) for run in runs] for name in names}
    table = [["argument", *(run.name for run in runs)]]
    return table + [[name, *given] for name, given in values.items() if len(set(given)) > 1]


def turned(table: list[list[str]]) -> list[list[str]]:
    """The table with a row for each of its columns."""
    return [list(column) for column in zip(*table, strict=True)] if len(table) > 1 else []


def origins(runs: list[Run]) -> list[list[str]]:
    """Model, data, commit and machine of every run whose training is known."""
    table = [["run", "base model", "data", "seed", "commit", "machine"]]
    for run in runs:
        if run.training.record:
            record, arguments = run.training.record, run.arguments
            said = [arguments.get(name) for name in ("model_name_or_path", "data_path", "seed")]
            said += [(record.get("commit") or "not recorded")[:10], record.get("machine")]
            table.append([run.name, *("-" if one is None else str(one) for one in said)])
    return table
