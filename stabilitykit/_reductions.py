"""Statistics of many samples at once, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stabilitykit._flatness import Intervals, within

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


def reduce_moments(rows: Tensor, total: Tensor | None = None) -> Tensor:
    """Mean, std, rms and the share that is not finite, of each row; and the total as it is.

    Rows are scaled to 1, for squares overflow, and centred, for mean square − mean² cancels.
    """
    share = rows.sub(rows).ne_(0).mean(1, keepdim=True)  # nan − nan and inf − inf are nan
    scale = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    unit = rows / scale
    mean = unit.mean(1, keepdim=True)
    std = torch.linalg.vector_norm(unit.sub_(mean), dim=1, keepdim=True) / rows.shape[1] ** 0.5
    rms = torch.hypot(mean, std)
    columns = [mean * scale, std * scale, rms * scale, share]
    return torch.cat(columns if total is None else [*columns, total[:, None]], dim=1)


def reduce_activation(
    function: Elementwise,
    intervals: Intervals,
    rows: Tensor,
    high: Tensor,
    low: Tensor | None = None,
) -> Tensor:
    """Moments of f(z), what tells whether it is finite, the flat share, and the dead share."""
    low = high if low is None else low
    flat = reduce_units(intervals, rows)
    dead = reduce_units(intervals, low, high)
    # f(z) is finite where z is, but for the ends of its range.
    ends = (function(high.clone()) * 0 + function(low.clone()) * 0).sum(1)
    return torch.cat([reduce_moments(function(rows), ends), flat, dead], dim=1)


def reduce_scalar(values: Tensor) -> Tensor:
    return values[:, None]


def reduce_units(intervals: Intervals, low: Tensor, high: Tensor | None = None) -> Tensor:
    high = low if high is None else high
    return within(low.double(), high.double(), intervals).float().mean(1, keepdim=True)


def reduce_update(before: Tensor, after: Tensor) -> Tensor:
    squares = [(after - before).square().sum(1), before.square().sum(1)]
    return torch.stack(squares, dim=1)
