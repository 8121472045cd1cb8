"""Records survive their JSON lines, files are whole or absent, and bad lines are named by file and line."""

import json

import numpy as np
import pytest

from data_processor.schema import (
    Document,
    Fact,
    NodeSummary,
    QAPair,
    Rejected,
    Subgraph,
    Triple,
    atomic_write,
    from_json,
    read_jsonl,
    read_qa,
    to_json,
    write_jsonl,
)

RECORDS = [
    Document("d1", None, "text"),
    Document("d1", "Title", "text\nwith two lines"),
    Fact("f", "Water is wet.", "d1", chunk=0, theme="water"),
    Triple("a", "b", "c"),
    QAPair("1", "who?", ("x", "y"), (3,), (4, 5), ("d1",), "look-up", text=False),
    QAPair("2", "who?", ("x",)),
    NodeSummary(3, "a node", "its neighbours"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_record_survives_json(record):
    line = json.loads(json.dumps(to_json(record)))
    assert from_json(type(record), line) == record


def test_subgraph_survives_json():
    subgraph = Subgraph(np.array([3, 1]), np.float32([0.5, 0.25]), np.array([7]), np.float32([1]))
    again = from_json(Subgraph, json.loads(json.dumps(to_json(subgraph))))
    assert again.nodes.dtype == np.int64 and again.node_scores.dtype == np.float32
    assert again.nodes.tolist() == [3, 1] and again.edges.tolist() == [7] and again.node_scores.tolist() == [0.5, 0.25]


def test_unset_optional_fields_are_left_out():
    assert to_json(QAPair("2", "who?", ("x",))) == {"id": "2", "question": "who?", "answers": ["x"]}
    assert to_json(Document("d", None, "t")) == {"id": "d", "text": "t"}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"id": "1", "question": "q"}, "needs the field 'answers'"),
        ({"id": "1", "question": "q", "answers": "x"}, "'answers' must be a list of strings"),
        ({"id": 1, "question": "q", "answers": ["x"]}, "'id' must be a string"),
        ({"id": "1", "question": "q", "answers": ["x"], "answer_node": [1]}, "unknown field 'answer_node'"),
        ({"id": "1", "question": "q", "answers": ["x"], "seed_nodes": [True]}, "list of whole numbers"),
    ],
)
def test_wrong_field_is_named(line, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_json(QAPair, line)


def test_jsonl_round_trip_counts_lines(tmp_path):
    rows = [{"a": "ü"}, {"b": [1, 2]}]
    assert write_jsonl(tmp_path / "x.jsonl", rows) == 2
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [(1, rows[0]), (2, rows[1])]


def test_blank_lines_keep_the_numbers(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}')
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize("bad", [b'{"a": ', b'{"a": "\xff"}', b"[1]"])
def test_bad_line_is_named(tmp_path, bad):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + bad + b"\n")
    with pytest.raises(ValueError, match=r"x\.jsonl:2: "):
        list(read_jsonl(tmp_path / "x.jsonl"))


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"id": "b", "question": "q"}, ":2: a QAPair needs the field 'answers'"),
        ({"id": "b", "question": "q", "answers": []}, ":2: question 'b' has no answer"),
        ({"id": "a", "question": "q", "answers": ["x"]}, ":2: id 'a' was used in line 1"),
    ],
)
def test_read_qa_names_the_line(tmp_path, second, sentence):
    write_jsonl(tmp_path / "test.jsonl", [{"id": "a", "question": "q", "answers": ["x"]}, second])
    with pytest.raises(ValueError, match=sentence):
        read_qa(tmp_path / "test.jsonl")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_rejected_is_written_even_when_the_work_fails(tmp_path):
    with pytest.raises(RuntimeError), Rejected(tmp_path / "rejected.jsonl") as rejected:
        rejected.add("kg.txt", 3, "2 fields", "a|b")
        raise RuntimeError
    assert rejected.count == 1
    expected = {"file": "kg.txt", "line": 3, "reason": "2 fields", "row": "a|b"}
    assert list(read_jsonl(tmp_path / "rejected.jsonl")) == [(1, expected)]


def test_rejected_keeps_the_beginning_of_a_huge_row(tmp_path):
    with Rejected(tmp_path / "rejected.jsonl") as rejected:
        rejected.add("kg.txt", 1, "too long", "x" * 10**6)
    assert (tmp_path / "rejected.jsonl").stat().st_size < 2000


def test_nothing_rejected_leaves_no_file(tmp_path):
    (tmp_path / "rejected.jsonl").write_text("{}")
    with Rejected(tmp_path / "rejected.jsonl"):
        pass
    assert not (tmp_path / "rejected.jsonl").exists()
