"""Linear layers of one or two rows on a GPU: the weights wait for x in registers.

A step of one token is a chain of small kernels, each shorter than the time to start it and to fetch
its weights. Here a program's share of the weight fits its registers. It is launched while earlier
kernels still run, loads its weights meanwhile and then waits for x. So each link of the chain takes
only a read of x, a sum and a store.
"""

import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.fused import Fused
from weir.ops.triton.launch import kernel, power_of_2
from weir.ops.triton.rows import activation
from weir.ops.triton.sums import prepared

MOST = 2  # rows of x: each takes another pass over the registers, and tiles are faster at 4
WIDEST = 4096  # columns of a weight
ELEMENTS = 16384  # of a weight that a program takes: 128 per thread


def vector_product(x: Tensor, weight: Tensor, fused: Fused) -> Tensor:
    """As weir.ops.triton.linear.product, for at most MOST rows and WIDEST columns, without splits;
    adds no bias."""
    m, (n, k) = len(x), weight.shape
    x, residual, out = prepared(x, fused.residual, n)
    if m == 0:
        return out
    columns = power_of_2(k)
    rows = max(1, ELEMENTS // columns)
    _vector(
        (-(-n // rows), 1, 1), x, weight, residual, fused.norm, out, fused.eps,
        M=m, X_STRIDE=x.stride(0), N=n, K=k, ROWS=rows, COLUMNS=columns, ACT=fused.act,
        warps=4,
    )  # fmt: skip
    return out


@kernel("eps")
def _vector(
    x, weight, residual, norm, out, eps,
    M: tl.constexpr, X_STRIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, ACT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Multiplies ROWS rows of the weight by all rows of x."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    real, inside = row < N, column < K
    if EARLY:
        gdc_launch_dependents()
    where = tl.minimum(row, N - 1).to(tl.int64)[:, None] * K + column[None, :]
    w = tl.load(weight + where, mask=inside[None, :], other=0.0)
    if norm is not None:
        factor = tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        gdc_wait()
    for token in tl.static_range(M):
        here = x + token * X_STRIDE + column
        some = tl.load(here, mask=inside, other=0.0).to(tl.float32)
        if ACT is not None:
            some = activation(some, ACT) * tl.load(here + K, mask=inside, other=0.0).to(tl.float32)
        if norm is not None:
            scale = tl.rsqrt(tl.sum(some * some, 0) / K + eps)
            some *= factor
        y = tl.sum(w.to(tl.float32) * some[None, :], 1)
        if norm is not None:
            y *= scale
        place = token * N + row
        if residual is not None:
            y += tl.load(residual + place, mask=real, other=0.0).to(tl.float32)
        tl.store(out + place, y.to(out.dtype.element_ty), mask=real)
