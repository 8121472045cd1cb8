"""A run that is stopped and started again ends as if it had not been stopped: the same weights to the last digit."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_finetune import losses, trained
from tiny_world import flags, write_dataset
from transformers import TrainerCallback

import finetune
from data_processor.collator import GraphCollator
from training.arguments import parse
from training.callbacks import COMPLETE, checkpoints, last_whole_checkpoint
from training.dry_run import rendered
from training.engines import RunningEngine, running_engine
from training.machine import Machine
from training.record import check_same_run, write_run
from training.resume import fit

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


def test_groups_of_like_length_are_the_same_ones_after_a_stop(language_model_folder, data, tmp_path):
    def argv(name: str) -> list[str]:
        grouped = ["--train_sampling_strategy", "group_by_length", "--max_steps", "12"]
        return flags(language_model_folder, data, tmp_path / name, *SAVING, *grouped)

    _, _, whole, _ = run(argv("whole"))
    with pytest.raises(KeyboardInterrupt):
        run(argv("stopped"), StopAfter(9))  # in the second of two epochs
    _, _, resumed, _ = run(argv("stopped"))
    assert losses(resumed) == losses(whole)
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(language_model_folder, data, tmp_path):
    too_fast = [*SAVING, "--save_steps", "1", "--learning_rate", "1e30", "--max_grad_norm", "0"]
    with pytest.raises(ValueError, match=r"The loss of step (\d+) is (nan|inf)") as raised:
        run(flags(language_model_folder, data, tmp_path / "out", *too_fast))
    step = int(raised.value.args[0].split()[4])
    last = last_whole_checkpoint(tmp_path / "out")
    assert last.name == f"checkpoint-{step - 1}" and str(last) in str(raised.value)
    assert all(torch.isfinite(one).all() for one in weights(last).values())


class BreakAt(TrainerCallback):
    """Makes a weight infinite at the end of a step, as a gradient would that is not finite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        if state.global_step + 1 == self.step:
            next(one for one in model.parameters() if one.requires_grad).data.view(-1)[0] = torch.inf


def test_weights_that_are_no_numbers_are_never_a_whole_checkpoint(language_model_folder, data, tmp_path):
    argv = flags(language_model_folder, data, tmp_path / "out", *SAVING)
    with pytest.raises(ValueError, match="After step 4 1 weights hold numbers that are not finite"):
        run(argv, BreakAt(4))
    assert last_whole_checkpoint(tmp_path / "out").name == "checkpoint-2"


def test_a_full_disk_ends_the_run_before_part_of_a_checkpoint_is_written(
    language_model_folder, data, tmp_path, monkeypatch
):
    argv = flags(language_model_folder, data, tmp_path / "out", *SAVING)
    full = SimpleNamespace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr("training.callbacks.shutil.disk_usage", lambda folder: full)
        with pytest.raises(ValueError, match="has 0 MiB left.*goes on from checkpoint-2"):
            run(argv)
    assert list(checkpoints(tmp_path / "out")) == [2]
    assert run(argv)[2].state.global_step == 4


def test_a_checkpoint_that_could_not_be_written_whole_is_not_gone_on_from(language_model_folder, data, tmp_path):
    argv = flags(language_model_folder, data, tmp_path / "out", *SAVING)

    class NoSpace(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 4:  # from here on no file may grow past so many bytes
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            run(argv, NoSpace())
        except BaseException:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert last_whole_checkpoint(tmp_path / "out").name == "checkpoint-2"
    assert (tmp_path / "out" / "checkpoint-4").is_dir()
    assert run(argv)[2].state.global_step == 4


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_inspect_step_shows_what_the_step_reads(language_model_folder, data, tmp_path, monkeypatch, capsys, sampling):
    seen = []
    collate = GraphCollator.__call__
    with monkeypatch.context() as patch:
        patch.setattr(GraphCollator, "__call__", lambda self, rows: seen.append(rows) or collate(self, rows))
        more = ["--max_steps", "14", "--gradient_accumulation_steps", "2", "--train_sampling_strategy", sampling]
        argv = flags(language_model_folder, data, tmp_path / "out", "--per_device_train_batch_size", "2", *more)
        _, _, trainer, _ = run(argv)
    for step in (2, 9, 12):  # 6 steps an epoch
        capsys.readouterr()
        assert finetune.main([*argv, "--inspect_step", str(step)]) == {}
        shown = capsys.readouterr().out
        rows = [row for batch in seen[2 * (step - 1) : 2 * step] for row in batch]
        texts = [rendered(row, trainer.processing_class) for row in rows]
        assert f"step {step}: 4 examples" in shown
        assert all(text in shown for text in texts) and shown.count("of the file, id 'train-") == 4
    with pytest.raises(ValueError, match="has the steps 1 to 14"):
        finetune.main([*argv, "--inspect_step", "15"])


def marked(folder: Path, engine: str, processes: int) -> Path:
    folder.mkdir()
    (folder / COMPLETE).write_text(json.dumps({"engine": engine, "processes": processes}))
    return folder


def test_only_engines_whose_states_fit_another_number_of_processes_go_on(data, tmp_path):
    def training(*more: str):
        return parse(["--model_name_or_path", "m", "--data_path", str(data), *more]).training

    fit(marked(tmp_path / "a", "DDP", 2), training())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / COMPLETE).touch()  # of a version that wrote no more
    fit(tmp_path / "b", training())
    for name, engine, flags_now in (
        ("c", "ZeRO-3", ["--deepspeed", "ds_configs/zero3.json"]),
        ("d", "ZeRO-2", []),
        ("e", "DDP", ["--deepspeed", "ds_configs/zero2.json"]),
    ):
        with pytest.raises(ValueError, match=f"was written by {engine} on 2 processes"):
            fit(marked(tmp_path / name, engine, 2), training(*flags_now))


def test_the_same_examples_a_step_on_any_number_of_processes(data, tmp_path):
    words = ["--model_name_or_path", "m", "--data_path", str(data), "--total_batch_size", "16"]
    words += ["--per_device_train_batch_size", "4"]
    assert parse(words).training.gradient_accumulation_steps == 4
    one = {"arguments": parse(words).flat(), "processes": 1}
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / COMPLETE).touch()
    write_run(tmp_path, one["arguments"], {}, 1, {})
    two_processes = Machine(gpus=0, launched=True, processes=2)
    assert two_processes.accumulation(parse(words).training) == 2
    two = one["arguments"] | {"gradient_accumulation_steps": 2}
    check_same_run(tmp_path, two, {}, 2)
    with pytest.raises(ValueError, match="processes .--total_batch_size"):
        check_same_run(tmp_path, one["arguments"], {}, 2)


def test_an_engine_that_did_not_come_up_ends_the_run(monkeypatch):
    trainer = SimpleNamespace(model_wrapped=torch.nn.Linear(1, 1))
    args = SimpleNamespace(fsdp=None, deepspeed=None, world_size=1, device=torch.device("cpu"))
    assert running_engine(trainer) == "one process"
    RunningEngine(trainer).on_train_begin(args, None, None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP2 was asked for, but one process came up"):
        RunningEngine(trainer).on_train_begin(args, None, None)


def in_a_child(argv: list[str]) -> int:
    """Starts finetune.main(argv) in a copy of this process, which has imported all that it needs; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        finetune.main(argv)
    except BaseException:
        os._exit(1)
    os._exit(0)


def ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def kill_at(child: int, output: Path, seconds: float | None) -> str:
    """Kills a child after so many seconds, or (None) once a checkpoint is being written; says what was there then."""
    begun = time.monotonic()
    while not ended(child):
        half = [folder for folder in checkpoints(output).values() if not (folder / COMPLETE).exists()]
        if half if seconds is None else time.monotonic() - begun > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return half[0].name if half else "between checkpoints"
        time.sleep(0.001)
    return "ended before"


@pytest.mark.kill
@pytest.mark.parametrize("part", ["smoke", "all"])
def test_a_run_killed_at_any_moment_ends_with_the_weights_of_an_uninterrupted_one(
    language_model_folder, data, tmp_path, part
):
    """Sixty steps, killed at twenty moments: fifteen drawn from the whole length of the run, five while it saves."""

    def argv(name: str) -> list[str]:
        more = ["--save_steps", "3", "--max_steps", "60", "--save_total_limit", "2"]
        return flags(language_model_folder, data, tmp_path / name, *SAVING, *more)

    run(argv("warm"))  # what is imported late is imported before the copies are made
    begun = time.monotonic()
    assert os.waitpid(in_a_child(argv("whole")), 0)[1] == 0
    length = time.monotonic() - begun
    moments = [*np.random.default_rng(0).uniform(0, 0.9 * length, 15), *[None] * 5]
    there = []
    for number, seconds in enumerate(moments if part == "all" else [moments[0], None]):
        name = f"killed{number}"
        there.append(kill_at(in_a_child(argv(name)), tmp_path / name, seconds))
        assert os.waitpid(in_a_child(argv(name)), 0)[1] == 0
        assert_same(tmp_path / "whole", tmp_path / name)
        state = tmp_path / name / "checkpoint-60" / "trainer_state.json"
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
        assert [row["step"] for row in history if "loss" in row] == list(range(1, 61))
    assert sum(one.startswith("checkpoint") for one in there) >= (5 if part == "all" else 1), there
    assert there.count("ended before") <= 2, there


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
    lines = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    for rows in (record["log_history"], lines):
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 41))


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
