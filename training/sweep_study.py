"""The one door to Optuna: the trials of a stage in a file that workers share and that kill -9 leaves whole.

Which trial is whose is said by a lock that the worker and its training process hold together. A trial that is marked
as running and whose lock is free belongs to the dead, and the next worker takes it over with its number and values.
"""

import fcntl
import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from training.locks import held, take
from training.sweep_plan import Choice, Flags, Plan, Space, Stage

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of constant_liar

JOURNAL = "study.journal"
TOLD = "sweep"  # the attribute of a study that says what it searches
FEWEST_RANDOM, MOST_RANDOM = 4, 10  # half of a stage, within these, is drawn before the sampler looks at what came out


@dataclass(frozen=True)
class Claim:
    """A trial that this process runs: its lock is given back when the descriptor and all copies of it are closed."""

    trial: optuna.Trial
    lock: int
    params: Flags
    evaluations: int  # told to Optuna by an earlier owner

    @property
    def number(self) -> int:
        return self.trial.number


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: with values, or stopped (`state` "pruned") or failed for a reason."""

    state: str
    values: tuple[float, ...] = ()
    reason: str = ""
    minutes: float = 0.0


STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
WORDS = {state: word for word, state in STATES.items()} | {TrialState.RUNNING: "running"}


class KernelLock:
    """Optuna's interface of a journal's lock, held by the kernel: Optuna's own outlives its holder by 30 seconds."""

    def __init__(self, path: Path) -> None:
        self.path, self.descriptor = path, -1

    def acquire(self) -> bool:
        self.descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self.descriptor)


def open_storage(folder: Path, stages: Sequence[str]) -> JournalStorage:
    """The journal of a sweep, made where there is none; the caller holds the sweep's lock.

    Raises:
        ValueError: the file is no journal of Optuna, or holds studies of another sweep.
    """
    path = folder / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = folder / "locks" / "journal"
    with held(lock):
        check_journal(path)
    storage = JournalStorage(JournalFileBackend(str(path), lock_obj=KernelLock(lock)))
    strange = sorted(set(optuna.get_all_study_names(storage)) - set(stages))
    if strange:
        raise ValueError(
            f"{path} holds the study {strange[0]!r} of another sweep; this one has {', '.join(stages)}. Set another "
            "output_dir, or remove that folder."
        )
    return storage


def check_journal(path: Path) -> None:
    """Drops the end of a journal that a full disk cut off: the next line would be glued to it.

    The caller holds the journal's lock, as every worker that writes does.

    Raises:
        ValueError: a line before it is not one of Optuna's.
    """
    whole = path.read_bytes() if path.is_file() else b""
    end = whole.rfind(b"\n") + 1
    for line in whole[:end].splitlines():
        if not line.startswith(b'{"op_code":'):
            raise ValueError(f"{path} is no journal of Optuna: {line[:40]!r}. Set another output_dir, or remove it.")
    if end < len(whole):
        logger.warning("%s ends in the middle of a line; those %d bytes are dropped.", path, len(whole) - end)
        os.truncate(path, end)


class StageStudy:
    """The trials of one stage.

    Args:
        plan, stage: of the sweep.
        flags: what all trials of the stage share.

    Raises:
        ValueError: the folder holds this stage with another space, other flags or other objectives.
    """

    def __init__(self, plan: Plan, stage: Stage, flags: Flags) -> None:
        self.plan, self.stage = plan, stage
        self.locks = plan.output_dir / "locks"
        self.locks.mkdir(parents=True, exist_ok=True)
        with self.exclusive():
            storage = open_storage(plan.output_dir, [one.name for one in plan.stages])
            self.study = optuna.create_study(
                storage=storage,
                study_name=stage.name,
                directions=list(plan.objectives.values()),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=2) if plan.prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            self.check(flags)
            if not self.study.get_trials(deepcopy=False):
                self.enqueue_recipe(flags)

    def exclusive(self) -> Any:
        """The lock under which trials are claimed and finished."""
        return held(self.locks / "claims")

    def check(self, flags: Flags) -> None:
        """Notes what is searched in a new study, and compares it with what an old one noted."""
        space = {name: asdict(one) for name, one in self.stage.space.items()}
        told = {"flags": flags, "space": space, "objectives": self.plan.objectives, "prune": self.plan.prune}
        told = json.loads(json.dumps(told))
        before = self.study.user_attrs.get(TOLD)
        if before is None:
            if self.study.get_trials(deepcopy=False):
                raise ValueError(f"{self.where()} was not made by a sweep. Set another output_dir.")
            self.study.set_user_attr(TOLD, told)
            return
        changed = [
            f"{name} was {before[room].get(name)}, is {told[room].get(name)}"
            for room in ("flags", "space", "objectives")
            for name in sorted({*before[room], *told[room]})
            if before[room].get(name) != told[room].get(name)
        ]
        if before["prune"] != told["prune"]:
            changed.append(f"prune was {before['prune']}")
        if changed:
            raise ValueError(
                f"{self.where()} was begun with another search: {'; '.join(changed)}. Its trials cannot be compared "
                "with new ones. Set another output_dir, or remove that folder."
            )

    def where(self) -> str:
        return f"Stage {self.stage.name!r} in {self.plan.output_dir / JOURNAL}"

    def enqueue_recipe(self, flags: Flags) -> None:
        """The first trial is the recipe itself, as far as its values lie in the space."""
        known = {name: flags[name] for name, one in self.stage.space.items() if name in flags and flags[name] in one}
        if known:
            self.study.enqueue_trial(known)

    def trials(self) -> list[FrozenTrial]:
        """All trials that were started, in the order of their numbers."""
        return [one for one in self.study.get_trials(deepcopy=False) if one.state != TrialState.WAITING]

    def claim(self) -> Claim | None:
        """A trial for this process: one whose owner died, or a new one; None where none is left to be started."""
        with self.exclusive():
            for one in self.trials():
                lock = take(self.lock_of(one.number)) if one.state == TrialState.RUNNING else None
                if lock is not None:
                    logger.info("%s trial %d was left by a worker that is gone.", self.stage.name, one.number)
                    return self.claimed(self.resumed(one.number), lock, len(one.intermediate_values))
            number = len(self.trials())
            if number >= self.stage.trials:
                return None
            self.study.sampler = self.sampler(number)
            trial = self.study.ask()
            lock = take(self.lock_of(trial.number))
            assert lock is not None, f"the lock of the new trial {trial.number} is taken"
            return self.claimed(trial, lock, 0)

    def lock_of(self, number: int) -> Path:
        return self.locks / f"{self.stage.name}_{number:03}"

    def resumed(self, number: int) -> optuna.Trial:
        """A running trial in this process; Optuna itself would fail it and begin another one."""
        self.study.sampler = self.sampler(number)
        return optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def claimed(self, trial: optuna.Trial, lock: int, evaluations: int) -> Claim:
        """The trial with its values: those it has, and drawn ones where its owner died before all were."""
        params = {name: suggest(trial, name, self.stage.space) for name in self.stage.space}
        return Claim(trial, lock, params, evaluations)

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """TPE (Bergstra et al. 2011), with a seed of each trial: another worker draws other values, a second run the
        same; trials that run elsewhere count as bad ones, so that two workers do not try the same."""
        random = min(MOST_RANDOM, max(FEWEST_RANDOM, self.stage.trials // 2))
        seed = self.plan.seed + 1000 * number
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=random, constant_liar=True)

    def report(self, claim: Claim, evaluation: int, value: float) -> bool:
        """Tells one evaluation of the only objective, counted from 0; returns whether the trial is to be stopped."""
        claim.trial.report(value, evaluation)
        return self.plan.prune and claim.trial.should_prune()

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """Writes how the trial ended, and gives its lock back."""
        with self.exclusive():
            claim.trial.set_user_attr("minutes", outcome.minutes)
            claim.trial.set_user_attr("reason", outcome.reason)
            self.study.tell(claim.trial, list(outcome.values) or None, STATES[outcome.state])
        os.close(claim.lock)

    def front(self) -> list[int]:
        """Numbers of the complete trials that no other one beats in every objective."""
        return [one.number for one in self.study.best_trials if one.state == TrialState.COMPLETE]

    def best(self) -> FrozenTrial:
        """The complete trial that is best in the first objective, of equal ones the best in the others.

        Raises:
            ValueError: no trial ended well.
        """
        complete = [one for one in self.trials() if one.state == TrialState.COMPLETE]
        if not complete:
            failed = [one.user_attrs["reason"] for one in self.trials() if one.state == TrialState.FAIL]
            raise ValueError(f"{self.where()}: no trial ended well. {failed[-1] if failed else 'All were stopped.'}")
        return min(complete, key=lambda one: place(self.plan, one))


def place(plan: Plan, trial: FrozenTrial) -> list[float]:
    """What complete trials are ordered by, the best first."""
    signs = [1 if direction == "minimize" else -1 for direction in plan.objectives.values()]
    return [sign * value for sign, value in zip(signs, trial.values, strict=True)]


def suggest(trial: optuna.Trial, name: str, space: Space) -> Any:
    """The trial's value of one flag."""
    one = space[name]
    if isinstance(one, Choice):
        return trial.suggest_categorical(name, one.values)
    if one.whole:
        return trial.suggest_int(name, int(one.low), int(one.high), step=int(one.step or 1), log=one.log)
    return trial.suggest_float(name, float(one.low), float(one.high), step=one.step, log=one.log)
