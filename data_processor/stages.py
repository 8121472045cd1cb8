"""What became of the rows of every stage: in = kept + rejected, and each rejected row with its reason."""

from __future__ import annotations

from typing import Any

from data_processor.schema import Rejected


class Stages:
    """Counts of every stage, in the order of their first rows; rejected rows go to rejected.jsonl.

    Args:
        rejected: the open file.
        names: stages that stand in the counts even when no row came to them.
    """

    def __init__(self, rejected: Rejected, names: tuple[str, ...]) -> None:
        self.rejected = rejected
        self.counts: dict[str, dict[str, int]] = {name: {"in": 0, "kept": 0, "rejected": 0} for name in names}

    def keep(self, stage: str, rows: int = 1) -> None:
        """Counts rows that go on."""
        self.counts[stage]["in"] += rows
        self.counts[stage]["kept"] += rows

    def reject(self, stage: str, file: str, line: int, reason: str, row: Any) -> None:
        """Counts and records a row that ends here: `file` is its document, `line` the chunk's number from 1."""
        self.counts[stage]["in"] += 1
        self.counts[stage]["rejected"] += 1
        self.rejected.add(file, line, f"{stage}: {reason}", row)
