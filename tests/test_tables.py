"""Questions from CSV, JSON, Parquet and the Hub: columns by name, whole groups in one split, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_processor.questions import QuestionDataset, open_questions, within, without_graph
from data_processor.schema import Rejected
from data_processor.tables import Table, column_map, held_out, is_hub_name, is_table, open_table, read_splits

pytest.importorskip("datasets")
COLUMNS = ["question=Prompt", "answer=Response", "group=topic"]
ROWS = [
    {"Prompt": f"What is {i}?", "Response": f"thing {i}", "topic": f"t{i // 3}", "fold": i % 4, "kind": "look_up"}
    for i in range(30)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    import pandas

    folder = tmp_path_factory.mktemp("tables")
    frame = pandas.DataFrame(ROWS)
    frame.to_csv(folder / "rows.csv", index=False)
    frame.to_csv(folder / "rows.tsv", index=False, sep="\t")
    frame.to_parquet(folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "list.json").write_text(json.dumps([{"question": "a?", "answers": ["b", "c"]}]))
    (folder / "chats.json").write_text(json.dumps([{"conversations": [{"from": "user", "value": "question"}]}]))
    return folder


def opened(path: Path, wanted: dict, tmp_path: Path, **settings) -> dict:
    with Rejected(tmp_path / "rejected.jsonl") as rejected:
        return open_table(str(path), Table(columns=tuple(COLUMNS), **settings), wanted, rejected)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl"])
def test_every_kind_of_file_gives_the_same_questions(files, tmp_path, name):
    (pairs,) = opened(files / name, {"train": "train"}, tmp_path).values()
    assert [pair.question for pair in pairs] == [row["Prompt"] for row in ROWS]
    assert pairs[4].answers == ("thing 4",) and pairs[4].id == "5"


def test_what_is_a_table(files, tmp_path):
    assert is_table(str(files / "rows.csv")) and is_table(str(files / "list.json"))
    assert not is_table(str(files / "chats.json")) and not is_table(str(files / "rows.jsonl"))
    assert is_table(str(files / "rows.jsonl"), COLUMNS)
    assert is_hub_name("owner/name.v2") and not is_hub_name("rows.csv") and not is_hub_name("a/b/c")
    assert not is_hub_name("no/such.csv")
    (pairs,) = open_table(str(files / "list.json"), Table(), {"train": "train"}, Rejected(tmp_path / "r")).values()
    assert pairs[0].answers == ("b", "c")
    assert not without_graph(str(files), "both") and without_graph(str(files), None)


def test_splits_keep_groups_whole_and_the_test_rows_depend_on_nothing_else(files, tmp_path):
    wanted = {"train": "train", "validation": "validation", "test": "test"}
    sizes = {"test_size": 5, "validation_size": 4}
    splits = opened(files / "rows.csv", wanted, tmp_path, **sizes)
    topics = {key: {ROWS[int(pair.id) - 1]["topic"] for pair in pairs} for key, pairs in splits.items()}
    assert [len(pairs) for pairs in splits.values()] == [18, 6, 6]  # whole groups of three
    assert not topics["train"] & topics["test"] and not topics["train"] & topics["validation"]
    alone = opened(files / "rows.csv", {"test": "test"}, tmp_path, test_size=5, subset=3)
    assert alone == {"test": splits["test"]}
    other = opened(files / "rows.csv", wanted, tmp_path, split_seed=1, **sizes)
    assert other["test"] != splits["test"] and opened(files / "rows.csv", wanted, tmp_path, **sizes) == splits
    some = opened(files / "rows.csv", wanted, tmp_path, subset=7, **sizes)
    assert len(some["train"]) == 7 and some["test"] == splits["test"]
    assert set(some["train"]) < set(splits["train"])


def test_test_rows_are_those_that_the_table_names(files, tmp_path):
    splits = opened(files / "rows.csv", {"train": "train", "test": "test"}, tmp_path, test_rows="fold=3")
    assert [int(pair.id) for pair in splits["test"]] == list(range(4, 31, 4))
    assert len(splits["train"]) == 23


def test_a_split_that_the_table_has_not_is_found_by_its_name(files, tmp_path):
    settings = {"test_rows": "fold=3", "validation_size": 6}
    both = opened(files / "rows.csv", {"train": "train", "validation": "validation"}, tmp_path, **settings)
    wanted = {"train": "train", "test": "validation"}  # as a sweep asks that chooses by answers
    chosen = opened(files / "rows.csv", wanted, tmp_path, **settings)
    assert chosen == {"train": both["train"], "test": both["validation"]}
    tested = opened(files / "rows.csv", {"test": "test"}, tmp_path, **settings)["test"]
    assert opened(files / "rows.csv", {"validation": "test"}, tmp_path, **settings) == {"validation": tested}
    with pytest.raises(ValueError, match="has no split 'tset'. It has: train; validation and test are taken out"):
        opened(files / "rows.csv", {"test": "tset"}, tmp_path, **settings)


def test_sizes_that_leave_nothing_to_train_on_are_told(files, tmp_path, caplog):
    with pytest.raises(ValueError, match="--test_size 30 of 30 rows leaves none to train on"):
        opened(files / "rows.csv", {"train": "train"}, tmp_path, test_size=30)
    opened(files / "rows.csv", {"train": "train", "validation": "validation"}, tmp_path, validation_size=30)
    assert "--validation_size 30 of 30 rows leaves none to train on: a tenth is held out" in caplog.text


def test_one_group_is_never_divided():
    assert held_out([], 5, 0) == ([], [])
    from data_processor.tables import Row

    rows = [Row(None, "a", False)] * 4
    assert held_out(rows, 2, 0) == ([], rows)


def test_rows_without_question_or_answer_are_rejected_with_their_number(tmp_path):
    rows = [{"question": "a?", "answer": "b", "id": 1}, {"question": " ", "answer": "b", "id": 2}]
    rows += [{"question": "c?", "answer": None, "id": 3}, {"question": "d?", "answer": "e", "id": 1}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Rejected(tmp_path / "rejected.jsonl") as rejected:
        (pairs,) = open_table(str(path), Table(columns=("id=id",)), {"train": "train"}, rejected).values()
    assert [pair.id for pair in pairs] == ["1"] and rejected.count == 3
    told = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in told] == [
        (2, "the question is empty"), (3, "the answer is empty"), (4, "the id '1' stands in an earlier row"),
    ]  # fmt: skip


def test_class_labels_and_nested_columns_are_read_by_name(monkeypatch, tmp_path):
    import datasets

    features = datasets.Features({
        "context": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"]),
        "meta": {"topic": datasets.Value("string")},
    })  # fmt: skip
    rows = {"context": ["x", "y"], "label": [1, 0], "meta": [{"topic": "t"}, {"topic": "u"}]}
    there = datasets.DatasetDict({"validation": datasets.Dataset.from_dict(rows, features=features)})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **more: asked.append((words, more)) or there)
    columns = ("question=context", "answer=label", "type=meta.topic")
    table = Table(train_split="validation", columns=columns, dataset_config="en", dataset_revision="v2")
    (pairs,) = open_table("owner/name", table, {"train": "validation"}, Rejected(tmp_path / "r")).values()
    assert [(pair.answers, pair.type) for pair in pairs] == [(("yes",), "t"), (("no",), "u")]
    assert asked == [(("owner/name", "en"), {"revision": "v2"})]
    more = {"context": ["x", "y", "z"], "label": [-1, 0, 1], "meta": [{"topic": "t"}] * 3}  # -1: hidden
    there["validation"] = datasets.Dataset.from_dict(more, features=features)
    with Rejected(tmp_path / "r") as rejected:  # a split that is trained on is not also tested on
        both = open_table("owner/name", replace(table, test_size=1), {"train": "x", "test": "validation"}, rejected)
    assert rejected.count == 1 and sorted(pair.id for pairs in both.values() for pair in pairs) == ["2", "3"]


def test_what_cannot_be_read_is_one_sentence(files, tmp_path):
    with pytest.raises(ValueError, match="no column 'answer' for the answer. It has: question, reply. .*--columns"):
        column_map(["question=question"], ["question", "reply"], "T")
    with pytest.raises(ValueError, match="--columns Prompt is no ROLE=COLUMN. The roles are question"):
        column_map(["Prompt"], ["question", "answer"], "T")
    for settings, said in (
        ({"test_rows": "fould=3"}, "has no column 'fould'. It has: Prompt, Response, topic, fold, kind"),
        ({"test_rows": "fold=9"}, "The split 'test' of .* has zero rows. No row has fold=9"),
        ({}, "The split 'test' of .* has zero rows. Set --test_size N or --test_rows"),
        ({"train_split": "training", "test_size": 1}, "has no split 'training'. It has: train"),
    ):
        with pytest.raises(ValueError, match=said):
            opened(files / "rows.csv", {"test": "test"}, tmp_path, **settings)
    with pytest.raises(ValueError, match="'no/such-data' is neither a file here nor a data set of the Hub"):
        read_splits("no/such-data", Table())
    for name, text, said in (
        ("rows.txt", "a,b", "rows.txt is no table: --columns reads .csv, .tsv, .parquet, .json, .jsonl"),
        ("none.jsonl", "", "none.jsonl has zero rows"),
        ("none.csv", "", "none.csv has zero rows"),
        ("head.csv", "question,answer\n", "head.csv has zero rows"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=said):
            open_table(str(tmp_path / name), Table(), {"train": "train"}, Rejected(tmp_path / "r"))
    (tmp_path / "broken.parquet").write_text("x")
    with pytest.raises(ValueError, match="broken.parquet could not be read as a table"):
        read_splits(str(tmp_path / "broken.parquet"), Table())


def test_documents_stand_in_front_of_the_question_best_first(tmp_path, caplog):
    (tmp_path / "qa").mkdir()
    question = {"id": "q", "question": "Who keeps bees in Oslo?", "answers": ["Ada"]}
    (tmp_path / "qa" / "test.jsonl").write_text(json.dumps(question))
    texts = ["Ships need wind.", "Ada keeps bees in Oslo.", "Bees like clover in Oslo."]
    rows = [{"id": str(i), "title": f"T{i}", "text": text} for i, text in enumerate(texts)]
    (tmp_path / "documents.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    flags = {"context": "documents", "top_documents": 2, "document_encoder": "hashing:128"}

    def first(cache: Path | None = None, **more) -> QuestionDataset:
        with Rejected(tmp_path / "rejected.jsonl") as rejected:
            found = open_questions(str(tmp_path), {"test": "test"}, flags | more, rejected, cache=cache)
        return found["test"]

    content = first()[0]["messages"][0]["content"]
    assert content[0]["text"] == "T1: Ada keeps bees in Oslo.\nT2: Bees like clover in Oslo.\n"
    assert content[1]["text"] == "Who keeps bees in Oslo?"
    assert first(tmp_path / "cache").fingerprint == first(tmp_path / "cache").fingerprint == first().fingerprint
    assert first(top_documents=1).fingerprint != first().fingerprint != first(prompt_tuning=4).fingerprint
    class Words:  # a token each
        def __call__(self, text, **_):
            return {"input_ids": text.split()}

    with Rejected(tmp_path / "rejected.jsonl") as rejected:
        open_questions(str(tmp_path), {"test": "test"}, flags | {"max_text_tokens": 1}, rejected, Words())
    assert "1 of 1 questions of test are shown no document" in caplog.text
    pytest.importorskip("faiss")
    assert first(document_index="hnsw").facts == first().facts
    with pytest.raises(ValueError, match="--documents nowhere does not exist"):
        first(documents="nowhere")
    with pytest.raises(ValueError, match="--context both shows a graph"):
        first(context="both")
    (tmp_path / "documents.jsonl").unlink()
    with pytest.raises(ValueError, match="needs documents, and .* has none"):
        first()


def test_a_budget_keeps_whole_documents(tiny_tokenizer):
    assert within(["one two", "three"], None, tiny_tokenizer) == "one two\nthree"
    assert within(["one\ntwo", "three"], 12, tiny_tokenizer) == "one two"
    assert within(["one two"], 3, tiny_tokenizer) == ""
    assert within(["one two three four five", "one\ntwo"], 12, tiny_tokenizer) == "one two"
