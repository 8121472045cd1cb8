"""The one door to a generating language model: a server, local weights or recorded replies behind one call log.

    with open_generator(Source(backend="api", base_url=URL, model=NAME), "DATA/calls.jsonl") as generator:
        for result in generator.run(tasks):     # tasks: Python generators that yield a Request and are sent its Reply
            ...
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from data_processor.calls import CallLog, Reply, Request, call_key

Result = TypeVar("Result")
Task = Generator[Request, Reply, Result]

BACKENDS = ("local", "api", "vllm", "recorded")
WINDOW = 8  # tasks under way for each call that the backend takes at once: the order of results costs no idle time
FAILURES = 24  # calls one after another without a reply, after which a run stops and says why


class Backend(Protocol):
    """What calls a model: `capacity` calls at once; `model` and `sampling` are part of every call's key."""

    capacity: int
    model: str
    sampling: dict[str, float]

    def start(self, request: Request) -> None:
        """Takes a call."""

    def finished(self) -> list[tuple[Request, Reply]]:
        """At least one of the calls taken, with its reply."""

    def close(self) -> None:
        """Ends."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Which model, and how it is called: the flags of `add_flags`."""

    backend: str = "local"
    model: str | None = None
    base_url: str = "https://api.openai.com/v1"
    replies: Path | None = None
    concurrency: int = 16
    batch_size: int = 16
    timeout: float = 300.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    temperature: float = 0.0
    top_p: float = 1.0


class ReplyFunction:
    """A backend that answers by a Python function of the request: rules instead of a model."""

    def __init__(self, reply: Callable[[Request], str], model: str, capacity: int = 16) -> None:
        self.capacity, self.model = capacity, model
        self.sampling = sampling_of(Source())
        self._reply = reply
        self._waiting: list[Request] = []

    def start(self, request: Request) -> None:
        """Takes a call."""
        self._waiting.append(request)

    def finished(self) -> list[tuple[Request, Reply]]:
        """All calls taken, answered."""
        waiting, self._waiting = self._waiting, []
        return [(request, Reply(self._reply(request))) for request in waiting]

    def close(self) -> None:
        """Nothing to end."""


class Recorded:
    """The backend `recorded`: replies from a file of {"key", "reply"} lines, such as another run's calls.jsonl."""

    def __init__(self, path: Path, model: str, sampling: dict[str, float]) -> None:
        self.capacity, self.model, self.sampling = 16, model, sampling
        self._log = CallLog(path, read_only=True)
        self._waiting: list[Request] = []

    def start(self, request: Request) -> None:
        """Takes a call."""
        self._waiting.append(request)

    def finished(self) -> list[tuple[Request, Reply]]:
        """All calls taken; one that was not recorded has an error."""
        waiting, self._waiting = self._waiting, []
        return [(request, self._find(request)) for request in waiting]

    def _find(self, request: Request) -> Reply:
        key = call_key(self.model, self.sampling, request)
        missing = f"{self._log.path} has no reply to this call; record it with the same --model and sampling"
        return self._log.get(key, 0) or Reply(error=missing)

    def close(self) -> None:
        """Closes the file."""
        self._log.close()


class TextGenerator:
    """Runs tasks against a backend; every reply goes through the log, and what stands there is not asked again.

    Args:
        backend: what calls the model.
        log: the call log.
        progress: show a bar.

    `asked` counts calls made, `found` those answered by the log, `failed` those without a reply.
    """

    def __init__(self, backend: Backend, log: CallLog, progress: bool = False) -> None:
        self.backend, self.log = backend, log
        self.asked = self.found = self.failed = self.rejected = 0
        self._new_tokens = self._failures = 0
        self._waiting: dict[str, list[_Slot]] = {}  # the tasks that wait for a call
        self._keys: dict[Request, str] = {}  # of the calls under way
        self._bar = tqdm(unit=" calls", desc=backend.model[-30:], disable=not progress, smoothing=0.1)

    def expect(self, calls: int) -> None:
        """Tells the progress bar how many calls there may be."""
        self._bar.total = calls
        self._bar.refresh()

    def run(self, tasks: Iterable[Task[Result]]) -> Iterator[Result]:
        """Yields what the tasks return, in their order; as many are under way as the backend can use.

        A task is a Python generator: it yields a `Request`, is sent the `Reply`, and returns its result.

        Raises:
            ValueError: FAILURES calls in a row got no reply; what was replied before is in the log.
        """
        source, slots, more = iter(tasks), deque[_Slot](), True
        most_tasks, most_calls = WINDOW * self.backend.capacity, 2 * self.backend.capacity
        while more or slots:
            while more and len(slots) < most_tasks and len(self._waiting) < most_calls:
                task = next(source, None)
                more = task is not None
                if task is not None:
                    slots.append(_Slot(task))
                    self._advance(slots[-1], None)
            if slots and slots[0].done:
                yield slots.popleft().result
            elif self._waiting:
                self._receive()

    def _advance(self, slot: _Slot, reply: Reply | None) -> None:
        """Goes on with a task until it asks something that the log does not hold, or returns."""
        try:
            while True:
                request = slot.task.send(reply)  # type: ignore[arg-type]
                key = call_key(self.backend.model, self.backend.sampling, request)
                reply = self.log.get(key, request.max_new_tokens)
                if reply is None:
                    self._ask(key, request, slot)
                    return
                self.found += 1
                self._show()
        except StopIteration as stop:
            slot.done, slot.result = True, stop.value

    def _ask(self, key: str, request: Request, slot: _Slot) -> None:
        if key in self._waiting:
            self._waiting[key].append(slot)
            return
        self._waiting[key], self._keys[request] = [slot], key
        self.backend.start(request)

    def _receive(self) -> None:
        for request, reply in self.backend.finished():
            key = self._keys.pop(request)
            self.asked += 1
            self._count(key, request, reply)
            waiting = self._waiting.pop(key)
            self._show(len(waiting))
            for slot in waiting:
                self._advance(slot, reply)

    def _count(self, key: str, request: Request, reply: Reply) -> None:
        if reply.error is None:
            self._failures = 0
            self._new_tokens += reply.new_tokens
            self.log.append(key, request, reply)
            return
        self.failed += 1
        self._failures += 1
        if self._failures >= FAILURES:
            raise ValueError(
                f"{FAILURES} calls in a row got no reply, the last: {reply.error}. What was replied is kept in "
                f"{self.log.path}; mend this and run the same command again"
            )

    def _show(self, calls: int = 1) -> None:
        if self._bar.disable:
            return
        seconds = self._bar.format_dict["elapsed"] or 1
        state = {"found": self.found, "rejected": self.rejected, "tokens/s": round(self._new_tokens / seconds)}
        self._bar.set_postfix(state, refresh=False)
        self._bar.update(calls)

    def close(self) -> None:
        """Ends the backend and closes the log."""
        self._bar.close()
        self.backend.close()
        self.log.close()

    def __enter__(self) -> TextGenerator:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self.close()


class _Slot:
    """A task, and its result once it is there."""

    def __init__(self, task: Task[Any]) -> None:
        self.task, self.done, self.result = task, False, None


def sampling_of(source: Source) -> dict[str, float]:
    """How the next token is chosen, as it enters a call's key and a server's request."""
    return {"temperature": source.temperature, "top_p": source.top_p}


def open_backend(source: Source) -> Backend:
    """The backend that a source names.

    Raises:
        ValueError: a flag is missing, or the model cannot be had.
    """
    if source.backend == "recorded":
        if source.replies is None or not source.replies.is_file():
            raise ValueError(f"--backend recorded needs --replies FILE, a file that is there; got {source.replies}")
        return Recorded(source.replies, source.model or "recorded", sampling_of(source))
    if not source.model:
        raise ValueError(f"--backend {source.backend} needs --model, the name of the model to ask")
    if source.backend == "api":
        from data_processor.chat_client import ChatClient

        limits = source.requests_per_minute, source.tokens_per_minute
        settings = sampling_of(source), source.concurrency, source.timeout
        return ChatClient(source.base_url, source.model, *settings, *limits)
    from data_processor.local_generator import open_local

    return open_local(source.backend, source.model, sampling_of(source), source.batch_size)


def open_generator(source: Source, log: str | Path, progress: bool = True) -> TextGenerator:
    """The generator that a source names, with its log."""
    return TextGenerator(open_backend(source), CallLog(log), progress)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a generating model; `source_from` reads them."""
    group = parser.add_argument_group("the language model")
    group.add_argument("--backend", choices=BACKENDS, default="local", help="where the model runs (default: local)")
    group.add_argument("--model", help="name or folder of a local model; a server's name of its model")
    group.add_argument("--base_url", default=Source.base_url, help="api: a server, up to /v1; key: OPENAI_API_KEY")
    group.add_argument("--replies", type=Path, help='recorded: JSON lines {"key", "reply"}, such as a calls.jsonl')
    group.add_argument("--concurrency", type=int, default=16, help="api: calls at once (default: 16)")
    group.add_argument("--batch_size", type=int, default=16, help="local: prompts a batch (default: 16)")
    group.add_argument("--timeout", type=float, default=300.0, help="api: seconds a reply may take (default: 300)")
    group.add_argument("--requests_per_minute", type=float, help="api: limit (default: none)")
    group.add_argument("--tokens_per_minute", type=float, help="api: limit (default: none)")
    group.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token (default)")
    group.add_argument("--top_p", type=float, default=1.0, help="of the probability that is sampled from (default: 1)")


def source_from(arguments: argparse.Namespace) -> Source:
    """The source that the flags of `add_flags` describe."""
    return Source(**{field.name: vars(arguments)[field.name] for field in dataclasses.fields(Source)})
