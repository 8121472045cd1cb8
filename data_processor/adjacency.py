"""Edges listed by the node they belong to: where each node's edges begin, and the places of some nodes' edges."""

from __future__ import annotations

import numpy as np


def offsets(owners: np.ndarray, num_nodes: int) -> np.ndarray:
    """(N + 1,) int64: where each node's edges begin in a list sorted by owner."""
    return np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=num_nodes))])


def ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers start..stop-1 of every pair, one after the other."""
    lengths = stops - starts
    shifts = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) if len(lengths) else lengths
    return np.arange(len(shifts)) + shifts
