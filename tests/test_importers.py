"""Every row of a foreign file is kept or rejected with its line and reason, and what is kept is what stood there."""

import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_processor.__main__ import main
from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.importers import IMPORTERS, iter_conversations
from data_processor.importers.expla_graphs import split_numbers
from data_processor.importers.rows import LINE_LIMIT
from data_processor.schema import Rejected, read_jsonl, read_qa


def run(name, source, output, **options):
    """Imports and checks the books: in = kept + rejected = lines of rejected.jsonl."""
    report = IMPORTERS[name](source, output, **options)
    path = output / "rejected.jsonl"
    rejected = [row for _, row in read_jsonl(path)] if path.exists() else []
    assert report.rows == report.kept + report.rejected and report.rejected == len(rejected)
    return report, rejected


def named_triples(graph):
    source, relation, target = graph.edges.T
    return set(zip(graph.node_name(source), graph.relation_name(relation), graph.node_name(target), strict=True))


@pytest.mark.parametrize("delimiter", ["\t", "|", ","])
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_delimiters_are_found(tmp_path, delimiter, suffix):
    text = "".join(delimiter.join(row) + "\n" for row in [("a b", "knows", "c"), ("c", "knows", "ü")])
    path = tmp_path / f"kg{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    report, _ = run("triples", path, tmp_path / "graph")
    assert report.kept == 2
    assert named_triples(KnowledgeGraph.open(tmp_path / "graph")) == {("a b", "knows", "c"), ("c", "knows", "ü")}


def test_every_bad_line_is_rejected_with_its_number(tmp_path):
    good = b"a|likes|b\n"
    bad = [b"a|likes\n", b"a|b|c|d\n", b"a||b\n", b"a|likes|\xff\n", b"x" * (LINE_LIMIT + 1) + b"\n", b"a|likes|b\n"]
    (tmp_path / "kg.txt").write_bytes(good + b"\n" + b"".join(bad) + b"s|likes|s\n" + b"n" * 10_000 + b"|likes|a")
    report, rejected = run("triples", tmp_path / "kg.txt", tmp_path / "graph")
    assert (report.rows, report.kept) == (9, 3)
    reasons = {row["line"]: row["reason"] for row in rejected}
    assert sorted(reasons) == [3, 4, 5, 6, 7, 8]
    assert "2 fields, expected 3" in reasons[3] and "4 fields" in reasons[4] and "relation is empty" in reasons[5]
    assert "not UTF-8" in reasons[6] and f"{LINE_LIMIT + 2} bytes" in reasons[7] and "stands in line 1" in reasons[8]
    graph = KnowledgeGraph.open(tmp_path / "graph")
    assert ("s", "likes", "s") in named_triples(graph), "a self-loop is a triple"
    assert max(map(len, graph.iter_names())) == 10_000


@pytest.mark.parametrize("delimiter", ["|", ","])
def test_a_line_of_100_megabytes_is_rejected_and_never_held_in_memory(tmp_path, delimiter):
    first, last = (delimiter.join((name, "r", "b")).encode() for name in "ac")
    with open(tmp_path / "kg.txt", "wb") as file:
        file.write(first + b"\n")
        file.seek(100 << 20, 1)  # a hole of zeros, which takes no room on disk
        file.write(b"\n" + last)
    tracemalloc.start()
    report, rejected = run("triples", tmp_path / "kg.txt", tmp_path / "graph")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert named_triples(KnowledgeGraph.open(tmp_path / "graph")) == {("a", "r", "b"), ("c", "r", "b")}
    assert [row["line"] for row in rejected] == [2] and f"a line of {(100 << 20) + 1} bytes" in rejected[0]["reason"]
    assert report.rows == 3 and peak < 20 << 20


@pytest.mark.parametrize("name", ["entities.txt", "relations.txt", "entity2text.txt"])
def test_a_table_of_names_that_is_not_utf_8_is_named(tmp_path, name):
    (tmp_path / "train.txt").write_text("a\tr\tb\n")
    (tmp_path / name).write_bytes(b"a\tZ\xfcrich\n")
    with pytest.raises(ValueError, match=f"{name} is not UTF-8 .* at byte 3"):
        IMPORTERS["triples"](tmp_path, tmp_path / "D")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"edges.csv": "source,relation,target\n"}, "the graph has no edges"),
        ({"nodes.csv": "id,name\n1,a\n", "edges.csv": "source,relation,target\n"}, "the graph has no edges"),
        ({"train.txt": "", "test.txt": "a\tr\tb\n"}, "train.txt: none of the first 0 lines has 3 fields"),
        ({"train.txt": "a\tr\tb\nc\n" * 2, "test.txt": ""}, "test.txt: none of the first 0 lines has 3 fields"),
    ],
)
def test_an_empty_graph_is_refused(tmp_path, files, sentence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        IMPORTERS["triples"](tmp_path, tmp_path / "D")
    with pytest.raises(ValueError):
        KnowledgeGraph.open(tmp_path / "D")


def test_csv_quotes_commas_newlines_and_header(tmp_path):
    (tmp_path / "kg.csv").write_text('Head,Relation,Tail\n"a, b","is ""x""","c\nd"\ne,is,f\n"open,is,f\n')
    report, rejected = run("triples", tmp_path / "kg.csv", tmp_path / "graph")
    assert named_triples(KnowledgeGraph.open(tmp_path / "graph")) == {("a, b", 'is "x"', "c\nd"), ("e", "is", "f")}
    assert (report.rows, report.kept) == (3, 2) and rejected[0]["line"] == 5


@pytest.mark.parametrize("content", ["", "just text\nof a document\n"])
def test_file_without_a_triple_is_refused(tmp_path, content):
    (tmp_path / "kg.txt").write_text(content)
    with pytest.raises(ValueError, match="kg.txt: none of the first"):
        IMPORTERS["triples"](tmp_path / "kg.txt", tmp_path / "graph")


def test_splits_keep_held_out_triples_out_of_the_graph(tmp_path):
    source = tmp_path / "kgc"
    source.mkdir()
    (source / "train.tsv").write_text("a\tr_s\tb\nb\tr_s\tc\n")
    (source / "dev.tsv").write_text("a\tr_s\tc\n")
    (source / "test.tsv").write_text("c\tr_s\ta\nnew\tr_s\ta\na\tother\tb\nlisted\tr_s\ta\n")
    (source / "entity2text.txt").write_text("a\tthe letter a\nlisted\tonly listed\n")
    report, rejected = run("triples", source, tmp_path / "D")
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph")
    assert named_triples(graph) == {("a", "r_s", "b"), ("b", "r_s", "c")}
    assert graph.node_name(range(4)) == ["a", "listed", "b", "c"] and graph.node_text([0]) == ["the letter a"]
    assert graph.relation_text([0]) == ["r s"]
    held_out = [np.load(tmp_path / "D" / "triples" / f"{split}.npy").tolist() for split in ("validation", "test")]
    assert held_out == [[[0, 0, 3]], [[3, 0, 0], [1, 0, 0]]]
    assert [row["line"] for row in rejected] == [2, 3]
    assert "'new' is not in the graph" in rejected[0]["reason"] and "'other'" in rejected[1]["reason"]
    assert report.rows == 7


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_with_ids_types_and_attributes(tmp_path, form):
    tables = {
        "nodes": {"id": ["n1", "n2", "n1", ""], "name": ["Ann", "Ann", "Bob", ""], "type": ["p", "", "p", "p"],
                  "born": ["1815", "", "", ""]},
        "relations": {"name": ["likes", "likes"], "text": ["is fond of", ""]},
        "edges": {"head": ["n1", "n1", "n2"], "relation": ["likes", "likes", "hates"], "tail": ["n2", "n9", "n1"]},
    }  # fmt: skip
    for name, columns in tables.items():
        if form == "parquet":
            pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
        else:
            rows = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
            (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    report, rejected = run("triples", tmp_path, tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    assert graph.node(0) == {"id": 0, "name": "Ann", "type": "p", "text": "Ann, p", "attributes": {"born": "1815"}}
    assert graph.edges.tolist() == [[0, 0, 1]] and graph.relation_text([0]) == ["is fond of"]
    assert report.kept == 4 and sorted(row["reason"].split("'")[0] for row in rejected) == [
        "a node without ", "a second node ", "a second relation ", "the relation ", "the tail ",
    ]  # fmt: skip


def conversation(*turns):
    return {"conversations": [{"from": role, "value": text} for role, text in turns], "fact": "f", "file_name": "x"}


def test_conversations_of_both_forms(tmp_path):
    good = [{"id": "identity_0", **conversation(("user", "q?"), ("assistant", "a"))}] * 2
    (tmp_path / "pairs.json").write_text(json.dumps(good, indent=4))
    chat = {"messages": [{"role": r, "content": "x"} for r in ("system", "user", "assistant")]}
    (tmp_path / "chat.jsonl").write_text("\ufeff" + json.dumps(chat) + "\n\n" + json.dumps(chat))
    with Rejected(tmp_path / "rejected.jsonl") as rejected:
        pairs = list(iter_conversations(tmp_path / "pairs.json", rejected))
        chats = list(iter_conversations(tmp_path / "chat.jsonl", rejected))
    assert [row["id"] for row in pairs] == ["identity_0", "identity_0#2"] and rejected.count == 0
    expected = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}]
    assert pairs[0]["messages"] == expected
    assert [row["id"] for row in chats] == ["1", "3"] and chats[0]["messages"][0]["role"] == "system"


BAD_CONVERSATIONS = [
    (conversation(("assistant", "a")), "must be user"),
    (conversation(("user", "a")), "must be user"),
    (conversation(("user", " "), ("assistant", "a")), "turn 1 has no text"),
    (conversation(("robot", "x"), ("assistant", "a")), "turn 1 has no known 'from'"),
    ({"conversations": []}, "empty list"),
    ({"messages": [{"role": "system", "content": "x"}]}, "must be user"),
    ([1], "got list"),
    (None, "got NoneType"),
]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_bad_conversations_are_rejected_with_their_line(tmp_path, form):
    items = [item for item, _ in BAD_CONVERSATIONS] + [conversation(("user", "q"), ("assistant", "a"))]
    lines = [json.dumps(item) for item in items]
    text = "[\n" + ",\n".join(lines) + "\n]" if form == "json" else "\n".join(lines)
    (tmp_path / f"c.{form}").write_text(text)
    report, rejected = run("conversations", tmp_path / f"c.{form}", tmp_path / "D")
    assert (report.rows, report.kept) == (9, 1)
    first = 2 if form == "json" else 1
    assert [row["line"] for row in rejected] == list(range(first, first + 8))
    for row, (_, reason) in zip(rejected, BAD_CONVERSATIONS, strict=True):
        assert reason in row["reason"]
    assert len(list(read_jsonl(tmp_path / "D" / "conversations.jsonl"))) == 1


def test_broken_json_names_the_line(tmp_path):
    (tmp_path / "c.json").write_text('[\n{"a": 1},\n{"b": \n]')
    with pytest.raises(ValueError, match="c.json:3: not JSON"):
        IMPORTERS["conversations"](tmp_path / "c.json", tmp_path / "D")
    (tmp_path / "c.jsonl").write_text('{"messages": \n')
    with pytest.raises(ValueError, match="no usable conversation: 1 rejected"):
        IMPORTERS["conversations"](tmp_path / "c.jsonl", tmp_path / "D")


EXPLA = "arg1\targ2\tlabel\tgraph\n"


def test_expla_graphs_row_by_row(tmp_path):
    rows = [f"a{i}\tb{i}\t{'support' if i % 2 else 'counter'}\t(x; is a; y)(y; causes; z{i})" for i in range(10)]
    rows += ["a\tb\tmaybe\t(x; is a; y)", "a\tb\tsupport\t(x; y)", "a\tb\tsupport\t", "a\tb"]
    rows += ['"say ""no"""\tb\tsupport\t(x; is a; x)']
    (tmp_path / "train_dev.tsv").write_text(EXPLA + "\n".join(rows))
    report, rejected = run("expla_graphs", tmp_path, tmp_path / "D")
    assert (report.rows, report.kept) == (15, 11) and [row["line"] for row in rejected] == [12, 13, 14, 15]
    graph, seen = KnowledgeGraph.open(tmp_path / "D" / "graph"), []
    for split in ("train", "validation", "test"):
        store = SubgraphStore.open(tmp_path / "D" / "subgraphs" / split)
        for pair in read_qa(tmp_path / "D" / "qa" / f"{split}.jsonl"):
            number = int(pair.id.split("-")[1])
            seen.append(number)
            expected = {"x | is a | x"} if number == 14 else {"x | is a | y", f"y | causes | z{number}"}
            assert set(graph.to_text(store.get(pair.id)).split("\n")) == expected
            assert pair.type == "stance" and pair.answers[0] in ("support", "counter")
    assert sorted(seen) == [*range(10), 14]


def test_expla_graphs_counts_lines_that_cannot_be_read(tmp_path):
    good = b"a\tb\tsupport\t(x; is a; y)\n"
    lines = [EXPLA.encode(), good, b"a\tb\tsupport\t(\xff; is a; y)\n", b"x" * (LINE_LIMIT + 1) + b"\n", good]
    (tmp_path / "train_dev.tsv").write_bytes(b"".join(lines))
    report, rejected = run("expla_graphs", tmp_path, tmp_path / "D")
    assert (report.rows, report.kept) == (4, 2) and [row["line"] for row in rejected] == [3, 4]
    ids = [pair.id for path in (tmp_path / "D" / "qa").iterdir() for pair in read_qa(path)]
    assert sorted(ids) == ["expla_graphs-0", "expla_graphs-3"], "a row keeps its number"


def test_expla_graphs_needs_its_columns(tmp_path):
    (tmp_path / "train_dev.tsv").write_text("a\tb\n")
    with pytest.raises(ValueError, match="must name the columns"):
        IMPORTERS["expla_graphs"](tmp_path, tmp_path / "D")


def test_split_is_that_of_scikit_learn():
    selection = pytest.importorskip("sklearn.model_selection")
    for count in (10, 37, 2766):
        train, rest = selection.train_test_split(np.arange(count), test_size=0.4, random_state=42)
        validation, test = selection.train_test_split(rest, test_size=0.5, random_state=42)
        found = split_numbers(count)
        assert found == {"train": set(train), "validation": set(validation), "test": set(test)}


def test_split_numbers_are_pinned():
    assert split_numbers(10) == {"train": {2, 3, 4, 6, 7, 9}, "validation": {5, 8}, "test": {0, 1}}


def write_metaqa(folder, questions):
    (folder / "1-hop").mkdir(parents=True)
    (folder / "kb.txt").write_text("Film|directed_by|Ann\nFilm|release_year|1999\nAnn|has_tags|Film\n")
    for split in ("dev", "test"):
        (folder / "1-hop" / f"qa_{split}.txt").write_text("\n".join(questions))


def test_metaqa_questions_nodes_and_splits(tmp_path):
    questions = [f"who made [Film] {i}\tAnn|Nobody" for i in range(40)]
    bad = ["who made it\tAnn", "who made [Film]", "who made [Gone]\tAnn"]
    write_metaqa(tmp_path / "m", questions + bad)
    report, rejected = run("metaqa", tmp_path / "m", tmp_path / "D", hops=(1,))
    assert report.rows == 3 + 2 * 43 and len(rejected) == 6
    splits = {split: read_qa(tmp_path / "D" / "qa" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    assert len(splits["test"]) == 40 and len(splits["train"]) + len(splits["validation"]) == 40
    assert 0 < len(splits["validation"]) < 12
    pair = splits["test"][0]
    assert pair.question == "who made Film 0" and pair.answers == ("Ann", "Nobody") and pair.type == "1-hop"
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph")
    assert graph.node_name(pair.seed_nodes) == ["Film"] and graph.node_name(pair.answer_nodes) == ["Ann"]
    assert graph.node_type([0, 1, 2]) == ["film", "film", "year"], "Ann too starts a triple"


def test_metaqa_names_a_missing_file(tmp_path):
    write_metaqa(tmp_path / "m", ["who made [Film]\tAnn"])
    with pytest.raises(ValueError, match="2-hop"):
        IMPORTERS["metaqa"](tmp_path / "m", tmp_path / "D")


def test_command_line_imports_and_embeds(tmp_path, capsys):
    (tmp_path / "kg.txt").write_text("a|r|b\nbad line\n")
    assert main(["import", "triples", "--input", str(tmp_path / "kg.txt"), "--output", str(tmp_path / "graph")]) == 0
    assert "2 rows read, 1 kept, 1 rejected (see" in capsys.readouterr().out
    assert main(["embed", "--graph", str(tmp_path / "graph"), "--encoder", "hashing:16"]) == 0
    assert KnowledgeGraph.open(tmp_path / "graph", verify=True).node_features.shape == (2, 16)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("import triples --input absent.txt --output {0}/g", "import: absent.txt does not exist"),
        ("import triples --input {0} --output {0}/g --hops 1", "--hops belongs to the format metaqa"),
        ("import triples --input {0} --output {0}/g", "holds neither train.txt"),
        ("embed --graph {0}/absent", "is no folder"),
        ("embed --graph {0}", "has no manifest.json"),
    ],
)
def test_command_line_says_what_is_wrong_in_one_sentence(tmp_path, capsys, arguments, sentence):
    assert main(arguments.format(tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.strip().split("\n")) == 1


@pytest.mark.data
def test_real_expla_graphs(tmp_path, real_data):
    report, rejected = run("expla_graphs", real_data / "expla_graphs", tmp_path)
    assert report.rows == 2766 and rejected == []
    sizes = {split: len(read_qa(tmp_path / "qa" / f"{split}.jsonl")) for split in ("train", "validation", "test")}
    assert sizes == {"train": 1659, "validation": 553, "test": 554}
    report_json = json.loads((tmp_path / "subgraphs" / "train" / "report.json").read_text())
    assert report_json["mean_nodes"] == pytest.approx(5.17, abs=0.1)


@pytest.mark.data
def test_real_metaqa(tmp_path, real_data):
    report, rejected = run("metaqa", real_data / "metaqa", tmp_path)
    graph = KnowledgeGraph.open(tmp_path / "graph", verify=True)
    assert (graph.num_nodes, graph.num_edges, rejected) == (43234, 133582, [])
    test = read_qa(tmp_path / "qa" / "test.jsonl")
    assert [sum(pair.type == f"{hop}-hop" for pair in test) for hop in (1, 2, 3)] == [4871, 7400, 7108]
    dev = sum(len(read_qa(tmp_path / "qa" / f"{split}.jsonl")) for split in ("train", "validation"))
    assert dev == 9992 + 14872 + 14274


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts"), [("umls", (135, 5216, 652, 661)), ("wn18rr", (40943, 86835, 3034, 3134))]
)
def test_real_completion_sets(tmp_path, real_data, name, counts):
    run("triples", real_data / name, tmp_path)
    graph = KnowledgeGraph.open(tmp_path / "graph")
    held_out = [len(np.load(tmp_path / "triples" / f"{split}.npy")) for split in ("validation", "test")]
    assert (graph.num_nodes, graph.num_edges, *held_out) == counts
