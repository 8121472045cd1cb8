"""Labels by likelihood: equal to reading every prompt and label anew, whole answers, and what is refused."""

import math

import pytest
import torch

from evaluation import label_scoring
from evaluation.label_scoring import answer_tokens, label_scores

LABELS = ["cs", "cs ai", "math", "q"]


def unshared(model, processor, prompt, label) -> float:
    """The log-probability of one label, from one pass over prompt and label together."""
    encoded = processor.encode([*prompt, {"role": "assistant", "content": label}])
    batch = dict(processor.pad([encoded]))
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits[0, :-1].log_softmax(-1)
    places = (labels[0, 1:] != -100).nonzero()[:, 0]
    return float(logits[places, labels[0, 1:][places]].sum())


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(3)

    def prompt(question: str, nodes: int) -> list[dict]:
        graph = {"node_features": torch.randn(nodes, 6, generator=generator), "edge_index": torch.tensor([[0], [1]]),
                 "edge_features": torch.randn(1, 5, generator=generator)}  # fmt: skip
        items = [{"type": "graph", "graph": graph}] if nodes else []
        return [{"role": "user", "content": [*items, {"type": "text", "text": question}]}]

    return [prompt("which class?", 3), prompt("which of these, please?", 0), prompt("class", 2)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("trees", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_equal_those_of_reading_prompt_and_label_together(
    build_model, prompts, batch_size, trees, attention, monkeypatch
):
    model, processor = build_model(readout="nodes")
    model.set_attn_implementation(attention)
    assert label_scoring.takes_trees(model)
    monkeypatch.setattr(label_scoring, "takes_trees", lambda model: trees)
    expected = torch.tensor([[unshared(model, processor, one, label) for label in LABELS] for one in prompts])
    found = label_scores(model, processor, prompts, LABELS, batch_size=batch_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    lengths = torch.tensor([len(one) for one in answer_tokens(processor, LABELS, None)])
    mean = label_scores(model, processor, prompts, LABELS, "mean", batch_size=batch_size)
    torch.testing.assert_close(mean, expected / lengths, rtol=0, atol=1e-5)


def test_the_end_of_an_answer_counts_and_the_mean_knows_no_length(build_model):
    model, processor = build_model()
    short, long, *_ = answer_tokens(processor, LABELS, None)
    assert long[: len(short) - 1] == short[:-1], "one label begins with the other"
    assert short[-1] == long[-1] == processor.tokenizer.eos_token_id
    torch.nn.init.zeros_(model.language_model.lm_head.weight)  # every token is as likely
    question, each = [{"role": "user", "content": "which?"}], -math.log(261)
    mean, total = (label_scores(model, processor, [question], LABELS[:2], by) for by in ("mean", "sum"))
    torch.testing.assert_close(mean, torch.tensor([[each, each]]))
    torch.testing.assert_close(total, torch.tensor([[each * len(short), each * len(long)]]))


def test_zeroed_graph_tokens_change_the_scores_of_prompts_with_graphs_alone(build_model, prompts):
    model, processor = build_model(readout="nodes")
    whole, zeroed = (label_scores(model, processor, prompts, LABELS, zero=zero) for zero in (False, True))
    changed = (whole - zeroed).abs().amax(dim=1)
    assert changed[0] > 1e-4 and changed[2] > 1e-4 and changed[1] < 1e-5


def test_a_prompt_loses_text_for_a_label_and_a_label_that_cannot_fit_is_named(build_model):
    model, processor = build_model()
    prompt = [{"role": "user", "content": "facts " * 40 + "which?"}]
    cut = label_scores(model, processor, [prompt], LABELS, max_length=60)
    assert cut.shape == (1, 4) and torch.isfinite(cut).all()
    with pytest.raises(ValueError, match="'cs ai' is 6 tokens long, and 5 is the most"):
        label_scores(model, processor, [prompt], LABELS, max_length=5)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [([], "not one label"), (["a", " "], "is empty"), (["a", "b", "a"], "'a' is given twice")],
)
def test_unusable_labels_are_one_sentence(build_model, labels, sentence):
    model, processor = build_model()
    with pytest.raises(ValueError, match=sentence):
        label_scores(model, processor, [[{"role": "user", "content": "?"}]], labels)


def test_an_encoder_decoder_scores_its_decoders_tokens():
    from transformers import T5Config, T5ForConditionalGeneration

    from modeling_graphllm import GraphConfig, GraphLLMForConditionalGeneration
    from processing_graphllm import GraphLLMProcessor
    from tests.conftest import build_tokenizer

    torch.manual_seed(0)
    config = T5Config(vocab_size=261, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0,
                      eos_token_id=1, decoder_start_token_id=0)  # fmt: skip
    processor = GraphLLMProcessor.from_tokenizer(build_tokenizer(), num_graph_tokens=2, is_encoder_decoder=True)
    model = GraphLLMForConditionalGeneration.from_components(
        T5ForConditionalGeneration(config), GraphConfig(encoder="none", feature_dim=6, num_tokens=2),
        processor.graph_token_id,
    ).eval()  # fmt: skip
    prompt = [{"role": "user", "content": "which?"}]
    found = label_scores(model, processor, [prompt], LABELS)
    for label, score in zip(LABELS, found[0], strict=True):
        batch = dict(processor.pad([processor.encode([*prompt, {"role": "assistant", "content": label}])]))
        length = (batch["labels"] != -100).sum()
        assert float(score) == pytest.approx(-float(model(**batch).loss.detach() * length), abs=1e-4)
