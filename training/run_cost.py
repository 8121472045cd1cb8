"""What a run held and read, as figures of metrics.json: the sizes that a report sets beside the scores."""

from typing import Any

from torch import nn

from training.holdings import weights_of


def sizes(model: nn.Module) -> dict[str, float]:
    """`parameters`, `parameters_trained`, and `weight_bytes` of all as they lie in memory, packed or not.

    Args:
        model: with its trained parameters marked, before an engine divides it.
    """
    weights = [one for one in weights_of(model) if not one.buffer]
    return {
        "parameters": float(sum(one.numel for one in weights)),
        "parameters_trained": float(sum(one.numel for one in weights if one.trained)),
        "weight_bytes": float(sum(one.bytes for one in weights)),
    }


def reading(log: list[dict[str, Any]]) -> dict[str, float]:
    """`tokens` read in training and the highest `peak_gib`, of a log that counted them."""
    tokens = [row["tokens"] for row in log if "tokens" in row]
    peaks = [row["peak_gib"] for row in log if "peak_gib" in row]
    return {"tokens": float(sum(tokens)), "peak_gib": max(peaks)} if tokens else {}
