"""finetune.main for the stages of a graph retriever: what is learned, saved, resumed, refused and written."""

import json

import numpy as np
import pytest
import torch
from test_finetune import losses, trained
from test_resume import StopAfter, run
from tiny_world import write_dataset

import finetune
from data_processor.files import write_npy
from data_processor.graph_store import embed_graph, write_graph
from data_processor.schema import Document, QAPair, read_jsonl, to_json, write_jsonl
from data_processor.text_encoder import load_encoder
from modeling_gfm import GFMForRetrieval

NODES = 24


def write_ring(folder, encoder: str = "hashing:8"):
    """A ring of nodes whose `two` edges are two `next` edges: they can be learned; a document names each pair."""
    edges = [[i, 0, (i + 1) % NODES] for i in range(NODES)] + [[i, 1, (i + 2) % NODES] for i in range(NODES)]
    held_out = edges[NODES + 4 : NODES + 12 : 2]
    kept = [edge for edge in edges if edge not in held_out]
    documents = [Document(f"d{i}", None, f"n{i} and n{(i + 1) % NODES}") for i in range(NODES)]
    links = np.array([[i, node] for i in range(NODES) for node in (i, (i + 1) % NODES)])
    names = [{"name": f"n{i}"} for i in range(NODES)]
    relations = [{"name": "next"}, {"name": "two steps on"}]
    write_graph(folder / "graph", names, relations, np.array(kept), documents, links)
    embed_graph(folder / "graph", load_encoder(encoder))
    write_npy(folder / "triples" / "validation.npy", np.array(held_out[:2]))
    write_npy(folder / "triples" / "test.npy", np.array(held_out[2:]))
    for split, first, count in (("train", 0, 16), ("validation", 16, 4), ("test", 20, 4)):
        pairs = [question(split, (first + i) % NODES) for i in range(count)]
        if split == "test":
            pairs.append(QAPair("test-lost", "what comes after nothing?", ("n0",), (0,), (), ("d0",)))
        write_jsonl(folder / "qa" / f"{split}.jsonl", map(to_json, pairs))
    return folder


def question(split: str, node: int) -> QAPair:
    after = (node + 1) % NODES
    return QAPair(
        f"{split}-{node}", f"what comes after n{node}?", (f"n{after}",), (after,), (node,), (f"d{node}",), "look_up"
    )


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    return write_ring(tmp_path_factory.mktemp("ring"))


def flags(stage: str, data, output, *more: str) -> list[str]:
    return [
        *("--stage", stage, "--data_path", str(data), "--output_dir", str(output), "--use_cpu", "True"),
        *("--gfm_hidden_dim", "16", "--gfm_num_layers", "3", "--questions_per_batch", "6", "--learning_rate", "1e-2"),
        *("--save_strategy", "no", "--logging_steps", "1", "--disable_tqdm", "True", "--num_train_epochs", "2"),
        *("--lr_scheduler_type", "constant", *more),
    ]


@pytest.fixture(scope="module")
def pretrained(ring, tmp_path_factory):
    """(output folder, metrics, trainer) of a pre-training that evaluates, keeps its best and predicts."""
    more = ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--do_predict", "True", "--num_negatives", "5"]
    more += ["--load_best_model_at_end", "True", "--metric_for_best_model", "mrr", "--num_train_epochs", "8"]
    output = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        return trained(patch, flags("gfm_pretrain", ring, output, *more, "--gfm_question_relations", "True"))[:3]


@pytest.fixture(scope="module")
def finetuned(ring, tmp_path_factory):
    """(output folder, metrics, trainer) of a fine-tuning on masked questions."""
    more = ["--do_eval", "True", "--do_predict", "True", "--mask_seeds", "True", "--num_train_epochs", "15"]
    output = tmp_path_factory.mktemp("finetuned")
    with pytest.MonkeyPatch.context() as patch:
        return trained(patch, flags("gfm_finetune", ring, output, *more))[:3]


def test_pretraining_learns_and_writes_ranks_with_their_tie_policy(pretrained):
    output, metrics, trainer = pretrained
    assert losses(trainer)[-1] < losses(trainer)[0]
    written = json.loads((output / "metrics.json").read_text())
    assert {"mrr", "mr", "hits@1", "hits@3", "hits@10", "mrr_pessimistic", "tie_policy", "minutes"} <= set(written)
    assert all(isinstance(value, float) for value in written.values())
    assert written["mrr"] == metrics["mrr"] > 0.5  # two of 24 by chance
    assert written["tie_policy"] == 0.5


def test_the_ranks_written_are_those_of_a_count_by_hand(pretrained, ring):
    output, metrics, trainer = pretrained
    model = GFMForRetrieval.from_pretrained(output).eval()
    model.attach_graphs(trainer.model.graphs)
    edges = np.load(ring / "graph" / "edges.npy")
    splits = [np.load(ring / "triples" / f"{split}.npy") for split in ("validation", "test")]
    true = {tuple(row) for row in np.concatenate([edges, *splits]).tolist()}
    ranks = []
    for head, relation, tail in splits[1].tolist():
        for seed, query, right, others in (
            (head, relation, tail, {t for h, r, t in true if (h, r) == (head, relation)}),
            (tail, relation + 2, head, {h for h, r, t in true if (t, r) == (tail, relation)}),
        ):
            batch = {"graph_index": [0], "query_relations": [query], "seed_nodes": [seed], "seed_batch": [0]}
            with torch.no_grad():
                scores = model(**{name: torch.tensor(value) for name, value in batch.items()}).logits[0].numpy()
            wrong = [node for node in range(NODES) if node not in others]
            ranks.append(
                1 + sum((scores[node] > scores[right]) + 0.5 * (scores[node] == scores[right]) for node in wrong)
            )
    assert metrics["mr"] == pytest.approx(np.mean(ranks))
    assert metrics["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_the_best_checkpoint_by_its_named_metric_is_kept(pretrained):
    _, _, trainer = pretrained
    seen = [row["eval_mrr"] for row in trainer.state.log_history if "eval_mrr" in row]
    assert trainer.state.best_metric == max(seen[:-1])  # the last is the evaluation after training


def test_an_output_folder_loads_by_its_class_and_by_name_and_names_its_encoder(pretrained):
    from transformers import AutoModel

    output, _, trainer = pretrained
    for loaded in (
        GFMForRetrieval.from_pretrained(output),
        AutoModel.from_pretrained(output, trust_remote_code=True),
    ):
        assert loaded.config.feature_encoder == "hashing:8"
        for (name, one), (_, other) in zip(loaded.named_parameters(), trainer.model.named_parameters(), strict=True):
            assert torch.equal(one, other), name
    checkpoint = next(output.glob("checkpoint-*"))
    assert (checkpoint / "complete").exists() and (checkpoint / "modeling_gfm.py").exists()
    GFMForRetrieval.from_pretrained(checkpoint)
    assert not list(output.rglob("training_args.bin"))


def test_finetuning_answers_and_writes_nodes_and_documents_in_order(finetuned, ring):
    output, metrics, trainer = finetuned
    rows = {row["id"]: row for _, row in read_jsonl(output / "predictions.jsonl")}
    assert len(rows) == 5
    one = rows["test-20"]
    assert one["prediction"] == one["ranked_answers"][0] and len(set(one["ranked_answers"])) == 20
    assert one["retrieved"][0].startswith("d") and one["type"] == "look_up"
    assert not [name for name in one if name.startswith("_")]
    hits = [rows[f"test-{node}"]["prediction"] in rows[f"test-{node}"]["answers"] for node in range(20, 24)]
    assert metrics["hits@1"] == pytest.approx(sum(hits) / 5)
    assert metrics["hits@1/look_up"] == pytest.approx(sum(hits) / 4)
    assert sum(hits) >= 3
    assert {"set_recall@2", "set_recall@5", "filtered_recall@5", "document_filtered_recall@2"} <= set(metrics)
    assert metrics["set_recall@5"] <= metrics["document_filtered_recall@5"]
    assert metrics["eval_hits@1"] >= 0.75


def test_a_question_that_cannot_be_asked_is_listed_and_counted_as_missed(finetuned):
    output, _, _ = finetuned
    listed = [row for _, row in read_jsonl(output / "rejected.jsonl")]
    assert [(row["line"], row["row"]) for row in listed] == [(5, "what comes after nothing?")]
    assert "link" in listed[0]["reason"]
    rows = {row["id"]: row for _, row in read_jsonl(output / "predictions.jsonl")}
    assert (rows["test-lost"]["prediction"], rows["test-lost"]["ranked_answers"]) == ("", [])


def test_what_was_hidden_in_training_is_hidden_again(finetuned, ring, tmp_path):
    more = ["--init_from", str(finetuned[0]), "--do_train", "False", "--do_predict", "True"]
    metrics = finetune.main(flags("gfm_finetune", ring, tmp_path / "out", *more))
    assert GFMForRetrieval.from_pretrained(finetuned[0]).config.mask_seeds
    assert metrics["hits@1"] == finetuned[1]["hits@1"]


def test_layers_that_read_words_are_given_tokens(ring, tmp_path):
    more = ["--gfm_question_relations", "True", "--gfm_question_attention", "True", "--num_train_epochs", "1"]
    output = tmp_path / "out"
    finetune.main(flags("gfm_finetune", ring, output, *more, "--mask_seeds", "True"))
    again = ["--init_from", str(output), "--do_train", "False", "--do_predict", "True"]
    assert "hits@1" in finetune.main(flags("gfm_finetune", ring, tmp_path / "again", *again))


def test_a_finetuning_starts_from_pretrained_weights_with_its_own_loss(pretrained, ring, tmp_path):
    more = ["--init_from", str(pretrained[0]), "--num_train_epochs", "1", "--gfm_question_relations", "True"]
    with pytest.MonkeyPatch.context() as patch:
        _, _, trainer, before = trained(patch, flags("gfm_finetune", ring, tmp_path / "out", *more))
    for name, one in pretrained[2].model.named_parameters():
        assert torch.equal(one, before[name]), name
    config = trainer.model.config
    assert (config.bce_weight, config.list_ce_weight, config.adversarial_temperature) == (0.3, 0.7, 0.2)
    assert config.question_relations


def test_an_evaluation_of_a_finished_run_gives_its_figures_again(pretrained, ring, tmp_path):
    more = ["--init_from", str(pretrained[0]), "--do_train", "False", "--do_predict", "True"]
    argv = ["--stage", "gfm_pretrain", "--data_path", str(ring), "--output_dir", str(tmp_path / "again"), *more]
    again = finetune.main(argv)
    assert {name: again[name] for name in ("mrr", "hits@1", "mr")} == {
        name: pytest.approx(pretrained[1][name]) for name in ("mrr", "hits@1", "mr")
    }


@pytest.mark.parametrize("stage", ["gfm_pretrain", "gfm_finetune"])
def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(ring, tmp_path, stage):
    def argv(name: str) -> list[str]:
        more = [
            "--save_strategy",
            "steps",
            "--save_steps",
            "2",
            "--num_train_epochs",
            "3",
            "--max_batches_per_epoch",
            "3",
        ]
        return flags(stage, ring, tmp_path / name, *more, "--lr_scheduler_type", "linear")

    _, _, whole, _ = run(argv("whole"))
    with pytest.raises(KeyboardInterrupt):
        run(argv("stopped"), StopAfter(5))
    _, _, resumed, _ = run(argv("stopped"))
    assert losses(resumed) == losses(whole)
    for (name, one), (_, other) in zip(resumed.model.named_parameters(), whole.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert len({tuple(whole.train_dataset[i]["seed_nodes"].tolist()) for i in range(3)}) == 3


def test_several_graphs_train_together_and_each_is_scored(ring, tmp_path):
    other = write_ring(tmp_path / "other")
    (other / "triples" / "test.npy").unlink()
    (other / "triples" / "validation.npy").unlink()
    (other / "triples").rmdir()
    argv = flags("gfm_pretrain", ring, tmp_path / "out", "--do_predict", "True", "--max_batches_per_epoch", "2")
    place = argv.index(str(ring))
    metrics = finetune.main([*argv[: place + 1], str(other), *argv[place + 1 :]])
    assert {f"{ring}/mrr", f"{other}/mrr", "mrr"} <= set(metrics)


def test_relations_without_text_train_on_a_graph_that_is_not_embedded(tmp_path):
    edges = np.array([[i, i % 2, (i + 1) % 12] for i in range(12)] + [[i, 2, (i + 2) % 12] for i in range(12)])
    write_graph(tmp_path / "graph", [{"name": f"n{i}"} for i in range(12)], [{"name": r} for r in "abc"], edges)
    argv = flags("gfm_pretrain", tmp_path, tmp_path / "out", "--num_train_epochs", "1")
    with pytest.raises(ValueError, match="data_processor embed"):
        finetune.main(argv)
    metrics = finetune.main([*argv, "--gfm_relation_source", "graph", "--do_predict", "True"])
    assert metrics["mrr"] > 0


def test_dry_run_counts_parameters_and_steps_and_writes_nothing(ring, tmp_path, capsys):
    figures = finetune.main(flags("gfm_pretrain", ring, tmp_path / "out", "--dry_run", "True"))
    text = capsys.readouterr().out
    assert "removed_edges" in text and "readout" in text
    assert (
        figures["all/total"]
        == figures["all/trainable"]
        == sum(value for name, value in figures.items() if name.endswith("/total") and not name.startswith("all"))
    )
    assert figures["steps/steps in all"] == 2 * figures["steps/examples"]
    assert not (tmp_path / "out").exists()


@pytest.mark.distributed
def test_two_processes_train_one_model_and_score_it_as_one_does(ring, tmp_path):
    from test_distributed import torchrun

    more = ["--do_eval", "True", "--do_predict", "True"]
    stages = ("gfm_pretrain", "gfm_finetune")
    argv = {stage: flags(stage, ring, tmp_path / stage, *more) for stage in stages}
    (tmp_path / "cases.json").write_text(json.dumps(argv))
    torchrun(tmp_path / "report.json", tmp_path / "cases.json")
    report = json.loads((tmp_path / "report.json").read_text())
    for stage in stages:
        assert (report[stage]["engine"], report[stage]["world_size"]) == ("DistributedDataParallel", 2)
        together = json.loads((tmp_path / stage / "metrics.json").read_text())
        again = ["--init_from", str(tmp_path / stage), "--do_train", "False"]
        alone = finetune.main(flags(stage, ring, tmp_path / f"{stage}_alone", *more, *again))
        for name in ("eval_mrr", "mrr", "hits@1", "eval_hits@1"):
            assert together[name] == pytest.approx(alone[name]), name
    files = [tmp_path / name / "predictions.jsonl" for name in ("gfm_finetune", "gfm_finetune_alone")]
    assert files[0].read_text() == files[1].read_text()


# ------------------------------------------------------------------------------------------------------- bad input
def test_a_checkpoint_of_another_encoder_names_both_and_the_command(pretrained, tmp_path):
    other = write_ring(tmp_path / "ring", encoder="hashing:16")
    argv = flags("gfm_finetune", other, tmp_path / "out", "--init_from", str(pretrained[0]))
    with pytest.raises(ValueError, match="'hashing:16'.*'hashing:8' .width 8.*embed"):
        finetune.main(argv)


def test_graphs_of_different_encoders_are_not_mixed(ring, tmp_path):
    other = write_ring(tmp_path / "ring", encoder="hashing:16")
    argv = flags("gfm_pretrain", ring, tmp_path / "out")
    place = argv.index(str(ring))
    with pytest.raises(ValueError, match="embedded differently"):
        finetune.main([*argv[: place + 1], str(other), *argv[place + 1 :]])


def test_a_flag_that_would_change_the_shape_of_an_earlier_output_is_refused(pretrained, ring, tmp_path):
    argv = flags("gfm_finetune", ring, tmp_path / "out", "--init_from", str(pretrained[0]), "--gfm_hidden_dim", "32")
    with pytest.raises(ValueError, match="--gfm_hidden_dim 32 is not the shape of .* has 16"):
        finetune.main(argv)


def test_a_folder_without_a_model_and_an_unknown_message_are_one_sentence(ring, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no config.json"):
        finetune.main(flags("gfm_pretrain", ring, tmp_path / "out", "--init_from", str(tmp_path / "empty")))
    with pytest.raises(ValueError, match="'convolution' is not known.*distmult"):
        finetune.main(flags("gfm_pretrain", ring, tmp_path / "out", "--gfm_message", "convolution"))


def test_triples_that_every_node_answers_are_counted_and_listed(tmp_path):
    nodes = [{"name": "a"}, {"name": "b"}]
    full = np.array([[h, 0, t] for h in (0, 1) for t in (0, 1)] + [[0, 1, 1]])
    write_graph(tmp_path / "graph", nodes, [{"name": "r"}, {"name": "s"}], full)
    embed_graph(tmp_path / "graph", load_encoder("hashing:8"))
    write_npy(tmp_path / "triples" / "test.npy", full[-1:])
    finetune.main(flags("gfm_pretrain", tmp_path, tmp_path / "out", "--num_train_epochs", "1"))
    listed = [row for _, row in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert len(listed) == 4 and "both ends" in listed[0]["reason"]


def test_a_dataset_of_subgraphs_is_trained_on_its_subgraphs(tmp_path):
    data = write_dataset(tmp_path / "world")
    pairs = {split: [row for _, row in read_jsonl(data / "qa" / f"{split}.jsonl")] for split in ("train", "test")}
    for split, rows in pairs.items():
        for row in rows:
            start = int(row["question"].removeprefix("what is next to thing").rstrip("?"))
            row |= {"seed_nodes": [start], "answer_nodes": [(start + 1) % 20]}
        write_jsonl(data / "qa" / f"{split}.jsonl", rows)
    more = [
        "--on_subgraphs",
        "True",
        "--do_predict",
        "True",
        "--gfm_hold_unreached",
        "True",
        "--num_train_epochs",
        "12",
    ]
    metrics = finetune.main(flags("gfm_finetune", data, tmp_path / "out", *more))
    assert metrics["hits@1"] == 1.0
    rows = [row for _, row in read_jsonl(tmp_path / "out" / "predictions.jsonl")]
    assert all(row["retrieved"] == [] for row in rows) and "set_recall@2" not in metrics
