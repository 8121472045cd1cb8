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
    """`tokens` read in training, `tokens_per_s` and the highest `peak_gib`, of a log that counted them.

    The rate is taken from the log, as a resumed run goes on with the log and measures its time anew.
    """
    rows = [row for row in log if "tokens" in row]
    if not rows:
        return {}
    tokens = float(sum(row["tokens"] for row in rows))
    seconds = sum(row["tokens"] / row["tokens_per_s"] for row in rows if row["tokens"])
    peak = max(row["peak_gib"] for row in rows)
    return {"tokens": tokens, "tokens_per_s": tokens / seconds if seconds else 0.0, "peak_gib": peak}
