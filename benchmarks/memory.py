"""Predicted over measured memory of training steps: weights, gradients, optimizer states, activations.

The prediction (training/memory.py) sees a configuration: no weight exists. The measurement builds the model, takes a
step, and counts the storages of weights, gradients and states; the peak of activations is what torch's CPU allocator
handed out in forward and backward, beside weights and gradients.

    python benchmarks/memory.py --json results/memory.json
"""

import argparse
import gc
import os
import platform
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from torch import nn
from transformers import LlamaConfig, MixtralConfig, Qwen2Config, T5Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.held import allocator_peak, held, held_by
from benchmarks.shapes import freeze, language_model_shape, packing, with_adapters, with_graphs
from data_processor.schema import write_json
from modeling_graphllm import IGNORE_INDEX, GraphConfig, GraphLLMForConditionalGeneration
from training.activations import Pass, step_loss
from training.memory import Estimate, Step, estimate
from training.record import commit
from training.sharding import Engine

VOCABULARY, TOKENS_PER_GRAPH, NODES = 8000, 8, 200
GRAPH = GraphConfig(feature_dim=384, hidden_dim=256, num_layers=4, num_tokens=TOKENS_PER_GRAPH)
MODELS = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, bos_token_id=1, eos_token_id=2,
    ),
    "qwen2": Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    ),
    "mixtral": MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, bos_token_id=1, eos_token_id=2,
    ),
    "t5": T5Config(
        vocab_size=VOCABULARY, d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_heads=4, decoder_start_token_id=0,
    ),
}  # fmt: skip
ADAPTED = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj"], "mixtral": ["q_proj", "v_proj"], "t5": ["q", "v"],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row: a model, how it is trained and on what.

    Attributes:
        model: of MODELS. way: full, lora, frozen, 4bit or 8bit (with LoRA).
        batch, tokens, labels: of the step; each sample but the first is padded.
        bf16: mixed precision; a language model that is not trained itself is held in bfloat16.
        checkpointing: of activations. optimizer: its name in the Trainer.
    """

    model: str
    way: str
    batch: int = 2
    tokens: int = 128
    labels: int = 16
    bf16: bool = False
    checkpointing: bool = False
    optimizer: str = "adamw_torch"

    @property
    def name(self) -> str:
        kind = f"{'bf16' if self.bf16 else 'fp32'}{' checkpointing' if self.checkpointing else ''}"
        eight = " adam 8 bit" if "8bit" in self.optimizer else ""
        return f"{self.model} {self.way} {kind}{eight}, {self.batch} x {self.tokens}, {self.labels} labels"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 and self.way != "full" else torch.float32

    @property
    def bits(self) -> int | None:
        return {"4bit": 4, "8bit": 8}.get(self.way)

    @property
    def how(self) -> Pass:
        return Pass(torch.bfloat16 if self.bf16 else None, None, {} if self.checkpointing else None)


CASES = (
    Case("llama", "full"),
    Case("llama", "full", checkpointing=True, batch=1, tokens=512, labels=128),
    Case("llama", "full", bf16=True, optimizer="adamw_8bit"),
    Case("llama", "lora"),
    Case("llama", "lora", bf16=True, checkpointing=True, batch=4),
    Case("llama", "frozen", bf16=True),
    Case("llama", "4bit", bf16=True, optimizer="paged_adamw_8bit"),
    Case("llama", "4bit", checkpointing=True, batch=1, tokens=512, optimizer="adamw_8bit"),
    Case("llama", "8bit", bf16=True),
    Case("qwen2", "full", batch=4, optimizer="adamw_8bit"),
    Case("qwen2", "lora", bf16=True, checkpointing=True, tokens=384),
    Case("mixtral", "full"),
    Case("t5", "full", labels=32),
)


# ------------------------------------------------------------------------------------------------------ the prediction
def predict(case: Case) -> Estimate:
    """What the model will take, from its configuration alone."""
    language_model = language_model_shape(MODELS[case.model], case.dtype, case.bits)
    model = adapted(case, with_graphs(language_model, GRAPH, VOCABULARY))
    return estimate(model, make_batch(case), Step(Engine(optimizer=case.optimizer), case.how))


def adapted(case: Case, model: Any) -> nn.Module:
    """The model with those parameters marked that the case trains."""
    if case.way == "full":
        return model
    return freeze(model) if case.way == "frozen" else with_adapters(model, 16, ADAPTED[case.model])


def make_batch(case: Case) -> dict[str, torch.Tensor]:
    """The arguments of the model's forward: a graph a sample, left padding, labels at the end (or for a decoder)."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, case.tokens)
    ids = torch.randint(5, VOCABULARY, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.long)
    for row in range(1, case.batch):
        mask[row, : 3 * row] = 0
    ids[:, case.tokens // 4 : case.tokens // 4 + TOKENS_PER_GRAPH] = VOCABULARY  # the placeholder
    labels = ids.masked_fill(torch.arange(case.tokens) < case.tokens - case.labels, IGNORE_INDEX)
    if MODELS[case.model].is_encoder_decoder:
        labels = labels[:, -case.labels :]
    shifts = NODES * torch.arange(case.batch).repeat_interleave(3 * NODES)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "graph_node_features": torch.randn(case.batch * NODES, GRAPH.feature_dim, generator=generator),
        "graph_edge_index": torch.randint(NODES, (2, 3 * NODES * case.batch), generator=generator) + shifts,
        "graph_batch": torch.arange(case.batch).repeat_interleave(NODES),
    }


# ----------------------------------------------------------------------------------------------------- the measurement
def measure(case: Case, folder: Path) -> dict[str, int]:
    """One real step: bytes of the storages of weights, gradients and states, and the allocator's peak beside them."""
    model = adapted(case, real_model(case, folder)).train()
    if case.checkpointing:
        model.activation_checkpointing_enable()
    batch = make_batch(case)
    weights = held_by(model, set())
    peak, joint = allocator_peak(model, lambda: step_loss(model, batch, case.how.autocast).backward())
    gradients = held((one.grad for one in model.parameters()), set())
    optimizer = make_optimizer(case, model)
    optimizer.step()
    state = [value for row in optimizer.state.values() for value in row.values()]
    found = {"weights": weights, "gradients": gradients, "optimizer": held(state, set())}
    return found | {"activations": peak, "backward": joint}


def real_model(case: Case, folder: Path) -> GraphLLMForConditionalGeneration:
    """Random weights, loaded by `from_pretrained` in the case's type and packed as it says."""
    torch.manual_seed(0)
    kind = type(language_model_shape(MODELS[case.model], torch.float32))
    kind(MODELS[case.model]).save_pretrained(folder / case.model)
    settings = {"quantization_config": packing(case.bits, case.dtype)} if case.bits else {}
    language_model = kind.from_pretrained(folder / case.model, dtype=case.dtype, **settings)
    return with_graphs(language_model, GRAPH, VOCABULARY)


def make_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    """As the Trainer makes it: bitsandbytes' keeps embeddings in 32 bits."""
    trained = [one for one in model.parameters() if one.requires_grad]
    if case.optimizer == "adamw_torch":
        return torch.optim.AdamW(trained)
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    manager.initialize()  # it remembers by address, also weights of the case before
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return bitsandbytes.optim.AdamW(trained, optim_bits=8, is_paged=case.optimizer.startswith("paged"))


# -------------------------------------------------------------------------------------------------------------- report
def compare(case: Case, folder: Path) -> dict[str, float]:
    """Predicted over measured, and the measured MiB, of every part."""
    begun = time.perf_counter()
    found = predict(case)
    seconds = time.perf_counter() - begun
    table = found.table()
    traced = sum(found.traced.parts.values())
    steady = table["weights"].gpu + table["optimizer"].gpu
    predicted = {name: table[name].gpu for name in ("weights", "gradients", "optimizer")}
    predicted |= {"activations": traced, "backward": table["all"].gpu - steady}
    real = measure(case, folder)
    gc.collect()
    figures = {f"{name}_ratio": predicted[name] / real[name] for name in predicted}
    return figures | {f"{name}_mib": size / 2**20 for name, size in real.items()} | {"trace_seconds": seconds}


def show(name: str, row: dict[str, float]) -> None:
    """One line of the table."""
    parts = ("weights", "gradients", "optimizer", "activations", "backward")
    ratios = "".join(f"{row[f'{part}_ratio']:>12.4f}" for part in parts)
    print(f"{name:<58}{ratios}{row['activations_mib']:>10.1f}{row['trace_seconds']:>8.1f}", flush=True)


def summarise(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """The largest deviations from 1."""
    parts = ("weights", "gradients", "optimizer", "activations", "backward")
    return {f"largest_deviation_{part}": max(abs(row[f"{part}_ratio"] - 1) for row in rows.values()) for part in parts}


def main(argv: list[str] | None = None) -> None:
    """Predicts, measures, prints, writes."""
    parser = argparse.ArgumentParser(description="Predicted over measured memory of training steps.")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    arguments = parser.parse_args(argv)
    begun = time.time()
    print(f"{'predicted / measured':<58}{'weights':>12}{'gradients':>12}{'optimizer':>12}{'activations':>12}"
          f"{'backward':>12}{'MiB':>10}{'s':>8}")  # fmt: skip
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if arguments.only in case.name:
                rows[case.name] = compare(case, Path(folder))
                show(case.name, rows[case.name])
    figures = summarise(rows)
    print(*(f"{name} {value:.4f}" for name, value in figures.items()), sep="\n")
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, {torch.get_num_threads()} used, no GPU"
        record = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": machine}
        record |= {"minutes": (time.time() - begun) / 60, "seeds": [0]}
        write_json(arguments.json, figures | record | {"metrics": figures | {"rows": rows}})


if __name__ == "__main__":
    main()
