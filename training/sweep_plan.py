"""What a sweep is told by its YAML file: the recipe, the objectives, and stages with their spaces.

plan = read_plan("configs/sweep_demo.yaml", {"model_name_or_path": "M"})
"""

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.keys import without_keys
from training.yaml_file import read_mapping

Flags = dict[str, Any]

NEEDS = "A sweep needs its YAML file, and `recipe` in it another."
DIRECTIONS = ("minimize", "maximize")
# figures of metrics.json that do not come from the questions of --do_predict
NOT_ANSWERS = ("eval_", "train_", "minutes", "peak_gib", "parameters", "weight_bytes", "epoch", "total_flos")


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __contains__(self, value: Any) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Range:
    """A number between two, both included: whole if both and the step are; drawn by its logarithm, or in steps."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return all(isinstance(one, int) for one in (self.low, self.high, self.step or 1))

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        step = self.step or (1 if self.whole else None)
        return step is None or math.isclose((value - self.low) / step, round((value - self.low) / step), abs_tol=1e-9)


Space = dict[str, Choice | Range]


@dataclass(frozen=True)
class Stage:
    """Trials over one space.

    Attributes:
        name: of its folder, its study and its best_NAME.yaml.
        trials: how many are started; those that fail or are pruned count.
        flags: of every trial of the stage, and of its best_NAME.yaml.
        space: flag -> what is tried.
        start: the stage whose best values hold here where neither `flags` nor `space` names them, None for the recipe.
    """

    name: str
    trials: int
    flags: Flags
    space: Space
    start: str | None


@dataclass(frozen=True)
class Plan:
    """A whole sweep.

    Attributes:
        recipe: flags of finetune.py that all trials share and every best_NAME.yaml carries.
        trial_flags: flags of the trials alone: shorter runs, the split to choose by.
        objectives: name in metrics.json -> "minimize" or "maximize"; the first one decides where one must be best.
        prune: stop a trial that is worse than the median of the others after as many evaluations.
        command: what starts finetune.py.
    """

    file: str
    output_dir: Path
    recipe: Flags
    trial_flags: Flags
    objectives: dict[str, str]
    stages: tuple[Stage, ...]
    prune: bool
    seed: int
    command: tuple[str, ...]


KEYS = {
    "recipe": (str, None), "objectives": (dict, None), "stages": (list, None), "output_dir": (str, "output/sweep"),
    "flags": (dict, {}), "trial_flags": (dict, {}), "prune": (bool, False), "seed": (int, 0),
    "command": (list, ["python", "finetune.py"]),
}  # fmt: skip
STAGE_KEYS = {
    "name": (str, None), "trials": (int, None), "space": (dict, None), "flags": (dict, {}), "from": (str, ""),
}  # fmt: skip
RANGE_KEYS = ("low", "high", "log", "step")


def read_plan(path: str | Path, given: Flags, output_dir: str | None = None) -> Plan:
    """The plan in a YAML file. Keys and tokens in it are exported, see training/keys.py, and are not in the plan.

    Args:
        path: the file; `recipe` in it names a YAML file of finetune.py.
        given: flags over those of the recipe and the file.
        output_dir: instead of the file's.

    Raises:
        ValueError: a key that is missing, unknown or of another type; objectives or spaces that cannot be searched.
    """
    values = checked(read_mapping(path, NEEDS), KEYS, str(path))
    stages = tuple(read_stage(one, f"{path}: stages[{i}]") for i, one in enumerate(values["stages"]))
    plan = Plan(
        file=str(path),
        output_dir=Path(output_dir or values["output_dir"]),
        recipe=without_keys(read_mapping(values["recipe"], NEEDS) | values["flags"] | given),
        trial_flags=without_keys(values["trial_flags"]),
        objectives=values["objectives"],
        stages=stages,
        prune=values["prune"],
        seed=values["seed"],
        command=tuple(str(word) for word in values["command"]),
    )
    check_objectives(plan)
    check_stages(plan)
    return plan


def checked(values: Any, keys: dict[str, tuple[type, Any]], where: str) -> dict[str, Any]:
    """The values with defaults filled in; ValueError for a key that is missing, unknown or of another type."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} holds {values!r}; it must hold {', '.join(keys)}.")
    for name, value in values.items():
        if name not in keys:
            near = difflib.get_close_matches(str(name), keys, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(keys)}."
            raise ValueError(f"{where}: unknown key {name!r}. {hint}")
        kind = keys[name][0]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{where}: {name} must be a {kind.__name__}, got {value!r}.")
    missing = [name for name, (_, default) in keys.items() if default is None and name not in values]
    if missing:
        raise ValueError(f"{where}: {missing[0]!r} is missing.")
    return {name: default for name, (_, default) in keys.items()} | values


def read_stage(values: Any, where: str) -> Stage:
    """One entry of `stages`."""
    values = checked(values, STAGE_KEYS, where)
    if values["trials"] < 1 or not values["space"]:
        raise ValueError(f"{where}: a stage needs at least one trial and one flag in its space.")
    space = {name: read_values(one, f"{where}.space.{name}") for name, one in values["space"].items()}
    twice = sorted(set(space) & set(values["flags"]))
    if twice:
        raise ValueError(f"{where}: {twice[0]} is both fixed in flags and searched in space. Leave one out.")
    return Stage(values["name"], values["trials"], without_keys(values["flags"]), space, values["from"] or None)


def read_values(value: Any, where: str) -> Choice | Range:
    """A list of values, or a mapping with `low` and `high`.

    Raises:
        ValueError: neither; or a range that is empty, or has a logarithm and reaches 0 or has steps, or a step that is
            not above 0.
    """
    if isinstance(value, list) and value:
        return Choice(tuple(value))
    if not isinstance(value, dict) or not {"low", "high"} <= set(value) <= set(RANGE_KEYS):
        raise ValueError(f"{where} must be a list of values, or {{low, high}} with log or step; got {value!r}.")
    numbers = {name: number(value[name], f"{where}.{name}") for name in ("low", "high", "step") if name in value}
    found = Range(**numbers, log=bool(value.get("log", False)))
    if found.low > found.high:
        raise ValueError(f"{where}: low {found.low} is above high {found.high}.")
    if found.step is not None and found.step <= 0:
        raise ValueError(f"{where}: step {found.step} must be above 0.")
    if found.log and (found.low <= 0 or found.step is not None):
        raise ValueError(f"{where}: log needs low above 0 and no step, got {value!r}.")
    return found


def number(value: Any, where: str) -> float:
    """The number; YAML reads 1e-4 as text (it wants 1.0e-4), and it is a number all the same."""
    try:
        return value if type(value) in (int, float) else float(str(value))
    except ValueError as error:
        raise ValueError(f"{where} must be a number, got {value!r}.") from error


def check_objectives(plan: Plan) -> None:
    """Raises ValueError for objectives that cannot be met, or that would choose by the test split."""
    if not plan.objectives:
        raise ValueError(f"{plan.file}: objectives is empty. Name a figure of metrics.json: `eval_loss: minimize`.")
    for name, direction in plan.objectives.items():
        if direction not in DIRECTIONS:
            raise ValueError(f"{plan.file}: objective {name} is {direction!r}; it must be minimize or maximize.")
    first = next(iter(plan.objectives))
    if plan.prune and len(plan.objectives) > 1:
        raise ValueError(
            f"{plan.file}: prune is true with {len(plan.objectives)} objectives. Optuna prunes by one objective only: "
            f"leave prune out, or keep {first} alone."
        )
    if plan.prune and not first.startswith("eval_"):
        raise ValueError(
            f"{plan.file}: prune is true, but {first} is known only when a trial has ended. Prune by a figure of the "
            "evaluations, such as eval_loss."
        )
    for stage in plan.stages:
        flags = {"test_split": "test", "train_split": "train"} | plan.recipe | stage.flags | plan.trial_flags
        answers = [name for name in plan.objectives if not name.startswith(NOT_ANSWERS)]
        # of a table that has one split, its name as --test_split means the test rows taken out of it
        if answers and flags["test_split"] in ("test", flags["train_split"]):
            raise ValueError(
                f"{plan.file}: {answers[0]} is measured on the split {flags['test_split']!r}, and what is chosen by "
                "a test split is no longer tested by it. Set trial_flags: {do_predict: true, test_split: validation}."
            )
        losses = [name for name in plan.objectives if name.startswith("eval_")]
        if losses and flags.get("validation_split") == "test":
            raise ValueError(
                f"{plan.file}: {losses[0]} is measured on the split 'test', and what is chosen by a test split is no "
                "longer tested by it. Leave validation_split out, or set trial_flags: {validation_split: validation}."
            )


def check_stages(plan: Plan) -> None:
    """Raises ValueError for stages that share a name, or begin from one that does not come before them."""
    names: list[str] = []
    for stage in plan.stages:
        if stage.name in names or not stage.name.isidentifier():
            raise ValueError(f"{plan.file}: the stage name {stage.name!r} is taken, or is no plain word. Rename it.")
        if stage.start is not None and stage.start not in names:
            raise ValueError(f"{plan.file}: stage {stage.name} is from {stage.start!r}, which is no earlier stage.")
        names.append(stage.name)
        hidden = sorted(set(stage.space) & {*plan.trial_flags, "output_dir"})
        if hidden:
            raise ValueError(f"{plan.file}: {hidden[0]} is searched in stage {stage.name} and set for all trials.")
