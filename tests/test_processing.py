"""The processor: ids, label masks, truncation, batches, and the sentences for what it cannot take."""

import pytest
import torch
from conftest import FEATURES, build_tokenizer

from processing_graphllm import GraphLLMProcessor

IGNORED = -100


@pytest.fixture
def processor(tiny_tokenizer):
    return GraphLLMProcessor.from_tokenizer(tiny_tokenizer, num_graph_tokens=2)


def decode(processor, ids):
    return processor.tokenizer.decode(ids)


def test_labels_are_exactly_the_answer(processor, ask):
    encoded = processor.encode(ask("who?", answer="Bob"))
    labelled = [i for i in encoded["labels"] if i != IGNORED]
    assert decode(processor, labelled) == "Bob<|end|>"
    assert decode(processor, encoded["input_ids"]) == (
        "<|user|><|graph|><|graph|>\nwho?<|end|><|assistant|>Bob<|end|>"
    )
    assert encoded["labels"][: -len(labelled)] == [IGNORED] * (len(encoded["input_ids"]) - len(labelled))


def test_every_assistant_turn_is_trained_and_prompts_have_the_ids_of_generation(processor):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two?"},
        {"role": "assistant", "content": "2<|pad|>"},
    ]
    encoded = processor.encode(messages)
    assert decode(processor, [i for i in encoded["labels"] if i != IGNORED]) == "1<|end|>2<|pad|><|end|>"
    prompt = processor.apply_chat_template(messages[:4], tokenize=True, add_generation_prompt=True)
    assert prompt[0].tolist() == encoded["input_ids"][: prompt.shape[1]]


def test_the_prompt_is_shortened_from_its_beginning_and_never_the_answer(processor, ask):
    whole = processor.encode(ask("x" * 50 + " who wrote it?", answer="Bob Dylan"))
    encoded = processor.encode(ask("x" * 50 + " who wrote it?", answer="Bob Dylan"), max_length=40)
    text = decode(processor, encoded["input_ids"])
    assert len(encoded["input_ids"]) == 40
    assert text.endswith("who wrote it?<|end|><|assistant|>Bob Dylan<|end|>")
    assert text.startswith("<|user|><|graph|><|graph|>\nx")
    assert encoded["truncated"] == len(whole["input_ids"]) - 40


def test_facts_lose_their_last_rows_and_the_question_nothing(processor):
    content = [{"type": "text", "text": "best | fact | first\n" * 3}, {"type": "text", "text": "who wrote it?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Bob"}]
    text = decode(processor, processor.encode(messages, max_length=50)["input_ids"])
    assert text.startswith("<|user|>best | fact | first\nb")
    assert text.endswith("\nwho wrote it?<|end|><|assistant|>Bob<|end|>")


def test_characters_of_several_tokens_are_cut_whole(processor):
    for content in ("東京" * 12 + " who?", [{"type": "text", "text": "東京" * 12}, {"type": "text", "text": "who?"}]):
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
        encoded = processor.encode(messages, max_length=30)
        text = decode(processor, encoded["input_ids"])
        assert len(encoded["input_ids"]) <= 30
        assert "\ufffd" not in text
        assert "who?" in text


def test_the_tokens_that_close_a_turn_are_found_in_the_template(processor, tiny_tokenizer):
    assert processor.end_of_turn_ids == [tiny_tokenizer.convert_tokens_to_ids("<|end|>")]


def test_a_reasoning_template_is_told_not_to_think(tiny_tokenizer):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if enable_thinking is false %}.{% endif %}"
    processor = GraphLLMProcessor.from_tokenizer(tiny_tokenizer, chat_template=template)
    question = [{"role": "user", "content": "a"}]
    assert decode(processor, processor.encode(question)["input_ids"]) == "a."
    assert processor.apply_chat_template(question) == "a."
    assert processor.apply_chat_template(question, enable_thinking=True) == "a"


def test_an_answer_that_cannot_fit_is_refused(processor, ask):
    with pytest.raises(ValueError, match="alone exceed 10 tokens by .* Raise --model_max_length"):
        processor.encode(ask("who?", answer="a very long answer"), max_length=10)


def test_padding_is_on_the_left_and_graphs_become_one_union(processor, ask, toy_graph):
    small = {"node_features": torch.ones(2, FEATURES), "edge_index": [[0], [1]], "edge_features": torch.ones(1, 5)}
    empty = {"node_features": torch.zeros(0, FEATURES), "edge_index": torch.zeros(2, 0)}
    examples = [
        processor.encode(ask("a", [small, empty], answer="b")),
        processor.encode(ask("abc", [toy_graph], answer="b")),
    ]
    batch = processor.pad(examples)
    assert list(batch)[:3] == ["input_ids", "attention_mask", "labels"]
    assert batch["attention_mask"][1].tolist()[0] == 0
    assert batch["input_ids"][1, 0] == processor.tokenizer.pad_token_id
    assert batch["labels"][:, -2:].min() >= 0
    assert batch["graph_batch"].tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 2]
    assert batch["graph_edge_index"][:, :2].tolist() == [[0, 3], [1, 4]]
    assert batch["graph_node_features"][2].abs().max() == 0
    assert batch["graph_edge_features"].shape == (8, 5)


def test_a_packed_row_has_no_padding_and_begins_again_with_each_example(processor, ask, toy_graph):
    small = {"node_features": torch.ones(2, FEATURES), "edge_index": [[0], [1]], "edge_features": torch.ones(1, 5)}
    examples = [
        processor.encode(ask("a", [small, toy_graph], answer="b")),
        processor.encode(ask("all of it is to be learnt", [])),
        processor.encode(ask("abc", [], answer="bcd")),
    ]
    examples[1]["labels"] = examples[1]["input_ids"]
    packed, padded = processor.pack(examples), processor.pad(examples)
    lengths = [len(example["input_ids"]) for example in examples]
    assert set(packed) == set(padded) - {"attention_mask"} | {"position_ids"}
    assert packed["input_ids"][0].tolist() == [token for example in examples for token in example["input_ids"]]
    assert packed["position_ids"][0].tolist() == [i for length in lengths for i in range(length)]
    for name in ("graph_node_features", "graph_edge_index", "graph_edge_features", "graph_batch"):
        assert torch.equal(packed[name], padded[name])
    for example, labels in zip(examples, packed["labels"][0].split(lengths), strict=True):
        assert labels.tolist() == [IGNORED, *example["labels"][1:]]  # the last token of one never predicts the next
    assert "labels" not in processor.pack([processor.encode(ask("a"))])


def test_examples_of_an_encoder_decoder_are_not_packed(tiny_tokenizer, ask):
    processor = GraphLLMProcessor.from_tokenizer(tiny_tokenizer, num_graph_tokens=2, is_encoder_decoder=True)
    with pytest.raises(ValueError, match="decoder of its own"):
        processor.pack([processor.encode(ask("a", answer="b"))])


def test_one_token_per_kept_node(tiny_tokenizer, ask, toy_graph):
    processor = GraphLLMProcessor.from_tokenizer(tiny_tokenizer, graph_readout="nodes", max_graph_nodes=4)
    empty = {"node_features": torch.zeros(0, FEATURES), "edge_index": torch.zeros(2, 0)}
    ids = processor.encode(ask("a", [toy_graph, empty]))["input_ids"]
    assert ids.count(processor.graph_token_id) == 4 + 1


def test_chat_template_returns_exactly_the_arguments_of_forward(build_model, ask):
    import inspect

    model, processor = build_model()
    batch = processor.apply_chat_template(
        [ask(), ask("b", [])], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert set(batch) <= set(inspect.signature(model.forward).parameters)
    assert model(**batch).logits.shape[:2] == batch["input_ids"].shape
    rendered = processor.apply_chat_template(ask("b"), add_generation_prompt=True)
    assert rendered == "<|user|><|graph|>\nb<|end|><|assistant|>"


def test_texts_with_placeholders_can_be_given_directly(processor, toy_graph):
    batch = processor(["<|graph|>a", "b"], [toy_graph])
    assert (batch["input_ids"] == processor.graph_token_id).sum().item() == 2
    with pytest.raises(ValueError, match="2 x '<|graph|>' in the text, 1 graphs".replace("|", r"\|")):
        processor(["<|graph|>a", "<|graph|>b"], [toy_graph])


def test_saved_and_loaded(processor, ask, tmp_path):
    from transformers import AutoProcessor

    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.encode(ask(answer="Bob"))["input_ids"] == processor.encode(ask(answer="Bob"))["input_ids"]
    assert (again.num_graph_tokens, again.graph_token_id) == (2, processor.graph_token_id)


def test_a_tokenizer_without_pad_token_pads_with_its_end_token(ask):
    tokenizer = build_tokenizer()
    tokenizer.pad_token = None
    processor = GraphLLMProcessor.from_tokenizer(tokenizer, num_graph_tokens=2)
    encoded = processor.encode(ask("who?", answer="Bob"))
    assert encoded["labels"][-1] == tokenizer.eos_token_id  # the end of the answer is still trained
    assert processor.pad([encoded])["attention_mask"].min() == 1
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad token nor an end token"):
        GraphLLMProcessor.from_tokenizer(tokenizer)


def test_a_tokenizer_without_chat_template_is_refused():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template.*--chat_template"):
        GraphLLMProcessor.from_tokenizer(tokenizer)


def test_a_vocabulary_that_has_the_placeholder_is_refused(tiny_tokenizer):
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|graph|>"]})
    with pytest.raises(ValueError, match="is already token 261 .*--graph_token"):
        GraphLLMProcessor.from_tokenizer(tiny_tokenizer)
    assert GraphLLMProcessor.from_tokenizer(tiny_tokenizer, graph_token="<|kg|>").graph_token_id == 262


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty conversation"),
        ([{"role": "user", "content": "a <|graph|> b"}], "contains the placeholder"),
        ([{"role": "user", "content": [{"type": "image", "image": 1}]}], "Content type 'image' is not known"),
    ],
)
def test_malformed_messages_are_refused(processor, messages, message):
    with pytest.raises(ValueError, match=message):
        processor.encode(messages)


def test_edges_beyond_the_nodes_are_refused(processor, ask):
    graph = {"node_features": torch.zeros(2, FEATURES), "edge_index": [[0], [2]]}
    with pytest.raises(ValueError, match="names node 2, but the graph has 2 nodes"):
        processor.pad([processor.encode(ask(graphs=[graph]))])


def test_edge_features_for_some_graphs_only_are_refused(processor, ask, toy_graph):
    bare = {name: value for name, value in toy_graph.items() if name != "edge_features"}
    with pytest.raises(ValueError, match="1 of 2 graphs of a batch have edge_features"):
        processor.pad([processor.encode(ask(graphs=[bare, toy_graph]))])


def test_a_template_that_rewrites_history_is_refused(tiny_tokenizer):
    template = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    processor = GraphLLMProcessor.from_tokenizer(tiny_tokenizer, chat_template=template)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        processor.encode(turns)
