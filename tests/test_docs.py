"""What is written about commands is true: flags in shells/, configs/ and the README parse, links lead somewhere."""

import json
import os
import re
import shlex
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from training.arguments import ROOMS, _Parser, yaml_flags
from training.engines import markdown_table
from training.reach import reach
from training.sweep_plan import read_plan

ROOT = Path(__file__).resolve().parent.parent
SHELLS = sorted([*(ROOT / "shells").glob("*.sh"), *(ROOT / "shells").glob("*.sbatch")])
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
DS_CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
MARKDOWN = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if path.is_file()]


def known_flags() -> set[str]:
    return {action.dest for action in _Parser(ROOMS)._actions}


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return {**kept, "DRY_RUN": "1", **more}


def shell(*words: str, **more: str) -> str:
    done = subprocess.run(
        ["bash", *words], cwd=ROOT, env=environment(**more), capture_output=True, text=True, check=True
    )
    return done.stdout


def finetune_flags(line: str) -> list[str]:
    """The words after finetune.py in a command line; the names of flags must be known."""
    words = shlex.split(line)
    after = words[next(i for i, word in enumerate(words) if word.endswith("finetune.py")) + 1 :]
    for word in after:
        if word.startswith("--"):
            assert word.lstrip("-").partition("=")[0] in known_flags(), f"{word} in: {line}"
    if after and after[0].endswith(".yaml"):
        yaml_flags(str(ROOT / after[0]), known_flags())
    return after


def commands(path: Path) -> list[str]:
    """Lines inside code fences that start a program of ours, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh|shell)\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+#.*", "", line.removeprefix("$ ")) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.name)
def test_shells_parse_and_begin_strictly(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    if path.name != "common.sh":
        assert "set -euo pipefail" in path.read_text()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-m", "Qwen/Qwen2.5-7B-Instruct", "-d", "DATA FOLDER", "--deepspeed", "ds_configs/zero3.json"],
        ["configs/finetune_lora.yaml", "--learning_rate", "1e-4", "--graph_encoder", "gat"],
    ],
)
@pytest.mark.parametrize("gpus", ["0", "8"])
def test_the_finetune_shell_prints_commands_whose_flags_all_parse(words, gpus):
    printed = shell("shells/finetune_lora_ds.sh", *words, GPUS_PER_NODE=gpus).splitlines()
    lines = [line for line in printed if "finetune.py" in line]
    assert len(lines) == 1
    after = finetune_flags(lines[0])
    if not words:
        assert after == ["configs/demo.yaml"]
        return
    assert ("--nproc_per_node 8" in lines[0]) == (gpus == "8")
    if words[0] == "-m":
        assert after[after.index("--data_path") + 1] == "DATA FOLDER"
        assert after[after.index("--deepspeed") + 1] == "ds_configs/zero3.json"
    elif gpus == "8":
        assert after[after.index("--deepspeed") + 1] == "ds_configs/zero2.json"
    else:
        assert "--deepspeed" not in after


@pytest.mark.parametrize("name", ["pretrain_gfm", "finetune_gfm"])
@pytest.mark.parametrize("gpus", ["0", "8"])
def test_the_shells_of_the_graph_retriever_print_commands_whose_flags_all_parse(name, gpus):
    words = ["-d", "DATA FOLDER", "-d", "OTHER", "--output_dir", "O"]
    nodes = {"NNODES": "2", "MASTER_ADDR": "first"}
    (line,) = shell(f"shells/{name}.sh", *words, GPUS_PER_NODE=gpus, **nodes).splitlines()
    after = finetune_flags(line)
    assert after[0] == f"configs/gfm_{name.partition('_')[0]}.yaml"
    assert after[after.index("--data_path") + 1 :][:2] == ["DATA FOLDER", "OTHER"]
    assert "--nnodes 2" in line and f"--nproc_per_node {'8' if gpus == '8' else '1'} " in line
    for line in shell(f"shells/{name}.sh").splitlines():
        if "finetune.py" in line:
            finetune_flags(line)


def test_the_translators_shells_print_commands_whose_flags_all_parse():
    (first, second, evaluation) = shell("shells/train_translator.sh").splitlines()
    assert "--data output/translator_demo/data" in evaluation and "--alignment" in evaluation
    assert finetune_flags(first) == ["configs/demo_translator_stage1.yaml"]
    assert finetune_flags(second) == ["configs/demo_translator_stage2.yaml"]
    words = ["-m", "M", "-d", "DATA FOLDER", "--seed", "3", "--stage1", "--num_train_epochs", "5", "--stage2"]
    printed = shell("shells/train_translator.sh", *words, "--freeze_lm", "False", GPUS_PER_NODE="8", OUTPUT="O")
    one, two = [finetune_flags(line) for line in printed.splitlines() if "finetune.py" in line]
    assert one[0] == "configs/translator_stage1.yaml" and two[0] == "configs/translator_stage2.yaml"
    assert "--model_name_or_path" not in one and two[two.index("--model_name_or_path") + 1] == "M"
    assert one[one.index("--data_path") + 1] == two[two.index("--data_path") + 1] == "DATA FOLDER"
    assert one[one.index("--output_dir") + 1] == two[two.index("--init_from") + 1] == "O/stage1"
    assert "--num_train_epochs" in one and "--num_train_epochs" not in two and "--freeze_lm" in two
    assert one[one.index("--seed") + 1] == two[two.index("--seed") + 1] == "3"
    assert "produce --data D --limit 3" in shell("shells/produce.sh", "--data", "D", "--limit", "3")


def test_the_environment_gives_the_defaults_and_the_launch():
    variables = {"MODEL": "M", "DATA": "D", "DS_CONFIG_PATH": "ds_configs/zero1.json", "GPUS_PER_NODE": "4"}
    nodes = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "7000"}
    line = shell("shells/finetune_lora_ds.sh", **variables, **nodes)
    for part in ("--nnodes 2", "--node_rank 1", "--master_addr first", "--master_port 7000", "--nproc_per_node 4"):
        assert part in line
    for part in ("--model_name_or_path M", "--data_path D", "--deepspeed ds_configs/zero1.json"):
        assert part in line


@pytest.mark.parametrize("flag", [["--wandb_key", "s3cret"], ["--key=s3cret"], ["--hub_token", "s3cret"]])
def test_no_child_of_the_shell_carries_the_key(flag):
    assert "s3cret" not in shell("shells/finetune_lora_ds.sh", "-m", "M", "-d", "D", *flag, GPUS_PER_NODE="2")
    assert "s3cret" not in shell("shells/finetune_lora_ds.sh", "-m", "M", "-d", "D", WANDB_KEY="s3cret")


def test_a_shell_without_graph_or_questions_of_its_own_takes_away_and_checks_less(tmp_path):
    def lines(data: str, *words: str) -> tuple[list[str], str]:
        *asked, scored, _ = shell("shells/evaluate.sh", "M", data, *words).splitlines()
        return [re.search(r"--ablate (\S+)", line).group(1) for line in asked], scored

    (tmp_path / "table.csv").write_text("question,answer\n")
    for data in (str(tmp_path / "table.csv"), "owner/name"):
        asked, scored = lines(data)
        assert asked == ["none"] and "--data" not in scored
    asked, _ = lines("owner/name", "--context", "documents")
    assert asked == ["none", "question_only"]
    (tmp_path / "texts" / "qa").mkdir(parents=True)
    asked, scored = lines(str(tmp_path / "texts"))
    assert asked == ["none"] and "--data" in scored
    for room in ("graph", "qa"):
        (tmp_path / "whole" / room).mkdir(parents=True)
    asked, scored = lines(str(tmp_path / "whole"))
    assert asked == ["none", "zero", "shuffle", "no_text", "question_only"] and "--data" in scored


def refused(*words: str, **more: str) -> str:
    """What a shell says that ends with status 2; it is not a dry run."""
    kept = {name: value for name, value in environment(**more).items() if name != "DRY_RUN"}
    done = subprocess.run(["bash", *words], cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 2
    return done.stderr


def test_nodes_that_do_not_fit_each_other_are_one_sentence():
    def said(**more: str) -> str:
        return refused("shells/finetune_lora_ds.sh", "-m", "M", "-d", "D", **more).strip()

    assert said(NNODES="2", NODE_RANK="2", MASTER_ADDR="a").endswith("with NNODES=2 the nodes are 0 to 1.")
    assert said(NNODES="2").startswith("NNODES=2 needs MASTER_ADDR")
    assert said(NNODES="two").startswith("NNODES=two is not a whole number")
    assert said(NODE_RANK="-1").startswith("NODE_RANK=-1 is not a whole number")
    assert "FSDP would fall back" in refused("shells/finetune_qlora_fsdp.sh", "-m", "M", "-d", "D", GPUS_PER_NODE="0")


def test_a_first_node_that_does_not_answer_is_named_with_its_address():
    with socket.socket() as free:  # bound and not listening: refused at once
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(ValueError, match=f"MASTER_ADDR=localhost MASTER_PORT={port} did not answer for 1 seconds"):
            reach("localhost", port, seconds=1)
        assert 1 <= time.monotonic() - began < 10
        free.listen()
        reach("localhost", port, seconds=1)


def test_a_run_that_may_restart_is_started_by_torchrun_and_goes_on_by_itself():
    line = shell("shells/finetune_lora_ds.sh", "-m", "M", "-d", "D", "--max_restarts", "3", GPUS_PER_NODE="0")
    assert "--nproc_per_node 1" in line and "--max_restarts 3" in line
    assert "--max_restarts" not in line.partition("finetune.py")[2]


@pytest.mark.parametrize(
    ("name", "recipe", "engine"),
    [
        ("finetune_full_ds", "configs/finetune_full.yaml", "--deepspeed ds_configs/zero3.json"),
        ("finetune_qlora_fsdp", "configs/finetune_qlora.yaml", "--config_file configs/accelerate_fsdp.yaml"),
    ],
)
def test_shells_of_large_models_start_their_engine_on_every_gpu(name, recipe, engine):
    nodes = {"GPUS_PER_NODE": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first"}
    line = shell(f"shells/{name}.sh", "-m", "M", "-d", "D", **nodes)
    assert engine in line and finetune_flags(line)[0] == recipe
    assert "--num_processes 16" in line or "--nproc_per_node 8" in line


def test_the_slurm_script_tells_every_task_its_node(tmp_path):
    stand_ins = {"scontrol": "printf 'first\nsecond\n'", "srun": 'SLURM_NODEID=1 exec "$@"'}
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}
    variables |= {"SLURM_GPUS_ON_NODE": "4", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = shell("shells/slurm.sbatch", "-m", "M", "-d", "D", **variables)
    for part in ("--nnodes 2", "--node_rank 1", "--master_addr first", "--master_port 20007", "--nproc_per_node 4"):
        assert part in line


def test_the_table_of_engines_in_the_readme_is_the_one_that_refuses():
    assert markdown_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_more_gpus_than_there_are_is_one_sentence():
    assert "GPUS_PER_NODE=64" in refused("shells/finetune_lora_ds.sh", "-m", "M", GPUS_PER_NODE="64")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_says_its_command_and_its_keys_parse(path):
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\n\n") if "\n\n" in text else len(text)]
    named = re.findall(r"^#.*(?:python|bash|torchrun|accelerate) (.*)$", header, flags=re.MULTILINE)
    assert named, "the header names no command"
    assert isinstance(yaml.safe_load(text), dict)
    if any("finetune" in line for line in named) and "accelerate launch" not in header:
        yaml_flags(str(path), known_flags())


def test_the_sweep_shell_hands_on_file_and_flags():
    printed = shell("shells/sweep.sh", "-m", "M", "-d", "D E", "--lora_r", "4", OUTPUT="O").splitlines()
    assert shlex.split(printed[0]) == [
        *("python", "-m", "training.sweep", "configs/sweep.yaml", "--model_name_or_path", "M", "--data_path", "D E"),
        *("--lora_r", "4", "--output_dir", "O"),
    ]
    assert printed[1] == "python -m evaluation report O --output O/report.html"
    assert "training.sweep configs/sweep_demo.yaml --output_dir output/sweep" in shell("shells/sweep.sh")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("sweep*.yaml")), ids=lambda path: path.name)
def test_every_sweep_is_a_plan_whose_flags_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = read_plan(path, {})
    named = [plan.recipe, plan.trial_flags, *(flags for stage in plan.stages for flags in (stage.flags, stage.space))]
    assert {name for flags in named for name in flags} <= known_flags()


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.name)
def test_deepspeed_files_leave_to_the_trainer_what_it_owns(path):
    config = json.loads(path.read_text())
    assert config["zero_optimization"]["stage"] == int(re.search(r"\d", path.name).group())
    assert "optimizer" not in config and "scheduler" not in config
    for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[name] == "auto"
    assert config["gradient_clipping"] == config["bf16"]["enabled"] == config["fp16"]["enabled"] == "auto"
    if config["zero_optimization"]["stage"] == 3:
        assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_commands_in_the_documentation_name_files_and_flags_that_exist(path):
    for line in commands(path):
        for word in shlex.split(line):
            if re.fullmatch(r"(?:shells|configs|ds_configs|benchmarks)/\S+\.\w+", word) or word == "finetune.py":
                assert (ROOT / word).is_file(), f"{word} in: {line}"
        module = re.search(r"python -m (data_processor|evaluation|serving)(?:\.(\w+))?", line)
        if module:
            assert (ROOT / module[1] / f"{module[2] or '__main__'}.py").is_file(), line
        if "finetune.py" in line:
            finetune_flags(line)
        elif "finetune_lora_ds.sh" in line and "git clone" not in line:
            words = shlex.split(line)
            after = words[next(i for i, word in enumerate(words) if word.endswith("finetune_lora_ds.sh")) + 1 :]
            finetune_flags(shell("shells/finetune_lora_ds.sh", *after).splitlines()[-1 if after else 1])


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_local_links_of_the_documentation_lead_to_files(path):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_the_default_test_run_leaves_out_what_pyproject_says():
    text = (ROOT / "pyproject.toml").read_text()
    for marker in ("data", "slow", "distributed", "kill", "web", "gpu"):
        assert f"not {marker}" in text


def test_no_tracked_text_names_a_machines_path_or_holds_a_key():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in (".py", ".sh", ".md", ".yaml", ".json", ".toml", ".txt"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(r"(?<![\w.\-])/(?:root|home|Users)/\w", text), name
            assert not re.search(r"\bhf_[A-Za-z0-9]{30,}\b|\bwandb_v1_\w{20,}\b|\bsk-[A-Za-z0-9]{30,}\b", text), name
