"""One training step beside PyG's GRetriever and beside the bare language model: time, peak memory, and where they go.

Four arms take the same prompts, graphs, LoRA (r 8 on q and v), AdamW and random weights, in interleaved rounds:

    pyg          torch_geometric.llm.models.GRetriever: tokenises inside the step, logits for every token
    ours         GraphLLMForConditionalGeneration under PEFT: pads inside the step, logits where labels stand
    all_logits   ours with logits for every token: what is left of the gain without the main part of it
    lm           the language model alone under PEFT, on our ids, with the logits that ours keeps

Cost model, in multiplications per token and forward pass: a layer has 4 H^2 + 3 H I, the head H V; with frozen weights
the backward pass costs as much again. At H 256, I 688, V 32000 and 4 layers the head is 8.2 M and the layers 3.2 M, so
that leaving out the head for all but a few tokens should give (8.2 + 3.2) / 3.2 = 3.6 times the speed. Attention,
norms and the optimizer pull that down; the softmax over 32000 columns, which is no multiplication, pulls it up.

    python benchmarks/train_step.py --json results/train_step.json
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.arms import (
    BATCH,
    BUILDERS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    VOCABULARY,
    Arm,
    make_batches,
    write_language_model,
)
from data_processor.schema import write_json
from training.record import commit

ARMS = tuple(BUILDERS)


def train_step(arm: Arm, optimizer: torch.optim.Optimizer, prepared: Any) -> tuple[float, float]:
    """(seconds, loss) of forward, backward and update."""
    begun = time.perf_counter()
    loss = arm.step(prepared)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - begun, float(loss.detach())


def measure_time(folder: Path, rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each arm's step in every round after `warm_up`; each round turns the order of the arms."""
    arms = {name: BUILDERS[name](folder) for name in ARMS}
    optimizers = {name: torch.optim.AdamW(arm.parameters, lr=1e-4) for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for number, batch in enumerate(make_batches(warm_up + rounds, seed=0)):
        shift = number % len(ARMS)
        for name in ARMS[shift:] + ARMS[:shift]:
            taken, loss = train_step(arms[name], optimizers[name], arms[name].prepare(batch))
            assert 9 < loss < 12, f"{name}: a random model's loss is about ln {VOCABULARY} = 10.4, not {loss}"
            seconds[name] += [taken] if number >= warm_up else []
        print(f"round {number + 1}/{warm_up + rounds}", end="\r", file=sys.stderr)
    return seconds


def measure_memory(name: str, threads: int) -> dict[str, float]:
    """Peak resident MiB of a fresh process that takes two steps of one arm: whole, and above the built model."""
    command = [sys.executable, __file__, "--memory_of", name, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(folder: Path, name: str) -> dict[str, float]:
    """In the child: two steps, then the peak that the kernel counted (getrusage would count the parent too)."""
    arm = BUILDERS[name](folder)
    optimizer = torch.optim.AdamW(arm.parameters, lr=1e-4)
    before = resident_mib("VmRSS")
    for batch in make_batches(2, seed=0):
        train_step(arm, optimizer, arm.prepare(batch))
    peak = resident_mib("VmHWM")
    return {"peak": peak, "step": peak - before}


def resident_mib(field: str) -> float:
    """`VmRSS`, resident memory now, or `VmHWM`, its peak since the program began (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024


def summarise(seconds: dict[str, list[float]], memory: dict[str, dict[str, float]]) -> dict[str, float]:
    """The three figures that count, medians, and the ratios that say where the gain is."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    layers, head = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE), HIDDEN * VOCABULARY
    return {
        "speedup_vs_pyg": median["pyg"] / median["ours"],
        "overhead_vs_lm": median["ours"] / median["lm"],
        "peak_memory_ratio": memory["ours"]["peak"] / memory["pyg"]["peak"],
        "step_memory_ratio": memory["ours"]["step"] / memory["pyg"]["step"],
        "predicted_speedup": (layers + head) / layers,
        "speedup_by_fewer_logits": median["all_logits"] / median["ours"],
        "speedup_by_the_rest": median["pyg"] / median["all_logits"],
        **{f"samples_per_second_{name}": BATCH / value for name, value in median.items()},
        **{f"milliseconds_{name}": 1000 * value for name, value in median.items()},
        **{f"peak_mib_{name}": values["peak"] for name, values in memory.items()},
        **{f"step_mib_{name}": values["step"] for name, values in memory.items()},
    }


def padding_share(rounds: int) -> float:
    """Share of padding in the batches, the same in all arms."""
    batches = [[len(f"{one.context} {one.question}".split()) for one in batch] for batch in make_batches(rounds, 0)]
    return 1 - sum(map(sum, batches)) / sum(BATCH * max(lengths) for lengths in batches)


def show(figures: dict[str, float], seconds: dict[str, list[float]], padding: float) -> None:
    """The table and the sentences under it."""
    print(f"{'arm':12}{'ms best':>10}{'median':>10}{'max':>10}{'samples/s':>12}{'peak MiB':>10}{'of it steps':>13}")
    for name, values in seconds.items():
        best, most = 1000 * min(values), 1000 * max(values)
        peak, step = figures[f"peak_mib_{name}"], figures[f"step_mib_{name}"]
        rate, median = figures[f"samples_per_second_{name}"], figures[f"milliseconds_{name}"]
        print(f"{name:12}{best:10.0f}{median:10.0f}{most:10.0f}{rate:12.2f}{peak:10.0f}{step:13.0f}")
    sentences = (
        "{speedup_vs_pyg:.2f} times PyG's samples/s (predicted {predicted_speedup:.2f})",
        "{overhead_vs_lm:.3f} times the step of the bare language model",
        "{peak_memory_ratio:.2f} times PyG's peak memory, {step_memory_ratio:.2f} times what its steps add",
        "The gain: {speedup_by_fewer_logits:.2f} by logits only where labels stand, {speedup_by_the_rest:.2f} by the "
        "rest (tokenising before training, one splice a batch).",
    )
    print("", *(sentence.format(**figures) for sentence in sentences), sep="\n")
    print(f"{padding:.0%} of the tokens are padding, in every arm alike: none of the gain is from there.")


def record(figures: dict[str, float], arguments: argparse.Namespace, minutes: float) -> dict[str, Any]:
    """The result file: the three figures that count, then how they came about and all the others."""
    counted = ("speedup_vs_pyg", "overhead_vs_lm", "peak_memory_ratio")
    return {name: figures[name] for name in counted} | {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {arguments.threads} used",
        "minutes": minutes,
        "seeds": [0],
        "metrics": figures,
    }


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="One training step beside PyG's GRetriever and the bare model.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory_of", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    begun = time.time()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        write_language_model(Path(name))
        if arguments.memory_of:
            print(json.dumps(memory_of(Path(name), arguments.memory_of)))
            return
        seconds = measure_time(Path(name), arguments.rounds, warm_up=2)
    figures = summarise(seconds, {name: measure_memory(name, arguments.threads) for name in ARMS})
    show(figures, seconds, padding_share(arguments.rounds))
    if arguments.json:
        write_json(arguments.json, record(figures, arguments, (time.time() - begun) / 60))


if __name__ == "__main__":
    main()
