"""Two nodes of one process each on this machine, started by the shell as a user does; one dies and they recover."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from tiny_world import flags, write_dataset

import finetune
from training.callbacks import COMPLETE

pytestmark = [pytest.mark.distributed, pytest.mark.kill]
ROOT = Path(__file__).resolve().parent.parent
STEPS = 40


@pytest.fixture(scope="module")
def recipe(language_model_folder, tmp_path_factory) -> Path:
    """A YAML file of a run of forty steps; dropout draws from each process's own random state and is off."""
    place = tmp_path_factory.mktemp("nodes")
    words = flags(language_model_folder, write_dataset(place / "world"), place, "--save_strategy", "steps")
    words += ["--save_steps", "4", "--per_device_train_batch_size", "2", "--total_batch_size", "4"]
    values = dict(zip((word.removeprefix("--") for word in words[::2]), map(yaml.safe_load, words[1::2]), strict=True))
    values |= {"learning_rate": 1e-2, "max_steps": STEPS}
    (place / "run.yaml").write_text(yaml.safe_dump(values))
    return place / "run.yaml"


class Nodes:
    """Both shells of one run."""

    def __init__(self, recipe: Path, output: Path, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = free.getsockname()[1]
        self.words = ["bash", "shells/finetune_lora_ds.sh", str(recipe), "--output_dir", str(output), *more]
        self.shells = [self._start(rank) for rank in (0, 1)]

    def _start(self, rank: int) -> subprocess.Popen:
        told = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        settings = {**os.environ, "VIRTUAL_ENV": sys.prefix, "GPUS_PER_NODE": "0", "OMP_NUM_THREADS": "1", **told}
        return subprocess.Popen(
            self.words, cwd=ROOT, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def wait(self) -> list[int]:
        return [shell.wait(timeout=400) for shell in self.shells]

    def processes(self, rank: int) -> list[int]:
        """Of a node: the shell, torchrun below it, and the process that trains."""
        found = [self.shells[rank].pid]
        for one in found:
            listed = subprocess.run(["pgrep", "-P", str(one)], capture_output=True, text=True).stdout
            found += map(int, listed.split())
        return found


def wait_for(path: Path, nodes: Nodes) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert all(shell.poll() is None for shell in nodes.shells), "a node ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def weights(folder: Path) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def history(folder: Path) -> list[float]:
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text(encoding="utf-8"))
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def test_two_nodes_train_as_one_and_recover_when_a_process_or_a_node_dies(recipe, tmp_path):
    assert Nodes(recipe, tmp_path / "whole").wait() == [0, 0]
    marker = json.loads((tmp_path / "whole" / f"checkpoint-{STEPS}" / COMPLETE).read_text(encoding="utf-8"))
    assert marker == {"engine": "DDP", "processes": 2}
    finetune.main([str(recipe), "--output_dir", str(tmp_path / "alone")])
    assert history(tmp_path / "whole") == pytest.approx(history(tmp_path / "alone"), abs=1e-4)

    nodes = Nodes(recipe, tmp_path / "process", "--max_restarts", "3")
    wait_for(tmp_path / "process" / "checkpoint-8" / COMPLETE, nodes)
    os.kill(nodes.processes(1)[-1], signal.SIGKILL)
    assert nodes.wait() == [0, 0]

    nodes = Nodes(recipe, tmp_path / "node")
    wait_for(tmp_path / "node" / "checkpoint-8" / COMPLETE, nodes)
    for process in nodes.processes(1):
        os.kill(process, signal.SIGKILL)
    codes = nodes.wait()
    assert codes[0] != 0 and codes[1] == -signal.SIGKILL
    assert not (tmp_path / "node" / "adapter_model.safetensors").exists()
    assert Nodes(recipe, tmp_path / "node").wait() == [0, 0]

    expected = weights(tmp_path / "whole")
    for name in ("process", "node"):
        found = weights(tmp_path / name)
        assert all(found[key].equal(value) for key, value in expected.items()), name
        assert history(tmp_path / name) == history(tmp_path / "whole")
