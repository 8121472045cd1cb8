"""`python -m evaluation judge` and `answer`: what a language model behind the text generator is asked to do here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_processor.prompts import Prompts
from data_processor.schema import QAPair, read_qa, write_json, write_jsonl
from data_processor.text_generator import Task, TextGenerator, add_flags, open_generator, source_from
from data_processor.wording import Wording
from evaluation.judge import Row, compare_all, judge_all, read_facts
from evaluation.report import read_predictions

ANSWER_TOKENS = 64


def add_judge_commands(commands: Any) -> None:
    """The commands `judge` and `answer`."""
    text = "a language model judges predictions against the facts, and against those of another run"
    command = commands.add_parser("judge", help=text, description=text)
    command.add_argument("--predictions", type=Path, required=True)
    command.add_argument("--against", type=Path, help="another run's predictions: also the win rate over it")
    command.add_argument("--facts", type=Path, help="facts.jsonl of the collection (default: gold answers)")
    command.add_argument("--output", type=Path, required=True, help="metrics to write; verdicts and calls lie beside")
    command.add_argument("--language", choices=("auto", "en", "zh"), default="auto", help="of the prompts")
    add_flags(command)
    command.set_defaults(run=run_judge)
    text = "any language model's answers to the questions alone, without graph or facts -> predictions.jsonl"
    command = commands.add_parser("answer", help=text, description=text)
    command.add_argument("--data", type=Path, required=True, help="folder with qa/")
    command.add_argument("--split", default="test")
    command.add_argument("--output", type=Path, required=True, help="predictions.jsonl to write; calls lie beside")
    command.add_argument("--language", choices=("auto", "en", "zh"), default="auto", help="of the prompts")
    add_flags(command)
    command.set_defaults(run=run_answer)


def run_judge(arguments: argparse.Namespace) -> None:
    """`judge`: writes and prints the metrics."""
    rows = read_predictions(arguments.predictions)
    others = read_predictions(arguments.against) if arguments.against else []
    facts = read_facts(arguments.facts) if arguments.facts else {}
    if not rows:
        raise ValueError(f"there is not one prediction in {arguments.predictions}")
    wording, stem = Wording(Prompts(), arguments.language), arguments.output.with_suffix("")
    with open_generator(source_from(arguments), Path(f"{stem}_calls.jsonl")) as generator:
        metrics, verdicts = judge_all(rows, facts, generator, wording)
        columns = {"verdict": verdicts}
        if others:
            gains, columns["outcome"] = compare_all(rows, others, facts, generator, wording)
            metrics |= gains | judge_against(rows, others, facts, generator, wording, columns)
        if generator.failed:
            raise ValueError(f"{generator.failed} calls got no reply; run the same command again, the others are kept")
    table = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    said = ({"id": row["id"], **line} for row, line in zip(rows, table, strict=True))
    write_jsonl(Path(f"{stem}_verdicts.jsonl"), said)
    write_json(arguments.output, metrics)
    for name, value in metrics.items():
        print(f"{name:28} {value:.4f}")


def judge_against(
    rows: Sequence[Row], others: Sequence[Row], facts: dict[str, str], generator: TextGenerator, wording: Wording,
    columns: dict[str, list[str]],
) -> dict[str, float]:
    """The metrics of the other run, named so; its verdicts go into `columns` before the outcomes."""
    by_id = {row["id"]: row for row in others}
    metrics, verdicts = judge_all([by_id[row["id"]] for row in rows], facts, generator, wording)
    columns["verdict_against"] = verdicts
    columns["outcome"] = columns.pop("outcome")
    return {f"{name}_against": value for name, value in metrics.items() if name != "count"}


def run_answer(arguments: argparse.Namespace) -> None:
    """`answer`: writes the predictions of a model that sees the questions alone."""
    pairs = read_qa(arguments.data / "qa" / f"{arguments.split}.jsonl")
    wording = Wording(Prompts(), arguments.language)
    calls = arguments.output.with_name(f"{arguments.output.stem}_calls.jsonl")
    with open_generator(source_from(arguments), calls) as generator:
        generator.expect(len(pairs))
        answers = list(generator.run(answer(pair, wording) for pair in pairs))
        if generator.failed:
            raise ValueError(f"{generator.failed} questions got no reply; run the same command again, others are kept")
    rows = (prediction(pair, text) for pair, text in zip(pairs, answers, strict=True))
    print(f"{write_jsonl(arguments.output, rows)} predictions in {arguments.output}")


def answer(pair: QAPair, wording: Wording) -> Task[str]:
    """Task: the model's words."""
    reply = yield wording.request("answer", pair.question, None, ANSWER_TOKENS, question=pair.question)
    return reply.text.strip()


def prediction(pair: QAPair, text: str) -> Row:
    """A line of predictions.jsonl."""
    row = {"id": pair.id, "question": pair.question, "prediction": text, "answers": list(pair.answers)}
    return row if pair.type is None else {**row, "type": pair.type}
