"""Rows of foreign text files: bytes to lines to fields; what is no row is rejected with its line number."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from data_processor.schema import Rejected

LINE_LIMIT = 1 << 20  # bytes: a longer line is damage, no name is so long
SAMPLE_LINES = 200  # looked at to find out how a file separates its fields
DELIMITERS = ("\t", "|", ",")


class ImportReport(NamedTuple):
    """What an import read and what became of it: rows = kept + rejected."""

    rows: int
    kept: int
    rejected: int
    summary: str


class RowReader:
    """Reads files row by row; `count` is the number of rows seen, good and bad.

    Args:
        rejected: takes the rows that cannot be read.
    """

    def __init__(self, rejected: Rejected) -> None:
        self.rejected = rejected
        self.count = 0

    def lines(self, path: Path, blank: bool = False) -> Iterator[tuple[int, str]]:
        """Yields (line number from 1, line without its end) of a text file, plain or .gz.

        Blank lines are no rows; with `blank` they are yielded, but not counted.
        """
        with open_bytes(path) as file:
            bar = tqdm(bounded_lines(file), desc=path.name, unit=" lines", delay=2)
            for number, (raw, length) in enumerate(bar, start=1):
                line = self._decode(path, number, raw, length) if raw.strip() else "" if blank else None
                if line is not None:
                    yield number, line

    def _decode(self, path: Path, number: int, raw: bytes, length: int) -> str | None:
        self.count += 1
        if length > LINE_LIMIT:
            self.reject(path, number, f"a line of {length} bytes; the limit is {LINE_LIMIT}", repr(raw[:200]))
            return None
        try:
            return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            self.reject(path, number, f"not UTF-8 ({error.reason} at byte {error.start})", repr(raw[:200]))
            return None

    def fields(self, path: Path, delimiter: str, quoted: bool = False) -> Iterator[tuple[int, list[str]]]:
        """Yields (line number, fields).

        A comma file, and with `quoted` any other, may quote fields as CSV does, also over several lines.
        """
        quoted = quoted or delimiter == ","
        rows = self._csv_rows(path, delimiter) if quoted else self._split_rows(path, delimiter)
        return ((number, [field.strip() for field in fields]) for number, fields in rows)

    def _split_rows(self, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        return ((number, line.split(delimiter)) for number, line in self.lines(path))

    def _csv_rows(self, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(LINE_LIMIT)
        numbers: list[int] = []
        reader = csv.reader(remembered(self.lines(path, blank=True), numbers), delimiter=delimiter)
        while True:
            numbers.clear()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self.count -= len(numbers) - 1
                self.reject(path, numbers[0], f"not CSV ({error})", "")
                continue
            if numbers:  # else the line was blank
                self.count -= len(numbers) - 1  # a row of several lines is one row
                yield numbers[0], fields

    def reject(self, path: Path, line: int, reason: str, row: object) -> None:
        """Puts a row that was counted among the rejected."""
        self.rejected.add(path, line, reason, row)


def open_bytes(path: Path) -> IO[bytes]:
    """A file to read bytes from, plain or .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def bounded_lines(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields (line, its length in bytes); of a line above LINE_LIMIT only the beginning is kept in memory."""
    for raw in iter(partial(file.readline, LINE_LIMIT + 2), b""):
        length, end = len(raw), raw
        while length > LINE_LIMIT and end and not end.endswith(b"\n"):
            end = file.readline(LINE_LIMIT)
            length += len(end)
        yield raw, length


def read_text(path: Path) -> str:
    """The text of a file that fits into memory; ValueError when it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def text_lines(path: Path) -> list[str]:
    """The lines of a file that fits into memory, without spaces around them; blank ones are left out."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def remembered(lines: Iterable[tuple[int, str]], numbers: list[int]) -> Iterator[str]:
    """The lines with their ends, the numbers of those that are not blank noted down."""
    for number, line in lines:
        if line:
            numbers.append(number)
        yield line + "\n"


def find_delimiter(path: Path, fields: int) -> str:
    """The delimiter (tab, | or comma) by which most of the first lines have so many fields.

    Raises:
        ValueError: no line of the sample has.
    """
    with open_bytes(path) as file:
        first = islice(bounded_lines(file), SAMPLE_LINES)
        sample = [raw.decode("utf-8", errors="replace") for raw, length in first if length <= LINE_LIMIT]
    csv.field_size_limit(LINE_LIMIT)
    counts = {delimiter: sum(len(split(line, delimiter)) == fields for line in sample) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: counts[delimiter])
    if counts[best] == 0:
        raise ValueError(
            f"{path}: none of the first {len(sample)} lines has {fields} fields separated by tab, '|' or comma; "
            f"a triple stands in one line as head, relation, tail"
        )
    return best


def split(line: str, delimiter: str) -> list[str]:
    """The fields of one line for the look at a sample; an unfinished quote counts as none."""
    try:
        return next(csv.reader([line])) if delimiter == "," else line.split(delimiter)
    except (csv.Error, StopIteration):
        return []


def require(path: Path) -> Path:
    """The path, when there is something; ValueError otherwise."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; check --input")
    return path
