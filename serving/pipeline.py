"""A trained model over a knowledge graph: `GraphQAPipeline.from_pretrained(MODEL, data=DATA).ask("Who wrote Emma?")`.

    pipeline = GraphQAPipeline.from_pretrained("output/demo/model", data="output/demo/data")
    answer = pipeline.ask("Which city does Tomita live in?")
    answer.answer, answer.evidence.facts, answer.evidence.documents
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from data_processor.dataset import PromptWriter
from data_processor.knowledge_graph import KnowledgeGraph
from evaluation.trained import longest_prompt, shown_in_training, trained_with
from modeling_graphllm import HUB_ARGUMENTS, GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor
from serving.answering import Message, answer_texts, stream_text
from serving.conversation import Conversation
from serving.evidence import Evidence, EvidenceFinder

BATCH = 16  # questions about one subgraph that are answered at a time


@dataclass(frozen=True)
class Answer:
    """A model's answer and the evidence that it was given: subgraph, scores, documents; None without the graph."""

    question: str
    answer: str
    evidence: Evidence | None


class GraphQAPipeline:
    """Linking, retrieval and generation as one call.

    Prompts and graphs are built by the code that builds them for training, so that a question of a data set gets the
    prediction that `python -m evaluation generate` writes for it.

    Args:
        model, processor: in evaluation mode, on its device, and its processor.
        finder: retrieves.
        writer: builds the prompts.
        max_new_tokens, max_length: the longest answer and prompt, in tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: GraphLLMProcessor,
        finder: EvidenceFinder,
        writer: PromptWriter,
        max_new_tokens: int = 32,
        max_length: int | None = None,
    ) -> None:
        self.model, self.processor, self.finder, self.writer = model, processor, finder, writer
        self._limits = {"max_new_tokens": max_new_tokens, "max_length": max_length}

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        data: str | Path,
        method: str | None = None,
        parameters: dict[str, Any] | None = None,
        index: str = "exact",
        max_new_tokens: int = 32,
        device: str | None = None,
        **model_kwargs: Any,
    ) -> "GraphQAPipeline":
        """A pipeline of a folder or repository that finetune.py wrote, and a dataset folder or a folder with graph/.

        Args:
            model: folder, or repository on the Hub.
            data: holds graph/; qa/ and subgraphs/ say how its subgraphs were made.
            method, parameters, index: another retrieval, see `EvidenceFinder`.
            max_new_tokens: the longest answer.
            device: by default the GPU if there is one; not with `device_map`.
            model_kwargs: of transformers' `from_pretrained`: `revision`, `token`, `dtype`, `device_map`, ...

        Raises:
            ValueError: no graph, an unknown method, features of another text encoder than the model's, or a model
                that was trained on documents.
        """
        name, finder = str(model), EvidenceFinder(data, method, parameters, index)
        hub = {key: value for key, value in model_kwargs.items() if key in HUB_ARGUMENTS}
        processor, trained = GraphLLMProcessor.from_pretrained(name, **hub), trained_with(name, **hub)
        if trained.get("context") == "documents":
            raise ValueError(f"{name} was trained on documents beside each question (--context documents), and live "
                             "questions are answered from a graph. Ask it with `python -m evaluation generate`.")
        shown = shown_in_training(trained)
        loaded = GraphLLMForConditionalGeneration.from_pretrained(name, **{"dtype": "auto", **model_kwargs}).eval()
        if shown["use_graph"]:
            check_features(name, loaded.config.feature_encoder, finder.graph)
        if "device_map" not in model_kwargs:
            loaded = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        read = {"tokenizer": processor.tokenizer, "readout": processor.graph_readout}
        writer = PromptWriter(finder.graph, **read, **shown)
        longest = longest_prompt(loaded, trained, max_new_tokens)
        return cls(loaded, processor, finder, writer, max_new_tokens, longest)

    def find(self, question: str) -> Evidence:
        """What the graph says to a question; see `EvidenceFinder.find`."""
        return self.finder.find(question)

    def ask(self, question: str, without_graph: bool = False) -> Answer:
        """Retrieves and answers; `without_graph`: the model sees the bare question.

        Raises:
            ValueError: an empty question, or one that names no node of a graph without features.
        """
        evidence = None if without_graph else self.find(question)
        return self.ask_about(evidence, [question])[0]

    def ask_about(self, evidence: Evidence | None, questions: Sequence[str], share: bool = True) -> list[Answer]:
        """Answers several questions on one subgraph; graph and facts go through the model once for all of them.

        Args:
            evidence: what `find` gave; None: no graph.
            questions: any number; BATCH are answered at a time.
            share: False reads graph and facts anew for each question, with the same answers.
        """
        answers = []
        for start in range(0, len(questions), BATCH):
            block = questions[start : start + BATCH]
            prompts = [self._prompt(question, evidence) for question in block]
            texts = answer_texts(self.model, self.processor, prompts, **self._limits, share=share)
            answers += [Answer(*both, evidence) for both in zip(block, texts, strict=True)]
        return answers

    def stream(self, question: str, evidence: Evidence | None) -> Iterator[str]:
        """The pieces of the answer that `ask` gives, as they come.

        Args:
            question: what is asked. evidence: what `find` gave for it; None: no graph.
        """
        return stream_text(self.model, self.processor, self._prompt(question, evidence), **self._limits)

    def about(self, name: str) -> Evidence:
        """What the graph says about the node of this name; see `EvidenceFinder.about`."""
        return self.finder.about(name)

    def converse(self, evidence: Evidence | None) -> Conversation:
        """A conversation of several turns about one subgraph; None: without a graph."""
        return Conversation(self.model, self.processor, partial(self._prompt, evidence=evidence), **self._limits)

    def _prompt(self, question: str, evidence: Evidence | None) -> list[Message]:
        if evidence is None:
            return [{"role": "user", "content": [{"type": "text", "text": question}]}]
        seeds = [node.id for node in evidence.nodes if node.seed]
        return [self.writer.prompt(question, evidence.subgraph, evidence.text, seeds)]


def check_features(model: str, wanted: str | None, graph: KnowledgeGraph) -> None:
    """Raises ValueError if the graph was embedded by another encoder than the one whose features the model reads."""
    if graph.text_encoder is None or wanted not in (None, graph.text_encoder):
        by = "is not embedded" if graph.text_encoder is None else f"was embedded by {graph.text_encoder}"
        raise ValueError(
            f"{graph.path} {by}, and {model} reads features of {wanted}; run: python -m data_processor embed --graph "
            f"{graph.path} --encoder {wanted or 'hashing'}"
        )
