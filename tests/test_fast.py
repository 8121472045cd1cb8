"""Every option that makes training faster against the plain path: packed rows, grouped lengths, checkpointing, eager
attention, 16 bits, Liger's kernels, compiled layers."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import EDGE_FEATURES, FEATURES, build_language_model, build_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_world import SIZES, flags, write_dataset
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import finetune
from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
from processing_graphllm import IGNORE_INDEX, GraphLLMProcessor
from training import packing
from training.arguments import parse
from training.packing import PACKED_SDPA, TOLERANCE, PackingProbe, check_packable, leak, use_packed_sdpa
from training.speed import apply_liger, compile_layers, speed_up
from training.stages import STAGES

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 261, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def processor() -> GraphLLMProcessor:
    return GraphLLMProcessor.from_tokenizer(build_tokenizer(), num_graph_tokens=3)


@pytest.fixture(scope="module")
def examples(processor) -> list[dict]:
    """Two graphs, none, one, and one that is empty; prompts and answers of different lengths."""
    generator = torch.Generator().manual_seed(3)

    def graph(nodes: int) -> dict:
        edges = 2 * nodes
        return {
            "node_features": torch.randn(nodes, FEATURES, generator=generator),
            "edge_index": torch.randint(max(nodes, 1), (2, edges), generator=generator),
            "edge_features": torch.randn(edges, EDGE_FEATURES, generator=generator),
        }

    def example(question: str, graphs: list[dict], answer: str) -> dict:
        content = [*({"type": "graph", "graph": one} for one in graphs), {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        return processor.encode(turns)

    return [
        example("who wrote it?", [graph(4), graph(7)], "Bob"),
        example("x", [], "yes of course"),
        example("and what is this thing that I see?", [graph(3)], "a"),
        example("who?", [graph(0)], "nobody at all"),
    ]


def build(
    processor: GraphLLMProcessor, language_model: nn.Module | None = None, adaptation: str = "full"
) -> nn.Module:
    """The composite in training mode, in full or with LoRA whose second matrices are not zero."""
    torch.manual_seed(1)
    graph = GraphConfig(
        feature_dim=FEATURES, edge_feature_dim=EDGE_FEATURES, hidden_dim=8, num_layers=2, num_heads=2, num_tokens=3,
        projector_hidden_dim=12,
    )  # fmt: skip
    language_model = build_language_model() if language_model is None else language_model
    model = GraphLLMForConditionalGeneration.from_components(language_model, graph, processor.graph_token_id)
    if adaptation == "lora":
        targets = r"language_model\..*\.(q_proj|v_proj|down_proj)"
        wrapped = ["graph_encoder", "graph_projector"]
        model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, modules_to_save=wrapped))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model.train()


def decoder(kind: str, **more: object) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **more}))


def step(model: nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and every gradient."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(found: tuple, expected: tuple, relative: float) -> None:
    """Losses, and gradients parameter by parameter, as a share of the norm of all of them."""
    assert found[0].item() == pytest.approx(expected[0].item(), rel=relative)
    assert found[1].keys() == expected[1].keys()
    norm = torch.stack([one.norm() for one in expected[1].values()]).norm()
    for name, one in expected[1].items():
        assert (found[1][name] - one).norm() <= relative * norm, name


# ------------------------------------------------------------------------------------------------------------- packing
@pytest.mark.parametrize("adaptation", ["full", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", PACKED_SDPA, "eager"])
def test_a_packed_row_has_the_loss_and_the_gradients_of_the_padded_batch(processor, examples, adaptation, attention):
    model = build(processor, adaptation=adaptation)
    expected = step(model, processor.pad(examples))
    inner = model.get_base_model() if adaptation == "lora" else model
    if attention == PACKED_SDPA:
        use_packed_sdpa(inner.language_model)
    else:
        inner.language_model.set_attn_implementation(attention)
    assert inner.config.text_config._attn_implementation == attention
    assert_same_step(step(model, processor.pack(examples)), expected, 1e-6)


@pytest.mark.parametrize("kind", ["mistral", "gpt2", "gemma2", "qwen3"])
def test_other_kinds_of_language_models_read_packed_rows_alike(processor, examples, kind):
    """With windows of attention shorter than a sample, learned positions, and norms of queries and keys."""
    more = {"mistral": {"sliding_window": 8}, "gemma2": {"head_dim": 8, "sliding_window": 8}, "qwen3": {"head_dim": 8}}
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    model = build(processor, decoder(kind, **(sizes if kind == "gpt2" else more[kind])))
    expected = step(model, processor.pad(examples))
    use_packed_sdpa(model.language_model)
    assert_same_step(step(model, processor.pack(examples)), expected, 2e-6)


@pytest.mark.parametrize("attention", ["sdpa", PACKED_SDPA, "eager"])
def test_a_sample_does_not_see_the_one_before_it(processor, examples, attention):
    model = build(processor).eval()
    use_packed_sdpa(model.language_model)
    model.language_model.set_attn_implementation(attention)
    batch = dict(processor.pack(examples))
    del batch["labels"]
    changed, length = batch["input_ids"].clone(), len(examples[0]["input_ids"])
    changed[0, length - 1] += 7
    with torch.no_grad():
        before = model(**batch, use_cache=False).logits
        after = model(**{**batch, "input_ids": changed}, use_cache=False).logits
    assert torch.equal(before[:, length:], after[:, length:])
    assert not torch.equal(before[:, :length], after[:, :length])


def test_each_sample_predicts_only_its_own_tokens(processor, examples):
    """Where every token is a label: the sum of the losses of the samples alone, none of them across a border."""
    model = build(processor).eval()
    all_labels = [
        {**one, "labels": [i if i != processor.graph_token_id else IGNORE_INDEX for i in one["input_ids"]]}
        for one in examples
    ]
    with torch.no_grad():
        alone = [model(**processor.pad([one]), num_items_in_batch=1).loss for one in all_labels]
        packed = model(**processor.pack(all_labels), num_items_in_batch=1).loss
    assert packed.item() == pytest.approx(sum(alone).item(), rel=1e-6)


def test_an_evaluation_with_a_cache_by_default_still_keeps_samples_apart(processor, examples):
    model = build(processor).eval()
    assert model.config.use_cache
    with torch.no_grad():
        padded, packed = model(**processor.pad(examples)).loss, model(**processor.pack(examples)).loss
    assert packed.item() == pytest.approx(padded.item(), rel=1e-6)


def test_sdpa_runs_on_each_sample_of_a_row_by_itself(processor, examples, monkeypatch):
    model = build(processor)
    use_packed_sdpa(model.language_model)
    lengths, plain = [], packing.sdpa_attention_forward

    def spy(module, query, *rest, **kwargs):
        lengths.append(query.shape[2])
        return plain(module, query, *rest, **kwargs)

    monkeypatch.setattr(packing, "sdpa_attention_forward", spy)
    model(**processor.pack(examples))
    assert lengths == 2 * [len(one["input_ids"]) for one in examples]  # two layers
    lengths.clear()
    batch = processor.pad(examples)
    model(**batch)
    assert lengths == 2 * [batch["input_ids"].shape[1]]


# what no attribute tells, by trying it out
@pytest.mark.parametrize(
    ("kind", "more", "leaks"),
    [
        ("llama", {}, False),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, False),
        ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}, True),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, True),
    ],
)
def test_models_that_let_samples_see_one_another_are_found_before_the_first_step(processor, kind, more, leaks):
    model = build(processor, decoder(kind, **more))
    check_packable(model.language_model)  # OPT and LFM2 look as if they could
    use_packed_sdpa(model.language_model)
    assert (leak(model, CPU) > TOLERANCE) == leaks
    assert model.training
    probe = PackingProbe()
    if leaks:
        with pytest.raises(ValueError, match="--packing True cannot be used: .*see one another.*Leave it out"):
            probe.on_train_begin(SimpleNamespace(device=CPU), None, None, model=model)
    else:
        probe.on_train_begin(SimpleNamespace(device=CPU), None, None, model=model)


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("bloom", {"n_layer": 2, "n_head": 2}, "takes no positions"),
        ("bamba", {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
                   "attn_layer_indices": [1]}, "carries a state"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_packed_by_their_build_are_refused(kind, more, why):
    with pytest.raises(ValueError, match=f"--packing True cannot be used.*{why}.*group_by_length"):
        check_packable(decoder(kind, **more))


def test_an_encoder_decoder_is_not_packed():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **{**SMALL, **sizes}))
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        check_packable(model)


# ----------------------------------------------------------------------------------------------- through the Trainer
@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(language_model_folder, data, tmp_path_factory) -> Callable:
    """`run("--flag", "value")` -> the trainer after four steps and an evaluation."""
    done = {}

    def start(*more: str):
        if more not in done:
            argv = flags(language_model_folder, data, tmp_path_factory.mktemp("run"), *more)
            with pytest.MonkeyPatch.context() as patch:
                kept = []
                build_trainer = finetune.build_trainer
                patch.setattr(finetune, "build_trainer", lambda *a: kept.append(build_trainer(*a)) or kept[0])
                finetune.main([*argv, "--do_eval", "True", "--per_device_eval_batch_size", "4"])
            done[more] = kept[0]
        return done[more]

    return start


def losses(trainer) -> list[float]:
    return [row[name] for row in trainer.state.log_history for name in ("loss", "eval_loss") if name in row]


FULL = ("--use_lora", "False")


@pytest.mark.parametrize("adaptation", [(), FULL], ids=["lora", "full"])
def test_a_run_with_packing_has_the_losses_of_the_run_without(run, adaptation):
    packed = run("--packing", "True", *adaptation)
    assert packed.model.config.text_config._attn_implementation == PACKED_SDPA
    assert losses(packed) == pytest.approx(losses(run(*adaptation)), rel=1e-6)
    batch = next(iter(packed.get_train_dataloader()))
    assert len(batch["input_ids"]) == 1 and (batch["position_ids"] == 0).sum() == 4


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        (("--activation_checkpointing", "True"), 0),
        (("--attn_implementation", "eager"), 1e-5),
        (("--bf16", "True"), 2e-3),
        (("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--packing", "True"), 1e-6),
    ],
    ids=["checkpointed", "eager", "bf16", "accumulated"],
)
def test_a_run_with_an_option_has_the_losses_of_the_plain_run(run, option, tolerance):
    found, expected = losses(run(*option)), losses(run())
    assert found[:4] == pytest.approx(expected[:4], abs=tolerance, rel=tolerance)


def test_the_weights_of_checkpointed_and_plain_runs_are_bit_equal(run):
    found = dict(run("--activation_checkpointing", "True", *FULL).model.named_parameters())
    assert all(torch.equal(found[name], one) for name, one in run(*FULL).model.named_parameters())


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> Path:
    """96 rows of 2 to 200 letters."""
    draw = random.Random(0)
    rows = [
        {"id": str(i), "conversations": [{"from": "user", "value": "a" * draw.randint(1, 200)},
                                         {"from": "assistant", "value": "b"}]}
        for i in range(96)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("conversations") / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def padding(model: Path, rows: Path, output: Path, *more: str) -> float:
    """The share of padding of an epoch's batches, as the Trainer draws them."""
    arguments = parse(flags(model, rows, output, *more))
    stage = STAGES["qa"]
    trainer = finetune.build_trainer(arguments, stage.build(arguments, stage.open(arguments)))
    masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
    assert sum(len(mask) for mask in masks) == 96
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_batches_grouped_by_length_are_of_like_length(language_model_folder, conversations, tmp_path):
    by_chance = padding(language_model_folder, conversations, tmp_path / "a")
    grouped = padding(
        language_model_folder, conversations, tmp_path / "b", "--train_sampling_strategy", "group_by_length"
    )
    assert by_chance > 0.25
    assert grouped < 0.3 * by_chance


# ------------------------------------------------------------------------------------------- activation checkpointing
@pytest.mark.parametrize("adaptation", ["full", "lora"])
def test_checkpointed_layers_are_run_twice_and_give_the_same_bits(processor, examples, adaptation):
    model = build(processor, decoder("llama", attention_dropout=0.2), adaptation)
    layers = (model.get_base_model() if adaptation == "lora" else model).language_model.model.layers
    runs = []
    layers[1].self_attn.register_forward_pre_hook(lambda *_: runs.append(1))
    torch.manual_seed(5)
    expected = step(model, processor.pad(examples))
    assert len(runs) == 1
    model.activation_checkpointing_enable()  # as the Trainer calls it
    assert not any(layer._gradient_checkpointing_func.keywords["use_reentrant"] for layer in layers)
    torch.manual_seed(5)
    found = step(model, processor.pad(examples))
    assert len(runs) == 3  # forward, and again for the backward pass
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][name], one) for name, one in expected[1].items())


# -------------------------------------------------------------------------------------------------- kinds of attention
def test_eager_and_sdpa_attention_agree(processor, examples):
    model = build(processor)
    expected = step(model, processor.pad(examples))
    model.language_model.set_attn_implementation("eager")
    assert_same_step(step(model, processor.pad(examples)), expected, 1e-5)


def test_16_bits_agree_with_32_as_far_as_they_go(processor, examples):
    model = build(processor)
    expected = step(model, processor.pad(examples))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = step(model, processor.pad(examples))
    assert_same_step(found, expected, 0.02)
    assert not torch.equal(found[0], expected[0])


# --------------------------------------------------------------------------------------------------------------- Liger
@pytest.fixture
def liger(monkeypatch) -> list[tuple[nn.Module, dict]]:
    """A stand-in for the package, which needs a GPU; the calls that it gets."""
    calls = []
    package, kernels, patches = (
        ModuleType(f"liger_kernel{name}") for name in ("", ".transformers", ".transformers.monkey_patch")
    )
    kernels._apply_liger_kernel_to_instance = lambda model, **settings: calls.append((model, settings))
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    for module in (package, kernels, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_liger_is_given_the_inner_language_model_and_none_of_its_losses(processor, liger):
    model = build(processor, adaptation="lora").get_base_model()
    training = SimpleNamespace(use_liger_kernel=True, liger_kernel_config={"rope": False}, torch_compile=False)
    speed_up(model.language_model, training, packing=False)
    ((given, settings),) = liger
    assert given is model.language_model
    assert settings == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    assert training.use_liger_kernel is False  # the Trainer would ask for the kernels of a "graphllm"


def test_liger_without_kernels_for_a_model_is_refused(liger):
    with pytest.raises(ValueError, match="no kernels for a language model of type 'opt'"):
        apply_liger(decoder("opt", ffn_dim=32, word_embed_proj_dim=16), {})
    assert not liger


# ------------------------------------------------------------------------------------------------------- torch.compile
def compiled_equals_plain(model: nn.Module, batches: list[dict], backend: str) -> None:
    """Losses and gradients of some batches, and the names of parameters."""
    inner = (model.get_base_model() if isinstance(model, PeftModel) else model).language_model
    use_packed_sdpa(inner)
    expected = [step(model, batch) for batch in batches]
    names = [name for name, _ in model.named_parameters()]
    torch.compiler.reset()
    compile_layers(inner, backend, None)
    assert [name for name, _ in model.named_parameters()] == names
    for batch, one in zip(batches, expected, strict=True):
        assert_same_step(step(model, batch), one, 2e-6)


@pytest.mark.slow
def test_compiled_layers_give_the_loss_and_the_gradients_of_plain_ones(processor, examples):
    model = build(processor)
    batches = [processor.pad(examples), processor.pad(examples[:2]), processor.pack(examples[1:])]
    expected = step(model, batches[0])
    compiled_equals_plain(model, batches, "aot_eager")
    model.activation_checkpointing_enable()
    assert_same_step(step(model, batches[0]), expected, 2e-6)
    torch.compiler.reset()


@pytest.mark.slow
def test_layers_compiled_to_machine_code_give_them_too(processor, examples):
    batches = [processor.pad(examples), processor.pad(examples[:2])]
    compiled_equals_plain(build(processor, adaptation="lora"), batches, "inductor")
    torch.compiler.reset()


def test_layers_are_compiled_here_and_not_the_composite_by_the_trainer(run):
    torch.compiler.reset()
    trainer = run("--torch_compile", "True", "--torch_compile_backend", "eager", "--do_predict", "True")
    assert losses(trainer) == pytest.approx(losses(run()), rel=1e-6)
    assert trainer.accelerator.state.dynamo_plugin.backend.value == "NO"
    compiled = {type(one).__name__ for one in trainer.model.modules() if one._compiled_call_impl is not None}
    assert compiled == {"LlamaDecoderLayer"}
    record = json.loads((Path(trainer.args.output_dir) / "run.json").read_text())
    assert record["arguments"]["torch_compile"] is True
    assert len((Path(trainer.args.output_dir) / "predictions.jsonl").read_text().splitlines()) == SIZES["test"]
    torch.compiler.reset()


def test_layers_that_cannot_be_told_apart_are_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layers of Sequential cannot be told"):
        compile_layers(model, "eager", None)
