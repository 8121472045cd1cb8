"""What vectors of nodes say by themselves: a linear classifier on them, frozen, and how they tell links."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.classification import number_metrics

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
Split = tuple[np.ndarray, np.ndarray]


def linear_probe(states: np.ndarray, splits: Mapping[str, Split], classes: int) -> dict[str, float]:
    """Logistic regression on centred states; the L2 penalty with the best validation accuracy counts.

    All widths share one scale: by its own, a word that two documents hold would weigh as much as any.

    Args:
        states: (N, D), may be a memory map; only the rows of the splits are read.
        splits: "train", "validation", "test" -> node ids (k,) and class numbers (k,).
        classes: how many there are.

    Returns:
        `probe_accuracy` and `probe_macro_f1` of the test split, `probe_validation` the accuracy they were chosen by.
    """
    inputs = {name: torch.from_numpy(states[nodes].astype(np.float32)) for name, (nodes, _) in splits.items()}
    mean = inputs["train"].mean(0)
    scale = (inputs["train"] - mean).std().clamp(min=1e-12)
    inputs = {name: (one - mean) / scale for name, one in inputs.items()}
    target, best = torch.from_numpy(splits["train"][1]), {"probe_validation": -1.0}
    for penalty in PENALTIES:
        weights = logistic_regression(inputs["train"], target, classes, penalty)
        found = {
            name: number_metrics((inputs[name] @ weights[:-1] + weights[-1]).argmax(1).numpy(), splits[name][1])
            for name in ("validation", "test")
        }
        if found["validation"]["accuracy"] > best["probe_validation"]:
            best = {f"probe_{name}": value for name, value in found["test"].items()}
            best["probe_validation"] = found["validation"]["accuracy"]
    return best


def logistic_regression(inputs: Tensor, target: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights (D + 1, C), the last row the bias, of least cross entropy + penalty / 2 |w|^2, by L-BFGS from zero."""
    weights = torch.zeros(inputs.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weights[:-1] + weights[-1], target)
        value = value + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()
