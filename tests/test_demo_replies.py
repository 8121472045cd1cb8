"""The demonstration's recorded replies: made from its world, told as such, and enough for the whole collection."""

import json

import pytest

from data_processor import demo_replies
from data_processor.__main__ import main
from data_processor.demo_replies import MODEL, SETTINGS, write_demonstration
from data_processor.graph_store import KnowledgeGraph
from data_processor.schema import read_jsonl, read_qa
from tests.test_collect import check_stages, files


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    """A world of thirty people: its texts and replies, and what is collected from them."""
    folder, whole = tmp_path_factory.mktemp("demonstration"), demo_replies.PEOPLE
    demo_replies.PEOPLE = 30
    write_demonstration(folder)
    first = files(folder)
    write_demonstration(folder)
    demo_replies.PEOPLE = whole
    assert files(folder) == first, "the same bytes every time"
    flags = ["collect", "--input", str(folder / "texts"), "--output", str(folder / "data"), "--backend", "recorded",
             "--model", MODEL, "--replies", str(folder / "replies.jsonl"), "--extract"]  # fmt: skip
    for name in ("chunk_size_by_token", "qa_amount_per_fact", "role_amount_per_fact"):
        flags += [f"--{name}", str(vars(SETTINGS)[name])]
    assert main(flags) == 0
    return folder, flags


def test_every_fact_of_the_world_is_collected_and_every_triple_extracted(demonstration):
    folder, _ = demonstration
    manifest = json.loads((folder / "data" / "manifest.json").read_text())
    check_stages(folder / "data", manifest)
    told = {f"{line}." for path in (folder / "texts").iterdir() for line in path.read_text().replace("\n\n", " ")
            .rstrip().rstrip(".").split(". ")}  # fmt: skip
    assert {row["text"] for _, row in read_jsonl(folder / "data" / "facts.jsonl")} == told
    graph = KnowledgeGraph.open(folder / "data" / "graph")
    assert graph.num_edges == len(told) == manifest["stages"]["questions"]["kept"]
    paths = (folder / "data" / "qa" / f"{split}.jsonl" for split in ("train", "validation", "test"))
    pairs = [pair for path in paths for pair in read_qa(path)]
    assert len(pairs) == len(told) and all(len(pair.seed_nodes) == 1 for pair in pairs)
    assert all(graph.node_name(pair.answer_nodes) == list(pair.answers) for pair in pairs)


def test_some_replies_are_not_the_json_that_was_asked_for_and_are_read_or_asked_for_again(demonstration):
    folder, _ = demonstration
    replies = [row["reply"] for _, row in read_jsonl(folder / "replies.jsonl")]
    assert any(reply == "I would rather not say." for reply in replies)
    assert any(reply.startswith("Here it is") for reply in replies)


def test_a_second_collection_makes_no_call(demonstration, capsys):
    folder, flags = demonstration
    first = files(folder)
    assert main(flags) == 0
    assert "0 calls made" in capsys.readouterr().out
    assert files(folder) == first
