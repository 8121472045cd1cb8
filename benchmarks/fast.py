"""What each option for speed brings on a CPU: time a sample and peak memory beside the plain padded batch, in one run.

The same 64 questions with graphs, LoRA (r 8 on q and v) on a Llama of 256 x 4 with random weights, batches of 8; two
sets: usual lengths (mean 156, longest 242 tokens), and a long tail (mean 144, longest 574).

    padded        the plain path: SDPA attention, batches in the order in which they were drawn
    grouped       --train_sampling_strategy group_by_length: the 64 sorted, as the Trainer sorts 50 batches at a time
    packed        --packing True: a batch is one row, SDPA works sample by sample
    packed_mask   the same row as transformers alone would read it: SDPA under a block-diagonal mask
    checkpointed  padded, --activation_checkpointing True
    eager         padded, --attn_implementation eager
    compiled      padded, --torch_compile True

Cost model, in multiplications: a token costs 2 x 3.16 M in the layers (forward, and backward through frozen weights),
a pair of tokens 6 x 4 x 256 in attention, a column of logits 2 x 8.2 M. So padding that is left out is time that is
left out (packed, grouped); a block-diagonal mask pays for (B n)^2 pairs instead of B n^2; checkpointing runs the
layers a third time; eager and compiled do the same multiplications. Times are CPU seconds of one thread: others on the
machine disturb them little.

    python benchmarks/fast.py --json results/fast.json
"""

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.arms import (
    BATCH,
    FEATURES,
    GNN_LAYERS,
    GRAPH_TOKENS,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    VOCABULARY,
    Sample,
    lora,
    messages_of,
    trainable,
    write_language_model,
)
from benchmarks.train_step import resident_mib
from data_processor.schema import write_json
from training.record import commit

ARMS = ("padded", "grouped", "packed", "packed_mask", "checkpointed", "eager", "compiled")
REMEMBERED = ("padded", "packed", "packed_mask", "checkpointed", "eager")  # whose memory is measured
SETS = ("usual", "long_tail")
SAMPLES = 64
BODY = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)

Encoded = dict[str, Any]


# ----------------------------------------------------------------------------------------------------------- the data
def draw_samples(kind: str, seed: int) -> list[Sample]:
    """64 questions with graphs of 8 to 24 nodes; the text in front of them has the lengths of the set."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def text(length: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(VOCABULARY - 100, (length,), generator=generator).tolist())

    def length() -> int:
        if kind == "usual":
            return draw(45, 205)
        return min(870, int(math.exp(4.5 + 0.9 * float(torch.randn((), generator=generator)))))

    def sample() -> Sample:
        nodes = draw(8, 24)
        features = torch.randn(nodes, FEATURES, generator=generator)
        edge_index = torch.randint(nodes, (2, 2 * nodes), generator=generator)
        graph = {"node_features": features, "edge_index": edge_index}
        return Sample(text(length()), text(draw(8, 16)), text(draw(2, 4)), graph)

    return [sample() for _ in range(SAMPLES)]


def batches_of(encoded: list[Encoded], grouped: bool) -> list[list[Encoded]]:
    """Batches of 8, as drawn or as the Trainer's sampler groups them."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order = list(range(len(encoded)))
    if grouped:
        lengths, generator = [len(one["input_ids"]) for one in encoded], torch.Generator().manual_seed(0)
        order = get_length_grouped_indices(lengths, BATCH, mega_batch_mult=SAMPLES // BATCH, generator=generator)
    return [[encoded[i] for i in order[first : first + BATCH]] for first in range(0, len(order), BATCH)]


# ----------------------------------------------------------------------------------------------------------- the arms
def build(folder: Path, arm: str) -> tuple[torch.nn.Module, Callable[[list[Encoded]], Any], Any]:
    """The model of an arm, how it makes a batch, and the processor."""
    from peft import get_peft_model
    from transformers import AutoTokenizer

    from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
    from processing_graphllm import GraphLLMProcessor
    from training.packing import use_packed_sdpa
    from training.speed import compile_layers

    graph_config = GraphConfig(
        encoder="gat", feature_dim=FEATURES, hidden_dim=HIDDEN, num_layers=GNN_LAYERS, num_heads=HEADS,
        num_tokens=GRAPH_TOKENS, projector="mlp", projector_hidden_dim=HIDDEN,
    )  # fmt: skip
    processor = GraphLLMProcessor.from_tokenizer(AutoTokenizer.from_pretrained(folder), num_graph_tokens=GRAPH_TOKENS)
    attention = {"attn_implementation": "eager" if arm == "eager" else "sdpa"}
    model = GraphLLMForConditionalGeneration.from_components(
        str(folder), graph_config, processor.graph_token_id, **attention
    )
    language_model = model.language_model
    model = get_peft_model(
        model, lora(r"language_model\..*\.(q_proj|v_proj)", ["graph_encoder", "graph_projector"])
    ).train()
    if arm == "packed":
        use_packed_sdpa(language_model)
    if arm == "checkpointed":
        model.activation_checkpointing_enable()
    if arm == "compiled":
        compile_layers(language_model, "inductor", None)
    return model, processor.pack if arm.startswith("packed") else processor.pad, processor


def encode(folder: Path, kind: str) -> list[Encoded]:
    """The set as token ids, as `EncodedDataset` makes them once before training."""
    processor = build(folder, "padded")[2]
    return [processor.encode(messages_of(one)) for one in draw_samples(kind, seed=0)]


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> tuple[float, float]:
    """(CPU seconds, loss) of forward, backward and update."""
    begun = time.process_time()
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.process_time() - begun, float(loss.detach())


def measure_time(folder: Path, encoded: list[Encoded], rounds: int) -> dict[str, list[float]]:
    """CPU seconds a sample of each arm in every round over all batches; three batches warm up, the arms take turns."""
    built = {arm: build(folder, arm) for arm in ARMS}
    optimizers = {arm: torch.optim.AdamW(trainable(model), lr=1e-4) for arm, (model, _, _) in built.items()}
    batches = {arm: batches_of(encoded, arm == "grouped") for arm in ARMS}
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds + 1):
        total = dict.fromkeys(ARMS, 0.0)
        for i in range(SAMPLES // BATCH if number else 3):
            for arm in ARMS[i % len(ARMS) :] + ARMS[: i % len(ARMS)]:
                model, batch, _ = built[arm]
                taken, loss = train_step(model, optimizers[arm], dict(batch(batches[arm][i])))
                assert 9 < loss < 12, f"{arm}: a random model's loss is about ln {VOCABULARY} = 10.4, not {loss}"
                total[arm] += taken
        for arm in ARMS:
            seconds[arm] += [total[arm] / SAMPLES] if number else []
        print(f"round {number}/{rounds}", end="\r", file=sys.stderr)
    return seconds


# ----------------------------------------------------------------------------------------------------- memory, theory
def measure_memory(arm: str, threads: int) -> dict[str, float]:
    """Peak resident MiB of a fresh process that takes two steps of one arm, and what of it the steps added."""
    command = [sys.executable, __file__, "--memory_of", arm, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(folder: Path, arm: str) -> dict[str, float]:
    """In the child: the batch of the long tail with the longest sample, twice."""
    encoded = encode(folder, "long_tail")
    model, make, _ = build(folder, arm)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-4)
    longest = max(batches_of(encoded, grouped=False), key=lambda batch: max(len(one["input_ids"]) for one in batch))
    before = resident_mib("VmRSS")
    for _ in range(2):
        train_step(model, optimizer, dict(make(longest)))
    peak = resident_mib("VmHWM")
    return {"peak": peak, "step": peak - before}


def predicted_cost(encoded: list[Encoded], arm: str) -> float:
    """Multiplications of an epoch by the cost model above."""
    total = 0.0
    for batch in batches_of(encoded, arm == "grouped"):
        lengths = [len(one["input_ids"]) for one in batch]
        answers = [sum(label >= 0 for label in one["labels"]) for one in batch]
        if arm.startswith("packed"):
            tokens, columns = sum(lengths), sum(answers)
            pairs = sum(n**2 for n in lengths) if arm == "packed" else tokens**2
        else:
            tokens, columns = BATCH * max(lengths), BATCH * max(answers)
            pairs = BATCH * max(lengths) ** 2
        again = 1.5 if arm == "checkpointed" else 1.0
        total += again * (2 * BODY * tokens + 6 * LAYERS * HIDDEN * pairs) + 2 * HIDDEN * VOCABULARY * columns
    return total


def padding_share(encoded: list[Encoded], grouped: bool) -> float:
    """The share of padding in the batches of an epoch."""
    lengths = [[len(one["input_ids"]) for one in batch] for batch in batches_of(encoded, grouped)]
    return 1 - sum(map(sum, lengths)) / sum(BATCH * max(batch) for batch in lengths)


def summarise(encoded: list[Encoded], seconds: dict[str, list[float]]) -> dict[str, float]:
    """Per arm: milliseconds a sample, speed beside the padded arm by medians and by bests, and the prediction."""
    plain, lengths = predicted_cost(encoded, "padded"), [len(one["input_ids"]) for one in encoded]
    figures = {
        "mean_tokens": statistics.mean(lengths), "max_tokens": max(lengths),
        "padding": padding_share(encoded, False), "padding_grouped": padding_share(encoded, True),
    }  # fmt: skip
    for arm, values in seconds.items():
        figures |= {
            f"{arm}/ms_per_sample_median": 1000 * statistics.median(values),
            f"{arm}/ms_per_sample_best": 1000 * min(values),
            f"{arm}/speed": statistics.median(seconds["padded"]) / statistics.median(values),
            f"{arm}/speed_of_bests": min(seconds["padded"]) / min(values),
            f"{arm}/speed_predicted": plain / predicted_cost(encoded, arm),
        }
    return figures


def show(kind: str, figures: dict[str, float]) -> None:
    """The table of one set."""
    print("{kind}: mean {mean_tokens:.0f}, longest {max_tokens} tokens; padding {padding:.0%}, grouped "
          "{padding_grouped:.0%}".format(kind=kind, **figures))  # fmt: skip
    print(f"{'arm':14}{'ms a sample':>12}{'best':>8}{'speed':>8}{'of bests':>10}{'predicted':>11}")
    for arm in ARMS:
        names = ("ms_per_sample_median", "ms_per_sample_best", "speed", "speed_of_bests", "speed_predicted")
        median, best, speed, of_bests, predicted = (figures[f"{arm}/{name}"] for name in names)
        print(f"{arm:14}{median:12.1f}{best:8.1f}{speed:8.2f}{of_bests:10.2f}{predicted:11.2f}")


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="What each option for speed brings on a CPU.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory_of", choices=REMEMBERED, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    begun = time.time()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_language_model(folder)
        if arguments.memory_of:
            print(json.dumps(memory_of(folder, arguments.memory_of)))
            return
        metrics = {}
        for kind in SETS:
            encoded = encode(folder, kind)
            figures = summarise(encoded, measure_time(folder, encoded, arguments.rounds))
            show(kind, figures)
            metrics |= {f"{kind}/{name}": value for name, value in figures.items()}
    memory = {arm: measure_memory(arm, arguments.threads) for arm in REMEMBERED}
    for arm, values in memory.items():
        ratio = values["step"] / memory["padded"]["step"]
        metrics |= {f"memory/{arm}/{name}_mib": value for name, value in values.items()}
        metrics[f"memory/{arm}/step_ratio"] = ratio
        print(f"{arm:14}peak {values['peak']:.0f} MiB, {values['step']:.0f} of it by steps, {ratio:.2f} of padded")
    if arguments.json:
        write_json(arguments.json, {
            "command": shlex.join(["python", *sys.argv]), "commit": commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {arguments.threads} used",
            "minutes": (time.time() - begun) / 60, "seeds": [0], "metrics": metrics,
        })  # fmt: skip


if __name__ == "__main__":
    main()
