"""What is asked of a language model, what it replied, and the log that keeps both: no call is paid for twice."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from data_processor.key_index import KeyIndex

CUT = "length"  # the finish_reason of a reply that ran into the limit of new tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One call: a chat, and what its reply must look like.

    `messages` are {"role", "content"}; `schema` is the JSON schema of the reply, None for plain text; `name` says what
    the call is for (it goes into the log, not into the key); `values` are what the prompt was filled with.
    """

    messages: tuple[dict[str, str], ...]
    schema: dict[str, Any] | None = None
    max_new_tokens: int = 1024
    name: str = ""
    values: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back: the text, or the `error` that took its place; tokens as the server or tokenizer counted them."""

    text: str = ""
    error: str | None = None
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    new_tokens: int = 0


def call_key(model: str, sampling: dict[str, Any], request: Request) -> str:
    """The name of a call in the log: 32 hexadecimal digits over model, messages, schema and sampling.

    The limit of new tokens is not part of it: raising the limit throws no good reply away (see `CallLog.get`).
    """
    parts = json.dumps([model, request.messages, request.schema, sampling], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class CallLog:
    """Replies in a file of JSON lines, one appended line a call: {"key", "name", "reply", ...}.

    Opening it reads the keys once; replies stay on disk. A line that a killed process left unfinished is cut off. The
    file is locked, so that two processes never call the same things into it.

    Args:
        path: the file; made when absent. read_only: refuse to append (recorded replies).

    Raises:
        ValueError: another process writes it, or a whole line is no call.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path = Path(path)
        self._index = KeyIndex()
        if not read_only:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._file = os.open(self.path, flags, 0o644)
        if not read_only:
            self._lock()
        self._end = self._read_keys()
        if not read_only:
            os.ftruncate(self._file, self._end)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise ValueError(f"{self.path} is being written by another process; wait for it or stop it") from error

    def _read_keys(self) -> int:
        """Notes where every call stands; returns the end of the last whole line."""
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                if line.strip():
                    self._index.set(self._key_of(number, line), end)
                end += len(line)
        return end

    def _key_of(self, number: int, line: bytes) -> bytes:
        try:
            row = json.loads(line)
            if isinstance(row["reply"], str):
                return bytes.fromhex(row["key"])
        except (ValueError, KeyError, TypeError):
            pass
        raise ValueError(f'{self.path}:{number}: no call; a line is {{"key": 32 hexadecimal digits, "reply": text}}')

    def __len__(self) -> int:
        return len(self._index)

    def get(self, key: str, max_new_tokens: int) -> Reply | None:
        """The reply to a call; None when there is none, or when it was cut at a lower limit of new tokens."""
        place = self._index.get(bytes.fromhex(key))
        if place is None:
            return None
        row = json.loads(self._line(place))
        reason = row.get("finish_reason", "stop")
        if reason == CUT and row.get("max_new_tokens", max_new_tokens) < max_new_tokens:
            return None
        tokens = row.get("tokens", [0, 0])
        return Reply(row["reply"], None, reason, *tokens)

    def _line(self, place: int) -> bytes:
        line = os.pread(self._file, 65536, place)
        while b"\n" not in line and place + len(line) < self._end:
            line += os.pread(self._file, 1 << 20, place + len(line))
        return line.partition(b"\n")[0]

    def append(self, key: str, request: Request, reply: Reply) -> None:
        """Writes one reply as one line."""
        row: dict[str, Any] = {"key": key, "name": request.name, "reply": reply.text}
        if reply.finish_reason != "stop":
            row |= {"finish_reason": reply.finish_reason, "max_new_tokens": request.max_new_tokens}
        row["tokens"] = [reply.prompt_tokens, reply.new_tokens]
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        view = memoryview(line)
        while view:
            view = view[os.write(self._file, view) :]
        self._index.set(bytes.fromhex(key), self._end)
        self._end += len(line)

    def close(self) -> None:
        """Closes the file and frees it for others."""
        os.close(self._file)

    def __enter__(self) -> CallLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.close()
