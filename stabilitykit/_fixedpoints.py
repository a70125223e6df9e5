"""Where the length map q ← σ_w² V(q) + σ_b² ends, and where its χ is 1, on whole grids.

√q·V(q) = ∫ f(u)² exp(-u²/2q) du/√2π never falls, so the logarithm of the map has slope -1/2 or more
in log q: it has no cycles, and where it falls it contracts. Where it rises, iteration moves to the
first fixed point in the direction of its first step, which is searched cell by cell.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import elementwise

from stabilitykit._lengthmap import CELL, FIRST, HIGH, LAST, LOW, ROUNDING, SLOPE, LengthMap

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_MARGIN = 0.01  # cells in which the map stays this far from q hold no fixed point


def limits(lengths: LengthMap, weight: Array, bias: Array, start: Array) -> Array:
    """The limit of q ← weight·V(q) + bias from start; all flat arrays of one size."""
    found, falls = bias.copy(), np.zeros(bias.shape, dtype=bool)  # without weights q is the bias
    some = weight > 0
    found[some], falls[some] = _Search(lengths, weight[some], bias[some]).run(start[some])
    if falls.any():
        # Falling stretches contract by two a step: 64 steps leave the rising ones to the search.
        w, b, q = weight[falls], bias[falls], start[falls]
        for _ in range(64):
            q = w * lengths(q) + b
        inside = (q >= LOW) & (q <= HIGH)
        q[inside] = _Search(lengths, w[inside], b[inside]).run(q[inside])[0]
        found[falls] = np.select([q < LOW, q > HIGH], [found[falls], np.inf], q)
    return found


class _Search:
    """The first fixed point in the direction of the first step."""

    def __init__(self, lengths: LengthMap, weight: Array, bias: Array) -> None:
        self.lengths, self.weight, self.bias = lengths, weight, bias

    def drift(self, x: Array, w: Array, b: Array) -> Array:
        """Relative step at q = exp(x)."""
        q = np.exp(x)
        return (w * self.lengths(q) + b) / q - 1

    def steepness(self, x: Array, w: Array, b: Array) -> Array:
        """Slope of the drift in x."""
        q = np.exp(x)
        return w * self.lengths.growth(q) - (w * self.lengths(q) + b) / q

    def run(self, start: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Fixed points, and where the map fell on the way."""
        found, origin = start.copy(), np.log(start)
        falls = np.zeros(start.shape, dtype=bool)
        first = self.drift(origin, self.weight, self.bias)
        for sign in (1, -1):
            todo = np.flatnonzero(sign * first > ROUNDING)
            near = origin.copy()  # the last point before the fixed point
            for cell in _cells(origin[todo], sign):
                if not todo.size:
                    break
                x = self.lengths.nodes(cell)[::sign]
                if np.isinf(self.lengths(np.exp(x))).all():
                    break
                reached = todo[sign * (x[-1] - origin[todo]) > 0]
                q = np.exp(x)
                if (self.lengths.growth(q) < -1e-9 * self.lengths(q) / q).any():
                    falls[reached] = True
                passed = self._passes(cell, sign, reached)
                near[reached[passed]] = x[-1]
                hit, low, high = self._cross(x, sign, reached[~passed], near, origin)
                if hit.size:
                    args = (self.weight[hit], self.bias[hit])
                    root = elementwise.find_root(self.drift, (low, high), args=args)
                    found[hit] = np.exp(root.x)
                    todo = np.setdiff1d(todo, hit, assume_unique=True)
            found[todo] = np.inf if sign > 0 else self._below_cells(todo)
        return found, falls

    def _passes(self, cell: int, sign: int, points: Index) -> NDArray[np.bool_]:
        """Which points cannot have a fixed point in the cell."""
        q = np.exp(self.lengths.nodes(cell))
        ratio, w, b = self.lengths(q) / q, self.weight[points], self.bias[points]
        if sign > 0:
            return w * ratio.min() + b / q[-1] > 1 + _MARGIN
        return w * ratio.max() + b / q[0] < 1 - _MARGIN

    def _cross(
        self, x: Array, sign: int, points: Index, near: Array, origin: Array
    ) -> tuple[Index, Array, Array]:
        """Points with a fixed point among the nodes x, and the ends of a bracket; moves near."""
        w, b = self.weight[points, None], self.bias[points, None]
        beyond = sign * (x - origin[points, None]) > 0
        d = np.where(beyond, sign * self.drift(x, w, b), 0)
        crossed = d < -ROUNDING
        hit = np.any(crossed, axis=1)
        end = np.where(hit, crossed.argmax(axis=1), x.size)
        far = x[np.minimum(end, x.size - 1)]
        # Between two nodes the drift may touch zero: it falls, then rises, and the tangents meet
        # below zero. Then its lowest point is found.
        slope, gap = self.steepness(x, w, b), np.abs(np.diff(x))
        with np.errstate(divide="ignore", invalid="ignore"):
            run = (d[:, :-1] - d[:, 1:] + slope[:, 1:] * gap) / (slope[:, 1:] - slope[:, :-1])
            meet = d[:, :-1] + slope[:, :-1] * run
        touch = (slope[:, :-1] < 0) & (slope[:, 1:] > 0) & (meet < 0) & beyond[:, :-1]
        touch &= np.arange(1, x.size) < end[:, None]
        rows = np.flatnonzero(touch.any(axis=1))
        if rows.size:
            j = touch[rows].argmax(axis=1)
            args = (self.weight[points[rows]], self.bias[points[rows]])
            ends = np.sort([x[j], x[j + 1]], axis=0)
            bottom = elementwise.find_root(self.steepness, tuple(ends), args=args).x
            below = sign * self.drift(bottom, *args) < -ROUNDING
            rows, j, bottom = rows[below], j[below], bottom[below]
            hit[rows], far[rows], end[rows] = True, bottom, j + 1
        clear = (d > ROUNDING) & (np.arange(x.size) < end[:, None])
        last = x.size - 1 - clear[:, ::-1].argmax(axis=1)
        near[points] = np.where(clear.any(axis=1), x[last], near[points])
        ends = np.sort([near[points[hit]], far[hit]], axis=0)
        return points[hit], ends[0], ends[1]

    def _below_cells(self, points: Index) -> Array:
        """The fixed point below the first cell: 0 unless a bias or f(0) lifts it."""

        def step(q: Array, w: Array, b: Array) -> Array:
            return w * self.lengths(q) + b - q

        root = np.zeros(points.shape)
        args = (self.weight[points], self.bias[points])
        lifted = (step(root, *args) > 0) & (step(np.full(root.shape, LOW), *args) < 0)
        if lifted.any():
            args = (args[0][lifted], args[1][lifted])
            ends = (root[lifted], np.full(np.count_nonzero(lifted), LOW))
            root[lifted] = elementwise.find_root(step, ends, args=args).x
        return root


def _cells(origin: Array, sign: int) -> range:
    if not origin.size:
        return range(0)
    if sign > 0:
        return range(max(math.floor(origin.min() / CELL), FIRST), LAST + 1)
    return range(min(math.floor(origin.max() / CELL), LAST), FIRST - 1, -1)


def critical(lengths: LengthMap, bias: Array) -> Array:
    """The weight variance 1/S(q) at the smallest q that solves q = V(q)/S(q) + bias."""

    def excess(q: Array, b: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(lengths(q) / lengths(q, SLOPE), nan=np.inf) + b - q

    q = np.zeros(bias.shape)
    todo = np.flatnonzero(excess(q, bias) > 0)
    near = np.zeros(bias.shape)
    for cell in range(FIRST, LAST + 1):
        if not todo.size:
            break
        nodes = np.exp(lengths.nodes(cell))
        with np.errstate(over="ignore"):
            left = excess(nodes, bias[todo, None]) / nodes
        below = left < -ROUNDING
        hit = np.any(below, axis=1)
        end = np.where(hit, below.argmax(axis=1), nodes.size)
        clear = (left > ROUNDING) & (np.arange(nodes.size) < end[:, None])
        last = nodes.size - 1 - clear[:, ::-1].argmax(axis=1)
        near[todo] = np.where(clear.any(axis=1), nodes[last], near[todo])
        done = todo[hit]
        if done.size:
            ends = near[done], nodes[end[hit]]
            q[done] = elementwise.find_root(excess, ends, args=(bias[done],)).x
        todo = todo[~hit]
    q[todo] = np.inf
    with np.errstate(divide="ignore"):
        return 1 / lengths(q, SLOPE)
