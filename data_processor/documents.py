"""Texts as they are found: a folder of .txt files, one file, or documents.jsonl, read piece by piece."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_processor.schema import Document, from_json

BLOCK = 1 << 20  # bytes read at a time
Reject = Callable[[str, int, str, Any], None]  # file, line, reason, row

LINES = (".jsonl",)
TEXTS = (".txt", ".md")


class Source(NamedTuple):
    """Where one document stands: a text file, or a line of documents.jsonl whose text is there already."""

    id: str
    title: str | None
    path: Path
    text: str | None


class Documents:
    """The documents of an input, in a fixed order.

    Args:
        path: a folder (with its subfolders), a .txt or .md file, or a .jsonl file of {"id", "title"?, "text"}.
        encoding: of text files that are not UTF-8; None: they are rejected.

    Raises:
        ValueError: nothing is there, or an encoding that Python does not know.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        if not path.exists():
            raise ValueError(f"{path} does not exist; check --input")
        try:
            codecs.lookup(encoding or "utf-8")
        except LookupError as error:
            unknown = f"--encoding {encoding!r} is no encoding that Python knows"
            raise ValueError(f"{unknown}; try gb18030 or cp1252") from error
        self.path, self._encoding = path, encoding
        self._unreadable: set[Path] = set()

    def sources(self, reject: Reject | None = None) -> Iterator[Source]:
        """Yields all documents; what is none goes to `reject`, when that is given."""
        taken: set[str] = set()
        for path in sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]:
            if path.is_dir() or path in self._unreadable or path.name.startswith("."):
                continue
            if path.suffix.lower() in LINES:
                yield from self._lines(path, taken, reject)
            elif path.suffix.lower() in TEXTS:
                name = path.relative_to(self.path).as_posix() if self.path.is_dir() else path.name
                yield Source(name, None, path, None)
            elif reject is not None:
                reason = f"no text: the name ends neither in {', '.join(TEXTS)} nor in {', '.join(LINES)}"
                reject(path.name, 1, reason, path.name)

    def _lines(self, path: Path, taken: set[str], reject: Reject | None) -> Iterator[Source]:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    document = read_document(line, taken)
                except ValueError as error:
                    if reject is not None:
                        reject(path.name, number, str(error), line.decode("utf-8", "replace"))
                    continue
                taken.add(document.id)
                yield Source(document.id, document.title, path, document.text)

    def pieces(self, source: Source) -> Iterator[str]:
        """Yields the text of a document in pieces.

        Raises:
            ValueError: a binary file, or text that is not in the encoding; the file is left out from then on.
        """
        if source.text is not None:
            yield source.text
            return
        try:
            yield from read_text(source.path, self._encoding)
        except ValueError:
            self._unreadable.add(source.path)
            raise


def read_document(line: bytes, taken: set[str]) -> Document:
    """The document of one line; ValueError says why there is none."""
    document = from_json(Document, json.loads(line.decode("utf-8-sig")))
    if document.id in taken:
        raise ValueError(f"the id {document.id!r} stands in an earlier line; ids must differ")
    if not document.text.strip():
        raise ValueError("the text is empty")
    return document


def read_text(path: Path, encoding: str | None) -> Iterator[str]:
    """Yields a text file in pieces: UTF-8, UTF-16 with its mark, or what `encoding` says for all else.

    Raises:
        ValueError: the file is empty, is binary, or holds bytes of another encoding.
    """
    with open(path, "rb") as file:
        block = file.read(BLOCK)
        if not block.strip():
            raise ValueError("the file is empty")
        kind = encoding_of(path, block, encoding)
        decoder = codecs.getincrementaldecoder(kind)()
        place = 0
        while block:
            following = file.read(BLOCK)
            try:
                yield decoder.decode(block, final=not following).replace("\r\n", "\n")
            except UnicodeDecodeError as error:
                where = f"not {kind} near byte {place + error.start} ({error.reason})"
                raise ValueError(f"{where}; save it as UTF-8 or give --encoding") from error
            place += len(block)
            block = following


def encoding_of(path: Path, block: bytes, otherwise: str | None) -> str:
    """The encoding of a file, from its first block and, with a second choice at hand, from all of it."""
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in block:
        raise ValueError("a binary file: it holds zero bytes")
    return otherwise if otherwise is not None and not is_utf8(path) else "utf-8-sig"


def is_utf8(path: Path) -> bool:
    """Whether a whole file is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        try:
            while block := file.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True
