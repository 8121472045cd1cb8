"""kill -9 in the middle of import, embed or retrieve, the same command again: the result of an undisturbed run."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_processor.files import MANIFEST
from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.schema import QAPair, to_json, write_jsonl

pytestmark = pytest.mark.kill

ROOT = Path(__file__).resolve().parent.parent
NODES = 40_000


def command(*arguments):
    return [sys.executable, "-m", "data_processor", *map(str, arguments)]


def run(*arguments):
    subprocess.run(command(*arguments), cwd=ROOT, check=True, capture_output=True)


def kill_when(arguments, there, unfinished):
    """Starts the command and kills it as soon as `there` is true; the work must not be finished by then."""
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert unfinished(), "killed too late to show anything"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "kg.txt"
    lines = (f"entity number {i}|relation {i % 7}|entity number {(i * 7919 + 1) % NODES}\n" for i in range(NODES))
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def undisturbed(source):
    data = source.parent / "undisturbed"
    run("import", "triples", "--input", source, "--output", data / "graph")
    run("embed", "--graph", data / "graph")
    pairs = [QAPair(f"q{i}", f"about {i}", ("x",), seed_nodes=(i,)) for i in range(1500)]
    write_jsonl(data / "qa" / "test.jsonl", map(to_json, pairs))
    run("retrieve", "--data", data, "--method", "random_walk")
    return data


def same_files(one, other, names):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_import_and_embed_survive(source, undisturbed):
    data = source.parent / "killed"
    graph = data / "graph"
    arguments = ("import", "triples", "--input", source, "--output", graph)
    kill_when(arguments, lambda: (graph / "nodes.arrow").exists(), lambda: not (graph / MANIFEST).exists())
    with pytest.raises(ValueError, match="cut short"):
        KnowledgeGraph.open(graph)
    run(*arguments)
    shards = data / "embedding_cache"
    kill_when(
        ("embed", "--graph", graph),
        lambda: len(list(shards.glob("*/0*.npy"))) >= 2,
        lambda: KnowledgeGraph.open(graph).node_features is None,
    )
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*/00000*.npy")}
    run("embed", "--graph", graph)
    assert kept and all(path.stat().st_mtime_ns == time for path, time in kept.items()), "what was embedded was kept"
    names = list(KnowledgeGraph.open(graph, verify=True).manifest["bytes"])
    assert same_files(graph, undisturbed / "graph", names)
    assert {path.name for path in graph.iterdir()} == {*names, MANIFEST}, "nothing is left of the killed run"


def test_retrieve_survives(source, undisturbed):
    folder = undisturbed / "subgraphs" / "test"
    before = SubgraphStore.open(folder)
    expected = [before.get(name) for name in before.ids[:50]]
    (folder / MANIFEST).unlink()
    arguments = ("retrieve", "--data", undisturbed, "--method", "random_walk")
    kill_when(arguments, lambda: list(folder.glob(".nodes.arrow*")), lambda: not (folder / MANIFEST).exists())
    with pytest.raises(ValueError, match="cut short"):
        SubgraphStore.open(folder)
    run(*arguments)
    after = SubgraphStore.open(folder, verify=True)
    for name, one in zip(before.ids[:50], expected, strict=True):
        other = after.get(name)
        assert all(np.array_equal(vars(one)[field], vars(other)[field]) for field in vars(one))
