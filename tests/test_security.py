"""What a run leaves behind holds no secret and nothing that runs when read; what is loaded stays in its folder."""

import ast
import json
from pathlib import Path

import pytest
from test_boundaries import FILES, LIBRARY, ROOT
from test_publish import adapted
from tiny_world import flags, write_dataset

import finetune
from modeling_graphllm import GraphLLMForConditionalGeneration
from serving.hub import additions, published
from serving.publish import save_output

SECRETS = {"WANDB_API_KEY": "planted-wandb-0123456789", "HF_TOKEN": "hf_plantedToken0123456789"}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
# the library's own, of every Trainer checkpoint, for resuming alone: never published, and no weights
OF_THE_TRAINER = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


@pytest.fixture(scope="module")
def output(language_model_folder, tmp_path_factory) -> Path:
    """Everything that a run with keys in its flags and its environment leaves, trackers included."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "out").mkdir()
    argv = flags(language_model_folder, write_dataset(folder / "data"), folder / "out" / "run")
    argv += ["--save_strategy", "steps", "--save_steps", "2", "--do_predict", "True", "--report_to", "tensorboard"]
    argv += ["--key", SECRETS["WANDB_API_KEY"], f"--hub_token={SECRETS['HF_TOKEN']}"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "out" / "board"))
        patch.chdir(folder / "out")
        finetune.main(argv)
    return folder / "out"


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_no_file_of_a_run_holds_a_key_or_a_token(output):
    found = files_of(output)
    assert any("tfevents" in path.name for path in found) and any(path.name == "run.json" for path in found)
    for path in found:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS.values()), path


def test_nothing_that_we_write_is_a_pickle(output):
    pickles = [path for path in files_of(output) if path.suffix in PICKLES]
    assert pickles and all(path.name in OF_THE_TRAINER and "checkpoint-" in str(path) for path in pickles)
    for path in files_of(output):
        begins = path.read_bytes()[:4]
        assert path in pickles or not begins.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))


def test_nothing_but_the_model_is_sent_whatever_lies_in_its_folder(output, build_model, tmp_path):
    from serving.hub import Repository

    model, processor = build_model()
    model.config.lean, model.name_or_path = True, str(tmp_path)
    save_output(adapted(model), processor, tmp_path, include_base=True)
    strangers = [".env", "secrets.json", "training_args.bin", "optimizer.pt", "predictions.jsonl", "notes.txt"]
    strangers += ["checkpoint-1/model.safetensors", "base/.git/config", "base/pytorch_model.bin", "events.tfevents"]
    for name in strangers:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {"data_path": ["/a/b/data"], "r": 4}, "versions": {}}))
    sent = {one.path_in_repo: one for one in additions(tmp_path, Repository("me/x"), tmp_path)}
    assert not set(strangers) & set(sent) and "base/model.safetensors" in sent and "adapter_model.safetensors" in sent
    assert json.loads(sent["run.json"].path_or_fileobj)["arguments"] == {"data_path": ["data"], "r": 4}
    assert str(tmp_path.parent).encode() not in sent["config.json"].path_or_fileobj
    assert not any(published(name) for name in ("../config.json", "base/../config.json", "/config.json", "x/NOTICE"))


@pytest.mark.parametrize("source", ["./../other", "./base/../../other", "./.."])
def test_a_model_that_points_out_of_its_folder_is_not_loaded(build_model, language_model_folder, tmp_path, source):
    model, processor = build_model()
    model.config.lean, model.name_or_path = True, str(tmp_path / "out")
    save_output(adapted(model), processor, tmp_path / "out", include_base=True)
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"text_model_name_or_path": source}))
    (tmp_path / "other").symlink_to(language_model_folder)
    with pytest.raises(ValueError, match="names a base model outside itself"):
        GraphLLMForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_code_of_others_is_only_run_where_the_user_says_so():
    for path in FILES:
        if path.parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            for keyword in node.keywords if isinstance(node, ast.Call) else ():
                assert keyword.arg != "trust_remote_code", f"{path}:{node.lineno}"
            for key in node.keys if isinstance(node, ast.Dict) else ():
                assert not (isinstance(key, ast.Constant) and key.value == "trust_remote_code"), path


def test_nothing_of_ours_writes_or_reads_pickles():
    for path in LIBRARY:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            call = ast.unparse(node) if isinstance(node, ast.Call) else ""
            assert not call.startswith("torch.save("), path
            assert not call.startswith("torch.load(") or "weights_only=True" in call, path
            assert "allow_pickle=True" not in call, path
