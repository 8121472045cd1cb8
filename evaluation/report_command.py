"""The command that writes a page: `python -m evaluation report RUN... --output page.html`."""

import argparse
from pathlib import Path
from typing import Any

from evaluation.report import read_run
from evaluation.report_page import write_report
from evaluation.score_command import add_text_flags, columns_for
from evaluation.sweep_page import RECORD, write_sweep_report


def add_report_command(commands: Any) -> None:
    """Adds `report` to the commands of the room."""
    text = "runs side by side, or a sweep, as one HTML page and as Markdown"
    page = commands.add_parser("report", help=text, description=text)
    page.set_defaults(run=run_report)
    page.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN",
        help="a folder with predictions.jsonl, a file of predictions, an output folder of finetune.py; or the folder "
        "of a sweep, alone",
    )  # fmt: skip
    page.add_argument("--note", default="", help="a sentence at the top of the page")
    add_text_flags(page)
    page.add_argument("--output", type=Path, required=True, help="page.html; page.md is written beside it")


def run_report(arguments: argparse.Namespace) -> None:
    """`report`: writes the page and its Markdown.

    Raises:
        ValueError: a sweep beside something else.
    """
    sweeps = [path for path in arguments.runs if (path / RECORD).is_file()]
    if sweeps and len(arguments.runs) > 1:
        raise ValueError(f"{sweeps[0]} is a sweep, which has a page of its own. Give it alone.")
    if sweeps:
        page = write_sweep_report(sweeps[0], arguments.output)
    else:
        runs = [read_run(path) for path in arguments.runs]
        page = write_report(runs, arguments.output, note=arguments.note, more=columns_for(arguments))
    print(f"{page} and {page.with_suffix('.md')}")
