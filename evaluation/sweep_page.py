"""The page about a sweep: what was best, every trial, and each flag against the objective, from sweep.json alone."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from evaluation.charts import COLOURS, GREY, Axis, Series, chart
from evaluation.page import Block, Code, Figure, Grid, Section, Table, Text, write_page

Row = dict[str, Any]

RECORD = "sweep.json"
SMALL = (420, 260)  # width and height of a figure in a grid
MARKED = COLOURS[1]  # the best


def write_sweep_report(folder: str | Path, output: str | Path) -> Path:
    """Writes `output` (HTML) and the same as Markdown beside it; returns `output`.

    Args:
        folder: a sweep's, with sweep.json.
    """
    record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    recipe = record["recipe"]
    of = " on ".join(str(recipe[name]) for name in ("model_name_or_path", "data_path") if name in recipe)
    return write_page(output, "Sweep", sweep_sections(record, Path(folder)), f"{record['file']}: {of}")


def sweep_sections(record: Row, folder: Path) -> list[Section]:
    """What the page says."""
    told = [Text(sentence) for sentence in summary(record)]
    best = folder / "best.yaml"
    if best.is_file():
        told += [Text("The best flags in a recipe that trains as it stands:"), Code(f"python finetune.py {best}")]
        told.append(Code(best.read_text(encoding="utf-8").strip()))
    sections = [Section("What was found", told)]
    for stage in record["stages"]:
        sections.append(Section(f"Stage {stage['name']}", stage_blocks(record, stage)))
    shared = [[name, json.dumps(value)] for name, value in record["trial_flags"].items()]
    sections.append(Section("Flags of the trials alone", [Table([["flag", "value"], *shared])]))
    return sections


# ----------------------------------------------------------------------------------------------------------- summary
def summary(record: Row) -> list[str]:
    """Sentences: how many trials ended how, what is best, and what that can be taken for."""
    states = Counter(trial["state"] for stage in record["stages"] for trial in stage["trials"])
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    wanted = " and ".join(f"{name} ({direction})" for name, direction in record["objectives"].items())
    sentences = [f"{states.total()} trials: {counted}. Searched for: {wanted}."]
    for stage in record["stages"]:
        if stage["best"] is not None:
            best = stage["trials"][stage["best"]]
            tried = ", ".join(f"{name} {short(value)}" for name, value in best["params"].items())
            sentences.append(f"Best of stage {stage['name']}: trial {best['number']}, {figures(best)}, with {tried}.")
    if len(record["objectives"]) > 1:
        first = next(iter(record["objectives"]))
        sentences.append(f"Of trials that none beats in every objective, that with the best {first} counts as best.")
        sentences.append("Optuna stops trials early by one objective only, so all of these ran to their end.")
    elif record["prune"]:
        sentences.append("A trial that was worse than the median of the others after as many evaluations was stopped.")
    sentences.append("Each trial ran once: differences as small as those between two seeds say nothing.")
    return sentences


def figures(trial: Row) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in trial["values"].items())


def short(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)


# ------------------------------------------------------------------------------------------------------------ stages
def stage_blocks(record: Row, stage: Row) -> list[Block]:
    """A stage's charts and its table of trials."""
    objectives = list(record["objectives"])
    begun = f"It begins from the best of stage {stage['from']}." if stage["from"] else ""
    complete = [trial for trial in stage["trials"] if trial["state"] == "complete"]
    parameters = [
        Figure(against(stage, complete, name, objectives[0]), f"{objectives[0]} against {name}.")
        for name in stage["space"]
    ]
    return [
        *([Text(begun)] if begun else []),
        Table(trial_table(stage, objectives)),
        *(front(stage, complete, objectives) if len(objectives) > 1 else []),
        Figure(evaluations(stage, objectives[0]), f"{objectives[0]} of each trial at its evaluations."),
        *([Grid(parameters)] if complete else []),
    ]  # fmt: skip


def trial_table(stage: Row, objectives: list[str]) -> list[list[str]]:
    """A row a trial; the best one and those that none beats are marked."""
    names = list(stage["space"])
    table = [["trial", "state", *names, *objectives, "minutes", "remark"]]
    for trial in stage["trials"]:
        remark = "best" if trial["number"] == stage["best"] else "not beaten in all" if trial["in_front"] else ""
        values = [short(trial["params"].get(name)) for name in names]
        values += [f"{trial['values'][name]:.4g}" if trial["values"] else "-" for name in objectives]
        minutes = "-" if trial["minutes"] is None else f"{trial['minutes']:.1f}"
        table.append([str(trial["number"]), trial["state"], *values, minutes, trial["reason"] or remark])
    return table


def dots(stage: Row, points: list[tuple[Row, tuple[float, float]]]) -> list[Series]:
    """The trials as rings, the best one filled, each told under the pointer."""
    groups = (
        Series("trial", [], False, colour=COLOURS[0], hollow=True),
        Series("best trial", [], False, colour=MARKED),
    )
    made = []
    for best, group in enumerate(groups):
        mine = [(trial, point) for trial, point in points if (trial["number"] == stage["best"]) == bool(best)]
        told = [f"trial {trial['number']}: {figures(trial)}" for trial, _ in mine]
        made.append(Series(group.name, [point for _, point in mine], False, told, group.colour, group.hollow))
    return made


def against(stage: Row, complete: list[Row], name: str, objective: str) -> str:
    """One objective against one flag."""
    space = stage["space"][name]
    if "values" in space:
        names = tuple(str(value) for value in space["values"])
        axis = Axis(name, names=names)
        places = [(trial, float(names.index(str(trial["params"][name])))) for trial in complete]
    else:
        axis = Axis(name + (", logarithmic" if space["log"] else ""), log=space["log"])
        places = [(trial, float(trial["params"][name])) for trial in complete]
    points = [(trial, (place, trial["values"][objective])) for trial, place in places]
    return chart(dots(stage, points), axis, Axis(objective), *SMALL)


def front(stage: Row, complete: list[Row], objectives: list[str]) -> list[Figure]:
    """Two objectives against each other, with the trials that none beats in both joined."""
    first, second = objectives[:2]
    points = [(trial, (trial["values"][first], trial["values"][second])) for trial in complete]
    edge = sorted(point for trial, point in points if trial["in_front"])
    joined = [Series("not beaten in all", edge, colour=GREY)] if len(set(edge)) > 1 else []
    series = [*joined, *dots(stage, points)]
    drawn = chart(series, Axis(first), Axis(second))
    return [Figure(drawn, f"{second} against {first}. Each dot is a trial.")]


def evaluations(stage: Row, objective: str) -> str:
    """The objective at each evaluation of every trial; "" for one that is known only at the end."""
    series = []
    for trial in sorted(stage["trials"], key=lambda one: one["number"] == stage["best"]):
        points = [(row["epoch"], row[objective]) for row in trial["evaluations"] if objective in row]
        best = trial["number"] == stage["best"]
        told = [f"trial {trial['number']}, epoch {x:.3g}: {y:.4g}" for x, y in points]
        series.append(Series("best trial" if best else "", points, True, told, MARKED if best else GREY))
    others = [one for one in series if one.points]
    if others and others[0].name == "":
        others[0] = Series("other trials", others[0].points, True, others[0].told, GREY)
    return chart(others, Axis("epoch"), Axis(objective))
