"""Any graph written is read back equal, both directions agree, text parses back, and a damaged folder is refused."""

import json
import pickle
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_processor import files
from data_processor.graph_store import (
    KnowledgeGraph,
    SubgraphStore,
    embed_graph,
    parse_triples,
    write_graph,
    write_subgraphs,
)
from data_processor.schema import Document, Subgraph

#   0 --likes--> 1 --likes--> 2 --knows--> 0        3 --knows--> 3        4 (alone)
NODES = [
    {"name": "Ann", "type": "person"},
    {"name": "Bob", "type": "person", "text": "Bob, who likes tea", "attributes": {"age": 3}},
    {"name": "Cy"},
    {"name": "Di"},
    {"name": "Ed"},
]
RELATIONS = [{"name": "likes"}, {"name": "knows", "text": "is acquainted with"}]
EDGES = np.array([[2, 1, 0], [0, 0, 1], [3, 1, 3], [1, 0, 2]])


class CountingEncoder:
    """Vectors made of lengths; remembers what it was asked."""

    def __init__(self, name="counting", dimension=3):
        self.name, self.dimension, self.asked = name, dimension, []

    def encode(self, texts, batch_size=256, progress=False):
        self.asked += texts
        return np.array([[len(text), text.count("a"), 1][: self.dimension] for text in texts], dtype=np.float32)


def split_tokens(texts, add_special_tokens=False):
    """A tokenizer of words, called as Hugging Face's are."""
    return {"input_ids": [text.split() for text in texts]}


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "graph", NODES, RELATIONS, EDGES)


def empty_subgraph():
    return Subgraph(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def test_texts_fall_back_to_name_and_type(graph):
    assert graph.node_name([4, 0]) == ["Ed", "Ann"]
    assert graph.node_text([0, 1, 2]) == ["Ann, person", "Bob, who likes tea", "Cy"]
    assert graph.node_type([0, 2]) == ["person", None]
    assert graph.relation_text([0, 1]) == ["likes", "is acquainted with"]
    assert graph.node(1) == {**NODES[1], "id": 1}
    assert graph.node_name([]) == []


def test_neighbours_in_each_direction(graph):
    assert graph.edges.tolist() == [[0, 0, 1], [1, 0, 2], [2, 1, 0], [3, 1, 3]]
    rows, ends = graph.neighbours(0)
    assert (rows.tolist(), ends.tolist()) == ([0, 2], [1, 2])
    assert graph.neighbours(0, "out")[1].tolist() == [1]
    assert graph.neighbours(0, "in")[1].tolist() == [2]
    assert graph.neighbours(3)[0].tolist() == [3], "a self-loop counts once"
    assert graph.neighbours(4)[0].tolist() == []
    with pytest.raises(ValueError, match="'sideways'"):
        graph.neighbours(0, "sideways")


def test_subgraph_adds_endpoints_and_orders_by_score(graph):
    subgraph = graph.subgraph([4, 1, 4], [1, 0], node_scores=[0.1, 0.9, 0.3], edge_scores=[0.2, 0.8])
    assert subgraph.nodes.tolist() == [1, 4, 0, 2] and subgraph.edges.tolist() == [0, 1]
    assert subgraph.node_scores.tolist() == pytest.approx([0.9, 0.3, 0, 0])
    edge_index, relations = graph.local(subgraph)
    assert edge_index.tolist() == [[2, 0], [0, 3]] and relations.tolist() == [0, 0]


def test_induced_subgraph_of_a_subgraph_is_within_it(graph):
    whole = graph.induced_subgraph([0, 1, 2, 3])
    part = graph.induced_subgraph(whole.nodes[:2])
    assert whole.edges.tolist() == [0, 1, 2, 3] and part.edges.tolist() == [0]
    assert set(part.nodes) <= set(whole.nodes)


@pytest.mark.parametrize("nodes, edges", [([5], []), ([-1], []), ([], [4])])
def test_id_out_of_range_names_id_and_count(graph, nodes, edges):
    with pytest.raises(ValueError, match=r"id (5|-1|4) is out of range.* has (5 node|4 edge)s"):
        graph.subgraph(nodes, edges)


def test_ids_must_be_whole_numbers(graph):
    with pytest.raises(ValueError, match="whole numbers"):
        graph.node_name([0.5])


HARD_NAMES = ["a", "", "a\nb", ' "', '"quoted"', "a | b", "|", "x |", "a,b", "ü\r", "\u2028", "n" * 10_000]


@pytest.mark.parametrize("text", HARD_NAMES)
def test_any_name_survives_triples_text(tmp_path, text):
    graph = write_graph(tmp_path / "g", [{"name": text}, {"name": "b"}, {"name": text}], [{"name": text}], [[0, 0, 1]])
    subgraph = graph.subgraph([0, 1, 2], [0])
    assert parse_triples(graph.to_text(subgraph)) == [(text, text, "b"), (text,)]


HARD_TEXT = st.text(st.sampled_from('a| \n"\\,'), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(HARD_TEXT, HARD_TEXT, HARD_TEXT), min_size=1, max_size=4))
def test_triples_text_parses_back(names):
    from data_processor.graph_text import join_triples, triple_rows

    count = len(names)
    flat = [name for head, _, tail in names for name in (head, tail)]
    index = np.arange(2 * count).reshape(count, 2).T
    text = join_triples(triple_rows(flat, [relation for _, relation, _ in names], index))
    assert parse_triples(text) == names


@pytest.mark.parametrize("text", ['"a"b | c | d', "a | b"])
def test_text_that_is_no_triples_is_refused(text):
    with pytest.raises(ValueError, match="row"):
        parse_triples(text)


def test_tables_quote_by_the_csv_rules(tmp_path):
    graph = write_graph(tmp_path / "g", [{"name": 'a,"b'}, {"name": "c"}], [{"name": "is"}], [[0, 0, 1]])
    text = graph.to_text(graph.subgraph([], [0]), style="tables")
    assert text == 'node_id,node_attr\n0,"a,""b"\n1,c\n\nsrc,edge_attr,dst\n0,is,1'


@pytest.mark.parametrize("style", ["triples", "tables"])
@pytest.mark.parametrize("budget", range(0, 26))
def test_budget_is_kept_by_whole_rows(graph, style, budget):
    subgraph = graph.subgraph([0, 1, 2, 3, 4], [0, 1, 2, 3])
    whole = graph.to_text(subgraph, style=style).split("\n")
    text, kept, total = graph.text_rows(subgraph, budget, split_tokens, style)
    assert len(text.split()) <= budget
    assert set(text.split("\n")) <= {*whole, ""}
    assert kept <= total == (5 if style == "triples" else 9)


def test_a_tight_budget_keeps_nodes_and_edges(graph):
    subgraph = graph.subgraph([4, 3, 0, 1], [3, 0], node_scores=[0.9, 0.8, 0.2, 0.1], edge_scores=[0.7, 0.6])
    text = graph.to_text(subgraph, 8, split_tokens, "tables")
    assert "0,Ed" in text and "1,knows,1" in text and "likes" not in text


def test_max_tokens_needs_a_tokenizer(graph):
    with pytest.raises(ValueError, match="tokenizer"):
        graph.to_text(graph.subgraph([0], []), max_tokens=5)
    with pytest.raises(ValueError, match="'prose'"):
        graph.to_text(graph.subgraph([0], []), style="prose")


@st.composite
def graphs(draw):
    """(nodes, relations, edges) of a graph with hard names, lone nodes, self-loops and repeated edges."""
    text, nodes, relations = st.text(max_size=5), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    optional = st.fixed_dictionaries({}, optional={"type": text, "text": text, "attributes": st.just({"a": [1, "é"]})})
    records = [{"name": draw(text), **draw(optional)} for _ in range(nodes)]
    node, relation = st.integers(0, nodes - 1), st.integers(0, relations - 1)
    edges = draw(st.lists(st.tuples(node, relation, node), min_size=1, max_size=20))
    return records, [{"name": draw(text)} for _ in range(relations)], np.array(edges)


any_graph = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@any_graph
@given(graphs())
def test_any_graph_is_read_back_equal(tmp_path, written):
    nodes, relations, edges = written
    write_graph(tmp_path / "g", iter(nodes), relations, edges)
    graph = KnowledgeGraph.open(tmp_path / "g", verify=True)
    numbers = np.arange(len(nodes))
    assert graph.node_name(numbers) == [node["name"] for node in nodes] == list(graph.iter_names())
    assert graph.node_type(numbers) == [node.get("type") for node in nodes] == list(graph.iter_types())
    for number, node in enumerate(nodes):
        found = graph.node(number)
        assert found["attributes"] == node.get("attributes", {}) and found["text"] == node.get("text", found["text"])
    assert graph.node_text(numbers) == list(graph.iter_texts())
    assert graph.relation_name(np.arange(len(relations))) == [relation["name"] for relation in relations]
    assert sorted(graph.edges.tolist()) == sorted(edges.tolist())


@any_graph
@given(graphs())
def test_both_directions_agree_with_the_edges(tmp_path, written):
    nodes, relations, edges = written
    graph = write_graph(tmp_path / "g", nodes, relations, edges)
    everyone = np.arange(len(nodes))
    for number in everyone.tolist():
        out_rows, out_ends = graph.neighbours(number, "out")
        in_rows, in_ends = graph.neighbours(number, "in")
        assert sorted(out_ends) == sorted(edges[edges[:, 0] == number, 2])
        assert sorted(in_ends) == sorted(edges[edges[:, 2] == number, 0])
        assert (graph.edges[out_rows, 0] == number).all() and (graph.edges[in_rows, 2] == number).all()
    assert np.array_equal(graph.out_edges(everyone), np.arange(len(edges)))
    assert sorted(graph.in_edges_of(everyone)) == list(range(len(edges)))


@any_graph
@given(graphs(), st.data())
def test_a_subgraph_of_a_subgraph_is_a_subgraph(tmp_path, written, data):
    graph = write_graph(tmp_path / "g", *written)
    some = st.lists(st.integers(0, graph.num_nodes - 1), max_size=9)
    whole = graph.induced_subgraph(data.draw(some))
    kept = data.draw(st.lists(st.sampled_from(whole.nodes.tolist()))) if len(whole.nodes) else []
    part = graph.induced_subgraph(kept)
    inside = np.isin(graph.edges[:, [0, 2]], kept).all(axis=1)
    assert part.nodes.tolist() == list(dict.fromkeys(kept)) and part.edges.tolist() == np.flatnonzero(inside).tolist()
    assert set(part.nodes) <= set(whole.nodes) and set(part.edges) <= set(whole.edges)
    again = graph.subgraph(whole.nodes, whole.edges, whole.node_scores, whole.edge_scores)
    assert all(np.array_equal(vars(again)[field], vars(whole)[field]) for field in vars(whole)), "nothing more to add"


@any_graph
@given(graphs(), st.data())
def test_text_of_any_subgraph_parses_back(tmp_path, written, data):
    graph = write_graph(tmp_path / "g", *written)
    nodes = data.draw(st.lists(st.integers(0, graph.num_nodes - 1), max_size=9))
    edges = data.draw(st.lists(st.integers(0, graph.num_edges - 1), max_size=9))
    subgraph = graph.subgraph(nodes, edges)
    sources, relations, targets = graph.edges[subgraph.edges].T
    named = zip(graph.node_name(sources), graph.relation_name(relations), graph.node_name(targets), strict=True)
    alone = subgraph.nodes[~np.isin(subgraph.nodes, [sources, targets])]
    assert parse_triples(graph.to_text(subgraph)) == [*named, *((name,) for name in graph.node_name(alone))]


def test_rows_are_found_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH_ROWS", 4)
    graph = write_graph(tmp_path / "g", ({"name": f"n{i}"} for i in range(11)), [{"name": "r"}], [[0, 0, 10]])
    assert graph.node_name([10, 3, 4, 0, 10]) == ["n10", "n3", "n4", "n0", "n10"]
    assert list(graph.iter_texts()) == [f"n{i}" for i in range(11)]


@pytest.mark.parametrize(
    ("nodes", "relations", "edges", "sentence"),
    [
        ([], [{"name": "r"}], [[0, 0, 0]], "no nodes"),
        ([{"name": "a"}], [], [[0, 0, 0]], "no relations"),
        ([{"name": "a"}], [{"name": "r"}], np.zeros((0, 3), int), "no edges"),
        ([{"name": "a"}], [{"name": "r"}], [[0, 0, 1]], "names node 1, but there are 1 nodes"),
        ([{"name": "a"}], [{"name": "r"}], [[0, -1, 0]], "names relation -1"),
        ([{"name": "a"}], [{"name": "r"}], [[0.0, 0, 0]], "whole numbers"),
        ([{"name": "a"}, {"type": "x"}], [{"name": "r"}], [[0, 0, 0]], "node 1 is .*'name'"),
        ([{"name": "a", "title": "x"}], [{"name": "r"}], [[0, 0, 0]], "may have"),
    ],
)
def test_unusable_graph_is_refused_and_not_left_behind(tmp_path, nodes, relations, edges, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_graph(tmp_path / "g", nodes, relations, np.array(edges))
    with pytest.raises(ValueError, match="graph"):
        KnowledgeGraph.open(tmp_path / "g")


def test_graph_without_manifest_is_refused(graph):
    (graph.path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="cut short"):
        KnowledgeGraph.open(graph.path)
    with pytest.raises(ValueError, match="is no folder"):
        KnowledgeGraph.open(graph.path / "absent")


def test_failed_rewrite_never_looks_whole(graph):
    def broken():
        yield {"name": "x"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_graph(graph.path, broken(), RELATIONS, EDGES)
    with pytest.raises(ValueError, match="cut short"):
        KnowledgeGraph.open(graph.path)


def test_changed_files_are_noticed(graph):
    path = graph.path / "edges.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([1] + [0] * 7))
    KnowledgeGraph.open(graph.path)
    with pytest.raises(ValueError, match="edges.npy was changed"):
        KnowledgeGraph.open(graph.path, verify=True)
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match=f"edges.npy has {len(content) - 8} bytes, the manifest says {len(content)}"):
        KnowledgeGraph.open(graph.path)
    path.unlink()
    with pytest.raises(ValueError, match="edges.npy is missing"):
        KnowledgeGraph.open(graph.path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 99}, "schema_version 99"),
        ({"counts": {"nodes": 6, "edges": 4, "relations": 2, "documents": 0}}, r"shape \(6,\).* says \(7,\)"),
        ({"feature_width": 5}, "node_features.npy"),
    ],
)
def test_manifest_that_disagrees_is_refused(graph, change, sentence):
    embed_graph(graph.path, CountingEncoder())
    path = graph.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=sentence):
        KnowledgeGraph.open(graph.path)


def test_manifest_that_is_no_json_is_refused(graph):
    (graph.path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="no manifest"):
        KnowledgeGraph.open(graph.path)


def test_documents_are_kept_and_checked(tmp_path):
    documents = [Document("d0", None, "Ann likes Bob."), Document("d1", "T", "Cy")]
    graph = write_graph(tmp_path / "g", NODES, RELATIONS, EDGES, documents, np.array([[0, 0], [0, 1], [1, 2]]))
    assert graph.manifest["counts"]["documents"] == 2
    assert graph.document_nodes.tolist() == [[0, 0], [0, 1], [1, 2]]
    assert graph.documents([1, 0]) == documents[::-1] and graph.documents([]) == [] and graph.num_documents == 2
    with pytest.raises(ValueError, match="document id 2 is out of range"):
        graph.documents([2])
    with pytest.raises(ValueError, match="document 2, but there are 2"):
        write_graph(tmp_path / "g", NODES, RELATIONS, EDGES, documents, np.array([[2, 0]]))
    without = write_graph(tmp_path / "g", NODES, RELATIONS, EDGES)
    assert without.num_documents == 0 and without.document_nodes.shape == (0, 2)


def test_graph_travels_to_a_worker_by_its_path(graph):
    again = pickle.loads(pickle.dumps(graph))
    assert again.node_name([1]) == ["Bob"] and len(pickle.dumps(graph)) < 1000


def test_a_large_graph_opens_in_milliseconds(tmp_path):
    count = 200_000
    write_graph(tmp_path / "g", ({"name": str(i)} for i in range(count)), [{"name": "r"}], [[0, 0, count - 1]])
    start = time.perf_counter()
    graph = KnowledgeGraph.open(tmp_path / "g")
    assert graph.node_name([count - 1]) == [str(count - 1)]
    assert time.perf_counter() - start < 0.5


def test_embedding_asks_for_each_distinct_string_once(tmp_path):
    names = ["ab", "ab", "likes", "c"]
    write_graph(tmp_path / "g", [{"name": name} for name in names], RELATIONS, [[0, 0, 3]])
    encoder = CountingEncoder()
    graph = embed_graph(tmp_path / "g", encoder, dtype="float32")
    assert encoder.asked == ["ab", "likes", "c", "is acquainted with"]
    assert graph.node_features.tolist() == [[2, 1, 1], [2, 1, 1], [5, 0, 1], [1, 0, 1]]
    assert graph.relation_features[0].tolist() == graph.node_features[2].tolist()
    assert graph.text_encoder == "counting" and graph.node_features.dtype == np.float32
    KnowledgeGraph.open(tmp_path / "g", verify=True)


def test_a_grown_graph_embeds_only_what_is_new(graph):
    embed_graph(graph.path, CountingEncoder())
    write_graph(graph.path, [*NODES, {"name": "Flo"}], RELATIONS, np.concatenate([EDGES, [[5, 0, 0]]]))
    assert KnowledgeGraph.open(graph.path).node_features is None, "new nodes have no features yet"
    encoder = CountingEncoder()
    grown = embed_graph(graph.path, encoder)
    assert encoder.asked == ["Flo"]
    assert grown.node_features[5].tolist() == [3, 0, 1] and grown.node_features.dtype == np.float16
    embed_graph(graph.path, other := CountingEncoder("another"))
    assert len(other.asked) == 8, "another encoder shares nothing"


def test_a_killed_embedding_goes_on(tmp_path, monkeypatch):
    from data_processor import embedding_cache

    class Killed(CountingEncoder):
        def encode(self, texts, batch_size=256, progress=False):
            if len(self.asked) >= 4:
                raise KeyboardInterrupt
            return super().encode(texts)

    monkeypatch.setattr(embedding_cache, "SHARD_ROWS", 2)
    names = [f"n{'a' * number}" for number in range(9)]
    write_graph(tmp_path / "g", [{"name": name} for name in names], RELATIONS, [[0, 0, 3]])
    with pytest.raises(KeyboardInterrupt):
        embed_graph(tmp_path / "g", Killed())
    assert KnowledgeGraph.open(tmp_path / "g").node_features is None
    encoder = CountingEncoder()
    graph = embed_graph(tmp_path / "g", encoder)
    assert encoder.asked[:5] == names[4:], "the first two shards were kept"
    assert graph.node_features[:, 1].tolist() == list(range(9))


@pytest.mark.parametrize(
    ("style", "texts"),
    [
        ("names", ["Ann likes Bob", "Bob likes Cy", "Cy is acquainted with Ann", "Di is acquainted with Di"]),
        ("types", ["person likes person", "person likes", "is acquainted with person", "is acquainted with"]),
    ],
)
def test_every_edge_has_the_vector_of_its_sentence(graph, style, texts):
    encoder = CountingEncoder()
    graph = embed_graph(graph.path, encoder, dtype="float32", edge_text=style)
    found = graph.edge_features[graph.edge_sentences]
    assert found.tolist() == CountingEncoder().encode(texts).tolist() and set(texts) <= set(encoder.asked)
    KnowledgeGraph.open(graph.path, verify=True)
    plain = embed_graph(graph.path, CountingEncoder())
    assert plain.edge_features is plain.edge_sentences is None and not (graph.path / "edge_features.npy").exists()


def test_edges_of_the_same_types_share_a_sentence(tmp_path):
    nodes = [{"name": f"n{number}", "type": "ab"[number % 2]} for number in range(40)]
    edges = np.stack([np.arange(39), np.zeros(39, int), np.arange(1, 40)], axis=1)
    write_graph(tmp_path / "g", nodes, [{"name": "r"}], edges)
    graph = embed_graph(tmp_path / "g", CountingEncoder(), edge_text="types")
    assert graph.edge_features.shape == (2, 3)
    assert graph.edge_sentences.tolist() == [number % 2 for number in range(39)]


def test_edge_text_that_cannot_be_made_is_refused(tmp_path):
    write_graph(tmp_path / "g", [{"name": "a"}], [{"name": "r"}], [[0, 0, 0]])
    with pytest.raises(ValueError, match="has a type; choose the text 'names'"):
        embed_graph(tmp_path / "g", CountingEncoder(), edge_text="types")
    with pytest.raises(ValueError, match="one of names, types, got 'prose'"):
        embed_graph(tmp_path / "g", CountingEncoder(), edge_text="prose")


def test_cache_of_another_width_is_refused(graph):
    embed_graph(graph.path, CountingEncoder())
    with pytest.raises(ValueError, match="width 2"):
        embed_graph(graph.path, CountingEncoder(dimension=2))


def test_to_pyg_holds_the_subgraph(graph):
    pytest.importorskip("torch_geometric")
    graph = embed_graph(graph.path, CountingEncoder())
    data = graph.to_pyg(graph.subgraph([3], [0]))
    assert data.node_id.tolist() == [3, 0, 1] and data.edge_index.tolist() == [[1], [2]]
    assert data.x.shape == (3, 3) and data.edge_attr.shape == (1, 3) and data.x.dtype == data.edge_attr.dtype
    assert graph.to_pyg().edge_index.tolist() == graph.edges[:, [0, 2]].T.tolist()


def test_subgraphs_are_read_back_by_id(graph, monkeypatch):
    monkeypatch.setattr(files, "BATCH_ROWS", 3)
    monkeypatch.setattr("data_processor.subgraph_store.BATCH_ROWS", 3)
    given_ones = [graph.subgraph([4], [0], [0.5], [2.0]), empty_subgraph(), graph.induced_subgraph([0, 1, 2, 3])]
    folder = graph.path.parent / "subgraphs" / "test"
    write_subgraphs(folder, ["a", "b", "c"], iter(given_ones), {"mean_nodes": 2.0}, {"graph": "graph", "method": "x"})
    store = pickle.loads(pickle.dumps(SubgraphStore.open(folder, verify=True)))
    assert store.ids == ["a", "b", "c"] and "b" in store and "z" not in store and len(store) == 3
    for name, expected in zip(store.ids, given_ones, strict=True):
        found = store.get(name)
        for field in ("nodes", "node_scores", "edges", "edge_scores"):
            assert np.array_equal(vars(found)[field], vars(expected)[field])
            assert vars(found)[field].dtype == vars(expected)[field].dtype
    with pytest.raises(ValueError, match="no subgraph for question 'z'"):
        store.get("z")


def test_subgraphs_all_empty(tmp_path):
    write_subgraphs(tmp_path / "s", ["a"], [empty_subgraph()], {}, {})
    assert SubgraphStore.open(tmp_path / "s").get("a").nodes.tolist() == []


@pytest.mark.parametrize(
    ("ids", "count", "sentence"),
    [(["a", "a"], 2, "'a' occurs twice"), (["a"], 2, "more"), (["a", "b"], 1, "2 question ids, 1")],
)
def test_subgraphs_that_do_not_fit_their_ids_are_refused(tmp_path, ids, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_subgraphs(tmp_path / "s", ids, [empty_subgraph()] * count, {}, {})
    with pytest.raises(ValueError, match="subgraphs"):
        SubgraphStore.open(tmp_path / "s")
