"""Neighbourhoods from disk: bounded at hubs, without held-out links, and vectors that do not fit a graph."""

import numpy as np
import pytest

from data_processor.graph_store import KnowledgeGraph, write_graph
from data_processor.neighbours import edges_at, neighbourhood, pair_keys, within
from data_processor.node_batches import split_links, unlinked
from data_processor.node_vectors import embed_with


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Node 0 has 100,000 neighbours, half of them pointing to it; nodes 1 and 2 are linked; node 100,001 has none."""
    ends = np.arange(1, 100_001)
    rows = [np.where(ends % 2, 0, ends), np.zeros_like(ends), np.where(ends % 2, ends, 0)]
    edges = np.concatenate([np.stack(rows, axis=1), [[1, 0, 2]]])
    nodes = ({"name": f"n{i}"} for i in range(100_002))
    return write_graph(tmp_path_factory.mktemp("hub") / "graph", nodes, [{"name": "r"}], edges)


def test_a_hub_of_a_hundred_thousand_neighbours_gives_as_many_edges_as_asked_for(hub):
    drawn = [edges_at(hub, np.array([0]), 10, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert len(np.unique(drawn[0])) == 10 and (hub.edges[drawn[0]] == 0).any(axis=1).all()
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    sides = hub.edges[edges_at(hub, np.array([0]), 400, np.random.default_rng(2)), 0] == 0
    assert 100 < sides.sum() < 300, "outgoing and incoming edges are drawn alike"
    found = neighbourhood(hub, np.array([1]), 2, 10, np.random.default_rng(0))
    assert len(found.nodes) <= 14 and set(found.nodes[:3].tolist()) >= {1}
    assert len(edges_at(hub, np.array([0]))) == 100_000


def test_a_node_without_neighbours_is_its_own_neighbourhood(hub):
    found = neighbourhood(hub, np.array([100_001]), 3, 10, np.random.default_rng(0))
    assert found.nodes.tolist() == [100_001] and found.edge_index.shape == (2, 0) and len(found.rows) == 0


def test_seeds_come_first_and_edges_name_places(hub):
    found = neighbourhood(hub, np.array([2, 1]), 1)
    assert found.nodes[:2].tolist() == [2, 1]
    pairs = found.nodes[found.edge_index].T.tolist()
    assert pairs == hub.edges[found.rows][:, ::2].tolist() and [1, 2] in pairs
    hidden = pair_keys(np.array([2]), np.array([1]), hub.num_nodes)
    assert [1, 2] not in hub.edges[neighbourhood(hub, np.array([2, 1]), 1, hidden=hidden).rows][:, ::2].tolist()


def test_held_out_links_are_in_no_other_split_and_negatives_in_none(tmp_path):
    edges = [[i, 0, (i + step) % 40] for i in range(40) for step in (1, 3)] + [[1, 0, 0]]  # 0 - 1 in both directions
    graph = write_graph(tmp_path, ({"name": str(i)} for i in range(40)), [{"name": "r"}], np.array(edges))
    links = split_links(graph, seed=1)
    assert [len(links[name]) for name in ("train", "validation", "test")] == [68, 4, 8]
    keys = np.concatenate([pair_keys(*pairs.T, 40) for pairs in links.values()])
    assert len(np.unique(keys)) == 80
    others = unlinked(np.sort(keys), 40, 50, np.random.default_rng(0))
    assert not within(pair_keys(*others.T, 40), np.sort(keys)).any() and (others[:, 0] != others[:, 1]).all()


def test_vectors_from_elsewhere_are_one_finite_row_a_node(tmp_path):
    import torch

    graph = write_graph(
        tmp_path / "graph", ({"name": str(i)} for i in range(3)), [{"name": "r"}], np.array([[0, 0, 1]])
    )
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    torch.save(torch.from_numpy(vectors), tmp_path / "v.pt")
    np.save(tmp_path / "v.npy", vectors)
    for name in ("v.pt", "v.npy"):
        opened = embed_with(graph.path, tmp_path / name)
        assert np.array_equal(opened.node_features, vectors)
        assert opened.text_encoder.startswith(f"given:{name}:")
        assert isinstance(opened.node_features, np.memmap) and opened.relation_features.shape == (1, 4)
    (tmp_path / "again").mkdir()
    np.save(tmp_path / "again" / "v.npy", vectors + 1)
    others = embed_with(graph.path, tmp_path / "again" / "v.npy").text_encoder
    assert others.startswith("given:v.npy:") and others != opened.text_encoder, "other vectors, another name"
    assert embed_with(graph.path, tmp_path / "v.npy", "float16").text_encoder == opened.text_encoder
    np.save(tmp_path / "few.npy", vectors[:2])
    with pytest.raises(ValueError, match=r"few.npy holds float32 of shape \(2, 4\), and the graph has 3 nodes"):
        embed_with(graph.path, tmp_path / "few.npy")
    vectors[1, 2] = np.nan
    np.save(tmp_path / "nan.npy", vectors)
    with pytest.raises(ValueError, match="nan.npy holds nan in row 1, .* or set it to zeros"):
        embed_with(graph.path, tmp_path / "nan.npy")
    np.save(tmp_path / "large.npy", np.full((3, 4), -7e4))
    with pytest.raises(ValueError, match=r"large.npy holds -70000.0 in row 0, .* 65504 of float16.*--dtype float32"):
        embed_with(graph.path, tmp_path / "large.npy", "float16")
    kept = KnowledgeGraph.open(graph.path)
    assert np.array_equal(kept.node_features, np.load(tmp_path / "v.npy")), "a bad file takes nothing away"
    assert embed_with(graph.path, tmp_path / "large.npy").node_features[0, 0] == -7e4
