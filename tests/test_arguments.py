"""finetune.py's flags: YAML under the command line, unknown names, the key, and one refusal per row of checks.py."""

import json
import os
import sys
from argparse import Namespace
from typing import get_args, get_type_hints

import pytest

from training import engine_checks
from training.arguments import DataArguments, RunArguments, parse
from training.checks import CHECKS, check_flags, sentence
from training.machine import Machine
from training.stages import STAGES

CPU = Machine(gpus=0, launched=False)


@pytest.fixture
def base(tmp_path):
    """The least that parses: a data file and a model's name."""
    data = tmp_path / "data.json"
    data.write_text("[]")
    return ["--model_name_or_path", "some/model", "--data_path", str(data), "--output_dir", str(tmp_path / "out")]


def test_flags_override_the_yaml_file_and_the_rest_keeps_its_default(base, tmp_path):
    recipe = tmp_path / "x.yaml"
    recipe.write_text(
        "learning_rate: 1e-4\nlora_r: 4\nlora_target_modules: [q_proj, v_proj]\ngraph_encoder: gat\n"
        "use_text: false\nlr_scheduler_kwargs: {num_cycles: 1}\nmax_text_tokens: null\n"
    )
    arguments = parse([str(recipe), *base, "--lora_r", "8"])
    assert arguments.training.learning_rate == 1e-4
    assert arguments.lora.lora_r == 8
    assert arguments.lora.lora_target_modules == ["q_proj", "v_proj"]
    assert arguments.graph.graph_encoder == "gat"
    assert arguments.data.use_text is False
    assert arguments.data.max_text_tokens is None
    assert arguments.training.lr_scheduler_kwargs == {"num_cycles": 1}


def test_lora_is_the_default_and_a_frozen_model_needs_one_flag(base):
    assert parse(base).adaptation == "lora"
    assert parse([*base, "--freeze_lm"]).adaptation == "frozen"
    assert parse([*base, "--use_lora", "False", "--freeze_lm", "False"]).adaptation == "full"


def test_settings_that_flat_graph_batches_need(base):
    training = parse(base).training
    assert training.remove_unused_columns is False
    assert training.label_names == ["labels"]
    assert training.prediction_loss_only is True
    assert training.ddp_find_unused_parameters is False
    assert training.accelerator_config.dispatch_batches is False


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--learning_rat", "1"], "--learning_rate"),
        (["--graph_hidden", "1"], "--graph_hidden_dim"),
        (["--warmup_ratio", "0.1"], "--warmup_steps"),
        (["--evaluation_strategy", "no"], "--eval_strategy"),
    ],
)
def test_unknown_flag_is_an_error_that_names_the_nearest(base, words, named):
    with pytest.raises(ValueError, match=named):
        parse([*base, *words])


def test_unknown_yaml_key_is_an_error_that_names_the_nearest_and_the_file(base, tmp_path):
    recipe = tmp_path / "x.yaml"
    recipe.write_text("num_graph_token: 4\n")
    with pytest.raises(ValueError, match="x.yaml.*--num_graph_tokens"):
        parse([str(recipe), *base])


@pytest.mark.parametrize(("text", "said"), [("- a\n", "key: value"), ("a: [", "is not YAML")])
def test_malformed_yaml_is_one_sentence(base, tmp_path, text, said):
    recipe = tmp_path / "x.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=said):
        parse([str(recipe), *base])


def test_an_unknown_stage_names_those_that_there_are(base):
    with pytest.raises(ValueError, match="--stage.*'dance'.*qa"):
        parse([*base, "--stage", "dance"])
    assert get_args(get_type_hints(RunArguments)["stage"]) == tuple(STAGES)


def test_missing_yaml_file_and_value_of_the_wrong_type(base):
    with pytest.raises(ValueError, match="no file 'nowhere.yaml'"):
        parse(["nowhere.yaml", *base])
    with pytest.raises(ValueError, match="learning_rate"):
        parse([*base, "--learning_rate", "fast"])


@pytest.mark.parametrize("words", [["--key", "s3cret"], ["--key=s3cret"], ["--wandb_key", "s3cret"]])
def test_the_key_is_exported_and_kept_nowhere_else(base, monkeypatch, words):
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setattr(sys, "argv", ["finetune.py", *base, *words])
    arguments = parse(sys.argv[1:])
    assert os.environ["WANDB_API_KEY"] == "s3cret"
    assert "s3cret" not in " ".join(sys.argv)
    assert "s3cret" not in json.dumps(arguments.flat())


@pytest.mark.parametrize("words", [["--hub_token", "s3cret"], ["--hub-token=s3cret"], ["FILE"]])
def test_the_token_of_the_hub_is_exported_and_kept_nowhere_else(base, monkeypatch, tmp_path, words):
    monkeypatch.setenv("HF_TOKEN", "")
    recipe = tmp_path / "x.yaml"
    recipe.write_text("hub_token: s3cret\n")
    words = [str(recipe), *base] if words == ["FILE"] else [*base, *words]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *words])
    arguments = parse(sys.argv[1:])
    assert os.environ["HF_TOKEN"] == "s3cret"
    assert arguments.training.hub_token is None
    assert "s3cret" not in " ".join(sys.argv) + json.dumps(arguments.flat())


def test_an_item_of_a_graph_retriever_is_a_batch_unless_flags_say_otherwise(tmp_path):
    words = ["--stage", "gfm_pretrain", "--data_path", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    training = parse(words).training
    assert (training.per_device_train_batch_size, training.per_device_eval_batch_size) == (1, 1)
    assert training.prediction_loss_only is False
    assert training.label_names == ["graph_index"]
    with pytest.raises(ValueError, match="--questions_per_batch"):
        parse([*words, "--per_device_train_batch_size", "8"])


def test_several_data_sets_are_a_list_and_one_is_recorded_as_it_was_given(tmp_path, base):
    words = ["--stage", "gfm_pretrain", "--output_dir", str(tmp_path / "out"), "--data_path", str(tmp_path)]
    assert parse(words).flat()["data_path"] == str(tmp_path)
    assert parse([*words, str(tmp_path)]).flat()["data_path"] == [str(tmp_path)] * 2
    assert parse(base).data.path == base[base.index("--data_path") + 1]


def test_a_key_without_a_value_is_refused(base):
    with pytest.raises(ValueError, match="without a value"):
        parse([*base, "--key"])


def test_the_finetune_command_of_knowledge_update_parses(base, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "")
    arguments = parse(
        [*base, *"--key K --use_wandb True --wandb_run_name run-lora --bf16 True --num_train_epochs 20".split()]
        + "--per_device_train_batch_size 32 --per_device_eval_batch_size 8 --gradient_accumulation_steps 8".split()
        + "--validation True --validation_size 1000 --logging_strategy steps --logging_steps 4".split()
        + "--eval_strategy steps --eval_steps 4 --save_strategy steps --save_total_limit 3".split()
        + "--learning_rate 1e-5".split()
    )
    assert arguments.adaptation == "lora"
    assert (arguments.data.validation, arguments.data.validation_size) == (True, 1000)
    assert arguments.training.report_to == ["wandb"]
    assert arguments.training.run_name == "run-lora"


def deepspeed(tmp_path, **blocks) -> str:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(blocks))
    return str(path)


def filled(folder, name):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    return str(folder)


RETRIEVER = {
    "stage": "gfm_pretrain", "model_name_or_path": None, "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1, "prediction_loss_only": False,
}  # fmt: skip


# One row for each row of CHECKS: flags that it refuses, and the machine they are refused on.
ROWS = {
    "no model": lambda t: ({"model_name_or_path": None}, CPU),
    "no data": lambda t: ({"data_path": None}, CPU),
    "missing data": lambda t: ({"data_path": [str(t / "nowhere")]}, CPU),
    "several data sets": lambda t: ({"data_path": [str(t), str(t)]}, CPU),
    "file instead of a graph": lambda t: ({**RETRIEVER, "data_path": [str(t / "data.json")]}, CPU),
    "language model of a stage without one": lambda t: (
        {**RETRIEVER, "data_path": [str(t)], "model_name_or_path": "m"},
        CPU,
    ),
    "items that are batches": lambda t: (
        {**RETRIEVER, "data_path": [str(t)], "per_device_train_batch_size": 8},
        CPU,
    ),
    "questions per batch": lambda t: ({"questions_per_batch": 0}, CPU),
    "nodes per batch": lambda t: ({"nodes_per_batch": 0}, CPU),
    "divided encoder": lambda t: (
        {**RETRIEVER, "stage": "graph", "data_path": [str(t)], "deepspeed": "ds_configs/zero2.json"},
        CPU,
    ),
    "node states on the Hub": lambda t: (
        {**RETRIEVER, "stage": "graph", "data_path": [str(t)], "push_to_hub": True, "hub_model_id": "a/b"},
        CPU,
    ),
    "ZeRO-3 of a graph retriever": lambda t: (
        {**RETRIEVER, "data_path": [str(t)], "deepspeed": "ds_configs/zero3.json"},
        CPU,
    ),
    "no GPU": lambda t: ({"use_cpu": False}, CPU),
    "several GPUs without torchrun": lambda t: ({}, Machine(gpus=2, launched=False)),
    "no deepspeed": lambda t: ({"deepspeed": "ds_configs/zero2.json"}, CPU),
    "DeepSpeed by accelerate": lambda t: ({}, Machine(gpus=0, launched=True, accelerate_deepspeed=True)),
    "DeepSpeed without ZeRO": lambda t: ({"deepspeed": deepspeed(t, zero_optimization={"stage": 0})}, CPU),
    "DeepSpeed batch": lambda t: (
        {"deepspeed": deepspeed(t, train_batch_size=24, zero_optimization={"stage": 2})},
        Machine(gpus=0, launched=True, processes=2),
    ),
    "batch that does not divide": lambda t: (
        {"total_batch_size": 40},
        Machine(gpus=0, launched=True, processes=3),
    ),
    "batch said twice": lambda t: ({"total_batch_size": 8, "gradient_accumulation_steps": 2}, CPU),
    "bf16 on this hardware": lambda t: ({"bf16": True}, Machine(gpus=1, launched=True, bf16=False)),
    "DeepSpeed optimizer": lambda t: (
        {"deepspeed": deepspeed(t, optimizer={}, zero_optimization={"stage": 2})},
        CPU,
    ),
    "DeepSpeed scheduler": lambda t: (
        {"deepspeed": deepspeed(t, scheduler={}, zero_optimization={"stage": 2})},
        CPU,
    ),
    "ZeRO-3 save": lambda t: ({"deepspeed": deepspeed(t, zero_optimization={"stage": 3})}, CPU),
    "ZeRO-3 prediction": lambda t: ({"deepspeed": "ds_configs/zero3.json", "do_predict": True}, CPU),
    "FSDP on CPU": lambda t: ({"fsdp": True}, CPU),
    "fp16 and bf16": lambda t: ({"fp16": True, "bf16": True}, Machine(gpus=1, launched=False)),
    "fp16 on CPU": lambda t: ({"fp16": True}, CPU),
    "quantised without adapters": lambda t: ({"q_lora": True, "use_lora": False}, CPU),
    "quantised without bitsandbytes": lambda t: ({"q_lora": True}, CPU),
    "quantised with init_from": lambda t: ({"q_lora": True, "init_from": "x"}, CPU),
    "optimizer off the GPU": lambda t: (
        {"optim": "adamw_8bit", "deepspeed": "ds_configs/zero2_offload.json"},
        CPU,
    ),
    "engine": lambda t: ({"q_lora": True, "q_bits": 8, "deepspeed": "ds_configs/zero3.json"}, CPU),
    "start of adapters on a quantised model": lambda t: ({"q_lora": True, "lora_init": "pissa"}, CPU),
    "start of partitioned adapters": lambda t: ({"lora_init": "olora", "deepspeed": "ds_configs/zero3.json"}, CPU),
    "start with DoRA": lambda t: ({"lora_init": "pissa", "use_dora": True}, CPU),
    "loftq without 4 bits": lambda t: ({"lora_init": "loftq"}, CPU),
    "step of a graph retriever": lambda t: ({**RETRIEVER, "data_path": [str(t)], "inspect_step": 1}, CPU),
    "step without training": lambda t: ({"do_train": False, "do_eval": True, "inspect_step": 1}, CPU),
    "label smoothing": lambda t: ({"label_smoothing_factor": 0.1}, CPU),
    "best model without evaluation": lambda t: ({"load_best_model_at_end": True}, CPU),
    "read-out of an alignment": lambda t: (
        {"stage": "align", "data_path": [str(t)], "graph_readout": "nodes"},
        CPU,
    ),
    "unused columns": lambda t: ({"remove_unused_columns": True}, CPU),
    "generation in the Trainer": lambda t: ({"prediction_loss_only": False}, CPU),
    "unrelated output": lambda t: ({"output_dir": filled(t / "photos", "cat.txt")}, CPU),
    "output over input": lambda t: ({"init_from": filled(t / "m", "run.json"), "output_dir": str(t / "m")}, CPU),
    "nothing to train": lambda t: ({"freeze_lm": True, "use_graph": False}, CPU),
    "learned tokens beside a graph": lambda t: ({"prompt_tuning": 4}, CPU),
    "sizes of splits": lambda t: ({"subset": 0}, CPU),
    "division of what is no table": lambda t: ({"data_path": [str(t)], "test_size": 3}, CPU),
    "documents that are not shown": lambda t: ({"documents": "docs", "context": "text"}, CPU),
    "base of a full model": lambda t: ({"include_base": True, "use_lora": False}, CPU),
    "name on the Hub": lambda t: ({"push_to_hub": True, "hub_model_id": "../model"}, CPU),
    "push without a name": lambda t: ({"push_to_hub": True}, CPU),
    "push of a local base": lambda t: (
        {"push_to_hub": True, "hub_model_id": "a/b", "model_name_or_path": str(t)},
        CPU,
    ),
    "hub strategy": lambda t: ({"hub_strategy": "all_checkpoints"}, CPU),
    "every save without saves": lambda t: (
        {"push_to_hub": True, "hub_model_id": "a/b", "hub_strategy": "every_save", "save_strategy": "no"},
        CPU,
    ),
    "push offline": lambda t: ({"push_to_hub": True, "hub_model_id": "a/b"}, CPU),
    "text style": lambda t: ({"text_style": "prose"}, CPU),
    "validation size": lambda t: ({"validation_size": 0}, CPU),
    "chat template file": lambda t: ({"chat_template": "nowhere.jinja"}, CPU),
    "json without dry run": lambda t: ({"json": "x.json"}, CPU),
    "checkpoint folder": lambda t: ({"resume_from_checkpoint": str(t)}, CPU),
    "nothing to do": lambda t: ({"do_train": False}, CPU),
    "speed of a graph retriever": lambda t: ({**RETRIEVER, "data_path": [str(t)], "packing": True}, CPU),
    "flash attention without a GPU": lambda t: ({"attn_implementation": "flash_attention_2"}, CPU),
    "flash attention in float32": lambda t: ({"attn_implementation": "flash_attention_2"}, Machine(1, True)),
    "Liger without a GPU": lambda t: ({"use_liger_kernel": True}, CPU),
    "Liger not installed": lambda t: ({"use_liger_kernel": True}, Machine(1, True)),
    "lengths of lazy rows": lambda t: (
        {"lazy_preprocess": True, "train_sampling_strategy": "group_by_length"},
        CPU,
    ),
}


def usable(tmp_path) -> Namespace:
    """Flags that no row refuses."""
    data = tmp_path / "data.json"
    data.write_text("[]")
    words = ["--model_name_or_path", "some/model", "--data_path", str(data), "--output_dir", str(tmp_path / "out")]
    return Namespace(**{**vars_of(parse(words)), "use_cpu": None})


def vars_of(arguments) -> dict:
    values = {}
    for room in vars(arguments).values():
        values |= vars(room)
    return values | {"eval_strategy": arguments.training.eval_strategy.value}


def test_every_row_of_checks_has_a_case():
    assert [check.name for check in CHECKS] == list(ROWS)


def test_a_table_is_divided(tmp_path):
    (tmp_path / "rows.csv").write_text("question,answer\na,b\n")
    for flags in ({"subset": 1}, {"split_seed": 1}, {"columns": ["question=a"]}, {"test_rows": "a=1"}):
        check_flags(Namespace(**vars(usable(tmp_path)) | {"data_path": [str(tmp_path / "rows.csv")]} | flags), CPU)
        with pytest.raises(ValueError, match="divide a table"):
            check_flags(Namespace(**vars(usable(tmp_path)) | {"data_path": [str(tmp_path)]} | flags), CPU)


def test_what_accelerate_asks_for_is_seen(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert Machine.here().accelerate_deepspeed


def test_flags_without_a_conflict_pass_every_row(tmp_path):
    check_flags(usable(tmp_path), CPU)
    check_flags(usable(tmp_path), Machine(gpus=8, launched=True))


@pytest.mark.parametrize("name", ROWS)
def test_each_row_refuses_its_combination_in_one_sentence_of_its_own(tmp_path, monkeypatch, name):
    changes, machine = ROWS[name](tmp_path)
    missing = {"quantised without bitsandbytes": "bitsandbytes", "no deepspeed": "deepspeed"}
    missing = (missing | {"Liger not installed": "liger_kernel"}).get(name)
    find = engine_checks.importlib.util.find_spec
    monkeypatch.setattr(
        engine_checks.importlib.util, "find_spec", lambda one, *rest: None if one == missing else find(one, *rest)
    )
    flags = Namespace(**{**vars(usable(tmp_path)), **changes})
    check = next(check for check in CHECKS if check.name == name)
    assert check.refused(flags, machine)
    with pytest.raises(ValueError) as raised:
        check_flags(flags, machine)
    message = str(raised.value)
    assert message == sentence(check, flags, machine)
    assert "{" not in message and message.endswith(".")


@pytest.mark.parametrize("name", ["name", "me/", "/me/model", "me/../model", "a/b/c", "me/model.git", "m e/model"])
def test_a_name_that_the_hub_could_not_have_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is no name on the Hub"):
        parse(["--publish", str(tmp_path), "--hub_model_id", name])


def test_a_folder_is_published_without_a_model_or_data_to_train_with(tmp_path):
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        parse(["--publish", str(tmp_path), "--hub_model_id", "me/model"])


def test_missing_and_malformed_deepspeed_files_are_named(base, tmp_path):
    with pytest.raises(ValueError, match="nowhere.json: no such file"):
        parse([*base, "--deepspeed", "nowhere.json"])
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        parse([*base, "--deepspeed", str(tmp_path / "ds.json")])


@pytest.mark.parametrize(
    "name",
    ["rejected.jsonl", "rejected_train.jsonl", "_preprocessed", "metrics.json", "predictions.jsonl.partial0"],
)
def test_what_a_dry_run_or_an_evaluation_leaves_does_not_make_a_folder_foreign(tmp_path, name):
    flags = Namespace(**{**vars(usable(tmp_path)), "output_dir": filled(tmp_path / "out", name)})
    check_flags(flags, CPU)
    filled(tmp_path / "out", "cat.txt")
    with pytest.raises(ValueError, match="is not empty"):
        check_flags(flags, CPU)


def test_a_collection_without_a_graph_is_its_conversations(tmp_path):
    (tmp_path / "conversations.json").write_text("[]")
    assert DataArguments(data_path=[str(tmp_path)]).path == str(tmp_path / "conversations.json")
    (tmp_path / "graph").mkdir()
    assert DataArguments(data_path=[str(tmp_path)]).path == str(tmp_path)
