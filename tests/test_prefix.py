"""The graph prefix beside the language model: the same embeddings, and the same answers without our model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from evaluation.generation import PLAIN_SEARCH
from serving.answering import answer_texts
from serving.prefix import GraphPrefix, export_prefix
from tests.tiny_world import write_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model = write_model(folder, {})
    return model, export_prefix(str(model), folder / "out")


@pytest.fixture
def messages():
    generator = torch.Generator().manual_seed(0)
    nodes, edges = torch.randn(5, 8, generator=generator), torch.randn(3, 8, generator=generator)
    graph = {"node_features": nodes, "edge_index": torch.tensor([[0, 1, 2], [1, 3, 4]]), "edge_features": edges}
    content = [{"type": "graph", "graph": graph}, {"type": "text", "text": "what is next to thing4?"}]
    return [{"role": "user", "content": content}]


def test_prompt_embeddings_equal_those_of_the_whole_model(folders, messages):
    from modeling_graphllm import GraphLLMForConditionalGeneration

    model, out = folders
    prefix = GraphPrefix.from_pretrained(out / "prefix")
    whole = GraphLLMForConditionalGeneration.from_pretrained(model)
    batch = dict(prefix.processor.pad([prefix.processor.encode(messages)]))
    batch.pop("attention_mask")
    with torch.no_grad():
        expected = whole.get_merged_embeddings(**batch)[0]
    found = prefix.prompt_embeds(messages)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    plain = prefix.prompt_embeds([{"role": "user", "content": "what is next to thing4?"}])
    assert found.shape == (len(plain) + prefix.processor.num_graph_tokens + 1, 16), "graph tokens and a line's end"
    on_meta = [name for name, value in prefix.model.named_parameters() if value.is_meta]
    assert on_meta and all(name.startswith("language_model.") for name in on_meta), "no other weight is held"


def test_the_language_model_alone_answers_from_them(folders, messages):
    from modeling_graphllm import GraphLLMForConditionalGeneration

    model, out = folders
    prefix, alone = GraphPrefix.from_pretrained(out / "prefix"), AutoModelForCausalLM.from_pretrained(
        out / "language_model")  # fmt: skip
    embeds = prefix.prompt_embeds(messages)[None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    tokens = alone.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=12, **PLAIN_SEARCH)
    whole = GraphLLMForConditionalGeneration.from_pretrained(model).eval()
    (expected,) = answer_texts(whole, prefix.processor, [messages], max_new_tokens=12)
    assert prefix.processor.tokenizer.decode(tokens[0], skip_special_tokens=True).strip() == expected != ""


def test_a_model_with_adapters_must_be_merged_first(folders, tmp_path, capsys):
    from serving.__main__ import main

    model, _ = folders
    (model / "adapter_config.json").write_text("{}")
    assert main(["export", "--model", str(model), "--output", str(tmp_path / "o")]) == 2
    assert "holds adapters" in capsys.readouterr().err and not (tmp_path / "o").exists()
