"""E[f(u₁) f(u₂)] for correlated Gaussians, as a power series in the correlation.

Mehler's formula: for u₁, u₂ of variance q and correlation c, E[f(u₁) f(u₂)] = Σ a_n² cⁿ with a_n
the coefficients of f(√q z) in normalised Hermite polynomials, and Σ a_n² = E[f²]. Kinks leave a
tail a_n² ~ n^-5/2, jumps n^-3/2. What the first terms leave of E[f²] is known, so the tail is a
power law of known sum, fitted to the last terms: to 1e-12 for smooth f and 1e-7 with kinks while
q is below about 10, to 1e-4 at larger q or with jumps, and exactly at c = 1.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import legendre, polynomial
from numpy.typing import NDArray

from stabilitykit._gaussian import GaussianMeans

Array = NDArray[np.float64]

_TERMS = (256, 2048)
_NODES, _WEIGHTS = legendre.leggauss(32)


class CorrelationSeries:
    """The series at given variances.

    Args:
        means: expectations of the activation.
        q: variances, positive, any shape.
    """

    def __init__(self, means: GaussianMeans, q: Array) -> None:
        distinct, self._index = np.unique(q, return_inverse=True)
        self._index = self._index.reshape(q.shape)
        total = means.moments(distinct)[0][0]
        powers = means.hermite(distinct, _TERMS[0]) ** 2
        tail = _tail(powers, total)
        slow = ~tail[-1].astype(bool)
        self._parts = [(powers, tail)]
        self._part = np.zeros(distinct.size, dtype=int)
        self._place = np.arange(distinct.size)
        if slow.any():
            longer = means.hermite(distinct[slow], _TERMS[1]) ** 2
            self._parts.append((longer, _tail(longer, total[slow])))
            self._part[slow] = 1
            self._place[slow] = np.arange(np.count_nonzero(slow))

    def __call__(self, c: Array) -> Array:
        """E[f(u₁) f(u₂)] at correlations of the shape of q."""
        result = np.empty(c.shape)
        for number, (powers, (rest, exponent, even, _)) in enumerate(self._parts):
            here = self._part[self._index] == number
            if not here.any():
                continue
            at, x = self._place[self._index[here]], c[here]
            value = polynomial.polyval(x, powers[:, at], tensor=False)
            # Σ_{n ≥ N} n^-p |c|^n, as an integral over t = (n/N)^(1 - p) between 0 and 1
            n = (len(powers) - 0.5) * ((_NODES[:, None] + 1) / 2) ** (-1 / (exponent[at] - 1))
            law = _WEIGHTS / 2 @ np.abs(x) ** n
            result[here] = value + rest[at] * law * np.where(x < 0, 2 * even[at] - 1, 1)
        return result


def _tail(powers: Array, total: Array) -> tuple[Array, Array, Array, Array]:
    """Sum, exponent and even share of the missing terms; and whether that law is trusted."""
    half = len(powers) // 2
    near, last = powers[half // 2 : half].sum(axis=0), powers[half:].sum(axis=0)
    rest = np.maximum(total - powers.sum(axis=0), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.clip(np.nan_to_num(1 - np.log2(last / near), nan=60), 1.2, 60)
        even = np.nan_to_num(powers[half::2].sum(axis=0) / last, nan=0.5)
        ratio = 2 ** (1 - exponent)
        predicted = last * ratio / (1 - ratio)
    trusted = (rest <= 1e-12 * total) | (np.abs(predicted - rest) <= 0.05 * rest)
    return rest, exponent, even, trusted
