"""What is saved can be used elsewhere: other processes, empty directories, PEFT's own ways."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import aligned
from peft import LoraConfig, PeftModel, get_peft_model

from modeling_graphllm import GraphLLMForConditionalGeneration

RELOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoProcessor
results = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    graph = {"node_features": torch.ones(2, 6), "edge_index": [[0], [1]], "edge_features": torch.ones(1, 5)}
    messages = [{"role": "user", "content": [{"type": "graph", "graph": graph}, {"type": "text", "text": "who?"}]}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    with torch.no_grad():
        logits = model(**batch).logits[0, -1]
    ids = model.generate(**batch, max_new_tokens=3, do_sample=False)[0].tolist()
    model.save_pretrained(folder + "-again")
    results[folder] = {"logits": logits.tolist(), "ids": ids, "module": type(model).__module__}
print("RESULTS" + json.dumps(results))
"""


def lora(model, **settings):
    """LoRA on the language model with the graph modules trained whole, every weight moved away from its start."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=r"language_model\..*\.(q_proj|v_proj|down_proj)",
        modules_to_save=["graph_encoder", "graph_projector"],
        **settings,
    )
    peft_model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return peft_model.eval()


def save_with_adapter(peft_model, processor, folder):
    """The lean layout: configuration, code and processor beside the adapter."""
    base = peft_model.get_base_model()
    base.config.lean = True
    peft_model.save_pretrained(folder)
    from transformers.dynamic_module_utils import custom_object_save

    custom_object_save(base, folder, config=base.config)
    base.config.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture
def question(ask, toy_graph):
    graph = {"node_features": torch.ones(2, 6), "edge_index": [[0], [1]], "edge_features": torch.ones(1, 5)}
    return ask("who?", [graph])


@pytest.fixture
def batch(build_model, question):
    _, processor = build_model()
    return processor.apply_chat_template(question, tokenize=True, return_dict=True, add_generation_prompt=True)


def last_logits(model, batch):
    with torch.no_grad():
        return aligned(model)(**batch).logits[0, -1]


def test_lora_at_its_start_is_the_base_model(build_model, batch):
    model, _ = build_model()
    before = last_logits(model, batch)
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=r"language_model\..*\.q_proj", modules_to_save=["graph_encoder"]
    )
    assert torch.equal(last_logits(get_peft_model(model, config).eval(), batch), before)


def test_an_adapter_comes_back_by_every_road(build_model, batch, tmp_path):
    model, processor = build_model()
    peft_model = lora(model)
    expected = last_logits(peft_model, batch)
    assert (expected - last_logits(build_model()[0], batch)).abs().max() > 1e-3
    save_with_adapter(peft_model, processor, tmp_path / "out")
    loaded = GraphLLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(last_logits(loaded, batch), expected, atol=0, rtol=0)
    again = PeftModel.from_pretrained(build_model()[0], tmp_path / "out").eval()
    torch.testing.assert_close(last_logits(again, batch), expected, atol=0, rtol=0)
    merged = again.merge_and_unload()
    torch.testing.assert_close(last_logits(merged, batch), expected, atol=1e-5, rtol=1e-4)
    merged.config.lean = False
    merged.save_pretrained(tmp_path / "merged")
    whole = GraphLLMForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(last_logits(whole, batch), expected, atol=1e-5, rtol=1e-4)


def test_an_adapter_without_a_graph_weight_is_refused_by_name(build_model, tmp_path):
    from safetensors.torch import load_file, save_file

    model, processor = build_model()
    save_with_adapter(lora(model), processor, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    gone = next(name for name in state if "graph_projector" in name)
    del state[gone]
    save_file(state, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights, first graph_projector"):
        GraphLLMForConditionalGeneration.from_pretrained(tmp_path)


def test_folders_load_in_a_fresh_process_in_an_empty_directory_after_a_move(
    build_model, batch, language_model_folder, tmp_path
):
    model, processor = build_model()
    expected = {}
    model.config.lean = False
    model.save_pretrained(tmp_path / "full")
    processor.save_pretrained(tmp_path / "full")
    expected["full"] = last_logits(model, batch)
    frozen, _ = build_model(encoder="mpnn", projector="ffn")
    frozen.config.lean = True
    frozen.save_pretrained(tmp_path / "frozen")
    processor.save_pretrained(tmp_path / "frozen")
    expected["frozen"] = last_logits(frozen, batch)
    sizes = {"qformer_dim": 16, "qformer_num_layers": 2, "qformer_num_heads": 2, "qformer_intermediate_dim": 16}
    queries, its_processor = build_model(readout="qformer", state_layers="all", **sizes)
    queries.config.lean = False
    queries.save_pretrained(tmp_path / "qformer")
    its_processor.save_pretrained(tmp_path / "qformer")
    expected["qformer"] = last_logits(queries, batch)
    base, _ = build_model()
    base.config.text_model_name_or_path = "./base"
    adapted = lora(base)
    save_with_adapter(adapted, processor, tmp_path / "lora")
    shutil.copytree(language_model_folder, tmp_path / "lora" / "base")
    expected["lora"] = last_logits(adapted, batch)
    empty = tmp_path / "elsewhere" / "empty"
    empty.mkdir(parents=True)
    for name in expected:
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    folders = [str(tmp_path / "elsewhere" / name) for name in expected]
    run = subprocess.run(
        [sys.executable, "-P", "-c", RELOAD, *folders], cwd=empty, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads(run.stdout.split("RESULTS")[1])
    for name, folder in zip(expected, folders, strict=True):
        assert results[folder]["module"].startswith("transformers_modules.")
        torch.testing.assert_close(torch.tensor(results[folder]["logits"]), expected[name], atol=1e-6, rtol=1e-5)
        again = GraphLLMForConditionalGeneration.from_pretrained(f"{folder}-again")
        torch.testing.assert_close(last_logits(again, batch), expected[name], atol=1e-6, rtol=1e-5)


def test_a_repository_with_its_base_inside_loads_by_its_name(build_model, batch, language_model_folder, tmp_path):
    """From a Hub cache as a download leaves it, without a network."""
    base, processor = build_model()
    base.config.text_model_name_or_path = "./base"
    adapted = lora(base)
    adapted.peft_config["default"].base_model_name_or_path = "me/repo"
    expected = last_logits(adapted, batch)
    snapshot = tmp_path / "models--me--repo" / "snapshots" / ("0" * 40)
    save_with_adapter(adapted, processor, snapshot)
    shutil.copytree(language_model_folder, snapshot / "base")
    refs = tmp_path / "models--me--repo" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    loaded = GraphLLMForConditionalGeneration.from_pretrained("me/repo", cache_dir=str(tmp_path))
    assert torch.equal(last_logits(loaded, batch), expected)
    from transformers import AutoModelForCausalLM

    auto = AutoModelForCausalLM.from_pretrained("me/repo", trust_remote_code=True, cache_dir=str(tmp_path))
    assert torch.equal(last_logits(auto, batch), expected)
