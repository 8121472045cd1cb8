"""The judge: verdicts, both orders, what is skipped is never a win, and a second judging costs nothing."""

import json
import subprocess
from pathlib import Path

import pytest

from data_processor.calls import CallLog
from data_processor.prompts import Prompts
from data_processor.schema import write_jsonl
from data_processor.text_generator import ReplyFunction, TextGenerator
from data_processor.wording import Wording
from evaluation.__main__ import main
from evaluation.judge import compare_all, fact_of, judge_all, outcome

ROOT = Path(__file__).resolve().parent.parent
FACTS = {"a#0-0": "Karo was born in Lumo.", "a#0-1": "Miro taught Karo."}


def row(name, prediction, answers=("Lumo",), question="Where was Karo born?"):
    return {"id": name, "question": question, "prediction": prediction, "answers": list(answers)}


def rules(request):
    """A judge by rules: right is what the fact holds; "hm" is skipped, "??" gets no usable verdict."""
    values = request.values
    if "judge" == request.name:
        said = values["answer"]
        verdict = {"hm": "skip"}.get(said, "correct" if said in values["fact"] else "wrong")
        return "who knows" if said == "??" else json.dumps({"verdict": verdict})
    right = [values[name] in values["fact"] for name in ("first", "second")]
    if "biased" in values["first"] + values["second"]:
        right = [True, False]  # always the answer that stands first
    winner = "tie" if right[0] == right[1] else "1" if right[0] else "2"
    return json.dumps({"winner": "skip" if "hm" in (values["first"], values["second"]) else winner})


@pytest.fixture
def generator(tmp_path):
    with TextGenerator(ReplyFunction(rules, "rules"), CallLog(tmp_path / "calls.jsonl")) as one:
        yield one


def test_verdicts_are_counted_apart_and_agreement_is_with_exact_match(generator):
    rows = [row("a#0-0-q0", "Lumo"), row("a#0-0-q1", "in Lumo"), row("a#0-0-q2", "Rome"), row("a#0-0-q3", "hm"),
            row("a#0-0-q4", "??"), row("a#0-0-q5", "  ")]  # fmt: skip
    metrics, verdicts = judge_all(rows, FACTS, generator, Wording(Prompts()))
    assert verdicts == ["correct", "correct", "wrong", "skip", "unreadable", "wrong"]
    assert metrics["judge_accuracy"] == pytest.approx(2 / 6)
    assert metrics["judge_skipped"] == metrics["judge_unreadable"] == pytest.approx(1 / 6)
    assert metrics["judge_agreement"] == pytest.approx(3 / 4), "of the four judged, 'in Lumo' alone is no exact match"
    assert metrics["judge_accuracy_low"] <= metrics["judge_accuracy"] <= metrics["judge_accuracy_high"]


def test_a_win_needs_both_orders_and_a_judge_that_favours_the_first_place_wins_nothing(generator):
    first = [row("a#0-0-q0", "Lumo"), row("a#0-0-q1", "Rome"), row("a#0-0-q2", "Lumo"), row("a#0-0-q3", "biased"),
             row("a#0-0-q4", "hm"), row("a#0-0-q5", "Lumo")]  # fmt: skip
    second = [row("a#0-0-q0", "Rome"), row("a#0-0-q1", "Lumo"), row("a#0-0-q2", "in Lumo"), row("a#0-0-q3", "x"),
              row("a#0-0-q4", "Lumo"), row("a#0-0-q5", "Lumo")]  # fmt: skip
    metrics, outcomes = compare_all(first, second[::-1], FACTS, generator, Wording(Prompts()))
    assert outcomes == ["first", "second", "tie", "order_dependent", "skip", "tie"]
    assert sum(metrics.values()) == pytest.approx(1.0)
    assert metrics["win_rate"] == metrics["loss_rate"] == pytest.approx(1 / 6)
    asked = generator.asked
    compare_all(first, second, FACTS, generator, Wording(Prompts()))
    assert generator.asked == asked, "the same calls are in the log"
    with pytest.raises(ValueError, match="same questions"):
        compare_all(first, second[1:], FACTS, generator, Wording(Prompts()))


@pytest.mark.parametrize(
    ("orders", "is_"),
    [(("first", "first"), "first"), (("first", "tie"), "order_dependent"), (("skip", "first"), "skip"),
     (("unreadable", "skip"), "unreadable")],
)  # fmt: skip
def test_orders_together(orders, is_):
    assert outcome(orders) == is_


def test_the_fact_is_found_by_the_questions_id_and_gold_answers_stand_in_for_it():
    assert fact_of(row("a#0-1-q12", "x"), FACTS) == "Miro taught Karo."
    assert fact_of(row("other", "x"), FACTS) == "Where was Karo born? Lumo"


def test_the_command_judges_one_run_against_another_with_recorded_replies(tmp_path, capsys, generator):
    good, bad = [row("a#0-0-q0", "Lumo")], [row("a#0-0-q0", "Rome")]
    for rows in (good, bad):
        judge_all(rows, FACTS, generator, Wording(Prompts()))
    compare_all(good, bad, FACTS, generator, Wording(Prompts()))
    facts = [{"id": name, "text": text, "document": "a"} for name, text in FACTS.items()]
    for name, rows in (("good", good), ("bad", bad), ("facts", facts)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    main(["judge", "--predictions", str(tmp_path / "good.jsonl"), "--against", str(tmp_path / "bad.jsonl"),
          "--facts", str(tmp_path / "facts.jsonl"), "--output", str(tmp_path / "out" / "judge.json"),
          "--backend", "recorded", "--replies", str(tmp_path / "calls.jsonl"), "--model", "rules"])  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "judge.json").read_text())
    assert metrics["judge_accuracy"] == metrics["win_rate"] == 1.0 and metrics["judge_accuracy_against"] == 0.0
    verdicts = [json.loads(line) for line in open(tmp_path / "out" / "judge_verdicts.jsonl")]
    assert verdicts == [{"id": "a#0-0-q0", "verdict": "correct", "verdict_against": "wrong", "outcome": "first"}]
    assert "win_rate" in capsys.readouterr().out


def test_a_missing_facts_file_is_one_sentence(tmp_path, capsys):
    write_jsonl(tmp_path / "p.jsonl", [row("a", "x")])
    with pytest.raises(SystemExit) as stop:
        main(["judge", "--predictions", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "j.json"),
              "--facts", str(tmp_path / "none.jsonl"), "--backend", "api", "--model", "m"])  # fmt: skip
    assert stop.value.code == 2 and "none.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "split", "questions"),
    [
        (["graph/", "conversations_recall.json"], "test", "D"),
        (["conversations_recall.json"], "recall", "D/conversations_recall.json"),
        ([], "test", "D"),
    ],
)
def test_the_shells_ask_for_conversations_where_there_is_no_graph(tmp_path, there, split, questions):
    (tmp_path / "D").mkdir()
    for name in there:
        (tmp_path / "D" / name).mkdir() if name.endswith("/") else (tmp_path / "D" / name).write_text("[]")
    script = f'source "{ROOT}/shells/common.sh"; cd "{tmp_path}"; split="$(split_of D)"; echo "$split"; '
    script += 'questions_of D "$split"'
    clean = {"PATH": "/usr/bin:/bin"}  # SPLIT in the environment would be taken
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True, env=clean)
    assert done.stdout.split() == [split, questions]
