"""serving/export.py: a merged checkpoint is the same model, and needs neither its base model nor PEFT."""

import json
import shutil

import pytest
import torch
from test_hub import last_logits, lora
from test_publish import adapted
from tiny_world import flags, write_dataset

import finetune
from modeling_graphllm import GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from serving.__main__ import main
from serving.export import merged_checkpoint
from serving.publish import save_output
from training.model import freeze_language_model


@pytest.fixture
def batch(build_model, ask):
    graph = {"node_features": torch.ones(2, 6), "edge_index": [[0], [1]], "edge_features": torch.ones(1, 5)}
    _, processor = build_model()
    return processor.apply_chat_template(ask("who?", [graph]), tokenize=True, return_dict=True)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_a_merged_checkpoint_gives_the_same_logits_without_its_base(build_model, batch, tmp_path, settings, capsys):
    model, processor = build_model()
    model.config.lean, model.name_or_path = True, str(tmp_path / "out")
    trained = lora(model, **settings)
    save_output(trained, processor, tmp_path / "out", include_base=True)
    expected = last_logits(GraphLLMForConditionalGeneration.from_pretrained(tmp_path / "out"), batch)
    words = ["--model", str(tmp_path / "out"), "--output", str(tmp_path / "whole")]
    assert main(["merge", *words]) == 0 and "Merged" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert "model.safetensors" in names and not any(name.startswith(("adapter", "base")) for name in names)
    whole = GraphLLMForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert not whole.config.lean
    torch.testing.assert_close(last_logits(whole, batch), expected, atol=1e-5, rtol=0)
    assert (last_logits(whole, batch) - last_logits(build_model()[0], batch)).abs().max() > 1e-3
    GraphLLMProcessor.from_pretrained(tmp_path / "whole")


def test_a_frozen_model_is_joined_with_its_base(build_model, batch, tmp_path):
    model, processor = build_model()
    model.config.lean = True
    freeze_language_model(model)
    expected = last_logits(model, batch)
    save_output(model, processor, tmp_path / "out")
    whole = merged_checkpoint(str(tmp_path / "out"), tmp_path / "whole")
    torch.testing.assert_close(
        last_logits(GraphLLMForConditionalGeneration.from_pretrained(whole), batch), expected, atol=1e-5, rtol=0
    )


def test_adapters_trained_on_four_bits_are_merged_into_the_whole_base(language_model_folder, tmp_path):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    finetune.main(flags(language_model_folder, data, out, "--q_lora", "True", "--max_steps", "1"))
    whole = GraphLLMForConditionalGeneration.from_pretrained(merged_checkpoint(str(out), tmp_path / "whole"))
    lean = GraphLLMForConditionalGeneration.from_pretrained(out)
    ids = torch.arange(5, 25).unsqueeze(0)
    torch.testing.assert_close(whole(ids).logits, lean(ids).logits, atol=1e-5, rtol=0)
    assert "quantization_config" not in (tmp_path / "whole" / "config.json").read_text()


def test_what_cannot_be_merged_is_said(build_model, tmp_path, capsys):
    model, processor = build_model()
    model.config.lean, model.name_or_path = True, str(tmp_path / "out")
    save_output(adapted(model), processor, tmp_path / "out", include_base=True)

    def said(folder: str, output: str) -> str:
        assert main(["merge", "--model", str(tmp_path / folder), "--output", str(tmp_path / output)]) == 2
        return capsys.readouterr().err

    assert "is not empty" in said("out", "out")
    stored = tmp_path / "out" / "base" / "config.json"
    few = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"quantization_config": few}))
    assert "stored in few bits" in said("out", "whole") and not (tmp_path / "whole").exists()
    model, processor = build_model()
    model.config.lean = False
    save_output(model, processor, tmp_path / "full")
    assert "is whole already" in said("full", "whole")
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in said("empty", "whole")
