"""Checkpoints that an earlier version wrote load, and answer as they did; they lie in tests/fixtures.

Each was made by the version that its folder is called after, from random weights and a fixed seed, with
`python tests/test_old_checkpoints.py tests/fixtures/VERSION`: folders as `save_output` and `save_pretrained` write
them, without the code (which is what is tested), and the logits of one example in expected.json. A folder there is
never written again: a new layout of files gets a new folder beside it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_gfm import GFMConfig, GFMForRetrieval, GFMGraph
from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor

VERSIONS = sorted(path for path in (Path(__file__).parent / "fixtures").iterdir() if path.is_dir())
GRAPH = {"node_features": [[0.1, 0.2, 0.3, -1], [1, 0, 0, 1]], "edge_index": [[0], [1]], "edge_features": [[1, 2, 3]]}
SHOWN = 24


def language_figures(folder: Path) -> dict[str, list[float]]:
    model = GraphLLMForConditionalGeneration.from_pretrained(folder)
    processor = GraphLLMProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "graph", "graph": GRAPH}, {"type": "text", "text": "who?"}]}]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    with torch.no_grad():
        logits = model(**batch).logits[0, -1, :SHOWN].tolist()
    ids = model.generate(**batch, max_new_tokens=4, do_sample=False)[0].tolist()
    return {"logits": logits, "ids": ids}


def retriever_figures(folder: Path) -> dict[str, list[float]]:
    model = GFMForRetrieval.from_pretrained(folder).eval()
    edges = torch.tensor([[0, 0, 1], [1, 1, 2], [2, 0, 3]]).numpy()
    embeds = torch.linspace(-1, 1, 2 * model.config.feature_dim).view(2, -1).numpy()
    model.attach_graphs([GFMGraph.from_arrays(edges, 4, 2, relation_embeds=embeds)])
    question = torch.linspace(1, -1, model.config.feature_dim).unsqueeze(0)
    places = {"graph_index": torch.tensor([0]), "seed_nodes": torch.tensor([0]), "seed_batch": torch.tensor([0])}
    with torch.no_grad():
        return {"logits": model(**places, question_embeds=question).logits.flatten().tolist()}


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_checkpoints_of_earlier_versions_answer_as_they_did(folder):
    expected = json.loads((folder / "expected.json").read_text())
    for name, figures in (("lora", language_figures), ("retriever", retriever_figures)):
        found = figures(folder / name)
        torch.testing.assert_close(
            torch.tensor(found["logits"]), torch.tensor(expected[name]["logits"]), atol=1e-5, rtol=1e-4
        )
        assert found.get("ids") == expected[name].get("ids")
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja", ".md"}


def write_language_model(folder: Path, base: Path) -> None:
    """LoRA, encoder and projector, all moved away from their start, with the base model inside."""
    from conftest import build_language_model, build_tokenizer
    from test_hub import lora

    from serving.publish import save_output

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 64}
    build_language_model(**shape).save_pretrained(base)
    processor = GraphLLMProcessor.from_tokenizer(build_tokenizer(), num_graph_tokens=2)
    torch.manual_seed(1)
    small: dict[str, Any] = {"hidden_dim": 4, "num_layers": 1, "num_heads": 2, "num_tokens": 2}
    graph = GraphConfig(feature_dim=4, edge_feature_dim=3, projector_hidden_dim=4, **small)
    model = GraphLLMForConditionalGeneration.from_components(
        str(base), graph, graph_token_id=processor.graph_token_id, feature_encoder="hashing:4"
    )
    model.config.lean, model.name_or_path = True, "lora"
    save_output(lora(model), processor, folder, include_base=True)


def write_retriever(folder: Path) -> None:
    torch.manual_seed(2)
    model = GFMForRetrieval(GFMConfig(feature_dim=4, hidden_dim=6, num_layers=2, feature_encoder="hashing:4"))
    model.save_pretrained(folder)


if __name__ == "__main__":
    import tempfile

    from serving.hub import SOURCES, without_paths

    where = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        write_language_model(where / "lora", Path(temporary))
    write_retriever(where / "retriever")
    for written in [*where.rglob("*.py"), *where.rglob("README.md")]:
        written.unlink()
    config = where / "lora" / "config.json"
    config.write_text(json.dumps(without_paths(json.loads(config.read_text()), SOURCES), indent=2) + "\n")
    figures = {"lora": language_figures(where / "lora"), "retriever": retriever_figures(where / "retriever")}
    (where / "expected.json").write_text(json.dumps(figures, indent=1) + "\n")
