"""The Producer: what is shown of a node, what is asked, what is kept, and GraphTranslator's CSV both ways."""

import json

import numpy as np
import pytest

from data_processor.__main__ import main
from data_processor.calls import CallLog
from data_processor.chunking import words_and_marks
from data_processor.demo_nodes import SETTINGS as DEMO
from data_processor.demo_nodes import write_demonstration
from data_processor.describe import TYPE, add_descriptions
from data_processor.graph_store import KnowledgeGraph, SubgraphStore, write_graph
from data_processor.node_stars import read_summaries
from data_processor.node_vectors import write_vectors
from data_processor.producer import (
    STAGES,
    Settings,
    Splits,
    first_tokens,
    neighbour_lines,
    sample_neighbours,
    shown_nodes,
    summaries,
)
from data_processor.prompts import DOMAINS, PLACES, PROMPTS, Prompts
from data_processor.schema import NodeSummary, QAPair, Rejected, from_json, read_jsonl, read_qa, to_json, write_jsonl
from data_processor.stages import Stages
from data_processor.subgraph_store import write_subgraphs
from data_processor.text_generator import ReplyFunction, TextGenerator
from data_processor.wording import Wording

WORDS = ["a", "b", "c", "d", "e"]


def rules(request):
    """Replies by rules; a prompt that holds "odd" is refused, one that holds "few" gets four key words."""
    text = request.messages[0]["content"]
    if "odd" in text:
        return "no"
    if request.name == "node":
        return json.dumps({"summary": request.values["text"].upper(), "key_words": WORDS[: 4 if "few" in text else 5]})
    if request.name == "neighbours":
        return json.dumps({"summary": f"{len(request.values['text'].splitlines())} of them"})
    return json.dumps({"common": "much"})


@pytest.fixture
def graph(tmp_path) -> KnowledgeGraph:
    """0 -> 1 -> 2, 0 -> 3 twice, 4 alone, 5 without a text, 6 refused, 7 with few key words, whose neighbour is 6."""
    nodes = [{"name": f"n{i}", "text": f"text of {i}"} for i in range(5)]
    nodes += [{"name": " "}, {"name": "odd"}, {"name": "few", "text": "few words"}]
    edges = [[0, 0, 1], [1, 0, 2], [0, 0, 3], [0, 1, 3], [7, 1, 6]]
    return write_graph(tmp_path / "data" / "graph", nodes, [{"name": "cites"}, {"name": "likes"}], np.array(edges))


def produced(graph, folder, settings, reply=rules):
    """(summaries by node, stages, rejected reasons, calls asked)"""
    with Rejected(folder / "rejected.jsonl") as rejected:
        stages = Stages(rejected, STAGES)
        with TextGenerator(ReplyFunction(reply, "rules"), CallLog(folder / "calls.jsonl")) as generator:
            nodes = shown_nodes(graph, settings, words_and_marks)
            found = list(summaries(nodes, generator, Wording(Prompts()), settings, Splits(folder, settings), stages))
    path = folder / "rejected.jsonl"
    reasons = [row["reason"] for _, row in read_jsonl(path)] if path.is_file() else []
    return {one.node: one for one in found}, stages.counts, reasons, generator.asked


def test_each_node_is_summarised_with_its_neighbours_and_what_they_share(graph, tmp_path):
    found, counts, reasons, asked = produced(graph, tmp_path / "data", Settings())
    assert found[0].summary == "TEXT OF 0" and found[0].key_words == tuple(WORDS)
    assert (found[0].neighbours, found[0].common, found[0].neighbour_nodes) == ("2 of them", "much", (1, 3))
    assert found[0].text == "TEXT OF 0\na, b, c, d, e\n2 of them\nmuch"
    assert found[4].neighbours is None and found[4].common is None and found[4].neighbour_nodes == ()
    assert set(found) == {0, 1, 2, 3, 4, 7}
    assert found[7].key_words == ("a", "b", "c", "d")  # fewer, after it was asked once more
    assert found[7].neighbours is None  # the prompt about them was refused
    for stage in counts.values():
        assert stage["in"] == stage["kept"] + stage["rejected"]
    assert counts["nodes"] == {"in": 8, "kept": 7, "rejected": 1}
    assert [reason for reason in reasons if reason.startswith("nodes: the node has no text")]
    assert [reason for reason in reasons if reason.startswith("summaries: ")]  # of node 6
    assert produced(graph, tmp_path / "data", Settings())[3] == 0 and asked > 0  # all of it stands in the log


def test_neighbours_are_drawn_without_repetition_by_degree_and_always_the_same(tmp_path):
    """A hub of 100,000 neighbours, of which the last hundred have a hundred edges each."""
    leaves = 100_000
    rich = np.repeat(np.arange(leaves - 99, leaves + 1), 99)
    edges = np.stack([np.concatenate([np.zeros(leaves), rich]), np.zeros(leaves + len(rich)),
                      np.concatenate([np.arange(1, leaves + 1), rich])], axis=1).astype(np.int64)  # fmt: skip
    nodes = ({"name": f"n{i}"} for i in range(leaves + 1))
    graph = write_graph(tmp_path / "graph", nodes, [{"name": "r"}], edges)
    drawn = [sample_neighbours(graph, 0, 50, seed) for seed in range(4)]
    assert drawn[0] == sample_neighbours(graph, 0, 50, 0) != drawn[1]
    assert all(len(set(one)) == 50 and 0 not in one for one in drawn)
    share = np.mean([node > leaves - 100 for one in drawn for node in one])
    assert 0.05 < share < 0.25  # a thousandth of the leaves, a sixth of the degrees
    shown = next(shown_nodes(graph, Settings(max_neighbours=3, limit=1), words_and_marks))
    assert len(shown.lines.splitlines()) == 3


def test_lines_say_how_a_neighbour_is_joined_and_texts_are_cut_by_tokens(graph):
    assert neighbour_lines(graph, 1, (0, 2)) == ["- ← cites text of 0", "- cites → text of 2"]
    assert neighbour_lines(graph, 0, (3,)) == ["- cites →, likes → text of 3"]
    long = "word " * 5000
    cut = first_tokens(long, 100, words_and_marks)
    assert words_and_marks(cut) == 100 and long.startswith(cut)
    assert first_tokens("short", 100, words_and_marks) == "short"
    shown = list(shown_nodes(graph, Settings(max_text_tokens=16), words_and_marks))
    assert all(words_and_marks(one.text) <= 16 and words_and_marks(one.lines) <= 17 for one in shown)


def test_nodes_that_questions_ask_about_keep_the_split_of_their_questions(tmp_path):
    for split, node in (("train", 1), ("test", 2), ("validation", 3)):
        write_jsonl(tmp_path / "qa" / f"{split}.jsonl", [to_json(QAPair(split, "q", ("a",), seed_nodes=(node, 9)))])
    splits = Splits(tmp_path, Settings())
    assert [splits.of(node) for node in (1, 2, 3)] == ["train", "test", "validation"]
    shares = [splits.of(node) for node in range(100, 2100)]
    assert 0.08 < shares.count("test") / 2000 < 0.12 and 0.03 < shares.count("validation") / 2000 < 0.07


def test_prompts_speak_of_the_domain_in_both_languages():
    for language in ("en", "zh"):
        for name in ("node", "neighbours", "common"):
            assert all("{" + place + "}" in PROMPTS[language][name] for place in PLACES[name])
    assert all(set(words) == {"en", "zh"} for words in DOMAINS.values())
    with pytest.raises(ValueError, match="--domain 'birds'"):
        Settings(domain="birds")


def test_a_domain_and_a_language_change_the_words_of_the_prompt(graph, tmp_path):
    seen = []

    def spy(request):
        seen.append(request.messages[0]["content"])
        return rules(request)

    produced(graph, tmp_path, Settings(domain="papers", limit=1), spy)
    assert "the paper below" in seen[0] and "papers that it cites or that cite it" in seen[1]


def test_the_command_goes_on_where_it_was_stopped_and_describes(graph, tmp_path, capsys):
    data, replies = tmp_path / "data", tmp_path / "replies.jsonl"
    produced(graph, data, Settings(domain="papers"))
    (data / "calls.jsonl").rename(replies)
    words = ["produce", "--data", str(data), "--backend", "recorded", "--model", "rules", "--replies", str(replies)]
    assert main([*words, "--domain", "papers"]) == 0
    assert "kept" in capsys.readouterr().out
    assert len(read_summaries(data / "summaries.jsonl")) == 6
    report = json.loads((data / "summaries_report.json").read_text())
    assert report["stages"]["nodes"]["rejected"] == 1 and report["settings"]["domain"] == "papers"
    assert len((data / "rejected_summaries.jsonl").read_text().splitlines()) >= 3
    assert main([*words, "--domain", "papers"]) == 0
    assert "0 calls made" in capsys.readouterr().out
    assert main([*words, "--types", "nothing"]) == 2
    assert "no node has a type of --types nothing" in capsys.readouterr().err

    pair = QAPair("q1", "who?", ("n1",), answer_nodes=(1,), seed_nodes=(0,))
    write_jsonl(data / "qa" / "train.jsonl", [to_json(pair)])
    write_subgraphs(data / "subgraphs" / "train", ["q1"], [graph.subgraph([0], [0])], {},
                    {"graph": "graph", "method": "mine", "parameters": {"a": 1}})  # fmt: skip
    counts = add_descriptions(data)
    assert counts == add_descriptions(data) and sum(counts.values()) == 6  # the second call adds none twice
    pairs, store = read_qa(data / "qa" / "train.jsonl"), SubgraphStore.open(data / "subgraphs" / "train")
    assert [one.id for one in pairs][0] == "q1" and len(pairs) == 1 + counts["train"] == len(store)
    assert store.manifest["method"] == "mine" and store.get("q1").nodes.tolist() == [0, 1]
    first = next(one for one in pairs if one.type == TYPE and one.seed_nodes == (0,))
    subgraph = store.get(first.id)
    assert not first.text and subgraph.nodes.tolist() == [0, 1, 3] and len(subgraph.edges) == 3


HEADER = "node_id,embedding,paper_summary,citepapers_summary,title\n"


def test_graphtranslators_csv_is_read_and_written(tmp_path, capsys):
    rows = [
        '7,"0.5, -1.25, 3.0",it is about x,others,A title', '9,"1.0, 2.0, 3.0",about y,-,B title',
        '9,"1.0, 2.0, 3.0",again,-,C', '11,"1.0, nan, 3.0",s,n,D', '12,"1.0, 2.0",s,n,E', '13,"1.0, x, 3.0",s,n,F',
        '14,"1.0, 2.0, 3.0",-,-,G', "15,short",
    ]  # fmt: skip
    source = tmp_path / "in"
    source.mkdir()
    (source / "summary_embeddings.csv").write_text(HEADER + "\n".join(rows) + "\n")
    (source / "sample_neighbor_df.csv").write_text("src_node,dst_node\n7,9\n7,1000\n")
    assert main(["import", "graphtranslator", "--input", str(source), "--output", str(tmp_path / "data")]) == 0
    assert "10 rows read, 3 kept, 7 rejected" in capsys.readouterr().out
    reasons = [row["reason"] for _, row in read_jsonl(tmp_path / "data" / "rejected.jsonl")]
    assert reasons == [
        "node 9 stands in an earlier row", "the embedding must be 3 finite numbers",
        "the embedding must be 3 finite numbers", "the embedding is no comma-separated list of numbers",
        "there is no summary", "2 fields, expected 5", "not two ids of nodes that have a summary",
    ]  # fmt: skip
    graph = KnowledgeGraph.open(tmp_path / "data" / "graph")
    assert graph.node_features.dtype == np.float32 and graph.node_features[0].tolist() == [0.5, -1.25, 3.0]
    assert graph.text_encoder.startswith("given:graphtranslator:")
    found = read_summaries(tmp_path / "data" / "summaries.jsonl")
    assert [(one.summary, one.neighbours, one.neighbour_nodes) for one in found] == [
        ("it is about x", "others", (1,)), ("about y", "-", (0,)),
    ]  # fmt: skip
    words = ["export", "graphtranslator", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out.csv")]
    assert main(words) == 0
    written = (tmp_path / "out.csv").read_text()
    assert written == HEADER + '7,"0.5, -1.25, 3.0",it is about x,others,A title\n' + (
        '9,"1.0, 2.0, 3.0",about y,-,B title\n')  # fmt: skip
    (source / "summary_embeddings.csv").write_text("a,b\n1,2\n")
    assert main(["import", "graphtranslator", "--input", str(source), "--output", str(tmp_path / "x")]) == 2
    assert "is missing" in capsys.readouterr().err


def test_vectors_that_do_not_fit_their_nodes_are_a_sentence(graph):
    with pytest.raises(ValueError, match=r"shape \(3, 4\), and the graph has 8 nodes. Give one row"):
        write_vectors(graph.path, np.zeros((3, 4)), "mine")
    broken = np.zeros((8, 4))
    broken[5, 1] = np.nan
    with pytest.raises(ValueError, match="mine holds nan in row 5"):
        write_vectors(graph.path, broken, "mine")
    vectors = np.arange(32, dtype=np.float64).reshape(8, 4)
    again = write_vectors(graph.path, vectors, "mine")
    assert again.text_encoder.startswith("given:mine:")
    assert np.array_equal(again.node_features, vectors.astype(np.float32))
    assert isinstance(again.node_features, np.memmap)
    with pytest.raises(ValueError, match="holds nan in row 5"):
        write_vectors(graph.path, broken, "mine")
    with pytest.raises(ValueError, match="beyond the 3.40282e[+]38 of float32"):
        write_vectors(graph.path, vectors * 1e38, "mine")
    assert np.array_equal(KnowledgeGraph.open(graph.path).node_features, vectors), "bad vectors take nothing away"


def test_a_summary_survives_its_line():
    row = {"node": 3, "summary": "s", "key_words": ["a", "b"], "neighbour_nodes": [1, 2], "split": "test"}
    assert to_json(from_json(NodeSummary, row)) == row


def test_the_demonstrations_replies_answer_every_prompt_of_its_world(tmp_path, capsys):
    """Recorded by rules from the prompts: no reply is rejected, and texts tell by kinds and counts, never by names."""
    graph, asked = write_demonstration(tmp_path, seed=1, questions=441)
    data = tmp_path / "data"
    words = ["produce", "--data", str(data), "--backend", "recorded", "--replies", str(tmp_path / "replies.jsonl")]
    words += ["--model", "demonstration", "--language", "en", "--max_neighbours", "8", "--types", *DEMO.types]
    assert main(words) == 0 and asked > 100
    found = read_summaries(data / "summaries.jsonl")
    assert " 0 rejected" in capsys.readouterr().out and not (data / "rejected_summaries.jsonl").exists()
    assert len(found) == sum(kind in DEMO.types for kind in graph.iter_types())
    names = set(graph.iter_names())
    assert not any(names & set(one.text.split()) for one in found)
    assert {one.split for one in found} == {"train", "validation", "test"}
    tested = {pair.seed_nodes[0] for pair in read_qa(data / "qa" / "test.jsonl")}
    assert all(one.split == "test" for one in found if one.node in tested)
