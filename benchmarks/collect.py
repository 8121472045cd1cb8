"""How fast a collection is beside what a server allows, and how its memory grows with the texts.

A stand-in server (benchmarks/chat_mock.py) in a process of its own answers after 50 ms; 16 calls at once allow 320 a
second, and threads that do nothing else show how many a busy machine really gets (`bare_calls_per_s`). The rate counts
everything between the first call and the last file: chunks, parsing, duplicates, writing.
Memory is the peak in /proc of a process that collects from 1,000 and from 10,000 chunks, at a server without latency.

    python benchmarks/collect.py --json results/collect.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["OMP_NUM_THREADS"] = "1"

from data_processor.chunking import words_and_marks
from data_processor.collect import STAGES, Settings
from data_processor.collection import FILES, collect, finish
from data_processor.corpus import Corpus
from data_processor.documents import Documents
from data_processor.prompts import Prompts
from data_processor.schema import Rejected, write_json
from data_processor.stages import Stages
from data_processor.text_encoder import load_encoder
from data_processor.text_generator import Source, open_generator
from data_processor.wording import Wording

LATENCY, CONCURRENCY = 0.05, 16
BARE_CALLS = 1600
RATE_CHUNKS, SMALL, LARGE = 600, 1000, 10_000
SETTINGS = Settings(chunk_size_by_token=64, qa_amount_per_fact=1, role_amount_per_fact=1)
SENTENCES = 4  # a chunk of this size takes so many of the sentences below
A_DOCUMENT = 50  # chunks


def write_texts(folder: Path, chunks: int) -> None:
    """Texts of about so many chunks; every sentence differs."""
    folder.mkdir(parents=True)
    for document in range(-(-chunks // A_DOCUMENT)):
        numbers = range(document * A_DOCUMENT * SENTENCES, (document + 1) * A_DOCUMENT * SENTENCES)
        sentences = (f"The town of Place{n} has {n} houses, a mill and a bridge over the river." for n in numbers)
        (folder / f"{document:05}.txt").write_text(" ".join(sentences) + "\n", encoding="utf-8")


@contextlib.contextmanager
def server(latency: float) -> Iterator[str]:
    """The stand-in server in its own process; yields its address."""
    command = [sys.executable, str(Path(__file__).with_name("chat_mock.py")), "--latency", str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait()


def work(texts: Path, output: Path, url: str) -> dict[str, float]:
    """Collects in this process; returns calls, seconds and the peak of its memory."""
    corpus = Corpus(Documents(texts), SETTINGS.chunk_size_by_token, words_and_marks)
    encoder, wording = load_encoder("hashing:256"), Wording(Prompts())
    with Rejected(output / "rejected.jsonl") as rejected:
        stages = Stages(rejected, STAGES)
        corpus.survey(stages)
        source = Source("api", "mock", url, concurrency=CONCURRENCY)
        with open_generator(source, output / "calls.jsonl", progress=False) as generator:
            start = time.perf_counter()
            report = collect(corpus, generator, wording, SETTINGS, encoder, stages, output)
            seconds = time.perf_counter() - start
        finish(output, stages, SETTINGS, wording, "mock", report, FILES)
        assert generator.failed == 0 and stages.counts["pairs"]["kept"] == corpus.chunks, stages.counts
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {"chunks": corpus.chunks, "calls": generator.asked, "seconds": seconds, "rss_mb": int(peak[1]) / 1024}


def bare(url: str, calls: int) -> float:
    """Calls a second of 16 threads that send one prepared request over and over and read what comes, no more."""
    place = urllib.parse.urlsplit(url)
    schema = {"type": "object", "properties": {"theme": {"type": "string"}}}
    shape = {"type": "json_schema", "json_schema": {"schema": schema}}
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 1500}], "response_format": shape}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    def ask(count: int) -> None:
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                connection.sendall(request)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")

    threads = [threading.Thread(target=ask, args=(calls // CONCURRENCY,)) for _ in range(CONCURRENCY)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return calls / (time.perf_counter() - start)


def measure(chunks: int, latency: float) -> dict[str, float]:
    """`work` in a fresh process."""
    with tempfile.TemporaryDirectory() as folder, server(latency) as url:
        write_texts(Path(folder) / "texts", chunks)
        command = [sys.executable, __file__, "--worker", folder, "--url", url]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if latency:
            found["bare_calls_per_s"] = bare(url, BARE_CALLS)
    print(f"{latency * 1000:g} ms: {json.dumps(found)}", flush=True)
    return found


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to record the figures in")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        print(json.dumps(work(arguments.worker / "texts", arguments.worker / "data", arguments.url)))
        return
    start = time.time()
    rate, small, large = measure(RATE_CHUNKS, LATENCY), measure(SMALL, 0.0), measure(LARGE, 0.0)
    ideal = CONCURRENCY / LATENCY
    metrics = {
        "calls_per_s": rate["calls"] / rate["seconds"],
        "calls_per_s_over_ideal": rate["calls"] / rate["seconds"] / ideal,
        "bare_calls_per_s": rate["bare_calls_per_s"],
        "calls_per_s_over_bare": rate["calls"] / rate["seconds"] / rate["bare_calls_per_s"],
        "calls_per_s_without_latency": large["calls"] / large["seconds"],
        "rss_mb_1k": small["rss_mb"],
        "rss_mb_10k": large["rss_mb"],
        "rss_10k_over_1k": large["rss_mb"] / small["rss_mb"],
        "chunks_small": small["chunks"],
        "chunks_large": large["chunks"],
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(metrics, indent=2))
    if arguments.json:
        from training.record import commit

        machine = f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores"
        write_json(arguments.json, {
            "command": f"python benchmarks/collect.py --json {arguments.json}", "commit": commit(), "machine": machine,
            "minutes": round((time.time() - start) / 60, 2), "seeds": [], "metrics": metrics,
        })  # fmt: skip


if __name__ == "__main__":
    main()
