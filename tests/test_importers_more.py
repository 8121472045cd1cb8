"""GFM-RAG, OpenIE, STaRK, WebQSP, Neo4j, GraphML and PyG: what is kept is what stood there, the rest has a reason."""

import csv
import json
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_processor.__main__ import main
from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.importers import IMPORTERS
from data_processor.importers.questions import NameIndex, phrase, strings
from data_processor.importers.tensors import load_plain
from data_processor.schema import read_jsonl, read_qa


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


def documents_of(graph):
    """{document id: names of its nodes}."""
    with pa.memory_map(str(graph.path / "documents.arrow")) as file:
        ids = pa.ipc.open_file(file).read_all().column("id").to_pylist()
    found = {name: set() for name in ids}
    for document, node in np.load(graph.path / "document_nodes.npy").tolist():
        found[ids[document]].update(graph.node_name([node]))
    return found


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_csv(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


# names


def test_names_are_found_as_written_before_they_are_found_by_phrase():
    index = NameIndex(["Zürich", "zurich", "C++", "李白"])
    assert index.nodes(["zurich"]) == (1,) and index.nodes(["ZÜRICH!"]) == (0, 1)
    assert index.nodes(["李白", "nobody", "Zürich"]) == (3, 0)
    assert phrase("++") == "++" and phrase("The  Café") == phrase("the cafe")


def test_strings_are_distinct_and_other_values_are_refused():
    assert strings([" a ", "b", "a", ""]) == ("a", "b") and strings("x") == ("x",) and strings(None) == ()
    with pytest.raises(ValueError, match="got '3'"):
        strings(["a", 3])


def test_an_empty_line_inside_a_quoted_field_is_part_of_it(tmp_path):
    write(tmp_path / "kg.csv", 'a,is,"b\n\nc"\n\n   \nd,is,e\n"open,is,f\n\n')
    report, rejected = run("triples", tmp_path / "kg.csv", tmp_path / "graph")
    assert named_triples(KnowledgeGraph.open(tmp_path / "graph")) == {("a", "is", "b\n\nc"), ("d", "is", "e")}
    assert report.rows == 3 and [row["line"] for row in rejected] == [7]


# OpenIE


def passage(title, text, triples, entities=()):
    return {"title": title, "text": text, "extracted_entities": list(entities), "extracted_triples": triples}


OPENIE = [
    passage("Ada", "one", [["Ada  Lovelace", "Wrote", "Notes"], ["Ada Lovelace", "met", "Notes"]], ["李白"]),
    passage("Ada", "two", [["ada lovelace", "wrote", "notes"], ["ADA LOVELACE", "wrote", "NOTES"], ["x", "y"]]),
    passage("Ada", "one", []),
    {"passage": "Café\nsecond line", "extracted_entities": ["José"], "extracted_triples": [["", "r", "t"], "no"]},
    {"title": "no text"},
    7,
]


def write_openie(folder):
    write(folder / "openie_results.json", {"docs": OPENIE})
    write(folder / "my_corpus.json", [{"title": "Ada", "text": "one"}, {"title": "Extra", "text": "e"}, {"title": 1}])
    musique = {"id": "m", "question": "Who?", "answer": "ADA lovelace", "answer_aliases": ["Ada"], "paragraphs": [
        {"title": "Ada", "paragraph_text": "two", "is_supporting": True},
        {"title": "Nowhere", "paragraph_text": "x", "is_supporting": False},
    ]}  # fmt: skip
    hotpot = {"_id": "h", "question": "Which?", "answer": "notes", "type": "bridge",
              "supporting_facts": [["Café", 0], ["Café", 1]], "context": [["Café", ["second ", "line"]]]}  # fmt: skip
    lost = {**musique, "paragraphs": [{"title": "Ada", "paragraph_text": "three", "is_supporting": True}]}
    write(folder / "my_dev.json", [musique, hotpot, lost, {**musique, "answer": "", "answer_aliases": []}, musique])


def test_openie_merges_spellings_and_links_passages_to_their_entities(tmp_path):
    write_openie(tmp_path / "s")
    report, rejected = run("openie", tmp_path / "s", tmp_path / "D")
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph", verify=True)
    assert named_triples(graph) == {("Ada Lovelace", "wrote", "Notes"), ("Ada Lovelace", "met", "Notes")}
    assert documents_of(graph) == {
        "Ada": {"Ada Lovelace", "Notes", "李白"}, "Ada#2": {"Ada Lovelace", "Notes"}, "Café": {"José"}, "Extra": set(),
    }  # fmt: skip
    reasons = sorted(row["reason"].split(":")[0] for row in rejected)
    assert reasons == sorted([
        "2 fields, expected 3", "the same triple stands earlier in this passage", "no fields, expected 3",
        "head, relation or tail is empty or no text", "the same passage stands earlier in the file",
        "a passage without 'text' (or 'passage')", "expected an object with 'title' and 'text', got int",
        "a passage without 'text' (or 'passage')", "no answer in 'answer' or 'answer_aliases'",
        "2 passages are called 'Ada', and none has the supporting text",
    ])  # fmt: skip
    assert report.rows == 6 + 7 + 3 + 5


def test_openie_questions_name_their_supporting_passages(tmp_path):
    write_openie(tmp_path / "s")
    run("openie", tmp_path / "s", tmp_path / "D")
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph")
    first, second, third = read_qa(tmp_path / "D" / "qa" / "validation.jsonl")
    assert (first.id, first.answers, first.supporting_documents) == ("m", ("ADA lovelace", "Ada"), ("Ada#2",))
    assert graph.node_name(first.answer_nodes) == ["Ada Lovelace"]
    assert (second.id, second.supporting_documents, second.type) == ("h", ("Café",), "bridge")
    assert third.id == "m#2", "an id that occurs twice is made unique"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds 0 files openie"),
        ({"openie_a.json": {"docs": []}, "openie_b.json": {}}, "holds 2 files openie"),
        ({"openie_a.json": {"rows": []}}, "has no list 'docs'"),
        ({"openie_a.json": []}, "must hold one object"),
        ({"openie_a.json": "{"}, "is no JSON"),
        ({"openie_a.json": {"docs": []}}, "no edges"),
    ],
)
def test_openie_says_what_it_misses(tmp_path, files, sentence):
    (tmp_path / "s").mkdir()
    for name, value in files.items():
        write(tmp_path / "s" / name, value)
    with pytest.raises(ValueError, match=sentence):
        IMPORTERS["openie"](tmp_path / "s", tmp_path / "D")


@pytest.mark.data
def test_real_openie_of_musique(tmp_path, real_data):
    report, rejected = run("openie", real_data / "musique_openie", tmp_path)
    graph = KnowledgeGraph.open(tmp_path / "graph", verify=True)
    docs = json.loads(next((real_data / "musique_openie").glob("openie*.json")).read_text())["docs"]
    malformed = sum(len(triple) != 3 for doc in docs for triple in doc["extracted_triples"])
    assert sum("fields, expected 3" in row["reason"] for row in rejected) == malformed == 185
    expected = {
        (phrase(head), " ".join(name.lower().split()), phrase(tail))
        for doc in docs for head, name, tail in (one for one in doc["extracted_triples"] if len(one) == 3)
    }  # fmt: skip
    assert {(phrase(head), name, phrase(tail)) for head, name, tail in named_triples(graph)} == expected
    assert graph.num_edges == pytest.approx(17_035, rel=0.001), "as counted with phrases of ASCII letters"
    pairs = read_qa(tmp_path / "qa" / "train.jsonl")
    assert graph.manifest["counts"]["documents"] == 1890 and len(pairs) == 100
    assert {len(pair.supporting_documents) for pair in pairs} == {2, 3, 4}
    assert np.mean([min(len(pair.supporting_documents), 2) / len(pair.supporting_documents) for pair in pairs]) == (
        pytest.approx(0.885, abs=0.001)
    ), "the ceiling of recall@2"


# GFM-RAG


def write_gfm_v1(folder):
    stage1 = folder / "processed" / "stage1"
    write(stage1 / "kg.txt", "ann,knows,bob\nann,likes,bob\nann,knows,bob\nbad line\nbob,lives in,zürich\n")
    write(stage1 / "document2entities.json", {"D1": ["ann", "bob", "nobody", "ann"], "D9": ["ann"]})
    write(folder / "raw" / "dataset_corpus.json", {"D1": "text one", "D2": "text two", "D3": None})
    question = {"id": "q", "question": "Where?", "answer": "Zürich", "answer_aliases": ["Zurich"],
                "supporting_facts": ["D1"], "question_entities": ["bob"], "supporting_entities": ["ann"]}  # fmt: skip
    write(folder / "raw" / "train.json", [{**question, "id": "raw"}])
    other = {**question, "id": "r", "supporting_facts": [["D2", 0]], "supporting_entities": ["nowhere"]}
    write(stage1 / "train.json", [question, other])
    write(stage1 / "test.json", [question, question, {**question, "id": "n", "answer": None, "answer_aliases": []},
                                 {**question, "id": "u", "supporting_facts": ["D7"]}, "?"])  # fmt: skip


def test_gfm_rag_version_1(tmp_path):
    write_gfm_v1(tmp_path / "s")
    report, rejected = run("gfm_rag", tmp_path / "s", tmp_path / "D")
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph", verify=True)
    assert named_triples(graph) == {("ann", "knows", "bob"), ("ann", "likes", "bob"), ("bob", "lives in", "zürich")}
    assert documents_of(graph) == {"D1": {"ann", "bob"}, "D2": set()}
    train, test = (read_qa(tmp_path / "D" / "qa" / f"{split}.jsonl") for split in ("train", "test"))
    assert [pair.id for pair in train] == ["q", "r"] and [pair.id for pair in test] == ["q"]
    assert graph.node_name(train[0].seed_nodes) == ["bob"] and graph.node_name(train[0].answer_nodes) == ["ann"]
    assert train[1].supporting_documents == ("D2",)
    assert graph.node_name(train[1].answer_nodes) == ["zürich"], "named like the answer, where no target is known"
    assert "1 names of nodes in questions are in no node" in report.summary
    reasons = " ; ".join(row["reason"] for row in rejected)
    for part in ("the same triple stands in line 1", "1 field", "'nobody' is not there", "names this entity already",
                 "'D9' is not there", "'D3' has no text", "a second question with the id 'q'", "no answer",
                 "the supporting document 'D7'", "got str"):  # fmt: skip
        assert part in reasons
    assert report.rows == 5 + 3 + 5 + 2 + 5


def write_gfm_v2(folder):
    write_csv(folder / "nodes.csv", ["name", "type", "attributes"],
              ["ann", "entity", '{"description": "a, \\"b\\""}'], ["bob", "entity", "{'born': 1815}"],
              ["Doc", "document", '{"content": "the text"}'], ["ann", "entity", ""], ["x", "entity", "[1]"],
              ["y", "entity", "__import__('os')"])  # fmt: skip
    write_csv(folder / "relations.csv", ["name", "attributes"], ["knows", "{}"], ["is_mentioned_in", ""])
    write_csv(folder / "edges.csv", ["source", "relation", "target", "attributes"],
              ["ann", "knows", "bob", "{}"], ["bob", "knows", "ann", '{"w": 1}'],
              ["ann", "is_mentioned_in", "Doc", ""], ["ann", "knows", "ghost", ""],
              ["ann", "hates", "bob", ""])  # fmt: skip
    question = {"id": 5, "question": "Who?", "answer": "Robert", "supporting_documents": ["Doc"]}
    nodes = {"start_nodes": {"entity": ["ann"]}, "target_nodes": {"entity": ["bob"], "document": ["Doc"]}}
    write(folder / "test.json", [{**question, **nodes}])


def test_gfm_rag_version_2_reads_attributes_without_running_them(tmp_path):
    write_gfm_v2(tmp_path / "s")
    report, rejected = run("gfm_rag", tmp_path / "s", tmp_path / "D")
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph")
    assert named_triples(graph) == {
        ("ann", "knows", "bob"), ("bob", "knows", "ann"), ("ann", "is_mentioned_in", "Doc"),
    }  # fmt: skip
    assert graph.node_text(range(3)) == ['ann, entity: a, "b"', "bob, entity", "Doc, document: the text"]
    assert graph.node(1)["attributes"] == {"born": 1815}
    assert documents_of(graph) == {"Doc": {"Doc", "ann"}}
    (pair,) = read_qa(tmp_path / "D" / "qa" / "test.jsonl")
    assert (pair.id, pair.seed_nodes, pair.answer_nodes, pair.supporting_documents) == ("5", (0,), (1, 2), ("Doc",))
    reasons = [row["reason"] for row in rejected]
    assert len(reasons) == 5
    assert any("__import__" in reason for reason in reasons) and any("holds list" in reason for reason in reasons)
    assert "attributes of 1 edges are left out" in report.summary


def test_gfm_rag_questions_name_nodes_by_their_uid(tmp_path):
    write_csv(tmp_path / "nodes.csv", ["uid", "name", "type"], ["u1", "Ann", "e"], ["u2", "Ann", "e"])
    write_csv(tmp_path / "edges.csv", ["source", "relation", "target"], ["u1", "knows", "u2"])
    nodes = {"start_nodes": {"e": ["u2"]}, "target_nodes": {"e": ["u1"]}}
    write(tmp_path / "test.json", [{"id": "q", "question": "Who?", "answer": "x", **nodes}])
    run("gfm_rag", tmp_path, tmp_path / "D")
    (pair,) = read_qa(tmp_path / "D" / "qa" / "test.jsonl")
    assert (pair.seed_nodes, pair.answer_nodes) == ((1,), (0,))


def test_gfm_rag_needs_a_graph(tmp_path):
    write(tmp_path / "train.json", [])
    with pytest.raises(ValueError, match="neither kg.txt nor nodes.csv"):
        IMPORTERS["gfm_rag"](tmp_path, tmp_path / "D")


# WebQSP


def rog_rows():
    graph = [["Ann", "people.person.born", "Zürich"], ["Ann", "knows", "Bob"], ["Ann", "likes", "Bob"]]
    first = {"id": "W-1", "question": "where was ann born?", "answer": ["Zürich"], "q_entity": ["Ann"],
             "a_entity": ["Zürich"], "graph": [*graph, graph[0], ["a", "b"], ["", "r", "t"]]}  # fmt: skip
    other = {**first, "id": "W-2", "question": "whom?", "answer": ["Bob"], "a_entity": ["Bob"], "graph": graph[1:],
             "q_entity": ["Ann", "Nobody"]}  # fmt: skip
    empty = {**other, "id": "W-3", "graph": []}
    bad = [{**other, "id": "W-4", "answer": []}, {**other, "id": "W-5", "question": ""}, other]
    return [first, other, empty, *bad]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "hub"])
def test_webqsp_keeps_each_questions_own_graph(tmp_path, form, monkeypatch):
    source = tmp_path / "data"
    if form == "hub":
        import datasets

        splits = datasets.DatasetDict({"test": datasets.Dataset.from_list(rog_rows())})
        monkeypatch.setattr(datasets, "load_dataset", lambda name: {"owner/RoG-webqsp": splits}[name])
        source = type(tmp_path)("owner/RoG-webqsp")
    elif form == "parquet":
        source.mkdir()
        pq.write_table(pa.Table.from_pylist(rog_rows()), source / "test-00000-of-00001.parquet")
    else:
        write(source / "test.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rog_rows()))
    report, rejected = run("webqsp", source, tmp_path / "D")
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph")
    store = SubgraphStore.open(tmp_path / "D" / "subgraphs" / "test")
    pairs = read_qa(tmp_path / "D" / "qa" / "test.jsonl")
    assert [pair.id for pair in pairs] == store.ids == ["W-1", "W-2", "W-3"]
    assert graph.num_edges == 3 and graph.relation_text([0]) == ["people.person.born"]
    texts = [set(graph.to_text(store.get(pair.id)).split("\n")) for pair in pairs[:2]]
    assert texts[1] == {"Ann | knows | Bob", "Ann | likes | Bob"}, "two relations between one pair"
    assert texts[0] == texts[1] | {"Ann | people.person.born | Zürich"} and len(store.get("W-3").nodes) == 0
    assert graph.node_name(pairs[1].seed_nodes) == ["Ann"] and graph.node_name(pairs[0].answer_nodes) == ["Zürich"]
    assert store.get("W-2").nodes[0] == pairs[1].seed_nodes[0], "the question's entity comes first"
    reasons = sorted(row["reason"][:24] for row in rejected)
    assert reasons == sorted([
        "the same triple stands e", "2 fields, expected 3: he", "head, relation or tail i", "no answer in 'answer'",
        "no text in 'question'", "a second question with t",
    ])  # fmt: skip
    assert report.rows == 6 + 6 + 2


def test_webqsp_without_a_network_says_that_the_hub_did_not_answer(tmp_path):
    with pytest.raises(ValueError, match="owner/absent is no local file, and the Hub does not give it"):
        IMPORTERS["webqsp"](type(tmp_path)("owner/absent"), tmp_path / "D")


@pytest.mark.parametrize(("name", "sentence"), [("absent", "does not exist"), ("empty", "holds no .parquet")])
def test_webqsp_says_what_it_misses(tmp_path, name, sentence):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=sentence):
        IMPORTERS["webqsp"](tmp_path / name, tmp_path / "D")


# STaRK


NODES = ["Ann", "Bob", "Zürich, CH", "Bob"]
EDGES = [(0, "ppi", 1), (0, "linked to", 1), (1, "ppi", 2), (2, "ppi", 3)]


def write_stark(folder, form):
    """The questions (shuffled, looked up by id) and a small knowledge base in one of its three forms."""
    write_csv(folder / "qa" / "stark_qa.csv", ["id", "query", "answer_ids"],
              [3, "three?", "[2]"], [0, "zero, with a comma?", "[1, 3]"], [2, "two?", "[99]"], [1, "one?", "[0]"],
              [7, "seven?", "nonsense"], [8, "eight?", "[0]"])  # fmt: skip
    write_csv(folder / "qa" / "stark_qa_human_generated_eval.csv", ["id", "query", "answer_ids", "answer_ids_source"],
              [0, "human?", "[2]", "[2]"])  # fmt: skip
    for name, ids in {"train": "0\n2\n", "val": "3\n", "test": "1\n7\n55\n"}.items():
        write(folder / "split" / f"{name}.index", ids)
    if form == "kg":
        columns = [f"{end}_{part}" for end in "xy" for part in ("index", "id", "type", "name", "source")]
        ends = [[str(i), f"raw{i}", "gene/protein", name, "NCBI"] for i, name in enumerate(NODES)]
        rows = [["rel", name, *ends[head], *ends[tail]] for head, name, tail in EDGES]
        write_csv(folder / "raw" / "kg.csv", ["relation", "display_relation", *columns], *rows, rows[0])
    elif form == "tables":
        write_csv(folder / "skb" / "nodes.csv", ["id", "name", "type"],
                  *([i, name, "gene/protein"] for i, name in enumerate(NODES)))  # fmt: skip
        write_csv(folder / "skb" / "edges.csv", ["source", "relation", "target"], *EDGES, [0, "ppi", 77])
    else:
        import torch

        info = {str(i): {"id": "same", "type": "gene/protein", "name": name} for i, name in enumerate(NODES)}
        info["0"]["details"] = {"summary": "a gene", "alias": ["A1"]}
        info["3"] = {"title": NODES[3]}  # as the products of STaRK-Amazon are: no name, the type elsewhere
        write(folder / "processed" / "node_type_dict.json", {0: "drug", 1: "gene/protein"})
        names = list(dict.fromkeys(name for _, name, _ in EDGES))
        write(folder / "processed" / "node_info.json", info)
        write(folder / "processed" / "edge_type_dict.json", dict(enumerate(names)))
        ends = [[head for head, _, _ in EDGES] + [9], [tail for _, _, tail in EDGES] + [0]]
        torch.save(torch.tensor(ends), folder / "processed" / "edge_index.pt")
        torch.save(torch.tensor([1, 1, 1, 1]), folder / "processed" / "node_types.pt")
        torch.save(torch.tensor([names.index(name) for _, name, _ in EDGES] + [0]), folder / "processed/edge_types.pt")


@pytest.mark.parametrize("form", ["kg", "tables", "processed"])
def test_stark_questions_are_looked_up_by_id_in_every_form_of_the_knowledge_base(tmp_path, form):
    write_stark(tmp_path / "s", form)
    report, rejected = run("stark", tmp_path / "s", tmp_path / "D")
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph", verify=True)
    assert named_triples(graph) == {(NODES[head], name, NODES[tail]) for head, name, tail in EDGES}
    assert graph.num_edges == 4 and graph.node_type(range(4)) == ["gene/protein"] * 4, "two nodes may share a name"
    files = ("train", "validation", "test", "human")
    splits = {split: read_qa(tmp_path / "D" / "qa" / f"{split}.jsonl") for split in files}
    assert {split: [pair.id for pair in pairs] for split, pairs in splits.items()} == {
        "train": ["0"], "validation": ["3"], "test": ["1"], "human": ["human-0"],
    }  # fmt: skip
    pair = splits["train"][0]
    assert (pair.question, pair.answers, pair.answer_nodes) == ("zero, with a comma?", ("Bob",), (1, 3))
    assert splits["validation"][0].answers == ("Zürich, CH",)
    reasons = " ; ".join(row["reason"] for row in rejected)
    for part in ("the answer 99 is no node", "'answer_ids' is no list", "in no split", "no question with this id"):
        assert part in reasons
    assert len(rejected) == 5
    if form == "processed":
        assert graph.node_text([0, 1]) == ["Ann, gene/protein: a gene", "Bob, gene/protein"]
        assert graph.node(0)["attributes"]["stark_id"] == "0", "the key, not the repeated raw id"


def test_stark_says_what_it_misses(tmp_path):
    write_stark(tmp_path / "s", "processed")
    (tmp_path / "s" / "processed" / "node_info.json").unlink()
    with pytest.raises(ValueError, match="pickles can run code and are not read here"):
        IMPORTERS["stark"](tmp_path / "s", tmp_path / "D")
    (tmp_path / "s" / "processed" / "edge_index.pt").unlink()
    with pytest.raises(ValueError, match="questions but no knowledge base; put kg.csv"):
        IMPORTERS["stark"](tmp_path / "s", tmp_path / "D")
    with pytest.raises(ValueError, match="holds no stark_qa.csv"):
        IMPORTERS["stark"](tmp_path / "s" / "split", tmp_path / "D")


@pytest.mark.parametrize(
    ("line", "sentence"), [("0\n", "question 0 stands in train.index and val.index"), (None, "no val.index")]
)
def test_stark_splits_must_be_there_and_apart(tmp_path, line, sentence):
    write_stark(tmp_path / "s", "tables")
    (tmp_path / "s" / "split" / "val.index").unlink()
    if line:
        write(tmp_path / "s" / "split" / "val.index", line)
    with pytest.raises(ValueError, match=sentence):
        IMPORTERS["stark"](tmp_path / "s", tmp_path / "D")


DESC = (
    'node_id,vector_similarity,node_attr\n7,0.5,"name: IDH1, R132H, description: two\nlines"\n'
    "3,0.9,\"name: O'Brien, description: \"\n9,0.1,\"name: alone, description: x\"\n\n"
    "src,edge_attr,dst\n7,ppi,3\n7,linked_to,3\n3,ppi,7\n"
)


@pytest.mark.parametrize("form", ["dicts", "data", "dataset"])
def test_precomputed_stark_subgraphs_are_read_without_running_anything(tmp_path, form):
    import torch

    items = [
        {"question": f"Question: which {i}?\nAnswer: ", "label": "o'brien|nobody", "desc": DESC,
         "x": torch.zeros(3, 4), "edge_index": torch.tensor([[0], [1]], dtype=torch.int32), "edge_attr": None}
        for i in range(2)
    ]  # fmt: skip
    bad = [{**items[0], "desc": "text"}, {**items[0], "label": ""}, {**items[0], "desc": DESC + "7,ppi,55\n"}]
    (tmp_path / "s" / "processed").mkdir(parents=True)
    path = tmp_path / "s" / "processed" / "val_data.pt"
    if form == "dicts":
        torch.save([*items, *bad], path)
    else:
        data = pytest.importorskip("torch_geometric.data")
        graphs = [data.Data(**item) for item in [*items, *bad]]
        torch.save(graphs, path) if form == "data" else data.InMemoryDataset.save(graphs, str(path))
    report, rejected = run("stark", tmp_path / "s", tmp_path / "D")
    assert (report.rows, report.kept) == (5, 2) and [row["line"] for row in rejected] == [3, 4, 5]
    graph = KnowledgeGraph.open(tmp_path / "D" / "graph")
    store = SubgraphStore.open(tmp_path / "D" / "subgraphs" / "validation")
    first, second = read_qa(tmp_path / "D" / "qa" / "validation.jsonl")
    assert (first.id, second.question, first.answers) == ("validation-0", "which 1?", ("o'brien", "nobody"))
    assert graph.node_name(first.answer_nodes) == ["O'Brien"]
    subgraph = store.get(first.id)
    assert graph.node_name(subgraph.nodes) == ["O'Brien", "IDH1, R132H", "alone"], "most similar first"
    assert np.allclose(subgraph.node_scores, [0.9, 0.5, 0.1]) and len(subgraph.edges) == 3
    assert graph.node_text(subgraph.nodes[1]) == ["name: IDH1, R132H, description: two\nlines"]


@pytest.mark.data
def test_real_stark_questions_over_a_generated_knowledge_base(tmp_path, real_data):
    source = tmp_path / "s"
    source.mkdir()
    for path in (real_data / "stark_prime_qa").iterdir():
        (source / path.name).symlink_to(path)
    with open(source / "stark_qa.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ids = sorted({int(one) for row in rows for one in row["answer_ids"].strip("[]").split(",")})
    write_csv(source / "nodes.csv", ["id", "name"], *([one, f"node {one}"] for one in ids))
    write_csv(source / "edges.csv", ["source", "relation", "target"],
              *([one, "next", other] for one, other in zip(ids, ids[1:], strict=False)))  # fmt: skip
    report, rejected = run("stark", source, tmp_path / "D")
    files = {split: read_qa(tmp_path / "D" / "qa" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    assert {split: len(pairs) for split, pairs in files.items()} == {"train": 6162, "validation": 2241, "test": 2801}
    by_id = {row["id"]: row for row in rows}
    assert any("\n\n" in row["query"] for row in rows), "an empty line inside a quoted field stays"
    for pair in [pair for pairs in files.values() for pair in pairs]:
        answers = {f"node {int(one)}" for one in by_id[pair.id]["answer_ids"].strip("[]").split(",")}
        assert set(pair.answers) == answers and pair.question == by_id[pair.id]["query"].strip()
    human = read_qa(tmp_path / "D" / "qa" / "human.jsonl")
    assert len(human) + len(rejected) == 109, "what is rejected names a node that the generated base lacks"


# Neo4j


class FakeRecord:
    def __init__(self, row):
        self._row = row

    def data(self):
        return self._row


NEO4J_NODES = [
    {"id": "4:a:0", "labels": ["Person", "Author"], "properties": {"name": "Ann", "born": 1815, "at": b"x"}},
    {"id": "4:a:1", "labels": [], "properties": {"title": "Notes", "description": "on the engine"}},
    {"id": "4:a:0", "labels": [], "properties": {}},
    {"labels": []},
    {"id": 2, "name": "李白", "type": "Poet", "text": "of the Tang"},
]
NEO4J_EDGES = [
    {"source": "4:a:0", "relation": "WROTE", "target": "4:a:1"},
    {"source": "4:a:0", "relation": "READ", "target": "4:a:1"},
    {"source": "4:a:0", "relation": "WROTE", "target": "4:a:1"},
    {"source": "4:a:0", "relation": "WROTE", "target": "4:a:9"},
    {"source": 2, "relation": None, "target": "4:a:1"},
    {"source": 2, "relation": "KNOWS", "target": 2},
]


@pytest.fixture
def neo4j(monkeypatch):
    """A driver that answers with recorded rows and notes how it was called."""
    calls = []

    class Session:
        def __init__(self, **settings):
            calls.append(("session", settings))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            calls.append(("closed", {}))

        def run(self, query):
            calls.append(("run", query))
            if "broken" in query:
                raise module.exceptions.Neo4jError("no such procedure")
            return (FakeRecord(row) for row in (NEO4J_EDGES if "source" in query else NEO4J_NODES))

    class Driver(Session):
        def session(self, **settings):
            return Session(**settings)

    module = types.ModuleType("neo4j")
    module.READ_ACCESS = "READ"
    module.exceptions = types.SimpleNamespace(
        Neo4jError=type("Neo4jError", (Exception,), {}), DriverError=type("DriverError", (Exception,), {})
    )
    module.GraphDatabase = types.SimpleNamespace(driver=lambda address, auth: Driver(address=address, auth=auth))
    monkeypatch.setitem(sys.modules, "neo4j", module)
    monkeypatch.setenv("NEO4J_PASSWORD", "s3cret")
    return calls


def test_neo4j_streams_two_queries_and_closes_what_it_opened(tmp_path, neo4j):
    report, rejected = run("neo4j", "bolt://db:7687", tmp_path / "graph", database="films", user="reader")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    assert named_triples(graph) == {("Ann", "WROTE", "Notes"), ("Ann", "READ", "Notes"), ("李白", "KNOWS", "李白")}
    assert graph.node(0)["attributes"] == {"name": "Ann", "born": 1815, "at": "b'x'"}
    assert graph.node_type(range(3)) == ["Person", None, "Poet"]
    assert graph.node_text([1, 2]) == ["Notes: on the engine", "李白, Poet: of the Tang"]
    assert (report.rows, report.kept) == (11, 6)
    assert [(row["file"], row["line"]) for row in rejected] == [
        ("node_query", 3), ("node_query", 4), ("relationship_query", 4), ("relationship_query", 5),
        ("relationship_query", 3),
    ]  # fmt: skip
    sessions = [settings for name, settings in neo4j if name == "session" and "database" in settings]
    assert [one["database"] for one in sessions] == ["films", "films"]
    assert all(one["default_access_mode"] == "READ" for one in sessions)
    assert neo4j[0] == ("session", {"address": "bolt://db:7687", "auth": ("reader", "s3cret")})
    assert sum(name == "closed" for name, _ in neo4j) == 4
    assert "s3cret" not in "".join(path.read_text(errors="replace") for path in (tmp_path / "graph").iterdir())


def test_neo4j_command_line(tmp_path, neo4j, capsys):
    command = ["import", "neo4j", "--input", "bolt://db:7687", "--output", str(tmp_path / "g")]
    assert main([*command, "--node_query", "MATCH (n:Film) RETURN n.id AS id"]) == 0
    assert ("run", "MATCH (n:Film) RETURN n.id AS id") in neo4j
    assert "11 rows read, 6 kept, 5 rejected" in capsys.readouterr().out
    assert main([*command, "--node_query", "broken"]) == 2
    assert "bolt://db:7687: no such procedure; check address" in capsys.readouterr().err
    assert main(["import", "triples", "--input", "x", "--output", str(tmp_path), "--user", "me"]) == 2
    assert "--user belongs to the format neo4j, not to triples" in capsys.readouterr().err


def test_neo4j_asks_for_password_and_driver(tmp_path, monkeypatch):
    monkeypatch.delenv("NEO4J_PASSWORD", raising=False)
    with pytest.raises(ValueError, match="NEO4J_PASSWORD is not set"):
        IMPORTERS["neo4j"]("bolt://db", tmp_path / "g")
    monkeypatch.setenv("NEO4J_PASSWORD", "x")
    monkeypatch.setitem(sys.modules, "neo4j", None)
    with pytest.raises(ValueError, match="pip install neo4j"):
        IMPORTERS["neo4j"]("bolt://db", tmp_path / "g")


# GraphML


GRAPHML = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key id="d0" for="node" attr.name="entity_type" attr.type="string"/>
  <key id="d1" for="node" attr.name="description" attr.type="string"/>
  <key id="d2" for="edge" attr.name="relation" attr.type="string"/>
  <key id="d3" for="node" attr.name="born" attr.type="int"/>
  <graph edgedefault="undirected">
    <edge source="Zürich" target="a"><data key="d2">home of</data></edge>
    <node id="a"><data key="d0">person</data><data key="d1">R &amp; D
of engines</data><data key="d3">1815</data></node>
    <node id="Zürich"/>
    <node id="a"/>
    <node/>
    <edge source="a" target="Zürich"/>
    <edge source="a" target="Zürich"><data key="d2">likes</data></edge>
    <edge source="a" target="Zürich"/>
    <edge source="a" target="ghost"/>
  </graph>
</graphml>
"""


def test_graphml_in_any_order_with_line_numbers(tmp_path):
    report, rejected = run("graphml", write(tmp_path / "g.graphml", GRAPHML), tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    assert named_triples(graph) == {("Zürich", "home of", "a"), ("a", "linked to", "Zürich"), ("a", "likes", "Zürich")}
    assert graph.node(0) == {"id": 0, "name": "a", "type": "person", "text": "a, person: R & D\nof engines",
                             "attributes": {"born": "1815"}}  # fmt: skip
    assert {row["line"]: row["reason"].split(":")[0] for row in rejected} == {
        12: "a second node 'a'", 13: "a node without 'id'", 16: "the same triple stands in line 14",
        17: "the tail 'ghost' is not in the graph",
    }  # fmt: skip
    assert (report.rows, report.kept) == (9, 5)


def test_graphml_written_by_networkx(tmp_path):
    networkx = pytest.importorskip("networkx")
    drawn = networkx.MultiDiGraph()
    drawn.add_node("n0", name="Ann", weight=1.5)
    drawn.add_edges_from([("n0", "n1", {"label": "knows"}), ("n0", "n1", {"label": "likes"}), ("n1", "n1", {})])
    networkx.write_graphml(drawn, tmp_path / "g.graphml")
    run("graphml", tmp_path / "g.graphml", tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    assert named_triples(graph) == {("Ann", "knows", "n1"), ("Ann", "likes", "n1"), ("n1", "linked to", "n1")}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("<graphml><node id='a'>", "g.graphml:1: no XML"), ("text", "g.graphml:1: no XML"), ("<graphml/>", "no edges")],
)
def test_broken_graphml_names_the_line(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        IMPORTERS["graphml"](write(tmp_path / "g.graphml", text), tmp_path / "graph")


# PyG


def pyg_tensors():
    import torch

    return {
        "x": torch.arange(12, dtype=torch.float32).reshape(4, 3),
        "edge_index": torch.tensor([[0, 0, 1, 3, 0, 2], [1, 1, 0, 3, 1, 8]]),
        "edge_type": torch.tensor([0, 1, 0, 1, 0, 0]),
        "y": torch.tensor([5, 6, 7, 8]),
        "train_mask": torch.tensor([True, False, True, False]),
    }


@pytest.mark.parametrize("form", ["dict", "data", "dataset", "pair", "safetensors"])
def test_pyg_edges_vectors_and_labels(tmp_path, form):
    import torch

    tensors, path = pyg_tensors(), tmp_path / "data.pt"
    if form == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "data.safetensors"
        save_file(tensors, path)
    else:
        data = pytest.importorskip("torch_geometric.data")
        if form == "dataset":
            data.InMemoryDataset.save([data.Data(**tensors)], str(path))
        else:
            forms = {"dict": tensors, "data": data.Data(**tensors), "pair": (data.Data(**tensors), None)}
            torch.save(forms[form], path)
    write(tmp_path / "relations.txt", "knows\nworks_at\n")
    report, rejected = run("pyg", path, tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph", verify=True)
    assert graph.edges.tolist() == [[0, 0, 1], [0, 1, 1], [1, 0, 0], [3, 1, 3]]
    assert np.array_equal(graph.node_features, tensors["x"].numpy()) and graph.relation_features.shape == (2, 3)
    assert graph.relation_text([1]) == ["works at"] and graph.node(2)["attributes"] == {"y": 7}
    assert graph.text_encoder.startswith(f"given:{path.name}:") and "left out: train_mask" in report.summary
    assert [(row["line"], row["reason"][:12]) for row in rejected] == [(5, "the same edg"), (6, "an id is out")]


def test_pyg_edge_attributes_become_relation_vectors_and_come_back(tmp_path):
    import torch

    tensors = pyg_tensors()
    tensors["edge_index"] = tensors["edge_index"][:, :4]
    tensors["edge_type"] = tensors["edge_type"][:4]
    relations = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    tensors = {**tensors, "edge_attr": relations[tensors["edge_type"]], "node_names": list("abcd")}
    torch.save(tensors, tmp_path / "d.pt")
    run("pyg", tmp_path / "d.pt", tmp_path / "graph")
    graph = KnowledgeGraph.open(tmp_path / "graph")
    assert graph.node_name([3]) == ["d"] and np.allclose(graph.relation_features, relations)
    back = graph.to_pyg()
    assert torch.equal(back.x, tensors["x"]) and torch.equal(back.edge_attr, relations[back.edge_type])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"edge_type": [0, 1]}, "edge_type has shape"),
        ({"x": [[float("nan")]] * 4}, "not finite"),
        ({"node_names": ["a"]}, "1 names of nodes for 4 nodes"),
        ({"edge_index": [0, 1]}, "edge_index has shape"),
    ],
)
def test_pyg_tensors_that_do_not_fit_are_refused(tmp_path, changes, sentence):
    import torch

    changed = {key: value if key == "node_names" else torch.tensor(value) for key, value in changes.items()}
    torch.save({**pyg_tensors(), **changed}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match=sentence):
        IMPORTERS["pyg"](tmp_path / "d.pt", tmp_path / "graph")


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_file_that_could_run_code_is_refused_unread(tmp_path, capsys):
    import torch

    torch.save([Harmful()], tmp_path / "d.pt")
    with pytest.raises(ValueError, match="could run code"):
        load_plain(tmp_path / "d.pt")
    (tmp_path / "t.pt").write_text("text")
    with pytest.raises(ValueError, match="no file of torch.save"):
        load_plain(tmp_path / "t.pt")
    (tmp_path / "t.safetensors").write_text("text")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_plain(tmp_path / "t.safetensors")
    assert "executed" not in capsys.readouterr().out


def test_the_help_of_import_says_a_sentence_for_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["import", "webqsp", "--help"])
    text = capsys.readouterr().out
    for name in IMPORTERS:
        assert any(len(line.split()) > 5 for line in text.splitlines() if line.strip().startswith(f"{name} ")), name
