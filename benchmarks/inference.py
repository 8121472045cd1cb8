"""Answers a second beside PyG's `GRetriever.inference` on the same language model and prompts, and a cold start.

Batches of 16 questions in two settings, in interleaved rounds:

    one subgraph   16 questions about one retrieved subgraph, as in a conversation or a study of one entity, with facts
                   of about 410 tokens (G-Retriever cuts at 512): ours (`serving.answering.answer_texts`) reads graph
                   and facts once for all of them
    own subgraphs  every question has its own, with facts of about 140 tokens: there is nothing to share, both do the
                   same work

Arms: pyg; ours; unshared, ours with the sharing switched off. All search greedily for the same number of new tokens (a
random language model never ends an answer) on the same weights; ours must give the same answers with and without
sharing. Processor time of one thread, so that other processes do not count; medians over the rounds.

Cost model, in multiplications: a prompt of P tokens of which S are common, N new tokens, B questions, layers L, head
H, all a token: B P L + B N (L + H) for PyG, S L + B (P - S) L + B N (L + H) for ours.

The cold start is the time from starting `python -m serving chat --question ...` on the demonstration's model until the
first piece of its answer is there.

    python benchmarks/inference.py --json results/inference.json

It needs output/demo/model, which `bash shells/finetune_lora_ds.sh` makes.
"""

import argparse
import contextlib
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.arms import (
    FEATURES,
    GNN_LAYERS,
    GRAPH_TOKENS,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    SYSTEM,
    VOCABULARY,
    Sample,
    make_batches,
    messages_of,
    write_language_model,
)
from data_processor.schema import read_qa, write_json
from serving.answering import answer_texts
from training.record import commit

BATCH, CONTEXTS = 16, 3  # questions a batch; drawn texts of 70 to 205 words that make the facts of one subgraph
ROOT = Path(__file__).resolve().parent.parent
Answerer = Callable[[list[Sample]], list[str]]


def build_pyg(folder: Path, new_tokens: int) -> Answerer:
    """GRetriever with a GAT of the same width, depth and heads, and an MLP to as many tokens."""
    from torch_geometric.data import Batch, Data
    from torch_geometric.llm.models import LLM, GRetriever
    from torch_geometric.nn import GAT

    warnings.filterwarnings("ignore", message="LLM is being used on CPU")
    with contextlib.redirect_stdout(sys.stderr):
        llm = LLM(str(folder), num_params=0.001, dtype=torch.float32, sys_prompt=SYSTEM)
    gnn = GAT(FEATURES, HIDDEN, GNN_LAYERS, HIDDEN, v2=False, heads=HEADS, norm="layer")
    model = GRetriever(llm, gnn, use_lora=False, mlp_out_tokens=GRAPH_TOKENS).eval()

    @torch.no_grad()
    def answer(samples: list[Sample]) -> list[str]:
        graphs = [Data(x=one.graph["node_features"], edge_index=one.graph["edge_index"]) for one in samples]
        union = Batch.from_data_list(graphs)
        return model.inference(
            [one.question for one in samples], union.x, union.edge_index, union.batch,
            additional_text_context=[one.context for one in samples], max_out_tokens=new_tokens,
        )  # fmt: skip

    return answer


def build_ours(folder: Path, new_tokens: int) -> dict[str, Answerer]:
    """Our model of the same shape, with sharing and without."""
    from transformers import AutoTokenizer

    from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
    from processing_graphllm import GraphLLMProcessor

    graph_config = GraphConfig(
        encoder="gat", feature_dim=FEATURES, hidden_dim=HIDDEN, num_layers=GNN_LAYERS, num_heads=HEADS,
        num_tokens=GRAPH_TOKENS, projector="mlp", projector_hidden_dim=HIDDEN,
    )  # fmt: skip
    processor = GraphLLMProcessor.from_tokenizer(AutoTokenizer.from_pretrained(folder), num_graph_tokens=GRAPH_TOKENS)
    model = GraphLLMForConditionalGeneration.from_components(str(folder), graph_config, processor.graph_token_id)
    model.eval()

    def answer(samples: list[Sample], share: bool) -> list[str]:
        prompts = [messages_of(one)[:-1] for one in samples]
        return answer_texts(model, processor, prompts, new_tokens, share=share)

    return {"ours": lambda samples: answer(samples, True), "unshared": lambda samples: answer(samples, False)}


def batches(setting: str, count: int) -> list[list[Sample]]:
    """`count` batches of BATCH questions: on one subgraph each, or on their own ones."""
    drawn = [[*one, *two] for one, two in zip(*[iter(make_batches(2 * count, seed=0))] * 2, strict=True)]
    if setting == "own":
        return drawn
    contexts = [" ".join(one.context for one in batch[:CONTEXTS]) for batch in drawn]
    return [
        [replace(one, context=context, graph=batch[0].graph) for one in batch]
        for context, batch in zip(contexts, drawn, strict=True)
    ]


def measure(folder: Path, rounds: int, new_tokens: int) -> dict[str, dict[str, list[float]]]:
    """Setting -> arm -> processor seconds of every batch; the first round warms up and is left out."""
    arms = {"pyg": build_pyg(folder, new_tokens), **build_ours(folder, new_tokens)}
    names = list(arms)
    seconds = {setting: {name: [] for name in names} for setting in ("one", "own")}
    for setting in seconds:
        for number, batch in enumerate(batches(setting, rounds + 1)):
            texts, shift = {}, number % len(names)
            for name in names[shift:] + names[:shift]:
                begun = time.process_time()
                texts[name] = arms[name](batch)
                seconds[setting][name] += [time.process_time() - begun] if number else []
            assert texts["ours"] == texts["unshared"], "sharing changed an answer"
            lengths = {name: [len(text.split()) for text in said] for name, said in texts.items()}
            assert lengths["pyg"] == lengths["ours"] == [new_tokens] * BATCH, f"answers of other lengths: {lengths}"
            print(f"{setting} {number}/{rounds}", end="\r", file=sys.stderr)
    return seconds


def predicted(setting: str, new_tokens: int) -> float:
    """The ratio of the two costs above, of the first batch."""
    layers, head = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE), HIDDEN * VOCABULARY
    (batch,) = batches(setting, 1)
    system = len(SYSTEM.split()) + GRAPH_TOKENS
    contexts = [len(one.context.split()) + system for one in batch]
    ends = sum(len(one.question.split()) for one in batch)
    new = BATCH * new_tokens * (layers + head)
    read = contexts[0] if setting == "one" else sum(contexts)
    return ((sum(contexts) + ends) * layers + new) / ((read + ends) * layers + new)


def cold_start(demo: Path, starts: int) -> dict[str, float]:
    """Medians over fresh processes: seconds until the first piece of an answer, and their processor seconds."""
    question = read_qa(demo / "data" / "qa" / "test.jsonl")[0].question
    command = [sys.executable, "-m", "serving", "chat", "--model", str(demo / "model"), "--data", str(demo / "data"),
               "--question", question]  # fmt: skip
    wall, busy = [], []
    for _ in range(starts):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
            assert process.stdout is not None and process.stdout.read(1), "the chat printed no answer"
            wall.append(time.perf_counter() - begun)
            process.stdout.read()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"first_answer_s": statistics.median(wall), "first_answer_cpu_s": statistics.median(busy)}


def summarise(seconds: dict[str, dict[str, list[float]]], new_tokens: int) -> dict[str, float]:
    """Rates and ratios of both settings."""
    figures = {}
    for setting, arms in seconds.items():
        median = {name: statistics.median(values) for name, values in arms.items()}
        figures[f"speedup_vs_pyg_{setting}"] = median["pyg"] / median["ours"]
        figures[f"speedup_by_sharing_{setting}"] = median["unshared"] / median["ours"]
        figures[f"predicted_speedup_{setting}"] = predicted(setting, new_tokens)
        figures |= {f"answers_per_s_{setting}_{name}": BATCH / value for name, value in median.items()}
    return figures


def record(figures: dict[str, Any], arguments: argparse.Namespace, minutes: float) -> dict[str, Any]:
    """The result file: the figures that count, how they came about, and all the others."""
    return {
        "speedup_vs_pyg": figures["speedup_vs_pyg_one"],
        "answers_per_s": figures["answers_per_s_one_ours"],
        "first_answer_s": figures["first_answer_s"],
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, 1 used",
        "minutes": minutes,
        "seeds": [0],
        "metrics": figures,
    }


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="Answers a second beside PyG's GRetriever, and a cold start.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--new_tokens", type=int, nargs="+", default=[8], help="of an answer; the first counts")
    parser.add_argument("--demo", type=Path, default=Path("output/demo"))
    parser.add_argument("--starts", type=int, default=3)
    arguments = parser.parse_args(argv)
    if not (arguments.demo / "model").is_dir():
        sys.exit(f"no {arguments.demo / 'model'}: run bash shells/finetune_lora_ds.sh first, or name it by --demo")
    begun = time.time()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        write_language_model(Path(name))
        for tokens in arguments.new_tokens:
            found = summarise(measure(Path(name), arguments.rounds, tokens), tokens)
            first = tokens == arguments.new_tokens[0]
            figures |= {key if first else f"{key}_{tokens}_tokens": value for key, value in found.items()}
    figures |= cold_start(arguments.demo, arguments.starts)
    for key, value in figures.items():
        print(f"{key:44}{value:10.3f}")
    if arguments.json:
        write_json(arguments.json, record(figures, arguments, (time.time() - begun) / 60))


if __name__ == "__main__":
    main()
