"""Kendall's tau-b: how far two orders agree, from -1 to 1, with ties (Kendall 1945)."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def tau_b(x: Sequence[float], y: Sequence[float]) -> float:
    """(concordant - discordant) / sqrt(pairs untied in x * pairs untied in y); 0 if there are none.

    In O(n log n), as Knight (1966): sorted by x, discordant pairs are the inversions of y."""
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values cannot be compared with {len(y)}")
    _, first = np.unique(np.asarray(x, float), return_inverse=True)
    _, second = np.unique(np.asarray(y, float), return_inverse=True)
    both = first.astype(np.int64) * (len(x) + 1) + second
    pairs = len(x) * (len(x) - 1) // 2
    free_x, free_y = pairs - _tied(first), pairs - _tied(second)
    if not free_x or not free_y:
        return 0.0
    discordant = _inversions(second[np.argsort(both)])
    neither = free_x + free_y - pairs + _tied(both)  # pairs tied in neither
    return (neither - 2 * discordant) / math.sqrt(free_x * free_y)


def _tied(values: NDArray[np.int64]) -> int:
    _, counts = np.unique(values, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(values: NDArray[np.int64]) -> int:
    """Pairs of which the earlier is greater: merge sort, run by run of doubling length."""
    count, run = 0, 1
    values = values.copy()
    while run < len(values):
        for start in range(0, len(values) - run, 2 * run):
            left, right = values[start : start + run], values[start + run : start + 2 * run]
            count += len(left) * len(right) - int(np.searchsorted(left, right, "right").sum())
            values[start : start + 2 * run] = np.sort(values[start : start + 2 * run])
        run *= 2
    return count
