"""What charts show at the edges of numbers, and what a page says of runs: alike, unlike, or without answers."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from evaluation.charts import Axis, Series, chart, round_numbers, short
from evaluation.page import Figure, Section, Table, to_html
from evaluation.report import read_run
from evaluation.report_page import build_sections, shortened
from evaluation.sweep_page import against
from evaluation.training_log import adaptation, costs, read_training
from tests.test_report import row, write
from training.run_cost import reading

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<script>"&'


def dots(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    found = [one for one in root.iter(f"{SVG}circle") if one.find(f"{SVG}title") is not None]
    return [(float(one.get("cx")), float(one.get("cy"))) for one in found]


def test_points_lie_where_their_numbers_are():
    places = dots(chart([Series("a", [(0, 0), (5, 5), (10, 10)], line=False)], Axis("x"), Axis("y")))
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True), "up is more"
    (left, _), (middle, _), (right, _) = places
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    (left, _), (middle, _), (right, _) = dots(
        chart([Series("a", [(1e-4, 1), (1e-3, 1), (1e-2, 1)], line=False)], Axis("x", log=True), Axis("y"))
    )
    assert middle == pytest.approx((left + right) / 2, abs=0.1)


def test_what_cannot_be_drawn_is_left_out_and_texts_are_escaped():
    nan = float("nan")
    assert chart([Series("a", [(0, nan), (nan, 1)])], Axis("x"), Axis("y")) == chart([], Axis("x"), Axis("y")) == ""
    assert len(dots(chart([Series("a", [(0, 1), (1, 2), (2, nan)])], Axis("x", log=True), Axis("y")))) == 1
    svg = chart([Series(EVIL, [(0, 1)]), Series("b", [(0, 2)])], Axis(EVIL, names=(EVIL,)), Axis(EVIL))
    assert EVIL in "".join(ElementTree.fromstring(svg).itertext()) and "<script" not in svg


def test_ticks_are_round_numbers():
    assert round_numbers(0.03, 1.0) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert round_numbers(-3, 12) == [0.0, 5.0, 10.0]
    assert [short(one) for one in (0, 0.25, 2e-5, 123456.0, 2000)] == ["0", "0.25", "2e-5", "1.23e5", "2000"]


def test_a_page_leaves_out_what_is_empty_and_sets_numbers_to_the_right():
    table = Table([["name", "value"], ["a", "1.5"], ["b", "-"]])
    page = to_html("T", [Section("full", [table]), Section("none", [Table([["x"]]), Figure("", "nothing")])])
    assert '<td>a</td><td class="n">1.5</td>' in page and "none" not in page


@pytest.fixture
def trained(tmp_path):
    """A folder of a training: two rows of log, metrics, an adapter of a megabyte."""

    def make(name: str, rows: list[dict] | None = None, **arguments):
        folder = tmp_path / name
        log = [{"step": 1, "epoch": 0.5, "loss": 2.0}, {"step": 2, "loss": 1.0, "eval_loss": 1.0}]
        write(folder / "log.jsonl", log)
        if rows is not None:
            write(folder / "predictions.jsonl", rows)
        (folder / "adapter_model.safetensors").write_bytes(b"0123456789" * 100_000)
        metrics = {"parameters": 2e6, "parameters_trained": 5e5, "weight_bytes": 1.2e6, "tokens": 3e6, "minutes": 2.0}
        (folder / "metrics.json").write_text(json.dumps(metrics | {"train_runtime": 100.0, "peak_gib": 0.5}))
        record = {"arguments": {"lora_r": 8, "output_dir": name} | arguments, "commit": "c" * 40, "machine": "m"}
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return make


def texts(folders) -> dict[str, str]:
    """The Markdown of each section, by its title."""
    from evaluation.page import block_markdown, shown

    sections = shown(build_sections([read_run(folder) for folder in folders]))
    return {one.title: "\n".join(line for block in one.blocks for line in block_markdown(block)) for one in sections}


def test_two_runs_differ_beyond_chance_or_not(trained):
    right = [row(i, "yes", kind=f"{1 + i % 2}-hop") for i in range(20)]
    half = [row(i, "yes" if i % 2 else "no", kind=f"{1 + i % 2}-hop") for i in range(20)]
    most = [row(i, "yes" if i else "no", kind=f"{1 + i % 2}-hop") for i in range(25)]
    names = [trained("a", right), trained("b", half, use_lora=False), trained("c", most)]
    said = texts(names)
    told = f"a to {names[1]}: The difference in exact_match is beyond chance (1.000 -> 0.500"
    assert told in said["What the runs say"]
    assert "is not beyond chance (1.000 -> 0.950" in said["What the runs say"], "of the shared questions alone"
    assert "20 shared questions" in said["Differences between the runs"]
    table = [line for line in said["Exact match by question type"].splitlines() if "/b |" in line]
    assert table == [f"| {names[1]} | none | 0.000<br>0.000 to 0.000 | 1.000<br>1.000 to 1.000 |"]
    assert "1-hop 13, 2-hop 12" in said["Exact match by question type"]
    assert "| use_lora | null | false | null |" in said["What differs between the runs"]
    assert "output_dir" not in said["What differs between the runs"]
    assert "is not at hand" in said["Samples"] and "no (wrong)" in said["Samples"]


def test_of_many_runs_those_that_differ_are_named(trained):
    right = [row(i, "yes") for i in range(20)]
    wrong = [row(i, "no") for i in range(20)]
    said = texts([trained(name, right if name in "abc" else wrong) for name in "abcdef"])["What the runs say"]
    assert "d, " in said and "f differ from " in said and "beyond chance; 2 of the 5 others do not." in said


def test_long_answers_are_compared_by_what_was_asked_for(trained):
    import numpy as np

    names = [trained(name, [row(i, word) for i in range(9)]) for name, word in (("a", "maybe"), ("b", "hm"))]
    more = lambda rows: {"letters": np.array([float(len(one["prediction"])) for one in rows])}  # noqa: E731
    sections = {one.title: one for one in build_sections([read_run(name) for name in names], more)}
    assert "difference in letters is beyond chance (5.000 -> 2.000" in sections["What the runs say"].blocks[0].text
    assert sections["Scores"].table[0][3:] == ["exact_match", "letters", "95 % of exact match"]
    assert sections["Letters by question type"].table[1][2].startswith("5.000")


def test_runs_of_other_questions_are_not_compared_and_trainings_need_no_answers(trained, tmp_path):
    other = [row(i, "yes") for i in range(50, 60)]
    said = texts([trained("a", [row(0, "yes")]), trained("b", other), trained("c")])
    assert "answered different questions" in said["What the runs say"]
    assert "Differences between the runs" not in said and "Loss in training" in said["Training"]
    assert texts([trained("d")])["What the runs say"] == "No run has predictions."
    with pytest.raises(ValueError, match="There are no predictions at"):
        read_run(tmp_path)


def test_rows_of_other_data_under_the_same_ids_are_not_shared(trained):
    rows = [row(i, "yes") for i in range(8)]
    other = [one | {"question": "who?", "answers": ["no"]} for one in rows]
    said = texts([trained("a", rows), trained("b", other), trained("c", [*rows[:5], *other[5:]])])
    assert "a and" in said["What the runs say"] and "answered different questions" in said["What the runs say"]
    assert "5 shared questions" in said["Differences between the runs"]


def test_runs_may_be_named_by_absolute_and_relative_paths(trained, tmp_path, monkeypatch):
    trained("a", [row(0, "yes")]), trained("b", [row(0, "yes")])
    monkeypatch.chdir(tmp_path)
    runs = [read_run(tmp_path / "a"), read_run("b"), read_run(tmp_path / "a" / "predictions.jsonl")]
    assert [run.name for run in shortened(runs)] == ["a", "b", "a/predictions.jsonl"]


def test_costs_are_those_of_the_record(trained):
    run = read_training(trained("a", q_lora=True, q_bits=4))
    header, cells = costs({"a": run})
    assert dict(zip(header, cells, strict=True)) == {
        "run": "a", "language model": "LoRA, r 8, 4 bits", "evaluation loss": "-",
        "parameters, M": "2.00", "trained, M": "0.50",
        "weights held, MB": "1.2", "saved, MB": "1.0", "peak, GiB": "0.50", "minutes": "2.0", "tokens": "3,000,000",
        "tokens a second": "30,000",
    }  # fmt: skip
    assert [adaptation(one) for one in ({}, {"freeze_lm": True}, {"use_lora": False})] == ["-", "frozen", "full"]


def test_the_rate_of_a_resumed_run_is_that_of_its_log(trained):
    rows = [{"loss": 2.0, "tokens": 3e6, "tokens_per_s": 1e6, "peak_gib": 0.5}, {"loss": 1.0, "eval_loss": 1.0},
            {"train_runtime": 1.0, "tokens": 1e6, "tokens_per_s": 2e5, "peak_gib": 0.25}]  # fmt: skip
    found = reading(rows)
    assert found == {"tokens": 4e6, "tokens_per_s": 4e6 / (3 + 5), "peak_gib": 0.5} and reading(rows[1:2]) == {}
    run = read_training(trained("a"))
    header, cells = costs({"a": replace(run, metrics=run.metrics | found | {"train_runtime": 1.0})})
    assert dict(zip(header, cells, strict=True))["tokens a second"] == "500,000"


def test_a_run_is_found_by_who_was_asked(trained, tmp_path):
    model = trained("model")
    write(tmp_path / "asked" / "predictions.jsonl", [row(0, "yes")])
    asked = {"model": str(model), "data": "nowhere", "split": "test"}
    (tmp_path / "asked" / "asked.json").write_text(json.dumps(asked))
    run = read_run(tmp_path / "asked")
    assert run.arguments["lora_r"] == 8 and run.data is None and len(run.training.log) == 2


def test_a_flag_of_names_stands_at_its_name():
    stage = {"best": 1, "space": {"encoder": {"values": ["gat", "mpnn"]}}}
    trials = [{"number": i, "params": {"encoder": name}, "values": {"loss": 1.0 + i}} for i, name in enumerate("ab")]
    for trial, name in zip(trials, ("mpnn", "gat"), strict=True):
        trial["params"]["encoder"] = name
    (mpnn, _), (gat, _) = dots(against(stage, trials, "encoder", "loss"))
    assert gat < mpnn
