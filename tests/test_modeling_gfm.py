"""GFMForRetrieval: messages against a dense reference, gradients, balls, backgrounds, losses, ranks, documents."""

import sys

import numpy as np
import pytest
import torch

import modeling_gfm
from modeling_gfm import (
    AGGREGATIONS,
    MESSAGES,
    GFMConfig,
    GFMForRetrieval,
    GFMGraph,
    GFMLayer,
    RelationalEdges,
    bce_loss,
    filtered_ranks,
    list_ce_loss,
    propagate,
    rank_documents,
    softmax_loss,
    sum_of_squares,
)

NODES, RELATIONS, WIDTH = 24, 3, 8


def triples(count=60, seed=0, nodes=NODES):
    rng = np.random.default_rng(seed)
    return rng.integers(0, [nodes, RELATIONS, nodes], (count, 3))


def edges_of(table):
    sources, relations, targets = torch.from_numpy(table).unbind(1)
    return RelationalEdges.sort(sources, relations, targets, NODES, RELATIONS)


def graph_of(table, seed=0, documents=None):
    embeds = np.random.default_rng(seed).normal(size=(RELATIONS, 5))
    count = 0 if documents is None else int(documents[:, 0].max()) + 1
    return GFMGraph.from_arrays(table, NODES, RELATIONS, embeds, documents, count)


def model_of(table, **settings):
    torch.manual_seed(0)
    settings = {"feature_dim": 5, "hidden_dim": WIDTH, "num_layers": 3, **settings}
    model = GFMForRetrieval(GFMConfig(**settings)).double().eval()
    model.attach_graphs([graph_of(table)])
    return model


def ask(count=2, seed=1):
    """Questions, their seeds, whose they are."""
    torch.manual_seed(seed)
    seeds = torch.tensor([0, 3, 5][: count + 1])
    return {
        "graph_index": torch.tensor([0]),
        "question_embeds": torch.randn(count, 5, dtype=torch.double),
        "seed_nodes": seeds,
        "seed_batch": torch.tensor([0, 1, 1][: count + 1]).clamp(max=count - 1),
    }


def test_each_layer_reads_its_own_words_and_padding_says_nothing():
    model = model_of(triples(), question_relations=True, question_attention=True)
    asked, tokens = ask(), torch.randn(2, 4, 5, dtype=torch.double)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    scores = model(**asked, question_tokens=tokens, question_token_mask=mask).logits
    tokens[1, 2:] = 7.0
    torch.testing.assert_close(model(**asked, question_tokens=tokens, question_token_mask=mask).logits, scores)
    tokens[1, 1] = 7.0
    changed = model(**asked, question_tokens=tokens, question_token_mask=mask).logits
    assert torch.equal(changed[0], scores[0]) and not torch.allclose(changed[1], scores[1])
    read = [layer.words(model.token_projection(tokens), mask) for layer in model.layers]
    assert not torch.allclose(read[0], read[1])
    with pytest.raises(ValueError, match="reads question_tokens"):
        model(**asked)


def test_gates_are_shares_of_the_relations_that_the_question_chooses():
    model, asked = model_of(triples(), question_relations=True, question_gates=True), ask()
    relations = model.relation_projection(model.graphs[0].relation_embeds.double())[:, None]
    question = model.question_projection(asked["question_embeds"])
    for layer in model.layers:
        vectors = layer.relation_vectors(relations, question)
        shares = vectors / layer.relation_mlp(relations)
        torch.testing.assert_close(shares, shares[..., :1].expand_as(shares))  # one number a relation and question
        torch.testing.assert_close(shares[..., 0].sum(0), torch.ones(2, dtype=torch.double))
        assert (shares > 0).all() and not torch.allclose(shares[:, 0], shares[:, 1])
    scores = model(**asked).logits
    with torch.no_grad():
        model.layers[1].question.bias += 50 * model.layers[1].gate(relations)[2, 0].detach()
    assert not torch.allclose(model(**asked).logits, scores)
    assert float(model.layers[1].relation_vectors(relations, question).detach()[[0, 1, 3, 4, 5]].abs().max()) < 0.1


def dense_messages(states, relations, table, kind):
    """Every message, one loop, nothing clever: [(target, (B, D))]."""
    found = []
    for source, relation, target in table.tolist():
        h, r = states[source], relations[relation]
        if kind == "distmult":
            message = h * r
        elif kind == "transe":
            message = h + r
        else:
            half = h.shape[-1] // 2
            product = torch.complex(h[:, :half], h[:, half:]) * torch.complex(r[:, :half], r[:, half:])
            message = torch.cat([product.real, product.imag], -1)
        found.append((target, message))
    return found


@pytest.fixture(params=["compiled", "torch"])
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(modeling_gfm, "cpu_kernels", lambda threads: None)
        monkeypatch.setattr(modeling_gfm, "CHUNK_BYTES", 7 * 3 * WIDTH * 8)  # seven edges at a time
    else:
        pytest.importorskip("numba")
    return request.param


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per question"])
@pytest.mark.parametrize("kind", MESSAGES)
def test_propagation_equals_a_loop_over_the_edges(backend, kind, shared):
    torch.manual_seed(0)
    table = triples()
    states = torch.randn(NODES, 3, WIDTH, dtype=torch.double)
    relations = torch.randn(RELATIONS, 1 if shared else 3, WIDTH, dtype=torch.double)
    messages = dense_messages(states, relations.expand(-1, 3, -1), table, kind)
    for reduce, combine in (("sum", sum), ("max", lambda m: torch.stack(m).amax(0)),
                            ("min", lambda m: torch.stack(m).amin(0))):  # fmt: skip
        result = propagate(states, relations, edges_of(table), kind, reduce)
        for node in range(NODES):
            arriving = [message for target, message in messages if target == node]
            if arriving:
                torch.testing.assert_close(result[node], combine(arriving))
    squares = sum_of_squares(states, relations, edges_of(table), kind)
    expected = torch.zeros_like(squares)
    for target, message in messages:
        expected[target] += message.square()
    torch.testing.assert_close(squares, expected)


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_of_every_message_and_aggregation(backend, kind, aggregation):
    torch.manual_seed(1)
    table = triples(14, nodes=5)
    sources, relations, targets = torch.from_numpy(table).unbind(1)
    edges = RelationalEdges.sort(sources, relations, targets, 5, RELATIONS)
    config = GFMConfig(hidden_dim=4, message=kind, aggregation=aggregation)
    layer = GFMLayer(config).double()
    states, start = (torch.randn(5, 2, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    for batch in (1, 2):
        vectors = torch.randn(RELATIONS, batch, 4, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *one: layer.aggregate(one[0], one[1], edges, one[2]),
                                        (states, start, vectors), fast_mode=True)  # fmt: skip


def test_several_threads_give_the_same_sums():
    pytest.importorskip("numba")
    table, before = triples(), torch.get_num_threads()
    states, relations = torch.randn(NODES, 3, WIDTH), torch.randn(RELATIONS, 1, WIDTH, requires_grad=True)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            result = propagate(states, relations, edges_of(table))
            results.append((result, torch.autograd.grad(result.square().sum(), relations)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_sums_of_narrow_types_are_taken_in_float32(backend):
    table = np.stack([np.arange(1, 4001), np.zeros(4000), np.zeros(4000)], 1).astype(np.int64)
    sources, relations, targets = torch.from_numpy(table).unbind(1)
    edges = RelationalEdges.sort(sources, relations, targets, 4001, 1)
    states = torch.ones(4001, 1, 2, dtype=torch.bfloat16)
    result = propagate(states, torch.ones(1, 1, 2, dtype=torch.bfloat16), edges)
    assert result.dtype == torch.bfloat16
    assert result[0].tolist() == [[4000.0, 4000.0]]  # added up in bfloat16 they would stop at 256


def test_parameters_are_as_many_as_published():
    for width, expected in ((32, 78_977), (64, 215_297), (128, 659_969)):
        model = GFMForRetrieval(GFMConfig(feature_dim=768, hidden_dim=width))
        assert sum(one.numel() for one in model.parameters()) == expected


@pytest.mark.parametrize("settings", [
    {}, {"hold_unreached": True}, {"hold_unreached": True, "question_relations": True}, {"aggregation": "mean"},
    {"hold_unreached": True, "message": "rotate"},
    {"messages": "against"}, {"message": "transe", "aggregation": "max"},
], ids=str)  # fmt: skip
def test_scores_near_the_seeds_equal_those_of_the_whole_graph(settings):
    table = triples(30)
    model = model_of(table, num_layers=2, **settings)
    one = ask(count=1)
    whole = model(**one).logits
    near = model.score_near(one["graph_index"], one["seed_nodes"], one["question_embeds"])
    torch.testing.assert_close(near, whole, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        model.layers[0].linear.weight.mul_(1.1)
    near = model.score_near(one["graph_index"], one["seed_nodes"], one["question_embeds"])
    torch.testing.assert_close(near, model(**one).logits, rtol=1e-10, atol=1e-12)


def held(model, asked, table):
    """Logits (B, N) of a model with hold_unreached: all edges at every step, and a mask that says what was reached."""
    graph, edges = graph_of(table), edges_of(np.concatenate([table, table[:, [2, 1, 0]] + [0, RELATIONS, 0]]))
    edges = RelationalEdges(edges.order, edges.sources, edges.relations, edges.targets, NODES, 2 * RELATIONS)
    question, relations = model._read_question(graph, edges, asked["question_embeds"], None)
    start = torch.zeros(NODES, *question.shape, dtype=question.dtype)
    start = start.index_put((asked["seed_nodes"], asked["seed_batch"]), question[asked["seed_batch"]])
    states, history, reached = start, [], start.abs().sum(-1) > 0
    for layer in model.layers:
        states = layer(states, start, edges, layer.relation_vectors(relations, question))
        reached = reached | (torch.zeros(reached.shape).index_add_(0, edges.targets, reached[edges.sources] * 1.0) > 0)
        states = states * reached[..., None]
        history.append(states)
    return model.score(torch.cat(history, -1) if model.config.concat_hidden else states, question).T


@pytest.mark.parametrize("settings", [
    {}, {"question_relations": True}, {"message": "rotate"}, {"question_relations": True, "concat_hidden": True},
], ids=str)  # fmt: skip
def test_balls_score_and_learn_as_the_whole_graph_does_with_unreached_nodes_at_zero(settings):
    table = triples(30)
    model, asked = model_of(table, hold_unreached=True, **settings), ask()
    expected = held(model, asked, table)
    found = model(**asked).logits
    torch.testing.assert_close(found, expected)
    assert len({round(float(one), 9) for one in found[0].detach()}) < NODES  # some nodes are out of reach
    weight = torch.randn(found.shape, dtype=torch.double)
    grads = [torch.autograd.grad((logits * weight).sum(), list(model.parameters())) for logits in (found, expected)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)
    fewer = np.delete(table, [4, 7], 0)
    removed = model(**asked, removed_edges=torch.tensor([4, 7])).logits
    torch.testing.assert_close(removed, held(model, asked, fewer))
    sampled = model(**asked, target_nodes=torch.tensor([7, 4]), target_batch=torch.tensor([0, 1]),
                    negative_nodes=torch.tensor([[1, 3], [6, 8]])).logits  # fmt: skip
    torch.testing.assert_close(sampled, found[[0, 1, 0, 0, 1, 1], [7, 4, 1, 3, 6, 8]])


def test_the_nodes_outside_a_ball_stand_as_one_in_the_softmax():
    table = triples(30)
    settings = {"bce_weight": 0.0, "list_ce_weight": 0.0, "softmax_weight": 1.0, "question_relations": True}
    model, asked = model_of(table, hold_unreached=True, **settings), ask()
    outside = [node for node in range(NODES) if node not in ball_of(model, asked)]
    inside = sorted(ball_of(model, asked) - {0})
    nodes = torch.tensor([inside[0], outside[0], inside[1]])
    answers = {"target_nodes": nodes, "target_batch": torch.tensor([0, 0, 1])}
    known = {"known_nodes": torch.tensor([outside[1], inside[2], inside[0]]), "known_batch": torch.tensor([0, 0, 0])}
    for more in ({}, known):
        losses = [model.train(mode)(**asked, **answers, **more).loss for mode in (False, True)]
        torch.testing.assert_close(*losses)
        grads = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
        for mine, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert model(**asked, **answers).logits is None


def ball_of(model, asked):
    """The nodes that the first question reaches."""
    edges = model.graphs[0].edges(False)
    ball = modeling_gfm.Ball.grow(edges, asked["seed_nodes"], asked["seed_batch"], 2, len(model.layers), True)
    return set(ball.nodes[ball.questions == 0].tolist())


def test_questions_whose_background_differs_are_refused():
    model = model_of(triples(), question_relations=True)
    one = ask(count=1)
    with pytest.raises(ValueError, match="Call forward instead"):
        model.score_near(one["graph_index"], one["seed_nodes"], one["question_embeds"])


@pytest.mark.parametrize("settings", [
    {}, {"question_relations": True}, {"message": "rotate"}, {"hold_unreached": True},
    {"hold_unreached": True, "question_relations": True},
], ids=str)  # fmt: skip
def test_a_union_of_whole_graphs_scores_as_the_graph_itself(settings):
    table = triples()
    model, asked = model_of(table, **settings), ask()
    whole = model(**asked).logits
    ends, relations = torch.from_numpy(table[:, [0, 2]]).T, torch.from_numpy(table[:, 1])
    union = {
        "edge_index": torch.cat([ends, ends + NODES], 1),
        "edge_relations": relations.repeat(2),
        "node_batch": torch.arange(2).repeat_interleave(NODES),
        "seed_nodes": asked["seed_nodes"] + NODES * asked["seed_batch"],
    }
    torch.testing.assert_close(model(**{**asked, **union}).logits.reshape(2, -1), whole)


def test_an_inverse_answers_the_reversed_query_and_direction_matters():
    table = np.array([[0, 0, 1]])
    asked = {**ask(count=1), "seed_nodes": torch.tensor([0]), "seed_batch": torch.tensor([0])}
    scores = {way: model_of(table, messages=way, hold_unreached=True)(**asked).logits for way in ("along", "against")}
    assert not torch.allclose(scores["along"], scores["against"])
    model = model_of(table)
    swapped = GFMGraph.from_arrays(table, NODES, RELATIONS, model.graphs[0].relation_embeds.roll(RELATIONS, 0).numpy())
    expected = model_of(table, messages="against")(**asked).logits
    model.attach_graphs([swapped])
    torch.testing.assert_close(model(**asked).logits, expected, rtol=1e-6, atol=1e-7)


def test_removed_edges_and_their_inverses_are_gone():
    table = triples()
    asked = ask()
    without = model_of(table)(**asked, removed_edges=torch.tensor([4, 7])).logits
    torch.testing.assert_close(without, model_of(np.delete(table, [4, 7], 0))(**asked).logits)


def test_what_edges_did_is_the_slope_of_the_scores():
    table = triples(20)
    model, asked = model_of(table), ask(count=1)
    ends, relations = torch.from_numpy(table[:, [0, 2]]).T, torch.from_numpy(table[:, 1])
    union = {"edge_index": ends, "edge_relations": relations, "node_batch": torch.zeros(NODES, dtype=torch.long)}
    scores, importance = model.evidence(**asked, **union, top=3)
    torch.testing.assert_close(scores, model(**asked).logits[0])
    best = scores.topk(3).indices
    original, step = modeling_gfm.message_of, 1e-6

    def total(weight):
        # both directions of edge 5 weigh `weight`
        def weighted(kind, states, vectors):
            factors = torch.where(places % len(table) == 5, weight, 1.0)[:, None, None]
            return original(kind, states, vectors) * factors

        places = model.graphs[0].edges(False).order
        modeling_gfm.message_of = weighted
        try:
            return float(model(**asked).logits[0, best].sum().detach())
        finally:
            modeling_gfm.message_of = original

    kernels, modeling_gfm.cpu_kernels = modeling_gfm.cpu_kernels, lambda threads: None
    try:
        slope = (total(1 + step) - total(1 - step)) / (2 * step)
    finally:
        modeling_gfm.cpu_kernels = kernels
    assert slope == pytest.approx(float(importance[5]), rel=1e-5)


def flat(rows):
    """Logits, questions and labels of [[(logit, label), ...] per question]."""
    logits = torch.tensor([logit for row in rows for logit, _ in row], dtype=torch.double)
    labels = torch.tensor([label for row in rows for _, label in row])
    questions = torch.tensor([place for place, row in enumerate(rows) for _ in row])
    return logits, questions, labels


ROWS = [[(2.0, 1), (0.5, 0), (-1.0, 0), (9.0, -1), (0.3, 1)], [(0.1, 0), (0.7, 1)], [(3.0, 0), (1.0, 0)]]


def test_losses_equal_their_formulas_and_skip_questions_without_answers():
    bce, lists, softmax = [], [], []
    for row in ROWS[:2]:
        values = torch.tensor([logit for logit, label in row if label != -1], dtype=torch.double)
        target = torch.tensor([float(label) for _, label in row if label != -1], dtype=torch.double)
        negatives = values[target == 0]
        weights = target / target.sum()
        weights[target == 0] = (negatives / 0.2).softmax(0)
        each = torch.nn.functional.binary_cross_entropy_with_logits(values, target, reduction="none")
        bce.append((weights * each).sum() / weights.sum())
        shares = values.sigmoid() / (values.sigmoid().sum() + 1e-5)
        lists.append(-(shares[target == 1] + 1e-5).log().mean())
        softmax.append(torch.stack([
            torch.nn.functional.cross_entropy(torch.cat([one[None], negatives])[None], torch.tensor([0]))
            for one in values[target == 1]
        ]).mean())  # fmt: skip
    for loss, expected, extra in ((bce_loss, bce, (0.2,)), (list_ce_loss, lists, ()), (softmax_loss, softmax, ())):
        torch.testing.assert_close(loss(*flat(ROWS), 3, *extra), torch.stack(expected).mean())


def test_ranks_leave_other_answers_out_and_say_both_sides_of_a_tie():
    logits, questions, labels = flat([[(5.0, 1), (4.0, 1), (4.0, 0), (6.0, -1), (9.0, 0)], [(1.0, 1), (2.0, 0)]])
    ranks = filtered_ranks(logits, questions, labels, torch.tensor([0, 1, 5]))
    assert ranks.tolist() == [[2.0, 2.0], [3.0, 2.0], [2.0, 2.0]]
    logits[0] = torch.nan
    assert filtered_ranks(logits, questions, labels, torch.tensor([0])).tolist() == [[3.0, 3.0]]


def test_targets_negatives_and_known_answers_reach_the_loss_and_the_ranks():
    table = triples()
    model, asked = model_of(table), ask()
    logits = model(**asked).logits
    answers = {"target_nodes": torch.tensor([7, 2, 4]), "target_batch": torch.tensor([0, 0, 1])}
    known = {"known_nodes": torch.tensor([9]), "known_batch": torch.tensor([1])}
    out = model(**asked, **answers, **known)
    rivals = np.delete(logits[1].detach().numpy(), [4, 9])
    assert out.ranks[2, 0] == 1 + (rivals >= logits[1, 4].item()).sum()
    model.train()
    assert model(**asked, **answers).ranks is None
    sampled = model(**asked, **answers, negative_nodes=torch.tensor([[1, 3], [6, 8]]))
    torch.testing.assert_close(sampled.logits, logits[[0, 0, 1, 0, 0, 1, 1], [7, 2, 4, 1, 3, 6, 8]])
    sampled.loss.backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())


DOCUMENTS = np.array([[0, 1], [0, 2], [1, 2], [2, 5], [3, 6]])


def test_documents_are_ranked_by_their_entities_and_ties_by_score():
    graph = graph_of(triples(), documents=DOCUMENTS)
    logits = torch.full((1, NODES), -5.0)
    logits[0, [1, 2, 5, 6]] = torch.tensor([1.0, 3.0, 2.0, 2.5])
    for ranker, best in (("simple", 0), ("idf", 0), ("topk", 0), ("idf_topk", 0)):
        order, scores = rank_documents(logits, graph, ranker, top=4)
        assert order[0, 0] == best and (scores.diff() <= 0).all(), ranker
    order, scores = rank_documents(logits, graph, "idf_topk", top=4)
    assert scores[0].tolist() == [1.5, 1.0, 1.0, 0.5]
    assert order[0].tolist() == [0, 3, 2, 1]  # 3 and 2 tie; entity 6 scores above entity 5
    with pytest.raises(ValueError, match="has no documents"):
        rank_documents(logits, graph_of(triples()))


def test_rankers_follow_their_definitions():
    links = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 3], [2, 4], [3, 1], [4, 9]])
    graph = graph_of(triples(), documents=links)
    logits = torch.zeros(1, NODES)
    logits[0, :4] = torch.tensor([0.9, 0.8, 0.3, 0.5])
    expected = {  # node 1 stands in three documents, all others in one; the two best nodes are 0 and 1
        "simple": [1.7, 1.1, 0.5, 0.8, 0],
        "idf": [0.9 + 0.8 / 3, 0.8 / 3 + 0.3, 0.5, 0.8 / 3, 0],
        "topk": [2, 1, 0, 1, 0],
        "idf_topk": [1 + 1 / 3, 1 / 3, 0, 1 / 3, 0],
    }
    for ranker, values in expected.items():
        order, scores = rank_documents(logits, graph, ranker, top=2)
        torch.testing.assert_close(scores[0], torch.tensor(values, dtype=torch.float)[order[0]])
        assert (scores.diff() <= 0).all(), ranker


def test_seeds_that_many_documents_name_start_smaller():
    table = triples()
    model = model_of(table, seed_weights=True)
    model.attach_graphs([graph_of(table, documents=DOCUMENTS)])
    question = torch.ones(1, WIDTH, dtype=torch.double)
    graph, none = model.graphs[0], torch.zeros(3, dtype=torch.long)
    start, _ = model._start(graph, graph.edges(False), question, torch.tensor([1, 2, 9]), none, None)
    assert start[[1, 2, 9], 0, 0].tolist() == [1.0, 0.5, 0.0]


def test_a_saved_model_scores_as_before_and_holds_no_graph(tmp_path):
    table = triples()
    model = model_of(table, question_relations=True, feature_encoder="hashing").float()
    asked = {name: one.float() if one.is_floating_point() else one for name, one in ask().items()}
    model.save_pretrained(tmp_path)
    again = GFMForRetrieval.from_pretrained(tmp_path).eval()
    again.attach_graphs(model.graphs)
    assert torch.equal(again(**asked).logits, model(**asked).logits)
    assert not any("graph" in name for name in again.state_dict())


@pytest.mark.parametrize(("make", "message"), [
    (lambda: GFMConfig(message="conve"), "Choose one of distmult"),
    (lambda: GFMConfig(message="rotate", hidden_dim=7), "Choose an even one"),
    (lambda: GFMConfig(question_attention=True), "question_attention is a way of question_relations"),
    (lambda: GFMConfig(question_gates=True), "question_gates is a way of question_relations"),
    (lambda: GFMConfig(hold_unreached=True, message="transe"), "not for sum of transe"),
    (lambda: GFMGraph.from_arrays(np.zeros((0, 3)), 3, 1), "has no edges"),
    (lambda: GFMGraph.from_arrays(np.array([[0, 0, 9]]), 3, 1), "an edge names another one"),
    (lambda: GFMGraph.from_arrays(np.array([[0, 0, 1]]), 3, 1, np.zeros((5, 4))), "5 embeddings"),
    (lambda: model_of(triples()).attach_graphs([GFMGraph.from_arrays(triples(), NODES, RELATIONS)]), "no relation"),
    (lambda: model_of(triples(), feature_dim=6), "of width 5, the model reads width 6"),
    (lambda: model_of(triples())(**{**ask(), "graph_index": torch.tensor([3])}), "Graph 3 of 1"),
    (lambda: model_of(triples(), aggregation="max").evidence(*range(7)), "sum or mean"),
], ids=range(12))  # fmt: skip
def test_what_cannot_work_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_published_code_asks_for_no_optional_package():
    from transformers.dynamic_module_utils import get_imports

    assert set(get_imports(modeling_gfm.__file__)) <= {"torch", "numpy", "transformers"} | set(sys.stdlib_module_names)
