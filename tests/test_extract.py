"""From texts to a graph: triples that are some, spellings that are one thing, questions that find their nodes."""

import json

import numpy as np
import pytest

from data_processor.__main__ import main
from data_processor.extract import Entities, QuestionLinks, is_short_form, key_of, open_graph
from data_processor.graph_store import KnowledgeGraph, embed_graph
from data_processor.schema import read_jsonl, read_qa
from data_processor.text_encoder import load_encoder
from tests.test_collect import check_stages, files, rules, run

FACTS = {"Karo": ("was born in", "Lumo"), "Miro": ("taught", "Karo"), "The Blue Tower": ("stands in", "Lumo")}


def spoken(request):
    """Rule-based replies about the facts above; no language model is behind them."""
    text = request.values.get("text", "")
    if request.name == "entities":
        return json.dumps({"entities": [name for name in (*FACTS, "Lumo") if name in text]})
    if request.name == "triples":
        said = [(head, verb, tail) for head, (verb, tail) in FACTS.items() if f"{head} {verb}" in text]
        rows = [{"head": head, "relation": verb, "tail": tail} for head, verb, tail in said]
        return json.dumps({"triples": [*rows, *rows[:1], {"head": " ", "relation": "is", "tail": "x"}]})
    if request.name == "question":
        head = request.values["fact"].split(" was ")[0].split(" taught")[0].split(" stands")[0]
        return json.dumps({"question": f"What of {head}?", "answer": FACTS[head][1]})
    return rules(request)


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, (head, (verb, tail)) in enumerate(FACTS.items()):
        (folder / f"{number}.txt").write_text(f"{head} {verb} {tail}, it is said.")
    return folder


CHANGES = {"qa_amount_per_fact": 1, "role_amount_per_fact": 0, "test_share": 0, "validation_share": 0}


def test_texts_become_a_graph_whose_questions_know_their_nodes(tmp_path, texts):
    _, manifest = run(tmp_path, texts, spoken, with_graph=True, **CHANGES)
    output = tmp_path / "out"
    check_stages(output, manifest)
    assert manifest["stages"]["triples"] == {"in": 9, "kept": 3, "rejected": 6}
    graph = KnowledgeGraph.open(output / "graph", verify=True)
    assert graph.num_nodes == 4 and graph.num_edges == 3
    triples = {tuple(graph.node_name([head]) + graph.relation_name([kind]) + graph.node_name([tail]))
               for head, kind, tail in graph.edges}
    assert triples == {(head, verb, tail) for head, (verb, tail) in FACTS.items()}
    for pair in read_qa(output / "qa" / "train.jsonl"):
        head = pair.question.removeprefix("What of ").removesuffix("?")
        assert graph.node_name(pair.seed_nodes) == [head]
        assert graph.node_name(pair.answer_nodes) == [FACTS[head][1]] == list(pair.answers)
    rows = {row["question"]: row for row in json.loads((output / "gfm_rag" / "train.json").read_text())}
    row = rows["What of Karo?"]
    assert row["supporting_facts"] == ["0.txt#0"] and row["question_entities"] == ["Karo"]
    assert sorted(row["supporting_entities"]) == ["Karo", "Lumo"]


def test_a_second_run_keeps_the_graph_with_its_embeddings_unless_the_triples_change(tmp_path, texts):
    run(tmp_path, texts, spoken, with_graph=True, **CHANGES)
    graph = embed_graph(tmp_path / "out" / "graph", load_encoder("hashing:8"))
    first = files(tmp_path / "out")
    generator, _ = run(tmp_path, texts, spoken, with_graph=True, **CHANGES)
    assert generator.asked == 0 and files(tmp_path / "out") == first
    assert KnowledgeGraph.open(graph.path).node_features is not None
    (texts / "0.txt").unlink()
    run(tmp_path, texts, spoken, with_graph=True, **CHANGES)
    graph = KnowledgeGraph.open(graph.path)
    assert graph.num_edges == 2 and graph.node_features is None


def test_the_index_read_from_disk_is_the_index_that_was_built(tmp_path, texts):
    run(tmp_path, texts, spoken, with_graph=True, **CHANGES)
    nodes = open_graph(tmp_path / "out").nodes_of
    names = KnowledgeGraph.open(tmp_path / "out" / "graph").node_name
    assert {name: set(names(found)) for name, found in nodes.items()} == {
        f"{i}.txt#0": {head, tail} for i, (head, (_, tail)) in enumerate(FACTS.items())
    }


@pytest.mark.parametrize("stage", ["entities", "triples"])
def test_garbage_at_a_stage_is_counted_and_a_graph_without_triples_is_said(tmp_path, texts, stage):
    def reply(request):
        garbage = request.name == stage and "Karo" in request.values["text"]
        return "~~" if garbage else spoken(request)

    _, manifest = run(tmp_path, texts, reply, with_graph=True, **CHANGES)
    check_stages(tmp_path / "out", manifest)
    assert manifest["stages"]["entities" if stage == "entities" else "triple_lists"]["rejected"] == 2

    def silent(request):
        return "~~" if request.name == stage else spoken(request)

    with pytest.raises(ValueError, match="no triple was extracted from 3 chunks"):
        run(tmp_path / "none", texts, silent, with_graph=True, **CHANGES)


def test_two_spellings_are_one_node_and_two_things_are_two():
    entities = Entities()
    for name in ("World Health Organization (WHO)", "Orchestra (Mozart)"):
        entities.learn(name)
    same = ["World Health Organization", "the world health organization", "WHO"]
    assert {entities.node(name) for name in same} == {entities.node("World Health Organization (WHO)")}
    assert entities.node("Café Müller") == entities.node("cafe muller")
    assert entities.node("The Who") == entities.node("WHO"), "an article in front changes nothing"
    assert entities.node("Orchestra (Mozart)") != entities.node("Mozart")
    assert entities.names[0] == "World Health Organization"
    assert key_of("The") == "the" and key_of("!!") == "" and key_of("《红楼梦》") == "红楼梦"
    assert is_short_form("BBC", "British Broadcasting Corporation") and is_short_form("UoP", "University of Padua")
    assert not is_short_form("x", "University")


def test_questions_of_an_answer_that_is_a_sentence_find_what_it_names(tmp_path, texts):
    run(tmp_path, texts, spoken, with_graph=True, **CHANGES)
    index = open_graph(tmp_path / "out")
    seeds, answers = QuestionLinks(index).nodes("Whom did Miro teach?", "Miro taught Karo.")
    assert index.graph.node_name(np.array(seeds)) == ["Miro"]
    assert index.graph.node_name(np.array(answers)) == ["Karo"]


def test_the_extract_command_makes_a_graph_alone(tmp_path, texts):
    run(tmp_path, texts, spoken, with_graph=True, **CHANGES)
    flags = ["--backend", "recorded", "--replies", str(tmp_path / "out" / "calls.jsonl"), "--model", "rules"]
    assert main(["extract", "--input", str(texts), "--output", str(tmp_path / "graph_only"), *flags]) == 0
    ours, whole = (KnowledgeGraph.open(tmp_path / name / "graph") for name in ("graph_only", "out"))
    assert ours.manifest["checksums"] == whole.manifest["checksums"]
    assert [row for _, row in read_jsonl(tmp_path / "graph_only" / "rejected.jsonl")]
    assert not (tmp_path / "graph_only" / "facts.jsonl").exists()
