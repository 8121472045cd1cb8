"""Several turns about a node: each answer is that of the whole chat, and the graph stays when old turns go."""

import io
import sys

import pytest

from serving.__main__ import main
from serving.answering import answer_texts
from serving.conversation import Conversation
from serving.pipeline import GraphQAPipeline
from tests.tiny_world import write_dataset, write_model

QUESTIONS = ["what is far from it?", "and next to it?", "are you sure?"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    return str(write_model(folder, {})), str(write_dataset(folder / "data"))


@pytest.fixture(scope="module")
def pipeline(folders):
    return GraphQAPipeline.from_pretrained(*folders, "random_walk", {"steps": 1}, max_new_tokens=6)


def test_every_answer_is_given_with_all_turns_before_it(pipeline):
    evidence = pipeline.about("thing4")
    assert evidence.named and [node.name for node in evidence.nodes if node.seed] == ["thing4"]
    talk, chat = pipeline.converse(evidence), []
    for place, question in enumerate(QUESTIONS):
        chat += [{"role": "user", "content": question}] if place else pipeline._prompt(question, evidence)
        (expected,) = answer_texts(pipeline.model, pipeline.processor, [chat], max_new_tokens=6)
        assert talk.ask(question) == expected != ""
        chat.append({"role": "assistant", "content": expected})
    assert [question for question, _ in talk.turns] == QUESTIONS
    assert pipeline.converse(evidence).ask(QUESTIONS[2]) != talk.turns[2][1], "what was said before counts"


def test_the_oldest_turns_go_and_the_graph_moves_to_the_first_that_stays(pipeline, caplog):
    evidence = pipeline.about("thing4")
    talk = Conversation(pipeline.model, pipeline.processor, lambda q: pipeline._prompt(q, evidence), 6)
    talk.turns = [("what is far from it? " * 5, "thing9"), ("and next?", "thing5")]
    whole = talk.messages("why?")
    assert len(whole) == 5
    talk.max_length = len(pipeline.processor.encode(whole)["input_ids"]) - 1
    shorter = talk.messages("why?")
    kinds = [item["type"] for item in shorter[0]["content"]]
    assert len(shorter) == 3 and "graph" in kinds and shorter[0]["content"][-1]["text"] == "and next?"
    assert "the 1 oldest of 2 turns are left out" in caplog.text


def test_an_unknown_name_and_an_empty_question_are_one_sentence(pipeline):
    with pytest.raises(ValueError, match="no node of .* is called 'thing99'"):
        pipeline.about("thing99")
    with pytest.raises(ValueError, match="the question is empty"):
        pipeline.converse(None).ask("  ")


def test_the_terminal_talks_about_a_node(folders, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is next to it?\nand then?\n"))
    words = ["--model", folders[0], "--data", folders[1], "--method", "random_walk", "--parameter", "steps=1"]
    assert main(["chat", *words, "--node", "thing4", "--max_new_tokens", "6"]) == 0
    printed = capsys.readouterr().out
    assert "thing4 | next_to | thing5" in printed and len(printed.strip().split("\n\n")[-1].splitlines()) == 2
