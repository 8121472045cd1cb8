"""GPUs, hours and bytes for 8B, 70B and 405B on data of STaRK-Prime's size: the tables of docs/scaling.md.

Bytes come from training/memory.py for the recipes in configs/ (no weight exists while they are counted), hours from
the floating point operations of a step. What is assumed stands in the constants below and is said on the page.

    python benchmarks/scaling.py                                  # prints the tables
    python benchmarks/scaling.py --json results/scaling.json
"""

import argparse
import math
import os
import platform
import shlex
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.shapes import language_model_shape, with_adapters, with_graphs
from data_processor.schema import write_json
from modeling_graphllm import IGNORE_INDEX, GraphConfig
from training.memory import GIB, Estimate, estimate, step_of
from training.record import commit
from training.sharding import Kind

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = 6162  # STaRK-Prime's training questions
TOKENS = 6400  # assumed: the recipes' 6,144 tokens of facts, used to the full, and 256 of question, graph and template
LABELS = 128  # assumed: the longest answer that the recipes allow
NODES, EDGES, FEATURES = 200, 400, 1536  # assumed graph; width of the recipes' text encoder
FLOPS = 989e12  # a second, H100 SXM, bf16 without sparsity (data sheet)
SHARE = {"LoRA": 0.4, "QLoRA": 0.3, "full": 0.4}  # assumed share of FLOPS that is reached: no GPU was at hand
ROOM = 0.9 * 80e9  # bytes of an 80 GB GPU that are planned with; the rest is the allocator's and NCCL's
HOST = 0.9 * 2e12 / 8  # bytes of host memory a GPU that are planned with: assumed, a node of eight with 2 TB
VOCABULARY = 128256
SIZES = {"8B": (4096, 14336, 32, 32), "70B": (8192, 28672, 80, 64), "405B": (16384, 53248, 126, 128)}
QLORA = {"8B": "stark_prime_8b_qlora", "70B": "stark_prime_70b_qlora", "405B": "stark_prime_70b_qlora"}
FULL = "stark_prime_8b_full"


@dataclass(frozen=True)
class Plan:
    """One row: a size, a way to train it, and what divides it.

    Attributes:
        size: of SIZES. way: LoRA, QLoRA or full. kind: the engine. rank: of the adapters.
        recipe: the file in configs/ that all else is read from. offload: optimizer and weights to the host.
    """

    size: str
    way: str
    kind: Kind
    recipe: str
    rank: int = 64
    offload: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        return yaml.safe_load((ROOT / "configs" / f"{self.recipe}.yaml").read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        adapters = "" if self.way == "full" else f", rank {self.rank}"
        return f"{self.size} {self.way}{adapters}, ZeRO-{self.kind[-1]}{' with offload' if self.offload else ''}"


def plans() -> list[Plan]:
    """All rows. QLoRA is as its recipe says where there is one for the size."""
    ranks = {"8B": 4096, "70B": 512, "405B": 64}
    found = []
    for size in SIZES:
        found.append(Plan(size, "LoRA", "zero2" if size == "8B" else "zero3", QLORA["70B"]))
        found.append(Plan(size, "QLoRA", "zero3" if size == "405B" else "zero2", QLORA[size], ranks[size]))
        found.append(Plan(size, "full", "zero3", FULL))
    return [*found, Plan("405B", "full", "zero3", FULL, offload=True)]


def model_of(plan: Plan) -> nn.Module:
    """The model of a row, without memory."""
    width, inner, layers, heads = SIZES[plan.size]
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8,
    )  # fmt: skip
    given = plan.settings
    graph = GraphConfig(
        encoder=given["graph_encoder"], feature_dim=FEATURES, hidden_dim=given["graph_hidden_dim"],
        num_layers=given["graph_num_layers"], dropout=given["graph_dropout"], projector=given["graph_projector"],
        num_tokens=given["num_graph_tokens"], projector_hidden_dim=given["projector_hidden_dim"],
    )  # fmt: skip
    bits = 4 if plan.way == "QLoRA" else None
    with torch.device("meta"):
        model = with_graphs(language_model_shape(config, torch.bfloat16, bits), graph, VOCABULARY)
        if plan.way == "full":
            return model.to(torch.bfloat16)
        return with_adapters(model, plan.rank, given["lora_target_modules"])


def batch_of(plan: Plan) -> dict[str, torch.Tensor]:
    """The longest batch of a row: no padding, a graph a sample."""
    size = plan.settings["per_device_train_batch_size"]
    ids = torch.ones(size, TOKENS, dtype=torch.long)
    ids[:, : plan.settings["num_graph_tokens"]] = VOCABULARY
    labels = ids.masked_fill(torch.arange(TOKENS) < TOKENS - LABELS, IGNORE_INDEX)
    edges = torch.arange(EDGES * size).expand(2, -1) % (NODES * size)
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "graph_node_features": torch.empty(NODES * size, FEATURES, device="meta"), "graph_edge_index": edges,
        "graph_batch": torch.arange(size).repeat_interleave(NODES),
    }  # fmt: skip


def estimate_of(plan: Plan) -> tuple[Estimate, dict[str, int]]:
    """The memory of a row, and the counts that its hours follow from."""
    model = model_of(plan)
    adam = plan.settings["optim"]
    flags = Namespace(
        deepspeed=str(ROOT / "ds_configs" / f"{plan.kind}{'_offload' if plan.offload else ''}.json"), fsdp=None,
        world_size=1, optim=adam, bf16=True, fp16=False, gradient_accumulation_steps=1, activation_checkpointing=True,
        activation_checkpointing_kwargs=None, graph_learning_rate=None, use_cpu=False,
    )  # fmt: skip
    found = estimate(model, batch_of(plan), step_of(flags, SIZES[plan.size][0]))
    return found, computing(model)


def computing(model: nn.Module) -> dict[str, int]:
    """The trained and the frozen weights of the language model that every token passes through.

    Embeddings are looked up and the head computes logits for labels alone; encoder and projector read nodes.
    """
    aside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    counts = {"trained": 0, "frozen": 0}
    for name, one in model.named_parameters():
        if "language_model." in name and id(one) not in aside:
            counts["trained" if one.requires_grad else "frozen"] += one.numel()
    return counts


def flops_per_token(plan: Plan, counts: dict[str, int]) -> float:
    """Floating point operations of a training step, a token.

    Kaplan et al., arXiv 2001.08361, section 2.1: 2 a weight and token forward, twice that backward; a frozen weight
    has no gradient of its own and takes 2 backward. Attention, forward, a layer: 2 x tokens x width (scores and sums,
    the causal half). Activation checkpointing runs the forward pass twice (Korthikanti et al., arXiv 2205.05198).
    """
    width, _, layers, _ = SIZES[plan.size]
    attention = 2 * TOKENS * width * layers
    return 8 * counts["trained"] + 6 * counts["frozen"] + 4 * attention


def gpus_needed(found: Estimate) -> int | None:
    """The smallest power of two of GPUs on which the row fits, up to 1,024."""
    for count in (2**i for i in range(11)):
        most = found.table(count)["all"]
        if most.gpu <= ROOM and most.host <= HOST:
            return count
    return None


def row_of(plan: Plan) -> dict[str, Any]:
    """All figures of a row."""
    found, counts = estimate_of(plan)
    gpus = gpus_needed(found)
    table = found.table(gpus or 1)
    flops = flops_per_token(plan, counts)
    epochs = plan.settings["num_train_epochs"]
    seconds = QUESTIONS * epochs * TOKENS * flops / (FLOPS * SHARE[plan.way])
    memory = {f"{name}_gib": row.gpu / GIB for name, row in table.items()}
    traced = sum(row.gpu for name, row in table.items() if name in found.traced.parts) / GIB
    formulas = {name: row.formula for name, row in table.items()}
    return {
        **counts, **memory, "formulas": formulas, "share": SHARE[plan.way], "gpus": gpus,
        "traced_gib": traced, "host_gib": table["all"].host / GIB,
        "epochs": epochs, "batch": plan.settings["per_device_train_batch_size"], "flops_per_token": flops,
        "gpu_hours": seconds / 3600,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the tables
def memory_table(rows: dict[str, dict[str, Any]]) -> str:
    """GiB on each GPU, as markdown."""
    head = "| model, way, engine | batch a GPU | weights | gradients | states, fp32 copies | buffers, gathered | "
    head += "activations | most at once | on the host | GPUs of 80 GB |"
    lines = [head, "|" + "---|" * 10]
    for name, row in rows.items():
        cells = [
            row["weights_gib"], row["gradients_gib"], row["optimizer_gib"] + row.get("master_weights_gib", 0),
            row.get("buckets_gib", 0) + row.get("gathered_gib", 0), row["traced_gib"], row["all_gib"],
            row["host_gib"],
        ]  # fmt: skip
        size = " | ".join(f"{cell:,.1f}" for cell in cells)
        gpus = f"{row['gpus']:,}" if row["gpus"] else "does not fit"
        lines.append(f"| {name} | {row['batch']} | {size} | {gpus} |")
    return "\n".join(lines)


def hours_table(rows: dict[str, dict[str, Any]]) -> str:
    """Operations and hours, as markdown."""
    head = "| model, way, engine | trained | frozen | operations a token | epochs | GPU hours | hours on these GPUs | "
    lines = [head + "on 64 |", "|" + "---|" * 8]
    for name, row in rows.items():
        hours = row["gpu_hours"]
        here = f"{hours / row['gpus']:,.1f}" if row["gpus"] else "-"
        counts = " | ".join(f"{row[name] / 1e9:,.2f} G" for name in ("trained", "frozen", "flops_per_token"))
        many = f"{hours / 64:,.1f}" if (row["gpus"] or math.inf) <= 64 else "-"
        lines.append(f"| {name} | {counts} | {row['epochs']} | {hours:,.0f} | {here} | {many} |")
    return "\n".join(lines)


def steps(name: str, row: dict[str, Any]) -> str:
    """One row's arithmetic, a line each, as markdown."""
    lines = [f"* {part}: {formula} = {row[f'{part}_gib']:,.2f} GiB" for part, formula in row["formulas"].items()]
    each = row["flops_per_token"]
    lines.append(
        f"* operations a token: 8 x {row['trained'] / 1e9:,.2f} G trained + 6 x {row['frozen'] / 1e9:,.2f} G frozen + "
        f"attention = {each / 1e9:,.1f} G"
    )
    lines.append(
        f"* hours: {QUESTIONS:,} questions x {row['epochs']} epochs x {TOKENS:,} tokens x {each / 1e9:,.1f} G / "
        f"({FLOPS / 1e12:,.0f} T x {row['share']}) = {row['gpu_hours']:,.1f} GPU hours, on {row['gpus']} GPUs "
        f"{row['gpu_hours'] / row['gpus']:,.1f} hours"
    )
    return "\n".join([f"{name}, on {row['gpus']} GPUs:", "", *lines])


SHOWN = ("8B full, ZeRO-3", "70B QLoRA, rank 512, ZeRO-2")


def main(argv: list[str] | None = None) -> None:
    """Computes, prints, writes."""
    parser = argparse.ArgumentParser(description="GPUs, hours and bytes on data of STaRK-Prime's size.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args(argv)
    begun = time.time()
    rows = {}
    for plan in plans():
        rows[plan.name] = row_of(plan)
        print(plan.name, f"{time.time() - begun:.0f} s", file=sys.stderr, flush=True)
    print(memory_table(rows), hours_table(rows), *(steps(name, rows[name]) for name in SHOWN), sep="\n\n")
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, no GPU: nothing here was run"
        record = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": machine}
        write_json(arguments.json, record | {"minutes": (time.time() - begun) / 60, "seeds": [], "metrics": rows})


if __name__ == "__main__":
    main()
