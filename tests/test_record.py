"""training/record.py: which run a folder's checkpoints belong to."""

import pytest

from training.arguments import ROOMS, parse
from training.record import FREE, check_same_run, is_free, write_run

DATA = {"train": "a"}


@pytest.fixture
def arguments(tmp_path) -> dict:
    (tmp_path / "data.json").write_text("[]")
    words = ["--model_name_or_path", "some/model", "--data_path", str(tmp_path / "data.json")]
    return parse([*words, "--output_dir", str(tmp_path / "out")]).flat()


@pytest.fixture
def folder(arguments, tmp_path):
    """The output of a run with a whole checkpoint."""
    (tmp_path / "out" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-4" / "complete").touch()
    write_run(tmp_path / "out", arguments, DATA, 1, {"train": 24})
    return tmp_path / "out"


@pytest.mark.parametrize(
    "name",
    [
        "text_style", "max_text_tokens", "model_max_length", "graph_norm", "graph_dropout", "max_graph_nodes",
        "graph_token_dropout", "lora_target_modules", "lora_dropout", "graph_learning_rate", "optim", "weight_decay",
        "model_revision", "chat_template", "projector_hidden_dim", "projector_scale", "dataloader_drop_last", "dtype",
        "lr_scheduler_type", "warmup_steps", "bf16", "train_split", "validation_size", "data_seed",
    ],
)  # fmt: skip
def test_a_flag_that_changes_the_weights_makes_another_run(folder, arguments, name):
    with pytest.raises(ValueError, match=f"other arguments: {name} "):
        check_same_run(folder, arguments | {name: "other"}, DATA)


@pytest.mark.parametrize("name", ["logging_steps", "save_total_limit", "max_steps", "activation_checkpointing"])
def test_a_flag_that_leaves_the_weights_alone_may_change(folder, arguments, name):
    check_same_run(folder, arguments | {name: 123}, DATA)


def test_other_rows_to_train_on_make_another_run_and_other_rows_to_answer_do_not(folder, arguments):
    check_same_run(folder, arguments, DATA | {"test": "b"})
    with pytest.raises(ValueError, match="the data that is trained on"):
        check_same_run(folder, arguments, {"train": "b"})


def test_without_a_whole_checkpoint_anything_may_begin(folder, arguments):
    (folder / "checkpoint-4" / "complete").unlink()
    check_same_run(folder, arguments | {"lora_r": 1}, {"train": "b"})


def test_every_free_flag_exists():
    known = {name for room in ROOMS for name in room.__dataclass_fields__} | {"local_rank"}
    assert FREE <= known and not is_free("lora_r")
