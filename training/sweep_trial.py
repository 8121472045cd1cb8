"""One trial: finetune.py as a process of its own, its evaluations read while it runs, its figures when it ends."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_processor.schema import atomic_write, whole_lines
from training.sweep_plan import Flags, Plan
from training.sweep_study import Claim, Outcome, StageStudy

POLL = 0.5  # seconds between two looks at a running trial
PATIENCE = 20  # seconds that a stopped process has to end by itself


def trial_folder(plan: Plan, stage: str, number: int) -> Path:
    """The output folder of a trial."""
    return plan.output_dir / stage / f"trial_{number:03}"


def write_flags(path: Path, flags: Flags, comment: str) -> None:
    """A YAML file that finetune.py takes as it stands."""
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    with atomic_write(path) as temporary:
        temporary.write_text(lines + yaml.safe_dump(flags, sort_keys=False, allow_unicode=True), encoding="utf-8")


def run_trial(study: StageStudy, claim: Claim, flags: Flags) -> Outcome:
    """Trains with the flags and the claim's values; a trial that an earlier process ended is only read.

    Raises:
        ValueError: the trial ended well and its metrics.json has no such objective.
    """
    folder = trial_folder(study.plan, study.stage.name, claim.number)
    began = time.monotonic()
    if not (folder / "metrics.json").is_file():
        config, output = folder.with_suffix(".yaml"), folder.with_suffix(".log")  # the folder is finetune.py's own
        write_flags(config, flags | claim.params | {"output_dir": str(folder)}, f"Trial {claim.number} of a sweep.")
        with started([*study.plan.command, str(config)], output, claim.lock) as process:
            if watch(study, claim, folder, process):
                return Outcome("pruned", reason="worse than the median of the others", minutes=minutes(began))
        if process.returncode:
            return Outcome("failed", reason=why(output, process.returncode), minutes=minutes(began))
    return measured(study.plan, folder, minutes(began))


def minutes(began: float) -> float:
    return (time.monotonic() - began) / 60


@contextlib.contextmanager
def started(command: list[str], output: Path, lock: int) -> Iterator[subprocess.Popen]:
    """A process that shares the trial's lock; it is stopped when the block ends before it does.

    Args:
        command: `python` stands for this interpreter.
        output: file that all it prints is appended to.
        lock: a descriptor; a process that outlives its worker keeps the trial from being started a second time.
    """
    words = [sys.executable if word == "python" else word for word in command]
    with open(output, "ab") as file:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=[lock], start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends a process and all that it started, gently and then by force."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def watch(study: StageStudy, claim: Claim, folder: Path, process: subprocess.Popen) -> bool:
    """Waits for the process and tells its evaluations; True if the trial is to be stopped."""
    told, only = claim.evaluations, len(study.plan.objectives) == 1
    objective = next(iter(study.plan.objectives))
    while True:
        ended = process.poll() is not None
        values = [row[objective] for row in whole_lines(folder / "log.jsonl") if objective in row] if only else []
        for evaluation in range(told, len(values)):
            if study.report(claim, evaluation, values[evaluation]):
                return not ended
        told = max(told, len(values))
        if ended:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL)


def why(output: Path, status: int) -> str:
    """What the process said last, or the signal that ended it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else f"exit status {status} without a word"


def measured(plan: Plan, folder: Path, took: float) -> Outcome:
    """The objectives as metrics.json has them; one that is not a number fails the trial."""
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    absent = [name for name in plan.objectives if name not in metrics]
    if absent:
        raise ValueError(
            f"{folder}/metrics.json has no {absent[0]!r}. It has: {', '.join(sorted(metrics))}. Correct the "
            "objectives or the flags (do_eval, do_predict), and remove the sweep's folder."
        )
    took = metrics.get("minutes", took)  # of the training, also where another process saw its end
    values = {name: float(metrics[name]) for name in plan.objectives}
    broken = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if broken:
        return Outcome("failed", reason=", ".join(broken), minutes=took)
    return Outcome("complete", tuple(values.values()), minutes=took)
