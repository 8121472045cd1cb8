"""Documents to chunks: so many tokens, cut between sentences, each beginning with the end of the one before."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Count = Callable[[str], int]

# where a text may be cut: after the marks that end a sentence, and after a line
BOUNDARY = re.compile(r"[.!?]+[\"'”’)\]]*\s+|[。！？；…]+[”’」』）]*\s*|\n\s*")
TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af]|[^\W_]{1,6}|[^\w\s]")
LONGEST = 1 << 16  # characters without a boundary, after which a text is cut anywhere


class Chunk(NamedTuple):
    """A piece of a document: `number` counts from 0, `start` is its first character, `tokens` its length."""

    document: str
    title: str | None
    number: int
    start: int
    text: str
    tokens: int


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """Yields the text in sentences with the space behind them; joined they are the text again."""
    rest = ""
    for piece in pieces:
        rest += piece
        last = 0
        for match in BOUNDARY.finditer(rest):
            if match.end() == len(rest):
                break  # the next piece may go on with the mark or the space
            yield rest[last : match.end()]
            last = match.end()
        rest = rest[last:]
        while len(rest) > LONGEST:
            cut = rest.rfind(" ", 1, LONGEST) + 1 or LONGEST
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def chunks(document: str, title: str | None, pieces: Iterable[str], size: int, count: Count) -> Iterator[Chunk]:
    """Yields the chunks of one document.

    A chunk takes whole sentences up to `size` tokens and begins with those of the chunk before that fit into an eighth
    of that. A sentence longer than a chunk is cut between words, or anywhere where there are none.

    Args:
        document, title: of the document.
        pieces: its text.
        size: tokens a chunk.
        count: the number of tokens of a text.
    """
    held: list[tuple[str, int]] = []  # sentences of the present chunk with their tokens
    place = number = fresh = 0  # `fresh`: how many of them stood in no chunk before
    for sentence in sentences(pieces):
        for part, tokens in fitting(sentence, size, count):
            if fresh and sum(one for _, one in held) + tokens > size:
                yield chunk_of(document, title, number, place, held)
                number += 1
                kept = overlap(held, size // 8, size - tokens)
                place += sum(len(text) for text, _ in held[: len(held) - len(kept)])
                held, fresh = kept, 0
            held.append((part, tokens))
            fresh += bool(part.strip())
    if fresh:
        yield chunk_of(document, title, number, place, held)


def chunk_of(document: str, title: str | None, number: int, place: int, held: list[tuple[str, int]]) -> Chunk:
    """The chunk of these sentences."""
    text = "".join(part for part, _ in held)
    start, tokens = place + len(text) - len(text.lstrip()), sum(tokens for _, tokens in held)
    return Chunk(document, title, number, start, text.strip(), tokens)


def overlap(held: list[tuple[str, int]], most: int, room: int) -> list[tuple[str, int]]:
    """The last sentences that have at most `most` tokens, and leave room for the next one."""
    kept: list[tuple[str, int]] = []
    total = 0
    for part, tokens in reversed(held):
        total += tokens
        if total > min(most, room):
            break
        kept.insert(0, (part, tokens))
    return kept


def fitting(sentence: str, size: int, count: Count) -> Iterator[tuple[str, int]]:
    """Yields a sentence with its tokens, in halves of halves where it has more than `size`."""
    tokens = count(sentence)
    if tokens <= size or len(sentence) < 2:
        yield sentence, tokens
        return
    middle = len(sentence) // 2
    cut = sentence.rfind(" ", 1, middle) + 1 or middle
    yield from fitting(sentence[:cut], size, count)
    yield from fitting(sentence[cut:], size, count)


def words_and_marks(text: str) -> int:
    """About as many tokens as a model's tokenizer makes of a text: Chinese characters, parts of words, marks."""
    return sum(1 for _ in TOKEN.finditer(text))


def token_counter(tokenizer: Any) -> Count:
    """Counts with a tokenizer of transformers."""
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def load_counter(name: str) -> Count:
    """Counts with the tokenizer of a model, by name or folder; without torch or transformers.

    Raises:
        ValueError: it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from tokenizers import Tokenizer

    file = Path(name) / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file if file.is_file() else hf_hub_download(name, "tokenizer.json")))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--tokenizer {name!r}: {reason}; give a model's name on the Hub or its folder") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
