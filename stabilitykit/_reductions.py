"""Statistics of many samples at once, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stabilitykit._flatness import Activation, Intervals, within
from stabilitykit._samples import flattened

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


def extreme(function: Callable[..., Tensor], z: Tensor, dimension: int) -> Tensor:
    """The largest or smallest entry of each unit, [units].

    Args:
        function: `torch.amax` or `torch.amin`.
        z: of one dimension at least.
        dimension: of the units.
    """
    if z.dim() < 2:
        return z.clone()
    if (
        dimension == 1
        and z.is_cpu
        and z.is_contiguous()
        and 1 < math.prod(z.shape[2:]) < _SMALL_MAP
    ):
        # Over the batch and short rows at once it takes up to thirty times as long.
        return function(function(z, 0), tuple(range(1, z.dim() - 1)))
    return function(z, [d for d in range(z.dim()) if d != dimension])


def reduce_moments(rows: Tensor) -> Tensor:
    """Mean, std, rms and the share that is not finite, of each row.

    Rows are scaled to 1, for squares overflow, and centred, for mean square − mean² cancels.
    """
    share = rows.sub(rows).ne_(0).mean(1, keepdim=True)  # nan − nan and inf − inf are nan
    scale = rows.abs().amax(1, keepdim=True)  # a tenth of the time of vector_norm(rows, inf)
    scale.clamp_(min=torch.finfo(scale.dtype).tiny)
    unit = rows / scale
    mean = unit.mean(1, keepdim=True)
    std = torch.linalg.vector_norm(unit.sub_(mean), dim=1, keepdim=True) / rows.shape[1] ** 0.5
    rms = torch.hypot(mean, std)
    return torch.cat([mean * scale, std * scale, rms * scale, share], dim=1)


def reduce_samples(
    rows: Tensor, totals: Tensor, passed: Sequence[tuple[Activation, Tensor]]
) -> list[Tensor]:
    """Moments of samples with the sums of all that these were taken from, and of f of some of them.

    Args:
        rows: [samples, entries].
        totals: [samples].
        passed: f, and those of the samples to which it was applied.

    Returns:
        [samples, 5], and for each f moments of f(z) and the share of z where it is flat.
    """
    values = [f.apply(z.clone()) for f, z in passed if f.apply]
    counts = [len(rows), *map(len, values)]
    moments = reduce_moments(torch.cat([rows, *values]) if values else rows).split(counts)
    lasts = [totals[:, None], *(reduce_flat(f.intervals, z) for f, z in passed)]
    return [torch.cat(pair, dim=1) for pair in zip(moments, lasts, strict=True)]


def reduce_flat(intervals: Intervals, rows: Tensor) -> Tensor:
    """The share of entries within the intervals, of each row."""
    rows = rows.double()
    return within(rows, rows, intervals).mean(1, keepdim=True, dtype=torch.float32)


def reduce_ends(
    function: Elementwise | None,
    intervals: Intervals,
    owners: Tensor,
    counts: Tensor,
    high: Tensor,
    low: Tensor | None = None,
) -> Tensor:
    """The share of each tensor's units that are flat in whole, and what is finite where f(z) is.

    Args:
        function: f, elementwise; None where the second number is not asked for.
        intervals: where it is flat.
        owners: of which tensor each unit is, [units].
        counts: how many units each has, [tensors].
        high: the largest z of each unit.
        low: the smallest one, where it matters.
    """
    flat = within((high if low is None else low).double(), high.double(), intervals)
    columns = [flat.to(high.dtype)]
    if function is not None:
        # f(z) is finite where z is, but for the ends of its range.
        ends = function(high.clone()) * 0
        columns.append(ends if low is None else ends + function(low.clone()) * 0)
    sums = high.new_zeros((len(counts), len(columns)))
    sums.index_add_(0, owners, torch.stack(columns, dim=1))
    return double(sums) / counts[:, None]


def reduce_update(before: Tensor, after: Tensor) -> Tensor:
    """Norms of the change and of what was before, of each row; float32's squares would overflow."""
    before, after = before.to(wide(before.dtype)), after.to(wide(after.dtype))
    dtype = torch.float32 if before.device.type == "mps" else torch.float64
    norms = [
        torch.linalg.vector_norm(rows, dim=1, dtype=dtype) for rows in (after - before, before)
    ]
    return torch.stack(norms, dim=1)


def euclidean(gradients: list[Tensor], device: torch.device) -> Tensor:
    """The Euclidean norm of each, in float32."""
    flats = [g if g.dim() == 1 else flattened(g) for g in gradients]
    if device.type == "cpu" and all(flat is not None for flat in flats):
        # Two thirds of the time of a norm, and a fiftieth of its rounding at 16 million entries.
        return torch.stack([torch.dot(f, f) for f in flats]).sqrt_()  # type: ignore[arg-type]
    return torch.stack(torch._foreach_norm(gradients))  # as in clip_grad_norm_


def square_and_nonfinite(gradient: Tensor) -> Tensor:
    """The sum of squares in float64, and how many entries are not finite."""
    whole = gradient.detach().flatten()
    wider = torch.promote_types(whole.dtype, torch.double)
    square = torch.linalg.vector_norm(whole, dtype=wider).square().double()
    return torch.stack([square, whole.isfinite().logical_not().sum().double()])
