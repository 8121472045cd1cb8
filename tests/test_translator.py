"""The stage `align` and what stage `qa` makes of its output, on a tiny world; a Q-Former before a language model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_finetune import losses, trained
from tiny_world import flags, write_dataset

import finetune
from data_processor.describe import add_descriptions
from data_processor.importers.graphtranslator import import_graphtranslator
from data_processor.node_pairs import NodePairs
from data_processor.node_stars import read_summaries
from data_processor.schema import NodeSummary, to_json, write_jsonl
from evaluation.demo import translator_metrics
from evaluation.metrics import first_mention, score
from modeling_aligner import GraphAligner
from modeling_graphllm import GraphConfig
from training.align import EncodedPairs, collate
from training.align_model import check_states
from training.align_predict import graph_ranks, ranks_of, ridge

QFORMER = [
    *("--qformer_dim", "16", "--qformer_num_layers", "2", "--qformer_num_heads", "2"),
    *("--qformer_intermediate_dim", "16", "--qformer_dropout", "0", "--state_layers", "all"),
]
SMALL = {
    "readout": "qformer", "qformer_dim": 16, "qformer_num_layers": 2, "qformer_num_heads": 2,
    "qformer_intermediate_dim": 16, "qformer_dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The tiny world with a summary for each of its twenty nodes, and questions that ask for them."""
    folder = write_dataset(tmp_path_factory.mktemp("world"))
    splits = ["train"] * 14 + ["validation"] * 2 + ["test"] * 4
    around = [((i + 1) % 20, (i + 5) % 20) for i in range(20)]
    rows = [NodeSummary(i, f"thing {i}", f"next to {around[i][0]}", None, ("a", "b"), around[i], split)
            for i, split in enumerate(splits)]  # fmt: skip
    write_jsonl(folder / "summaries.jsonl", map(to_json, rows))
    add_descriptions(folder)
    return folder


@pytest.fixture(scope="module")
def stage1(language_model_folder, data, tmp_path_factory):
    """The output of a stage 1 of four steps, and its metrics."""
    output = tmp_path_factory.mktemp("stage1")
    words = ["--stage", "align", *QFORMER, "--align_dim", "8", "--align_text_tokens", "40", "--do_predict", "True"]
    with pytest.MonkeyPatch.context() as patch:
        _, metrics, trainer, _ = trained(patch, flags(language_model_folder, data, output, *words))
    return output, metrics, trainer


def test_stage_1_trains_every_weight_and_finds_texts(stage1):
    output, metrics, trainer = stage1
    assert len(losses(trainer)) == 4
    assert trainer.model_accepts_loss_kwargs is False  # so that the Trainer divides by the accumulation
    assert {"retrieval_r1", "retrieval_r10", "retrieval_r1_linear", "retrieval_r1_linear_node", "text_to_graph_r1",
            "test_contrastive", "test_matching", "test_captioning"} <= set(metrics)  # fmt: skip
    assert metrics["candidates"] == 4 and metrics["retrieval_r5"] == 1.0
    model = GraphAligner.from_pretrained(output)
    assert model.config.feature_encoder == "hashing:8" and model.config.graph_config.num_tokens == 2
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["16", "17", "18", "19"]
    assert rows[0]["answers"] == ["thing 16\na, b\nnext to 17"]
    assert "aligned with texts" in (output / "README.md").read_text()
    assert (output / "tokenizer.json").is_file() and not (output / "training_args.bin").exists()


def test_a_loss_under_accumulation_is_the_mean_of_its_batches(language_model_folder, data, tmp_path, monkeypatch):
    words = ["--stage", "align", *QFORMER, "--align_dim", "8", "--align_text_tokens", "40", "--learning_rate", "0",
             "--weight_decay", "0", "--max_steps", "1", "--matching_weight", "0"]  # fmt: skip
    seen = {}
    for accumulation in (1, 3):
        output = tmp_path / str(accumulation)
        argv = flags(language_model_folder, data, output, *words, "--gradient_accumulation_steps", str(accumulation))
        seen[accumulation] = losses(trained(monkeypatch, argv)[2])[0]
    assert seen[3] < 1.5 * seen[1]  # a sum would be three times as large


def test_stage_2_starts_from_what_was_aligned(stage1, language_model_folder, data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "model"
    words = ["--init_from", str(stage1[0]), "--learning_rate", "0", "--weight_decay", "0", "--freeze_lm", "True"]
    argv = flags(language_model_folder, data, output, *words)
    drop = {"--graph_hidden_dim", "--graph_num_layers", "--graph_num_heads", "--num_graph_tokens"}
    argv = [word for i, word in enumerate(argv) if word not in drop and argv[i - 1] not in drop]
    _, _, trainer, _ = trained(monkeypatch, argv)
    aligner, model = GraphAligner.from_pretrained(stage1[0]), trainer.model
    assert model.config.graph_config.readout == "qformer" and model.config.graph_config.num_tokens == 2
    assert torch.equal(model.graph_projector.qformer.queries, aligner.qformer.queries)
    for name, one in model.graph_projector.qformer.state_dict().items():
        assert torch.equal(one, aligner.qformer.state_dict()[name]), name
    assert torch.equal(model.graph_encoder.node_projection.weight, aligner.graph_encoder.node_projection.weight)
    assert all(one.requires_grad == ("graph_" in name) for name, one in model.named_parameters())
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch["labels"].max(dim=1).values.tolist()) and (batch["labels"] == 1).any()  # <|end|> is learnt

    for more, says in (
        (["--num_graph_tokens", "3"], "num_tokens 3 is not the shape"),
        (["--qformer_dim", "32"], "qformer_dim 32 is not the shape"),
    ):
        with pytest.raises(ValueError, match=says):
            finetune.main([*argv, "--output_dir", str(tmp_path / "x"), *more])
    with pytest.raises(ValueError, match="holds a reader of graphs and no language model"):
        finetune.main(["--init_from", str(stage1[0]), "--data_path", str(data), "--output_dir", str(tmp_path / "y")])


def test_an_alignment_that_goes_on_keeps_its_shape_and_its_words(stage1, data, tmp_path):
    start = ["--stage", "align", "--init_from", str(stage1[0]), "--data_path", str(data)]
    start += ["--output_dir", str(tmp_path / "again"), "--max_steps", "1", "--use_cpu", "True"]
    for more, said in (
        (["--align_dim", "32"], "contrastive_dim 32 is not that of"),
        (["--num_graph_tokens", "5"], "num_tokens 5 is not that of"),
        (["--model_name_or_path", "data_processor/demo_base"], "by a tokenizer of 261 tokens"),
    ):
        with pytest.raises(ValueError, match=said):
            finetune.main([*start, *more])


def test_what_cannot_be_aligned_is_a_sentence(language_model_folder, data, tmp_path):
    argv = flags(language_model_folder, data, tmp_path / "out", "--stage", "align", *QFORMER)
    with pytest.raises(ValueError, match="--stage align trains a Q-Former"):
        finetune.main([*argv, "--graph_readout", "mean"])
    with pytest.raises(ValueError, match="is a llama, and the Q-Former can start from a BERT only"):
        finetune.main([*argv, "--qformer_init", "bert"])
    pairs = NodePairs(data, "train")
    single = GraphConfig(encoder="none", **{**SMALL, "feature_dim": 8})
    check_states(single, pairs)
    pairs.pairs = [replace(one, neighbour_nodes=()) for one in pairs.pairs]
    with pytest.raises(ValueError, match="Every graph of .* has one node, .*--graph_readout mean"):
        check_states(single, pairs)
    check_states(GraphConfig(encoder="none", **{**SMALL, "feature_dim": 8, "states_per_vector": 2}), pairs)
    with pytest.raises(ValueError, match="holds no summary of the split 'nowhere'"):
        NodePairs(data, "nowhere")
    with pytest.raises(ValueError, match="has no summaries.jsonl"):
        NodePairs(tmp_path, "train")
    write_jsonl(tmp_path / "summaries.jsonl", [{"node": "x", "summary": "s"}])
    with pytest.raises(ValueError, match="summaries.jsonl:1: 'node' must be a whole number"):
        read_summaries(tmp_path / "summaries.jsonl")


def test_a_pair_is_its_node_its_neighbours_and_the_edges_between(data, tiny_tokenizer, stage1):
    pairs = NodePairs(data, "train")
    item = pairs[3]
    assert item["node"] == 3 and item["text"] == "thing 3\na, b\nnext to 4"
    assert item["graph"]["node_features"].shape == (3, 8)
    assert item["graph"]["edge_index"].T.tolist() == [[0, 1], [0, 2]]
    config = GraphAligner.from_pretrained(stage1[0]).config
    batch = collate([EncodedPairs(pairs, tiny_tokenizer, config)[i] for i in (0, 3)])
    assert batch["input_ids"][:, 0].tolist() == [config.text_start] * 2
    assert batch["graph_batch"].tolist() == [0, 0, 0, 1, 1, 1] and batch["text_index"].tolist() == [0, 3]
    lengths = batch["attention_mask"].sum(dim=1)
    assert [int(batch["input_ids"][i, n - 1]) for i, n in enumerate(lengths)] == [config.text_end] * 2


def test_a_hidden_node_gives_nothing_away_of_itself(stage1, language_model_folder, data, tmp_path, caplog):
    shown, hidden = NodePairs(data, "test"), NodePairs(data, "test", hide_node=True)
    assert not hidden[0]["graph"]["node_features"][0].any() and shown[0]["graph"]["node_features"][0].any()
    assert torch.equal(hidden[0]["graph"]["node_features"][1:], shown[0]["graph"]["node_features"][1:])
    assert shown.fingerprint != hidden.fingerprint
    words = ["--stage", "align", "--align_dim", "8", "--align_text_tokens", "40", *QFORMER, "--hide_node", "True"]
    finetune.main(flags(language_model_folder, data, tmp_path / "hidden", *words, "--max_steps", "1"))
    words = ["--stage", "align", "--data_path", str(data), "--do_train", "False", "--do_predict", "True"]
    words += ["--report_to", "none", "--output_dir"]
    # what was trained without the node's vector goes on without it
    unseen = finetune.main([*words, str(tmp_path / "on"), "--init_from", str(tmp_path / "hidden")])
    assert unseen["retrieval_r1_linear_node"] == 0.25  # the same guess for all four
    assert "using a model of type" not in caplog.text  # a folder of this stage is known to transformers by its type
    with pytest.raises(ValueError, match="hide_node True is not that of"):
        finetune.main([*words, str(tmp_path / "off"), "--init_from", str(stage1[0]), "--hide_node", "True"])


def test_ranks_count_ties_half_and_ridge_recovers_a_linear_map():
    scores, index = torch.tensor([[1.0, 2.0, 2.0], [3.0, 0.0, 0.0]]), torch.tensor([1, 0])
    assert ranks_of(scores, index).tolist() == [1.5, 1.0]
    assert graph_ranks(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])).tolist() == [2, 2]  # no better than chance
    assert graph_ranks(torch.tensor([[1.0, 2.0], [3.0, 0.0], [2.0, 5.0]]), torch.tensor([0, 1, 0])).tolist() == [2, 3]
    torch.manual_seed(0)
    known, asked, true = torch.randn(200, 5).numpy(), torch.randn(9, 5).numpy(), torch.randn(5, 3).numpy()
    assert abs(ridge(known, known @ true + 1, asked) - (asked @ true + 1)).max() < 0.02
    silent, loud = np.zeros((200, 1), np.float32), np.full((9, 1), 1e3, np.float32)  # a column that only now speaks
    found = ridge(np.hstack([known, silent]), known @ true + 1, np.hstack([asked, loud]))
    assert abs(found - (asked @ true + 1)).max() < 0.02


def test_the_demonstrations_table_has_both_stages(tmp_path):
    (tmp_path / "metrics.json").write_text('{"retrieval_r1": 0.5, "retrieval_r1_linear": 0.25, "loss": 3}')

    def rows(said: list[str]) -> list[dict]:
        kinds = ("graph_type", "graph_count", "describe")
        return [{"id": str(i), "type": kinds[i], "prediction": one, "answers": ["a"]} for i, one in enumerate(said)]

    asked = {"none": rows(["a", "a", "a"]), "zero": rows(["a", "b", "b"]), "shuffle": rows(["b", "b", "a"])}
    found = translator_metrics(asked, rows(["", "", ""]), tmp_path)
    assert (found["retrieval_r1"], found["retrieval_r1_linear"]) == (0.5, 0.25) and "loss" not in found
    assert [found[f"answers{one}"] for one in ("", "_zeroed", "_shuffled")] == [1.0, 0.5, 0.0]
    assert [found[f"descriptions_f1{one}"] for one in ("", "_zeroed", "_shuffled")] == [1.0, 0.0, 1.0]
    assert found["chance"] == 1.0 and found["answers/graph_count"] == 1.0


# ---------------------------------------------------------------------------------------- the read-out `qformer`


def test_a_q_former_makes_its_tokens_of_any_graph(build_model, ask, toy_graph):
    model, processor = build_model(**SMALL, num_tokens=4, state_layers="all")
    lonely = {"node_features": torch.ones(1, 6), "edge_index": torch.zeros(2, 0), "edge_features": torch.zeros(0, 5)}
    empty = {**lonely, "node_features": torch.zeros(0, 6)}
    chats = [ask(graphs=[toy_graph]), ask("and who?", graphs=[lonely, toy_graph]), ask(graphs=[empty])]
    batch = processor.apply_chat_template(chats, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert (batch["input_ids"] == processor.graph_token_id).sum(dim=1).tolist() == [4, 8, 4]
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        for row, chat in enumerate(chats):
            alone = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
            torch.testing.assert_close(model(**alone).logits[0, -1], together[row], rtol=1e-4, atol=1e-5)
    changed = {**toy_graph, "node_features": toy_graph["node_features"].flip(0)}
    other = processor.apply_chat_template(ask(graphs=[changed]), tokenize=True, return_dict=True,
                                          add_generation_prompt=True)  # fmt: skip
    with torch.no_grad():
        assert (model(**other).logits[0, -1] - together[0]).abs().max() > 1e-6
    generated = model.generate(**batch, max_new_tokens=3, num_beams=2, do_sample=False)
    assert generated.shape[1] == batch["input_ids"].shape[1] + 3


def test_the_first_node_and_the_layers_are_told_apart(build_model):
    model, _ = build_model(**SMALL, state_layers="all")
    qformer = model.graph_projector.qformer
    vectors = torch.randn(1, 24).repeat(2, 1)  # two equal nodes of three states
    states, mask = qformer.states(vectors, torch.zeros(2, dtype=torch.long))
    assert states.shape == (1, 6, 8) and mask.all()
    assert len({tuple(one.tolist()) for one in states[0]}) == 6


# ------------------------------------------------------------------------------------------------------- real data


@pytest.mark.data
def test_both_stages_learn_from_the_hundred_rows_of_graphtranslator(real_data, language_model_folder, tmp_path,
                                                                    monkeypatch):
    """One epoch of either stage lowers every loss on the rows that it trained on; nodes have a vector and no edge."""
    source, data = real_data / "graphtranslator_arxiv", tmp_path / "data"
    report = import_graphtranslator(source, data)
    assert (report.rows, report.kept) == (100, 100) and "vectors of 768" in report.summary
    # the tiny language model reads 512 bytes
    whole = read_summaries(data / "summaries.jsonl")
    cut = [to_json(replace(one, summary=one.summary[:120], neighbours=None)) for one in whole]
    write_jsonl(data / "summaries.jsonl", cut)
    counts = add_descriptions(data)
    first = [*("--model_name_or_path", str(language_model_folder), "--data_path", str(data), "--use_cpu", "True"),
             *("--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--graph_encoder", "none"),
             *("--save_strategy", "no", "--disable_tqdm", "True", "--max_grad_norm", "1")]  # fmt: skip
    words = [*first, "--stage", "align", *QFORMER[:-2], "--num_graph_tokens", "4", "--align_dim", "16",
             "--align_text_tokens", "64", "--num_train_epochs", "1"]  # fmt: skip
    with pytest.raises(ValueError, match="Every graph of .* has one node"):
        finetune.main([*words, "--output_dir", str(tmp_path / "no")])
    words += ["--states_per_vector", "8"]
    _, _, trainer, before = trained(monkeypatch, [*words, "--output_dir", str(tmp_path / "stage1")])
    after = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
    rows = [trainer.train_dataset[i] for i in range(counts["train"])]
    seen = {}
    for name, weights in (("before", before), ("after", after)):
        trainer.model.load_state_dict(weights)
        torch.manual_seed(0)
        with torch.no_grad():
            outs = [trainer.model.eval()(**collate(rows[i : i + 16])) for i in range(0, len(rows), 16)]
        names = ("contrastive", "matching", "captioning")
        seen[name] = {loss: float(sum(out[loss] for out in outs)) for loss in names}
    assert all(seen["after"][loss] < seen["before"][loss] for loss in seen["after"]), seen

    words = [*first, "--init_from", str(tmp_path / "stage1"), "--freeze_lm", "True", "--model_max_length", "256",
             "--do_eval", "True", "--learning_rate", "1e-2", "--validation_split", "train"]  # fmt: skip
    before = finetune.main([*words, "--do_train", "False", "--output_dir", str(tmp_path / "before")])["eval_loss"]
    after = finetune.main([*words, "--num_train_epochs", "1", "--output_dir", str(tmp_path / "after")])["eval_loss"]
    assert after < before


@pytest.mark.data
def test_raw_answers_are_ranked_by_first_mention_and_no_set_has_an_order(real_data):
    """All hundred papers are cs.LG, machine learning; no answer names that first."""
    rows = [line.split("\t") for line in (real_data / "graphtranslator_arxiv" / "pred.txt").read_text().splitlines()]
    labels = ["cs.LG", "machine learning", "cs.AI", "artificial intelligence", "computational geometry"]
    right = [first_mention(row[2].replace("\\n", "\n"), labels) in ("cs.lg", "machine learning") for row in rows]
    assert len(rows) == 100 and sum(right) == 0
    assert not [name for name in score([{"id": "1", "prediction": "a", "answers": ["a"]}]) if name.startswith("top")]
