"""GraphCollator: encoded examples -> one batch, made by the processor like every other batch."""

from typing import Any, Protocol


class Batcher(Protocol):
    """What the collator needs of GraphLLMProcessor."""

    def pad(self, examples: list[dict[str, Any]]) -> dict[str, Any]: ...

    def pack(self, examples: list[dict[str, Any]]) -> dict[str, Any]: ...


class GraphCollator:
    """Batches what `EncodedDataset` yields.

    Args:
        processor: the GraphLLMProcessor.
        packing: put the examples one after another into one row instead of padding them to the longest.
    """

    def __init__(self, processor: Batcher, packing: bool = False) -> None:
        self.batch = processor.pack if packing else processor.pad

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """B encoded examples -> the arguments of the model's forward, `input_ids` (B, T) or (1, S) first."""
        return dict(self.batch(examples))
