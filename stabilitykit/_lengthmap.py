"""V(q) = E[f(√q z)²] and S(q) = E[f'(√q z)²] as functions of q, fast on whole grids.

Both are analytic in log q, whatever f is: a Chebyshev series on each cell of a factor 4 in q holds
them to rounding. Cells are built when first asked for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from stabilitykit._gaussian import GaussianMeans

Array = NDArray[np.float64]

CELL = math.log(4.0)
FIRST, LAST = -20, 31  # cells: q from 4^-20 to 4^32; beyond, the leading power is continued
LOW, HIGH = 4.0**FIRST, 4.0 ** (LAST + 1)
_DEGREE = 23
_NODES = chebyshev.chebpts1(_DEGREE + 1)
_FIT = np.linalg.inv(chebyshev.chebvander(_NODES, _DEGREE))
_ROUGH = 1e-6
ROUNDING = 1e-13  # differences below are taken for rounding

VALUE, SLOPE = 0, 1


class LengthMap:
    """V and S of one activation at any array of q in [0, inf]."""

    def __init__(self, means: GaussianMeans) -> None:
        self._means = means
        self._slot = np.full(LAST - FIRST + 1, -1)
        self._series = np.empty((0, 2, _DEGREE + 1))
        self._logarithmic = np.empty((0, 2), dtype=bool)
        self._factor = np.empty((0, 2))
        self._rough = np.empty((0, 2))
        self._origin = means.moments(np.zeros(1))[0][:, 0]

    def __call__(self, q: Array, row: int = VALUE) -> Array:
        """V (row 0) or S (row 1); at q = 0 the limit from above, at inf the limit."""
        inside = np.clip(q, LOW, HIGH)
        value = self._inside(inside, row)
        if (q < LOW).any():
            # V(0) + q (S(0) + c √q): the next power after the linear one belongs to a kink at 0
            zero, slope = self._origin[row], self._origin[SLOPE] if row == VALUE else None
            small = np.minimum(q, LOW)
            part = np.sqrt(small / LOW)
            if slope is None:
                below = zero + (value - zero) * part
            else:
                below = zero + small * (slope + ((value - zero) / LOW - slope) * part)
            value = np.where(q < LOW, below, value)
        if (q > HIGH).any():
            top, below = self._inside(np.array([HIGH, HIGH / 2]), row)
            if 0 < top < np.inf:
                power = round(math.log2(top / below), 6)
                with np.errstate(over="ignore"):
                    value = np.where(q > HIGH, value * (q / HIGH) ** power, value)
        return value

    def _inside(self, q: Array, row: int, *, derivative: bool = False) -> Array:
        where = np.log(q) / CELL
        cell = np.clip(np.floor(where), FIRST, LAST).astype(np.int64)
        for missing in np.unique(cell[self._slot[cell - FIRST] < 0]):
            self._build(int(missing))
        slot = self._slot[cell - FIRST]
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
        slope = chebyshev.chebval(x, chebyshev.chebder(series), tensor=False) * 2 / CELL
        with np.errstate(invalid="ignore"):
            return np.where(
                np.isinf(scaled), np.inf, scaled + np.where(logarithmic, scaled, 1) * slope
            )

    def _build(self, cell: int) -> None:
        q = np.exp(CELL * (cell + (_NODES + 1) / 2))
        moments, errors = self._means.moments(q)
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
            against = np.stack([moments[0] + q, moments[1] + 1e-6])  # what enters q and χ
            rough = np.nan_to_num(errors / against, nan=0.0).max(axis=1)
        self._slot[cell - FIRST] = len(self._series)
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

    @staticmethod
    def nodes(cell: int) -> Array:
        """Rising logarithms of q to search: where a cell was sampled, and just inside its ends."""
        return CELL * (cell + (np.concatenate([[-1 + 1e-9], np.sort(_NODES), [1 - 1e-9]]) + 1) / 2)

    def growth(self, q: Array) -> Array:
        """dV/dq; above the cells that of the last one; at 0 its limit where f(0) = 0."""
        slope = self._inside(np.clip(q, LOW, HIGH), VALUE, derivative=True)
        return np.where(q == 0, self._origin[SLOPE], slope)
