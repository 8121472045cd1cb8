"""Questions about links: half are true, and no subgraph shows a link that is asked for or held out."""

import numpy as np

from data_processor.__main__ import main
from data_processor.graph_store import KnowledgeGraph, SubgraphStore
from data_processor.link_questions import ask_links
from data_processor.neighbours import pair_keys
from data_processor.node_batches import linked_keys, split_links
from data_processor.node_vectors import write_vectors
from data_processor.schema import read_qa
from tests.tiny_world import write_dataset


def test_links_are_asked_beside_other_questions_and_hidden_from_every_subgraph(tmp_path, capsys):
    data = write_dataset(tmp_path / "data")
    for _ in range(2):  # the second call replaces what the first one added
        assert main(["ask_links", "--data", str(data), "--count", "20"]) == 0
    assert "20 train, 4 validation, 4 test" in capsys.readouterr().out
    graph = KnowledgeGraph.open(data / "graph")
    links, linked = split_links(graph, 0), set(linked_keys(graph).tolist())
    hidden = {key for name in ("validation", "test") for key in pair_keys(*links[name].T, 20).tolist()}
    for split, others in (("train", 24), ("validation", 6), ("test", 6)):
        pairs, store = read_qa(data / "qa" / f"{split}.jsonl"), SubgraphStore.open(data / "subgraphs" / split)
        asked = [pair for pair in pairs if pair.type == "link"]
        assert store.manifest["method"] == "test", "how the other questions' subgraphs were made is kept"
        assert len(pairs) - len(asked) == others and len(store.get(pairs[0].id).nodes)
        for pair in asked:
            (key,) = pair_keys([pair.seed_nodes[0]], [pair.seed_nodes[1]], 20).tolist()
            assert (key in linked) == (pair.answers == ("yes",))
            assert key not in hidden or split != "train"
            subgraph = store.get(pair.id)
            assert subgraph.nodes[:2].tolist() == list(pair.seed_nodes)
            ends = graph.edges[subgraph.edges]
            assert ({key} | hidden).isdisjoint(pair_keys(ends[:, 0], ends[:, 2], 20).tolist())
        assert 2 * sum(pair.answers == ("yes",) for pair in asked) == len(asked)


def test_vectors_that_may_have_seen_the_links_are_warned_of(tmp_path, caplog):
    data = write_dataset(tmp_path / "data")
    ask_links(data, 4)
    assert not caplog.records
    write_vectors(data / "graph", np.ones((20, 4), np.float32), "node_states.npy")
    ask_links(data, 4, seed=3)
    (record,) = caplog.records
    assert "given:node_states.npy" in record.getMessage() and "--data_seed 3" in record.getMessage()


def test_questions_without_subgraphs_are_retrieved_first(tmp_path, capsys):
    data = write_dataset(tmp_path / "data")
    (data / "subgraphs" / "train" / "manifest.json").unlink()
    assert main(["ask_links", "--data", str(data)]) == 2
    assert "have no subgraphs yet; run retrieve for them first" in capsys.readouterr().err
