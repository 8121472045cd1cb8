"""Adapters: what they start as, the quantised weights below them, their optimizer, and what a saved one means."""

from pathlib import Path

import pytest
import torch
from conftest import build_language_model, build_tokenizer
from safetensors.torch import load_file
from test_finetune import losses, trained
from tiny_world import flags, write_dataset
from transformers import BitsAndBytesConfig

import finetune
from modeling_graphllm import GraphLLMForConditionalGeneration
from training.adapters import first_factors, make_up_for_quantization
from training.arguments import parse

STARTS = ("gaussian", "orthogonal", "olora", "pissa")
QUANTISED = {4: ["--q_lora", "True"], 8: ["--q_lora", "True", "--q_bits", "8"]}
LARGE = "language_model.model.layers.0.mlp.gate_proj"  # 128 x 64 numbers; below 4,096 states stay whole


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory) -> Path:
    """A tiny random Llama whose matrices are large enough for 8-bit optimizer states."""
    folder = tmp_path_factory.mktemp("wide_llama")
    build_language_model(hidden_size=64, intermediate_size=128, num_attention_heads=4).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(wide_model, data, tmp_path_factory):
    """`run("name", "--flag", "value")` -> (output, metrics, trainer, weights before); each name is trained once."""
    done = {}

    def start(name: str, *more: str):
        if name not in done:
            output = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                done[name] = trained(patch, flags(wide_model, data, output, *more))
        return done[name]

    return start


def logits(model, trainer) -> torch.Tensor:
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    with torch.no_grad():
        return model.eval()(**batch).logits


def lora_layer(trainer, name: str = LARGE):
    return trainer.model.get_base_model().get_submodule(name)


@pytest.mark.parametrize("bits", QUANTISED)
def test_quantised_weights_carry_gradients_to_adapters_and_reader_and_stay_as_they_were(run, bits):
    pytest.importorskip("bitsandbytes")
    _, _, trainer, before = run(f"bits{bits}", *QUANTISED[bits])
    held = {4: torch.uint8, 8: torch.int8}[bits]
    assert lora_layer(trainer).base_layer.weight.dtype == held
    assert trainer.model.get_output_embeddings().weight.dtype == torch.float32
    moved = {name for name, one in trainer.model.named_parameters() if not torch.equal(one, before[name])}
    assert any("lora_B" in name for name in moved) and any("graph_encoder" in name for name in moved)
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    assert all(one.dtype == torch.float32 for name, one in trainer.model.named_parameters() if "graph_" in name)
    assert losses(trainer)[-1] < losses(trainer)[0]


@pytest.mark.parametrize("bits", QUANTISED)
def test_an_adapter_on_quantised_weights_reloads_on_them_and_on_whole_ones_and_merges(run, wide_model, bits):
    pytest.importorskip("bitsandbytes")
    output, _, trainer, _ = run(f"bits{bits}", *QUANTISED[bits])
    expected = logits(trainer.model, trainer)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                             bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
    how = how if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    same = GraphLLMForConditionalGeneration.from_pretrained(
        output, quantization_config=how, dtype=torch.float32, device_map={"": "cpu"}
    )
    assert same.get_submodule(LARGE).base_layer.weight.dtype != torch.float32
    torch.testing.assert_close(logits(same, trainer), expected, rtol=0, atol=1e-5)
    whole = GraphLLMForConditionalGeneration.from_pretrained(output)
    lost = (logits(whole, trainer) - expected).norm() / expected.norm()
    assert 0 < lost < (0.3 if bits == 4 else 0.05)
    merged = trainer.model.merge_and_unload()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert (logits(merged, trainer) - expected).norm() / expected.norm() < (0.3 if bits == 4 else 0.05)


def test_weights_of_four_bits_stay_as_they_are_where_a_cpu_could_pack_them(run, monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    output, _, trainer, _ = run("bits4", *QUANTISED[4])
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = GraphLLMForConditionalGeneration.from_pretrained(
        output, quantization_config=how, dtype=torch.float32, device_map={"": "cpu"}
    )
    weight = model.get_submodule(LARGE).base_layer.weight
    before = weight.data.clone()
    logits(model, trainer)
    assert torch.equal(weight.data, before)
    states = torch.randn(1, 2, weight.quant_state.shape[1], requires_grad=True)
    model.train().get_submodule(LARGE).base_layer(states).sum().backward()
    assert states.grad.abs().sum() > 0


def test_states_of_large_weights_are_of_8_bits_by_default_where_the_base_model_is_quantised(run):
    pytest.importorskip("bitsandbytes")
    _, _, trainer, _ = run("bits4", *QUANTISED[4])
    assert trainer.args.optim == "adamw_8bit"
    optimizer = trainer.optimizer.optimizer
    states = {one.numel(): state["state1"].dtype for one, state in optimizer.state.items() if "state1" in state}
    assert {dtype for size, dtype in states.items() if size < 4096} == {torch.float32}
    _, _, trainer, _ = run("rank64", *QUANTISED[4], "--lora_r", "64")
    optimizer = trainer.optimizer.optimizer
    states = {one.numel(): state["state1"].dtype for one, state in optimizer.state.items() if "state1" in state}
    assert {dtype for size, dtype in states.items() if size >= 4096} == {torch.uint8}


def test_bitsandbytes_without_a_backend_is_one_sentence(wide_model, data, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    def refuse(self, *arguments, **settings) -> None:
        raise RuntimeError("None of the available devices are supported by the bitsandbytes version you have.")

    monkeypatch.setattr(Bnb4BitHfQuantizer, "validate_environment", refuse)
    with pytest.raises(ValueError, match="--q_lora cannot be used here, as bitsandbytes has no backend"):
        finetune.main(flags(wide_model, data, tmp_path / "out", "--q_lora", "True"))


def test_the_optimizer_that_is_named_is_used_on_a_quantised_model_too(tmp_path):
    (tmp_path / "data.json").write_text("[]")
    words = ["--model_name_or_path", "m", "--data_path", str(tmp_path / "data.json"), "--q_lora", "True"]
    assert parse(words).training.optim == "adamw_8bit"
    assert parse([*words, "--optim", "paged_adamw_8bit"]).training.optim == "paged_adamw_8bit"
    assert parse(words[:4]).training.optim == "adamw_torch"


@pytest.mark.parametrize("start", STARTS)
def test_every_start_of_adapters_is_saved_as_lora_on_the_published_base_model(run, start):
    output, _, trainer, _ = run(start, "--lora_init", start)
    expected = logits(trainer.model, trainer)
    assert losses(trainer)[-1] < losses(trainer)[0]
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output)
    torch.testing.assert_close(logits(loaded, trainer), expected, rtol=0, atol=1e-4)
    rank = next(value for name, value in load_file(output / "adapter_model.safetensors").items() if "lora_A" in name)
    assert len(rank) == (8 if start in ("olora", "pissa") else 4)


@pytest.mark.parametrize("start", ["olora", "pissa"])
def test_starts_that_take_from_the_base_model_begin_with_its_own_answers(run, start):
    _, _, plain, _ = run("plain")
    _, _, trainer, _ = run(start, "--lora_init", start)
    assert losses(trainer)[0] == pytest.approx(losses(plain)[0], abs=1e-4)
    assert losses(trainer)[1:] != losses(plain)[1:]


def test_a_rank_stabilised_start_from_the_base_model_keeps_its_scale(run):
    output, _, trainer, _ = run("pissa_rs", "--lora_init", "pissa", "--use_rslora", "True")
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output)
    torch.testing.assert_close(logits(loaded, trainer), logits(trainer.model, trainer), rtol=0, atol=1e-4)


@pytest.mark.parametrize("flag", ["use_dora", "use_rslora"])
def test_variants_of_lora_train_and_reload(run, flag):
    output, _, trainer, _ = run(flag, f"--{flag}", "True")
    adapter = load_file(output / "adapter_model.safetensors")
    assert any("magnitude" in name for name in adapter) == (flag == "use_dora")
    assert losses(trainer) != losses(run("plain")[2])
    loaded = GraphLLMForConditionalGeneration.from_pretrained(output)
    torch.testing.assert_close(logits(loaded, trainer), logits(trainer.model, trainer), rtol=0, atol=1e-5)


def test_a_dora_checkpoint_is_gone_on_from(run, wide_model, data, tmp_path):
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    argv = flags(wide_model, data, tmp_path / "out", "--use_dora", "True", *saving)
    with pytest.MonkeyPatch.context() as patch:
        _, _, whole, _ = trained(patch, argv)
        (tmp_path / "out" / "checkpoint-4" / "complete").unlink()
        _, _, resumed, _ = trained(patch, argv)
    assert losses(resumed) == losses(whole)
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert one.equal(other), name


def test_loftq_starts_nearer_to_the_whole_model_than_plain_four_bits(run, wide_model):
    pytest.importorskip("bitsandbytes")
    whole = losses(run("plain")[2])[0]
    four = losses(run("bits4", *QUANTISED[4])[2])[0]
    made_up = losses(run("loftq", *QUANTISED[4], "--lora_init", "loftq", "--lora_r", "32")[2])[0]
    assert abs(made_up - whole) < abs(four - whole)


def test_loftq_is_the_best_approximation_of_what_four_bits_lose(run, wide_model):
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit

    _, _, trainer, _ = run("loftq", *QUANTISED[4], "--lora_init", "loftq", "--lora_r", "32")
    make_up_for_quantization(trainer.model, wide_model)  # as it was before training
    layer = lora_layer(trainer)
    lost = load_file(wide_model / "model.safetensors")[f"{LARGE.removeprefix('language_model.')}.weight"]
    lost = lost - dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    sizes = torch.linalg.svdvals(lost)
    left = (lost - layer.get_delta_weight("default").detach()).norm()
    assert float(left) == pytest.approx(float(sizes[32:].norm()), rel=1e-3)


def test_lora_plus_gives_the_second_matrices_their_own_rate(run):
    _, _, trainer, _ = run("plus", "--loraplus_lr_ratio", "16", "--graph_learning_rate", "1e-3")
    names = {id(one): name for name, one in trainer.model.named_parameters()}
    rates = {}
    for group in trainer.optimizer.param_groups:
        for one in group["params"]:
            room = next(room for room in ("lora_A", "lora_B", "graph_") if room in names[id(one)])
            rates.setdefault(room, set()).add(group["lr"])
    assert rates == {"lora_A": {1e-2}, "lora_B": {0.16}, "graph_": {1e-3}}


def test_noise_on_embeddings_is_in_training_alone(run):
    _, _, trainer, _ = run("noise", "--neftune_noise_alpha", "5")
    assert losses(trainer) != losses(run("plain")[2])
    torch.testing.assert_close(logits(trainer.model, trainer), logits(trainer.model, trainer), rtol=0, atol=0)


def test_first_factors_are_copies(run):
    _, _, trainer, _ = run("plain")
    first = first_factors(trainer.model)
    name = next(one for one in first if "lora_B" in one)
    kept = first[name].clone()
    lora_layer(trainer).lora_B["default"].weight.data.add_(1.0)
    assert first[name].equal(kept)
    lora_layer(trainer).lora_B["default"].weight.data.sub_(1.0)
