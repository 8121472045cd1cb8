"""Neighbourhoods without parameters as read-outs: hop by hop and as a tree, beside a plain reference."""

import numpy as np
import pytest
import torch

from modeling_graphllm import GraphConfig, hop_states, tree_states

# 0 - 1 - 2 - 0, 2 - 3, 3 - 4, 1 - 4, 5 - 4, one edge in both directions, a self-loop, and 6 alone
EDGES = torch.tensor([[0, 1, 2, 2, 3, 1, 5, 3, 4], [1, 2, 0, 3, 4, 4, 4, 2, 4]])


def test_hops_are_powers_of_the_normalised_adjacency():
    hidden, matrix = torch.randn(7, 3, dtype=torch.float64), np.zeros((7, 7))
    for first, second in EDGES.T.tolist():
        if first != second:
            matrix[first, second] = matrix[second, first] = 1
    scale = np.diag(1 / np.sqrt(np.maximum(matrix.sum(1), 1)))
    expected = [hidden.numpy()]
    for _ in range(3):
        expected.append(scale @ matrix @ scale @ expected[-1])
    found = hop_states(hidden, EDGES, 3)
    np.testing.assert_allclose(found.numpy(), np.stack(expected, axis=1), atol=1e-12)
    assert not found[6, 1:].any(), "a node without neighbours is zero from hop 1 on"


def test_a_tree_holds_the_first_neighbours_and_theirs():
    hidden, empty = torch.arange(7.0)[:, None], torch.tensor([-1.0])
    found = tree_states(hidden, EDGES, torch.tensor([2, 5, 6]), 2, empty)[..., 0].tolist()
    assert found[0] == [2, 0, 1, 1, 2, 0, 2]  # 2: neighbours 0 and 1 (3 is beyond two), of 0: 1 and 2, of 1: 0 and 2
    assert found[1] == [5, 4, -1, 1, 3, -1, -1]
    assert found[2] == [6, -1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize(("readout", "tokens"), [("ho", 5), ("nd", 111), ("ho", 2), ("nd", 7)])
def test_the_model_reads_them_and_a_batch_equals_its_samples(build_model, ask, toy_graph, readout, tokens):
    assert GraphConfig(readout=readout).num_tokens == {"ho": 5, "nd": 111}[readout]
    model, processor = build_model(encoder="none", readout=readout, num_tokens=tokens, feature_dim=6)
    other = {
        **toy_graph,
        "node_features": toy_graph["node_features"] + 1,
        "edge_index": toy_graph["edge_index"].flip(0),
    }
    prompts = [ask("what?", [toy_graph]), ask("what is it, then?", [other, toy_graph])]
    encoded = [processor.encode(prompt) for prompt in prompts]
    assert [one["input_ids"].count(processor.graph_token_id) for one in encoded] == [tokens, 2 * tokens]
    with torch.no_grad():
        together = model(**processor.pad(encoded)).logits[:, -1]
        alone = torch.stack([model(**processor.pad([one])).logits[0, -1] for one in encoded])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_tree_of_another_size_is_refused():
    with pytest.raises(ValueError, match="num_tokens 100 is no such number"):
        GraphConfig(readout="nd", num_tokens=100)
