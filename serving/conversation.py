"""Several turns about one part of the graph: the model sees the graph, its facts and what was said before."""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from serving.answering import Message, stream_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from processing_graphllm import GraphLLMProcessor

logger = logging.getLogger(__name__)


class Conversation:
    """Questions and answers in turn; each answer is given with all turns before it.

    The graph stands in the first turn. Where all turns together are longer than the model reads, the oldest are left
    out and the graph moves to the first that stays.

    Args:
        model, processor: in evaluation mode, and its processor.
        prompt: a question -> the message with graph, facts and question.
        max_new_tokens, max_length: the longest answer and prompt, in tokens.

    Attributes:
        turns: (question, answer) pairs so far.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "GraphLLMProcessor",
        prompt: Callable[[str], list[Message]],
        max_new_tokens: int = 32,
        max_length: int | None = None,
    ) -> None:
        self.model, self.processor, self.prompt = model, processor, prompt
        self.max_new_tokens, self.max_length = max_new_tokens, max_length
        self.turns: list[tuple[str, str]] = []

    def stream(self, question: str) -> Iterator[str]:
        """The pieces of the answer as they come; it joins `turns` when it is whole.

        Raises:
            ValueError: an empty question.
        """
        if not question.strip():
            raise ValueError("the question is empty; ask about the node")
        limits = {"max_new_tokens": self.max_new_tokens, "max_length": self.max_length}
        pieces = []
        for piece in stream_text(self.model, self.processor, self.messages(question), **limits):
            pieces.append(piece)
            yield piece
        self.turns.append((question, "".join(pieces)))

    def ask(self, question: str) -> str:
        """The answer, whole."""
        return "".join(self.stream(question))

    def messages(self, question: str) -> list[Message]:
        """The chat that is put to the model: as many of the turns as fit, then the question."""
        for left_out in range(len(self.turns) + 1):
            found = self._chat([*self.turns[left_out:], (question, "")])
            if left_out == len(self.turns) or self._fits(found):
                break
        if left_out:
            logger.warning("the %d oldest of %d turns are left out: the model reads %s tokens", left_out,
                           len(self.turns), self.max_length)  # fmt: skip
        return found

    def _chat(self, turns: list[tuple[str, str]]) -> list[Message]:
        """The graph before the first question; the last one has no answer yet."""
        chat: list[Message] = []
        for place, (question, answer) in enumerate(turns):
            chat += [{"role": "user", "content": question}] if place else self.prompt(question)
            chat.append({"role": "assistant", "content": answer})
        return chat[:-1]

    def _fits(self, chat: list[Message]) -> bool:
        return self.max_length is None or len(self.processor.encode(chat)["input_ids"]) <= self.max_length
