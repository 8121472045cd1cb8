"""A search for the best flags: finetune.py as a process a trial, several objectives, any number of workers.

    python -m training.sweep configs/sweep_demo.yaml
    python -m training.sweep configs/sweep.yaml --model_name_or_path M --data_path D     any flag of finetune.py

Each further process started with the same words is one more worker. A sweep that was stopped, or killed, goes on by
the same words: what was trained is not trained again. It writes sweep.json and a best_STAGE.yaml for finetune.py.
"""

import argparse
import contextlib
import importlib.util
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from training.keys import take_key
from training.sweep_plan import Flags, Plan, read_plan

if TYPE_CHECKING:
    from training.sweep_study import StageStudy

logger = logging.getLogger(__name__)

WAIT = 1.0  # seconds between two looks at trials that run elsewhere
HOPELESS = 3  # trials that fail before one ends well end the sweep


def main(argv: Sequence[str] | None = None) -> None:
    """One worker; a user's mistake is one sentence on standard error and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, which ends the running trial
    text = "Searches for the best flags of finetune.py; any flag of it goes over those of the recipe."
    words = argparse.ArgumentParser(prog="python -m training.sweep", description=text, allow_abbrev=False)
    words.add_argument("file", help="YAML: recipe, objectives, stages; see configs/sweep_demo.yaml")
    words.add_argument("--output_dir", help="instead of the file's: the sweep's folder, shared by all workers")
    words.add_argument("--result", type=Path, help="also record what was found, with commit and machine, in this file")
    arguments, rest = words.parse_known_args(argv)
    try:
        if importlib.util.find_spec("optuna") is None:
            raise ValueError("A sweep needs Optuna: pip install optuna")
        plan = read_plan(arguments.file, given_flags(take_key(rest)), arguments.output_dir)
        print(run_sweep(plan, arguments.result))
    except (ValueError, OSError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        sys.exit(2)


def given_flags(words: Sequence[str]) -> Flags:
    """`--name value ...` as a mapping; a flag may have several values.

    Raises:
        ValueError: a value without a flag, or a flag without a value.
    """
    given: dict[str, list[Any]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name] = [typed(value)] if equals else []
        elif not name:
            raise ValueError(f"{word!r} stands behind no flag. The YAML file of the sweep comes first, alone.")
        else:
            given[name].append(typed(word))
    empty = [name for name, values in given.items() if not values]
    if empty:
        raise ValueError(f"--{empty[0]} was given without a value.")
    return {name: values[0] if len(values) == 1 else values for name, values in given.items()}


def typed(word: str) -> int | float | str:
    """A number where the word is one, else the word: YAML would make a truth value of `no`."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def run_sweep(plan: Plan, result: Path | None = None) -> Path:
    """Works on every stage until all of its trials have ended, and returns the file of the best flags.

    Args:
        result: a file as those of results/ to write, too.
    """
    from training.sweep_record import stage_record, told, write_best, write_result, write_sweep
    from training.sweep_study import StageStudy, place

    if len(plan.objectives) > 1:
        logger.info("%d objectives: no trial is pruned, as Optuna prunes by one only.", len(plan.objectives))
    found: dict[str, Flags] = {}
    ends: list[tuple[list[float], str, Flags, str]] = []
    records: list[dict[str, Any]] = []
    for stage in plan.stages:
        inherited = {name: one for name, one in found.get(stage.start or "", {}).items() if name not in stage.space}
        flags = plan.recipe | inherited | stage.flags
        study = StageStudy(plan, stage, flags | plan.trial_flags)
        records.append(stage_record(study, flags))
        for _ in work(study, flags | plan.trial_flags):
            records[-1] = stage_record(study, flags)
            write_sweep(plan, study, records)
        best = study.best()
        found[stage.name] = inherited | best.params
        ends.append((place(plan, best), stage.name, flags | best.params, told(plan, stage, best)))
        write_best(plan, f"best_{stage.name}", *ends[-1][2:])
        records[-1] = stage_record(study, flags)
        write_best(plan, "best", *min(ends)[2:])
        write_sweep(plan, study, records)
    if result is not None:
        write_result(plan, records, result)
    return plan.output_dir / "best.yaml"


def work(study: "StageStudy", flags: Flags) -> Iterator[int]:
    """Runs trials until none is left here or elsewhere; yields the number of each one that it ran."""
    from training.sweep_trial import run_trial

    bar = tqdm(total=study.stage.trials, desc=f"stage {study.stage.name}", unit="trial", initial=ended(study))
    with bar, logging_redirect_tqdm():
        while True:
            check_hope(study)
            claim = study.claim()
            if claim is not None:
                outcome = run_trial(study, claim, flags)
                study.finish(claim, outcome)
                say(study, claim.number, claim.params, outcome)
                yield claim.number
            elif ended(study) >= study.stage.trials:
                break
            else:
                time.sleep(WAIT)
            bar.update(ended(study) - bar.n)


def ended(study: "StageStudy") -> int:
    """Trials that are not running any more."""
    return sum(one.state.is_finished() for one in study.trials())


def check_hope(study: "StageStudy") -> None:
    """Raises ValueError where the first trials have all failed: the next ones would, too."""
    states = [(one.state.name, one.user_attrs.get("reason")) for one in study.trials()]
    failed = [reason for state, reason in states if state == "FAIL"]
    if len(failed) >= HOPELESS and len(failed) == len(states):
        raise ValueError(
            f"the first {len(failed)} trials of stage {study.stage.name} failed. The last one said: {failed[-1]} "
            f"Correct the flags, remove {study.plan.output_dir}, and start again."
        )


def say(study: "StageStudy", number: int, params: Flags, outcome: Any) -> None:
    """One line about a trial that ended."""
    figures = ", ".join(
        f"{name} {value:.4g}" for name, value in zip(study.plan.objectives, outcome.values, strict=False)
    )
    tried = ", ".join(f"{name} {short(value)}" for name, value in params.items())
    told = figures or f"{outcome.state}: {outcome.reason}"
    logger.info("%s trial %d (%s): %s, %.1f min", study.stage.name, number, tried, told, outcome.minutes)


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
