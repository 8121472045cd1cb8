"""A model in two folders for servers of plain language models: the language model, and what makes its prompts.

The module turns a chat with graphs into prompt embeddings. A server that takes them, such as vLLM, needs nothing else
(vLLM itself is not tried by the tests; they compare the embeddings, and the answers that transformers makes of them):

    python -m serving export --model MERGED --output OUT
    LLM(model="OUT/language_model", enable_prompt_embeds=True).generate(
        {"prompt_embeds": GraphPrefix.from_pretrained("OUT/prefix").prompt_embeds(messages)})
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import cached_file

from data_processor.schema import atomic_write
from modeling_graphllm import GRAPH_INPUTS, GraphLLMConfig, GraphLLMForConditionalGeneration
from processing_graphllm import GraphLLMProcessor

WEIGHTS = "prefix.safetensors"


class GraphPrefix:
    """What stands before the language model: its input embeddings, the encoder of graphs and the projector.

    Args:
        model: a GraphLLM whose language model needs no weights but those of its input embeddings.
        processor: its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: GraphLLMProcessor) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "GraphPrefix":
        """Loads what `export_prefix` wrote.

        Raises:
            ValueError: a weight is missing.
        """
        with torch.device("meta"):
            model = GraphLLMForConditionalGeneration(GraphLLMConfig.from_pretrained(folder))
        state = load_file(Path(folder) / WEIGHTS)
        missing = sorted(set(prefix_weights(model)) - set(state))
        if missing:
            raise ValueError(f"{folder} lacks {len(missing)} weights, first {missing[0]}; export it again")
        model.load_state_dict(state, strict=False, assign=True)
        return cls(model, GraphLLMProcessor.from_pretrained(folder))

    @torch.no_grad()
    def prompt_embeds(self, messages: list[dict[str, Any]], max_length: int | None = None) -> torch.Tensor:
        """(T, H): the embeddings of a chat that ends with a user's turn, its graphs in their places."""
        batch = self.processor.pad([self.processor.encode(messages, max_length)])
        graphs = {name: batch.get(name) for name in GRAPH_INPUTS}
        return self.model.get_merged_embeddings(batch["input_ids"], **graphs)[0]


def prefix_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of encoder, projector and input embeddings by name."""
    embeddings = model.get_input_embeddings().weight
    return {
        name: value
        for name, value in model.named_parameters()  # tied ones once
        if value is embeddings or not name.startswith("language_model.")
    }


def export_prefix(model: str, output: str | Path) -> Path:
    """Writes OUTPUT/language_model, which transformers and vLLM load, and OUTPUT/prefix.

    Args:
        model: a folder or repository without adapters: trained in full, with a frozen language model, or merged.
        output: the folder to write.

    Raises:
        ValueError: the model holds adapters, or its language model is an encoder-decoder.
    """
    absent = {"_raise_exceptions_for_missing_entries": False}
    if cached_file(model, "adapter_config.json", **absent) is not None:
        raise ValueError(f"{model} holds adapters, not a whole language model. First: python -m serving merge")
    loaded = GraphLLMForConditionalGeneration.from_pretrained(model, dtype="auto")
    if loaded.config.is_encoder_decoder:
        raise ValueError(f"{model} is an encoder-decoder: prompt embeddings are for models that only decode")
    output, processor = Path(output), GraphLLMProcessor.from_pretrained(model)
    prefix = output / "prefix"
    loaded.language_model.save_pretrained(output / "language_model")
    loaded.generation_config.save_pretrained(output / "language_model")
    processor.tokenizer.save_pretrained(output / "language_model")
    loaded.config.save_pretrained(prefix)
    processor.save_pretrained(prefix)
    weights = {name: value.detach().contiguous() for name, value in prefix_weights(loaded).items()}
    with atomic_write(prefix / WEIGHTS) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    return output
