"""A sweep whose trials are a stand-in for finetune.py: what it finds, what it refuses, what kill -9 leaves of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")

from training.sweep import given_flags, main, run_sweep
from training.sweep_plan import Range, read_plan

ROOT = Path(__file__).resolve().parent.parent
RATES = {"low": "1e-5", "high": 1.0, "log": True}  # as text: YAML reads 1e-5 so
STAGES = [
    {"name": "base", "trials": 4, "flags": {"use_lora": False}, "space": {"learning_rate": RATES}},
    {"name": "lora", "from": "base", "trials": 4, "space": {"lora_r": {"low": 2, "high": 16, "step": 2}}},
]
BOTH = {"eval_loss": "minimize", "accuracy": "maximize"}


def write_plan(folder: Path, **changes) -> Path:
    """A sweep of the stand-in in `folder`: two stages, two objectives."""
    (folder / "recipe.yaml").write_text("model_name_or_path: m\nlearning_rate: 0.001\n")
    values = {
        "recipe": str(folder / "recipe.yaml"), "output_dir": str(folder / "out"), "objectives": BOTH,
        "command": ["python", str(ROOT / "tests" / "sweep_stub.py")], "trial_flags": {"test_split": "validation"},
        "stages": STAGES,
    }  # fmt: skip
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values | changes))
    return folder / "sweep.yaml"


def sweep(folder: Path, **changes) -> dict:
    """sweep.json of a whole sweep."""
    run_sweep(read_plan(write_plan(folder, **changes), {}))
    return json.loads((folder / "out" / "sweep.json").read_text())


def states(record: dict) -> Counter:
    return Counter(trial["state"] for stage in record["stages"] for trial in stage["trials"])


def test_two_stages_end_in_a_recipe_with_the_best_values(tmp_path):
    record = sweep(tmp_path)
    assert states(record) == {"complete": 8}
    base, lora = record["stages"]
    assert base["trials"][0]["params"] == {"learning_rate": 0.001}, "the recipe itself comes first"
    losses = [trial["values"]["eval_loss"] for trial in base["trials"]]
    assert base["best"] == losses.index(min(losses)) and base["trials"][base["best"]]["in_front"]
    rate = base["trials"][base["best"]]["params"]["learning_rate"]
    assert lora["flags"] == {"model_name_or_path": "m", "learning_rate": rate}  # use_lora: false was the base's own
    assert [row["epoch"] for row in base["trials"][1]["evaluations"]] == [1.0, 2.0, 3.0]
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert best == base["flags"] | {"learning_rate": rate, "output_dir": str(tmp_path / "out" / "best")}
    assert "test_split" not in yaml.safe_load((tmp_path / "out" / "best_lora.yaml").read_text())
    before = (tmp_path / "out" / "base" / "begun.txt").read_text()
    assert sweep(tmp_path) == record and (tmp_path / "out" / "base" / "begun.txt").read_text() == before


def test_a_trial_that_is_worse_than_the_median_is_stopped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("training.sweep_trial.POLL", 0.05)
    space = {"learning_rate": [0.01, 0.011, 0.012, 0.9]}
    stage = {"name": "base", "trials": 6, "space": space}
    flags = {"pause": 0.2}
    record = sweep(tmp_path, stages=[stage], objectives={"eval_loss": "minimize"}, prune=True, trial_flags=flags)
    stopped = [trial for trial in record["stages"][0]["trials"] if trial["state"] == "pruned"]
    assert stopped and len(record["stages"][0]["trials"]) == 6
    for trial in stopped:
        assert trial["values"] == {} and not trial["in_front"]
        assert not (Path(trial["folder"]) / "metrics.json").exists() and len(trial["evaluations"]) < 3


def test_a_trial_without_a_number_or_without_an_end_fails_with_its_reason(tmp_path):
    rates = {"learning_rate": [0.001, 0.5]}
    one = [{"name": "base", "trials": 4, "space": rates}]
    for name, flag, said in (("a", "nan_above", "eval_loss is nan"), ("b", "refused_above", "The loss of step 3")):
        (tmp_path / name).mkdir()
        record = sweep(tmp_path / name, stages=one, trial_flags={flag: 0.1, "test_split": "validation"})
        failed = [trial for trial in record["stages"][0]["trials"] if trial["state"] == "failed"]
        assert failed and all(said in trial["reason"] and trial["params"]["learning_rate"] == 0.5 for trial in failed)
        assert len(failed) + states(record)["complete"] == 4


def test_a_sweep_whose_first_trials_all_fail_ends(tmp_path):
    one = [{"name": "base", "trials": 9, "space": {"learning_rate": [0.5, 0.6]}}]
    with pytest.raises(ValueError, match="the first 3 trials of stage base failed.* Lower --learning_rate"):
        sweep(tmp_path, stages=one, trial_flags={"refused_above": 0.1, "test_split": "validation"})


def test_the_storage_of_another_search_is_refused(tmp_path):
    sweep(tmp_path, stages=STAGES[:1])
    with pytest.raises(ValueError, match=r"Stage 'base' in .* another search: learning_rate was .*'high': 1.0"):
        narrow = {"learning_rate": {"low": 0.001, "high": 0.1, "log": True}}
        sweep(tmp_path, stages=[STAGES[0] | {"space": narrow}])
    with pytest.raises(ValueError, match="holds the study 'base' of another sweep; this one has first"):
        sweep(tmp_path, stages=[STAGES[0] | {"name": "first"}])
    assert len(sweep(tmp_path, stages=[STAGES[0] | {"trials": 5}])["stages"][0]["trials"]) == 5  # more of the same
    (tmp_path / "out" / "study.journal").write_text("not json\n")
    with pytest.raises(ValueError, match="is no journal of Optuna: b'not json'"):
        sweep(tmp_path, stages=STAGES[:1])


def test_a_journal_is_cut_only_while_no_other_worker_writes(tmp_path):
    from training.sweep_study import KernelLock, open_storage

    journal, line = tmp_path / "study.journal", b'{"op_code":'
    (tmp_path / "locks").mkdir()
    journal.write_bytes(line)  # another worker is in the middle of its line
    lock = KernelLock(tmp_path / "locks" / "journal")
    lock.acquire()
    opening = threading.Thread(target=open_storage, args=(tmp_path, ["base"]))
    opening.start()
    opening.join(0.3)
    kept = journal.read_bytes()
    lock.release()
    opening.join()
    assert kept == line and journal.read_bytes() == b""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prune": True}, "prunes by one objective only"),
        ({"prune": True, "objectives": {"accuracy": "maximize"}}, "accuracy is known only when a trial has ended"),
        ({"trial_flags": {}}, "accuracy is measured on the split 'test'"),
        ({"trial_flags": {"test_split": "train"}}, "accuracy is measured on the split 'train'"),
        (
            {"trial_flags": {"test_split": "validation", "validation_split": "test"}},
            "eval_loss is measured on the split 'test'",
        ),
        ({"objectives": {"eval_loss": "least"}}, "must be minimize or maximize"),
        ({"stagse": []}, "unknown key 'stagse'. Did you mean 'stages'"),
        ({"stages": [{"name": "a", "trials": 1, "space": {"x": {"low": 2, "high": 1}}}]}, "low 2 is above high 1"),
        ({"stages": [{"name": "a", "trials": 1, "space": {"x": 3}}]}, r"stages\[0\].space.x must be a list"),
        ({"stages": [{"name": "a", "trials": 1, "space": {"x": [1]}, "from": "b"}]}, "no earlier stage"),
        ({"stages": [{"name": "a", "trials": 1, "space": {"x": [1]}, "flags": {"x": 1}}]}, "both fixed"),
        ({"stages": [{"name": "a", "trials": 1, "space": {"x": {"low": 0, "high": 1, "step": 0}}}]}, "step 0 must be"),
        ({"stages": [{"name": "a", "trials": 1, "space": {"x": {"low": 0, "high": 9, "step": -1}}}]}, "step -1 must"),
        ({"recipe": "nowhere.yaml"}, "There is no file 'nowhere.yaml'"),
    ],
)
def test_a_plan_that_cannot_work_is_one_sentence(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        read_plan(write_plan(tmp_path, **changes), {})


def test_a_range_is_searched_on_its_grid_alone(tmp_path):
    halves, tenths = Range(0, 10, step=2.5), Range(0, 1, step=0.1)
    assert 7.5 in halves and 5 in halves and 3 not in halves and 0.3 in tenths and 0.35 not in tenths
    assert 3 in Range(0, 10) and 3.5 not in Range(0, 10) and 3.5 in Range(0.0, 10.0)
    space = {"lora_alpha": {"low": 0, "high": 10, "step": 2.5}, "lora_dropout": {"low": 0, "high": 1, "step": 0.1}}
    one = {"name": "base", "trials": 6, "space": space, "flags": {"learning_rate": 0.1}}
    tried = [trial["params"] for trial in sweep(tmp_path, stages=[one])["stages"][0]["trials"]]
    assert len(tried) == 6 and all(one["lora_alpha"] in halves and one["lora_dropout"] in tenths for one in tried)
    assert any(one["lora_alpha"] % 5 == 2.5 for one in tried)


def test_flags_behind_the_file_go_over_the_recipe(tmp_path, capsys):
    given = given_flags(["--data_path", "a", "b", "--learning_rate=2e-3", "--save_strategy", "no"])
    assert given == {"data_path": ["a", "b"], "learning_rate": 0.002, "save_strategy": "no"}
    assert read_plan(write_plan(tmp_path), given).recipe["data_path"] == ["a", "b"]
    with pytest.raises(SystemExit) as stop:
        main([str(write_plan(tmp_path)), "--data_path"])
    assert stop.value.code == 2 and "--data_path was given without a value" in capsys.readouterr().err


@pytest.mark.parametrize("room", ["words", "recipe", "flags", "trial_flags", "stage"])
def test_a_key_goes_to_the_environment_and_into_no_file(tmp_path, monkeypatch, room):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("WANDB_API_KEY", "")
    secrets, words = {"hub_token": "s3cret", "wandb_key": "k3y"}, []
    changes = {"stages": [STAGES[0] | {"trials": 1}]}
    if room == "words":
        words = ["--hub_token=s3cret", "--wandb-key", "k3y"]
    elif room == "stage":
        changes["stages"][0]["flags"] = secrets
    elif room == "trial_flags":
        changes[room] = {"test_split": "validation"} | secrets
    elif room == "flags":
        changes[room] = secrets
    path = write_plan(tmp_path, **changes)
    if room == "recipe":
        with open(tmp_path / "recipe.yaml", "a") as file:
            file.write("hub_token: s3cret\nwandb_key: k3y\n")
    main([str(path), *words])
    assert (os.environ["HF_TOKEN"], os.environ["WANDB_API_KEY"]) == ("s3cret", "k3y")
    files = [one for one in (tmp_path / "out").rglob("*") if one.is_file()]
    assert {"sweep.json", "best.yaml", "study.journal", "trial_000.yaml"} <= {one.name for one in files}
    assert not [one.name for one in files if b"s3cret" in one.read_bytes() or b"k3y" in one.read_bytes()]


@pytest.mark.slow
def test_finetune_itself_is_swept(tmp_path, language_model_folder):
    from tests.tiny_world import flags, write_dataset

    words = flags(language_model_folder, write_dataset(tmp_path / "data"), tmp_path / "unused")
    plan = write_plan(
        tmp_path,
        command=["python", "finetune.py"],
        objectives={"eval_loss": "minimize", "token_f1": "maximize"},
        flags=given_flags(words),
        trial_flags={"do_eval": True, "do_predict": True, "test_split": "validation", "max_new_tokens": 2},
        stages=[STAGES[0] | {"trials": 1}, {"name": "lora", "from": "base", "trials": 1, "space": {"lora_r": [2, 4]}}],
    )
    run_sweep(read_plan(plan, {}))
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert states(record) == {"complete": 2}
    lora = record["stages"][1]["trials"][0]
    assert json.loads((Path(lora["folder"]) / "metrics.json").read_text())["eval_loss"] == lora["values"]["eval_loss"]
    assert (
        json.loads((Path(lora["folder"]) / "run.json").read_text())["arguments"]["lora_r"] == lora["params"]["lora_r"]
    )


def worker(plan: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "training.sweep", str(plan)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def begun(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("out/*/begun.txt")) for line in path.read_text().splitlines()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(found, seconds: float = 60) -> None:
    last = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < last, "it did not come in time"
        time.sleep(0.02)


@pytest.mark.kill
def test_a_sweep_of_two_workers_killed_twice_ends_with_every_trial_done_once(tmp_path):
    plan = write_plan(tmp_path, trial_flags={"pause": 0.5, "test_split": "validation"})
    for count in (2, 5):  # the first time the workers alone die, the second time their trials with them
        workers = [worker(plan), worker(plan)]
        wait_for(lambda count=count: len(begun(tmp_path)) >= count)
        time.sleep(0.3)
        for one in workers:
            one.kill()
            one.wait()
        trials = [pid for line in begun(tmp_path) if alive(pid := int(line.split()[1]))]
        assert trials, "the workers died in the middle of their trials"
        for pid in trials if count == 5 else []:
            os.kill(pid, signal.SIGKILL)
    workers = [worker(plan), worker(plan)]
    said = [one.communicate(timeout=120)[1] for one in workers]
    assert [one.returncode for one in workers] == [0, 0], said
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert states(record) == {"complete": 8}
    assert any("was left by a worker that is gone" in one for one in said)
    folders = Counter(line.split()[0] for line in (tmp_path / "out" / "base" / "begun.txt").read_text().splitlines())
    assert set(folders) == {f"trial_{number:03}" for number in range(4)} and max(folders.values()) <= 2
    for stage in record["stages"]:  # none was trained by two processes at once
        for trial in stage["trials"]:
            lines = (Path(trial["folder"]) / "log.jsonl").read_text().splitlines()
            steps = [json.loads(line)["step"] for line in lines]
            assert steps[-3:] == [10, 20, 30] and steps.count(30) == 1
