"""The stage `graph`: states of blocks equal those of the whole graph, links stay hidden, and a run from end to end."""

import json
import shutil

import numpy as np
import pytest
import torch

import finetune
from data_processor.describe import QUESTION, described
from data_processor.importers import IMPORTERS
from data_processor.link_questions import question
from data_processor.neighbours import pair_keys
from data_processor.node_batches import LinkBatches, NodeBatches, Reading, classes_of, split_links
from data_processor.schema import NodeSummary, read_qa, to_json, write_jsonl
from modeling_graphllm import CONVOLUTIONS, READS_EDGES, GraphConfig
from training.node_model import GraphEncoderForNodes, NodeConfig
from training.nodes import write_states

NONE = np.zeros(0, dtype=np.int64)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two classes of thirty nodes, linked among themselves only, with noisy vectors; and one node without links."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("nodes")
    labels = np.arange(61) % 2
    edges = [[i, (i + step) % 60] for i in range(60) for step in (2, 4, 10, 22)]
    vectors = rng.normal(size=(61, 8)) + 0.6 * labels[:, None]
    order = rng.permutation(61)
    np.savez(folder / "g.npz", x=vectors, y=labels, edges=np.array(edges), train=order[:20], val=order[20:30],
             test=order[30:], class_names=["cats", "dogs"])  # fmt: skip
    report = IMPORTERS["npz"](folder / "g.npz", folder / "data")
    assert report.rows == report.kept == 240
    return folder / "data"


def test_npz_of_another_form_is_not_misread(tmp_path):
    arrays = {"x": np.eye(4), "y": np.array([0, 1, -1, 2]), "train": [0, 1, 2, 3], "class_names": ["cats", "dogs"]}
    edges = np.array([[0, 1, 2], [1, 2, 3]])
    np.savez(tmp_path / "g.npz", edges=edges, **arrays)
    with pytest.raises(ValueError, match=r"edges has shape \(2, 3\), expected \(M, 2\).*transpose"):
        IMPORTERS["npz"](tmp_path / "g.npz", tmp_path / "data")
    np.savez(tmp_path / "g.npz", edges=edges.T, **arrays)
    report = IMPORTERS["npz"](tmp_path / "g.npz", tmp_path / "data")
    assert report[:3] == (5, 3, 2) and "questions: 2 train" in report.summary
    assert [pair.answers for pair in read_qa(tmp_path / "data/qa/train.jsonl")] == [("cats",), ("dogs",)]
    rejected = [json.loads(line)["reason"] for line in (tmp_path / "data/rejected.jsonl").read_text().splitlines()]
    assert rejected == [f"its class {label} is none of 2, which are counted from 0" for label in (-1, 2)]


def reading(graph, steps, most=None, edges=False):
    return Reading(graph, steps, most, edges, NONE)


@pytest.mark.parametrize("encoder", CONVOLUTIONS)
def test_states_of_blocks_equal_those_of_the_whole_graph(world, tmp_path, encoder):
    from data_processor.graph_store import KnowledgeGraph

    graph, edges = KnowledgeGraph.open(world / "graph"), encoder in READS_EDGES
    torch.manual_seed(0)
    config = GraphConfig(encoder=encoder, feature_dim=8, edge_feature_dim=8, hidden_dim=8, num_layers=2, num_heads=2)
    model = GraphEncoderForNodes(NodeConfig(graph_config=config)).eval()
    with torch.no_grad():
        whole = model.states(**reading(graph, 1, edges=edges).batch(np.arange(61), 0)).numpy()
    write_states(model, reading(graph, 2 + (encoder == "gcn"), edges=edges), 7, tmp_path / "states.npy")
    states = np.load(tmp_path / "states.npy", mmap_mode="r")
    np.testing.assert_allclose(states, whole, atol=1e-5)


def test_a_link_is_not_among_the_messages_where_it_is_asked_for(world):
    from data_processor.graph_store import KnowledgeGraph

    graph = KnowledgeGraph.open(world / "graph")
    links = split_links(graph, 0)
    held_out = np.concatenate([links["validation"], links["test"]])
    hidden = np.sort(pair_keys(*held_out.T, 61))
    batches = LinkBatches(Reading(graph, 2, None, False, hidden), links["train"], 16, train=True)
    batch = batches[0]
    targets, labels = batch["targets"], batch["labels"][0].bool()
    assert targets.shape == (2, 32) and labels.sum() == 16
    messages = set(pair_keys(*batch["edge_index"].numpy(), 61).tolist())
    asked = pair_keys(*targets[:, labels].numpy(), 61)
    assert messages and messages.isdisjoint(asked.tolist())
    held = [LinkBatches(Reading(graph, 2, None, False, hidden), links[name], 16) for name in ("validation", "test")]
    assert not np.array_equal(held[0].negatives, held[1].negatives[: len(held[0].negatives)]), "each draws its own"
    first = batch["node_features"][targets]
    batches.set_epoch(1)
    assert not torch.equal(first, batches[0]["node_features"][batches[0]["targets"]])


def flags(world, output, *more):
    return ["--stage", "graph", "--data_path", str(world), "--output_dir", str(output), "--use_cpu", "True",
            "--graph_hidden_dim", "8", "--graph_num_layers", "2", "--graph_num_heads", "2", "--learning_rate", "3e-2",
            "--save_strategy", "no", "--disable_tqdm", "True", "--report_to", "none", "--do_predict", "True",
            "--do_eval", "True", "--eval_strategy", "no", *more]  # fmt: skip


def test_links_are_learnt_and_the_states_say_more_than_the_vectors(world, tmp_path):
    metrics = finetune.main(flags(world, tmp_path, "--num_train_epochs", "12", "--neighbours_per_node", "5"))
    assert metrics["link_auc"] > max(0.6, metrics["link_auc_features"]) and metrics["eval_auc"] > 0.6
    assert metrics["probe_accuracy"] > metrics["probe_accuracy_features"]
    states = np.load(tmp_path / "node_states.npy", mmap_mode="r")
    assert states.shape == (61, 8) and np.isfinite(states).all()
    assert not (tmp_path / "training_args.bin").exists()
    assert metrics.keys() - {"eval_runtime"} <= {*json.loads((tmp_path / "metrics.json").read_text()), "eval_runtime"}


def test_classes_are_learnt_and_predictions_are_ranked(world, tmp_path):
    metrics = finetune.main(flags(world, tmp_path, "--graph_objective", "label", "--num_train_epochs", "15",
                                  "--graph_encoder", "gcn"))  # fmt: skip
    assert metrics["accuracy"] > metrics["majority"] + 0.2 and metrics["accuracy"] == metrics["top1"]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 31 and all(sorted(row["ranked_answers"]) == ["cats", "dogs"] for row in rows)
    right = np.mean([row["prediction"] == row["answers"][0] for row in rows])
    assert right == pytest.approx(metrics["accuracy"])
    again = finetune.main(flags(world, tmp_path / "again", "--graph_objective", "label", "--init_from", str(tmp_path),
                                "--graph_encoder", "gcn", "--do_train", "False"))  # fmt: skip
    assert again["accuracy"] == metrics["accuracy"]
    with pytest.raises(ValueError, match="has encoder gcn, this run asks for sage"):
        finetune.main(flags(world, tmp_path / "b", "--graph_objective", "label", "--init_from", str(tmp_path)))


def test_what_cannot_work_is_one_sentence(world, tmp_path):
    for more, sentence in (
        (["--graph_encoder", "none"], "has nothing to train"),
        (["--deepspeed", "ds_configs/zero2.json"], "Leave --deepspeed and --fsdp out"),
        (["--nodes_per_batch", "0"], "must be 1 or more"),
        (["--push_to_hub", "True", "--hub_model_id", "a/b"], "leave --push_to_hub out"),
    ):
        with pytest.raises(ValueError, match=sentence):
            finetune.main(flags(world, tmp_path / "x", *more))


def test_node_batches_cover_every_node_once_an_epoch(world):
    from data_processor.graph_store import KnowledgeGraph

    nodes = np.arange(0, 61, 3)
    batches = NodeBatches(reading(KnowledgeGraph.open(world / "graph"), 1), nodes, nodes % 2, 4, shuffle=True)
    seen = torch.cat([batches[i]["labels"][0] for i in range(len(batches))])
    assert len(batches) == 6 and len(seen) == 21 and int(seen.sum()) == int((nodes % 2).sum())


def test_a_node_that_is_asked_for_twice_has_the_same_state_twice(world):
    from data_processor.graph_store import KnowledgeGraph

    graph, nodes = KnowledgeGraph.open(world / "graph"), np.array([8, 3, 8])
    batch = NodeBatches(reading(graph, 1), nodes, nodes % 2, 3)[0]
    assert torch.equal(batch["node_features"][batch["targets"][0]], torch.tensor(graph.node_features[nodes]))
    into = (batch["edge_index"][1] == batch["targets"][0, :, None]).sum(dim=-1).tolist()
    assert into[0] == into[2] > 0


def test_questions_for_something_else_are_no_classes(world, tmp_path):
    from data_processor.graph_store import KnowledgeGraph

    shutil.copytree(world, tmp_path / "data")
    graph = KnowledgeGraph.open(world / "graph")
    for split in ("train", "validation", "test"):
        path = tmp_path / "data" / "qa" / f"{split}.jsonl"
        pairs = read_qa(path)
        pairs += [described(NodeSummary(one.seed_nodes[0], "a text"), split, QUESTION) for one in pairs[:3]]
        write_jsonl(path, map(to_json, [*pairs, question(graph, split, 0, [0, 2], "yes")]))
    assert classes_of(tmp_path / "data") == ["cats", "dogs"]
    metrics = finetune.main(flags(tmp_path / "data", tmp_path / "out", "--graph_objective", "label"))
    assert metrics["probe_accuracy"] > 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 31 and {row["answers"][0] for row in rows} == {"cats", "dogs"}
    assert len((tmp_path / "out" / "rejected_test.jsonl").read_text().splitlines()) == 4
