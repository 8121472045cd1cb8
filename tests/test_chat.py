"""The terminal chat: answers and evidence, one question or many, and how it ends."""

import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.__main__ import main
from serving.flags import parameters
from tests.tiny_world import write_dataset, write_model

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "what is far from thing4?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """The flags that name a model and its data."""
    folder = tmp_path_factory.mktemp("chat")
    model, data = write_model(folder, {}), write_dataset(folder / "data")
    return ["--model", str(model), "--data", str(data), "--method", "random_walk", "--parameter", "steps=1"]


@pytest.fixture(scope="module")
def expected(folders) -> str:
    from serving.pipeline import GraphQAPipeline

    pipeline = GraphQAPipeline.from_pretrained(folders[1], folders[3], "random_walk", {"steps": 1})
    return pipeline.ask(QUESTION).answer


def test_one_question_prints_answer_and_facts_with_scores_and_ends(folders, expected, capsys):
    assert main(["chat", *folders, "--question", QUESTION]) == 0
    answer, *evidence = capsys.readouterr().out.splitlines()
    assert answer == expected
    assert any(line.split(maxsplit=1)[1] == "thing4 | far_from | thing9" for line in evidence if "far_from" in line)
    assert all(float(line.split()[0]) >= 0 for line in evidence if "|" in line)
    assert "nodes, " in evidence[-2] and evidence[-2].endswith("by random_walk")


def test_without_the_graph_there_is_no_evidence(folders, capsys):
    assert main(["chat", *folders, "--question", QUESTION, "--without_graph"]) == 0
    assert "|" not in capsys.readouterr().out


def test_lines_of_a_pipe_are_questions_and_its_end_is_the_end(folders, expected, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n\n   \nwho wrote it?\n"))
    assert main(["chat", *folders]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(expected) and printed.count(" by random_walk") == 2
    assert "? " not in printed.splitlines()[0]
    assert printed.count("names nothing in the graph") == 1


def test_control_c_ends_it_cleanly(folders, capsys, monkeypatch):
    class Interrupted(io.StringIO):
        def readline(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert main(["chat", *folders]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_name_of_the_graph_cannot_drive_the_terminal():
    from serving.chat import harmless, short

    assert harmless("red \x1b[31mname\x07") == "red  [31mname "
    assert short("a\nb " + "x" * 400).startswith("a b xx") and len(short("y" * 400)) == 300


def test_mistakes_are_one_sentence(folders, capsys, tmp_path):
    def said(*words: str) -> str:
        assert main(list(words)) == 2
        return capsys.readouterr().err

    assert said("talk").startswith("there is no command 'talk'; choose one of chat, web")
    assert said("chat", *folders[:2], "--data", str(tmp_path), "--question", "q").startswith(f"chat: {tmp_path}/graph")
    assert "is not NAME=VALUE" in said("chat", *folders, "--parameter", "steps")
    assert main([]) == 0 and "python -m serving chat" in capsys.readouterr().out


def test_values_of_parameters_are_numbers_where_they_read_as_such():
    found = parameters(["max_nodes=20", "restart=.5", "model=output/2", "tolerance=1e-6", "edge_cost=0.5"])
    assert found == {"max_nodes": 20, "restart": 0.5, "model": "output/2", "tolerance": 1e-6, "edge_cost": 0.5}
    assert isinstance(found["max_nodes"], int)


def read_until(terminal: int, wanted: str, seconds: float) -> str:
    """What a terminal shows until `wanted` is there, or its program has ended."""
    shown, last = "", time.monotonic() + seconds
    while wanted not in shown and time.monotonic() < last:
        if select.select([terminal], [], [], 1)[0]:
            try:
                shown += os.read(terminal, 4096).decode()
            except OSError:  # the other end is closed
                break
    return shown


def test_in_a_terminal_it_asks_answers_and_ends_with_control_d(folders, expected):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", "chat", *folders], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL,
        cwd=ROOT, env=environment,
    )  # fmt: skip
    os.close(theirs)
    try:
        assert read_until(ours, "? ", 300).endswith("? ")
        os.write(ours, f"{QUESTION}\n".encode())
        shown = read_until(ours, "by random_walk", 60)
        assert expected in shown and "thing4 | far_from | thing9" in shown
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
