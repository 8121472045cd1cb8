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
QUANTISED = {"4": ["--q_lora", "True"], "8": ["--q_lora", "True", "--q_bits", "8"]}
FIVE_STEPS = ["--max_steps", "5"]
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
        per_process = ["--per_device_train_batch_size", "2", *FIVE_STEPS, *ONE_ROW]
        argv = {
            name: flags(language_model_folder, data, place / name, *per_process, *more) for name, more in cases.items()
        }
        (place / "cases.json").write_text(json.dumps(argv))
        torchrun(place / "report.json", place / "cases.json")
        return json.loads((place / "report.json").read_text()), place

    return start


def torchrun(*words: Path, worker: str = "distributed_worker", processes: int = 2, **environment: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", str(port), f"tests/{worker}.py", *map(str, words)]
    settings = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env={**settings, **environment}, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, error_lines(done.stderr)


@pytest.fixture(scope="module")
def alone(language_model_folder, data, tmp_path_factory):
    """Losses and evaluation loss of the same run in one process."""

    def start(*more: str) -> tuple[list[float], float]:
        output = tmp_path_factory.mktemp("alone")
        argv = flags(language_model_folder, data, output, *FIVE_STEPS, *TWO_ROWS, *more)
        with pytest.MonkeyPatch.context() as patch:
            _, metrics, trainer, _ = trained(patch, argv)
        return losses(trainer), metrics["eval_loss"]

    return start


def deepspeed(engine: str) -> list[str]:
    return [] if engine == "ddp" else ["--deepspeed", f"ds_configs/{engine}.json"]


def error_lines(text: str) -> str:
    """The tracebacks of the processes, without the launcher's own."""
    return "\n".join(line for line in text.splitlines() if line.startswith("[rank"))[-4000:] or text[-4000:]


def check(report: dict, expected: tuple[list[float], float]) -> None:
    assert report["world_size"] == 2
    assert len(report["losses"]) == 5
    assert report["losses"] == pytest.approx(expected[0], abs=1e-5)
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
    # DDP first: a process in which DeepSpeed has run keeps accelerate's settings of it
    engines = ("ddp", "zero1", "zero2", "zero3")
    cases = {f"{engine}-{name}": more for engine in engines for name, more in ADAPTATIONS.items()}
    cases["zero1-lora"] = [*ADAPTATIONS["lora"], *TWO_RATES]
    configs = {name: deepspeed(name.partition("-")[0]) for name in cases}
    reports, place = launch({name: [*more, *configs[name]] for name, more in cases.items()})
    for name, more in cases.items():
        report = reports[name]
        check(report, alone(*more))
        stage = None if name.startswith("ddp") else int(name[4])
        assert report["engine"] == ("DeepSpeedEngine" if stage else "DistributedDataParallel")
        assert report["stage"] == stage
        assert report["partitioned"] == (report["parameters"] if stage == 3 else 0)
        assert report["optimizer"] == "AdamW"
        check_folder(place / name, report, language_model_folder, data, tmp_path_factory)
    assert reports["zero1-lora"]["groups"] == [1e-3, 1e-2]


def test_every_weight_of_a_model_in_16_bits_trains_under_zero3_close_to_32(launch, alone):
    full = [*ADAPTATIONS["full"], "--deepspeed", "ds_configs/zero3.json"]
    reports, _ = launch({"bf16": [*full, "--bf16", "True"]})
    assert reports["bf16"]["partitioned"] == reports["bf16"]["parameters"]
    assert reports["bf16"]["losses"] == pytest.approx(alone(*ADAPTATIONS["full"])[0], abs=0.05)


def test_quantised_models_train_the_same_under_every_engine_that_takes_them(launch, alone):
    pytest.importorskip("bitsandbytes")
    # DDP first: a process in which DeepSpeed has run keeps accelerate's settings of it
    cases = {f"{engine}-{bits}": how for engine in ("ddp", "zero1", "zero2") for bits, how in QUANTISED.items()}
    cases["zero3-4"] = QUANTISED["4"]
    configs = {name: deepspeed(name.partition("-")[0]) for name in cases}
    reports, _ = launch({name: [*more, *configs[name]] for name, more in cases.items()})
    expected = {bits: alone(*how) for bits, how in QUANTISED.items()}
    for name, report in reports.items():
        engine, _, bits = name.partition("-")
        check(report, expected[bits])
        assert report["engine"] == ("DistributedDataParallel" if engine == "ddp" else "DeepSpeedEngine")
        assert report["partitioned"] == (report["parameters"] if engine == "zero3" else 0)
        assert "bitsandbytes" in report["optimizer_module"] and report["quantised"] > 0
    assert expected["4"] != expected["8"]


def test_dora_trains_the_same_under_every_engine(launch, alone):
    cases = {name: ["--use_dora", "True", *deepspeed(name)] for name in ("ddp", "zero2", "zero3")}
    reports, _ = launch(cases)
    for report in reports.values():
        check(report, alone("--use_dora", "True"))


@pytest.mark.slow  # DeepSpeed compiles its optimizer for the CPU the first time, which takes minutes
def test_states_and_parameters_on_the_cpu_train_the_same(launch, alone, language_model_folder, data, tmp_path_factory):
    kinds = ADAPTATIONS | {name: [*how, "--optim", "adamw_torch"] for name, how in QUANTISED.items()}
    cases = {f"{engine}-{name}": more for engine in ("zero2", "zero3") for name, more in kinds.items()}
    del cases["zero3-8"]
    reports, place = launch({n: [*more, *deepspeed(f"{n[:5]}_offload")] for n, more in cases.items()})
    for name, report in reports.items():
        check(report, alone(*cases[name]))
        assert report["optimizer"] == "DeepSpeedCPUAdam" and report["offloads"]
        assert report["partitioned"] == (report["parameters"] if "zero3" in name else 0)
        if name[-1] not in QUANTISED:
            check_folder(place / name, report, language_model_folder, data, tmp_path_factory)


def test_an_engine_that_a_cpu_does_not_have_ends_the_run(launch, tmp_path, language_model_folder, data):
    argv = {"fsdp": flags(language_model_folder, data, tmp_path / "out")}
    (tmp_path / "cases.json").write_text(json.dumps(argv))
    with pytest.raises(AssertionError, match="FSDP2 was asked for, but DDP came up .2 processes on cpu"):
        torchrun(tmp_path / "report.json", tmp_path / "cases.json", ACCELERATE_USE_FSDP="true")


@pytest.mark.parametrize("engine", ["ddp", "zero2"])
def test_a_run_goes_on_with_another_number_of_processes(launch, tmp_path, language_model_folder, data, engine):
    more = [*FIVE_STEPS, "--per_device_train_batch_size", "2", "--total_batch_size", "4", "--logging_steps", "1"]
    more += ["--save_strategy", "steps", "--save_steps", "2", *deepspeed(engine)]
    argv = flags(language_model_folder, data, tmp_path / "o", *more)
    (tmp_path / "cases.json").write_text(json.dumps({"run": argv}))
    places = tmp_path / "report.json", tmp_path / "cases.json"
    torchrun(*places)
    whole = json.loads(places[0].read_text())["run"]
    for folder in (tmp_path / "o").glob("checkpoint-[45]"):
        (folder / "complete").unlink()
    torchrun(*places, processes=1)
    again = json.loads(places[0].read_text())["run"]
    assert (again["world_size"], again["stage"]) == (1, 2 if engine == "zero2" else None)
    assert again["losses"][:2] == whole["losses"][:2] and len(again["losses"]) == 5
    assert again["losses"] == pytest.approx(whole["losses"], abs=1e-5)


def test_fully_sharded_layers_train_the_same_and_gather_to_the_same_weights(tmp_path, language_model_folder, data):
    """On a CPU the Trainer runs DDP where FSDP is asked for, so the step of accelerate that shards is called here."""
    torchrun(tmp_path / "report.json", language_model_folder, data, worker="fsdp_worker")
    for name, report in json.loads((tmp_path / "report.json").read_text()).items():
        assert report["sharded"]["parameters"] == report["sharded"]["dtensors"] > 0, name
        assert report["sharded"]["local"] < 0.6 * report["sharded"]["whole"], name
        assert report["sharded"]["losses"] == pytest.approx(report["alone"]["losses"], abs=1e-5), name
        assert report["largest_difference"] < 1e-4, name
        assert report["sharded"]["units"] == 5, name  # two layers, embedding with the tied head, last norm, the rest
        assert (report["sharded"]["quantised"] > 0) == (name == "4-bit")


def test_packed_rows_on_two_processes_equal_padded_ones_on_one(launch, alone):
    reports, _ = launch({"ddp": ["--packing", "True"], "zero3": ["--packing", "True", *deepspeed("zero3")]})
    expected = alone()
    assert (reports["ddp"]["engine"], reports["zero3"]["stage"]) == ("DistributedDataParallel", 3)
    assert reports["zero3"]["partitioned"] == reports["zero3"]["parameters"]
    for report in reports.values():
        check(report, expected)


def test_a_resumed_zero3_run_equals_the_uninterrupted_one(launch):
    zero3 = [*deepspeed("zero3")]
    saving = [*zero3, "--save_strategy", "steps", "--save_steps", "2"]
    reports, place = launch({"whole": saving})
    (place / "whole" / "checkpoint-4" / "complete").unlink()
    settings = (place / "cases.json").read_text()
    torchrun(place / "again.json", place / "cases.json")
    assert json.loads(settings)["whole"]
    again = json.loads((place / "again.json").read_text())["whole"]
    assert again["losses"] == reports["whole"]["losses"]
    assert again["partitioned"] == again["parameters"]


def test_smoke_the_aligner_on_two_processes_equals_one_with_all_pairs(tmp_path):
    """Uneven processes: three pairs on one, one on the other; contrast and negatives reach over both."""
    torchrun(tmp_path / "report.json", worker="aligner_worker")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["found"] == pytest.approx(report["expected"], rel=1e-5)
    assert report["largest"] > 0.1 and report["difference"] < 1e-5 * report["largest"] + 1e-6
