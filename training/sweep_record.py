"""What a sweep leaves: sweep.json for its page, best_STAGE.yaml and best.yaml for finetune.py."""

from pathlib import Path
from typing import Any

from data_processor.schema import whole_lines, write_json
from training.sweep_plan import Flags, Plan, Stage
from training.sweep_study import WORDS, FrozenTrial, StageStudy
from training.sweep_trial import trial_folder, write_flags

RECORD = "sweep.json"


def stage_record(study: StageStudy, flags: Flags) -> dict[str, Any]:
    """A stage as sweep.json holds it."""
    front = set(study.front())
    return {
        "name": study.stage.name,
        "from": study.stage.start,
        "wanted": study.stage.trials,
        "flags": flags,
        "space": {name: vars(one) for name, one in study.stage.space.items()},
        "best": study.best().number if front else None,
        "trials": [trial_record(study, one, one.number in front) for one in study.trials()],
    }


def trial_record(study: StageStudy, trial: FrozenTrial, in_front: bool) -> dict[str, Any]:
    """A trial with its values, and what its log says of each evaluation."""
    folder, state = trial_folder(study.plan, study.stage.name, trial.number), WORDS[trial.state]
    names = [name for name in study.plan.objectives if name.startswith("eval_")]
    rows = [row for row in whole_lines(folder / "log.jsonl") if any(name in row for name in names)]
    return {
        "number": trial.number,
        "state": state,
        "params": trial.params,
        "values": dict(zip(study.plan.objectives, trial.values, strict=True)) if state == "complete" else {},
        "in_front": in_front,
        "minutes": trial.user_attrs.get("minutes"),
        "reason": trial.user_attrs.get("reason", ""),
        "evaluations": [{key: row[key] for key in ("step", "epoch", *names) if key in row} for row in rows],
        "folder": str(folder),
    }


def write_sweep(plan: Plan, study: StageStudy, stages: list[dict[str, Any]]) -> None:
    """sweep.json: the whole sweep as it is now, in plain JSON."""
    record = {
        "file": plan.file, "recipe": plan.recipe, "trial_flags": plan.trial_flags, "objectives": plan.objectives,
        "prune": plan.prune, "seed": plan.seed, "stages": stages,
    }  # fmt: skip
    with study.exclusive():
        write_json(plan.output_dir / RECORD, record)


def told(plan: Plan, stage: Stage, best: FrozenTrial) -> str:
    """One line about the best trial of a stage."""
    figures = ", ".join(f"{name} {value:.4g}" for name, value in zip(plan.objectives, best.values, strict=True))
    return f"Trial {best.number} of stage {stage.name} of {plan.file}: {figures}."


def write_best(plan: Plan, name: str, flags: Flags, comment: str) -> None:
    """NAME.yaml: the recipe with the best values in it, without the trials' own flags (shorter runs, their split)."""
    path = plan.output_dir / f"{name}.yaml"
    given = flags | {"output_dir": str(plan.output_dir / name)}
    write_flags(path, given, f"{comment}\n  python finetune.py {path}")


def write_result(plan: Plan, stages: list[dict[str, Any]], path: Path) -> None:
    """What results/ keeps of a sweep: how its trials ended, the best of each stage, the minutes of all trials."""
    from training.record import commit, machine

    trials = [trial for stage in stages for trial in stage["trials"]]
    metrics: dict[str, float] = {"trials": len(trials)}
    for state in ("complete", "pruned", "failed"):
        metrics[state] = sum(trial["state"] == state for trial in trials)
    for stage in stages:
        best = stage["trials"][stage["best"]]
        metrics |= {f"{stage['name']}/{name}": value for name, value in best["values"].items()}
    write_json(path, {
        "command": f"RESULT={path} bash shells/sweep.sh {plan.file}", "commit": commit(), "machine": machine(),
        "minutes": round(sum(trial["minutes"] for trial in trials), 1), "seeds": [plan.seed], "metrics": metrics,
    })  # fmt: skip
