"""Predictions: what each ablation shows the model, and that a stopped run ends like one that was not."""

import json

import pytest

from evaluation.ablations import ABLATIONS, derangement, graphs_of, prompt_builder
from evaluation.generation import append_retrieved, generate_predictions


@pytest.fixture
def dataset(toy_graph):
    """Seven questions with a graph each; the text of the graph stands before the question."""

    def example(i: int) -> dict:
        graph = {**toy_graph, "node_features": toy_graph["node_features"] + i}
        text = f"{'kamiro | wrote | sote ' * (i % 3)}\n\nwho wrote number {i}?"
        content = [{"type": "graph", "graph": graph}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"secret{i}"}]
        return {"id": f"q{i}", "question": f"who wrote number {i}?", "answers": (f"secret{i}",), "messages": messages,
                "type": ["lookup", "path"][i % 2]}

    return [example(i) for i in range(7)]


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def shown(dataset, ablate: str) -> list[tuple[list[float], str]]:
    """Per question the first feature of its graphs and its text."""
    prompt = prompt_builder(dataset, [example["type"] for example in dataset], ablate, seed=0)
    prompts = [prompt(i) for i in range(len(dataset))]
    contents = [messages[-1]["content"] for messages in prompts]
    texts = ["".join(item["text"] for item in content if item["type"] == "text") for content in contents]
    graphs = [[float(item["graph"]["node_features"][0, 0]) for item in graphs_of(messages)] for messages in prompts]
    return list(zip(graphs, texts, strict=True))


def test_no_ablation_shows_the_answer(dataset):
    for ablate in ABLATIONS:
        assert all("secret" not in text for _, text in shown(dataset, ablate)), ablate


def test_each_ablation_takes_away_what_it_says(dataset):
    whole, no_text, bare = shown(dataset, "none"), shown(dataset, "no_text"), shown(dataset, "question_only")
    assert [graph for graph, _ in no_text] == [graph for graph, _ in whole]
    assert [text for _, text in no_text] == [text for _, text in bare] == [row["question"] for row in dataset]
    assert all(graph == [] for graph, _ in bare)
    shuffled = shown(dataset, "shuffle")
    assert [text for _, text in shuffled] == [text for _, text in whole]
    assert all(new != own for (new, _), (own, _) in zip(shuffled, whole, strict=True))
    assert sorted(graph for graph, _ in shuffled) == sorted(graph for graph, _ in whole)


def test_derangement_stays_within_the_type_and_is_never_the_sample_itself():
    kinds = ["a"] * 20 + ["b"] * 2 + ["c"]
    partner = derangement(kinds, seed=3)
    assert all(i != j for i, j in enumerate(partner))
    assert all(kinds[i] == kinds[j] for i, j in enumerate(partner[:22]))
    assert partner == derangement(kinds, seed=3) != derangement(kinds, seed=4)
    with pytest.raises(ValueError, match="at least two questions"):
        derangement(["a"], seed=0)


def test_predictions_follow_the_data_set_and_do_not_depend_on_the_batch(build_model, dataset, tmp_path):
    model, processor = build_model()
    one = generate_predictions(model, processor, dataset, tmp_path / "one.jsonl", batch_size=1, max_new_tokens=4)
    four = generate_predictions(model, processor, dataset, tmp_path / "four.jsonl", batch_size=4, max_new_tokens=4)
    assert rows_of(one) == rows_of(four)
    assert [row["id"] for row in rows_of(one)] == [f"q{i}" for i in range(7)]
    assert set(rows_of(one)[0]) == {"id", "question", "prediction", "answers", "type"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four.jsonl", "one.jsonl"]


def test_greedy_prediction_equals_the_argmax_by_hand(build_model, dataset, tmp_path):
    import torch

    model, processor = build_model()
    path = generate_predictions(model, processor, dataset[:1], tmp_path / "p.jsonl", max_new_tokens=3)
    batch = processor.pad([processor.encode(dataset[0]["messages"][:-1])])
    tokens = []
    for _ in range(3):
        with torch.no_grad():
            token = model(**batch).logits[0, -1].argmax().view(1, 1)
        tokens.append(int(token))
        if tokens[-1] == processor.tokenizer.eos_token_id:
            break
        batch["input_ids"] = torch.cat([batch["input_ids"], token], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    assert rows_of(path)[0]["prediction"] == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_habits_of_the_base_model_do_not_bend_the_search(build_model, dataset, tmp_path):
    model, processor = build_model()
    plain = generate_predictions(model, processor, dataset, tmp_path / "plain.jsonl", max_new_tokens=6)
    habits = {"repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 9.0}
    model.generation_config.update(**habits)
    bent = generate_predictions(model, processor, dataset, tmp_path / "bent.jsonl", max_new_tokens=6)
    assert rows_of(bent) == rows_of(plain)


def test_the_fingerprint_sees_every_weight_and_reads_large_ones_in_blocks(build_model):
    import torch

    from evaluation.generation import _fingerprint, _norm

    values = torch.tensor([[1.5, -2.0], [0.25, -0.25], [3.0, 1.0]], dtype=torch.bfloat16)
    assert _norm(values) == _norm(values, block=4) == 8.0
    assert _norm(torch.tensor([200, 100], dtype=torch.uint8), block=1) == 300
    model, _ = build_model()
    before = _fingerprint(model)
    with torch.no_grad():
        next(model.graph_projector.parameters()).view(-1)[0] += 1e-3
    assert _fingerprint(model) != before


def test_zeroed_tokens_take_the_graph_away_whatever_it_is(build_model, dataset, tmp_path):
    """With zeros in place of graph tokens, graphs that differ by far give the prompt the same logits."""
    import torch

    from evaluation.generation import _inputs

    model, processor = build_model()
    other = {**dataset[0], "messages": [{"role": "user", "content": [
        graphs_of(dataset[5]["messages"])[0], dataset[0]["messages"][0]["content"][1]]}]}
    logits = {}
    for zero in (True, False):
        for name, example in (("own", dataset[0]), ("other", other)):
            batch = _inputs(model, processor, [example["messages"][:1]], None, zero)
            with torch.no_grad():
                logits[zero, name] = model(**batch).logits
    assert torch.equal(logits[True, "own"], logits[True, "other"])
    assert not torch.allclose(logits[False, "own"], logits[False, "other"])
    path = generate_predictions(model, processor, dataset, tmp_path / "z.jsonl", max_new_tokens=2, ablate="zero")
    assert len(rows_of(path)) == 7


def test_a_stopped_run_goes_on_and_equals_one_that_was_not(build_model, dataset, tmp_path, monkeypatch):
    import evaluation.generation as generation

    model, processor = build_model()
    whole = generate_predictions(model, processor, dataset, tmp_path / "whole.jsonl", batch_size=2, max_new_tokens=3)
    answers, calls = generation._answers, []

    def stops_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answers(*args)

    monkeypatch.setattr(generation, "_answers", stops_at_the_third)
    stopped = tmp_path / "stopped.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generate_predictions(model, processor, dataset, stopped, batch_size=2, max_new_tokens=3)
    assert not stopped.exists()
    part = tmp_path / "stopped.jsonl.partial0"
    assert len(rows_of(part)) == 1 + 4
    with open(part, "a", encoding="utf-8") as file:
        file.write('{"id": "q0", "predi')  # killed in the middle of a line
    generate_predictions(model, processor, dataset, stopped, batch_size=2, max_new_tokens=3)
    assert len(calls) == 3 + 2  # four of seven were there
    assert stopped.read_bytes() == whole.read_bytes()
    assert not part.exists()


def test_a_log_of_other_weights_is_not_continued(build_model, dataset, tmp_path, caplog):
    model, processor = build_model()
    path = tmp_path / "p.jsonl"
    stale = [{"model": "another"}, {"id": "q0", "question": "", "prediction": "stale", "answers": [""]}]
    (tmp_path / "p.jsonl.partial0").write_text("".join(json.dumps(row) + "\n" for row in stale))
    rows = rows_of(generate_predictions(model, processor, dataset, path, max_new_tokens=2))
    assert "not continued" in caplog.text
    assert all(row["prediction"] != "stale" for row in rows)


def test_retrieved_names_follow_the_generated_answers_once(build_model, dataset, tmp_path):
    row = append_retrieved({"prediction": "oslo\nrome"}, ["rome", "bern"])
    assert row["ranked_answers"] == ["oslo", "rome", "bern"] and row["retrieved"] == ["rome", "bern"]
    model, processor = build_model()
    path = generate_predictions(model, processor, dataset, tmp_path / "p.jsonl", max_new_tokens=2,
                                retrieved=lambda question: [f"node of {question}"])
    assert [row["ranked_answers"][-1] for row in rows_of(path)] == [f"node of q{i}" for i in range(7)]


def test_a_conversation_is_scored_against_its_last_answer(build_model, tmp_path):
    model, processor = build_model()
    turns = [("user", "first?"), ("assistant", "one"), ("user", "second?"), ("assistant", "two")]
    conversation = {"id": "c", "messages": [{"role": role, "content": text} for role, text in turns]}
    path = generate_predictions(model, processor, [conversation], tmp_path / "p.jsonl", 1, 2, "no_text")
    row = rows_of(path)[0]
    assert (row["question"], row["answers"]) == ("second?", ["two"])


def test_refusals_name_what_is_wrong(build_model, dataset, tmp_path):
    model, processor = build_model()
    with pytest.raises(ValueError, match="'graph' is not known. Choose one of none, zero"):
        generate_predictions(model, processor, dataset, tmp_path / "p.jsonl", ablate="graph")
    with pytest.raises(ValueError, match="no question to answer"):
        generate_predictions(model, processor, [], tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match="'q0' stands for two"):
        generate_predictions(model, processor, [dataset[0], dataset[0]], tmp_path / "p.jsonl")
