"""A stand-in for an OpenAI-compatible server: fixed latency, replies by rule, faults on purpose.

    python benchmarks/chat_mock.py --port 8123 --latency 0.05 [--faults]
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

FAULTS = ("429", "500", "hang", "half", "empty", "schema", "slow", "reset", "html")
SOUND = 0.4  # share of the calls that meet no fault at all
HANG_SECONDS = 30.0
Body = dict[str, Any]


def digest(text: str) -> int:
    """A number that follows from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def fill(schema: dict[str, Any], seed: str) -> Any:
    """A value that fits a schema: strings are words that follow from the seed, lists have one item."""
    if schema["type"] == "object":
        return {name: fill(inner, f"{seed}/{name}") for name, inner in schema["properties"].items()}
    if schema["type"] == "array":
        return [fill(schema["items"], f"{seed}/0")]
    return schema["enum"][0] if "enum" in schema else f"Word {digest(seed) % 10**12} holds."


def by_schema(body: Body) -> str:
    """The reply that follows from the messages and their schema."""
    schema = body["response_format"]["json_schema"]["schema"]
    return json.dumps(fill(schema, json.dumps(body["messages"])))


class ChatMock:
    """The server. `calls` counts good replies by request body, `faults` the faults by kind.

    Args:
        latency: seconds before every reply.
        reply: request body -> text of the reply.
        faulty: the first attempt of most bodies meets a fault, which one follows from the body.
    """

    def __init__(self, latency: float = 0.0, reply: Callable[[Body], str] = by_schema, faulty: bool = False) -> None:
        self.latency, self.reply, self.faulty = latency, reply, faulty
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._seen: set[str] = set()
        self.port = 0

    def fault_of(self, body: str) -> str | None:
        """The fault that this attempt meets: none on the second attempt of a body, or when it is a repair."""
        if not self.faulty or body in self._seen:
            return None
        self._seen.add(body)
        number = digest(body)
        if number % 1000 < 1000 * SOUND:
            return None
        fault = FAULTS[number // 1000 % len(FAULTS)]
        return None if fault == "schema" and '"assistant"' in body else fault

    async def serve(self, port: int = 0) -> asyncio.Server:
        """Starts to listen on localhost; 0 picks a port."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                body = (await reader.readexactly(length)).decode()
                if not await self._answer(body, writer):
                    break
        writer.close()

    async def _answer(self, body: str, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False when the connection is to end."""
        await asyncio.sleep(self.latency)
        fault = self.fault_of(body)
        if fault is not None:
            self.faults[fault] += 1
            return await self._fault(fault, body, writer)
        self.calls[body] += 1
        await send(writer, 200, completion(self.reply(json.loads(body))))
        return True

    async def _fault(self, fault: str, body: str, writer: asyncio.StreamWriter) -> bool:
        good = completion(self.reply(json.loads(body)))
        if fault in ("429", "500"):
            headers = "Retry-After: 0.05\r\n" if fault == "429" else ""
            await send(writer, int(fault), '{"error": "on purpose"}', headers)
            return True
        if fault == "html":
            await send(writer, 200, "<html>sign in</html>", "Content-Type: text/html\r\n")
            return True
        if fault in ("empty", "schema"):
            await send(writer, 200, completion("" if fault == "empty" else '{"colour": "green"}'))
            return True
        if fault == "hang":
            await asyncio.sleep(HANG_SECONDS)
        elif fault == "slow":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            for _ in range(int(HANG_SECONDS / 0.05)):
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        elif fault == "half":
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(good)}\r\n\r\n{good[: len(good) // 2]}".encode())
            await writer.drain()
        else:
            writer.transport.abort()
        return False


def completion(text: str) -> str:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": len(text) // 4}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


async def send(writer: asyncio.StreamWriter, status: int, text: str, headers: str = "") -> None:
    """One whole answer."""
    body = text.encode()
    writer.write(f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


@contextlib.contextmanager
def running(mock: ChatMock) -> Any:
    """Serves in a thread while the block runs; yields the base URL."""
    loop, ready = asyncio.new_event_loop(), threading.Event()

    servers: list[asyncio.Server] = []

    async def start() -> None:
        servers.append(await mock.serve())
        ready.set()

    def work() -> None:
        loop.create_task(start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{mock.port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(end(servers[0]), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def end(server: asyncio.Server) -> None:
    """Ends a server and every connection of this loop."""
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def forever(mock: ChatMock, port: int) -> None:
    """Serves until the process ends."""
    server = await mock.serve(port)
    print(mock.port, flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serves on a port, which is printed."""
    parser = argparse.ArgumentParser(description="A stand-in for an OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--faults", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(forever(ChatMock(arguments.latency, faulty=arguments.faults), arguments.port))


if __name__ == "__main__":
    main()
