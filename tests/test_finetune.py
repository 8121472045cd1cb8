"""finetune.main on tiny random models: what moves, what stays, what is saved, and what must agree."""

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_world import SIZES, flags, write_dataset

import finetune
from modeling_graphllm import GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor

ADAPTATIONS = {
    "lora": [],
    "frozen": ["--freeze_lm", "True"],
    "full": ["--use_lora", "False", "--freeze_lm", "False"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(language_model_folder, data, tmp_path_factory):
    """`run("name", "--flag", "value")` -> (output folder, metrics, trainer); each name is trained once."""
    done = {}

    def start(name: str, *more: str):
        if name not in done:
            output = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                done[name] = trained(patch, flags(language_model_folder, data, output, *more))
        return done[name]

    return start


def trained(patch: pytest.MonkeyPatch, argv: list[str]):
    """Runs main and keeps its trainer, with the weights as they were before the first step."""
    kept = {}
    build = finetune.build_trainer

    def keep(*arguments):
        trainer = build(*arguments)
        kept["trainer"] = trainer
        kept["before"] = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
        return trainer

    patch.setattr(finetune, "build_trainer", keep)
    metrics = finetune.main(argv)
    return Path(kept["trainer"].args.output_dir), metrics, kept["trainer"], kept["before"]


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_exactly_the_expected_parameters_move_and_every_other_is_bit_equal(run, adaptation):
    _, _, trainer, before = run(adaptation, *ADAPTATIONS[adaptation])
    moved = {name for name, one in trainer.model.named_parameters() if not torch.equal(one, before[name])}
    expected = {
        "full": lambda name: True,
        "frozen": lambda name: name.startswith(("graph_encoder.", "graph_projector.")),
        "lora": lambda name: "lora_" in name or "modules_to_save" in name,
    }[adaptation]
    # the null vector stands for empty graphs, of which this data has none
    wanted = {name for name in before if expected(name) and not name.endswith("null_node")}
    assert moved == wanted
    assert any("graph_encoder" in name for name in moved)


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_the_output_folder_loads_to_the_model_that_was_trained(run, adaptation, data):
    output, _, trainer, _ = run(adaptation, *ADAPTATIONS[adaptation])
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    with torch.no_grad():
        expected, found = trainer.model.eval()(**batch), loaded.eval()(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)
    GraphLLMProcessor.from_pretrained(output)


def test_lean_folders_hold_no_weight_of_the_language_model(run):
    adapter = load_file(run("lora")[0] / "adapter_model.safetensors")
    assert {"lora" if "lora_" in name else "graph" for name in adapter} == {"lora", "graph"}
    assert not (run("lora")[0] / "model.safetensors").exists()
    frozen = load_file(run("frozen", *ADAPTATIONS["frozen"])[0] / "model.safetensors")
    assert frozen and all(name.startswith(("graph_encoder.", "graph_projector.")) for name in frozen)


def test_a_checkpoint_loads_by_itself_and_nothing_in_the_output_is_a_pickle_of_arguments(run):
    output, _, _, _ = run("checkpoints", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1")
    assert [folder.name for folder in output.glob("checkpoint-*")] == ["checkpoint-4"]
    assert (output / "checkpoint-4" / "complete").exists()
    assert not list(output.rglob("training_args.bin"))
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output / "checkpoint-4")
    final = GraphLLMForConditionalGeneration.from_pretrained(output)
    for (name, one), (_, other) in zip(loaded.named_parameters(), final.named_parameters(), strict=True):
        assert torch.equal(one, other) or "original_module" in name, name  # PEFT's unused copy


def test_a_copied_base_makes_the_folder_movable(run, tmp_path):
    output, _, trainer, _ = run("with_base", "--include_base", "True")
    moved = output.rename(tmp_path / "moved")
    loaded = GraphLLMForConditionalGeneration.from_pretrained(moved)
    assert json.loads((moved / "config.json").read_text())["text_model_name_or_path"] == "./base"
    batch = trainer.data_collator([trainer.train_dataset[0]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, trainer.model.eval()(**batch).logits, rtol=0, atol=1e-6)


def test_run_json_and_metrics_json_say_what_was_run_and_what_came_out(run):
    output, metrics, trainer, _ = run("predicted", "--do_eval", "True", "--do_predict", "True")
    record = json.loads((output / "run.json").read_text())
    assert record["arguments"]["lora_r"] == 4
    assert record["versions"]["torch"] == torch.__version__
    written = json.loads((output / "metrics.json").read_text())
    assert {"train_loss", "eval_loss", "exact_match"} <= set(written)
    assert all(isinstance(value, float) for value in written.values())
    assert written["eval_loss"] == metrics["eval_loss"]
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]
    assert log[-1]["eval_loss"] == written["eval_loss"]
    assert written["tokens"] == sum(row["tokens"] for row in log if "loss" in row) > 0 and written["peak_gib"] > 0
    parameters = list(trainer.model.parameters())
    assert written["parameters"] == sum(one.numel() for one in parameters)
    assert written["parameters_trained"] == sum(one.numel() for one in parameters if one.requires_grad)
    assert written["weight_bytes"] == 4 * written["parameters"]
    assert len((output / "predictions.jsonl").read_text().splitlines()) == SIZES["test"]


def test_batch_one_with_accumulation_four_equals_batch_four(run):
    whole = run("full", *ADAPTATIONS["full"])
    single = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4"]
    parts = run("accumulated", *ADAPTATIONS["full"], *single)
    assert losses(whole[2]) == pytest.approx(losses(parts[2]), abs=1e-5)
    for (name, one), (_, other) in zip(
        whole[2].model.named_parameters(), parts[2].model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4, msg=name)


def test_two_learning_rates_reach_their_own_parameters(run):
    _, _, trainer, before = run("two_rates", "--graph_learning_rate", "0", "--weight_decay", "0.1")
    moved = {name for name, one in trainer.model.named_parameters() if not torch.equal(one, before[name])}
    assert moved and all("lora_" in name for name in moved)
    rates = {(group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups}
    assert rates == {(1e-2, 0.1), (0.0, 0.1), (0.0, 0.0)}


@pytest.mark.parametrize("start", ["lora", "frozen", "full"])
def test_a_run_starts_from_the_weights_of_an_earlier_one(run, start):
    output, _, first, _ = run(start, *ADAPTATIONS[start])
    _, _, second, before = run(f"from_{start}", "--init_from", str(output))
    batch = first.data_collator([first.train_dataset[0]])
    trainable = {name for name, one in second.model.named_parameters() if one.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trainable)
    second.model.load_state_dict(before, strict=False)
    with torch.no_grad():
        expected, found = first.model.eval()(**batch), second.model.eval()(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=1e-6)


def test_a_run_does_not_start_from_a_model_of_other_features(run):
    from training.model import check_features

    output = str(run("lora")[0])
    check_features(output, "hashing:8")
    check_features(output, None)
    with pytest.raises(ValueError, match="'hashing:9'.*embed --encoder hashing:8"):
        check_features(output, "hashing:9")


def test_the_revision_of_the_base_comes_with_an_earlier_output_unless_another_is_named(build_model, tmp_path):
    from training.arguments import parse
    from training.data import base_of

    config = build_model()[0].config
    config.text_model_name_or_path, config.text_model_revision = "some/model", "v1"
    config.save_pretrained(tmp_path)
    argv = ["--init_from", str(tmp_path), "--data_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert base_of(parse(argv)) == ("some/model", "v1")
    assert base_of(parse([*argv, "--model_revision", "v2"])) == ("some/model", "v2")
    assert base_of(parse([*argv, "--model_name_or_path", "other/model"])) == ("other/model", None)


def test_answers_are_asked_for_with_prompts_as_short_as_in_training(run, monkeypatch):
    from training import qa

    seen = {}
    generate = qa.generate_predictions

    def keep(*arguments, **settings):
        seen.update(settings)
        return generate(*arguments, **settings)

    monkeypatch.setattr(qa, "generate_predictions", keep)
    run("short", "--do_predict", "True", "--model_max_length", "300")
    assert seen["max_length"] == 300
    run("long", "--do_predict", "True", "--max_steps", "1")
    assert seen["max_length"] == 512  # positions of the language model


def test_a_rank_that_a_matrix_does_not_have_is_said_with_its_name(build_model, caplog):
    from training.adapters import target_pattern, warn_of_full_rank

    model, _ = build_model()
    pattern = target_pattern(None, model)
    with caplog.at_level(logging.WARNING):
        warn_of_full_rank(7, pattern, model)
        assert not caplog.text
        warn_of_full_rank(8, pattern, model)  # one of two heads of keys and values is 8 wide
    assert "k_proj (8), v_proj (8)." in caplog.text and "q_proj" not in caplog.text


def test_a_base_without_safetensors_is_refused_before_training(language_model_folder, data, tmp_path):
    import shutil

    base = shutil.copytree(language_model_folder, tmp_path / "base")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has none at its top"):
        finetune.main(flags(base, data, tmp_path / "out", "--include_base", "True"))
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_lora_targets_stay_inside_the_language_model(run):
    _, _, trainer, _ = run("targets", "--lora_target_modules", "q_proj", "v_proj")
    adapted = {name.split(".lora_")[0] for name, _ in trainer.model.named_parameters() if "lora_" in name}
    assert all(".language_model." in name for name in adapted)
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "v_proj"}


def test_targets_that_match_nothing_are_an_error_that_lists_the_layers(language_model_folder, data, tmp_path):
    with pytest.raises(ValueError, match="matches no linear layer.*q_proj"):
        finetune.main(flags(language_model_folder, data, tmp_path, "--lora_target_modules", "c_attn"))


def test_dry_run_reports_without_training(language_model_folder, data, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    output = tmp_path / "out"
    argv = flags(language_model_folder, data, output, "--dry_run", "True", "--json", str(figures), "--bf16", "True")
    returned = finetune.main(argv)
    text = capsys.readouterr().out
    assert "[2 graph tokens]" in text and "«thing1<|end|>»" in text
    written = json.loads(figures.read_text())
    assert written == returned
    rooms = ["language_model", "LoRA adapters", "graph_encoder", "graph_projector", "frozen copies of PEFT"]
    assert sum(written[f"{room}/total"] for room in rooms) == written["all/total"]
    assert written["language_model/trainable"] == 0
    assert written["memory/optimizer"] > 8 * written["all/trainable"]  # see test_memory.py
    assert written["steps/steps an epoch"] == SIZES["train"] / 4
    assert not output.exists()


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_dry_run_counts_the_same_without_the_weights_of_the_base(language_model_folder, data, tmp_path, adaptation):
    import shutil

    from training import model

    more = ["--dry_run", "True", "--bf16", "True", "--dtype", "bfloat16", *ADAPTATIONS[adaptation]]
    bare = shutil.copytree(language_model_folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    counted = finetune.main(flags(bare, data, tmp_path / "out", *more))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "without_weights", lambda name, revision, kwargs: name)  # reads them
        assert counted == finetune.main(flags(language_model_folder, data, tmp_path / "out", *more))
    assert counted["language_model/total"] > 0


# ------------------------------------------------------------------------------------------------- conversations
@pytest.fixture
def conversations(tmp_path) -> Path:
    rows = [
        {
            "id": f"identity_{i}",
            "conversations": [{"from": "user", "value": f"Q {i}?"}, {"from": "assistant", "value": f"A {i}"}],
            "fact": "F",
            "file_name": "f.txt",
        }
        for i in range(12)
    ]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(rows))
    return path


KNOWLEDGE_UPDATE = (
    "--use_wandb True --wandb_run_name run-lora --bf16 True --num_train_epochs 2 --per_device_train_batch_size 4 "
    "--per_device_eval_batch_size 8 --gradient_accumulation_steps 2 --validation True --logging_strategy steps "
    "--logging_steps 4 --eval_strategy steps --eval_steps 4 --save_strategy steps --save_total_limit 3 "
    "--learning_rate 1e-5"
).split()


def test_the_command_of_knowledge_update_trains_without_a_graph(
    language_model_folder, conversations, tmp_path, monkeypatch
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    key, output = "k" * 40, tmp_path / "out"
    where = ["--model_name_or_path", str(language_model_folder), "--data_path", str(conversations)]
    argv = [*where, "--key", key, "--output_dir", str(output), *KNOWLEDGE_UPDATE, "--validation_size", "3"]
    with pytest.MonkeyPatch.context() as patch:
        _, metrics, trainer, _ = trained(patch, argv)
    assert metrics["eval_loss"] > 0
    assert any("lora_" in name for name in load_file(output / "adapter_model.safetensors"))
    ids = [{row["id"] for row in split.dataset.rows} for split in (trainer.train_dataset, trainer.eval_dataset)]
    assert (len(ids[0]), len(ids[1])) == (9, 3) and not ids[0] & ids[1]
    assert list(tmp_path.glob("wandb/offline-run-*"))
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes(), file


def test_a_validation_size_beyond_the_rows_becomes_a_tenth_with_a_warning(caplog):
    from training.data import held_out_rows

    with caplog.at_level(logging.WARNING):
        assert len(held_out_rows(50, 1000, seed=0)) == 5
    assert "1000 of 50 rows" in caplog.text
    assert held_out_rows(50, 10, seed=0) == held_out_rows(50, 10, seed=0) != held_out_rows(50, 10, seed=1)
    with pytest.raises(ValueError, match="1 rows cannot be split"):
        held_out_rows(1, 1, seed=0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--freeze_lm", "True"], "have no graph"),
        (["--do_predict", "True"], "holds conversations"),
        (["--eval_strategy", "epoch", "--validation", "False"], "leaves it no rows"),
    ],
)
def test_what_conversations_cannot_do_is_one_sentence(language_model_folder, conversations, tmp_path, more, said):
    with pytest.raises(ValueError, match=said):
        finetune.main(flags(language_model_folder, conversations, tmp_path / "out", *more))


def test_a_dry_run_on_rows_that_are_partly_bad_leaves_the_output_folder_alone(
    language_model_folder, conversations, tmp_path
):
    conversations.write_text(json.dumps([*json.loads(conversations.read_text()), {"id": "bad"}]))
    argv = flags(language_model_folder, conversations, tmp_path / "out")
    finetune.main([*argv, "--dry_run", "True"])
    assert not (tmp_path / "out").exists()
    finetune.main(argv)
    assert "bad" in (tmp_path / "out" / "rejected.jsonl").read_text()


# ----------------------------------------------------------------------------------------------------- bad input
def test_a_model_that_cannot_be_had_says_which_name_and_how_to_log_in(data, tmp_path):
    with pytest.raises(ValueError, match="'no/such-model' could not be loaded.*hf auth login"):
        finetune.main(flags(Path("no/such-model"), data, tmp_path / "out"))


def test_a_gated_model_says_to_accept_its_terms(monkeypatch):
    import httpx
    from huggingface_hub.errors import GatedRepoError

    from training.data import explained

    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/a/b"))
    with pytest.raises(ValueError, match="a/b is gated.*hf auth login"), explained("a/b"):
        raise OSError("You are trying to access a gated repo.") from GatedRepoError("gated", response=response)


def test_a_tokenizer_without_a_chat_template_asks_for_one_and_takes_a_file(language_model_folder, data, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(language_model_folder, bare)
    template = (bare / "chat_template.jinja").read_text()
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="--chat_template"):
        finetune.main(flags(bare, data, tmp_path / "out", "--dry_run", "True"))
    file = tmp_path / "t.jinja"
    file.write_text(template)
    finetune.main(flags(bare, data, tmp_path / "out", "--dry_run", "True", "--chat_template", str(file)))


def test_a_missing_split_names_those_that_are_there(language_model_folder, data, tmp_path):
    with pytest.raises(ValueError, match="validation"):
        finetune.main(flags(language_model_folder, data, tmp_path / "out", "--train_split", "dev"))


def test_a_recipe_and_flags_train_together(language_model_folder, data, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"max_steps": 3, "graph_encoder": "gat"}))
    argv = flags(language_model_folder, data, tmp_path / "out")
    place = argv.index("--max_steps")
    del argv[place : place + 2]
    with pytest.MonkeyPatch.context() as patch:
        _, _, trainer, _ = trained(patch, [str(recipe), *argv])
    assert trainer.state.global_step == 3
    assert trainer.model.config.graph_config.encoder == "gat"


# -------------------------------------------------------------------------------------------------------- variants
def test_an_encoder_decoder_trains_predicts_and_reloads(run, tiny_tokenizer, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(
        T5Config(vocab_size=261, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **sizes)
    ).save_pretrained(tmp_path / "t5")
    tiny_tokenizer.save_pretrained(tmp_path / "t5")
    more = ["--model_name_or_path", str(tmp_path / "t5"), "--do_predict", "True", "--do_eval", "True"]
    output, metrics, trainer, _ = run("t5", *more, "--max_new_tokens", "4")
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert len((output / "predictions.jsonl").read_text().splitlines()) == SIZES["test"]
    batch = trainer.data_collator([trainer.train_dataset[0]])
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, trainer.model.eval()(**batch).logits, rtol=0, atol=1e-6)


def test_recomputed_activations_change_nothing_and_reach_adapters_and_graph(run):
    _, _, trainer, before = run("recomputed", "--activation_checkpointing", "True")
    assert losses(trainer) == pytest.approx(losses(run("lora")[2]), abs=1e-5)
    for name, one in trainer.model.named_parameters():
        if "lora_B" in name:
            assert one.abs().sum() > 0, name
        elif "graph_encoder" in name and one.requires_grad and not name.endswith("null_node"):
            assert not torch.equal(one, before[name]), name


def test_bf16_trains_on_a_cpu_close_to_float32(run):
    _, _, trainer, _ = run("bf16", "--bf16", "True")
    assert losses(trainer) == pytest.approx(losses(run("lora")[2]), abs=0.02)


def test_lazy_preprocessing_trains_on_the_same_rows(run):
    assert losses(run("lazy", "--lazy_preprocess", "True")[2]) == losses(run("lora")[2])


def test_tensorboard_writes_its_events(run, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    run("events", "--report_to", "tensorboard")
    assert any(path.stat().st_size for path in (tmp_path / "events").rglob("events.*"))


def test_a_four_bit_base_trains_adapters_and_reader_and_reloads(run):
    pytest.importorskip("bitsandbytes")
    output, _, trainer, before = run("four_bits", "--q_lora", "True")
    layer = trainer.model.get_base_model().language_model.model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.dtype == torch.uint8
    moved = {name for name, one in trainer.model.named_parameters() if not torch.equal(one, before[name])}
    assert any("lora_B" in name for name in moved) and any("graph_encoder" in name for name in moved)
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output)
    assert loaded.language_model.model.embed_tokens.weight.dtype == torch.float32


def test_generation_also_stops_at_the_token_that_closes_a_turn(build_model):
    from training.model import stop_at

    model, processor = build_model()
    model.generation_config.eos_token_id = 7
    stop_at(model, processor.end_of_turn_ids)
    assert model.generation_config.eos_token_id == sorted([7, *processor.end_of_turn_ids])
