"""A run that is stopped and started again ends as if it had not been stopped: the same weights to the last digit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_finetune import losses, trained
from tiny_world import flags, write_dataset
from transformers import TrainerCallback

import finetune
from training.callbacks import COMPLETE, last_whole_checkpoint

ROOT = Path(__file__).resolve().parent.parent
# dropout, shuffling and a falling rate: all of them must go on where they were
SAVING = ["--save_strategy", "steps", "--save_steps", "2", "--lora_dropout", "0.1", "--lr_scheduler_type", "linear"]
ADAPTATIONS = {"lora": [], "frozen": ["--freeze_lm", "True"], "full": ["--use_lora", "False"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world"))


class StopAfter(TrainerCallback):
    """Ends the process's training as an exception would, at a step between two checkpoints."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def run(argv: list[str], *callbacks: TrainerCallback):
    build = finetune.build_trainer

    def with_callbacks(*arguments):
        trainer = build(*arguments)
        for callback in callbacks:
            trainer.add_callback(callback)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "build_trainer", with_callbacks)
        return trained(patch, argv)


def weights(folder: Path) -> dict:
    names = ("adapter_model.safetensors", "model.safetensors")
    return next(load_file(folder / name) for name in names if (folder / name).is_file())


def assert_same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].equal(other[name]), name


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(
    language_model_folder, data, tmp_path, adaptation
):
    def argv(name: str) -> list[str]:
        more = [*SAVING, *ADAPTATIONS[adaptation], "--max_steps", "6"]
        return flags(language_model_folder, data, tmp_path / name, *more)

    _, _, whole, _ = run(argv("whole"))
    with pytest.raises(KeyboardInterrupt):
        run(argv("stopped"), StopAfter(5))
    assert last_whole_checkpoint(tmp_path / "stopped").name == "checkpoint-4"
    _, _, resumed, _ = run(argv("stopped"))
    assert losses(resumed) == losses(whole)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_a_checkpoint_without_its_marker_is_not_resumed_from(language_model_folder, data, tmp_path, caplog):
    argv = flags(language_model_folder, data, tmp_path / "out", *SAVING)
    _, _, first, _ = run(argv)
    before = weights(tmp_path / "out")
    (tmp_path / "out" / "checkpoint-4" / COMPLETE).unlink()
    (tmp_path / "out" / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"cut off")
    assert last_whole_checkpoint(tmp_path / "out").name == "checkpoint-2"
    assert "checkpoint-4" in caplog.text
    _, _, again, _ = run(argv)
    assert losses(again) == losses(first)
    after = weights(tmp_path / "out")
    assert all(before[name].equal(after[name]) for name in before)
    assert (tmp_path / "out" / "checkpoint-4" / COMPLETE).exists()


def test_beginning_again_takes_the_marker_from_what_lies_ahead(language_model_folder, data, tmp_path):
    argv = flags(language_model_folder, data, tmp_path / "out", *SAVING)
    run(argv)
    with pytest.raises(KeyboardInterrupt):
        run([*argv, "--resume_from_checkpoint", "none"], StopAfter(1))
    assert last_whole_checkpoint(tmp_path / "out") is None


def test_a_finished_run_started_again_trains_nothing_and_ends_the_same(language_model_folder, data, tmp_path):
    argv = flags(language_model_folder, data, tmp_path / "out", *SAVING)
    _, _, first, _ = run(argv)
    before = weights(tmp_path / "out")
    _, _, again, _ = run(argv)
    assert again.state.global_step == 4
    assert losses(again) == losses(first)
    after = weights(tmp_path / "out")
    assert all(before[name].equal(after[name]) for name in before)


def test_a_run_with_other_arguments_does_not_continue_a_checkpoint(language_model_folder, data, tmp_path):
    run(flags(language_model_folder, data, tmp_path / "out", *SAVING))
    with pytest.raises(ValueError, match="other arguments"):
        finetune.main(flags(language_model_folder, data, tmp_path / "out", *SAVING, "--lora_r", "2"))


def test_data_that_changed_does_not_continue_a_checkpoint(language_model_folder, tmp_path):
    world = write_dataset(tmp_path / "world")
    argv = flags(language_model_folder, world, tmp_path / "out", *SAVING)
    run(argv)
    rows = (world / "qa" / "train.jsonl").read_text()
    (world / "qa" / "train.jsonl").write_text(rows.replace("what is next to", "what lies beside"))
    record = (tmp_path / "out" / "run.json").read_bytes()
    with pytest.raises(ValueError, match="the data that is trained on"):
        finetune.main(argv)
    assert (tmp_path / "out" / "run.json").read_bytes() == record


@pytest.mark.kill
def test_smoke_a_killed_process_resumes_to_the_same_result(language_model_folder, data, tmp_path):
    def argv(name: str) -> list[str]:
        return flags(language_model_folder, data, tmp_path / name, *SAVING, "--max_steps", "40")

    run(argv("whole"))
    kill_after_a_checkpoint(argv("killed"), tmp_path / "killed")
    begun = last_whole_checkpoint(tmp_path / "killed")
    assert begun is not None and not (tmp_path / "killed" / "adapter_model.safetensors").exists()
    run(argv("killed"))
    assert_same(tmp_path / "whole", tmp_path / "killed")
    record = json.loads((tmp_path / "killed" / "checkpoint-40" / "trainer_state.json").read_text())
    steps = [row["step"] for row in record["log_history"] if "loss" in row]
    assert steps == list(range(1, 41))


def kill_after_a_checkpoint(argv: list[str], output: Path) -> None:
    """Starts finetune.py and kills it, without warning, soon after its third checkpoint is whole."""
    settings = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it
    command = [sys.executable, "finetune.py", *argv]
    process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not (output / "checkpoint-6" / COMPLETE).exists():
        assert process.poll() is None and time.time() < deadline, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
