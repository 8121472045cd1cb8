"""Names link to seeds, walks score as dense matrices say, a split is retrieved whole, once, with true figures."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_processor.__main__ import main
from data_processor.graph_part import GraphPart
from data_processor.graph_store import KnowledgeGraph, SubgraphStore, embed_graph, write_graph, write_subgraphs
from data_processor.linking import Linker
from data_processor.retrieval import METHODS
from data_processor.retrieval.folder import retrieve_folder
from data_processor.retrieval.pagerank import pagerank, random_walk
from data_processor.retrieval.pcst import EDGE_PRIZES, pcst, rank_each_edge, rank_edges, solver, steiner_tree
from data_processor.schema import QAPair, read_qa, to_json, write_jsonl
from data_processor.text_encoder import load_encoder
from data_processor.vector_index import build_index, open_index

#  0 - 1 - 2 - 3 - 4 (a path)   0 - 5, 0 - 6 (leaves)   7 - 7 (a loop)   8 (alone)
EDGES = np.array([[0, 0, 1], [2, 0, 1], [2, 1, 3], [3, 0, 4], [0, 1, 5], [6, 1, 0], [7, 0, 7]])
NAMES = ["Ann", "Bob", "The Hunt", "Zoë Hall", "the hunt", "Hunt", "Who", "blue whale", "whale"]
ONE = np.ones(1)
UNTRAINED = ["pagerank", "pcst", "random_walk", "similarity"]  # the methods that need no model


@pytest.fixture
def graph(tmp_path):
    return write_graph(tmp_path / "graph", [{"name": name} for name in NAMES], [{"name": "r"}, {"name": "s"}], EDGES)


def random_graph(folder, nodes=60, edges=200, seed=0):
    rng = np.random.default_rng(seed)
    triples = np.stack([rng.integers(0, nodes, edges), rng.integers(0, 3, edges), rng.integers(0, nodes, edges)], 1)
    records = [{"name": f"node {number}"} for number in range(nodes)]
    return write_graph(folder, records, [{"name": name} for name in "abc"], triples)


def transition(graph):
    """The dense matrix of one step, both ways: column u spreads u's mass over its edges."""
    matrix = np.zeros((graph.num_nodes, graph.num_nodes))
    for source, _, target in graph.edges:
        matrix[target, source] += 1
        matrix[source, target] += 1
    return matrix / np.maximum(matrix.sum(axis=0), 1)


def scores(subgraph, count):
    dense = np.zeros(count)
    dense[subgraph.nodes] = subgraph.node_scores
    return dense


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_random_walk_equals_matrix_powers(tmp_path, steps):
    graph = random_graph(tmp_path / "g")
    step, mass = transition(graph), np.zeros(graph.num_nodes)
    mass[[3, 17]] = 0.75, 0.25
    expected = sum(np.linalg.matrix_power(step, number) @ mass for number in range(steps + 1))
    found = random_walk(graph, None, np.array([3, 17]), np.array([3.0, 1.0]), max_nodes=60, steps=steps)
    assert scores(found, 60) == pytest.approx(expected, abs=1e-6)
    assert (np.diff(found.node_scores) <= 0).all(), "best first"


def test_pagerank_equals_the_dense_solution(tmp_path):
    graph = random_graph(tmp_path / "g")
    start = np.eye(60)[5]
    expected = 0.3 * np.linalg.solve(np.eye(60) - 0.7 * transition(graph), start)
    options = {"max_nodes": 60, "restart": 0.3, "tolerance": 1e-9, "max_steps": 200}
    found = pagerank(graph, None, np.array([5]), ONE, **options)
    assert scores(found, 60) == pytest.approx(expected, abs=1e-5)


def test_pagerank_touches_only_what_it_reaches(graph):
    found = pagerank(graph, None, np.array([7]), ONE)
    assert found.nodes.tolist() == [7] and found.edges.tolist() == [6]
    near = pagerank(graph, None, np.array([0]), ONE, tolerance=0.1, restart=0.9)
    assert 4 not in near.nodes


def test_sparse_and_dense_sums_agree(tmp_path, monkeypatch):
    graph = random_graph(tmp_path / "g")
    ways = []
    for share in (1, 10**9):
        monkeypatch.setattr(importlib.import_module("data_processor.retrieval.pagerank"), "DENSE_SHARE", share)
        ways.append(random_walk(graph, None, np.array([1]), ONE, max_nodes=60))
    assert scores(ways[0], 60) == pytest.approx(scores(ways[1], 60))


def test_a_walk_of_bounded_edges_leaves_out_the_lightest(graph):
    bounded = random_walk(graph, None, np.array([0, 3]), np.array([0.9, 0.1]), steps=1, max_edges=3)
    assert set(bounded.nodes) == {0, 1, 3, 5, 6}, "node 0 has three edges, node 3 is not walked on from"


def test_subgraph_is_the_best_nodes_and_the_edges_between_them(graph):
    found = random_walk(graph, None, np.array([2]), ONE, max_nodes=3, steps=1)
    assert found.nodes.tolist() == [2, 1, 3]
    assert graph.edges[found.edges][:, [0, 2]].tolist() == [[2, 1], [2, 3]]
    assert found.edge_scores == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("method", UNTRAINED)
def test_no_seed_gives_an_empty_subgraph(graph, method):
    graph = embed_graph(graph.path, load_encoder("hashing"))
    found = METHODS[method](graph, np.zeros(64), np.zeros(0, int), np.zeros(0))
    assert len(found.nodes) == len(found.edges) == 0


def test_a_seed_without_edges_is_kept(graph):
    assert random_walk(graph, None, np.array([8]), ONE).nodes.tolist() == [8]
    assert pagerank(graph, None, np.array([8]), ONE).nodes.tolist() == [8]


@pytest.mark.parametrize(
    ("question", "nodes", "how"),
    [
        ("who likes Ann?", [[0]], "exact"),
        ("where did ANN meet bob", [[0]], "normalised"),
        ("who directed The Hunt", [[2, 5]], "exact"),
        ("who directed the HUNT", [[2, 4, 5]], "normalised"),
        ("does zoe hall know Bob", [[1]], "exact"),
        ("is the blue whale a whale", [[7]], "exact"),
        ("who", [[6]], "normalised"),
        ("nothing here", [], None),
        ("", [], None),
    ],
)
def test_names_link(question, nodes, how):
    links = Linker(NAMES).link(question)
    found = [sorted(link.nodes) for link in links]
    assert [set(one) & set(two) != set() for one, two in zip(found, nodes, strict=True)] == [True] * len(nodes)
    assert [link.how for link in links] == [how] * len(nodes)


def test_accents_and_marks_do_not_matter():
    (link,) = Linker(["Zoë Hall", "Airplane!"]).link("has zoe hall flown")
    assert link.nodes == (0,) and link.how == "normalised"
    assert Linker(["Zoë Hall", "Airplane!"]).link("who made Airplane? or so")[0].nodes == (1,)
    assert Linker(["Alive", "Alive!"]).link("who made Alive! then")[0].nodes == (1,), "the longer of two that match"
    assert Linker(["Go", "director"]).link("who is the director of Go")[0].nodes == (0,)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
def test_search_finds_the_nearest(tmp_path, kind):
    if kind != "exact":
        pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float16)
    unit = vectors.astype(np.float32) / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    expected = np.argsort(-(unit[:20] @ unit.T), axis=1, kind="stable")[:, :5]
    index = open_index(vectors, tmp_path, "key", kind)
    again = open_index(vectors, tmp_path, "key", kind)
    for one in (index, again):
        cosines, rows = one.search(vectors[:20] * 3, 5)
        assert cosines[:, 0] == pytest.approx(1, abs=1e-2) and rows[:, 0].tolist() == list(range(20))
        assert (rows == expected).mean() > 0.9


def test_what_an_ivf_index_finds_is_compared_exactly():
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).normal(size=(3000, 32)).astype(np.float32)
    cosines, rows = build_index(vectors, "ivf").search(vectors[:5] * 2, 10)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert cosines == pytest.approx(np.take_along_axis(unit[:5] @ unit.T, rows, axis=1), abs=1e-6)
    assert (np.diff(cosines, axis=1) <= 0).all() and rows[:, 0].tolist() == list(range(5))
    few = build_index(vectors[:3], "ivf").search(vectors[:2], 10)
    assert few[1].shape == (2, 3) and sorted(few[1][0]) == [0, 1, 2]


def test_exact_search_over_blocks(monkeypatch):
    vectors = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    whole = build_index(vectors, "exact").search(vectors, 7)
    monkeypatch.setattr("data_processor.vector_index.BLOCK_ROWS", 8)
    blocks = build_index(vectors, "exact").search(vectors, 7)
    assert np.array_equal(whole[1], blocks[1]) and whole[0] == pytest.approx(blocks[0], abs=1e-6)
    assert build_index(vectors[:3], "exact").search(vectors, 7)[1].shape == (50, 3)


def test_index_of_other_vectors_is_built_anew(tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 200, 8)).astype(np.float32)
    open_index(first, tmp_path, "one", "hnsw")
    _, rows = open_index(second, tmp_path, "two", "hnsw").search(second[:10], 1)
    assert rows[:, 0].tolist() == list(range(10))


def test_unknown_index_is_refused():
    with pytest.raises(ValueError, match="exact, hnsw, ivf"):
        build_index(np.ones((2, 2)), "flat")


@pytest.fixture
def data(graph):
    pairs = [
        QAPair("q0", "who knows Ann", ("Bob", "Hunt"), answer_nodes=(1, 5)),
        QAPair("q1", "who knows Bob", ("x",), answer_nodes=(4,), seed_nodes=(1,)),
        QAPair("q2", "nothing", ("x",)),
    ]
    write_jsonl(graph.path.parent / "qa" / "test.jsonl", map(to_json, pairs))
    return graph.path.parent


def run(data, command):
    return main([*command.split(), "--data", str(data)])


def test_link_command_fills_missing_seeds(data, capsys):
    assert run(data, "link") == 0
    assert [pair.seed_nodes for pair in read_qa(data / "qa" / "test.jsonl")] == [(0,), (1,), ()]
    assert "test: 1 exact, 1 had seeds, 1 none" in capsys.readouterr().out


def test_link_command_finds_nodes_named_like_an_answer(data, capsys):
    more = [QAPair("q0", "who?", ("the hunt", "nobody")), QAPair("q1", "who?", ("THE HUNT", "Ann"), seed_nodes=(1,))]
    write_jsonl(data / "qa" / "train.jsonl", map(to_json, more))
    assert run(data, "link --answers") == 0
    train = read_qa(data / "qa" / "train.jsonl")
    assert [set(pair.answer_nodes) for pair in train] == [{4}, {2, 4, 0}], "as written before without case"
    kept = [pair.answer_nodes for pair in read_qa(data / "qa" / "test.jsonl")]
    assert kept == [(1, 5), (4,), ()], "known ones stay, and x is no node"
    assert "2 with answer nodes now" in capsys.readouterr().out


def test_link_command_falls_back_to_similar_nodes(data, capsys):
    assert run(data, "link --similar 2") == 2
    assert "is not embedded" in capsys.readouterr().err
    embed_graph(data / "graph", load_encoder("hashing"))
    assert run(data, "link --similar 2") == 0
    assert [len(pair.seed_nodes) for pair in read_qa(data / "qa" / "test.jsonl")] == [1, 1, 2]


def test_retrieve_command_writes_subgraphs_and_true_figures(data, capsys):
    run(data, "link")
    assert run(data, "retrieve --method random_walk --steps 1 --max_nodes 3") == 0
    store = SubgraphStore.open(data / "subgraphs" / "test", verify=True)
    assert store.ids == ["q0", "q1", "q2"] and len(store.get("q2").nodes) == 0
    assert store.get("q0").nodes.tolist() == [0, 1, 5]
    report = json.loads((data / "subgraphs" / "test" / "report.json").read_text())
    assert report["answer_recall"] == pytest.approx((1 + 0) / 2)
    assert report["questions_with_answer_nodes"] == 2 and report["empty"] == report["questions_without_seeds"] == 1
    assert report["mean_nodes"] == pytest.approx((3 + 3 + 0) / 3)
    assert report["mean_tokens"] > 0 and report["p95_ms"] >= report["median_ms"] > 0


def test_every_question_file_is_linked_and_retrieved_train_first(data, capsys):
    pair = read_qa(data / "qa" / "test.jsonl")[0]
    for split in ("human", "train"):
        write_jsonl(data / "qa" / f"{split}.jsonl", [to_json(pair)])
    assert run(data, "link") == run(data, "retrieve --method random_walk") == 0
    assert list(SubgraphStore.open(data / "subgraphs" / "human").get("q0").nodes[:1]) == [0]
    out = capsys.readouterr().out
    assert out.index("train: {") < out.index("test: {") < out.index("human: {")
    assert run(data, "inspect --id q0") == 0
    assert run(data, "retrieve --method pagerank --splits human") == 0
    methods = [SubgraphStore.open(data / "subgraphs" / one).manifest["method"] for one in ("human", "test")]
    assert methods == ["pagerank", "random_walk"]


def given_parts(graph):
    """What an importer writes: each question's own part of the graph."""
    return graph.subgraph([0, 1], [0]), graph.subgraph([1, 2, 3], [2, 3]), graph.subgraph([], [])


def test_retrieval_within_what_came_with_the_question(data, capsys):
    graph = embed_graph(data / "graph", load_encoder("hashing"))
    about = {"graph": "../../graph", "method": "given", "parameters": {}}
    write_subgraphs(data / "subgraphs" / "test", ["q0", "q1", "q2"], given_parts(graph), {}, about)
    run(data, "link")
    assert run(data, "retrieve --method random_walk --within_given") == 0
    store = SubgraphStore.open(data / "subgraphs" / "test")
    assert sorted(store.get("q0").nodes) == [0, 1] and store.get("q0").edges.tolist() == [0]
    assert sorted(store.get("q1").nodes) == [1, 2, 3] and len(store.get("q2").nodes) == 0
    assert store.manifest["parameters"]["within_given"] is True
    assert run(data, "retrieve --method similarity --top_k 1 --within_given") == 0, "from where it lies now"
    found = SubgraphStore.open(data / "subgraphs" / "test").get("q1").nodes
    assert graph.node_name(found) == ["Bob"], "the most similar node of the question's own part"
    assert run(data, "retrieve --method random_walk") == 0
    assert len(SubgraphStore.open(data / "subgraphs" / "test").get("q0").nodes) > 2, "the whole graph"
    assert SubgraphStore.open(data / "given" / "test").get("q1").edges.tolist() == [2, 3], "nothing given is lost"


def test_retrieval_within_nothing_is_refused(data, capsys):
    assert run(data, "retrieve --method random_walk --within_given") == 2
    assert "no subgraphs came with the questions of" in capsys.readouterr().err
    with pytest.raises(ValueError, match="gfm scores all nodes of the graph"):
        retrieve_folder(data, "gfm", {}, {}, within_given=True)


@pytest.mark.parametrize("method", UNTRAINED)
@pytest.mark.parametrize("seed", range(3))
def test_within_a_part_every_method_does_what_it_does_on_a_graph_of_that_part_alone(tmp_path, method, seed):
    if method == "pcst":
        need_pcst()
    rng, encoder = np.random.default_rng(seed), load_encoder("hashing:256")
    whole = random_graph(tmp_path / "whole", seed=seed)
    whole = embed_graph(whole.path, encoder, dtype="float32", edge_text="names")
    part = GraphPart(whole, whole.induced_subgraph(rng.choice(60, 25, replace=False)))
    records = [{"name": name} for name in whole.node_name(part.node_ids)]
    alone = write_graph(tmp_path / "alone", records, [{"name": name} for name in "abc"], part.edges)
    alone = embed_graph(alone.path, encoder, dtype="float32", edge_text="names")
    assert part.node_name([3, 0]) == alone.node_name([3, 0]) and np.array_equal(part.in_edges, alone.in_edges)
    question, seeds, weights = rng.normal(size=256), rng.choice(25, 4, replace=False), rng.random(4)
    for more in ({"edge_prizes": "sentences"}, {}) if method == "pcst" else ({},):
        found = METHODS[method](part, question, seeds, weights, **more)
        expected = METHODS[method](alone, question, seeds, weights, **more)
        for field in ("nodes", "node_scores", "edges", "edge_scores"):
            assert np.array_equal(vars(found)[field], vars(expected)[field])
        outside = part.outside(found)
        assert whole.node_name(outside.nodes) == alone.node_name(expected.nodes)
        assert np.isin(whole.edges[outside.edges][:, ::2], part.node_ids).all()


def test_a_part_of_another_graph_is_refused(graph):
    with pytest.raises(ValueError, match="edge id 99 is out of range"):
        GraphPart(graph, types.SimpleNamespace(nodes=np.array([0]), edges=np.array([99])))


def test_retrieve_is_not_done_twice_and_again_after_a_change(data):
    run(data, "retrieve --method random_walk")
    manifest = data / "subgraphs" / "test" / "manifest.json"
    first = manifest.stat().st_mtime_ns
    run(data, "retrieve --method random_walk")
    assert manifest.stat().st_mtime_ns == first
    run(data, "link")
    run(data, "retrieve --method random_walk")
    assert manifest.stat().st_mtime_ns > first, "the questions changed"


def test_similarity_needs_no_linked_seed(data):
    embed_graph(data / "graph", load_encoder("hashing:256"))
    assert run(data, "retrieve --method similarity --max_nodes 1 --top_k 3") == 0
    graph = KnowledgeGraph.open(data / "graph")
    store = SubgraphStore.open(data / "subgraphs" / "test")
    assert graph.node_name(store.get("q0").nodes) == ["Ann"]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("retrieve --method similarity", "is not embedded; run: python -m data_processor embed"),
        ("retrieve --method pagerank --steps 2", "the method pagerank has no --steps"),
        ("retrieve --method pagerank --splits train", "has no train.jsonl; it has test"),
    ],
)
def test_retrieve_says_what_is_wrong(data, capsys, command, sentence):
    assert run(data, command) == 2
    assert sentence in capsys.readouterr().err


def need_pcst():
    """Skips the test where pcst_fast is missing or its wheel does not fit NumPy."""
    try:
        solver()
    except ValueError as error:
        pytest.skip(str(error))


def test_a_solver_that_repeats_itself_is_refused(monkeypatch):
    """What the wheel built for NumPy 1 does under NumPy 2."""
    broken = types.SimpleNamespace(pcst_fast=lambda *_: (np.zeros(3, np.int32), np.ones(2, np.int32)))
    monkeypatch.setitem(sys.modules, "pcst_fast", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match="is wrong under NumPy.*--no-binary"):
        solver.__wrapped__()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package pcst_fast"):
        solver.__wrapped__()


class Given:
    """An encoder that looks its vectors up."""

    name, dimension = "given", 3

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts, batch_size=256, progress=False):
        return np.array([self.vectors.get(text, [0, 0, 1e-3]) for text in texts], dtype=np.float32)


def reference_tree(edge_index, node_prizes, similarity, top_k, cost):
    """Prizes and virtual nodes edge by edge, in plain Python, from the paper's text."""
    from pcst_fast import pcst_fast

    distinct, prizes = sorted(set(similarity.tolist()), reverse=True)[:top_k], np.zeros(len(similarity), np.float32)
    above = len(distinct)
    for rank, value in enumerate(distinct):
        mask = similarity == value
        prize = min((len(distinct) - rank) / mask.sum(), above - 0.01)
        prizes[mask], above = prize, prize * 0.99
    cost = np.float32(min(cost, float(prizes.max()) * (1 - 0.01 / 2)))
    edges, costs, owner, extra = [], [], [], []
    for number, (source, target) in enumerate(edge_index.T.tolist()):
        if prizes[number] <= cost:
            edges.append((source, target))
            costs.append(cost - prizes[number])
            owner.append(number)
    for number in np.flatnonzero(prizes > cost).tolist():
        middle = len(node_prizes) + len(extra)
        edges += [(edge_index[0, number], middle), (middle, edge_index[1, number])]
        costs += [0, 0]
        owner += [number, number]
        extra.append((number, prizes[number] - cost))
    all_prizes = np.concatenate([node_prizes, [prize for _, prize in extra]])
    vertices, chosen = pcst_fast(np.array(edges), all_prizes, np.array(costs, dtype=float), -1, 1, "gw", 0)
    tree = {owner[edge] for edge in chosen if owner[edge] not in dict(extra)}
    tree |= {extra[vertex - len(node_prizes)][0] for vertex in vertices if vertex >= len(node_prizes)}
    nodes = {int(vertex) for vertex in vertices if vertex < len(node_prizes)}
    return nodes | {int(end) for number in tree for end in edge_index[:, number]}, tree


@pytest.mark.parametrize("seed", range(8))
def test_steiner_tree_equals_the_loop_over_edges(seed):
    need_pcst()
    rng = np.random.default_rng(seed)
    nodes, edges = 30, 80
    edge_index = rng.integers(0, nodes, (2, edges))
    values, relations = rng.normal(size=7).astype(np.float32), rng.integers(0, 6, edges)
    values[2] = values[3]  # two relations of one similarity share a rank; the seventh has no edge
    similarity = values[relations]
    prizes = np.zeros(nodes, np.float32)
    prizes[rng.choice(nodes, 4, replace=False)] = [4, 3, 2, 1]
    edge_prizes, cost = rank_edges(values, relations, 3, 0.5)
    found = steiner_tree(edge_index.T, prizes, edge_prizes, cost)
    expected = reference_tree(edge_index, prizes, similarity, 3, 0.5)
    assert (set(found[0].tolist()), set(found[1].tolist())) == expected


def neo4j_tree(edge_index, node_prizes, similarity, top_k, cost):
    """Prizes of single edges as in Neo4j's example, edge by edge in plain Python; similarities all differ."""
    from pcst_fast import pcst_fast

    prizes = np.zeros(len(similarity))
    for rank, number in enumerate(np.argsort(-similarity)[:top_k]):
        prizes[number] = top_k - rank
    edges, halves, owner, extra = [], [], [], []
    for number, (source, target) in enumerate(edge_index.T.tolist()):
        if prizes[number] > cost:
            middle = len(node_prizes) + len(extra)
            halves += [(source, middle), (middle, target)]
            extra.append(number)
        else:
            edges.append((source, target))
            owner.append(number)
    costs = np.array([cost] * len(edges) + [0.0] * len(halves))
    all_prizes = np.concatenate([node_prizes, prizes[extra] - cost])
    vertices, chosen = pcst_fast(np.array(edges + halves), all_prizes, costs, -1, 1, "gw", 0)
    tree = {owner[edge] for edge in chosen if edge < len(edges)}
    tree |= {extra[vertex - len(node_prizes)] for vertex in vertices if vertex >= len(node_prizes)}
    nodes = {int(vertex) for vertex in vertices if vertex < len(node_prizes)}
    return nodes | {int(end) for number in tree for end in edge_index[:, number]}, tree


def named(graph):
    source, relation, target = graph.edges.T
    return graph.node_name(source), graph.relation_name(relation), graph.node_name(target)


@pytest.mark.parametrize("seed", range(4))
def test_pcst_by_sentences_equals_neo4js_prizes_edge_by_edge(tmp_path, seed):
    need_pcst()
    graph, rng = random_graph(tmp_path / "g", 30, 80, seed), np.random.default_rng(seed)
    triples = zip(*named(graph), strict=True)
    vectors = {" ".join(triple): rng.normal(size=3) for triple in triples}
    graph = embed_graph(graph.path, Given(vectors), dtype="float32", edge_text="names")
    question, seeds = rng.normal(size=3), rng.choice(30, 10, replace=False)
    own = graph.edge_features[graph.edge_sentences]
    similarity = own @ question / np.linalg.norm(own, axis=1) - 1e-9 * np.arange(80)
    prizes = np.zeros(30, np.float32)
    prizes[seeds] = np.linspace(4, 0, 10)
    options = {"top_k_nodes": 10, "top_k_edges": 4, "max_prize": 4.0, "edge_prizes": "sentences"}
    found = pcst(graph, question, seeds, np.linspace(1, 0, 10), **options)
    expected = neo4j_tree(np.asarray(graph.edges)[:, ::2].T, prizes, similarity, 4, 0.5)
    assert (set(found.nodes.tolist()), set(found.edges.tolist())) == expected
    wide = pcst(graph, question, seeds, np.linspace(1, 0, 10), append=5, **options)
    assert set(wide.nodes.tolist()) == expected[0] | set(seeds[:5].tolist())


def test_a_sentence_tells_edges_of_one_relation_apart(graph):
    need_pcst()
    vectors = {"Ann r Bob": [1, 0, 0], "The Hunt r Bob": [0, 1, 0]}
    graph = embed_graph(graph.path, Given(vectors), dtype="float32", edge_text="names")
    options = {"top_k_nodes": 0, "top_k_edges": 1, "edge_prizes": "sentences"}
    found = [pcst(graph, np.array(vector), np.array([0]), ONE, **options) for vector in vectors.values()]
    assert [graph.edges[one.edges].tolist() for one in found] == [[[0, 0, 1]], [[2, 0, 1]]]


def test_edges_alike_get_their_prize_beside_the_best_nodes():
    assert rank_each_edge(np.array([0.5, 0.5, 0.1, 0.5]), np.array([0, 3, 9, 1]), 2).tolist() == [0, 2, 0, 1]
    assert rank_each_edge(np.zeros(2), np.zeros(2), 5).tolist() == [2, 1]


def connected(subgraph, graph):
    """Whether every node is reached from the first over the subgraph's edges."""
    reached, before = {int(subgraph.nodes[0])}, 0
    while len(reached) > before:
        before = len(reached)
        for source, _, target in graph.edges[subgraph.edges].tolist():
            if {source, target} & reached:
                reached |= {source, target}
    return reached == set(subgraph.nodes.tolist())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_pcst_is_connected_and_within_the_graph(tmp_path, data):
    need_pcst()
    size, draw = data.draw(st.integers(1, 12)), data.draw
    node = st.integers(0, size - 1)
    edges = draw(st.lists(st.tuples(node, st.integers(0, 2), node), min_size=1, max_size=25))
    write_graph(tmp_path / "g", [{"name": str(i)} for i in range(size)], [{"name": name} for name in "abc"], edges)
    vectors = {"a": [1, 0, 0], "b": [0, 1, 0], "c": [0.6, 0.8, 0]}
    graph = embed_graph(tmp_path / "g", Given(vectors), dtype="float32", edge_text="names")
    seeds = np.array(draw(st.lists(node, min_size=1, max_size=4, unique=True)))
    weight = st.floats(0, 1, allow_subnormal=False)
    weights = np.array(draw(st.lists(weight, min_size=len(seeds), max_size=len(seeds))))
    options = {"top_k_edges": draw(st.integers(0, 4)), "edge_prizes": draw(st.sampled_from(EDGE_PRIZES))}
    options["whole_edges"] = draw(st.sampled_from([0, 10**6]))
    found = pcst(graph, np.array([1.0, 0.1, 0]), seeds, weights, **options)
    assert len(found.nodes) and connected(found, graph)
    assert set(graph.edges[found.edges][:, [0, 2]].reshape(-1)) <= set(found.nodes)
    assert len(set(found.nodes)) == len(found.nodes) and len(set(found.edges)) == len(found.edges)


def test_pcst_begins_with_the_best_seed(tmp_path):
    need_pcst()
    graph = random_graph(tmp_path / "g")
    graph = embed_graph(graph.path, Given({"a": [1, 0, 0]}), dtype="float32")
    found = pcst(graph, np.array([1.0, 0.1, 0]), np.array([3, 9, 30]), np.array([0.5, 0.9, 0.7]), top_k_edges=2)
    assert found.nodes[0] == 9, "the best seed has the highest prize"


def test_pcst_takes_the_path_that_one_can_see(graph):
    need_pcst()
    graph = embed_graph(graph.path, Given({"r": [1, 0, 0], "s": [0, 1, 0]}), dtype="float32")
    found = pcst(graph, np.array([1.0, 0, 0]), np.array([0, 2]), np.array([1.0, 0.9]), 2, 0, edge_cost=0.4)
    assert sorted(found.nodes) == [0, 1, 2] and found.edges.tolist() == [0, 2]
    wide = pcst(graph, np.array([1.0, 0, 0]), np.array([0, 2, 8]), np.ones(3), 2, 0, append=3, max_prize=4.0)
    assert 8 in wide.nodes, "appended although nothing leads there"


def test_pcst_without_embedding_is_explained(graph):
    with pytest.raises(ValueError, match="pcst needs embeddings"):
        pcst(graph, None, np.array([0]), ONE)
    with pytest.raises(ValueError, match="embed --graph .* --edge_text names"):
        pcst(graph, np.ones(3), np.array([0]), ONE, edge_prizes="sentences")
    with pytest.raises(ValueError, match="relations, sentences, got 'all'"):
        pcst(graph, np.ones(3), np.array([0]), ONE, edge_prizes="all")
