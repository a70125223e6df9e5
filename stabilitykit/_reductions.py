"""Statistics of many samples at once, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stabilitykit._flatness import Intervals, within

# Fitted: below so many places of a map it is faster on a CPU to reduce the batch first.
_SMALL_MAP = 196

Elementwise = Callable[[Tensor], Tensor]


def double(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def wide(dtype: torch.dtype) -> torch.dtype:
    """Half precision is reduced in float32."""
    return dtype if dtype == torch.float64 else torch.float32


def finite(total: float, rms: float) -> bool:
    """Whether all entries are, by their sum or sum of squares and the rms of the sample.

    An infinite sum of finite entries is told from infinite entries by a sample of the same size.
    """
    return math.isfinite(total) or (math.isinf(total) and rms > 1e15)


def extreme(function: Callable[..., Tensor], z: Tensor, dimension: int, out: Tensor) -> None:
    """The largest or smallest entry of each unit.

    Args:
        function: `torch.amax` or `torch.amin`.
        z: of one dimension at least.
        dimension: of the units.
        out: [units].
    """
    others = [d for d in range(z.dim()) if d != dimension]
    if z.dim() < 2:
        out.copy_(z)
    elif (
        dimension == 1
        and z.is_cpu
        and z.is_contiguous()
        and 1 < math.prod(z.shape[2:]) < _SMALL_MAP
    ):
        # Over the batch and short rows at once it takes up to thirty times as long.
        function(function(z, 0), tuple(range(1, z.dim() - 1)), out=out)
    else:
        function(z, others, out=out)


def reduce_moments(rows: Tensor) -> Tensor:
    """Mean, std, rms and the share that is not finite, of each row.

    Rows are scaled to 1, for squares overflow, and centred, for mean square − mean² cancels.
    """
    share = rows.sub(rows).ne_(0).mean(1, keepdim=True)  # nan − nan and inf − inf are nan
    scale = rows.abs().amax(1, keepdim=True)  # a tenth of the time of vector_norm(rows, inf)
    scale = torch.where(scale > 0, scale, 1)
    unit = rows / scale
    mean = unit.mean(1, keepdim=True)
    std = torch.linalg.vector_norm(unit.sub_(mean), dim=1, keepdim=True) / rows.shape[1] ** 0.5
    rms = torch.hypot(mean, std)
    return torch.cat([mean * scale, std * scale, rms * scale, share], dim=1)


def reduce_whole(rows: Tensor, totals: Tensor) -> Tensor:
    """Moments of samples, and the sums of all that these were taken from."""
    return torch.cat([reduce_moments(rows), totals[:, None]], dim=1)


def reduce_activation(function: Elementwise, intervals: Intervals, rows: Tensor) -> Tensor:
    """Moments of f(z), and the share of z where it is flat."""
    flat = reduce_units(intervals, rows)
    return torch.cat([reduce_moments(function(rows)), flat], dim=1)


def reduce_ends(
    function: Elementwise, intervals: Intervals, high: Tensor, low: Tensor | None = None
) -> Tensor:
    """The share of units that are flat in whole, and what tells whether f(z) is finite.

    Args:
        function: f, elementwise.
        intervals: where it is flat.
        high: the largest z of each unit.
        low: the smallest one, where it matters.
    """
    dead = reduce_units(intervals, high) if low is None else reduce_units(intervals, low, high)
    # f(z) is finite where z is, but for the ends of its range.
    ends = function(high.clone()) * 0
    if low is not None:
        ends += function(low.clone()) * 0
    return torch.cat([dead, ends.sum(1, keepdim=True)], dim=1)


def reduce_units(intervals: Intervals, low: Tensor, high: Tensor | None = None) -> Tensor:
    low = low.double()
    high = low if high is None else high.double()
    return within(low, high, intervals).mean(1, keepdim=True, dtype=torch.float32)


def reduce_update(before: Tensor, after: Tensor) -> Tensor:
    """Norms of the change and of what was before, of each row; float32's squares would overflow."""
    before, after = before.to(wide(before.dtype)), after.to(wide(after.dtype))
    dtype = torch.float32 if before.device.type == "mps" else torch.float64
    norms = [
        torch.linalg.vector_norm(rows, dim=1, dtype=dtype) for rows in (after - before, before)
    ]
    return torch.stack(norms, dim=1)
