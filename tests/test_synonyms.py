"""Synonym edges: which pairs get one, what stays of the graph, and that later and killed runs give the same."""

from __future__ import annotations

import numpy as np
import pytest

from data_processor import synonyms
from data_processor.graph_store import KnowledgeGraph, embed_graph, write_graph
from data_processor.synonyms import Neighbours, add_synonyms, find_synonyms, recovered
from data_processor.text_encoder import HashingEncoder

NAMES = ["New York City", "new york city", "York", "Straße", "STRASSE 9", "北京市人民", "北京市", "Éa", "Bob Dylan"]
NAMES += NAMES[-1:]


class Angles:
    """An encoder that puts every text on the unit circle, at the angle (degrees) that it ends with."""

    name, dimension = "angles", 2

    def encode(self, texts, batch_size=256, progress=False):
        angles = np.array([float(text.split()[-1]) if text.split()[-1].isdigit() else 300 for text in texts])
        return np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1).astype(np.float32)


def build(folder, names, encoder, edges=((0, 0, 1), (0, 1, 1), (1, 0, 2))):
    relations = [{"name": "likes"}, {"name": "knows"}]
    write_graph(folder / "graph", [{"name": name} for name in names], relations, np.array(edges))
    return embed_graph(folder / "graph", encoder, dtype="float32")


def all_pairs(vectors, threshold):
    products = vectors @ vectors.T
    return {(i, j) for i, j in zip(*np.nonzero(products >= threshold), strict=True) if i != j}


def random_graph(folder, count, seed=0):
    rng = np.random.default_rng(seed)
    return build(folder, [f"node {angle}" for angle in rng.integers(0, 360, count)], Angles())


def test_pairs_are_those_of_a_comparison_of_all_with_all_whatever_the_block_size(tmp_path, monkeypatch):
    graph = random_graph(tmp_path / "a", 60)
    expected = all_pairs(np.array(graph.node_features), 0.999)
    for rows, columns in ((1024, 16384), (7, 5), (1, 1)):
        monkeypatch.setattr(synonyms, "ROWS", rows)
        monkeypatch.setattr(synonyms, "COLUMNS", columns)
        pairs, cosines = find_synonyms(random_graph(tmp_path / f"{rows}", 60), 0.999, 1000)
        assert set(map(tuple, pairs.tolist())) == expected and len(pairs) == len(expected)
        assert cosines.min() >= 0.999


def test_a_node_keeps_its_nearest_neighbours_only(tmp_path):
    graph = build(tmp_path, ["node 0", "node 1", "node 3", "node 6", "node 10"], Angles())
    pairs, _ = find_synonyms(graph, 0.9, 1)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 1), (1, 0), (2, 1), (3, 2), (4, 3)]


def test_a_grown_graph_compares_only_what_is_new_and_finds_what_a_fresh_run_finds(tmp_path, monkeypatch):
    random_graph(tmp_path / "one", 40)
    find_synonyms(KnowledgeGraph.open(tmp_path / "one" / "graph"), 0.99, 3)
    grown = random_graph(tmp_path / "one", 55)
    compared, add = [], Neighbours.add

    def counted(self, vectors, new):
        compared.append(len(new))
        add(self, vectors, new)

    monkeypatch.setattr(Neighbours, "add", counted)
    again = find_synonyms(grown, 0.99, 3)
    assert compared == [15]
    fresh = find_synonyms(random_graph(tmp_path / "two", 55), 0.99, 3)
    assert again[0].tolist() == fresh[0].tolist()
    np.testing.assert_allclose(again[1], fresh[1])


def test_a_node_whose_neighbour_is_gone_gets_the_next_nearest(tmp_path):
    names = ["node 0", "node 1", "node 3", "node 90"]
    find_synonyms(build(tmp_path, names, Angles()), 0.99, 1)
    shrunk = build(tmp_path, [name for name in names if name != "node 1"], Angles(), edges=((0, 0, 1),))
    assert find_synonyms(shrunk, 0.99, 1)[0].tolist() == [[0, 1], [1, 0]]


def test_a_killed_run_goes_on_from_what_it_saved(tmp_path, monkeypatch):
    graph = random_graph(tmp_path / "one", 50)
    monkeypatch.setattr(synonyms, "ROWS", 10)
    monkeypatch.setattr(synonyms, "SAVE_SECONDS", 0.0)
    compared, add = [], Neighbours.add

    def dies_at_the_fourth(self, vectors, new):
        compared.append(len(new))
        if len(compared) == 4:
            raise KeyboardInterrupt
        add(self, vectors, new)

    monkeypatch.setattr(Neighbours, "add", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        find_synonyms(graph, 0.99, 5)
    resumed = find_synonyms(graph, 0.99, 5)[0].tolist()
    assert compared[4:] == [10, 10]  # 30 of 50 were saved
    assert resumed == find_synonyms(random_graph(tmp_path / "two", 50), 0.99, 5)[0].tolist()


def test_other_edges_stay_and_both_directions_are_written(tmp_path):
    graph = build(tmp_path, ["node 0", "node 2", "node 90"], Angles())
    before = np.array(graph.edges)
    graph = add_synonyms(graph.path, Angles(), 0.9, 5)
    edges = np.array(graph.edges)
    assert edges[edges[:, 1] < 2].tolist() == before.tolist()  # two relations between nodes 0 and 1 as well
    assert edges[edges[:, 1] == 2].tolist() == [[0, 2, 1], [1, 2, 0]]
    assert graph.relation_name([2]) == ["equivalent"] and graph.relation_features.shape == (3, 2)
    assert graph.manifest["synonyms"]["edges"] == 2
    KnowledgeGraph.open(graph.path, verify=True)


def test_a_second_run_replaces_the_first(tmp_path):
    graph = build(tmp_path, ["node 0", "node 2", "node 30"], Angles())
    add_synonyms(graph.path, Angles(), 0.8, 5)
    graph = add_synonyms(graph.path, Angles(), 0.99, 5)
    assert graph.num_relations == 3 and (graph.edges[:, 1] == 2).sum() == 2
    assert add_synonyms(graph.path, Angles(), 0.99, 5).edges.tolist() == graph.edges.tolist()


def test_names_in_any_script_are_compared_and_very_short_ones_are_not(tmp_path):
    graph = build(tmp_path, NAMES, HashingEncoder(256))
    pairs = set(map(tuple, find_synonyms(graph, 0.999, 10)[0].tolist()))
    assert pairs == {(0, 1), (1, 0), (8, 9), (9, 8)}
    near = set(map(tuple, find_synonyms(graph, 0.3, 10)[0].tolist()))
    assert (5, 6) in near and not any(7 in pair for pair in near)


def test_a_run_killed_between_the_two_renames_is_put_right(tmp_path):
    graph = build(tmp_path, ["node 0", "node 2", "node 30"], Angles())
    graph.path.rename(tmp_path / ".graph.old")
    assert recovered(tmp_path / "graph") == tmp_path / "graph"
    assert KnowledgeGraph.open(tmp_path / "graph").num_edges == 3


def test_what_cannot_work_is_said(tmp_path):
    write_graph(tmp_path / "graph", [{"name": "a"}, {"name": "b"}], [{"name": "r"}], np.array([[0, 0, 1]]))
    with pytest.raises(ValueError, match="not embedded; run"):
        add_synonyms(tmp_path / "graph", Angles())
    embed_graph(tmp_path / "graph", Angles())
    with pytest.raises(ValueError, match="use one encoder"):
        add_synonyms(tmp_path / "graph", HashingEncoder(8))
    with pytest.raises(ValueError, match="between 0 and 1"):
        add_synonyms(tmp_path / "graph", Angles(), threshold=1.5)
