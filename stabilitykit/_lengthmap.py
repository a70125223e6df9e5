"""V(q) = E[f(√q z)²] and S(q) = E[f'(√q z)²] as functions of q, fast on whole grids.

Both are analytic in log q, whatever f is: a Chebyshev series on each cell of a factor 4 in q holds
them to rounding. Cells are built when first asked for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.optimize import elementwise

from stabilitykit._gaussian import GaussianMeans

Array = NDArray[np.float64]

_CELL = math.log(4.0)
_FIRST, _LAST = -20, 31  # cells: q from 4^-20 to 4^32; beyond, the leading power is continued
_LOW, _HIGH = 4.0**_FIRST, 4.0 ** (_LAST + 1)
_DEGREE = 27
_NODES = chebyshev.chebpts1(_DEGREE + 1)
_FIT = np.linalg.inv(chebyshev.chebvander(_NODES, _DEGREE))
_ROUGH = 1e-6
ROUNDING = 1e-13  # differences below are taken for rounding

VALUE, SLOPE = 0, 1


class LengthMap:
    """V and S of one activation at any array of q in [0, inf]."""

    def __init__(self, means: GaussianMeans) -> None:
        self._means = means
        self._slot = np.full(_LAST - _FIRST + 1, -1)
        self._series = np.empty((0, 2, _DEGREE + 1))
        self._logarithmic = np.empty((0, 2), dtype=bool)
        self._factor = np.empty((0, 2))
        self._rough = np.empty((0, 2))
        self._origin = means.moments(np.zeros(1))[0][:, 0]

    def __call__(self, q: Array, row: int = VALUE) -> Array:
        """V (row 0) or S (row 1); at q = 0 the limit from above, at inf the limit."""
        inside = np.clip(q, _LOW, _HIGH)
        value = self._inside(inside, row)
        if (q < _LOW).any():
            # V(0) + q (S(0) + c √q): the next power after the linear one belongs to a kink at 0
            zero, slope = self._origin[row], self._origin[SLOPE] if row == VALUE else None
            small = np.minimum(q, _LOW)
            part = np.sqrt(small / _LOW)
            if slope is None:
                below = zero + (value - zero) * part
            else:
                below = zero + small * (slope + ((value - zero) / _LOW - slope) * part)
            value = np.where(q < _LOW, below, value)
        if (q > _HIGH).any():
            top, below = self._inside(np.array([_HIGH, _HIGH / 2]), row)
            if 0 < top < np.inf:
                power = round(math.log2(top / below), 6)
                with np.errstate(over="ignore"):
                    value = np.where(q > _HIGH, value * (q / _HIGH) ** power, value)
        return value

    def _inside(self, q: Array, row: int, *, derivative: bool = False) -> Array:
        where = np.log(q) / _CELL
        cell = np.clip(np.floor(where), _FIRST, _LAST).astype(np.int64)
        for missing in np.unique(cell[self._slot[cell - _FIRST] < 0]):
            self._build(int(missing))
        slot = self._slot[cell - _FIRST]
        if (self._rough[slot, row] > _ROUGH).any():
            self._refuse(row, np.asarray(q)[self._rough[slot, row] > _ROUGH].flat[0])
        x = 2 * (where - cell) - 1
        series = np.moveaxis(self._series[slot, row], -1, 0)
        result = chebyshev.chebval(x, series, tensor=False)
        logarithmic = self._logarithmic[slot, row]
        scaled = np.where(logarithmic, np.exp(np.where(logarithmic, result, 0)), result)
        scaled = scaled * self._factor[slot, row]
        if row == SLOPE:
            return scaled
        if not derivative:
            return q * scaled
        slope = chebyshev.chebval(x, chebyshev.chebder(series), tensor=False) * 2 / _CELL
        with np.errstate(invalid="ignore"):
            return np.where(
                np.isinf(scaled), np.inf, scaled + np.where(logarithmic, scaled, 1) * slope
            )

    def _build(self, cell: int) -> None:
        q = np.exp(_CELL * (cell + (_NODES + 1) / 2))
        moments, _ = self._means.moments(q, bounds=False)
        ends, errors = self._means.moments(q[[0, -1]])
        series = np.zeros((2, _DEGREE + 1))
        logarithmic, factor = np.zeros(2, dtype=bool), np.ones(2)
        for row, values in enumerate(moments):
            if not np.isfinite(values).all():
                series[row, 0] = np.inf
            else:
                logarithmic[row] = (values > 0).all()
                scaled = values / q if row == VALUE else values
                if logarithmic[row]:  # the factor keeps the logarithms near 0, and their digits
                    factor[row] = scaled[_DEGREE // 2]
                    scaled = np.log(scaled / factor[row])
                series[row] = _FIT @ scaled
        with np.errstate(invalid="ignore"):
            against = np.stack([ends[0] + q[[0, -1]], ends[1] + 1e-6])  # what enters q and χ
            rough = np.nan_to_num(errors / against, nan=0.0).max(axis=1)
        self._slot[cell - _FIRST] = len(self._series)
        self._series = np.concatenate([self._series, series[None]])
        self._logarithmic = np.concatenate([self._logarithmic, logarithmic[None]])
        self._factor = np.concatenate([self._factor, factor[None]])
        self._rough = np.concatenate([self._rough, rough[None]])

    def _refuse(self, row: int, q: float) -> None:
        name, what = self._means.activation.name, ("E[f²]", "E[f'²]")[row]
        raise ValueError(
            f"activation={name}: {what} at q={q:.4g} has no six digits; f is too rough there, or "
            "the expectation is infinite"
        )

    def growth(self, q: Array) -> Array:
        """dV/dq; above the cells that of the last one; at 0 its limit where f(0) = 0."""
        slope = self._inside(np.clip(q, _LOW, _HIGH), VALUE, derivative=True)
        return np.where(q == 0, self._origin[SLOPE], slope)


def limits(lengths: LengthMap, weight: Array, bias: Array, start: float) -> Array:
    """Where q ← weight·V(q) + bias ends when it starts at start, for flat arrays.

    Where V rises, the iteration moves to the first fixed point in the direction of its first step:
    the cells are searched in that direction for a change of sign, or a touch between two nodes.
    Where V falls on the way, the iteration is run; nan if it settles in a cycle.
    """
    if not _LOW <= start <= _HIGH:
        raise ValueError(f"start={start!r} is outside [{_LOW:.3g}, {_HIGH:.3g}]")

    def drift(x: Array, w: Array, b: Array) -> Array:
        return (w * lengths(np.exp(x)) + b) / np.exp(x) - 1

    def steepness(x: Array, w: Array, b: Array) -> Array:
        q = np.exp(x)
        return w * lengths.growth(q) - (w * lengths(q) + b) / q

    first = drift(np.full(weight.shape, math.log(start)), weight, bias)
    found = np.full(weight.shape, start)
    falls = np.zeros(weight.shape, dtype=bool)
    for sign in (1, -1):
        todo = np.flatnonzero(sign * first > ROUNDING)
        near = np.full(weight.shape, math.log(start))
        for cell in _cells(start, sign):
            if not todo.size:
                break
            x = _CELL * (cell + (np.sort(_NODES) + 1) / 2)
            x = x[sign * (x - math.log(start)) > 0][::sign]
            if not x.size:
                continue
            q = np.exp(x)
            falls[todo] |= (lengths.growth(q) < -1e-9 * lengths(q) / q).any()
            ratio = lengths(q) / q
            lowest = weight[todo] * ratio.min() + bias[todo] / q.max()
            highest = weight[todo] * ratio.max() + bias[todo] / q.min()
            clear = (lowest > 1.01) if sign > 0 else (highest < 0.99)
            near[todo[clear]] = x[-1]
            idle, todo = todo[clear], todo[~clear]
            w, b = weight[todo, None], bias[todo, None]
            d, slope = sign * drift(x, w, b), steepness(x, w, b)
            crossed = d < -ROUNDING
            hit, at = crossed.any(axis=1), crossed.argmax(axis=1)
            far = x[at]
            passed = np.asarray(np.arange(x.size) < np.where(hit, at, x.size)[:, None])
            # A touch: falling, then rising, with tangents that meet below zero.
            gap = np.abs(np.diff(x))
            with np.errstate(divide="ignore", invalid="ignore"):
                run = (d[:, :-1] - d[:, 1:] + slope[:, 1:] * gap) / (slope[:, 1:] - slope[:, :-1])
                low = d[:, :-1] + slope[:, :-1] * run
            touch = passed[:, 1:] & (slope[:, :-1] < 0) & (slope[:, 1:] > 0) & (low < 0)
            (rows,) = np.nonzero(touch.any(axis=1))
            if rows.size:
                j = touch[rows].argmax(axis=1)
                args = (weight[todo[rows]], bias[todo[rows]])
                ends = np.sort([x[j], x[j + 1]], axis=0)
                bottom = elementwise.find_root(steepness, tuple(ends), args=args).x
                below = sign * drift(bottom, *args) < -ROUNDING
                rows, j, bottom = rows[below], j[below], bottom[below]
                hit[rows], far[rows] = True, bottom
                passed[rows] = np.arange(x.size) <= j[:, None]
            clear = passed & (d > ROUNDING)
            last = x.size - 1 - clear[:, ::-1].argmax(axis=1)
            near[todo] = np.where(clear.any(axis=1), x[last], near[todo])
            done = todo[hit]
            if done.size:
                ends = np.sort([near[done], far[hit]], axis=0)
                args = (weight[done], bias[done])
                found[done] = np.exp(elementwise.find_root(drift, tuple(ends), args=args).x)
            todo = np.concatenate([idle, todo[~hit]])
        found[todo] = np.inf if sign > 0 else _tiny_root(lengths, weight[todo], bias[todo])
    if falls.any():
        found[falls] = _iterate(lengths, weight[falls], bias[falls], start, found[falls])
    return found


def _cells(start: float, sign: int) -> range:
    cell = min(math.floor(math.log(start) / _CELL), _LAST)
    return range(cell, _LAST + 1) if sign > 0 else range(cell, _FIRST - 1, -1)


def _tiny_root(lengths: LengthMap, weight: Array, bias: Array) -> Array:
    """The fixed point below the first cell: 0 unless a bias or f(0) lifts it."""

    def drift(q: Array, w: Array, b: Array) -> Array:
        return w * lengths(q) + b - q

    low, high = np.zeros(weight.shape), np.full(weight.shape, _LOW)
    lifted = (drift(low, weight, bias) > 0) & (drift(high, weight, bias) < 0)
    if lifted.any():
        args = (weight[lifted], bias[lifted])
        low[lifted] = elementwise.find_root(drift, (low[lifted], high[lifted]), args=args).x
    return low


def _iterate(
    lengths: LengthMap, weight: Array, bias: Array, start: float, candidate: Array
) -> Array:
    """The limit of 2000 steps; the candidate where they still creep towards it; else nan."""
    q = np.full(weight.shape, start)
    moving, step = np.arange(q.size), np.zeros(q.size)
    for _ in range(2000):
        after = weight[moving] * lengths(q[moving]) + bias[moving]
        with np.errstate(invalid="ignore"):
            before, step = step, after - q[moving]
            settled = ~(np.abs(step) > ROUNDING / 10 * after)
        q[moving] = after
        creeps = (step * before > 0) & (step * (candidate[moving] - after) > 0)
        moving, step, creeps = moving[~settled], step[~settled], creeps[~settled]
        if not moving.size:
            break
    q[moving] = np.where(creeps, candidate[moving], np.nan)
    return q


def critical(lengths: LengthMap, bias: Array) -> Array:
    """The weight variance 1/S(q) at the smallest q that solves q = V(q)/S(q) + bias."""

    def excess(q: Array, b: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(lengths(q) / lengths(q, SLOPE), nan=np.inf) + b - q

    q = np.zeros(bias.shape)
    todo = np.flatnonzero(excess(q, bias) > 0)
    near = np.zeros(bias.shape)
    for cell in range(_FIRST, _LAST + 1):
        if not todo.size:
            break
        nodes = np.exp(_CELL * (cell + (np.sort(_NODES) + 1) / 2))
        with np.errstate(over="ignore"):
            left = excess(nodes, bias[todo, None]) / nodes
        below = left < -ROUNDING
        hit, at = below.any(axis=1), below.argmax(axis=1)
        clear = (left > ROUNDING) & (np.arange(nodes.size) < np.where(hit, at, nodes.size)[:, None])
        last = nodes.size - 1 - clear[:, ::-1].argmax(axis=1)
        near[todo] = np.where(clear.any(axis=1), nodes[last], near[todo])
        done = todo[hit]
        if done.size:
            ends = near[done], nodes[at[hit]]
            q[done] = elementwise.find_root(excess, ends, args=(bias[done],)).x
        todo = todo[~hit]
    q[todo] = np.inf
    with np.errstate(divide="ignore"):
        return 1 / lengths(q, SLOPE)
