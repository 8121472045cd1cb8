"""serving/publish.py on tiny models: a folder holds one model only, and knows its name once it is pushed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model

from modeling_graphllm import GraphLLMForConditionalGeneration
from serving import publish
from serving.publish import push, save_output
from training.model import GRAPH_MODULES, freeze_language_model

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


class Hub:
    def __init__(self, token):
        pass

    def create_repo(self, name, **settings):
        pass

    def upload_folder(self, folder_path, **settings):
        self.sent = {path.name: path.read_text() for path in Path(folder_path).glob("*.[jm][sd]*")}
        adapter = json.loads(self.sent["adapter_config.json"])
        assert adapter["base_model_name_or_path"] == "me/model" and adapter["r"] == 2
        assert str(folder_path) not in self.sent["README.md"]
        assert 'from_pretrained("me/model", trust_remote_code' in self.sent["README.md"]
        return SimpleNamespace(commit_url="https://hub/commit")


def test_a_push_writes_the_repository_where_training_wrote_its_folder(lora_folder, monkeypatch):
    monkeypatch.setattr(publish, "HfApi", Hub)
    adapter = lora_folder / "adapter_config.json"
    assert str(lora_folder) in (lora_folder / "README.md").read_text()
    adapter.write_text(json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": "/some/folder"}))
    assert push(lora_folder, "me/model", None, None, None) == "https://hub/commit"
