"""Retrieval by a graph network: what is scored, what is kept as evidence, and what happens without a seed."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from data_processor.__main__ import main
from data_processor.gfm_dataset import MASK
from data_processor.graph_store import KnowledgeGraph, SubgraphStore, embed_graph, write_graph
from data_processor.retrieval import METHODS
from data_processor.retrieval.gfm import as_gfm_graph, load, rank_documents, score_part, strongest
from data_processor.retrieval.split import Retriever
from data_processor.schema import Document, QAPair, Subgraph, to_json, write_jsonl
from data_processor.text_encoder import HashingEncoder
from modeling_gfm import GFMConfig, GFMForRetrieval
from modeling_gfm import rank_documents as ranked

ENCODER = HashingEncoder(16)
EDGES = np.array([[0, 0, 1], [1, 1, 2], [2, 0, 3], [4, 1, 0], [5, 0, 6], [1, 0, 1], [0, 1, 1]])
NAMES = ["Ann", "Bob", "Cleo", "Dan", "Eve", "Fay", "Gus"]


def build_graph(folder, encoder=ENCODER):
    documents = [Document(str(i), None, f"text {i}") for i in range(3)]
    links = np.array([[0, 0], [0, 1], [1, 2], [1, 3], [2, 4]])
    relations = [{"name": "likes"}, {"name": "knows"}]
    write_graph(folder / "graph", [{"name": name} for name in NAMES], relations, EDGES, documents, links)
    return embed_graph(folder / "graph", encoder, dtype="float32")


def build_model(folder, seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"feature_dim": 16, "feature_encoder": ENCODER.name, "hidden_dim": 8, "num_layers": 3} | settings
    model = GFMForRetrieval(GFMConfig(question_relations=True, hold_unreached=True, **settings))
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def graph(tmp_path):
    return build_graph(tmp_path)


def whole(graph, model, question, seeds):
    """Scores (N,) of the whole graph by `forward`."""
    model.attach_graphs([as_gfm_graph(graph)])
    with torch.no_grad():
        return model(
            graph_index=torch.zeros(1, dtype=torch.long), question_embeds=torch.from_numpy(question)[None],
            seed_nodes=torch.tensor(seeds), seed_batch=torch.zeros(len(seeds), dtype=torch.long),
        ).logits[0].numpy()  # fmt: skip


def test_nodes_have_the_scores_that_they_have_on_the_whole_graph(graph, tmp_path):
    model, question = build_model(tmp_path / "m"), ENCODER.encode(["whom does Ann like"])[0]
    expected = whole(graph, model, question, [0])
    found = METHODS["gfm"](graph, question, np.array([0]), np.ones(1), model=str(tmp_path / "m"), max_nodes=7, top=7)
    np.testing.assert_allclose(found.node_scores, expected[found.nodes], rtol=1e-4, atol=1e-5)
    assert set(found.nodes.tolist()) == {0, 1, 2, 3, 4}  # 5 and 6 hang together with no seed
    assert (np.diff(found.node_scores) <= 0).all() and (np.diff(found.edge_scores) <= 0).all()


def test_an_edge_that_no_message_to_a_best_node_uses_is_no_evidence(graph, tmp_path):
    model = build_model(tmp_path / "m", num_layers=1)
    model.attach_graphs([as_gfm_graph(graph)])
    part = graph.induced_subgraph([0, 1, 2, 3, 4])
    question = ENCODER.encode(["q"])[0]
    _, importances = score_part(model, graph, part, question, np.array([0]), top=5)
    used = {tuple(graph.edges[row]) for row in part.edges[importances != 0]}
    assert used <= {(0, 0, 1), (4, 1, 0), (0, 1, 1)} and used  # one step from node 0, in either direction


def test_edges_come_in_by_importance_until_the_nodes_are_used_up(graph):
    part = graph.induced_subgraph([0, 1, 2, 3, 4])
    place = {tuple(graph.edges[row]): at for at, row in enumerate(part.edges)}
    importances = np.zeros(len(part.edges))
    for edge, value in {(2, 0, 3): 0.9, (1, 1, 2): 0.5, (0, 0, 1): 0.4, (4, 1, 0): 0.1, (0, 1, 1): -1.0}.items():
        importances[place[edge]] = value
    scores = np.where(part.nodes == 3, 5.0, 0.0)
    found = strongest(graph, part, scores, importances, np.array([0]), max_nodes=3, top=1)
    assert set(found.nodes.tolist()) == {0, 3, 2} and graph.edges[found.edges].tolist() == [[2, 0, 3]]
    found = strongest(graph, part, scores, importances, np.array([0]), max_nodes=4, top=1)
    assert graph.edges[found.edges].tolist() == [[2, 0, 3], [1, 1, 2], [0, 0, 1]]
    found = strongest(graph, part, scores, importances, np.array([0]), max_nodes=9, top=1)
    assert [0, 1, 1] not in graph.edges[found.edges].tolist() and len(found.nodes) == 5


def test_without_a_seed_that_passes_the_threshold_text_alone_ranks_and_it_is_said(graph, tmp_path, caplog):
    build_model(tmp_path / "m")
    arguments = (graph, ENCODER.encode(["Dan"])[0], np.array([3, 1]), np.array([0.2, 0.1]))
    with caplog.at_level(logging.WARNING):
        found = METHODS["gfm"](*arguments, model=str(tmp_path / "m"), least_similarity=0.5)
    assert found.nodes.tolist() == [3, 1] and "ranked by text alone" in caplog.text
    caplog.clear()
    found = METHODS["gfm"](*arguments, model=str(tmp_path / "m"), least_similarity=0.15)
    assert 3 in found.nodes and "text alone" not in caplog.text


def test_documents_are_ranked_as_the_model_ranks_them_and_none_without_a_seed(graph, tmp_path):
    model, questions = build_model(tmp_path / "m"), ENCODER.encode(["who likes", "anyone"])
    expected = ranked(torch.from_numpy(whole(graph, model, questions[0], [0, 4]))[None], as_gfm_graph(graph))
    found = rank_documents(graph, questions, [[0, 4], []], str(tmp_path / "m"))
    assert [row for row, _ in found[0]] == expected[0][0].tolist() and found[1] == []


def test_what_cannot_work_is_said(graph, tmp_path):
    question = ENCODER.encode(["q"])[0]
    with pytest.raises(ValueError, match="--model"):
        METHODS["gfm"](graph, question, np.array([0]), np.ones(1))
    build_model(tmp_path / "other", feature_encoder="hashing:99")
    with pytest.raises(ValueError, match="embed with --encoder hashing:99"):
        METHODS["gfm"](graph, question, np.array([0]), np.ones(1), model=str(tmp_path / "other"))
    build_model(tmp_path / "tokens", question_attention=True)
    with pytest.raises(ValueError, match="then those of encode_tokens"):
        METHODS["gfm"](graph, question, np.array([0]), np.ones(1), model=str(tmp_path / "tokens"))


def test_a_model_that_reads_tokens_is_asked_with_those_of_each_question(graph, tmp_path):
    pairs = [QAPair("1", "whom does Ann like", ("Bob",), (1,), (0,)), QAPair("2", "who knows Ann", ("E",), (4,), (0,))]
    write_jsonl(tmp_path / "qa" / "test.jsonl", map(to_json, pairs))
    model = build_model(tmp_path / "m", question_attention=True, mask_seeds=True)
    assert main(["retrieve", "--data", str(tmp_path), "--method", "gfm", "--model", str(tmp_path / "m")]) == 0
    model.attach_graphs([as_gfm_graph(KnowledgeGraph.open(tmp_path / "graph"))])
    store, found = SubgraphStore.open(tmp_path / "subgraphs" / "test"), []
    for pair in pairs:
        text = pair.question.replace("Ann", MASK)
        tokens = torch.from_numpy(ENCODER.encode_tokens([text])[0])[None]
        with torch.no_grad():
            expected = model(
                torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), torch.from_numpy(ENCODER.encode([text])),
                tokens, torch.ones(tokens.shape[:2], dtype=torch.bool),
            ).logits[0].numpy()  # fmt: skip
        found.append(store.get(pair.id))
        np.testing.assert_allclose(found[-1].node_scores, expected[found[-1].nodes], rtol=1e-4, atol=1e-5)
    order = np.argsort(found[0].nodes), np.argsort(found[1].nodes)
    assert not np.allclose(found[0].node_scores[order[0]][:3], found[1].node_scores[order[1]][:3])
    rows = [np.vstack([ENCODER.encode(["q"]), *ENCODER.encode_tokens(["what q"])])]
    assert len(rank_documents(graph, rows, [[0]], str(tmp_path / "m"))[0]) == 3


def test_the_encoder_reads_each_distinct_wording_once(graph):
    class Counting(HashingEncoder):
        def __init__(self):
            super().__init__(16)
            self.asked = []

        def encode(self, texts, batch_size=256, progress=False):
            self.asked.extend(texts)
            return super().encode(texts, batch_size, progress)

    def kept(graph, question, seeds, seed_scores):
        return Subgraph(seeds, np.ones(len(seeds)), np.zeros(0, np.int64), np.zeros(0))

    encoder = Counting()
    worded = lambda question, seeds: question.replace("Ann", "x")  # noqa: E731
    retriever = Retriever(graph, kept, {}, encoder=encoder, worded=worded)
    list(retriever.retrieve(["is Ann", "is Ann", "is x", "was Ann"], [[0]] * 4))
    assert encoder.asked == ["is x", "was x"]


def test_a_folder_is_retrieved_again_when_the_weights_have_changed(graph, tmp_path, capsys):
    pairs = [QAPair("1", "whom does Ann like", ("Bob",), (1,), (0,)), QAPair("2", "Cleo", ("Dan",), (3,), (2,))]
    write_jsonl(tmp_path / "qa" / "test.jsonl", map(to_json, pairs))
    command = ["retrieve", "--data", str(tmp_path), "--method", "gfm", "--model", str(tmp_path / "m"), "--top", "2"]
    found = []
    for seed in (0, 0, 1):
        build_model(tmp_path / "m", seed, mask_seeds=True)
        load.cache_clear()
        assert main(command) == 0
        found.append(SubgraphStore.open(tmp_path / "subgraphs" / "test").get("1"))
    report = capsys.readouterr().out
    assert '"answer_recall"' in report and '"mean_nodes"' in report
    assert found[0].node_scores.tolist() == found[1].node_scores.tolist() != found[2].node_scores.tolist()
    expected = whole(KnowledgeGraph.open(tmp_path / "graph"), build_model(tmp_path / "m2", 1, mask_seeds=True),
                     ENCODER.encode([f"whom does {MASK} like"])[0], [0])  # fmt: skip
    np.testing.assert_allclose(found[2].node_scores, expected[found[2].nodes], rtol=1e-4, atol=1e-5)
