"""What a question looks like when its graph or its text is taken away: examples in, prompt messages out.

none            graph tokens and the graph's text, as in training
zero            the graph tokens are zeros (see generation.py); the text stays
shuffle         every question gets the graphs of another question of its type; the text stays
no_text         the graph's text is left out of the prompt; the graphs stay
no_graph        no graph tokens; the text stays
question_only   neither graphs nor text
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ABLATIONS = ("none", "zero", "shuffle", "no_text", "no_graph", "question_only")

Example = dict[str, Any]
Message = dict[str, Any]


def prompt_builder(
    dataset: Sequence[Example], kinds: Sequence[str], ablate: str, seed: int
) -> Callable[[int], list[Message]]:
    """The function from a question's number to the messages that the ablation shows.

    Args:
        dataset: examples `{"question", "messages", ...}`.
        kinds: every question's type; graphs are shuffled within a type.
        ablate: one of ABLATIONS.
        seed: of the shuffle.

    Raises:
        ValueError: an unknown ablation, or a shuffle of a single question.
    """
    if ablate not in ABLATIONS:
        raise ValueError(f"The ablation {ablate!r} is not known. Choose one of {', '.join(ABLATIONS)}.")
    if ablate == "no_text":
        return lambda i: without_text(dataset[i])
    if ablate == "no_graph":
        return lambda i: without_graphs(prompt_of(dataset[i]))
    if ablate == "question_only":
        return lambda i: without_graphs(without_text(dataset[i]))
    if ablate == "shuffle":
        partner = derangement(kinds, seed)
        return lambda i: with_graphs_of(dataset[i], dataset[partner[i]])
    return lambda i: prompt_of(dataset[i])


def prompt_of(example: Example) -> list[Message]:
    """The messages without a final answer."""
    messages = example["messages"]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def content_items(message: Message) -> list[dict[str, Any]]:
    """A message's content as a list of items; a plain string is one text item."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def graphs_of(messages: list[Message]) -> list[dict[str, Any]]:
    """The graph items of a conversation, in order."""
    return [item for message in messages for item in content_items(message) if item["type"] == "graph"]


def without_text(example: Example) -> list[Message]:
    """The prompt whose last turn holds its graphs and the bare question; a conversation has no facts to leave out."""
    *earlier, last = prompt_of(example)
    if "question" not in example:
        return [*earlier, last]
    question = {"type": "text", "text": example["question"]}
    return [*earlier, {**last, "content": [*graphs_of([last]), question]}]


def without_graphs(messages: list[Message]) -> list[Message]:
    """The messages' texts alone."""
    return [
        {**message, "content": [item for item in content_items(message) if item["type"] != "graph"]}
        for message in messages
    ]


def with_graphs_of(example: Example, other: Example) -> list[Message]:
    """The prompt with another example's graphs in the places of its own, in turn if the other has fewer."""
    messages, graphs = prompt_of(example), graphs_of(prompt_of(other))
    if not graphs:
        return without_graphs(messages)
    swapped, used = [], 0
    for message in messages:
        items = []
        for item in content_items(message):
            is_graph = item["type"] == "graph"
            items.append(graphs[used % len(graphs)] if is_graph else item)
            used += is_graph
        swapped.append({**message, "content": items})
    return swapped


def derangement(kinds: Sequence[str], seed: int) -> list[int]:
    """For each sample another one of the same kind; for the only sample of its kind any other.

    Raises:
        ValueError: there is only one sample.
    """
    if len(kinds) < 2:
        raise ValueError("A shuffle needs at least two questions: a single one has no other graph to get.")
    rng, groups = np.random.default_rng(seed), defaultdict(list)
    for i, kind in enumerate(kinds):
        groups[kind].append(i)
    partner = [0] * len(kinds)
    for group in groups.values():
        order = rng.permutation(group)
        for i, other in zip(order, np.roll(order, 1), strict=True):  # one cycle: nobody is their own successor
            partner[i] = int(other)
    for i in (group[0] for group in groups.values() if len(group) == 1):
        partner[i] = int((i + rng.integers(1, len(kinds))) % len(kinds))
    return partner
