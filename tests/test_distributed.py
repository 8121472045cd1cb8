"""Two processes train as one does, and the engine that was asked for is the one that ran."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_finetune import losses, trained
from tiny_world import flags, write_dataset

from modeling_graphllm import GraphLLMForConditionalGeneration

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).resolve().parent.parent
ADAPTATIONS = {"lora": [], "frozen": ["--freeze_lm", "True"], "full": ["--use_lora", "False"]}
TWO_RATES = ["--graph_learning_rate", "1e-3"]
# the Trainer averages an evaluation's loss over the batches of all processes together, whose tokens differ
ONE_ROW = ["--do_eval", "True", "--per_device_eval_batch_size", "1"]
TWO_ROWS = ["--do_eval", "True", "--per_device_eval_batch_size", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def launch(language_model_folder, data, tmp_path_factory):
    """`launch({"name": flags})` -> what each run reported, all in one torchrun of two processes."""

    def start(cases: dict[str, list[str]]) -> tuple[dict, Path]:
        place = tmp_path_factory.mktemp("launch")
        per_process = ["--per_device_train_batch_size", "2", *ONE_ROW]
        argv = {
            name: flags(language_model_folder, data, place / name, *per_process, *more) for name, more in cases.items()
        }
        (place / "cases.json").write_text(json.dumps(argv))
        torchrun(place / "report.json", place / "cases.json")
        return json.loads((place / "report.json").read_text()), place

    return start


def torchrun(*words: Path, program: str = "tests/distributed_worker.py") -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, program, *map(str, words)],
        cwd=ROOT, env=settings, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, error_lines(done.stderr)


@pytest.fixture(scope="module")
def alone(language_model_folder, data, tmp_path_factory):
    """Losses and evaluation loss of the same run in one process."""

    def start(*more: str) -> tuple[list[float], float]:
        output = tmp_path_factory.mktemp("alone")
        argv = flags(language_model_folder, data, output, *TWO_ROWS, *more)
        with pytest.MonkeyPatch.context() as patch:
            _, metrics, trainer, _ = trained(patch, argv)
        return losses(trainer), metrics["eval_loss"]

    return start


def error_lines(text: str) -> str:
    """The tracebacks of the processes, without the launcher's own."""
    return text.partition("torch.distributed.elastic")[0][-4000:]


def check(report: dict, expected: tuple[list[float], float]) -> None:
    assert report["world_size"] == 2
    assert report["losses"] == pytest.approx(expected[0], abs=2e-5)
    # Adam turns the rounding of a sum into a step of either sign where a gradient is all but zero
    assert report["eval_loss"][-1] == pytest.approx(expected[1], abs=2e-3)


def check_folder(folder: Path, report: dict, language_model_folder, data, tmp_path_factory) -> None:
    """The saved folder evaluates, in one process, to the loss that two processes measured."""
    import finetune

    loaded = GraphLLMForConditionalGeneration.from_pretrained(folder)
    assert all(torch.isfinite(one).all() for one in loaded.parameters())
    output = tmp_path_factory.mktemp("reloaded")
    again = ["--init_from", str(folder), "--do_train", "False", *TWO_ROWS]
    metrics = finetune.main(flags(language_model_folder, data, output, *again))
    assert metrics["eval_loss"] == pytest.approx(report["eval_loss"][-1], abs=1e-4)


def test_smoke_data_parallel_and_zero2_equal_one_process(
    launch, alone, language_model_folder, data, tmp_path_factory
):
    reports, place = launch({"ddp": [], "zero2": ["--deepspeed", "ds_configs/zero2.json"]})
    expected = alone()
    assert reports["ddp"]["engine"] == "DistributedDataParallel"
    assert (reports["zero2"]["engine"], reports["zero2"]["stage"]) == ("DeepSpeedEngine", 2)
    for name in reports:
        check(reports[name], expected)
        check_folder(place / name, reports[name], language_model_folder, data, tmp_path_factory)


def test_every_zero_stage_and_adaptation_equals_one_process(
    launch, alone, language_model_folder, data, tmp_path_factory
):
    cases = {
        "zero1-lora": [*ADAPTATIONS["lora"], *TWO_RATES],
        "zero3-lora": ADAPTATIONS["lora"],
        "zero3-frozen": ADAPTATIONS["frozen"],
        "zero3-full": ADAPTATIONS["full"],
        "zero2-full": ADAPTATIONS["full"],
    }
    configs = {name: ["--deepspeed", f"ds_configs/{name.partition('-')[0]}.json"] for name in cases}
    reports, place = launch({name: [*more, *configs[name]] for name, more in cases.items()})
    for name, more in cases.items():
        report = reports[name]
        check(report, alone(*more))
        assert (report["engine"], report["stage"]) == ("DeepSpeedEngine", int(name[4]))
        assert report["partitioned"] == (report["parameters"] if name[4] == "3" else 0)
        assert report["optimizer"] == "AdamW"
        check_folder(place / name, report, language_model_folder, data, tmp_path_factory)
    assert reports["zero1-lora"]["groups"] == [1e-3, 1e-2]


def test_a_resumed_zero3_run_equals_the_uninterrupted_one(launch):
    zero3 = ["--deepspeed", "ds_configs/zero3.json"]
    saving = [*zero3, "--save_strategy", "steps", "--save_steps", "2"]
    reports, place = launch({"whole": saving})
    (place / "whole" / "checkpoint-4" / "complete").unlink()
    settings = (place / "cases.json").read_text()
    torchrun(place / "again.json", place / "cases.json")
    assert json.loads(settings)["whole"]
    again = json.loads((place / "again.json").read_text())["whole"]
    assert again["losses"] == reports["whole"]["losses"]
    assert again["partitioned"] == again["parameters"]
