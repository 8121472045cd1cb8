"""Local weights: replies in batches equal replies one by one; what does not fit is said; garbage is rejected."""

import json
import sys
import types
from pathlib import Path

import pytest

from data_processor.__main__ import main
from data_processor.calls import CUT, Request
from data_processor.chunking import load_counter, token_counter
from data_processor.local_generator import LocalModel, VllmModel, choose, load_tokenizer
from tests.conftest import build_language_model, build_tokenizer
from tests.test_collect import check_stages

GREEDY = {"temperature": 0.0, "top_p": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random model with room for a prompt of several hundred letters."""
    path = tmp_path_factory.mktemp("random_llama")
    build_language_model(max_position_embeddings=4096).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def request(words, limit=12):
    return Request(({"role": "user", "content": words},), None, limit)


def test_replies_of_a_batch_equal_replies_one_by_one_whatever_is_padded(folder):
    words = ["short", "a longer question " * 4, "x", "about as long as the second one, " * 3, "y" * 40]
    batched, single = LocalModel(str(folder), GREEDY, 4), LocalModel(str(folder), GREEDY, 1)
    for one in words:
        batched.start(request(one))
    found = {asked.messages[0]["content"]: reply for asked, reply in batched.finished()}
    assert list(found) != words, "sorted by length"
    for one in words:
        single.start(request(one))
        [(_, reply)] = single.finished()
        assert found[one] == reply
        assert reply.error is None and reply.new_tokens <= 12 and reply.prompt_tokens > len(one)


def test_each_request_keeps_its_own_limit_and_the_end_token_ends_a_reply(folder):
    model = LocalModel(str(folder), GREEDY, 4)
    for limit in (3, 9):
        model.start(request("the same", limit))
    import torch

    (_, long), (_, short) = sorted(model.finished(), key=lambda pair: -pair[0].max_new_tokens)
    assert (short.finish_reason, short.new_tokens, long.new_tokens) == (CUT, 3, 9)
    prompt = torch.tensor([model._prompt(request("the same"))])
    whole = model._language_model.generate(input_ids=prompt, max_new_tokens=9, do_sample=False)
    ids = whole[0, prompt.shape[1] :].tolist()
    model._language_model.generation_config.eos_token_id = ids[4]
    model.start(request("the same", 9))
    [(_, ended)] = model.finished()
    assert ended.finish_reason == "stop" and ended.new_tokens == ids.index(ids[4]) + 1


def test_a_prompt_that_does_not_fit_is_an_error_of_its_own(language_model_folder):
    model = LocalModel(str(language_model_folder), GREEDY, 4)
    model.start(request("x" * 600))
    model.start(request("fits"))
    by_words = {asked.messages[0]["content"][:4]: reply for asked, reply in model.finished()}
    assert "do not fit the model's 512; set --chunk_size_by_token lower" in by_words["xxxx"].error
    assert by_words["fits"].error is None


def test_a_model_whose_context_is_too_small_for_every_chunk_ends_the_run_with_that_sentence(
    tmp_path, language_model_folder, capsys
):
    (tmp_path / "a.txt").write_text(" ".join(f"River {i} runs to the sea." for i in range(2000)))
    flags = ["--backend", "local", "--model", str(language_model_folder), "--chunk_size_by_token", "512"]
    assert main(["collect", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out"), *flags]) == 2
    assert "set --chunk_size_by_token lower" in capsys.readouterr().err


def test_no_model_or_no_chat_template_is_one_sentence(tmp_path, language_model_folder):
    with pytest.raises(ValueError, match="Check --model"):
        load_tokenizer(str(tmp_path / "nothing"))
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="pip install vllm"):
        VllmModel("m", GREEDY)


def test_tokens_are_counted_by_the_models_own_tokenizer_with_or_without_transformers(language_model_folder):
    text = "Three words, 三个词."
    counts = token_counter(build_tokenizer())(text), load_counter(str(language_model_folder))(text)
    assert counts == (len(text.encode()), len(text.encode())), "the tokenizer of the tests makes a token of a byte"


def test_temperature_zero_is_greedy_and_sampling_cuts_nothing_but_top_p():
    assert choose(GREEDY)["do_sample"] is False
    assert choose({"temperature": 0.7, "top_p": 0.9}) == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0,
    }  # fmt: skip


def test_vllm_is_asked_for_chats_with_their_schema_and_limit(monkeypatch, language_model_folder):
    """A stand-in for the package shows what it is given; the engine itself needs a GPU."""
    asked = []

    class LLM:
        def __init__(self, model):
            self.model = model

        def chat(self, chats, settings, use_tqdm):
            asked.extend(zip(chats, settings, strict=True))
            done = types.SimpleNamespace(text="hello", finish_reason="stop", token_ids=[1, 2])
            return [types.SimpleNamespace(outputs=[done], prompt_token_ids=[1, 2, 3]) for _ in chats]

    package = types.ModuleType("vllm")
    package.LLM, package.SamplingParams = LLM, lambda **values: values
    package.__spec__ = types.SimpleNamespace()
    parameters = types.ModuleType("vllm.sampling_params")
    parameters.StructuredOutputsParams = lambda json: {"json": json}
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)
    model = VllmModel(str(language_model_folder), GREEDY)
    schema = {"type": "string"}
    model.start(Request(({"role": "user", "content": "hi"},), schema, 7))
    [(_, reply)] = model.finished()
    assert (reply.text, reply.prompt_tokens, reply.new_tokens) == ("hello", 3, 2)
    [(chat, settings)] = asked
    assert chat == [{"role": "user", "content": "hi"}]
    assert settings == {**GREEDY, "max_tokens": 7, "structured_outputs": {"json": schema}}


@pytest.mark.data
def test_a_random_models_garbage_over_real_documents_is_all_rejected_and_counted(tmp_path, real_data, folder, capsys):
    source, output = real_data / "medquad" / "docs", tmp_path / "out"
    flags = ["collect", "--input", str(source), "--output", str(output), "--model", str(folder), "--limit", "48"]
    assert main(flags) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    rejected = check_stages(output, manifest)
    assert manifest["stages"]["themes"] == {"in": 48, "kept": 0, "rejected": 48}
    assert all("asked again after" in row["reason"] for row in rejected)
    first = {path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert main(flags) == 0
    assert "0 calls made" in capsys.readouterr().out.split("in the log")[1]
    assert {path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()} == first
