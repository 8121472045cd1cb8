"""serving/publish.py and card.py on tiny models: a folder holds one model only, and a card that is true of it."""

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from data_processor.schema import write_jsonl
from modeling_graphllm import GraphLLMForConditionalGeneration
from serving.card import MARK, card, write_card
from serving.publish import save_output
from training.adapters import GRAPH_MODULES
from training.model import freeze_language_model

TARGETS = r"language_model\..*\.q_proj"


def adapted(model):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS, modules_to_save=GRAPH_MODULES)
    return get_peft_model(model, config)


def save_lora(build_model, folder: Path, **more) -> Path:
    model, processor = build_model()
    model.config.lean, model.name_or_path = True, str(folder)
    return save_output(adapted(model), processor, folder, **more)


@pytest.fixture
def lora_folder(build_model, tmp_path) -> Path:
    return save_lora(build_model, tmp_path / "out", include_base=True)


@pytest.mark.parametrize("lean", [True, False])
def test_a_model_saved_over_an_adapter_is_the_one_that_loads(build_model, lora_folder, lean):
    (lora_folder / "checkpoint-1").mkdir()
    (lora_folder / "checkpoint-1" / "adapter_model.safetensors").touch()
    model, processor = build_model()
    model.config.lean = lean
    if lean:
        freeze_language_model(model)
    model.graph_projector.requires_grad_(False)
    for weight in model.graph_projector.parameters():
        weight.fill_(0.25)
    save_output(model, processor, lora_folder)
    assert not list(lora_folder.glob("adapter_*")) and not (lora_folder / "base").exists()
    assert (lora_folder / "checkpoint-1" / "adapter_model.safetensors").exists()
    loaded = GraphLLMForConditionalGeneration.from_pretrained(lora_folder)
    assert all((weight == 0.25).all() for weight in loaded.graph_projector.parameters())


def test_an_adapter_saved_over_a_whole_model_leaves_none_of_its_weights(build_model, tmp_path):
    model, processor = build_model()
    model.config.lean = False
    folder = save_output(model, processor, tmp_path / "out")
    (folder / "model-00001-of-00002.safetensors").touch()
    (folder / "model.safetensors.index.json").write_text("{}")
    save_lora(build_model, folder)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["adapter_model.safetensors"]


def test_a_card_is_written_anew_until_the_user_makes_it_his_own(build_model, lora_folder):
    readme = lora_folder / "README.md"
    assert MARK in readme.read_text() and f'from_pretrained("{lora_folder}", trust_remote_code' in readme.read_text()
    assert "name_or_path: peft" not in readme.read_text() and "base_model:" not in readme.read_text()
    readme.write_text(readme.read_text().replace("A language model that", f"{MARK} kept? A model that"))
    save_lora(build_model, lora_folder)
    assert "kept?" not in readme.read_text()
    readme.write_text("My own words.")
    save_lora(build_model, lora_folder)
    assert readme.read_text() == "My own words."


def test_the_card_shows_what_each_ablation_costs(lora_folder):
    rows = [{"id": str(i), "prediction": "a", "answers": ["a"]} for i in range(4)]
    write_jsonl(lora_folder / "predictions.jsonl", rows)
    write_jsonl(lora_folder / "predictions_zero.jsonl", [rows[0], rows[1] | {"prediction": "b"}])
    text = card(lora_folder, "me/model", "v2", "mit")
    assert "| none | 4 | 1 |\n| zero | 2 | 0.5 |" in text
    assert text.startswith("---\nlicense: mit\n") and 'from_pretrained("me/model", revision="v2", trust' in text


def test_a_folder_that_is_no_model_has_no_card(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"):
        write_card(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="a model of type 'llama'"):
        write_card(tmp_path)
