"""Dataset folders and conversations as examples, eager and lazy, cached and left out."""

import json
import logging

import numpy as np
import pytest
import torch

from data_processor.collator import GraphCollator
from data_processor.dataset import ConversationDataset, GraphQADataset
from data_processor.graph_store import embed_graph, write_graph
from data_processor.preprocess import EncodedDataset
from data_processor.schema import write_jsonl
from data_processor.subgraph_store import write_subgraphs
from data_processor.text_encoder import load_encoder
from processing_graphllm import GraphLLMProcessor

QUESTIONS = [
    {"id": "q0", "question": "where was Ada born?", "answers": ["London"], "type": "lookup"},
    {"id": "q1", "question": "what is Ada?", "answers": ["person", "writer"], "type": "graph_type", "text": False},
    {"id": "q2", "question": "and nothing?", "answers": ["no"]},
]


@pytest.fixture
def folder(tmp_path):
    """Ada -born in-> London -in-> England; a question about each, one about nothing."""
    nodes = [
        {"name": "Ada", "type": "person"},
        {"name": "London", "type": "place"},
        {"name": "England", "type": "place"},
    ]
    graph = write_graph(
        tmp_path / "graph", nodes, [{"name": "born in"}, {"name": "in"}], np.array([[0, 0, 1], [1, 1, 2]])
    )
    embed_graph(tmp_path / "graph", load_encoder("hashing:16"))
    write_jsonl(tmp_path / "qa" / "train.jsonl", QUESTIONS)
    subgraphs = [
        graph.subgraph([0, 1, 2], [0, 1], [3, 2, 1], [1, 2]),
        graph.subgraph([0], [0]),
        graph.subgraph([], []),
    ]
    write_subgraphs(
        tmp_path / "subgraphs" / "train",
        [q["id"] for q in QUESTIONS],
        subgraphs,
        {},
        {"graph": "graph", "method": "hand"},
    )
    return tmp_path


@pytest.fixture
def processor(tiny_tokenizer):
    return GraphLLMProcessor.from_tokenizer(tiny_tokenizer, num_graph_tokens=2)


def text_of(example):
    return "\n".join(item["text"] for item in example["messages"][0]["content"] if item["type"] == "text")


def test_an_example_is_graph_then_facts_then_question_then_answers(folder):
    dataset = GraphQADataset(folder, "train")
    first, second, third = dataset[0], dataset[1], dataset[2]
    assert text_of(first) == "London | in | England\nAda | born in | London\n\nwhere was Ada born?"
    assert text_of(second) == "what is Ada?"  # its text must not be shown
    assert text_of(third) == "and nothing?"
    assert [e["messages"][1]["content"][0]["text"] for e in (first, second)] == ["London", "person | writer"]
    graph = first["messages"][0]["content"][0]["graph"]
    assert graph["edge_index"].tolist() == [[1, 0], [2, 1]]  # the better edge first
    assert graph["node_features"].shape == (3, dataset.feature_dim) == (3, 16)
    assert torch.equal(graph["edge_features"][1], torch.tensor(dataset.graph.relation_features[0].astype(np.float32)))
    assert third["messages"][0]["content"][0]["graph"]["node_features"].shape == (0, 16)


def test_graph_and_text_can_be_left_out(folder):
    assert text_of(GraphQADataset(folder, "train", use_text=False)[0]) == "where was Ada born?"
    kinds = [item["type"] for item in GraphQADataset(folder, "train", use_graph=False)[0]["messages"][0]["content"]]
    assert kinds == ["text", "text"]


def test_whole_rows_are_cut_to_the_token_budget(folder, tiny_tokenizer):
    dataset = GraphQADataset(folder, "train", max_text_tokens=25, tokenizer=tiny_tokenizer)
    assert text_of(dataset[0]) == "London | in | England\n\nwhere was Ada born?"


def test_eager_lazy_and_cached_examples_are_equal(folder, processor, tmp_path):
    dataset = GraphQADataset(folder, "train")
    eager = EncodedDataset(dataset, processor, 200, cache_dir=tmp_path / "cache")
    (cached_file,) = (tmp_path / "cache").glob("*.safetensors")
    stamp = cached_file.stat().st_mtime_ns
    again = EncodedDataset(dataset, processor, 200, cache_dir=tmp_path / "cache")
    lazy = EncodedDataset(dataset, processor, 200, lazy=True)
    collate = GraphCollator(processor)
    expected = collate([eager[i] for i in range(3)])
    for other in (again, lazy):
        batch = collate([other[i] for i in range(3)])
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert cached_file.stat().st_mtime_ns == stamp
    assert next(iter(expected)) == "input_ids"


def test_answers_of_an_encoder_decoder_are_kept_whole(folder, tiny_tokenizer):
    processor = GraphLLMProcessor.from_tokenizer(tiny_tokenizer, num_graph_tokens=2, is_encoder_decoder=True)
    dataset = GraphQADataset(folder, "train")
    eager, lazy = (EncodedDataset(dataset, processor, 200, lazy=lazy) for lazy in (False, True))
    for i, answer in enumerate(("London", "person | writer", "no")):
        assert eager[i]["labels"] == lazy[i]["labels"]
        assert tiny_tokenizer.decode(eager[i]["labels"]).startswith(answer)


def test_empty_retrievals_are_counted_also_from_the_cache(folder, processor, tmp_path, caplog):
    for _ in range(2):
        caplog.clear()
        EncodedDataset(GraphQADataset(folder, "train"), processor, 200, cache_dir=tmp_path / "cache")
        assert "1 graphs have no node" in caplog.text


def test_the_fingerprint_changes_with_all_that_changes_the_result(folder, processor, tiny_tokenizer):
    def fingerprint(max_length=200, processor=processor, **settings):
        return EncodedDataset(
            GraphQADataset(folder, "train", **settings), processor, max_length, lazy=True
        ).fingerprint

    prints = [
        fingerprint(),
        fingerprint(max_length=100),
        fingerprint(use_text=False),
        fingerprint(text_style="tables"),
    ]
    prints.append(fingerprint(use_graph=False))
    other = GraphLLMProcessor(tiny_tokenizer, num_graph_tokens=3)
    prints.append(fingerprint(processor=other))
    other.chat_template = other.chat_template.replace("<|end|>", "<|end|>\n")
    prints.append(fingerprint(processor=other))
    write_jsonl(folder / "qa" / "train.jsonl", [{**QUESTIONS[0], "answers": ["Paris"]}, *QUESTIONS[1:]])
    prints.append(fingerprint())
    assert len(set(prints)) == len(prints)
    assert fingerprint() == prints[-1]


def test_what_cannot_be_used_is_counted_and_written_down(processor, tmp_path, caplog):
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"id": "b", "messages": [{"role": "user", "content": "hi"}]},
        {"id": "c", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * 99}]},
        {"id": "d", "messages": [{"role": "user", "content": "y" * 99}, {"role": "assistant", "content": "hello"}]},
    ]
    caplog.set_level(logging.WARNING)
    encoded = EncodedDataset(
        ConversationDataset(rows, "chats.json"), processor, 40, rejected=tmp_path / "rejected.jsonl"
    )
    assert encoded.index.tolist() == [0, 3]
    left_out = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [json.loads(row["row"])["id"] for row in left_out] == ["b", "c"]
    assert "no word is the assistant's" in left_out[0]["reason"]
    assert "alone exceed 40 tokens" in left_out[1]["reason"]
    assert "2 of 4 examples left out" in caplog.text
    assert "1 of 2 prompts shortened to 40 tokens" in caplog.text
    with pytest.raises(ValueError, match="example 'b': no word is the assistant's"):
        EncodedDataset(ConversationDataset(rows, "chats.json"), processor, 40, lazy=True)[1]
    with pytest.raises(ValueError, match="None of 1 examples can be used"):
        EncodedDataset(ConversationDataset(rows[1:2], "chats.json"), processor, 40, rejected=tmp_path / "none.jsonl")


def test_a_cached_run_tells_what_was_left_out_like_the_first_one(processor, tmp_path, caplog):
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "y" * 99}, {"role": "assistant", "content": "hello"}]},
        {"id": "b", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * 99}]},
    ]
    written, told = [], []
    for run in ("first", "second"):
        caplog.clear()
        path = tmp_path / run / "rejected.jsonl"
        dataset = ConversationDataset(rows, "chats.json")
        EncodedDataset(dataset, processor, 40, cache_dir=tmp_path / "cache", rejected=path)
        written.append(path.read_text())
        told.append(caplog.text.replace(str(path), ""))
    assert written[0] == written[1] and written[0].count("alone exceed 40 tokens") == 1
    assert "1 of 2 examples left out" in told[1] and "1 of 1 prompts shortened" in told[1]
    unusable = ConversationDataset(rows[1:], "chats.json")
    for _ in range(2):
        with pytest.raises(ValueError, match="None of 1 examples can be used"):
            EncodedDataset(unusable, processor, 40, cache_dir=tmp_path / "cache", rejected=tmp_path / "none.jsonl")


def test_missing_parts_are_named(folder):
    with pytest.raises(ValueError, match=r"no questions for 'test'.*Splits: \['train'\]"):
        GraphQADataset(folder, "test")
    write_jsonl(folder / "qa" / "empty.jsonl", [])
    with pytest.raises(ValueError, match="empty.jsonl holds no question"):
        GraphQADataset(folder, "empty")
    write_jsonl(folder / "qa" / "train.jsonl", [*QUESTIONS, {"id": "q3", "question": "new?", "answers": ["x"]}])
    with pytest.raises(ValueError, match="no subgraph for question 'q3'"):
        GraphQADataset(folder, "train")[3]


def test_a_graph_without_features_is_refused_with_the_command_to_run(tmp_path):
    write_graph(tmp_path / "graph", [{"name": "a"}], [{"name": "r"}], np.array([[0, 0, 0]]))
    write_jsonl(tmp_path / "qa" / "train.jsonl", QUESTIONS[:1])
    graph_dataset = {"data_path": tmp_path, "split": "train"}
    with pytest.raises(ValueError, match="subgraphs"):
        GraphQADataset(**graph_dataset)
    from data_processor.graph_store import KnowledgeGraph

    subgraph = KnowledgeGraph.open(tmp_path / "graph").subgraph([0], [0])
    write_subgraphs(tmp_path / "subgraphs" / "train", ["q0"], [subgraph], {}, {})
    with pytest.raises(ValueError, match="has no features. Run: python -m data_processor embed"):
        GraphQADataset(**graph_dataset)
    assert len(GraphQADataset(**graph_dataset, use_graph=False)) == 1


def test_a_readout_around_a_node_gets_a_seed_first(folder):
    rows = [{**QUESTIONS[0], "seed_nodes": [1]}, {**QUESTIONS[1], "seed_nodes": [2]}, QUESTIONS[2]]
    write_jsonl(folder / "qa" / "train.jsonl", rows)
    plain = GraphQADataset(folder, "train")
    (before,), text = plain.graphs(0), text_of(plain[0])
    for readout in ("mean", "nodes"):
        dataset = GraphQADataset(folder, "train", readout=readout)
        assert all(torch.equal(dataset.graphs(0)[0][name], before[name]) for name in before)
        assert dataset.without_centre() == 0 and dataset.fingerprint == plain.fingerprint
    for readout in ("ho", "nd", "qformer"):
        dataset = GraphQADataset(folder, "train", readout=readout)
        (graph,) = dataset.graphs(0)
        assert torch.equal(graph["node_features"], before["node_features"][[1, 0, 2]])
        assert graph["edge_index"].tolist() == [[0, 1], [2, 0]] and text_of(dataset[0]) == text
        assert torch.equal(dataset[0]["messages"][0]["content"][0]["graph"]["node_features"], graph["node_features"])
        assert dataset.without_centre() == 2 and dataset.fingerprint != plain.fingerprint


def test_a_subgraph_of_another_graph_is_refused(folder):
    write_graph(folder / "graph2", [{"name": "a"}], [{"name": "r"}], np.array([[0, 0, 0]]))
    embed_graph(folder / "graph2", load_encoder("hashing:16"))
    (folder / "graph").rename(folder / "old")
    (folder / "graph2").rename(folder / "graph")
    with pytest.raises(ValueError, match="'q0' names a node or edge beyond the graph's 1 nodes"):
        GraphQADataset(folder, "train")[0]
