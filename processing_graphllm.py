"""GraphLLMProcessor: chat messages with graphs -> the arguments of `GraphLLMForConditionalGeneration.forward`.

The one place that renders the chat template, counts graph tokens, masks labels, pads and batches, in training and for
a user of the Hub alike. Self-contained: it ships with every published model.

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    graph = {"node_features": x, "edge_index": e}                      # (n, F) float, (2, e) int
    messages = [{"role": "user", "content": [{"type": "graph", "graph": graph}, {"type": "text", "text": "Who wrote
    it?"}]}] batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True,
    add_generation_prompt=True)
"""

from typing import Any

import torch
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

Message = dict[str, Any]
Graph = dict[str, Any]

IGNORE_INDEX = -100
# Templates of reasoning models (Qwen3) would otherwise open a block of thoughts in the answer; others ignore it.
TEMPLATE_ARGUMENTS = {"enable_thinking": False}


class GraphLLMProcessor(ProcessorMixin):
    """Renders, tokenises and batches chats whose content holds graphs.

    Args:
        tokenizer: the language model's tokenizer; `graph_token` is added to it as a special token. The model's
            embedding is never resized: the model masks the id before the look-up and puts graph features in its place.
        chat_template: Jinja template; by default the tokenizer's own.
        graph_token: the placeholder in the rendered text, one per graph.
        num_graph_tokens: tokens that the model's read-out makes of one graph, unless it is `nodes`.
        graph_readout: `"nodes"` (one token per kept node), or any other (a fixed number of tokens a graph).
        max_graph_nodes: nodes of a graph that get a token with `graph_readout="nodes"`; the first ones are kept.
        is_encoder_decoder: the answer goes to the decoder as `labels` instead of following the prompt in `input_ids`.

    Raises:
        ValueError: the tokenizer has neither a pad nor an end token, or there is no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        graph_token: str = "<|graph|>",
        num_graph_tokens: int = 8,
        graph_readout: str = "mean",
        max_graph_nodes: int = 64,
        is_encoder_decoder: bool = False,
    ) -> None:
        self.graph_token = graph_token
        self.num_graph_tokens = num_graph_tokens
        self.graph_readout = graph_readout
        self.max_graph_nodes = max_graph_nodes
        self.is_encoder_decoder = is_encoder_decoder
        if graph_token not in tokenizer.get_vocab():
            extra = {"additional_special_tokens": [graph_token]}
            tokenizer.add_special_tokens(extra, replace_extra_special_tokens=False)
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise ValueError(
                    "The tokenizer has neither a pad token nor an end token, so batches cannot be padded. Set "
                    "tokenizer.pad_token before making the processor."
                )
            # Harmless: labels and attention are masked by length, never by token id.
            tokenizer.pad_token = tokenizer.eos_token
        self.graph_token_id = tokenizer.convert_tokens_to_ids(graph_token)
        chat_template = chat_template or tokenizer.chat_template
        if not chat_template:
            raise ValueError(
                f"The tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template, so questions cannot "
                "be rendered. Choose an instruction-tuned model, or pass a Jinja file with --chat_template."
            )
        super().__init__(tokenizer, chat_template=chat_template)

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> "GraphLLMProcessor":
        """The first processor for a language model's own tokenizer; refuses a vocabulary that already has the
        placeholder.

        Raises:
            ValueError: `graph_token` is already a token of the language model.
        """
        graph_token = kwargs.get("graph_token", "<|graph|>")
        if graph_token in tokenizer.get_vocab():
            raise ValueError(
                f"The placeholder {graph_token!r} is already token {tokenizer.convert_tokens_to_ids(graph_token)} of "
                f"{tokenizer.name_or_path or 'the tokenizer'}: its text would be taken for a graph. Pass another "
                "name with --graph_token."
            )
        return cls(tokenizer, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        graph = ["graph_node_features", "graph_edge_index", "graph_edge_features", "graph_batch"]
        return ["input_ids", "attention_mask", *graph]

    def tokens_per_graph(self, graph: Graph) -> int:
        """The number of tokens that the model makes of `graph`; an empty one is one node, the learned null vector."""
        if self.graph_readout != "nodes":
            return self.num_graph_tokens
        return max(1, min(len(graph["node_features"]), self.max_graph_nodes))

    @property
    def end_of_turn_ids(self) -> list[int]:
        """The special tokens that close an assistant's turn in this template: where `generate` must stop."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        closing = [i for i in self._encode_once(turns)["labels"] if i != IGNORE_INDEX]
        return sorted({*closing} & {*self.tokenizer.all_special_ids} - {self.tokenizer.unk_token_id})

    # ---------------------------------------------------------------------------------------------- one example
    def encode(self, messages: list[Message], max_length: int | None = None) -> dict[str, Any]:
        """One conversation as token ids, with labels on the assistant's words if it ends with them.

        Turns are tokenised one by one and labels follow from the lengths, so that a prompt has the same ids in
        training and in generation, and a pad or end token inside an answer is trained like any other. If the whole is
        longer than `max_length`, the longest text of the prompt side is shortened: the last text of a message, which
        asks, loses its beginning, an earlier one its end. An answer never loses anything.

        Args:
            messages: chat messages; content is a string or a list of `{"type": "text"}` and `{"type": "graph"}` items.
            max_length: the longest `input_ids` allowed, in tokens.

        Returns:
            `{"input_ids": list[int], "graphs": list, "truncated": int}` and, if the last turn is the assistant's,
            `"labels"`.

        Raises:
            ValueError: a message is malformed, or the answer alone does not fit.
        """
        encoded = self._encode_once(messages)
        truncated = 0
        while max_length is not None and len(encoded["input_ids"]) > max_length:
            excess = len(encoded["input_ids"]) - max_length
            messages = self._shorten(messages, excess, max_length)
            shorter = self._encode_once(messages)
            assert len(shorter["input_ids"]) < len(encoded["input_ids"])
            truncated += len(encoded["input_ids"]) - len(shorter["input_ids"])
            encoded = shorter
        return {**encoded, "truncated": truncated}

    def _encode_once(self, messages: list[Message]) -> dict[str, Any]:
        flat, graphs = self._flatten(messages)
        input_ids, labels, done = [], [], ""
        for turn in [i for i, message in enumerate(flat) if message["role"] == "assistant"]:
            prompt, answer = self._render(flat[:turn], graphs, True), self._render(flat[: turn + 1], graphs, False)
            if not (prompt.startswith(done) and answer.startswith(prompt)):
                raise ValueError(
                    "The chat template rewrites earlier turns when a later one is added, so the answer's tokens "
                    "cannot be told from the prompt's. Train on single-turn conversations, or pass another "
                    "--chat_template."
                )
            prompt_ids, answer_ids = self._ids(prompt[len(done) :]), self._ids(answer[len(prompt) :])
            input_ids += prompt_ids + answer_ids
            labels += [IGNORE_INDEX] * len(prompt_ids) + answer_ids
            done = answer
        if flat[-1]["role"] == "assistant":
            return self._to_decoder(input_ids, labels, graphs)
        input_ids += self._ids(self._render(flat, graphs, True)[len(done) :])
        return {"input_ids": input_ids, "graphs": graphs}

    def _to_decoder(self, input_ids: list[int], labels: list[int], graphs: list[Graph]) -> dict[str, Any]:
        if not self.is_encoder_decoder:
            return {"input_ids": input_ids, "labels": labels, "graphs": graphs}
        answer = [i for i in labels if i != IGNORE_INDEX]
        prompt = [i for i, label in zip(input_ids, labels, strict=True) if label == IGNORE_INDEX]
        end = [] if answer[-1:] == [self.tokenizer.eos_token_id] else [self.tokenizer.eos_token_id]
        return {"input_ids": prompt, "labels": answer + end, "graphs": graphs}

    def _flatten(self, messages: list[Message]) -> tuple[list[Message], list[Graph]]:
        """Content lists become one string each with a placeholder per graph; the graphs come in that order."""
        if not messages:
            raise ValueError("An empty conversation cannot be rendered: give at least one message.")
        flat, graphs = [], []
        for message in messages:
            content = message["content"]
            items = [{"type": "text", "text": content}] if isinstance(content, str) else content
            parts = []
            for item in items:
                if item["type"] == "graph":
                    graphs.append(item["graph"])
                    parts.append(self.graph_token)
                elif item["type"] == "text":
                    parts.append(self._checked_text(item["text"]))
                else:
                    raise ValueError(f"Content type {item['type']!r} is not known. Use 'text' or 'graph'.")
            flat.append({"role": message["role"], "content": "\n".join(parts)})
        return flat, graphs

    def _checked_text(self, text: str) -> str:
        if self.graph_token in text:
            raise ValueError(
                f"A text contains the placeholder {self.graph_token!r}, which stands for a graph. Remove it from the "
                "text, or give the graph as a content item of type 'graph'."
            )
        return text

    def _render(self, flat: list[Message], graphs: list[Graph], add_generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            flat,
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **TEMPLATE_ARGUMENTS,
        )
        return self._expand(text, graphs)

    def _expand(self, text: str, graphs: list[Graph]) -> str:
        """Repeats the i-th placeholder once per token of the i-th graph."""
        pieces = text.split(self.graph_token)
        if len(pieces) - 1 > len(graphs):
            raise ValueError(
                f"Placeholders and graphs do not match: {len(pieces) - 1} x {self.graph_token!r} in the text, "
                f"{len(graphs)} graphs."
            )
        counts = [self.tokens_per_graph(graph) for graph in graphs[: len(pieces) - 1]]
        return pieces[0] + "".join(self.graph_token * k + piece for k, piece in zip(counts, pieces[1:], strict=True))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _shorten(self, messages: list[Message], excess: int, max_length: int) -> list[Message]:
        """Drops about `excess` tokens of the longest text that is not the assistant's."""
        texts = [
            (len(self._ids(item["text"])), i, j)
            for i, message in enumerate(messages)
            if message["role"] != "assistant"
            for j, item in enumerate(_items(message))
            if item["type"] == "text"
        ]
        length, i, j = max(texts, default=(0, 0, 0))
        if length == 0:
            raise ValueError(
                f"The answer, the graph tokens and the chat template alone exceed {max_length} tokens by {excess}. "
                "Raise --model_max_length."
            )
        items = list(_items(messages[i]))
        ids = self._ids(items[j]["text"])
        asks = all(item["type"] != "text" for item in items[j + 1 :])
        text = self.tokenizer.decode(ids[excess:] if asks else ids[:-excess])
        # a character cut in two decodes to U+FFFD, which would be as long again
        items[j] = {"type": "text", "text": text.lstrip("\ufffd") if asks else text.rstrip("\ufffd")}
        return [*messages[:i], {**messages[i], "content": items}, *messages[i + 1 :]]

    # -------------------------------------------------------------------------------------------------- batches
    def pad(self, examples: list[dict[str, Any]]) -> BatchFeature:
        """Left-pads encoded examples and puts their graphs into one disconnected union.

        Left padding puts the answers of a batch under one another, so that the model computes logits for few columns.

        Args:
            examples: what `encode` returned, B of them.

        Returns:
            `input_ids`, `attention_mask` (B, T); `labels` (B, T), or (B, L) right-padded for an encoder-decoder, if
            every example has them; and, if any example has a graph, `graph_node_features` (N, F), `graph_edge_index`
            (2, E), `graph_edge_features` (E, F') if given and `graph_batch` (N,), the graph of each node in
            placeholder order.
        """
        ids = [example["input_ids"] for example in examples]
        width = max(map(len, ids))
        batch = {
            "input_ids": torch.tensor([[self.tokenizer.pad_token_id] * (width - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
        }
        if all("labels" in example for example in examples):
            batch["labels"] = self._pad_labels([example["labels"] for example in examples])
        return _with_graphs(batch, examples)

    def pack(self, examples: list[dict[str, Any]]) -> BatchFeature:
        """Encoded examples one after another in one row of S tokens, without padding or mask; decoder-only models.

        Positions begin again with each example: from that transformers knows where attention ends. The first token of
        an example is never a target, as nothing of its own stands before it.

        Returns:
            `input_ids`, `position_ids` (1, S); `labels` (1, S) if every example has them; graphs as from `pad`.
        """
        if self.is_encoder_decoder:
            raise ValueError("Examples of an encoder-decoder cannot share a row: each has a decoder of its own. Pad.")
        batch = {
            "input_ids": torch.tensor([[token for example in examples for token in example["input_ids"]]]),
            "position_ids": torch.cat([torch.arange(len(example["input_ids"])) for example in examples])[None],
        }
        if all("labels" in example for example in examples):
            batch["labels"] = torch.tensor([[i for one in examples for i in [IGNORE_INDEX, *one["labels"][1:]]]])
        return _with_graphs(batch, examples)

    def _pad_labels(self, labels: list[list[int]]) -> torch.Tensor:
        width = max(map(len, labels))
        fill = [[IGNORE_INDEX] * (width - len(row)) for row in labels]
        right = self.is_encoder_decoder
        return torch.tensor([row + pad if right else pad + row for row, pad in zip(labels, fill, strict=True)])

    # ---------------------------------------------------------------------------------- the transformers interface
    def __call__(
        self,
        text: str | list[str],
        graphs: list[Graph] | None = None,
        add_special_tokens: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Tokenises texts that already hold placeholders, one per graph, and batches them with their graphs.

        Args:
            text: one text or B texts with `graph_token` once per graph.
            graphs: the graphs of all texts, in the order of their placeholders.
            add_special_tokens: whether the tokenizer adds its own begin and end tokens.
            return_tensors: `"pt"`; PyTorch is the only framework of this model.

        Raises:
            ValueError: another framework is asked for, or placeholders and graphs do not match.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors={return_tensors!r} is not supported. Use 'pt'.")
        texts, rest = [text] if isinstance(text, str) else text, list(graphs or [])
        given = len(rest)
        counts = [one.count(self.graph_token) for one in texts]
        if sum(counts) != given:
            raise ValueError(
                f"Placeholders and graphs do not match: {sum(counts)} x {self.graph_token!r} in the text, {given} "
                f"graphs."
            )
        examples = []
        for one, count in zip(texts, counts, strict=True):
            own, rest = rest[:count], rest[count:]
            ids = self.tokenizer(self._expand(one, own), add_special_tokens=add_special_tokens)["input_ids"]
            examples.append({"input_ids": ids, "graphs": own})
        return self.pad(examples)

    def apply_chat_template(
        self,
        conversation: list[Message] | list[list[Message]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> str | list[str] | torch.Tensor | BatchFeature:
        """Renders one chat or several; with `tokenize=True, return_dict=True` returns exactly the arguments of
        `forward`.

        Args:
            conversation: messages, or a list of conversations; see the module's first lines for a graph item.
            chat_template: another template than the processor's.
            add_generation_prompt: end with the beginning of an assistant turn.
            tokenize: return ids instead of text.
            return_dict: with `tokenize`, return the whole batch instead of `input_ids` alone.
            return_tensors: `"pt"`.
            kwargs: handed to the template.
        """
        batched = isinstance(conversation[0], list)
        texts, graphs = [], []
        for messages in conversation if batched else [conversation]:
            flat, own = self._flatten(messages)
            texts.append(
                self.tokenizer.apply_chat_template(
                    flat,
                    chat_template=chat_template or self.chat_template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **{**TEMPLATE_ARGUMENTS, **kwargs},
                )
            )
            graphs += own
        if not tokenize:
            return texts if batched else texts[0]
        batch = self(texts, graphs, add_special_tokens=False, return_tensors=return_tensors)
        return batch if return_dict else batch["input_ids"]


def _items(message: Message) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _with_graphs(batch: dict[str, torch.Tensor], examples: list[dict[str, Any]]) -> BatchFeature:
    graphs = [graph for example in examples for graph in example["graphs"]]
    return BatchFeature({**batch, **join_graphs(graphs)} if graphs else batch)


def join_graphs(graphs: list[Graph]) -> dict[str, torch.Tensor]:
    """One disconnected graph of several; an empty graph travels as one node without features (all zero)."""
    features, edges, sizes, offset = [], [], [], 0
    for graph in graphs:
        nodes = torch.as_tensor(graph["node_features"]).float()
        edge_index = torch.as_tensor(graph["edge_index"], dtype=torch.long).reshape(2, -1)
        if edge_index.numel() and int(edge_index.max()) >= len(nodes):
            raise ValueError(
                f"An edge names node {int(edge_index.max())}, but the graph has {len(nodes)} nodes: edge_index takes "
                f"local ids, 0 to {len(nodes) - 1}."
            )
        features.append(nodes if len(nodes) else nodes.new_zeros(1, nodes.shape[-1]))
        edges.append(edge_index + offset)
        sizes.append(len(features[-1]))
        offset += sizes[-1]
    batch = {
        "graph_node_features": torch.cat(features),  # (N, F)
        "graph_edge_index": torch.cat(edges, dim=1),  # (2, E)
        "graph_batch": torch.repeat_interleave(torch.arange(len(graphs)), torch.tensor(sizes)),  # (N,)
    }
    return batch | _edge_features(graphs)


def _edge_features(graphs: list[Graph]) -> dict[str, torch.Tensor]:
    with_edges = [graph for graph in graphs if torch.as_tensor(graph["edge_index"]).numel()]
    given = [graph["edge_features"] for graph in with_edges if "edge_features" in graph]
    if len(given) not in (0, len(with_edges)):
        raise ValueError(
            f"{len(given)} of {len(with_edges)} graphs of a batch have edge_features. Give them to all of its graphs "
            f"or to none."
        )
    return {"graph_edge_features": torch.cat([torch.as_tensor(one).float() for one in given])} if given else {}


GraphLLMProcessor.register_for_auto_class("AutoProcessor")
