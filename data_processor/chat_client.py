"""An OpenAI-compatible chat server: bounded concurrency, retries with growing pauses, limits a minute. No torch."""

from __future__ import annotations

import email.utils
import http.client
import json
import logging
import os
import queue
import random
import ssl
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

from data_processor.calls import Reply, Request

logger = logging.getLogger(__name__)

ATTEMPTS = 6  # of a call whose faults may pass
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the second attempt; doubled each time, with jitter
SHORTEST_HOLD = 0.05  # after a "too many requests" that asks for no pause
BUSY_SECONDS = 1800.0  # how long a server may go on answering "too many requests" to one call
MAY_PASS = {408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529}
NEWER_LIMIT = "max_completion_tokens"
LOCAL = {"localhost", "127.0.0.1", "::1"}
KEY_VARIABLE = "OPENAI_API_KEY"


class CannotGoOn(ValueError):
    """Every further call would fail for the same reason: a missing key, an unknown model, a wrong address."""


class MayPass(Exception):
    """A fault that another attempt may not meet; `pause` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Pace:
    """When the next call may start: limits of requests and tokens a minute, and pauses that the server asks for."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: int) -> None:
        """Sleeps until a call of about so many tokens may start."""
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + max(self._request_seconds, tokens * self._token_seconds)
        time.sleep(max(0.0, start - time.monotonic()))

    def hold(self, seconds: float) -> None:
        """No call starts before `seconds` have passed."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class ChatClient:
    """The backend `api`: POST {base_url}/chat/completions by `concurrency` threads, a kept connection each.

    Args:
        base_url: with http(s)://, up to and with /v1.
        model: the server's name of the model.
        sampling: temperature, top_p.
        concurrency: calls under way at once.
        timeout: seconds a reply may take, whole.
        requests_per_minute, tokens_per_minute: None for no limit.

    Raises:
        ValueError: an address without http(s)://.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        sampling: dict[str, float],
        concurrency: int = 16,
        timeout: float = 300.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
    ) -> None:
        self._url = urllib.parse.urlsplit(base_url.rstrip("/") + "/chat/completions")
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise ValueError(f"--base_url {base_url!r} is no address; it is written http(s)://HOST/v1")
        self.capacity, self.model, self.sampling = concurrency, model, sampling
        self._timeout, self._structured = timeout, True
        self._limit = "max_tokens"
        self._stop: CannotGoOn | None = None
        self._pace = Pace(requests_per_minute, tokens_per_minute)
        self._headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            self._headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        self._jobs: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Request, Reply | CannotGoOn]] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(concurrency)]
        for thread in self._threads:
            thread.start()

    def start(self, request: Request) -> None:
        """Hands a call to the threads."""
        self._jobs.put(request)

    def finished(self) -> list[tuple[Request, Reply]]:
        """The calls that have ended since the last look, at least one; waits for it."""
        if self._stop is not None:
            raise self._stop
        found = [self._done.get()]
        while not self._done.empty():
            found.append(self._done.get())
        replies = []
        for request, reply in found:
            if isinstance(reply, CannotGoOn):
                self._stop = reply
            else:
                replies.append((request, reply))
        return replies or self.finished()  # what was paid for is handed out before the error is raised

    def close(self) -> None:
        """Lets the threads end after their present call."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while (request := self._jobs.get()) is not None:
            try:
                reply, connection = self._ask(request, connection)
            except CannotGoOn as error:
                self._done.put((request, error))
                continue
            self._done.put((request, reply))
        if connection is not None:
            connection.close()

    def _ask(
        self, request: Request, connection: http.client.HTTPConnection | None
    ) -> tuple[Reply, http.client.HTTPConnection | None]:
        """One call with its retries; returns the reply and the connection to go on with."""
        attempt, started = 0, time.monotonic()
        while True:
            self._pace.wait(sum(len(message["content"]) for message in request.messages) // 4 + 200)
            try:
                connection = connection or self._connect()
                return self._attempt(request, connection), connection
            except (MayPass, OSError, http.client.HTTPException) as error:
                if connection is not None:
                    connection.close()
                connection = None
                reason = str(error) or type(error).__name__
                pause = error.pause if isinstance(error, MayPass) else None
            attempt += pause is None
            if attempt >= ATTEMPTS or time.monotonic() - started > BUSY_SECONDS:
                return Reply(error=f"no reply after {attempt or 'many'} attempts: {reason}"), None
            if pause is not None:
                self._pace.hold(max(pause, SHORTEST_HOLD))
            else:
                time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))

    def _connect(self) -> http.client.HTTPConnection:
        url, kind = self._url, http.client.HTTPConnection
        options: dict[str, Any] = {"timeout": self._timeout}
        if url.scheme == "https":
            kind, options["context"] = http.client.HTTPSConnection, ssl.create_default_context()
        proxy = urllib.request.getproxies().get(url.scheme)
        if proxy is None or url.hostname in LOCAL or urllib.request.proxy_bypass(url.hostname):
            return kind(url.hostname, url.port, **options)
        way = urllib.parse.urlsplit(proxy)
        connection = kind(way.hostname, way.port, **options)
        connection.set_tunnel(url.hostname, url.port)
        return connection

    def _attempt(self, request: Request, connection: http.client.HTTPConnection) -> Reply:
        structured = self._structured and request.schema is not None
        body: dict[str, Any] = {"model": self.model, "messages": list(request.messages), **self.sampling}
        limit = self._limit
        body[limit] = request.max_new_tokens
        if structured:
            shape = {"name": request.name or "reply", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        connection.request("POST", self._url.path, json.dumps(body).encode(), self._headers)
        response = connection.getresponse()
        text = self._read(response, connection).decode("utf-8", "replace")
        if response.status == 400 and structured and "response_format" in text:
            logger.warning("%s takes no JSON schema: replies are asked for in words only", self._url.netloc)
            self._structured = False
            return self._attempt(request, connection)
        if response.status == 400 and limit != NEWER_LIMIT and NEWER_LIMIT in text:
            self._limit = NEWER_LIMIT  # newer servers know the limit by this name alone
            return self._attempt(request, connection)
        return self._reply(response, text)

    def _read(self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection) -> bytes:
        """The body; a server that sends it drop by drop is cut off after the time-out."""
        deadline, parts = time.monotonic() + self._timeout, []
        while part := response.read1(65536):
            parts.append(part)
            left = deadline - time.monotonic()
            if left <= 0:
                raise MayPass(f"the reply was not complete after {self._timeout:g} s")
            if connection.sock is not None:
                connection.sock.settimeout(left)
        response.read()  # read1 leaves a whole response open, and the connection with it
        if connection.sock is not None:
            connection.sock.settimeout(self._timeout)
        return b"".join(parts)

    def _reply(self, response: http.client.HTTPResponse, text: str) -> Reply:
        """The reply in a server's answer; every other answer is an exception or a reply with an error."""
        status, brief = response.status, " ".join(text.split())[:200]
        if status in (401, 403):
            key = "is refused" if "Authorization" in self._headers else "is not set"
            raise CannotGoOn(f"{self._url.netloc} answered {status}: {KEY_VARIABLE} {key}; export a key it accepts")
        if status == 404:
            raise CannotGoOn(f"{self._url.geturl()} answered 404 ({brief}); check --base_url (up to /v1) and --model")
        if status == 429:
            raise MayPass(f"429, too many requests: {brief}", retry_after(response.getheader("Retry-After")))
        if status in MAY_PASS:
            raise MayPass(f"{status}: {brief}", retry_after(response.getheader("Retry-After"), None))
        if status != 200:
            return Reply(error=f"the server answered {status}: {brief}")
        return read_completion(text, response.getheader("Content-Type") or "")


def retry_after(header: str | None, otherwise: float | None = 1.0) -> float | None:
    """Seconds that a Retry-After header asks for, given in seconds or as a date."""
    if header is None:
        return otherwise
    try:
        return max(0.0, float(header))
    except ValueError:
        moment = email.utils.parsedate_tz(header)
        return max(0.0, email.utils.mktime_tz(moment) - time.time()) if moment else otherwise


def read_completion(text: str, kind: str) -> Reply:
    """The reply in the JSON of a chat completion.

    Raises:
        MayPass: it is HTML, cut off, without a message, or the message is empty.
    """
    try:
        row = json.loads(text)
        choice = row["choices"][0]
        content, usage = choice["message"]["content"], row.get("usage") or {}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        html = "html" in kind or text.lstrip()[:1] == "<"
        what = "HTML: is --base_url right, up to /v1?" if html else f"no chat completion ({type(error).__name__})"
        raise MayPass(f"the server answered {what}: {' '.join(text.split())[:100]}") from error
    if not isinstance(content, str) or not content.strip():
        raise MayPass("the reply is empty")
    tokens = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return Reply(content, None, choice.get("finish_reason") or "stop", *tokens)
