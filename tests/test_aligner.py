"""The aligner: each loss against a reference of a few lines, who sees whom, and the start from BERT."""

import math

import pytest
import torch
import torch.nn.functional as F

import modeling_aligner
from modeling_aligner import GraphAligner, GraphAlignerConfig, caption_mask, contrast, hard_negatives
from modeling_graphllm import GraphConfig

WORDS = 20
START, CAPTION, END = WORDS, WORDS + 1, WORDS + 2


def build(attention: str = "sdpa", bert: bool = False, **settings) -> GraphAligner:
    graph = {
        "encoder": "sage", "feature_dim": 6, "hidden_dim": 8, "num_layers": 2, "readout": "qformer", "num_tokens": 3,
        "qformer_dim": 16, "qformer_num_layers": 3, "qformer_num_heads": 2, "qformer_intermediate_dim": 32,
        "state_layers": "all", "qformer_dropout": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "max_text_tokens": 12, "contrastive_dim": 8}
    model = GraphAligner(GraphAlignerConfig(graph_config=GraphConfig(**graph), **{**sizes, **settings})).eval()
    with torch.no_grad():  # every weight far from its start, so that no part is all but silent
        for one in model.parameters():
            one.add_(0.2 * torch.randn_like(one))
    model.qformer.model.set_attn_implementation(attention)
    return model


def pairs() -> dict[str, torch.Tensor]:
    """Four graphs of 3, 2, 1 and 2 nodes, and texts of which the first and the last are equal."""
    generator = torch.Generator().manual_seed(3)
    return {
        "input_ids": torch.tensor([[START, 1, 2, 3, END], [START, 4, END, 0, 0], [START, 5, 6, END, 0],
                                   [START, 1, 2, 3, END]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        "graph_node_features": torch.randn(8, 6, generator=generator),
        "graph_edge_index": torch.tensor([[1, 2, 4, 7], [0, 0, 3, 6]]),
        "graph_batch": torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]),
        "text_index": torch.tensor([0, 1, 2, 0]),
    }  # fmt: skip


def graph_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    return {name: batch[name] for name in batch if name.startswith("graph_")} | {"graph_edge_features": None}


def test_the_contrast_is_that_of_a_reference():
    model, batch = build(), pairs()
    graphs = model.embed_graphs(*model.graph_states(**graph_of(batch))).detach()
    texts = model.embed_texts(batch["input_ids"], batch["attention_mask"]).detach()
    total = 0.0
    for i in range(4):
        for rows in (
            [max(float(query @ texts[j]) for query in graphs[i]) for j in range(4)],
            [max(float(query @ texts[i]) for query in graphs[j]) for j in range(4)],
        ):
            log = torch.tensor(rows).mul(model.scale.detach().exp()).log_softmax(dim=0)
            same = [j for j in range(4) if batch["text_index"][j] == batch["text_index"][i]]
            total -= float(0.9 * log[same].mean() + 0.1 * log.mean()) / 2
    assert float(model(**batch).contrastive.detach()) == pytest.approx(total / 4, rel=1e-5)


def test_without_equal_texts_the_contrast_is_the_smoothed_cross_entropy_of_pytorch():
    scores = torch.randn(5, 5)
    expected = F.cross_entropy(scores, torch.arange(5), label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(contrast(scores, torch.eye(5, dtype=torch.bool), 0.1), expected)


def test_the_matching_is_that_of_a_reference(monkeypatch):
    model, batch = build(), pairs()
    wrong = {"graph": torch.tensor([1, 2, 0, 2]), "text": torch.tensor([2, 3, 1, 1])}
    drawn = iter([wrong["graph"], wrong["text"]])
    monkeypatch.setattr(modeling_aligner, "hard_negatives", lambda scores, same: next(drawn))
    states, mask = model.graph_states(**graph_of(batch))
    cases = [(i, i, 1) for i in range(4)]
    cases += [(int(wrong["graph"][i]), i, 0) for i in range(4)] + [(i, int(wrong["text"][i]), 0) for i in range(4)]
    losses = []
    for g, t, label in cases:
        length = int(batch["attention_mask"][t].sum())
        alone = batch["input_ids"][t : t + 1, :length]
        tokens = model.word_embeddings(alone) + model.position_embeddings.weight[:length]
        both = torch.cat([model.qformer.queries[None], tokens], dim=1)
        known = states[g : g + 1, mask[g]]
        hidden = model.qformer.model(both, query_length=3, encoder_hidden_states=known).last_hidden_state
        logits = torch.stack([model.matching_head(hidden[0, k]) for k in range(3)]).mean(dim=0)
        losses.append(-logits.log_softmax(dim=0)[label])
    torch.testing.assert_close(model(**batch).matching, torch.stack(losses).mean())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_captioning_is_that_of_a_reference_which_reads_one_token_more_each_time(attention):
    model, batch = build(attention), pairs()
    states, mask = model.graph_states(**graph_of(batch))
    losses = []
    for i in range(4):
        text = batch["input_ids"][i, : int(batch["attention_mask"][i].sum())]
        for place in range(1, len(text)):  # the last text token predicts the end
            logits = model.caption(states[i : i + 1], mask[i : i + 1], text[None, :place], torch.ones(1, place))
            losses.append(-logits[0, -1].log_softmax(dim=0)[text[place]])
    torch.testing.assert_close(model(**batch).captioning, torch.stack(losses).mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_three_passes_do_not_leak(attention):
    model, batch = build(attention), pairs()
    states, mask = model.graph_states(**graph_of(batch))
    ids, seen = batch["input_ids"], batch["attention_mask"]
    other = ids.clone()
    other[0, 3] = 9
    before, after = (model.caption(states, mask, one, seen) for one in (ids, other))
    torch.testing.assert_close(before[0, :3], after[0, :3])
    assert (before[0, 3] - after[0, 3]).abs().max() > 1e-3
    # queries of a caption see no text, texts of a contrast see no graph, padding and padded states are never seen
    queries = model._read_both(states, mask, ids, caption_mask(3, seen, states.dtype))[:, :3]
    torch.testing.assert_close(queries, model.read_graphs(states, mask))
    padded = ids.clone()
    padded[seen == 0] = 7
    filled = states.masked_fill(~mask[..., None], 5.0)
    for read in (lambda s, i: model.caption(s, mask, i, seen)[seen.bool()], lambda s, i: model.match(s, mask, i, seen),
                 lambda s, i: model.embed_texts(i, seen), lambda s, i: model.embed_graphs(s, mask)):  # fmt: skip
        torch.testing.assert_close(read(states, ids), read(filled, padded))


def test_a_caption_mask_is_added_and_shaped_like_unilm():
    mask = caption_mask(2, torch.tensor([[1, 1, 0]]), torch.float32)
    assert mask.dtype == torch.float32 and mask.shape == (1, 1, 5, 5)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1],
    ]  # fmt: skip


def test_a_hard_negative_is_never_a_positive_and_likelier_the_higher_it_scores():
    torch.manual_seed(0)
    same = torch.tensor([[True, False, False, True]]).expand(2000, 4)
    scores = torch.tensor([[9.0, 2.0, 0.0, 9.0]]).expand(2000, 4)
    drawn = hard_negatives(scores, same)
    weights = scores[0].softmax(dim=0) + 1e-4
    assert set(drawn.tolist()) == {1, 2}
    assert float((drawn == 1).float().mean()) == pytest.approx(float(weights[1] / (weights[1] + weights[2])), abs=0.03)
    assert hard_negatives(scores[:2], torch.ones(2, 4, dtype=torch.bool)).tolist() == [-1, -1]


def test_a_batch_of_one_pair_has_no_negatives_and_trains():
    model, whole = build().train(), pairs()
    batch = {name: whole[name][:1] for name in ("input_ids", "attention_mask", "text_index")}
    batch |= {"graph_node_features": whole["graph_node_features"][:3], "graph_batch": whole["graph_batch"][:3]}
    out = model(**batch, graph_edge_index=torch.zeros(2, 0, dtype=torch.long))
    out.loss.backward()
    assert float(out.contrastive.detach()) == pytest.approx(0.0, abs=1e-6)  # one candidate
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


def test_weights_choose_the_losses_and_what_none_uses_rests():
    batch = pairs()
    whole = build()(**batch)
    model = build(contrastive_weight=2.0, matching_weight=0.0, captioning_weight=0.5)
    out = model(**batch)
    assert out.matching is None and not model.matching_head.weight.requires_grad
    torch.testing.assert_close(out.loss, 2 * whole.contrastive + 0.5 * whole.captioning)
    out.loss.backward()
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)
    with pytest.raises(ValueError, match="one above 0"):
        GraphAlignerConfig(contrastive_weight=0.0, matching_weight=0.0, captioning_weight=0.0)


def test_one_state_makes_attention_constant_and_several_images_of_it_do_not():
    """With one key the softmax is 1 whatever the query: no gradient reaches what scores it."""
    vectors, graph = torch.randn(2, 6), torch.arange(2)

    def gradient_of_keys(spread: int) -> float:
        config = GraphConfig(encoder="none", feature_dim=6, readout="qformer", num_tokens=3, qformer_dim=16,
                             qformer_num_layers=2, qformer_num_heads=2, qformer_intermediate_dim=32,
                             qformer_dropout=0.0, states_per_vector=spread)  # fmt: skip
        torch.manual_seed(0)
        model = GraphAligner(GraphAlignerConfig(graph_config=config, vocab_size=WORDS)).qformer
        with torch.no_grad():
            for one in model.parameters():
                one.add_(0.2 * torch.randn_like(one))
        out = model(vectors, graph)
        (out * torch.randn_like(out)).sum().backward()
        return float(model.model.encoder.layer[0].crossattention.attention.key.weight.grad.abs().max())

    assert gradient_of_keys(1) < 1e-5
    assert gradient_of_keys(4) > 1e-3
    with pytest.raises(ValueError, match="attention is constant.*graph_projector linear or mlp"):
        GraphConfig(readout="qformer", max_nodes=1)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, batch = build(), pairs()
    torch.manual_seed(1)
    loss = model(**batch).loss
    model.save_pretrained(tmp_path)
    again = GraphAligner.from_pretrained(tmp_path).eval()
    torch.manual_seed(1)
    assert torch.equal(again(**batch).loss, loss)
    fresh = GraphAligner(GraphAlignerConfig(graph_config=model.config.graph_config, vocab_size=WORDS))
    assert float(fresh.scale.detach()) == pytest.approx(math.log(1 / 0.07), rel=1e-6)
    assert float(fresh.qformer.queries.detach().std()) == pytest.approx(0.02, rel=0.5)


def test_from_bert_the_text_pass_is_bert(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=110, max_position_embeddings=12, initializer_range=0.3, **sizes)).eval()
    bert.save_pretrained(tmp_path)
    model = build(vocab_size=110)
    model.start_from_bert(str(tmp_path), 101, 102)
    ids, seen = torch.tensor([[101, 3, 4, 102], [101, 5, 102, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    own = ids.clone()
    own[own == 101], own[own == 102] = model.config.text_start, model.config.text_end
    expected = bert(input_ids=ids, attention_mask=seen).last_hidden_state
    found = model.qformer.model(model._embed(own), query_length=0, attention_mask=seen).last_hidden_state
    torch.testing.assert_close(found[seen.bool()], expected[seen.bool()], rtol=1e-4, atol=1e-5)
    layer = model.qformer.model.encoder.layer[1]
    assert torch.equal(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)
    with pytest.raises(ValueError, match="qformer_dim"):
        build(vocab_size=50).start_from_bert(str(tmp_path), 1, 2)
