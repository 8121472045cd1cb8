"""The model: every encoder, read-out and projector; what must agree, what must differ, what must be refused."""

import pytest
import torch
from conftest import EDGE_FEATURES, FEATURES, aligned, build_language_model
from torch import nn

from modeling_graphllm import READS_EDGES, GraphConfig, GraphLLMForConditionalGeneration

ENCODERS = ("graph_transformer", "gat", "gcn", "sage", "mpnn", "none")
PROJECTORS = ("linear", "mlp", "ffn")
EMPTY = {"node_features": torch.zeros(0, FEATURES), "edge_index": torch.zeros(2, 0, dtype=torch.long)}


def batch_of(processor, *conversations):
    return processor.pad([processor.encode(messages) for messages in conversations])


def logits_of(model, batch):
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


@pytest.mark.parametrize("encoder", ENCODERS)
def test_saved_and_loaded_gives_equal_logits(encoder, build_model, ask, tmp_path):
    for readout in ("mean", "nodes"):
        for projector in PROJECTORS:
            model, processor = build_model(encoder=encoder, readout=readout, projector=projector)
            batch = batch_of(processor, ask())
            for lean in (False, True):
                model.config.lean = lean
                folder = tmp_path / f"{readout}-{projector}-{lean}"
                model.save_pretrained(folder)
                loaded = GraphLLMForConditionalGeneration.from_pretrained(folder)
                assert torch.equal(logits_of(aligned(loaded), batch), logits_of(aligned(model), batch)), folder.name


def test_lean_folder_holds_no_weight_of_the_language_model(build_model, tmp_path):
    from safetensors.torch import load_file

    model, _ = build_model()
    model.config.lean = True
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    expected = {name for name in model.state_dict() if name.startswith(("graph_encoder.", "graph_projector."))}
    assert names == expected


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_missing_graph_weight_is_initialised_and_leaves_the_rest_alone(encoder, build_model, tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = build_model(encoder=encoder, projector="ffn", norm="graph")
    model.save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    for gone in [name for name in whole if name.startswith("graph_")]:
        rest = {name: value for name, value in whole.items() if name != gone}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded = GraphLLMForConditionalGeneration.from_pretrained(tmp_path).state_dict()
        assert torch.isfinite(loaded[gone]).all(), gone
        assert loaded[gone].abs().max() < 10, gone
        changed = [name for name, value in rest.items() if not torch.equal(loaded[name], value)]
        assert not changed, (gone, changed)


def test_a_lean_folder_without_a_weight_is_refused_by_name(build_model, tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = build_model()
    model.config.lean = True
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["graph_encoder.null_node"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, first graph_encoder\.null_node"):
        GraphLLMForConditionalGeneration.from_pretrained(tmp_path)


def test_new_weights_are_finite_for_every_encoder_and_norm():
    language_model = build_language_model()
    for encoder in ENCODERS:
        for norm in ("layer", "graph"):
            config = GraphConfig(
                encoder=encoder, norm=norm, feature_dim=FEATURES, edge_feature_dim=EDGE_FEATURES, hidden_dim=8
            )
            model = GraphLLMForConditionalGeneration.from_components(language_model, config, graph_token_id=261)
            assert all(torch.isfinite(p).all() for p in model.parameters()), (encoder, norm)


# ---- configurations that agree
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_equals_its_samples(encoder, build_model, ask, toy_graph):
    small = {"node_features": toy_graph["node_features"][:2], "edge_index": torch.tensor([[0], [1]])}
    small["edge_features"] = toy_graph["edge_features"][:1]
    conversations = [
        ask("who?"),
        ask("what is it then?", []),
        ask("and?", [toy_graph, EMPTY, small]),
        ask("so", [small]),
    ]
    for readout, norm in (("mean", "layer"), ("nodes", "graph")):
        model, processor = build_model(encoder=encoder, readout=readout, norm=norm)
        together = logits_of(model, batch_of(processor, *conversations))
        for row, messages in zip(together, conversations, strict=True):
            alone = logits_of(model, batch_of(processor, messages))[0]
            torch.testing.assert_close(row[-len(alone) :], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_relabelled_nodes_give_the_same_logits(encoder, build_model, ask, toy_graph):
    model, processor = build_model(encoder=encoder)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    place = torch.empty_like(order)
    place[order] = torch.arange(6)
    shuffled_edges = torch.tensor([6, 0, 2, 4, 1, 3, 5])
    renamed = {
        "node_features": toy_graph["node_features"][order],
        "edge_index": place[toy_graph["edge_index"]][:, shuffled_edges],
        "edge_features": toy_graph["edge_features"][shuffled_edges],
    }
    first, second = (logits_of(model, batch_of(processor, ask(graphs=[graph]))) for graph in (toy_graph, renamed))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_loss_is_the_mean_over_answer_tokens_and_logits_are_only_theirs(build_model, ask):
    model, processor = build_model()
    batch = batch_of(processor, ask(answer="Bob"), ask("where?", [], answer="in a town"))
    with torch.no_grad():
        output = model(**batch)
    every = logits_of(model, batch)
    expected = nn.functional.cross_entropy(every[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert output.logits.shape[1] == max((row != -100).sum() for row in batch["labels"])


def test_loss_divides_by_the_number_of_items_that_is_given(build_model, ask):
    model, processor = build_model()
    batch = batch_of(processor, ask(answer="Bob"))
    with torch.no_grad():
        mean, shared = model(**batch).loss, model(**batch, num_items_in_batch=torch.tensor(40)).loss
    items = (batch["labels"] != -100).sum()
    torch.testing.assert_close(shared, mean * items / 40)


def test_a_graph_without_nodes_is_the_learned_null_vector(build_model, ask):
    model, processor = build_model(encoder="none", projector="linear")
    batch = batch_of(processor, ask(graphs=[EMPTY]))
    before = logits_of(model, batch)
    with torch.no_grad():
        model.graph_encoder.null_node.add_(1.0)
    assert not torch.allclose(before, logits_of(model, batch))


# ---- what must make a difference
@pytest.mark.parametrize("encoder", [encoder for encoder in ENCODERS if encoder != "none"])
def test_changing_an_edge_changes_the_output(encoder, build_model, ask, toy_graph):
    model, processor = build_model(encoder=encoder)
    moved = {**toy_graph, "edge_index": toy_graph["edge_index"].clone()}
    moved["edge_index"][1, 0] = 5
    renamed = {**toy_graph, "edge_features": toy_graph["edge_features"].clone()}
    renamed["edge_features"][0] += 1.0
    base, other_edge, other_text = (
        logits_of(model, batch_of(processor, ask(graphs=[graph]))) for graph in (toy_graph, moved, renamed)
    )
    assert (base - other_edge).abs().max() > 1e-5
    assert ((base - other_text).abs().max() > 1e-5) == (encoder in READS_EDGES)


def test_direction_of_an_edge_is_told_apart(build_model, ask, toy_graph):
    model, processor = build_model(encoder="mpnn")
    turned = {**toy_graph, "edge_index": toy_graph["edge_index"].flip(0)}
    first, second = (logits_of(model, batch_of(processor, ask(graphs=[graph]))) for graph in (toy_graph, turned))
    assert (first - second).abs().max() > 1e-5


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_graph_weight_gets_a_gradient_with_and_without_graphs(encoder, build_model, ask):
    model, processor = build_model(encoder=encoder, projector="ffn")
    model.train()
    for graphs, moves in ((None, True), ([], False)):
        model.zero_grad()
        model(**batch_of(processor, ask(graphs=graphs, answer="Bob"))).loss.backward()
        parts = [*model.graph_encoder.named_parameters(), *model.graph_projector.named_parameters()]
        assert all(p.grad is not None for _, p in parts), [name for name, p in parts if p.grad is None]
        assert any(p.grad.abs().max() > 0 for _, p in parts) == moves
    one_way, processor = build_model(encoder=encoder, bidirectional=False)
    one_way.train()(**batch_of(processor, ask(answer="Bob"))).loss.backward()
    assert all(p.grad is not None for p in one_way.parameters())


def test_token_dropout_zeroes_whole_graphs_in_training_only(build_model, ask, toy_graph):
    for readout in ("mean", "nodes"):
        model, processor = build_model(readout=readout, token_dropout=0.5)
        batch = batch_of(processor, *[ask(graphs=[toy_graph, toy_graph])] * 8)
        graphs = {name: value for name, value in batch.items() if name.startswith("graph_")}
        graphs.setdefault("graph_edge_features", None)
        per_graph = 3 if readout == "mean" else 6
        with torch.no_grad():
            assert (model.get_graph_features(**graphs) != 0).all()
            tokens = model.train().get_graph_features(**graphs).view(16, per_graph, 16)
        zeroed = (tokens == 0).all(dim=-1)
        assert torch.equal(zeroed.any(dim=1), zeroed.all(dim=1))
        assert 0 < zeroed.all(dim=1).sum() < 16


def test_trains_under_bf16_autocast(build_model, ask):
    for encoder in ENCODERS:
        model, processor = build_model(encoder=encoder, norm="graph")
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch_of(processor, ask(answer="Bob"), ask(graphs=[], answer="Al"))).loss
        loss.backward()
        assert torch.isfinite(loss), encoder


# ---- placeholder contract
def test_placeholders_and_graph_tokens_are_counted(build_model, ask, toy_graph):
    model, processor = build_model()
    batch = batch_of(processor, ask(graphs=[toy_graph, toy_graph]))
    one_missing = batch_of(processor, ask())
    fewer = {**batch, **{name: value for name, value in one_missing.items() if name.startswith("graph_")}}
    with pytest.raises(ValueError, match="6 placeholders in input_ids, 3 tokens"):
        model(**fewer)
    more = {**one_missing, **{name: value for name, value in batch.items() if name.startswith("graph_")}}
    with pytest.raises(ValueError, match="3 placeholders in input_ids, 6 tokens"):
        model(**more)
    text_doubled = {**one_missing, "input_ids": one_missing["input_ids"].repeat(1, 2)}
    text_doubled["attention_mask"] = torch.ones_like(text_doubled["input_ids"])
    with pytest.raises(ValueError, match="6 placeholders in input_ids, 3 tokens"):
        model(**text_doubled)
    graphless = {name: value for name, value in batch.items() if not name.startswith("graph_")}
    for training in (True, False):
        with pytest.raises(ValueError, match="6 placeholders in input_ids, 0 tokens"):
            model.train(training)(**graphless)
    assert model.eval()(**batch).logits.isfinite().all()


def test_wrong_widths_are_refused_with_both_numbers(build_model, ask, toy_graph):
    model, processor = build_model()
    wide = {**toy_graph, "node_features": torch.randn(6, FEATURES + 2)}
    with pytest.raises(ValueError, match="8 wide, the encoder was built for 6"):
        model(**batch_of(processor, ask(graphs=[wide])))
    bare = {name: value for name, value in toy_graph.items() if name != "edge_features"}
    with pytest.raises(ValueError, match=r"Edge features have shape \(0, 5\), the encoder needs \(7, 5\)"):
        model(**batch_of(processor, ask(graphs=[bare])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "gnn"}, "encoder 'gnn' is not known. Choose one of graph_transformer"),
        ({"norm": "batch"}, "norm 'batch' is not known"),
        ({"readout": "max"}, "readout 'max' is not known"),
        ({"projector": "conv"}, "projector 'conv' is not known"),
        ({"hidden_dim": 10, "num_heads": 4}, "10 cannot be split over 4 heads"),
    ],
)
def test_unknown_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GraphConfig(**settings)


def test_graphs_beside_inputs_embeds_are_refused(build_model, ask):
    model, processor = build_model()
    batch = batch_of(processor, ask())
    embeds = torch.zeros(1, batch["input_ids"].shape[1], 16)
    with pytest.raises(ValueError, match="Give input_ids instead"):
        model(inputs_embeds=embeds, graph_node_features=batch["graph_node_features"])


# ---- generation
def test_generate_equals_argmax_by_hand_and_encodes_once(build_model, ask, toy_graph):
    model, processor = build_model()
    batch = batch_of(processor, ask(), ask("what?", []), ask("a b c", [toy_graph, EMPTY, toy_graph]))
    calls = []
    handle = model.graph_encoder.register_forward_hook(lambda *_: calls.append(1))
    for use_cache in (True, False):
        calls.clear()
        generated = model.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=use_cache)
        assert len(calls) == 1
        ids, mask = batch["input_ids"], batch["attention_mask"]
        for _ in range(6):
            logits = logits_of(model, {**batch, "input_ids": ids, "attention_mask": mask})[:, -1]
            logits[:, 1] = -torch.inf  # min_new_tokens forbids the end token
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        assert torch.equal(generated, ids)
    handle.remove()


def test_beams_and_several_sequences_keep_each_sample_with_its_graphs(build_model, ask, toy_graph):
    model, processor = build_model()
    conversations = [ask(), ask("what?", []), ask("a b c", [toy_graph, EMPTY, toy_graph])]
    settings = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    together = model.generate(**batch_of(processor, *conversations), **settings)
    assert len(together) == 6
    for i, messages in enumerate(conversations):
        alone = model.generate(**batch_of(processor, messages), **settings)
        width = alone.shape[1] - batch_of(processor, messages)["input_ids"].shape[1]
        start = batch_of(processor, *conversations)["input_ids"].shape[1]
        assert torch.equal(together[2 * i : 2 * i + 2, start : start + width], alone[:, -width:])


def test_encoded_graphs_can_be_given_and_zeroed(build_model, ask):
    model, processor = build_model()
    batch = batch_of(processor, ask(), ask("what?", []))
    graph_inputs = {name: batch.pop(name) for name in list(batch) if name.startswith("graph_")}
    with torch.no_grad():
        embeds = model.encode_graphs(batch["input_ids"], **graph_inputs)
    assert embeds.shape == (2, 3, 16)
    assert embeds[1].abs().max() == 0
    torch.testing.assert_close(
        logits_of(model, {**batch, "graph_embeds": embeds}), logits_of(model, {**batch, **graph_inputs})
    )
    zeroed = logits_of(model, {**batch, "graph_embeds": torch.zeros_like(embeds)})
    assert (zeroed[0] - logits_of(model, {**batch, **graph_inputs})[0]).abs().max() > 1e-5


# ---- encoder-decoder
def test_an_encoder_decoder_trains_generates_and_reloads(ask, tmp_path):
    from conftest import build_tokenizer
    from transformers import T5Config, T5ForConditionalGeneration

    from processing_graphllm import GraphLLMProcessor

    torch.manual_seed(0)
    settings = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=261, **settings)).save_pretrained(tmp_path / "t5")
    processor = GraphLLMProcessor.from_tokenizer(build_tokenizer(), num_graph_tokens=3, is_encoder_decoder=True)
    config = GraphConfig(feature_dim=FEATURES, edge_feature_dim=EDGE_FEATURES, hidden_dim=8, num_heads=2, num_tokens=3)
    model = GraphLLMForConditionalGeneration.from_components(
        str(tmp_path / "t5"), config, graph_token_id=processor.graph_token_id
    ).eval()
    batch = batch_of(processor, ask(answer="Bob"), ask("what is that?", [], answer="a house"))
    assert batch["labels"][0].tolist()[:4] == [*processor.tokenizer("Bob")["input_ids"], 1]
    loss = model(**batch).loss
    loss.backward()
    assert model.graph_projector.layers[0].weight.grad.abs().max() > 0
    prompts = {name: value for name, value in batch.items() if name != "labels"}
    generated = model.generate(**prompts, max_new_tokens=4, num_beams=2)
    alone = model.generate(**{k: v for k, v in batch_of(processor, ask()).items()}, max_new_tokens=4, num_beams=2)
    assert torch.equal(generated[0, : alone.shape[1]], alone[0])
    model.config.lean = True
    model.save_pretrained(tmp_path / "saved")
    loaded = GraphLLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, loss)
