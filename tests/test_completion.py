"""Completion batches: both ends are asked, negatives are never true, what is asked for is not in the graph."""

import logging

import numpy as np
import pytest

from data_processor.completion import HeldOutQueries, TrainingQueries, group_rows
from data_processor.completion_graph import Answers, CompletionGraph, both_directions, hold_out, open_completion
from data_processor.files import write_npy
from data_processor.graph_store import KnowledgeGraph, write_graph

NODES, RELATIONS = 9, 3


def random_edges(seed: int = 0, count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    edges = np.stack([rng.integers(NODES, size=count), rng.integers(RELATIONS, size=count),
                      rng.integers(NODES, size=count)], 1)  # fmt: skip
    return np.unique(edges, axis=0)


def write(folder, edges, nodes: int = NODES):
    write_graph(
        folder / "graph", [{"name": f"n{i}"} for i in range(nodes)], [{"name": f"r{i}"} for i in range(3)], edges
    )
    return folder


@pytest.fixture
def folder(tmp_path):
    """A dataset folder with forty triples, the last eight of them held out."""
    edges = np.random.default_rng(3).permutation(random_edges())
    write(tmp_path, edges[:-8])
    write_npy(tmp_path / "triples" / "validation.npy", edges[-8:-4])
    write_npy(tmp_path / "triples" / "test.npy", edges[-4:])
    return tmp_path


def true_answers(triples: np.ndarray, node: int, relation: int) -> set[int]:
    """By hand: the tails of (node, relation), or the heads for an inverse relation."""
    if relation < RELATIONS:
        return {int(t) for h, r, t in triples if (h, r) == (node, relation)}
    return {int(h) for h, r, t in triples if (t, r) == (node, relation - RELATIONS)}


def test_answers_are_those_found_by_hand():
    triples = random_edges(1)
    answers = Answers(triples, RELATIONS)
    asked = [(node, relation) for node in range(NODES) for relation in range(2 * RELATIONS)]
    nodes, owners = answers.of(*np.array(asked).T)
    for place, (node, relation) in enumerate(asked):
        assert nodes[owners == place].tolist() == sorted(true_answers(triples, node, relation))


def rows_of(batch) -> list[tuple[int, int, int]]:
    """[node, relation, target] of a training batch."""
    return list(
        zip(*(batch[name].tolist() for name in ("seed_nodes", "query_relations", "target_nodes")), strict=True)
    )


@pytest.mark.parametrize("seed", range(3))
def test_strict_negatives_are_never_true_and_every_other_node_is_drawn(seed):
    triples = random_edges(seed)
    answers = Answers(triples, RELATIONS)
    rng = np.random.default_rng(seed)
    for node, relation, _ in both_directions(triples, RELATIONS):
        drawn = answers.wrong(node, relation, NODES, 300, rng)
        assert set(drawn.tolist()) == set(range(NODES)) - true_answers(triples, node, relation)


def test_an_epoch_asks_every_triple_once_and_two_epochs_ask_both_ends(folder):
    one = open_completion(folder, seed=0)
    queries = TrainingQueries([one], 5, 4, seed=0)
    asked = []
    for epoch in (0, 1):
        queries.set_epoch(epoch)
        batches = [queries[i] for i in range(len(queries))]
        assert sum(len(batch["target_nodes"]) for batch in batches) == len(one.edges)
        asked.append({row for batch in batches for row in rows_of(batch)})
    assert asked[0] | asked[1] == set(map(tuple, both_directions(one.edges, RELATIONS).tolist()))
    assert not asked[0] & asked[1]


def test_batches_leave_out_the_edges_they_ask_for_and_no_other(folder):
    one = open_completion(folder, seed=0)
    queries = TrainingQueries([one], 4, 0, seed=0)
    for batch in (queries[i] for i in range(len(queries))):
        asked = {(h, r, t) if r < RELATIONS else (t, r - RELATIONS, h) for h, r, t in rows_of(batch)}
        assert set(map(tuple, one.edges[batch["removed_edges"].numpy()].tolist())) == asked


def test_a_triple_that_is_stored_twice_is_left_out_twice():
    edges = np.array([[0, 0, 1], [1, 0, 2], [0, 0, 1]])
    assert group_rows(edges)(np.array([2])).tolist() == [0, 2]
    assert group_rows(edges[:2])(np.array([1])).tolist() == [1]


def test_items_depend_on_seed_epoch_and_number_only(folder):
    def items(seed, epoch):
        queries = TrainingQueries([open_completion(folder, 0)], 4, 6, seed)
        queries.set_epoch(epoch)
        return [{name: one.tolist() for name, one in queries[i].items()} for i in range(len(queries))]

    assert items(1, 2) == items(1, 2)
    assert items(1, 2) != items(2, 2)
    assert items(1, 2) != items(1, 4)


def test_several_graphs_share_no_batch_and_a_cap_holds_for_each(folder, tmp_path):
    other = write(tmp_path / "other", random_edges(5, 60))
    graphs = [open_completion(folder, 0), open_completion(other, 0)]
    queries = TrainingQueries(graphs, 4, 0, seed=0, max_batches=3)
    assert [int(queries[i]["graph_index"]) for i in range(len(queries))] == [0, 0, 0, 1, 1, 1]
    seen = set()
    for epoch in range(0, 40, 2):
        queries.set_epoch(epoch)
        seen |= {
            tuple(row) for i in range(3, 6) for row in graphs[1].edges[queries[i]["removed_edges"].numpy()].tolist()
        }
    assert seen == set(map(tuple, graphs[1].edges.tolist()))  # the cap leaves nothing out for ever


def test_a_query_that_every_node_answers_is_asked_from_its_other_end_or_listed(tmp_path):
    star = np.array([[0, 0, i] for i in range(3)])
    one = CompletionGraph(write_graph(tmp_path / "g", [{"name": i} for i in "abc"], [{"name": "r"}], star), star, {})
    queries = TrainingQueries([one], 8, 2, seed=0)
    assert queries.unusable == []
    assert queries[0]["query_relations"].tolist() == [1, 1, 1]
    loop = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]])
    full = CompletionGraph(
        write_graph(tmp_path / "f", [{"name": "a"}, {"name": "b"}], [{"name": "r"}], loop), loop, {}
    )
    assert [row for _, row in TrainingQueries([full], 8, 2, seed=0).unusable] == [0, 1, 2, 3]


def test_held_out_triples_are_asked_from_both_ends_and_filtered_by_all_that_is_true(folder):
    one = open_completion(folder, seed=0)
    queries = HeldOutQueries([one], "test", questions_per_batch=3)
    everything = np.concatenate([one.edges, one.held_out["validation"], one.held_out["test"]])
    asked = []
    for batch in (queries[i] for i in range(len(queries))):
        assert len(batch["seed_nodes"]) <= 3
        for place, (node, relation) in enumerate(zip(batch["seed_nodes"].tolist(), batch["query_relations"].tolist(),
                                                     strict=True)):  # fmt: skip
            known = set(batch["known_nodes"][batch["known_batch"] == place].tolist())
            assert known == true_answers(everything, node, relation)
            targets = batch["target_nodes"][batch["target_batch"] == place].tolist()
            assert targets and set(targets) <= known
            asked += [(node, relation, target) for target in targets]
    assert sorted(asked) == sorted(map(tuple, both_directions(one.held_out["test"], RELATIONS).tolist()))


def test_a_sample_is_seeded_and_a_split_that_no_graph_has_is_an_error(folder, tmp_path):
    graphs = [open_completion(folder, seed=0)]
    first = HeldOutQueries(graphs, "validation", 8, sample=2, seed=1)
    assert first.fingerprint == HeldOutQueries(graphs, "validation", 8, sample=2, seed=1).fingerprint
    assert sum(len(first[i]["target_nodes"]) for i in range(len(first))) == 4
    with pytest.raises(ValueError, match="dance triples"):
        HeldOutQueries(graphs, "dance", 8)


def test_without_triples_some_edges_are_held_out_and_not_passed_along(tmp_path):
    edges = random_edges(7, 120)
    write(tmp_path, edges)
    one, again, other = (open_completion(tmp_path, seed) for seed in (0, 0, 1))
    parts = [one.edges, one.held_out["validation"], one.held_out["test"]]
    assert sorted(map(tuple, np.concatenate(parts).tolist())) == sorted(map(tuple, edges.tolist()))
    assert len(parts[1]) == len(parts[2]) > 0
    assert set(np.unique(one.edges[:, [0, 2]])) == set(np.unique(edges[:, [0, 2]]))
    assert set(one.edges[:, 1]) == set(edges[:, 1])
    assert (again.held_out["test"] == one.held_out["test"]).all()
    assert not np.array_equal(other.held_out["test"], one.held_out["test"])


def test_a_graph_of_which_nothing_can_be_held_out_says_so():
    with pytest.raises(ValueError, match="none can be held out"):
        hold_out(np.array([[0, 0, 1], [2, 1, 3]]), seed=0)


def test_held_out_ids_that_the_graph_does_not_have_name_file_and_row(folder):
    write_npy(folder / "triples" / "test.npy", np.array([[0, 0, 1], [0, 0, NODES]]))
    with pytest.raises(ValueError, match=r"test.npy row 1 is \[0, 0, 9\]"):
        open_completion(folder, seed=0)


def test_a_relation_without_an_edge_is_counted_and_said(tmp_path, caplog):
    write(tmp_path, np.array([[0, 0, 1], [1, 0, 2]]))
    write_npy(tmp_path / "triples" / "test.npy", np.array([[0, 2, 1], [0, 0, 2]]))
    with caplog.at_level(logging.WARNING):
        open_completion(tmp_path, seed=0)
    assert "1 triples have a relation without an edge" in caplog.text and "r2" in caplog.text


def test_a_graph_without_edges_is_one_sentence(tmp_path, monkeypatch):
    write(tmp_path, np.array([[0, 0, 1]]))
    graph = KnowledgeGraph.open(tmp_path / "graph")
    graph.edges = np.zeros((0, 3), dtype=np.int64)
    monkeypatch.setattr(KnowledgeGraph, "open", lambda path: graph)
    with pytest.raises(ValueError, match="has no edges"):
        open_completion(tmp_path, seed=0)
