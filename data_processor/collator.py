"""GraphCollator: encoded examples -> one batch, padded by the processor like every other batch."""

from typing import Any, Protocol


class Padder(Protocol):
    """What the collator needs of GraphLLMProcessor."""

    def pad(self, examples: list[dict[str, Any]]) -> dict[str, Any]: ...


class GraphCollator:
    """Batches what `EncodedDataset` yields.

    Args:
        processor: the GraphLLMProcessor.
    """

    def __init__(self, processor: Padder) -> None:
        self.processor = processor

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """B encoded examples -> the arguments of the model's forward, `input_ids` (B, T) first."""
        return dict(self.processor.pad(examples))
