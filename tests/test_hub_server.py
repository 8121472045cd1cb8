"""Publishing and loading through the calls that huggingface_hub makes, against tests/hub_server.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import Blob, HubServer, Repository, User
from huggingface_hub import ModelCardData
from tiny_world import write_dataset

pytestmark = pytest.mark.hub
ROOT = Path(__file__).resolve().parent.parent
USERS = {"writer": User("me", organisations=("lab",)), "reader": User("me", role="read"), "other": User("they")}
ELSEWHERE = """
import importlib.util, json, sys, torch, transformers
def logits(name, **settings):
    model = transformers.AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, **settings)
    processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=True, **settings)
    graph = {"node_features": torch.ones(2, 8), "edge_index": [[0], [1]], "edge_features": torch.ones(1, 8)}
    messages = [{"role": "user", "content": [{"type": "graph", "graph": graph}, {"type": "text", "text": "who?"}]}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    with torch.no_grad():
        return model(**batch).logits[0, -1].tolist()
def card(name, **settings):
    path = transformers.utils.cached_file(name, "README.md", **settings)
    exec(open(path, encoding="utf-8").read().split("```python\\n")[1].split("```")[0], {})
sys.path = [one for one in sys.path if one]
assert not any(importlib.util.find_spec(name) for name in ("serving", "training", "modeling_graphllm"))
for name in ("me/answers", sys.argv[1], "me/finder"):
    card(name)
card("lab/answers", revision="v1")
print("RESULTS" + json.dumps({name: logits(name) for name in ("me/answers", sys.argv[1])}))
"""


def program(hub: HubServer, home: Path, *words: str, cwd: Path, **more: str) -> dict:
    """What a program printed after RESULTS; its Hub is the stand-in, its token the writer's."""
    environment = os.environ | hub.environment(home, "writer") | more
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.split("RESULTS")[1]) | {"stdout": done.stdout}


@pytest.fixture(scope="module")
def work(tmp_path_factory, language_model_folder) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "base").symlink_to(language_model_folder)
    write_dataset(folder / "data")
    return folder


@pytest.fixture(scope="module")
def hub():
    with HubServer(USERS) as running:
        running.repositories["me/evil"] = Repository(private=False)
        running.repositories["me/evil"].commit("main", {"../../../../evil.txt": Blob(b"evil")})
        yield running


@pytest.fixture(scope="module")
def found(hub, work) -> dict:
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    words = (str(ROOT / "tests" / "hub_client.py"), str(work), str(work / "data"))
    return program(hub, work / "home", *words, cwd=work, PYTHONPATH=path)


@pytest.fixture(scope="module")
def elsewhere(hub, work, found) -> dict:
    """A process without this project, in an empty folder, with an empty cache."""
    (work / "nothing").mkdir()
    return program(hub, work / "other home", "-P", "-c", ELSEWHERE, str(work / "run"), cwd=work / "nothing")


def close(one: list[float], other: list[float], atol: float = 1e-6) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=atol, rtol=1e-5)


def calls(log: list, method: str, part: str) -> list[list]:
    return [row for row in log if row[0] == method and part in row[1]]


def test_a_run_publishes_its_checkpoints_and_its_end_as_whole_commits(found, hub):
    log = found["calls"]
    sent = calls(log, "POST", "/api/models/me/answers/commit/")
    assert len(sent) == 3 and all(status == 200 for _, _, status in sent)
    repository = hub.repositories["me/answers"]
    assert repository.private and list(repository.branches) == ["main"]
    for files in commits(hub, "me/answers")[1:]:
        assert {"config.json", "adapter_model.safetensors", "README.md", "modeling_graphllm.py"} <= set(files)


def test_what_is_published_is_small_and_of_the_model_alone(found, hub):
    files = hub.files("me/answers")
    assert set(files) == {
        ".gitattributes", "README.md", "config.json", "generation_config.json", "adapter_config.json",
        "adapter_model.safetensors", "modeling_graphllm.py", "processing_graphllm.py", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "metrics.json", "run.json",
    }  # fmt: skip
    assert json.loads(files["adapter_config.json"].content)["base_model_name_or_path"] == "me/answers"
    for name, blob in files.items():
        assert str(ROOT).encode() not in blob.content and b"/hub0/" not in blob.content, name
        assert b"writer" not in blob.content, name


def test_the_card_says_what_the_model_is_made_of(found, hub):
    text = hub.files("me/answers")["README.md"].content.decode()
    values = yaml.safe_load(text.split("---")[1])
    assert values["base_model"] == "me/base" and values["license"] == "mit"
    assert values["library_name"] == "transformers" and values["pipeline_tag"] == "text-generation"
    assert {"custom_code", "graphllm", "lora"} <= set(values["tags"])
    results = ModelCardData(model_name="me/answers", **values).eval_results
    metrics = json.loads(hub.files("me/answers")["metrics.json"].content)
    assert {one.metric_type: one.metric_value for one in results}["exact_match"] == round(metrics["exact_match"], 4)
    assert {one.dataset_name for one in results} == {"data"}
    assert f"revision {found['base commit']}" in text
    assert "`data`" in text and "train: 24 rows" in text and "test: 6 rows" in text
    metrics = json.loads(hub.files("me/answers")["metrics.json"].content)
    assert f"| eval_loss | {metrics['eval_loss']:.4g} |" in text and "| exact_match |" in text
    assert "runtime" not in text and "CPU cores" in text and "`lora_r 4`" in text
    assert len(text.split("```python\n")[1].split("```")[0].strip().splitlines()) == 5


def test_it_loads_back_in_every_way_with_the_same_logits(found):
    assert found["base revision"] == found["base commit"]
    for logits in found["loaded"].values():
        close(logits, found["expected"])
    close(found["again"], found["expected"])
    assert len(found["loaded"]) == 6 and found["calls offline"] == [["GET", "/test/log", 200]]
    assert found["half"][0] == "torch.bfloat16"
    close(found["half"][1], found["expected"], atol=0.05)
    assert found["quantised"][0] == "Linear4bit"
    close(found["quantised"][1], found["expected"], atol=0.5)
    assert found["quantised"][1] != found["expected"]


def test_it_loads_and_its_five_lines_run_where_this_project_is_not(found, elsewhere, work):
    close(elsewhere["me/answers"], found["expected"])
    close(elsewhere["me/answers"], elsewhere[str(work / "run")])
    assert elsewhere["stdout"].count("who?") == 0 and elsewhere["stdout"].count("What is it?") == 3


def test_an_upload_that_broke_off_shows_nothing_and_goes_on_with_what_is_missing(found, hub):
    broken, resumed = found["broken"], found["resumed"]
    assert re.search(r"connection to http://127.*lab/answers shows nothing.*Run it again", broken["sentence"])
    assert broken["files"] == [".gitattributes"]
    first = [row for row in calls(broken["calls"], "PUT", "/upload/") if row[2] == 200]
    second = calls(resumed["calls"], "PUT", "/upload/")
    assert len(first) == len(second) == 1 and first[0][1] != second[0][1]
    close(resumed["loaded"], resumed["expected"])
    close(resumed["auto"], resumed["expected"])
    assert resumed["flags"]["max_steps"] == 1  # this branch has its run.json, as all the rest
    for files in commits(hub, "lab/answers"):  # this model's base was a folder
        assert not any(b"/hub0/" in blob.content for blob in files.values())
    assert "base/model.safetensors" in commits(hub, "lab/answers")[1]


def commits(hub: HubServer, name: str) -> list[dict[str, Blob]]:
    return list(hub.repositories[name].commits.values())


def test_what_has_not_changed_is_not_sent_again_and_a_users_card_stays_his(found, hub):
    assert not calls(found["pushed again"], "PUT", "/upload/")
    assert commits(hub, "lab/answers")[2]["README.md"].content == b'Mine. `from_pretrained("lab/answers")`\n'


def test_another_model_leaves_no_file_of_the_one_before(found, hub):
    files = hub.files("lab/answers", "v1")
    assert "model.safetensors" in files and not any(name.startswith(("adapter", "base/")) for name in files)
    close(found["replaced"]["loaded"], found["replaced"]["expected"])
    assert 'revision="v1"' in files["README.md"].content.decode()
    assert list(hub.files("lab/answers", "main")) == [".gitattributes"]


def test_a_graph_retriever_is_published_likewise(found, hub):
    assert found["finder"]
    text = hub.files("me/finder")["README.md"].content.decode()
    assert "pipeline_tag: graph-ml" in text and "batches of" in text and "base_model" not in text


SENTENCES = {
    "wrong": r"does not know the token.*write access at http://127.*/settings/tokens",
    "none": r"needs a token, and none is set.*HF_TOKEN",
    "read only": r"token of me can only read",
    "read only, new": r"token of me can only read",
    "taken": r"they/answers belongs to they, where me may not write.*one of: me, lab",
    "organisation": r"belongs to their-lab, where me may not write",
    "licence": r'"license" must be one of',
    "local base": r"a folder of this machine.*--include_base True",
    "no model": r"holds no config\.json",
    "climbing name": r"\.\./answers is no name on the Hub",
    "no name": r"needs to know where",
    "no folder": r"is no folder",
    "strategy": r"pickles.*every_save",
    "no network": r"connection to http://127\.0\.0\.1:9 failed.*Run it again",
}


@pytest.mark.parametrize("case", SENTENCES)
def test_what_the_hub_refuses_is_a_sentence(found, case):
    said = found["sentences"][case]
    assert re.search(SENTENCES[case], said, flags=re.DOTALL) and said.startswith("ValueError: "), said


def test_a_repository_cannot_write_outside_its_folder_of_the_cache(found, work):
    """The library sees to it; copying a base model and merging rely on that."""
    assert "cannot contain a '..' path segment" in found["sentences"]["climbing file"]
    assert not list(work.rglob("evil.txt"))


def test_what_cannot_be_loaded_is_said_by_name(found):
    said = found["not loaded"]
    assert "me/nothing" in said["missing"] and "me/answers" in said["private"] and "gone" in said["branch"]
