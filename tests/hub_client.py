"""What tests/test_hub_server.py runs against the stand-in for the Hub, all in one process: hub_client.py WORK DATA.

Prints a line `RESULTS{...}`: what each step found, for the tests to judge.
"""

import json
import logging
import os
import sys
import urllib.request
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.utils._http
import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from tiny_world import flags

import finetune
from evaluation.trained import trained_with
from modeling_graphllm import GraphLLMForConditionalGeneration
from serving.hub import Repository, push, reserve

WORK, DATA = Path(sys.argv[1]), Path(sys.argv[2])
GRAPH = {"node_features": torch.ones(2, 8), "edge_index": [[0], [1]], "edge_features": torch.ones(1, 8)}
GFM = ("--stage", "gfm_pretrain", "--gfm_hidden_dim", "8", "--gfm_num_layers", "2", "--max_steps", "2")
found: dict[str, Any] = {}

# waiting between attempts is the library's, and not what is tested
huggingface_hub.utils._http.time = SimpleNamespace(sleep=lambda seconds: None)


def call(path: str, value: Any = None) -> Any:
    body = None if value is None else json.dumps(value).encode()
    with urllib.request.urlopen(os.environ["HF_ENDPOINT"] + path, data=body) as answer:
        return json.loads(answer.read())


def logits(model: Any) -> list[float]:
    processor = transformers.AutoProcessor.from_pretrained(WORK / "run", trust_remote_code=True)
    messages = [{"role": "user", "content": [{"type": "graph", "graph": GRAPH}, {"type": "text", "text": "who?"}]}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    with torch.no_grad():
        return model(**batch).logits[0, -1].float().tolist()


def sentence(action: Any, *arguments: Any) -> str:
    """What is said where the action fails."""
    try:
        action(*arguments)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def with_token(token: str | None, action: Any, *arguments: Any) -> str:
    before = os.environ.pop("HF_TOKEN")
    if token is not None:
        os.environ["HF_TOKEN"] = token
    try:
        return sentence(action, *arguments)
    finally:
        os.environ["HF_TOKEN"] = before


def load(name: str = "me/answers", **settings: Any) -> list[float]:
    return logits(GraphLLMForConditionalGeneration.from_pretrained(name, **settings))


def train(name: str, base: str, *more: str) -> Path:
    finetune.main(flags(base, DATA, WORK / name, *more))
    return WORK / name


def trained_and_published() -> None:
    """A base model on the Hub, a run that publishes at every save and at the end."""
    api = HfApi()
    api.create_repo("me/base")
    found["base commit"] = api.upload_folder(repo_id="me/base", folder_path=WORK / "base").oid
    call("/test/log")
    publishing = ("--push_to_hub", "True", "--hub_model_id", "me/answers", "--hub_private_repo", "True")
    saves = ("--hub_strategy", "every_save", "--save_strategy", "steps", "--save_steps", "2", "--hub_license", "mit")
    train("run", "me/base", *publishing, *saves, "--do_eval", "True", "--do_predict", "True")
    found["calls"] = call("/test/log")
    found["expected"] = load(str(WORK / "run"))


def loaded_in_every_way() -> None:
    commit = HfApi().list_repo_refs("me/answers").branches[0].target_commit
    whole = GraphLLMForConditionalGeneration.from_pretrained("me/answers")
    found["base revision"] = whole.config.text_model_revision
    found["loaded"] = {
        "by name": logits(whole),
        "revision": load(revision=commit),
        "cache": load(cache_dir=str(WORK / "cache")),
        "token": load(token=os.environ["HF_TOKEN"], cache_dir=str(WORK / "cache2")),
        "device_map": load(device_map="cpu"),
        "auto": logits(transformers.AutoModelForCausalLM.from_pretrained("me/answers", trust_remote_code=True)),
    }
    half = GraphLLMForConditionalGeneration.from_pretrained("me/answers", dtype=torch.bfloat16)
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    quantised = GraphLLMForConditionalGeneration.from_pretrained(
        "me/answers", quantization_config=four, device_map="cpu"
    )
    layer = "layers.0.self_attn.q_proj"
    found["half"] = [str(half.language_model.get_input_embeddings().weight.dtype), logits(half)]
    kind = type(quantised.language_model.model.get_submodule(layer).base_layer).__name__
    found["quantised"] = [kind, logits(quantised)]
    call("/test/log")
    found["again"] = load(local_files_only=True)
    found["calls offline"] = call("/test/log")


def refused() -> None:
    run = WORK / "run"
    found["sentences"] = {
        "wrong": with_token("nobody", push, run, Repository("me/answers")),
        "none": with_token(None, push, run, Repository("me/answers")),
        "read only": with_token("reader", push, run, Repository("me/answers")),
        "read only, new": with_token("reader", reserve, Repository("me/new")),
        "taken": sentence(push, run, Repository("they/answers")),
        "organisation": sentence(push, run, Repository("their-lab/answers")),
        "licence": sentence(push, run, Repository("me/answers", licence="beerware")),
        "local base": sentence(push, train("local", str(WORK / "base"), "--max_steps", "1"), Repository("me/x")),
        "climbing file": sentence(snapshot_download, "me/evil"),
        "no model": sentence(push, WORK, Repository("me/x")),
        "climbing name": sentence(finetune.main, ["--publish", str(run), "--hub_model_id", "../answers"]),
        "no name": sentence(finetune.main, ["--publish", str(run)]),
        "no folder": sentence(finetune.main, ["--publish", str(run / "x"), "--hub_model_id", "me/x"]),
        "strategy": sentence(train, "x", "me/base", "--hub_strategy", "checkpoint"),
    }
    before, huggingface_hub.constants.ENDPOINT = huggingface_hub.constants.ENDPOINT, "http://127.0.0.1:9"
    found["sentences"]["no network"] = sentence(push, run, Repository("me/answers"))
    huggingface_hub.constants.ENDPOINT = before
    elsewhere = {"cache_dir": str(WORK / "empty cache")}
    found["not loaded"] = {
        "missing": sentence(partial(load, "me/nothing", **elsewhere)),
        "private": sentence(partial(load, token=False, **elsewhere)),
        "branch": sentence(partial(load, revision="gone", **elsewhere)),
    }


def broken_off_and_resumed() -> None:
    """Two large files, of which the first arrives; then the same command again."""
    run, argv = WORK / "local", ["--publish", str(WORK / "local"), "--include_base", "True"]
    argv += ["--hub_model_id", "lab/answers", "--hub_revision", "v1"]
    call("/test/drop", {"after": 1})
    call("/test/log")
    found["broken"] = {"sentence": sentence(finetune.main, argv), "calls": call("/test/log")}
    found["broken"]["files"] = HfApi().list_repo_files("lab/answers", revision="v1")
    call("/test/drop", {"after": None})
    finetune.main(argv)
    found["resumed"] = {"calls": call("/test/log"), "expected": load(str(run))}
    found["resumed"]["loaded"] = load("lab/answers", revision="v1")
    found["resumed"]["flags"] = trained_with("lab/answers", revision="v1")
    auto = transformers.AutoModelForCausalLM.from_pretrained("lab/answers", revision="v1", trust_remote_code=True)
    found["resumed"]["auto"] = logits(auto)
    (run / "README.md").write_text('Mine. `from_pretrained("there")`\n')
    finetune.main(argv)
    found["pushed again"] = call("/test/log")


def replaced() -> None:
    """A whole model over an adapter, then a graph retriever."""
    frozen = train("frozen", "me/base", "--freeze_lm", "True", "--max_steps", "1")
    push(frozen, Repository("lab/answers", revision="v1"))
    found["replaced"] = {"expected": load(str(frozen)), "loaded": load("lab/answers", revision="v1")}
    gfm = [*GFM, "--data_path", str(DATA), "--output_dir", str(WORK / "gfm"), "--use_cpu", "True"]
    finetune.main([*gfm, "--push_to_hub", "True", "--hub_model_id", "me/finder", "--save_strategy", "no"])
    model = transformers.AutoModel.from_pretrained("me/finder", trust_remote_code=True)
    here = transformers.AutoModel.from_pretrained(WORK / "gfm", trust_remote_code=True)
    pairs = zip(model.parameters(), here.parameters(), strict=True)
    found["finder"] = all(torch.equal(one, other) for one, other in pairs)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    trained_and_published()
    loaded_in_every_way()
    refused()
    broken_off_and_resumed()
    replaced()
    print("RESULTS" + json.dumps(found))
