"""The commands from predictions to a page, and what a report says of a graph that is not used."""

import json
from html.parser import HTMLParser

import pytest

from evaluation.__main__ import demo_metrics, main
from evaluation.page import to_html, to_markdown
from evaluation.report import compare, read_predictions, read_run, verdict
from evaluation.report_page import build_sections


def row(i: int, prediction: str, answer: str = "yes", kind: str = "path") -> dict:
    return {"id": f"q{i}", "question": f"number {i}?", "prediction": prediction, "answers": [answer], "type": kind}


def write(path, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


@pytest.fixture
def runs(tmp_path):
    """Run A answers 18 of 20 and needs its graph; run B answers 10 of 20 whatever its graph is."""
    right = [row(i, "yes" if i < 18 else "no") for i in range(20)]
    half = [row(i, "yes" if i % 2 else "no") for i in range(20)]
    for name, rows, zeroed, rate in (("a", right, half[::-1], 0.1), ("b", half, half, 0.2)):
        write(tmp_path / name / "predictions.jsonl", rows)
        write(tmp_path / name / "predictions_zero.jsonl", zeroed)
        arguments = {"learning_rate": rate, "seed": 1, "name": "<b>&"}
        (tmp_path / name / "run.json").write_text(json.dumps({"arguments": arguments, "versions": {}, "commit": None}))
    return [read_run(tmp_path / "a"), read_run(tmp_path / "b")]


def test_verdict_tells_a_graph_that_is_used_from_one_that_is_not(runs):
    used, unused = runs
    assert verdict(used.predictions["none"], used.predictions["zero"], "zero").startswith(
        "Exact match falls when the graph tokens are zeroed (0.900 -> 0.500")
    assert verdict(unused.predictions["none"], unused.predictions["zero"], "zero").startswith(
        "Exact match does not move when the graph tokens are zeroed (0.500 -> 0.500")


def test_ablation_of_a_family_is_compared_on_its_own_questions(runs):
    whole = runs[0].predictions["none"]
    long = [{**row, "prediction": "a long answer", "answers": ["a long and true answer"]} for row in whole]
    lost = [{**row, "prediction": "nothing"} for row in long]
    assert verdict(long, lost, "zero", "token_f1").startswith("token_f1 falls when")  # exact match is 0 of both
    assert "20 questions" in verdict(whole, whole, "shuffle")
    assert "1.000 -> 1.000" in verdict(whole, whole[:5], "shuffle")


def test_report_names_what_differs_and_nothing_else(runs):
    table = next(section.table for section in build_sections(runs) if section.title.startswith("What differs"))
    assert [line[0] for line in table] == ["argument", "learning_rate"]
    assert table[1][1:] == ["0.1", "0.2"]


def test_page_stands_alone_and_is_well_formed(runs, tmp_path):
    for one in (one for run in runs for rows in run.predictions.values() for one in rows if one["id"] == "q0"):
        one["question"] = "a | b\n<script>alert(1)</script>?"
    sections = build_sections(runs)
    page, text = to_html("T & T", sections), to_markdown("T & T", sections)
    opened = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag not in ("script", "link", "img") and not {"src", "href"} & {name for name, _ in attributes}
            if tag not in ("meta", "br", "wbr"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Checker().feed(page)
    assert opened == []
    assert "a \\| b<br>" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| question")}
    assert widths == {5}  # question, answer, two runs


def test_compare_pairs_by_id_whatever_the_order(runs):
    first, second = runs[1].predictions["none"], runs[0].predictions["none"]
    gains = compare(first, second[::-1])
    assert gains["exact_match_difference"] == pytest.approx(0.4) and gains["exact_match_p"] < 0.05
    assert gains == compare(first, second)
    with pytest.raises(ValueError, match="1 missing"):
        compare(first, second[1:])


def test_score_command_checks_ids_and_adds_the_baselines(tmp_path, capsys):
    predictions = write(tmp_path / "p.jsonl", [row(i, "yes") for i in range(4)])
    write(tmp_path / "data/qa/train.jsonl", [row(i, "", "yes" if i < 3 else "no") for i in range(4)])
    write(tmp_path / "data/qa/test.jsonl", [row(i, "") for i in range(4)])
    output = tmp_path / "m.json"
    main(["score", "--predictions", str(predictions), "--output", str(output), "--data", str(tmp_path / "data")])
    metrics = json.loads(output.read_text())
    assert (metrics["exact_match"], metrics["majority"], metrics["chance"]) == (1.0, 1.0, 0.75)
    assert "exact_match/path" in capsys.readouterr().out
    write(tmp_path / "data/qa/test.jsonl", [row(i, "") for i in range(5)])
    with pytest.raises(SystemExit) as stop:
        main(["score", "--predictions", str(predictions), "--output", str(output), "--data", str(tmp_path / "data")])
    assert stop.value.code == 2
    assert "'q4' is missing" in capsys.readouterr().err


def test_report_and_compare_commands_write_their_files(runs, tmp_path, capsys):
    main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "page.html")])
    assert all("does not move" in (tmp_path / name).read_text() for name in ("page.md", "page.html"))
    files = [str(tmp_path / name / "predictions.jsonl") for name in "ba"]
    main(["compare", *files, "--output", str(tmp_path / "c.json")])
    assert json.loads((tmp_path / "c.json").read_text())["exact_match_difference"] == pytest.approx(0.4)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "nothing"), "--output", str(tmp_path / "page.html")])
    assert "There are no predictions at" in capsys.readouterr().err


def test_demo_table_takes_every_figure_from_its_own_family():
    predictions = {
        "none": [row(0, "sote", "sote", "lookup"), row(1, "no", "sote", "lookup"), row(2, "yes", "yes", "graph_path")],
        "question_only": [row(0, "no", "sote", "lookup"), row(1, "no", "sote", "lookup")],
        "zero": [row(2, "no", "yes", "graph_path")],
        "shuffle": [row(2, "yes", "yes", "graph_path")],
    }
    train = [row(0, "", "sote", "lookup"), row(1, "", "yes", "graph_path"), row(2, "", "no", "graph_path")]
    metrics = demo_metrics(predictions, train)
    expected = {"exact_match": 0.5, "question_only": 0, "graph_only": 1, "graph_only_zeroed": 0,
                "graph_only_shuffled": 1, "graph_only_chance": 0.5, "exact_match/lookup": 0.5,
                "graph_only_chance/graph_path": 0.5}
    assert expected.items() <= metrics.items()


def build_world(folder) -> None:
    """Four people and what they wrote; three look-ups and three yes/no questions in either split."""
    import numpy as np

    from data_processor.graph_store import embed_graph, write_graph, write_subgraphs
    from data_processor.schema import write_jsonl
    from data_processor.text_encoder import load_encoder

    nodes = [{"name": name, "type": "person" if i < 4 else "work"} for i, name in enumerate("abcdefgh")]
    edges = np.array([[0, 0, 4], [1, 0, 5], [2, 0, 6], [3, 0, 7]])
    write_graph(folder / "graph", nodes, [{"name": "wrote"}], edges)
    graph = embed_graph(folder / "graph", load_encoder("hashing:8"))
    for split in ("train", "test"):
        pairs = [{"id": f"{split}{i}", "question": f"what did {'abcd'[i]} write?", "answers": ["efgh"[i]],
                  "type": "lookup"} for i in range(3)]
        pairs += [{"id": f"{split}{i + 3}", "question": "is it so?", "answers": [["yes", "no"][i % 2]],
                   "type": "graph_path", "text": False} for i in range(3)]
        write_jsonl(folder / "qa" / f"{split}.jsonl", pairs)
        subgraphs = [graph.subgraph([i % 4], [i % 4]) for i in range(6)]
        ids = [pair["id"] for pair in pairs]
        write_subgraphs(folder / "subgraphs" / split, ids, subgraphs, {}, {"graph": "graph"})


@pytest.fixture(scope="module")
def world(build_model, tmp_path_factory):
    """A folder with data/ and model/: random weights, saved and to be reloaded."""
    from serving.publish import save_output

    folder = tmp_path_factory.mktemp("world")
    build_world(folder / "data")
    model, processor = build_model(feature_dim=8, edge_feature_dim=8)
    save_output(model, processor, folder / "model")
    return folder


def test_demo_command_reloads_asks_and_writes_the_table(world, capsys):
    output = world / "demo" / "metrics.json"
    main(["demo", "--model", str(world / "model"), "--data", str(world / "data"), "--output", str(output)])
    metrics = json.loads(output.read_text())
    names = {"exact_match", "question_only", "graph_only", "graph_only_zeroed", "graph_only_shuffled", "minutes"}
    assert names <= set(metrics) and 0 < metrics["minutes"] < 5
    assert metrics["graph_only_chance"] == pytest.approx(2 / 3)
    printed = capsys.readouterr().out
    assert printed.count("gold:") == 3 and "Exact match does not move when the graph tokens are zeroed" in printed


def test_generate_command_ranks_the_retrieved_nodes_after_its_own_answer(world, tmp_path):
    output = tmp_path / "predictions.jsonl"
    main(["generate", "--model", str(world / "model"), "--data", str(world / "data"), "--output", str(output),
          "--append_retrieved", "1", "--max_new_tokens", "2", "--device", "cpu"])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["retrieved"] for one in rows] == [["a"], ["b"], ["c"], ["d"], ["a"], ["b"]]
    assert all(one["ranked_answers"][-1] == one["retrieved"][0] for one in rows)


@pytest.fixture
def asked(monkeypatch) -> list:
    """Runs of `generate` end before the model is asked; what it would be asked with is appended here."""
    import evaluation.generation as generation

    calls = []
    monkeypatch.setattr(generation, "generate_predictions", lambda *args, **settings: calls.append((*args, settings)))
    return calls


def trained_as(world, folder, **flags):
    """A copy of the world's model whose run.json says `flags`."""
    import shutil

    shutil.copytree(world / "model", folder)
    (folder / "run.json").write_text(json.dumps({"arguments": flags}))
    return folder


def shown_first(call) -> tuple[list[str], str]:
    """The kinds of items and the text of the first question's prompt."""
    content = call[2][0]["messages"][0]["content"]
    return [item["type"] for item in content], "".join(item.get("text", "") for item in content)


def test_a_model_is_asked_as_it_was_trained(world, tmp_path, asked, caplog):
    without_text = trained_as(world, tmp_path / "no_text", use_text=False, model_max_length=77)
    without_graph = trained_as(world, tmp_path / "no_graph", use_graph=False, text_style="tables")
    for model in (without_text, without_graph, world / "model"):
        main(["generate", "--model", str(model), "--data", str(world / "data"), "--output", str(tmp_path / "p.jsonl"),
              "--max_new_tokens", "12", "--device", "cpu"])
    first, second, third = asked
    assert shown_first(first) == (["graph", "text"], "what did a write?")
    assert first[-1]["max_length"] == 77  # as it was trained, not all that the model has positions for
    kinds, text = shown_first(second)
    assert kinds == ["text", "text"] and "node_id,node_attr" in text
    assert second[-1]["max_length"] == 512 - 12  # room for the answer
    assert shown_first(third) == (["graph", "text", "text"], "a | wrote | e\nwhat did a write?")
    assert "no run.json" in caplog.text and caplog.text.count("run.json") == 1


def test_flags_win_over_the_training_run(world, tmp_path, asked):
    model = trained_as(world, tmp_path / "model", text_style="triples", model_max_length=77)
    main(["generate", "--model", str(model), "--data", str(world / "data"), "--output", str(tmp_path / "p.jsonl"),
          "--text_style", "tables", "--max_length", "99", "--device", "cpu"])
    assert "node_id,node_attr" in shown_first(asked[0])[1] and asked[0][-1]["max_length"] == 99


def test_generate_command_answers_conversations_and_counts_those_it_cannot(world, tmp_path, capsys):
    turns = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "kamiro"}]
    rows = [{"id": "c1", "messages": turns}, {"id": "c2", "messages": turns[:1]}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    command = ["generate", "--model", str(world / "model"), "--data", str(tmp_path / "chats.jsonl"),
               "--output", str(tmp_path / "p.jsonl"), "--max_new_tokens", "2", "--device_map", "cpu"]
    main(command)
    (row,) = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert (row["id"], row["question"], row["answers"]) == ("c1", "who?", ["kamiro"])
    (left_out,) = [json.loads(line) for line in (tmp_path / "rejected_p.jsonl").read_text().splitlines()]
    assert left_out["line"] == 2 and "assistant last" in left_out["reason"]
    with pytest.raises(SystemExit):
        main([*command, "--append_retrieved", "2"])
    assert "Leave --append_retrieved out" in capsys.readouterr().err


def test_the_language_model_alone_is_loaded_in_four_bits(world, build_model, tmp_path, asked, capsys):
    from serving.publish import save_output

    pytest.importorskip("bitsandbytes")
    model, processor = build_model(feature_dim=8, edge_feature_dim=8)
    model.config.lean = True
    save_output(model, processor, tmp_path / "lean")
    command = ["generate", "--data", str(world / "data"), "--output", str(tmp_path / "p.jsonl"), "--load_in_4bit",
               "--device", "cpu", "--model"]
    main([*command, str(tmp_path / "lean")])
    model = asked[0][0]
    kinds = {name.split(".")[0] for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert kinds == {"language_model"}
    with pytest.raises(SystemExit):
        main([*command, str(world / "model")])
    assert "holds a whole model" in capsys.readouterr().err


@pytest.mark.distributed
def test_two_processes_write_what_one_writes(world, tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    written = []
    for launch in ([], ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617"]):
        output = tmp_path / f"{len(launch)}.jsonl"
        subprocess.run(
            [sys.executable, *launch, "-m", "evaluation", "generate", "--model", str(world / "model"),
             "--data", str(world / "data"), "--output", str(output), "--device", "cpu", "--batch_size", "2",
             "--max_new_tokens", "3"],
            cwd=root, check=True,
        )  # fmt: skip
        written.append(output.read_bytes())
    assert written[0] == written[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "6.jsonl"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answers": "Paris"}, "answers must be a list of texts, got 'Paris'"),
        ({"answers": [1]}, r"answers must be a list of texts, got \[1\]"),
        ({"prediction": None}, "prediction must be a text, got None"),
        ({"ranked_answers": None}, "ranked_answers must be a list of texts, got None"),
        ({"type": ["a"]}, r"type must be a text, got \['a'\]"),
    ],
)
def test_a_prediction_of_another_form_is_refused_with_its_line(tmp_path, changes, said):
    path = write(tmp_path / "p.jsonl", [row(0, "yes"), row(1, "yes") | changes])
    with pytest.raises(ValueError, match=f"p.jsonl:2: {said}"):
        read_predictions(path)


def test_the_type_of_a_question_may_be_a_number_or_none(tmp_path):
    path = write(tmp_path / "p.jsonl", [row(0, "yes", kind=2), row(1, "no", kind=None)])
    rows = read_predictions(path)
    assert rows[0]["type"] == "2" and not rows[1].get("type")
    main(["report", str(path), "--output", str(tmp_path / "page.html")])
    assert "| run | taken away | 2 |" in (tmp_path / "page.md").read_text()


def test_rows_that_share_an_id_alone_are_not_the_same_questions():
    rows = [row(i, "yes") for i in range(4)]
    with pytest.raises(ValueError, match=r"'q3' .*answers \['yes'\] in one, \['no'\] in the other"):
        compare(rows, [*rows[:3], row(3, "yes", "no")])
    with pytest.raises(ValueError, match="'q0' .*question 'number 0\\?' in one, 'who\\?' in the other"):
        compare(rows, [rows[0] | {"question": "who?"}, *rows[1:]])
    bare = [{name: one[name] for name in ("id", "prediction", "answers")} for one in rows]
    assert compare(rows, bare)["exact_match_difference"] == 0.0
