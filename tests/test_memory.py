"""What --dry_run says of memory is what tensors and the allocator hold: counted to the byte, traced within a tenth."""

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import bitsandbytes
import pytest
import torch
from memory_worker import train
from test_distributed import torchrun
from tiny_world import flags, write_dataset
from torch import nn

from benchmarks import memory as benchmark
from benchmarks import scaling
from benchmarks.held import allocator_peak, held_by
from benchmarks.shapes import language_model_shape, with_graphs
from training.activations import PARTS, Pass, activations, stacks, step_loss, total, trace
from training.holdings import Weight, weights_of
from training.ledger import Ledger
from training.memory import Estimate, Step, estimate, format_memory, parameter_table
from training.sharding import Engine, adam_bytes, divide, sub_groups, touched_numbers

ROOT = Path(__file__).resolve().parent.parent
LLAMA = "llama"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A language model with matrices of more than 4096 numbers, and questions about a graph."""
    from conftest import build_language_model, build_tokenizer

    folder = tmp_path_factory.mktemp("world")
    build_language_model(hidden_size=64, intermediate_size=96).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    return folder / "model", write_dataset(folder / "data")


@pytest.fixture(scope="module")
def small():
    """The benchmark's Llama, small enough for a test."""
    config = benchmark.MODELS[LLAMA].to_dict()
    changes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    return type(benchmark.MODELS[LLAMA])(**{**config, **changes, "num_hidden_layers": 4, "head_dim": 16})


# ------------------------------------------------------------------------------------------------- counted to the byte
COUNTED = ("weights", "gradients", "optimizer")
RUNS = {
    "full": ["--use_lora", "False"],
    "lora": [],
    "frozen in bf16": ["--freeze_lm", "True", "--bf16", "True", "--dtype", "bfloat16"],
    "8 bit Adam": ["--use_lora", "False", "--optim", "adamw_8bit"],
    "paged 8 bit Adam, two rates": ["--optim", "paged_adamw_8bit", "--lora_r", "128", "--graph_learning_rate", "1e-3"],
    "paged Adam": ["--optim", "paged_adamw_32bit"],
    "4 bits": ["--q_lora", "True", "--optim", "adamw_8bit"],
}


@pytest.mark.parametrize("name", RUNS)
def test_weights_gradients_and_states_are_those_of_a_run_to_the_byte(world, tmp_path, name):
    model, data = world
    # bitsandbytes remembers by address which parameters stay in 32 bits, also those of the run before
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()
    report = train(flags(model, data, tmp_path / "out", "--max_steps", "1", *RUNS[name]))
    measured, predicted = report["measured"], report["predicted"]
    assert {part: predicted[part] for part in COUNTED} == {part: measured[part] for part in COUNTED}
    assert "buckets" not in predicted and predicted["weights"] > 100_000


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_counted_to_the_byte_from_a_configuration_alone(small, tmp_path, monkeypatch, bits):
    monkeypatch.setitem(benchmark.MODELS, LLAMA, small)
    case = benchmark.Case(LLAMA, f"{bits}bit")
    real = benchmark.adapted(case, benchmark.real_model(case, tmp_path))
    bare = language_model_shape(small, torch.float32, bits)
    shape = benchmark.adapted(case, with_graphs(bare, benchmark.GRAPH, 8000))
    assert all(one.is_meta for one in shape.parameters())
    expected = held_by(real, set())
    assert sum(one.bytes for one in weights_of(real)) == expected
    assert sum(one.bytes for one in weights_of(shape)) == expected
    assert parameter_table(shape) == parameter_table(real)
    plain = parameter_table(with_graphs(language_model_shape(small, torch.float32), benchmark.GRAPH, 8000))
    assert parameter_table(real)["language_model"]["total"] == plain["language_model"]["total"]


def test_a_tied_weight_is_counted_once_and_states_follow_the_optimizer(build_model):
    model, _ = build_model()
    weights = weights_of(model)
    assert len(weights) == len(list(model.parameters())) + len(list(model.buffers()))
    assert adam_bytes([(4096, 2, False)], "adamw_torch") == 2 * 2 * 4096 + 4
    assert adam_bytes([(4096, 4, False)] * 2, "adamw_8bit") == 2 * 2 * (4096 + 4 * 16) + 2048
    assert adam_bytes([(4095, 4, False)], "adamw_8bit") == adam_bytes([(4095, 4, True)], "adamw_8bit") == 8 * 4095


# -------------------------------------------------------------------------------------------------- divided by engines
WEIGHTS = [
    Weight((7, 5), 4, trained=True, group=("", True)),
    Weight((3,), 4, trained=True),
    Weight((4, 9), 4, trained=True, group=("", True)),
    Weight((11, 3), 2),
    Weight((6,), 4, buffer=True),
]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["zero1", "zero2", "zero3", "fsdp"])
def test_parts_of_all_gpus_hold_everything_and_little_more(kind, world_size):
    engine = Engine(kind, world_size)
    rows = divide(WEIGHTS, engine)
    numbers = 35 + 3 + 36
    states = rows["optimizer"].gpu
    assert world_size * states >= 8 * numbers
    assert world_size * states <= 8 * (numbers + 4 * world_size * len(WEIGHTS)) + 4 * world_size * len(WEIGHTS)
    if kind in ("zero1", "zero2"):
        assert rows["weights"].gpu >= 4 * numbers + 66 + 24
        assert rows["master_weights"].gpu * world_size == 4 * sum(
            math.ceil(size / (2 * world_size)) * 2 * world_size for size in (3, 71)
        )
    else:
        assert rows["weights"].gpu < 4 * numbers + 66 + 24 or world_size == 1
    assert rows["gradients"].gpu <= 4 * (numbers + 1)


def test_numbers_of_cut_parameters_are_those_that_a_walk_over_all_numbers_finds():
    flat = [(72, [WEIGHTS[0], WEIGHTS[2]]), (6, [WEIGHTS[1]])]
    for world_size in (1, 2, 3, 6):
        for rank in range(world_size):
            expected = 0
            for size, group in flat:
                owner = [i for i, one in enumerate(group) for _ in range(one.numel)]
                own = owner[rank * size // world_size : (rank + 1) * size // world_size]
                expected += sum(group[i].numel for i in set(own))
            assert touched_numbers(flat, rank, world_size) == expected


def test_offload_moves_bytes_to_the_host_and_small_weights_stay_whole():
    near = divide(WEIGHTS, Engine("zero3", 2, half=True, persistent=10))
    far = divide(WEIGHTS, Engine("zero3", 2, half=True, persistent=10, offload_optimizer=True, offload_weights=True))
    for name in ("master_weights", "gradients"):
        assert (far[name].gpu, far[name].host) == (0, near[name].gpu)
    assert far["optimizer"].gpu == 0 and far["optimizer"].host == 8 * (18 + 18 + 2)
    assert far["weights"].host + far["weights"].gpu == near["weights"].gpu
    assert near["weights"].gpu == 4 * (18 + 2 + 18) + 2 * 17 + 4 * 3 + 24  # parts, the small one whole, the buffer
    assert sub_groups([6 * 10**8] * 4) == [12 * 10**8, 12 * 10**8]


# -------------------------------------------------------------------------------------------------- traced within 10 %
def measured(model: nn.Module, batch: dict, how: Pass) -> tuple[int, int]:
    model.train()
    if how.checkpointing is not None:
        model.activation_checkpointing_enable(**how.checkpointing)
    return allocator_peak(model, lambda: step_loss(model, batch, how.autocast).backward())


@pytest.mark.parametrize(
    "case",
    [
        benchmark.Case(LLAMA, "full", tokens=96),
        benchmark.Case(LLAMA, "lora", tokens=96, bf16=True),
        benchmark.Case(LLAMA, "4bit", tokens=96, bf16=True, checkpointing=True),
        benchmark.Case("mixtral", "lora", tokens=64, checkpointing=True),
        benchmark.Case("t5", "full", tokens=64),
    ],
    ids=lambda case: case.name,
)
def test_the_traced_peak_is_that_of_the_allocator(small, tmp_path, monkeypatch, case):
    monkeypatch.setitem(benchmark.MODELS, LLAMA, small)
    found = benchmark.predict(case)
    real = benchmark.adapted(case, benchmark.real_model(case, tmp_path))
    peak, joint = measured(real, benchmark.make_batch(case), case.how)
    # a fifth is the promise; most are within a twentieth, T5 at so few tokens is an eighth too high
    assert sum(found.traced.parts.values()) == pytest.approx(peak, rel=0.2)
    assert found.traced.highest == pytest.approx(joint, rel=0.2)


def test_layers_beyond_the_second_cost_what_the_second_does(small):
    model = with_graphs(language_model_shape(small, torch.float32), benchmark.GRAPH, 8000)
    batch = benchmark.make_batch(benchmark.Case(LLAMA, "full", tokens=64))
    extrapolated = activations(model, batch, Pass())
    whole = trace(model, batch, {name: len(stack) for name, stack in stacks(model).items()}, Pass())
    inside, outside = whole.peak(within=True), whole.peak(within=False)
    assert extrapolated.parts["activations"] == inside["activations"]
    assert sum(extrapolated.parts.values()) == max(total(inside), total(outside))
    assert extrapolated.highest == whole.joint_peak()
    sparse = activations(model, batch, Pass(checkpointing={"every_n_layers": 2}))
    assert sparse.parts["activations"] < extrapolated.parts["activations"]


READERS = [
    {"encoder": "mpnn", "norm": "graph", "projector": "ffn", "token_dropout": 0.1},
    {"encoder": "gat", "readout": "nodes"},
    {"encoder": "gcn", "edge_feature_dim": None},
    {"encoder": "sage", "norm": "graph", "bidirectional": False},
    {"encoder": "none", "readout": "nodes", "projector": "linear"},
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader["encoder"])
def test_every_reader_of_graphs_can_be_traced(build_model, toy_graph, reader):
    model, processor = build_model(**reader)
    graph = toy_graph if reader.get("edge_feature_dim", 1) else {**toy_graph, "edge_features": None}
    kept = {name: value for name, value in graph.items() if value is not None}
    tokens = 6 if reader.get("readout") == "nodes" else 3
    ids = [processor.graph_token_id] * tokens + [20] * 9
    example = {"input_ids": ids, "labels": [-100] * tokens + [20] * 9, "graphs": [kept]}
    batch = dict(processor.pad([example, example]))
    found = activations(model, batch, Pass())
    peak, _ = measured(model, batch, Pass())
    assert sum(found.parts.values()) == pytest.approx(peak, rel=0.1)


def test_a_model_of_70b_is_traced_in_seconds_and_without_memory():
    from transformers import LlamaConfig

    width, inner, layers, heads = scaling.SIZES["70B"]
    config = LlamaConfig(
        vocab_size=128256, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = with_graphs(language_model_shape(config, torch.bfloat16), benchmark.GRAPH, 128256)
    model.language_model.requires_grad_(False)
    batch = benchmark.make_batch(benchmark.Case(LLAMA, "frozen", batch=1, tokens=2048))
    batch["input_ids"] = batch["input_ids"].where(batch["input_ids"] != benchmark.VOCABULARY, 128256)
    begun, before = time.process_time(), resident()
    found = estimate(model, batch, Step(how=Pass(torch.bfloat16)))
    assert time.process_time() - begun < 30
    assert resident() - before < 2**29
    assert found.traced.layers == [80]
    # a token keeps some 20 vectors of the width a layer (arXiv 2205.05198, eq. 2: 34 bytes x width, scores aside)
    assert 15 < found.traced.per_layer[0] / (2048 * width * 2) < 40
    assert found.table()["weights"].gpu > 2 * 70e9


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


def test_the_formulas_of_the_table_give_its_bytes(small):
    model = with_graphs(language_model_shape(small, torch.float32), benchmark.GRAPH, 8000)
    case = benchmark.Case(LLAMA, "full", tokens=64)
    table = estimate(model, benchmark.make_batch(case), Step()).table()
    said = table["activations"].formula
    samples, tokens, layers, each, rest = (float(word) for word in re.findall(r"[\d.]+", said.replace(",", "")))
    assert samples * tokens * (layers * each + rest) == pytest.approx(table["activations"].gpu, rel=1e-3)
    text = format_memory(table)
    assert all(f"\n{name} " in text for name in table) and "host" not in text


def test_an_update_of_all_tensors_at_once_takes_one_state_more():
    parameters = [nn.Parameter(torch.ones(size)) for size in (1000, 3000)]
    optimizer = torch.optim.AdamW(parameters, foreach=True)
    for one in parameters:
        one.grad = torch.ones_like(one)
    optimizer.step()
    ledger = Ledger()
    known = [ledger.number(one) for one in (*parameters, *(one.grad for one in parameters))]
    known += [ledger.number(one) for row in optimizer.state.values() for one in row.values()]
    with ledger:
        optimizer.step()
    live = most = 0
    for entry in ledger.log:
        number = entry if entry >= 0 else -1 - entry
        if number not in known:
            live += ledger.sizes[number] * (1 if entry >= 0 else -1)
            most = max(most, live)
    assert most == pytest.approx(4 * 4000, rel=0.01)


def test_gradients_and_activations_are_not_added_where_one_makes_way_for_the_other(small):
    model = with_graphs(language_model_shape(small, torch.float32), benchmark.GRAPH, 8000)
    found = estimate(model, benchmark.make_batch(benchmark.Case(LLAMA, "full", tokens=64)), Step())
    table = found.table()
    steady = table["weights"].gpu + table["optimizer"].gpu
    several = Estimate(found.weights, found.traced, found.rows, Step(Engine(accumulation=2))).table()
    assert several["all"].gpu == steady + table["gradients"].gpu + sum(table[part].gpu for part in PARTS)
    assert steady + table["gradients"].gpu < table["all"].gpu < several["all"].gpu
    on_gpu = replace(found, step=Step(foreach=True)).table()
    assert on_gpu["update"].gpu == table["optimizer"].gpu / 2


# ------------------------------------------------------------------------------------------------------- two processes
LAUNCH = {
    "ddp": [],
    "zero1": ["--deepspeed", "ds_configs/zero1.json"],
    "zero1 full, two batches": [
        "--use_lora", "False", "--gradient_accumulation_steps", "2", "--deepspeed", "ds_configs/zero1.json",
    ],
    "zero2": ["--deepspeed", "ds_configs/zero2.json", "--graph_learning_rate", "1e-3"],
    "zero2 bf16, full": ["--use_lora", "False", "--bf16", "True", "--deepspeed", "ds_configs/zero2.json"],
    "zero2, 8 bit Adam": ["--optim", "adamw_8bit", "--use_lora", "False", "--deepspeed", "ds_configs/zero2.json"],
    "zero3": ["--deepspeed", "ds_configs/zero3.json"],
    "zero3 bf16": ["--bf16", "True", "--deepspeed", "ds_configs/zero3.json"],
    "zero3 full": ["--use_lora", "False", "--deepspeed", "ds_configs/zero3.json"],
}  # fmt: skip


@pytest.mark.distributed
def test_two_processes_hold_what_is_predicted_to_the_byte(language_model_folder, tmp_path):
    data = write_dataset(tmp_path / "data")
    steps = ["--per_device_train_batch_size", "2", "--max_steps", "2"]
    cases = {name: flags(language_model_folder, data, tmp_path / name, *steps, *more) for name, more in LAUNCH.items()}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    torchrun(tmp_path / "report.json", tmp_path / "cases.json", worker="memory_worker")
    ranks = json.loads((tmp_path / "report.json").read_text())
    assert len(ranks) == 2
    for name in LAUNCH:
        predicted = ranks[0][name]["predicted"]
        seen = [rank[name]["measured"] for rank in ranks]
        assert seen[0]["engine"] == ("DistributedDataParallel" if name == "ddp" else "DeepSpeedEngine")
        for part in ("weights", "gradients", "optimizer", "master_weights"):
            assert max(one[part] for one in seen) == predicted.get(part, 0), f"{name}: {part}"
        if name != "ddp":
            assert seen[0]["buckets"] == predicted["buckets"]


# ------------------------------------------------------------------------------------------------------------ the page
def test_the_page_on_scaling_shows_the_tables_of_the_program():
    rows = json.loads((ROOT / "results" / "scaling.json").read_text())["metrics"]
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert scaling.memory_table(rows) in page
    assert scaling.hours_table(rows) in page
    assert all(scaling.steps(name, rows[name]) in page for name in scaling.SHOWN)
    assert list(rows) == [plan.name for plan in scaling.plans()]


SLOW = [pytest.param(number, marks=pytest.mark.slow) for number in (0, 1, 3, 4, 5, 6, 7, 8, 9)]


@pytest.mark.parametrize("number", [2, *SLOW])
def test_the_program_still_prints_a_row_of_the_page(number):
    plan = scaling.plans()[number]
    kept = json.loads((ROOT / "results" / "scaling.json").read_text())["metrics"][plan.name]
    found = scaling.row_of(plan)
    assert found.pop("formulas") == kept.pop("formulas")
    assert found == pytest.approx(kept, rel=1e-6)
