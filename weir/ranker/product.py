"""Products of matrices on the caller's thread alone.

NumPy's own (`@`) wake threads of its BLAS for a row by a few thousand, which then spin on the cores
that an engine beside them computes with.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def product(a: Array, b: Array) -> Any:
    """Rows [P, K] by rows [A, K]: [P, A], for small P."""
    return np.einsum("pk,ak->pa", a, b)
