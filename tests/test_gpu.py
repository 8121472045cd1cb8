"""What only GPUs show: the Trainer's own FSDP2 and 4 bits under it. Skipped where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_distributed import error_lines
from test_finetune import losses, trained
from tiny_world import flags, write_dataset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is present"),
]
ROOT = Path(__file__).resolve().parent.parent
ADAPTATIONS = {"lora": [], "full": ["--use_lora", "False"], "four-bits": ["--q_lora", "True", "--bf16", "True"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_fsdp_through_the_trainer_equals_one_process(language_model_folder, data, tmp_path, monkeypatch, adaptation):
    gpus, more = torch.cuda.device_count(), [*ADAPTATIONS[adaptation], "--use_cpu", "False", "--total_batch_size", "4"]
    alone = flags(language_model_folder, data, tmp_path / "alone", *more)
    _, _, trainer, _ = trained(monkeypatch, alone)
    precision = "bf16" if "--bf16" in more else "no"
    more += ["--per_device_train_batch_size", str(4 // min(gpus, 4))]
    cases = {adaptation: flags(language_model_folder, data, tmp_path / "sharded", *more)}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate_fsdp.yaml"]
    command += ["--num_processes", str(min(gpus, 4)), "--mixed_precision", precision, "tests/distributed_worker.py"]
    done = subprocess.run(
        [*command, str(tmp_path / "report.json"), str(tmp_path / "cases.json")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, error_lines(done.stderr)
    report = json.loads((tmp_path / "report.json").read_text())[adaptation]
    assert report["engine"].startswith("FSDP") and report["dtensors"] == report["parameters"]
    assert report["losses"] == pytest.approx(losses(trainer), abs=1e-2 if precision == "bf16" else 1e-4)
