"""The figures of the log against counts by hand, with a clock that is set by hand."""

import pytest
import torch
from conftest import FEATURES, build_language_model
from peft import LoraConfig, get_peft_model
from tiny_world import flags, write_dataset
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, TrainerCallback, TrainerState
from transformers import TrainingArguments as HFTrainingArguments

import finetune
from training import throughput
from training.throughput import Cost, Counts, ThroughputLog, cost_of, count, multiplications, peak_operations

H, INTERMEDIATE, LAYERS, WORDS = 16, 32, 2, 261  # of conftest's Llama: two heads of queries, one of keys and values
BODY = LAYERS * (2 * H * H + 2 * H * H // 2 + 3 * H * INTERMEDIATE)
ATTENTION = LAYERS * H


@pytest.fixture
def batches(build_model, ask) -> tuple[dict, dict]:
    """The same three samples padded and packed."""
    _, processor = build_model()
    graph = {"node_features": torch.ones(4, FEATURES), "edge_index": [[0], [1]], "edge_features": torch.ones(1, 5)}
    examples = [
        processor.encode(ask("who?", [graph, graph], answer="Bob")),
        processor.encode(ask("a", [], answer="b")),
        processor.encode(ask("what is this?", [graph], answer="yes")),
    ]
    lengths = [len(example["input_ids"]) for example in examples]
    by_hand = Counts(
        tokens=sum(lengths), samples=3, nodes=12, labels=len("Bob") + len("b") + len("yes") + 3,
        squares=sum(length**2 for length in lengths),
    )  # fmt: skip
    return by_hand, dict(processor.pad(examples)), dict(processor.pack(examples))


def test_padded_and_packed_batches_are_counted_alike_and_without_padding(batches):
    by_hand, padded, packed = batches
    assert padded["input_ids"].numel() > by_hand.tokens
    assert Counts(*count(padded).tolist()) == Counts(*count(packed).tolist()) == by_hand


def test_counting_does_not_wait_for_the_device(batches):
    for batch in batches[1:]:
        assert count({name: tensor.to("meta") for name, tensor in batch.items()}).is_meta  # no value can be read


def test_a_row_without_mask_and_positions_is_one_sample():
    batch = {"input_ids": torch.ones(1, 5, dtype=torch.long), "labels": torch.full((1, 5), 1)}
    assert count(batch).tolist() == [5, 1, 0, 5, 25]


def test_operations_are_those_of_palm_and_frozen_weights_cost_four_instead_of_six():
    full = cost_of(build_language_model())
    assert full == Cost(BODY, BODY, H * WORDS, H * WORDS, ATTENTION)
    counts = Counts(tokens=10, samples=2, nodes=0, labels=3, squares=52)
    assert full.operations(counts) == 10 * 6 * BODY + 3 * 6 * H * WORDS + 12 * ATTENTION * 52
    model = get_peft_model(build_language_model(), LoraConfig(r=4, target_modules=["q_proj"]))
    lora = cost_of(model.get_base_model())
    adapters = LAYERS * 2 * 4 * H
    assert lora == Cost(BODY + adapters, adapters, H * WORDS, 0, ATTENTION)
    expected = 10 * (4 * BODY + 6 * adapters) + 3 * 4 * H * WORDS + 12 * ATTENTION * 52
    assert lora.operations(counts) == expected


def test_matrices_count_by_their_sides_also_where_they_are_stored_otherwise():
    linear = nn.Linear(6, 10)
    linear.weight = nn.Parameter(torch.empty(30, 1, dtype=torch.uint8), requires_grad=False)  # 4 bits
    assert multiplications(linear) == 60
    gpt2 = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2))
    assert cost_of(gpt2).body == 12 * 16 * 16


@pytest.mark.parametrize("kind", ["t5", "mamba", "mixtral"])
def test_models_that_the_formula_does_not_describe_get_no_mfu(kind):
    small = {
        "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "num_key_value_heads": 1, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
    }  # fmt: skip
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    assert cost_of(auto.from_config(AutoConfig.for_model(kind, **small))) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12), ("NVIDIA A10G", None), ("Tesla T4", None), ("", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_device_is_known_by_its_name_or_not_at_all(name, peak):
    assert peak_operations(name) == peak


# ------------------------------------------------------------------------------------------------------------- the log
class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log(build_model, tmp_path, monkeypatch):
    """A log of a model on a device of 1e6 operations a second, begun, and what its events are told."""
    monkeypatch.setattr(throughput, "peak_operations", lambda name: 1e6)
    monkeypatch.setattr(throughput, "peak_memory", lambda device: 3 * 2**29)
    model, _ = build_model()
    clock = Clock()
    log = ThroughputLog(clock)
    told = (HFTrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerState(), None)
    log.on_train_begin(*told, model=model.train())
    return log, model, clock, told


def write_row(log: ThroughputLog, told: tuple) -> dict:
    """One row of the Trainer's log, which has it in its history before the callbacks see it."""
    logs = {"loss": 1.0}
    told[1].log_history.append({**logs, "step": 1})
    log.on_log(*told, logs=logs)
    assert told[1].log_history[-1] == {**logs, "step": 1}
    return logs


def test_the_figures_are_those_of_a_count_by_hand(log, batches):
    log, model, clock, told = log
    by_hand, padded, packed = batches
    clock.now = 107  # the loader passes over batches that are done
    log.on_step_begin(*told)
    model(**padded)
    log.on_step_begin(*told)
    model(**packed)
    with torch.no_grad():
        model.eval()(**padded)  # an evaluation does not count
    model.train()
    clock.now = 109
    log.on_step_end(*told)
    clock.now = 111  # until the device is done
    row = write_row(log, told)
    cost = Cost(BODY, BODY, H * WORDS, H * WORDS, ATTENTION).operations(by_hand)
    assert row == {
        "loss": 1.0, "tokens": 2 * by_hand.tokens, "tokens_per_s": 2 * by_hand.tokens / 4, "samples_per_s": 6 / 4,
        "graph_nodes_per_s": 24 / 4,
        "mfu": pytest.approx(2 * cost / (4 * 1e6)), "peak_gib": 1.5,
    }  # fmt: skip


def test_time_of_evaluations_and_checkpoints_does_not_count_and_rows_begin_anew(log, batches):
    log, model, clock, told = log
    log.on_step_begin(*told)
    model(**batches[1])
    clock.now = 102
    write_row(log, told)
    clock.now = 150
    log.on_evaluate(*told)
    clock.now = 170
    log.on_save(*told)
    clock.now = 171  # loading counts
    log.on_step_begin(*told)
    model(**batches[1])
    clock.now = 172
    log.on_step_end(*told)
    assert write_row(log, told)["samples_per_s"] == 3 / 2
    no_loss = {"eval_loss": 1.0}
    log.on_log(*told, logs=no_loss)
    assert no_loss == {"eval_loss": 1.0}
    log.on_train_end(*told)
    assert not model._forward_pre_hooks


def test_an_evaluation_or_a_checkpoint_without_a_step_before_takes_no_time():
    alone = ThroughputLog()
    alone.on_evaluate(None, None, None)
    alone.on_save(None, None, None)
    alone.on_log(None, None, None, logs={"loss": 1.0})
    assert alone.seconds == 0


def test_figures_are_sums_over_processes_and_peaks_the_highest(log, batches, monkeypatch):
    log, model, clock, (_, state, control) = log
    two = type("Two", (), {"world_size": 2, "device": torch.device("cpu")})
    peaks = []

    def reduce(tensor: torch.Tensor, op: object = torch.distributed.ReduceOp.SUM) -> None:
        if op == torch.distributed.ReduceOp.SUM:
            tensor *= 3
        else:
            peaks.append(int(tensor))

    monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
    log.on_step_begin(two, state, control)
    model(**batches[1])
    clock.now = 102
    row = write_row(log, (two, state, control))
    assert row["samples_per_s"] == 3 * 3 / 2
    cost = Cost(BODY, BODY, H * WORDS, H * WORDS, ATTENTION).operations(batches[0])
    assert row["mfu"] == pytest.approx(3 * cost / (2 * 2 * 1e6))  # of two devices
    assert peaks == [3 * 2**29]


class Reporter(TrainerCallback):
    """Sees what a tracker would."""

    def __init__(self) -> None:
        self.rows = []

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        self.rows.append(dict(logs))


def test_reporters_and_the_history_of_a_run_have_the_figures(language_model_folder, tmp_path, monkeypatch):
    reporter, kept = Reporter(), []
    monkeypatch.setattr(finetune.Trainer, "train", spied(finetune.Trainer.train, kept))
    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda report_to: [reporter])
    data = write_dataset(tmp_path / "data")
    finetune.main(flags(language_model_folder, data, tmp_path / "out", "--gradient_accumulation_steps", "2"))
    history = [row for row in kept[0].state.log_history if "loss" in row]
    assert len(history) == 4
    for row in [*history, *(row for row in reporter.rows if "loss" in row)]:
        assert {"tokens_per_s", "samples_per_s", "graph_nodes_per_s", "peak_gib"} <= set(row)
        assert "mfu" not in row  # of a CPU
        assert row["graph_nodes_per_s"] == pytest.approx(3 * row["samples_per_s"])  # three nodes a sample
        assert 0.1 < row["peak_gib"] < 64
    assert len(reporter.rows) > 4


def spied(train, kept: list):
    def call(self, *args, **kwargs):
        kept.append(self)
        return train(self, *args, **kwargs)

    return call
