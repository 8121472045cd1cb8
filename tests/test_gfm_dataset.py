"""Question batches: what is asked, what is right, what cannot be used, on whole graphs and on subgraphs."""

import numpy as np
import pytest

from data_processor.gfm_dataset import MASK, QuestionBatches, QuestionSet, masked
from data_processor.graph_store import KnowledgeGraph, embed_graph, write_graph, write_subgraphs
from data_processor.question_vectors import text_vectors
from data_processor.schema import Document, QAPair, to_json, write_jsonl
from data_processor.text_encoder import load_encoder

NAMES = ["Anna", "Bert", "Cid", "Dora", "Ed", "Fay"]
EDGES = np.array([[0, 0, 1], [1, 1, 2], [2, 0, 3], [3, 1, 4], [4, 0, 5], [5, 1, 0]])
PAIRS = [
    QAPair("q0", "whom does Anna know?", ("Bert",), (1,), (0,)),
    QAPair("q1", "whom do Bert and Cid know?", ("Dora", "Ed"), (3, 4), (1, 2), ("d1", "d0")),
    QAPair("q2", "who was it?", ("Nobody",), (), (2,), ("d1",)),
    QAPair("q3", "who?", ("Anna",), (0,), ()),
    QAPair("q4", "what of Ed?", ("Zoe",), (), (4,)),
    QAPair("q5", "what of Fay?", ("Anna",), (0,), (5,), ("d9",)),
]


@pytest.fixture
def folder(tmp_path):
    documents = [Document("d0", None, "x"), Document("d1", None, "y"), Document("d2", None, "z")]
    links = np.array([[2, 5], [1, 3], [0, 0], [1, 4], [0, 1]])
    graph = tmp_path / "graph"
    write_graph(
        graph, [{"name": name} for name in NAMES], [{"name": "knows"}, {"name": "likes"}], EDGES, documents, links
    )
    embed_graph(graph, load_encoder("hashing:8"))
    write_jsonl(tmp_path / "qa" / "train.jsonl", map(to_json, PAIRS))
    return tmp_path


def batches(*sets, **settings):
    return QuestionBatches(sets, settings.pop("questions_per_batch", 2), **settings)


def test_a_batch_holds_seeds_targets_documents_and_the_vectors_of_the_questions(folder):
    one = batches(QuestionSet(folder, "train"))[0]
    assert one["graph_index"].tolist() == [0]
    assert (one["seed_nodes"].tolist(), one["seed_batch"].tolist()) == ([0, 1, 2], [0, 1, 1])
    assert (one["target_nodes"].tolist(), one["target_batch"].tolist()) == ([1, 3, 4], [0, 1, 1])
    assert (one["target_documents"].tolist(), one["target_document_batch"].tolist()) == ([0, 1], [1, 1])
    expected = load_encoder("hashing:8").encode([PAIRS[0].question, PAIRS[1].question])
    np.testing.assert_allclose(one["question_embeds"].numpy(), expected)


def test_what_is_right_is_chosen_by_name(folder):
    def targets(wanted):
        return {one.pair.id: one.targets.tolist() for one in QuestionSet(folder, "train", wanted).asked[:3]}

    assert targets(None) == {"q0": [1], "q1": [3, 4], "q2": [3, 4]}
    assert targets("answers") == {"q0": [1], "q1": [3, 4], "q2": []}
    assert targets("documents") == {"q0": [], "q1": [0, 1, 3, 4], "q2": [3, 4]}


def test_questions_that_cannot_be_used_are_listed_with_the_reason_and_still_counted(folder):
    data = batches(QuestionSet(folder, "train"))
    reasons = {row.pair.id: row.unusable for _, row in data.unusable}
    assert reasons == {
        "q3": "no seed node of it is in the graph: run `python -m data_processor link`",
        "q4": "neither an answer nor a supporting document of it is in the graph",
        "q5": "the graph has no document 'd9'",
    }
    owners, counts = data.targets()
    assert owners.tolist() == [0, 1, 1, 2, 2]
    assert counts.tolist() == [1, 2, 2, 0, 0, 0]


def test_every_epoch_regroups_and_the_order_of_an_evaluation_stands(folder):
    one = QuestionSet(folder, "train")
    shuffled, fixed = batches(one, shuffle=True), batches(one)

    def order(data):
        return [int(row) for i in range(len(data)) for row in data.rows(i)[1]]

    seen = set()
    for epoch in range(20):
        shuffled.set_epoch(epoch)
        assert sorted(order(shuffled)) == [0, 1, 2]
        seen.add(tuple(order(shuffled)))
        fixed.set_epoch(epoch)
        assert order(fixed) == [0, 1, 2]
    assert len(seen) > 3


def test_a_cap_and_a_sample_hold_for_each_graph(folder):
    one = QuestionSet(folder, "train")
    data = batches(one, one, questions_per_batch=1, max_batches=2)
    assert [int(data[i]["graph_index"]) for i in range(len(data))] == [0, 0, 1, 1]
    few = batches(one, sample=4, seed=3)
    assert sum(len(few.rows(i)[1]) for i in range(len(few))) + len(few.unusable) == 4


def test_names_of_seeds_are_hidden_from_the_encoder_only_as_whole_words(folder):
    assert masked("Who knows Ed, Eddy and ed?", ["Ed"]) == f"Who knows {MASK}, Eddy and {MASK}?"
    assert masked("films of Ann Lee", ["Ann", "Ann Lee"]) == f"films of {MASK}"
    assert masked("C++ (1985)?", ["C++"]) == f"{MASK} (1985)?"
    assert QuestionSet(folder, "train", mask_seeds=True).texts[0] == f"whom does {MASK} know?"


def test_vectors_are_read_again_where_the_same_texts_were_embedded(tmp_path, monkeypatch):
    first = text_vectors(["a", "b"], "hashing:8", tmp_path)
    monkeypatch.setattr("data_processor.question_vectors.load_encoder", None)
    assert np.array_equal(text_vectors(["a", "b"], "hashing:8", tmp_path), first)
    with pytest.raises(TypeError):
        text_vectors(["a", "c"], "hashing:8", tmp_path)


def test_tokens_stand_beside_the_vectors_of_whole_questions(folder, tmp_path):
    one = QuestionSet(folder, "train", tokens=True)
    batch = batches(one)[0]
    words = [load_encoder("hashing:8").encode_tokens([pair.question])[0] for pair in PAIRS[:2]]
    assert batch["question_token_mask"].sum(1).tolist() == [4, 6]
    assert batch["question_tokens"].shape == (2, 6, 8)
    for tokens, mask, expected in zip(batch["question_tokens"], batch["question_token_mask"], words, strict=True):
        np.testing.assert_allclose(tokens[mask].numpy(), expected)
    assert not batch["question_tokens"][0, 4:].any()
    again = QuestionSet(folder, "train", tokens=True)
    assert np.array_equal(batches(again)[0]["question_tokens"], batch["question_tokens"])


def test_on_subgraphs_nodes_are_places_in_the_union_and_what_lies_outside_is_counted(folder):
    graph = KnowledgeGraph.open(folder / "graph")
    parts = [graph.subgraph([5, 1, 0], [0]), graph.subgraph([4, 2, 1], [1]), graph.subgraph([2, 5], [])]
    parts += [graph.subgraph([0], [])] * 3
    write_subgraphs(folder / "subgraphs" / "train", [pair.id for pair in PAIRS], parts, {}, {"graph": "graph"})
    data = batches(QuestionSet(folder, "train", on_subgraphs=True))
    one = data[0]
    assert one["node_batch"].tolist() == [0, 0, 0, 1, 1, 1]
    assert one["edge_index"].tolist() == [[2, 5], [1, 4]]  # Anna to Bert, Bert to Cid
    assert one["edge_relations"].tolist() == [0, 1]
    assert (one["seed_nodes"].tolist(), one["seed_batch"].tolist()) == ([2, 4, 5], [0, 1, 1])
    assert (one["target_nodes"].tolist(), one["target_batch"].tolist()) == ([1, 3], [0, 1])
    assert "target_documents" not in one
    assert {row.pair.id: row.unusable for _, row in data.unusable}["q2"] == "its subgraph holds no right node"
    assert data.targets()[1].tolist() == [1, 2, 0, 0, 0, 0]


def test_a_split_without_a_usable_question_and_a_missing_split_are_one_sentence(folder):
    write_jsonl(folder / "qa" / "test.jsonl", [to_json(PAIRS[3])])
    with pytest.raises(ValueError, match="no question can be used, as no seed node"):
        batches(QuestionSet(folder, "test"))
    with pytest.raises(ValueError, match=r"Splits: \['test', 'train'\]"):
        QuestionSet(folder, "human")


def test_a_graph_without_vectors_says_to_embed(folder):
    write_graph(folder / "graph", [{"name": name} for name in NAMES], [{"name": "a"}, {"name": "b"}], EDGES)
    with pytest.raises(ValueError, match="data_processor embed"):
        QuestionSet(folder, "train")
