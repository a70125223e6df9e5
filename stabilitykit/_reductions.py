"""Statistics of many samples at once, one row each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stabilitykit._flatness import Activation, Intervals, within
from stabilitykit._samples import flattened

# Fitted: below so many places of a map it is faster on a CPU to reduce the batch first.
_SMALL_MAP = 64

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
    places = math.prod(z.shape[2:]) if dimension == 1 else 1
    if places > 1 and z.is_cpu and z.is_contiguous():
        # Over the batch and maps at once it takes twice as long, over small ones ten times.
        maps = tuple(range(2, z.dim()))
        if places < _SMALL_MAP:
            return function(function(z, 0), tuple(d - 1 for d in maps))
        ends = function(z, maps)
        return ends.view(-1) if len(z) == 1 else function(ends, 0)
    return function(z, [d for d in range(z.dim()) if d != dimension])


def reduce_moments(rows: Tensor) -> Tensor:
    """What `moments` of each row are made of, in as few operations as can be, [rows, 4].

    Its first entry x₀; mean and rms of x − x₀, since mean square − mean² of x itself would cancel;
    and how many entries are not finite.
    """
    x = double(rows)
    first, scale = x[:, :1], None
    if x.dtype == rows.dtype:  # nothing is wider, in which squares would not overflow
        scale = x.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny)
        x = x / scale
    rest = x - x[:, :1]
    mean = rest.mean(1, keepdim=True)
    rms = torch.linalg.vector_norm(rest, dim=1, keepdim=True) / rows.shape[1] ** 0.5
    if scale is not None:
        mean, rms = mean * scale, rms * scale
    bad = rows.sub(rows).ne_(0)  # nan − nan and inf − inf are nan
    bad = bad.sum(1, keepdim=True, dtype=wide(rows.dtype))
    return torch.cat([first, mean, rms, bad], dim=1)


def moments(reduced: Sequence[float], entries: int, width: int) -> tuple[float, float, float, int]:
    """Mean, std, rms, and how many entries are not finite.

    Args:
        reduced: what `reduce_moments` gives for a row, and perhaps more.
        entries: how many there are; the rest of the row repeats the first one.
        width: of the row.
    """
    first, mean, rms, bad, *_ = reduced
    if bad:
        repeated = 0 if math.isfinite(first) else width - entries
        return math.nan, math.nan, math.nan, round(bad - repeated)
    if entries < width:
        mean, rms = mean * width / entries, rms * math.sqrt(width / entries)
    std = math.sqrt(max(0.0, rms - abs(mean))) * math.sqrt(rms + abs(mean))
    return first + mean, std, math.hypot(first + mean, std), 0


def reduce_samples(
    rows: Tensor, totals: Tensor, passed: Sequence[tuple[Activation, Tensor]]
) -> Tensor:
    """`reduce_moments` of samples and of f of some of them, and one more number.

    Args:
        rows: [samples, entries].
        totals: sums of all that the samples were taken from, [samples].
        passed: f, and those of the samples to which it was applied, which it may change.

    Returns:
        [samples and f of samples, 5], the last being the total, or the share of z where f is flat.
    """
    lasts = [totals, *(reduce_flat(f.intervals, z) for f, z in passed)]
    values = [f.apply(z) for f, z in passed if f.apply]
    reduced = reduce_moments(torch.cat([rows, *values]) if values else rows)
    return torch.cat([reduced, torch.cat(lasts)[:, None]], dim=1)


def reduce_flat(intervals: Intervals, rows: Tensor) -> Tensor:
    """The share of entries within the intervals, of each row."""
    rows = double(rows)
    return within(rows, rows, intervals).mean(1, dtype=torch.float32)


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
    dtype = wide(high.dtype)
    top, bottom = high.to(dtype), None if low is None else low.to(dtype)
    columns = [within(top if bottom is None else bottom, top, intervals).to(dtype)]
    if function is not None:
        # f(z) is finite where z is, but for the ends of its range.
        ends = function(high.clone()) * 0  # in the dtype in which it may overflow
        columns.append((ends if low is None else ends + function(low.clone()) * 0).to(dtype))
    sums = top.new_zeros((len(counts), len(columns)))
    return sums.index_add_(0, owners, torch.stack(columns, dim=1)) / counts[:, None]


def reduce_update(samples: Tensor) -> Tensor:
    """Norms of each row before and of its change; float32's squares would overflow.

    Args:
        samples: [before and after, rows, entries]; what was after is changed where that saves room.

    Returns:
        [rows, 2]
    """
    samples = samples.to(wide(samples.dtype))
    samples[1].sub_(samples[0])
    dtype = torch.float32 if samples.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(samples, dim=2, dtype=dtype).T


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
