"""An activation resolved on panels: samples from which any smooth weight can be integrated.

A panel carries 33 Chebyshev points, its end points moved inward by two units in the last place, so
that a kink on an end point disturbs neither side. A kink anywhere else shows in the last Chebyshev
coefficients of f', which do not die. Such panels are cut into eight, all at once, until they are
resolved or negligibly narrow. With the kinks located, wide panels replace the cascade around them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from stabilitykit._activations import Activation

Array = NDArray[np.float64]
Index = NDArray[np.int64]

DEGREE = 32
NODES = chebyshev.chebpts2(DEGREE + 1)
TO_COEFFICIENTS = np.linalg.inv(chebyshev.chebvander(NODES, DEGREE))
_EVEN = np.arange(0, DEGREE + 1, 2)
WEIGHTS = 2 / (1 - _EVEN**2) @ TO_COEFFICIENTS[::2]  # Clenshaw–Curtis: ∫ T_k = 2/(1 - k²), k even

RESOLVED = 1e-13  # last coefficients against the scale
NARROW = 2.0**-40  # width of the panel that is left around a kink, against where it started
SPLIT = 8
MOST_PANELS = 60_000  # sampled in one call; what is unresolved then stays so: it counts as error
_EPS = np.finfo(np.float64).eps
_TINY = np.finfo(np.float64).tiny


def tails(samples: Array) -> Array:
    """Largest of the last three Chebyshev coefficients; [..., 33] -> [...]."""
    with np.errstate(invalid="ignore"):
        return np.abs(samples @ TO_COEFFICIENTS[-3:].T).max(axis=-1)


class Panels(NamedTuple):
    """Samples on panels: half widths [n], points, values and slopes [n, 33]."""

    half: Array
    points: Array
    values: Array
    slopes: Array

    @staticmethod
    def join(parts: list[Panels]) -> Panels:
        return Panels(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def where(self, mask: NDArray[np.bool_]) -> Panels:
        return Panels(*(column[mask] for column in self))


def sample(activation: Activation, left: Array, right: Array) -> Panels:
    """Values and slopes at the Chebyshev points of panels."""
    middle, half = (left + right) / 2, (right - left) / 2
    low = np.minimum(left + 2 * _EPS * np.abs(left) + _TINY, middle)[:, None]
    high = np.maximum(right - 2 * _EPS * np.abs(right) - _TINY, middle)[:, None]
    points = np.clip(middle[:, None] + half[:, None] * NODES, low, high)
    values, slopes = activation(points.ravel())
    return Panels(half, points, values.reshape(points.shape), slopes.reshape(points.shape))


def resolve(
    activation: Activation, left: Array, right: Array, scale: Array, group: Index, allowance: Index
) -> tuple[Panels, Index]:
    """Cut panels until f and f' are resolved on each.

    Args:
        activation: the function.
        left: left ends, [n].
        right: right ends, [n].
        scale: what the last coefficients of (f, f') are compared with, and those of their squares,
            [2, 2, n].
        group: panels of one group share an allowance, [n] small non-negative integers.
        allowance: how many panels may be sampled in each group.

    Returns:
        The panels, and for each the index of the one that it was cut from.
    """
    width = right - left
    start = np.arange(left.size)
    panels, origin, kinked = _cut(activation, left, right, start, scale, width, group, allowance)
    if kinked.any():
        split = np.isin(origin, origin[kinked])
        low, high = panels.points[kinked, 0], panels.points[kinked, -1]
        lefts, rights, origins = [], [], []
        for i in np.unique(origin[kinked]):
            own = origin[kinked] == i
            edges = np.unique([left[i], *low[own], *high[own], right[i]])
            lefts.append(edges[:-1])
            rights.append(edges[1:])
            origins.append(np.full(edges.size - 1, i))
        again, source, _ = _cut(
            activation,
            np.concatenate(lefts),
            np.concatenate(rights),
            np.concatenate(origins),
            scale,
            width,
            group,
            allowance,
        )
        panels = Panels.join([panels.where(~split), again])
        origin = np.concatenate([origin[~split], source])
    return panels, origin


def _cut(
    activation: Activation,
    left: Array,
    right: Array,
    origin: Index,
    scale: Array,
    width: Array,
    group: Index,
    allowance: Index,
) -> tuple[Panels, Index, NDArray[np.bool_]]:
    """Cut until resolved; marks the panels left unresolved because they are narrow."""
    kept: list[tuple[Panels, Index, NDArray[np.bool_]]] = []
    sampled = np.zeros_like(allowance)
    stalled = np.zeros(left.size, dtype=int)
    parent = np.full(left.size, np.inf)
    while left.size:
        panels = sample(activation, left, right)
        first = not sampled.any()
        sampled += np.bincount(group[origin], minlength=sampled.size)
        with np.errstate(all="ignore"):
            plain = np.stack([panels.values, panels.slopes])
            # fmax: a function without any slope compares 0 with 0.
            excess = np.fmax(
                tails(plain) / scale[:, 0, origin], tails(plain**2) / scale[:, 1, origin]
            )
            excess = np.fmax(*excess) / RESOLVED
        excess[~np.isfinite(excess)] = 0.0  # overflow and nan are not for cutting
        bad = excess > 1
        narrow = bad & (right - left <= NARROW * width[origin])
        # A kink spoils one child. Rounding noise spoils most of them, and cutting does not
        # help: after two such cuts the noise is accepted, and counts in the error.
        most = bad
        if not first:
            most = np.repeat(bad.reshape(-1, SPLIT).sum(axis=1) >= SPLIT - 2, SPLIT)
        stalled = np.where(most & (excess > parent / 4), stalled + 1, 0)
        done = ~bad | narrow | (stalled >= 2)
        planned = sampled + SPLIT * np.bincount(group[origin[~done]], minlength=sampled.size)
        done |= (planned > allowance)[group[origin]] | (planned.sum() > MOST_PANELS)
        kept.append((panels.where(done), origin[done], narrow[done]))
        cut = ~done
        edges = left[cut, None] + (right - left)[cut, None] * np.linspace(0, 1, SPLIT + 1)
        edges[:, -1] = right[cut]
        left, right = edges[:, :-1].ravel(), edges[:, 1:].ravel()
        origin, parent, stalled = (
            np.repeat(column[cut], SPLIT) for column in (origin, excess, stalled)
        )
    columns = zip(*kept, strict=True)
    return (
        Panels.join(list(next(columns))),
        np.concatenate(next(columns)),
        np.concatenate(next(columns)),
    )
