"""Throughput in the Trainer's log: tokens, samples and graph nodes a second, MFU, peak memory; summed over processes.

What a batch holds is counted where it enters the model, on its device; the device is waited for only when the Trainer
writes a row of its log, where it waits anyway.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments
from transformers.pytorch_utils import Conv1D

from processing_graphllm import IGNORE_INDEX

GIB = 2**30
# words of a device's name -> dense bf16 operations a second, from NVIDIA's data sheets; the first row that fits counts
PEAKS = (
    (("B200",), 2250e12), (("H200", "NVL"), 836e12), (("H200",), 989e12), (("H100", "PCIe"), 756e12),
    (("H100", "NVL"), 836e12), (("H100",), 989e12), (("A100",), 312e12), (("L40S",), 362e12), (("L4",), 121e12),
    (("A10",), 125e12),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------- what a batch is
@dataclass(frozen=True)
class Counts:
    """What was read: real tokens (graph tokens too, padding not), samples, graph nodes, tokens with a label, and the
    sum of the squared lengths of the samples, which attention costs."""

    tokens: int
    samples: int
    nodes: int
    labels: int
    squares: int


def count(batch: Mapping[str, Any]) -> Tensor:
    """The fields of Counts, (5,) int64, on the batch's device and without waiting for it.

    Args:
        batch: what the model's forward is given, padded or packed, with labels.

    A packed row has no mask: a sample begins where its position is 0, and n^2 = sum over its positions p of 2 p + 1.
    """
    ids, mask, nodes = batch["input_ids"], batch.get("attention_mask"), batch.get("graph_node_features")
    if mask is not None:
        lengths = mask.sum(dim=1)  # (B,)
        tokens, samples, squares = lengths.sum(), ids.new_full((), len(ids)), (lengths**2).sum()
    else:
        positions = batch.get("position_ids")
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) if positions is None else positions
        tokens, samples = ids.new_full((), ids.numel()), (positions == 0).sum()
        squares = (2 * positions + 1).sum()
    labels = (batch["labels"] != IGNORE_INDEX).sum()
    return torch.stack([tokens, samples, ids.new_full((), 0 if nodes is None else len(nodes)), labels, squares])


# --------------------------------------------------------------------------------------------------- what it costs
@dataclass(frozen=True)
class Cost:
    """Multiplications (each with an addition) of a language model for one token, and how many have trained weights.

    Attributes:
        body, body_trained: of all layers, adapters included.
        head, head_trained: of the output head, which runs only where a label stands.
        attention: layers x heads x width of a head: of each pair of tokens, for the scores and again for the values.
    """

    body: int
    body_trained: int
    head: int
    head_trained: int
    attention: int

    def operations(self, counts: Counts) -> float:
        """Floating-point operations of a forward and a backward pass.

        PaLM (arXiv 2204.02311, appendix B) counts 6 N + 12 L H Q T a token: 2 N for the forward pass, 4 N for the
        gradients of activations (2 N) and of weights (2 N); attention alike, with no weights and two matrix products.
        Frozen weights need no gradient of their own: 4 N, so that LoRA costs 4 N + 6 N_adapters. What activation
        checkpointing computes again is not counted, nor is the reader of graphs.
        """
        body = counts.tokens * (4 * self.body + 2 * self.body_trained)
        head = counts.labels * (4 * self.head + 2 * self.head_trained)
        return body + head + 12 * self.attention * counts.squares


def cost_of(language_model: PreTrainedModel) -> Cost | None:
    """The cost of a decoder-only language model; None for kinds that the formula does not describe.

    Those are encoder-decoders, models with a recurrent state, and mixtures of experts (weights of three dimensions),
    of which a token meets only some.
    """
    config = language_model.config
    # ZeRO-3 leaves no shape in a parameter but notes it beside
    three = any(len(vars(one).get("ds_shape", one.shape)) > 2 for one in language_model.parameters())
    if config.is_encoder_decoder or language_model._is_stateful or three:
        return None
    head = {id(module) for module in language_model.get_output_embeddings().modules()}
    sums = {True: [0, 0], False: [0, 0]}
    for module in language_model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            size = multiplications(module)
            row = sums[id(module) in head]
            row[0] += size
            row[1] += size * module.weight.requires_grad
    width = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    return Cost(*sums[False], *sums[True], config.num_hidden_layers * config.num_attention_heads * width)


def multiplications(module: nn.Linear | Conv1D) -> int:
    """Of one token: inputs x outputs, also where 4 bits or a partition hide the shape of the weight."""
    return module.in_features * module.out_features if isinstance(module, nn.Linear) else module.nx * module.nf


def peak_operations(device_name: str) -> float | None:
    """Dense bf16 operations a second of a GPU by its name, None for one that is not in the table."""
    words = set(device_name.replace("-", " ").split())
    return next((peak for needed, peak in PEAKS if words.issuperset(needed)), None)


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: tensors on a GPU, the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ------------------------------------------------------------------------------------------------------- the log
class ThroughputLog(TrainerCallback):
    """Adds to each row of the log that has a loss, and in the history to the last one: `tokens` (read since the row
    before), `tokens_per_s`, `samples_per_s`, `graph_nodes_per_s`, `peak_gib` and, for known devices, `mfu`.

    It must come before the reporters among the callbacks. Time spent on evaluations and checkpoints does not count.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.hook: torch.utils.hooks.RemovableHandle | None = None
        self.total: Tensor | None = None
        self.seconds, self.since = 0.0, None

    def on_train_begin(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else ""
        self.peak, self.cost = peak_operations(name), cost_of(inner.language_model)
        self.hook = model.register_forward_pre_hook(self._read, with_kwargs=True)
        self.total, self.seconds, self.since = None, 0.0, None

    def _read(self, model: nn.Module, args: tuple[Any, ...], batch: dict[str, Any]) -> None:
        if model.training:
            counts = count(batch)
            self.total = counts if self.total is None else self.total + counts

    def _count_time(self, counts: bool) -> None:
        if self.since is None:  # no step was made yet: an evaluation alone, or a run that had ended before
            return
        now = self.clock()
        self.seconds += (now - self.since) * counts
        self.since = now

    def on_step_begin(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed run has passed over the batches that are done before its first step, and its time begins then."""
        if self.since is None:
            self.since = self.clock()

    def on_step_end(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._count_time(True)

    def on_evaluate(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._count_time(False)

    def on_save(self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._count_time(False)

    def on_log(
        self,
        args: HFTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if self.total is None or not {"loss", "train_runtime"} & logs.keys():  # of some steps, or after the last one
            return
        self._count_time(True)  # the Trainer has just waited for the device
        peak = torch.tensor(peak_memory(args.device), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(self.total)
            torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
        figures = self.figures(Counts(*self.total.tolist()), args.world_size) | {"peak_gib": int(peak) / GIB}
        state.log_history[-1].update(figures)
        if "loss" in logs:  # the last row is also what the Trainer returns: of the whole run, not of its last steps
            logs.update(figures)
        self.total, self.seconds = None, 0.0

    def figures(self, counts: Counts, devices: int) -> dict[str, float]:
        """The rates of what was counted in `self.seconds`."""
        rates = {"tokens": counts.tokens, "samples": counts.samples, "graph_nodes": counts.nodes}
        figures = {"tokens": float(counts.tokens)}
        figures |= {f"{name}_per_s": number / self.seconds for name, number in rates.items()}
        if self.peak and self.cost:
            figures["mfu"] = self.cost.operations(counts) / (self.seconds * self.peak * devices)
        return figures

    def on_train_end(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.hook.remove()
