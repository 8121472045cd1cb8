"""A live question gets what evaluation gives it; streaming, sharing and refusals."""

import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from data_processor.retrieval.folder import link_folder, retrieve_folder
from data_processor.schema import read_jsonl, read_qa
from tests.tiny_world import flags, write_dataset, write_model

ROOT = Path(__file__).resolve().parent.parent
EMMA = "what is far from thing4?"  # stands in no split


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The tiny world, linked, its test subgraphs retrieved by PageRank."""
    folder = write_dataset(tmp_path_factory.mktemp("world"))
    link_folder(folder, overwrite=False, encoder=None, similar=0)
    retrieve_folder(folder, "pagerank", {"max_nodes": 7}, {"seed_source": "linked", "top_k": 10}, ["test"])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder whose run.json says that training showed at most 90 tokens of facts."""
    return write_model(tmp_path_factory.mktemp("served"), {"max_text_tokens": 90, "model_max_length": 300})


@pytest.fixture(scope="module")
def pipeline(model, data):
    from serving.pipeline import GraphQAPipeline

    return GraphQAPipeline.from_pretrained(model, data, max_new_tokens=12)


def predictions(model, data, output, split="test") -> dict[str, str]:
    """Question -> what `evaluation generate` writes."""
    from evaluation.__main__ import main

    main(["generate", "--model", str(model), "--data", str(data), "--split", split, "--output", str(output),
          "--max_new_tokens", "12"])  # fmt: skip
    rows = [row for _, row in read_jsonl(output)]
    return {row["question"]: row["prediction"] for row in reversed(rows)}  # of questions asked twice, the first


def test_a_live_question_gets_the_prediction_of_evaluation(pipeline, model, data, tmp_path):
    expected = predictions(model, data, tmp_path / "p.jsonl")
    answers = {question: pipeline.ask(question) for question in expected}
    assert {question: answer.answer for question, answer in answers.items()} == expected
    assert len(set(expected.values())) > 1, "a model that says one thing to everything shows nothing"
    assert {answer.evidence.method for answer in answers.values()} == {"pagerank"}


def test_live_retrieval_finds_the_subgraph_that_retrieve_wrote(pipeline, data):
    from data_processor.graph_store import SubgraphStore

    stored = SubgraphStore.open(data / "subgraphs" / "test")
    for pair in read_qa(data / "qa" / "test.jsonl"):
        evidence = pipeline.find(pair.question)
        written = stored.get(pair.id)
        assert evidence.subgraph.nodes.tolist() == written.nodes.tolist() and len(written.nodes) == 7
        assert evidence.subgraph.edges.tolist() == written.edges.tolist()
        assert evidence.subgraph.node_scores.tolist() == written.node_scores.tolist()


def test_evidence_says_names_relations_scores_and_seeds(pipeline):
    evidence = pipeline.ask(EMMA).evidence
    assert [node.name for node in evidence.nodes if node.seed] == ["thing4"] and evidence.named
    assert ("thing4", "far_from", "thing9") in [fact[:3] for fact in evidence.facts]
    scores = [node.score for node in evidence.nodes]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0
    assert evidence.documents == ()  # the graph has none


def test_the_pieces_of_a_stream_are_the_answer(pipeline):
    pieces = list(pipeline.stream(EMMA, pipeline.find(EMMA)))
    assert "".join(pieces) == pipeline.ask(EMMA).answer
    assert len(pieces) > 1 and all(pieces)


@pytest.mark.parametrize("pieces", [[" a", " ", "b c ", "", " d", "  "], ["", "  "], ["a"], []])
def test_a_stream_has_no_white_space_at_its_ends(pieces):
    from serving.answering import stripped

    found = list(stripped(pieces))
    assert "".join(found) == "".join(pieces).strip() and all(found)


def test_a_stream_that_is_closed_early_stops_the_model(pipeline, monkeypatch):
    steps = []
    forward = type(pipeline.model).forward
    counted = functools.wraps(forward)(lambda *a, **k: steps.append(1) or forward(*a, **k))
    monkeypatch.setattr(type(pipeline.model), "forward", counted)
    monkeypatch.setitem(pipeline._limits, "max_new_tokens", 150)
    pieces = pipeline.stream(EMMA, None)
    next(pieces)
    pieces.close()
    assert len(steps) < 100


def test_an_error_in_the_models_thread_reaches_the_reader(pipeline, monkeypatch):
    @functools.wraps(type(pipeline.model).forward)
    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(pipeline.model), "forward", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(pipeline.stream(EMMA, None))


def test_questions_about_one_subgraph_share_its_prefix_and_get_the_same_answers(pipeline, monkeypatch):
    questions = [EMMA, "what?", "which thing is it that stands next to thing4 and far from thing3?", "thing9?"]
    evidence = pipeline.find(EMMA)
    encoded, encode = [], type(pipeline.model).get_graph_features
    monkeypatch.setattr(
        type(pipeline.model), "get_graph_features",
        lambda *a, **k: encoded.append(int(k["graph_batch"].max()) + 1) or encode(*a, **k),
    )  # fmt: skip
    shared = [answer.answer for answer in pipeline.ask_about(evidence, questions)]
    assert encoded == [1], "the graph is read once for all"
    assert shared == [answer.answer for answer in pipeline.ask_about(evidence, questions, share=False)]
    assert encoded == [1, 4] and len(set(shared)) > 1
    assert shared == [pipeline.ask_about(evidence, [question])[0].answer for question in questions]


def test_the_shared_beginning_gives_the_logits_of_the_whole_prompts(pipeline):
    import torch

    from serving.answering import begun_together, shared_tokens

    model, processor, evidence = pipeline.model, pipeline.processor, pipeline.find(EMMA)
    prompts = [pipeline._prompt(question, evidence) for question in (EMMA, "a much longer question about thing4?")]
    encoded = [processor.encode(prompt) for prompt in prompts]
    shared = shared_tokens(encoded, processor.graph_token_id)
    assert shared > 50
    batch = begun_together(model, processor, encoded, shared)
    settings = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    found = model.generate(**batch, **settings).logits[0]
    with torch.no_grad():
        expected = [model(**processor.pad([one])).logits[0, -1] for one in encoded]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_prompts_of_different_graphs_share_no_graph(pipeline):
    from serving.answering import shared_tokens

    evidence = pipeline.find(EMMA), pipeline.find("what is next to thing12?")
    encoded = [pipeline.processor.encode(pipeline._prompt("the same question", one)) for one in evidence]
    same = [encoded[0], {**encoded[0]}]
    graph_token = pipeline.processor.graph_token_id
    assert shared_tokens(same, graph_token) == len(encoded[0]["input_ids"]) - 1
    assert shared_tokens(encoded, graph_token) == encoded[0]["input_ids"].index(graph_token)


def test_without_the_graph_the_model_sees_the_bare_question(pipeline, model, data, tmp_path):
    from evaluation.__main__ import main

    main(["generate", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "p.jsonl"),
          "--ablate", "question_only", "--max_new_tokens", "12"])  # fmt: skip
    for _, row in read_jsonl(tmp_path / "p.jsonl"):
        answer = pipeline.ask(row["question"], without_graph=True)
        assert answer.answer == row["prediction"] and answer.evidence is None


def test_subgraphs_that_came_with_the_data_are_read_for_its_own_questions(model, data, tmp_path, caplog):
    from serving.pipeline import GraphQAPipeline

    world = write_dataset(tmp_path / "given")
    expected = predictions(model, world, tmp_path / "p.jsonl")
    with caplog.at_level(logging.WARNING):
        pipeline = GraphQAPipeline.from_pretrained(model, world, max_new_tokens=12)
    assert "'test', which is no method of retrieval" in caplog.text
    assert {question: pipeline.ask(question).answer for question in expected} == expected
    assert pipeline.find(next(iter(expected))).method == "subgraphs/test"
    assert pipeline.find(EMMA).method == "pagerank"


def test_training_evaluation_and_serving_centre_on_the_same_node(model, tmp_path, caplog):
    from data_processor.dataset import GraphQADataset
    from data_processor.graph_store import SubgraphStore, write_subgraphs
    from evaluation.opening import OVERRIDES, open_dataset
    from evaluation.trained import trained_with
    from serving.pipeline import GraphQAPipeline
    from training.arguments import parse
    from training.data import open_splits, tell_of_centres

    world, served = write_dataset(tmp_path / "world"), shutil.copytree(model, tmp_path / "model")
    link_folder(world, overwrite=False, encoder=None, similar=0)
    pairs, store = read_qa(world / "qa" / "test.jsonl"), SubgraphStore.open(world / "subgraphs" / "test")
    found = [replace(one, nodes=one.nodes[::-1]) for one in (store.get(pair.id) for pair in pairs)]
    assert not any(one.nodes[0] in pair.seed_nodes for one, pair in zip(found, pairs, strict=True))
    manifest = {"graph": "graph", "method": "test", "parameters": {}}
    write_subgraphs(store.path, [pair.id for pair in pairs], found, {}, manifest)
    file = served / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"graph_readout": "ho"}))

    pipeline = GraphQAPipeline.from_pretrained(served, world)
    asked = Namespace(data=world, split="test", text_style=None, **dict.fromkeys(OVERRIDES))
    evaluated = open_dataset(asked, pipeline.processor, trained_with(str(served)))
    more = ("--graph_readout", "ho", "--do_predict", "True")
    argv = flags(model.parent / "language_model", world, tmp_path / "o", *more)
    trained = open_splits(parse(argv), pipeline.processor.tokenizer)["test"]
    for i, pair in enumerate(pairs):
        prompt = pipeline._prompt(pair.question, pipeline.find(pair.question))
        live = [one["graph"] for one in prompt[0]["content"] if one["type"] == "graph"]
        for (graph,) in (live, evaluated.graphs(i), trained.graphs(i)):
            expected = pipeline.finder.graph.node_features[pair.seed_nodes[0]]
            assert graph["node_features"][0].tolist() == expected.astype("float32").tolist()
    tell_of_centres(trained)
    assert "seed node" not in caplog.text
    tell_of_centres(GraphQADataset(write_dataset(tmp_path / "unlinked"), "test", readout="ho"))
    assert "6 of 6 questions" in caplog.text and "retrieve --method pagerank" in caplog.text


def test_another_method_and_its_parameters_can_be_asked_for(model, data):
    from serving.pipeline import GraphQAPipeline

    pipeline = GraphQAPipeline.from_pretrained(model, data, method="similarity", parameters={"max_nodes": 3})
    evidence = pipeline.find(EMMA)
    assert evidence.method == "similarity" and len(evidence.nodes) == 3
    with pytest.raises(ValueError, match="has no --steps; it has --max_nodes"):
        GraphQAPipeline.from_pretrained(model, data, method="similarity", parameters={"steps": 3})
    with pytest.raises(ValueError, match="'nearest' is not known; choose one of gfm, pagerank"):
        GraphQAPipeline.from_pretrained(model, data, method="nearest")
    with pytest.raises(ValueError, match="max_nodes belong to no method"):
        GraphQAPipeline.from_pretrained(model, data, parameters={"max_nodes": 3})
    with pytest.raises(ValueError, match="gfm needs the parameter model"):
        GraphQAPipeline.from_pretrained(model, data, method="gfm")


def test_a_question_that_names_nothing_gets_the_nearest_nodes_and_says_so(pipeline):
    evidence = pipeline.ask("who wrote it?").evidence
    assert not evidence.named and len(evidence.nodes) > 0


def test_an_empty_question_is_one_sentence(pipeline):
    with pytest.raises(ValueError, match="the question is empty"):
        pipeline.ask("  ")


def test_a_graph_of_another_encoder_or_of_none_is_one_sentence(model, tmp_path):
    from data_processor.graph_store import KnowledgeGraph, embed_graph, without_features
    from data_processor.text_encoder import load_encoder
    from serving.evidence import EvidenceFinder
    from serving.pipeline import GraphQAPipeline

    world = write_dataset(tmp_path / "world")
    embed_graph(world / "graph", load_encoder("hashing:16"))
    with pytest.raises(ValueError, match="was embedded by hashing:16, and .* reads features of hashing:8; run"):
        GraphQAPipeline.from_pretrained(model, world)
    without_features(KnowledgeGraph.open(world / "graph"))
    with pytest.raises(ValueError, match="is not embedded, and .* reads features of hashing:8"):
        GraphQAPipeline.from_pretrained(model, world)
    with pytest.raises(ValueError, match="names no node of .* and the graph is not embedded"):
        EvidenceFinder(world).find("who wrote it?")


def test_a_trained_retriever_gives_subgraph_and_documents(tmp_path):
    """A graph with documents and the method gfm: the same subgraph as the method gives, documents by its ranker."""
    from serving.evidence import EvidenceFinder
    from tests.test_retrieval_gfm import build_graph, build_model

    build_graph(tmp_path / "data")
    build_model(tmp_path / "gfm")
    finder = EvidenceFinder(tmp_path / "data", "gfm", {"model": str(tmp_path / "gfm"), "max_nodes": 4})
    evidence = finder.find("whom does Ann like?")
    assert evidence.method == "gfm" and len(evidence.nodes) <= 4
    assert [node.name for node in evidence.nodes if node.seed] == ["Ann"]
    assert sorted(one.text for one in evidence.documents) == ["text 0", "text 1", "text 2"]
    walked = EvidenceFinder(tmp_path / "data", "pagerank").find("whom does Ann like?")
    assert walked.documents[0].text == "text 0", "the document that names Ann"


def test_a_question_that_is_asked_of_several_nodes_belongs_to_none_of_them(tmp_path):
    from data_processor.schema import QAPair, to_json, write_jsonl
    from serving.evidence import EvidenceFinder

    data = write_dataset(tmp_path / "data")
    asked = [("0", "Describe this node.", 3), ("1", "Describe this node.", 4), ("2", "And that one?", 5)]
    asked += [("3", "And that one?", 5), ("4", "Describe this node.", 3)]
    pairs = [QAPair(name, question, ("a",), seed_nodes=(seed,)) for name, question, seed in asked]
    write_jsonl(data / "qa" / "test.jsonl", map(to_json, pairs))
    finder = EvidenceFinder(data, "pagerank")
    assert not any(node.seed for node in finder.find("Describe this node.").nodes)
    assert [node.name for node in finder.find("And that one?").nodes if node.seed] == ["thing5"]


@pytest.mark.slow
def test_the_demonstrations_test_questions_get_their_predictions():
    """Needs output/demo, which bash shells/finetune_lora_ds.sh makes."""
    folder = ROOT / "output" / "demo"
    if not (folder / "model" / "run.json").is_file():
        pytest.skip("no output/demo/model: run bash shells/finetune_lora_ds.sh first")
    program = f"""
import sys
from tests.test_pipeline import predictions
from serving.pipeline import GraphQAPipeline
from pathlib import Path
import tempfile, json
folder = Path({str(folder)!r})
with tempfile.TemporaryDirectory() as name:
    expected = predictions(folder / "model", folder / "data", Path(name) / "p.jsonl")
pipeline = GraphQAPipeline.from_pretrained(folder / "model", folder / "data", max_new_tokens=12)
different = [question for question, answer in expected.items() if pipeline.ask(question).answer != answer]
print(json.dumps([len(expected), len(different)]))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT,
                          env=environment)  # fmt: skip
    asked, different = json.loads(done.stdout.splitlines()[-1])
    assert asked > 400 and different == 0
