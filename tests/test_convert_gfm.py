"""Published weights: every name has a place, and ULTRA's score on its own yardsticks without any training."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_gfm import GFMConfig, GFMForRetrieval, GFMGraph
from training.convert_gfm import convert, read, renamed

DATA = Path(os.environ.get("GRAPHLLM_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))


def theirs(name):
    """Our parameter's name in GFM-RAG's version 1."""
    for ours, other in (("layers.", "entity_model.layers."), ("readout.", "entity_model.mlp."),
                        ("relation_projection.", "rel_mlp."), ("question_projection.", "question_mlp.")):  # fmt: skip
        if name.startswith(ours):
            name = other + name.removeprefix(ours)
            break
    return name.replace(".relation_mlp.", ".relation_projection.").replace(".norm.", ".layer_norm.")


def test_a_published_checkpoint_scores_as_its_formula_says(tmp_path):
    torch.manual_seed(0)
    source = GFMForRetrieval(GFMConfig(feature_dim=6, hidden_dim=4, num_layers=2))
    weights = {theirs(name): value for name, value in source.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "model.pth")
    published = {"model_config": {"entity_model": {"message_func": "distmult", "aggregate_func": "sum"}},
                 "text_emb_model_config": {"text_emb_model_name": "some/encoder"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    model = convert(*read(tmp_path)).eval()
    assert model.config.feature_encoder == "some/encoder" and model.config.messages == "against"

    embeds, question = torch.randn(2, 6), torch.randn(6)
    model.attach_graphs([GFMGraph.from_arrays(np.array([[0, 0, 1]]), 3, 1, embeds.numpy())])
    scores = model(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), question_embeds=question[None]).logits[0]

    # by hand: the kernel sends from tail to head, so node 0 hears node 1 along the relation, node 1 hears node 0
    # along the inverse, and node 2 hears nothing
    w = {name: value.detach() for name, value in weights.items()}

    def linear(name, x):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    q = linear("question_mlp", question)
    start = [torch.zeros(4), q, torch.zeros(4)]
    states = start
    for i in range(2):
        layer, new = f"entity_model.layers.{i}", []
        x = [linear(f"{layer}.relation_projection.2", torch.relu(linear(f"{layer}.relation_projection.0",
             linear("rel_mlp", embeds[r])))) for r in range(2)]  # fmt: skip
        heard = [states[1] * x[0], states[0] * x[1], torch.zeros(4)]
        for node in range(3):
            mixed = linear(f"{layer}.linear", torch.cat([states[node], heard[node] + start[node]]))
            mixed = torch.nn.functional.layer_norm(mixed, (4,), w[f"{layer}.layer_norm.weight"],
                                                   w[f"{layer}.layer_norm.bias"])  # fmt: skip
            new.append(torch.relu(mixed) + states[node])
        states = new
    expected = [linear("entity_model.mlp.2", torch.relu(linear("entity_model.mlp.0", torch.cat([h, q]))))
                for h in states]  # fmt: skip
    torch.testing.assert_close(scores, torch.cat(expected), rtol=1e-5, atol=1e-6)


def test_weights_without_a_place_are_refused():
    with pytest.raises(ValueError, match="belongs to no part"):
        renamed("feat_mlp.weight")
    with pytest.raises(ValueError, match="do not fill the model: missing"):
        weights = GFMForRetrieval(GFMConfig(feature_dim=6, hidden_dim=4, num_layers=1)).state_dict()
        convert({theirs(name): value for name, value in weights.items() if "readout.2" not in name}, {})


def completion(name):
    """(graph, test triples, all triples as a set) of a folder of train, valid and test files."""
    nodes, relations, parts = {}, {}, []
    for path in (find(name, "train"), find(name, "valid"), find(name, "test")):
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
        parts.append(np.array([[nodes.setdefault(h, len(nodes)), relations.setdefault(r, len(relations)),
                                nodes.setdefault(t, len(nodes))] for h, r, t in rows]))  # fmt: skip
    return GFMGraph.from_arrays(parts[0], len(nodes), len(relations)), parts[2], np.concatenate(parts)


def find(name, split):
    names = {"valid": ("valid", "dev"), "train": ("train",), "test": ("test",)}[split]
    return next(path for one in names for path in (DATA / name).rglob(f"{one}.t*"))


@pytest.mark.data
@pytest.mark.parametrize("checkpoint", ["ultra_3g", "ultra_50g"])
@pytest.mark.parametrize("name", ["nations", "umls"])
def test_ultra_reaches_its_own_zero_shot_scores(name, checkpoint):
    folder = DATA / "ultra_checkpoints"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set GRAPHLLM_DATA")
    model = convert(*read(folder / f"{checkpoint}.safetensors")).eval()
    graph, test, everything = completion(name)
    model.attach_graphs([graph])
    count = graph.num_relations
    queries = np.concatenate([test, test[:, [2, 1, 0]] + [0, count, 0]])
    true = np.concatenate([everything, everything[:, [2, 1, 0]] + [0, count, 0]])
    ranks = []
    with torch.no_grad():
        for part in np.array_split(queries, len(queries) // 32):
            known = [(row, tail) for row, (head, relation, target) in enumerate(part.tolist())
                     for tail in true[(true[:, :2] == [head, relation]).all(1), 2] if tail != target]  # fmt: skip
            known_batch, known_nodes = torch.tensor(known, dtype=torch.long).reshape(-1, 2).unbind(1)
            heads, relations, targets = torch.from_numpy(part).unbind(1)
            rows = torch.arange(len(part))
            out = model(torch.tensor([0]), heads, rows, query_relations=relations, target_nodes=targets,
                        target_batch=rows, known_nodes=known_nodes, known_batch=known_batch)  # fmt: skip
            ranks.append(out.ranks[:, 0])
    ranks = torch.cat(ranks)
    expected = json.loads((folder / "ultra_zero_shot_reference.json").read_text())[name][checkpoint]
    measured = {"mrr": (1 / ranks).mean(), **{f"h{k}": (ranks <= k).float().mean() for k in (1, 3, 10)}}
    for metric, value in measured.items():
        assert float(value) == pytest.approx(expected[metric], abs=1e-3), metric
