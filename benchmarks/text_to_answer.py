"""From text to answer, every step a command: texts -> replies -> facts and triples -> graph -> questions -> GraphLLM
-> answers -> judge. On the demonstration's invented texts, on a CPU, without any large model.

The replies of collection and judge are recorded by rules from the invented world (data_processor/demo_replies.py and
`judge_by_rule` below): what is shown is that the chain holds, not how well a model would read real texts.

    python benchmarks/text_to_answer.py --json results/text_to_answer.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from data_processor.calls import CallLog, Request
from data_processor.prompts import Prompts
from data_processor.schema import write_json
from data_processor.text_generator import ReplyFunction, TextGenerator
from data_processor.wording import Wording
from evaluation.judge import compare_all, judge_all, read_facts
from evaluation.report import read_predictions

OUTPUT = Path("output/text")
DATA, RUN = OUTPUT / "data", OUTPUT / "run"
JUDGE = "rule"  # the name under which the judge's replies are recorded


def run(*words: str) -> None:
    """One command of the project, from its root."""
    print("python", *words, flush=True)
    subprocess.run([sys.executable, *words], check=True)


def collect() -> None:
    """Texts, replies, facts, triples, graph, questions, subgraphs: what `bash shells/collect_data.sh` runs."""
    recorded = ("--backend", "recorded", "--model", "demonstration", "--replies", str(OUTPUT / "replies.jsonl"))
    amounts = ("--chunk_size_by_token", "256", "--qa_amount_per_fact", "1", "--role_amount_per_fact", "1", "--extract")
    place = ("--input", str(OUTPUT / "texts"), "--output", str(DATA))
    walk = ("--method", "random_walk", "--steps", "1", "--max_nodes", "8")
    run("-m", "data_processor.demo_replies", "--output", str(OUTPUT))
    run("-m", "data_processor", "collect", *place, *recorded, *amounts)
    run("-m", "data_processor", "embed", "--graph", str(DATA / "graph"), "--encoder", "hashing")
    run("-m", "data_processor", "retrieve", "--data", str(DATA), *walk)


def answer() -> None:
    """Trains the reader, and asks it the test questions with graph and facts, and with the questions alone."""
    run("finetune.py", "configs/text_demo.yaml")
    for name, ablate in (("predictions", "none"), ("predictions_question_only", "question_only")):
        run("-m", "evaluation", "generate", "--model", str(OUTPUT / "model"), "--data", str(DATA), "--ablate", ablate,
            "--output", str(RUN / f"{name}.jsonl"), "--max_new_tokens", "16", "--device", "cpu")  # fmt: skip
    run("-m", "evaluation", "score", "--predictions", str(RUN / "predictions.jsonl"), "--output",
        str(RUN / "metrics.json"))  # fmt: skip


def judge_by_rule(request: Request) -> str:
    """The verdict of a rule, not of a model: an answer is right when the fact ends with it, word for word."""
    values = request.values
    end = values["fact"].rstrip(".").casefold()
    if request.name == "judge":
        return json.dumps({"verdict": "correct" if end.endswith(f" {values['answer'].casefold()}") else "wrong"})
    right = [end.endswith(f" {values[name].casefold()}") for name in ("first", "second")]
    return json.dumps({"winner": "tie" if right[0] == right[1] else "1" if right[0] else "2"})


def judge() -> None:
    """Records the rule's replies to the judge's questions, then judges with them as with those of any model."""
    with_graph, alone = (RUN / f"predictions{name}.jsonl" for name in ("", "_question_only"))
    rows, others, facts = read_predictions(with_graph), read_predictions(alone), read_facts(DATA / "facts.jsonl")
    replies = RUN / "judge_replies.jsonl"
    with TextGenerator(ReplyFunction(judge_by_rule, JUDGE), CallLog(replies)) as generator:
        for judged in (rows, others):
            judge_all(judged, facts, generator, Wording(Prompts()))
        compare_all(rows, others, facts, generator, Wording(Prompts()))
    run("-m", "evaluation", "judge", "--predictions", str(with_graph), "--against", str(alone), "--facts",
        str(DATA / "facts.jsonl"), "--output", str(RUN / "judge.json"), "--backend", "recorded", "--replies",
        str(replies), "--model", JUDGE)  # fmt: skip


def figures() -> dict[str, Any]:
    """What the steps wrote down, in one table."""
    manifest, metrics, judged = (
        json.loads(path.read_text()) for path in (DATA / "manifest.json", RUN / "metrics.json", RUN / "judge.json")
    )
    graph = json.loads((DATA / "graph" / "manifest.json").read_text())["counts"]
    kept = {f"{name}_kept": counts["kept"] for name, counts in manifest["stages"].items()}
    names = ("judge_accuracy", "judge_accuracy_low", "judge_accuracy_high", "judge_accuracy_against")
    names += ("win_rate", "loss_rate", "tie_rate", "order_dependent_rate", "judge_agreement")
    return {
        **{name: kept[name] for name in ("documents_kept", "chunks_kept", "facts_kept", "pairs_kept", "triples_kept")},
        **{f"graph_{name}": graph[name] for name in ("nodes", "edges", "relations")},
        "test_questions": metrics["count"],
        "exact_match": metrics["exact_match"],
        **{name: judged[name] for name in names},
    }


def main() -> None:
    """Runs the chain and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to record the figures in")
    arguments = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    start = time.time()
    for step in (collect, answer, judge):
        step()
    metrics = figures()
    print(json.dumps(metrics, indent=2))
    if arguments.json:
        from training.record import commit

        write_json(arguments.json, {
            "command": f"python benchmarks/text_to_answer.py --json {arguments.json}", "commit": commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one process on the CPU",
            "minutes": round((time.time() - start) / 60, 2), "seeds": [42], "metrics": metrics,
        })  # fmt: skip


if __name__ == "__main__":
    main()
