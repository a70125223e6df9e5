"""Gaussian expectations of an activation with kinks and jumps at unknown places.

E[f(√q z)²] is an integral over u = √q z in which q enters only through the Gaussian weight, and the
kinks of f stay where they are. So f is resolved once, octave by octave in |u|, and the same samples
serve every q.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stabilitykit._activations import Activation
from stabilitykit._panels import RESOLVED, WEIGHTS, Panels, resolve, sample, tails

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_ABOVE = 6  # octaves above √q: the normal density underflows beyond 38.6 of its std
_BELOW = 36  # octaves below √q and below 1 that are resolved; the rest has probability 2^-37
_COARSE = -10  # many kinks below 2^-10 are rounding noise: few are chased
_TINY = np.finfo(np.float64).tiny
_ROUNDING = 32 * np.finfo(np.float64).eps
_CHUNK = 2_000_000


class GaussianMeans:
    """E[f(√q z)²] and E[f'(√q z)²] for any q, with bounds on their errors."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self._octaves: dict[int, Panels] = {}
        self._mass: dict[int, Array] = {}
        self._loose: dict[int, int] = {}
        self._gathered: dict[int, tuple[Panels, Array]] = {}

    def moments(self, q: Array) -> tuple[Array, Array]:
        """Moments [2, n] of f and f', and bounds on their errors [2, n], at n variances q ≥ 0."""
        moments, errors = np.empty((2, q.size)), np.empty((2, q.size))
        scale = np.maximum(np.sqrt(q), 1e-150)
        for chosen, panels, core in self._by_octave(scale):
            for part in _chunks(chosen, panels.points.size):
                moments[:, part], errors[:, part] = _integrate(panels, core, scale[part])
                if np.isnan(moments[:, part]).any():
                    self._blame(panels, scale[part].max())
        if (q == 0).any():  # the limit from above: the mean over both sides of 0
            sides = np.stack(self.activation(np.array([-_TINY, _TINY])))
            moments[:, q == 0] = np.mean(sides**2, axis=1)[:, None]
            errors[:, q == 0] = _ROUNDING * moments[:, q == 0]
        return moments, errors

    def hermite(self, q: Array, terms: int) -> Array:
        """E[f(√q z) h_n(z)] for the normalised Hermite polynomials h_0 …, [terms, n]."""
        results = np.empty((terms, q.size))
        scale = np.sqrt(q)
        for chosen, panels, _ in self._by_octave(scale):
            for part in _chunks(chosen, 4 * panels.points.size):
                z = panels.points.ravel() / scale[part, None]
                # h_n·φ^½ stays bounded where h_n alone would overflow.
                root = np.exp(-0.25 * z * z) / (2 * np.pi) ** 0.25
                width = (panels.half[:, None] * WEIGHTS).ravel() / scale[part, None]
                mass = np.where(root > 0, panels.values.ravel() * root, 0) * width
                counts = np.abs(mass).max(axis=0) > 1e-20 * np.abs(mass).max()
                z, mass, here = z[:, counts], mass[:, counts], root[:, counts]
                before = np.zeros_like(z)
                for n in range(terms):
                    results[n, part] = np.einsum("ij,ij->i", mass, here)
                    before *= -np.sqrt(n)
                    before += z * here
                    before /= np.sqrt(n + 1)
                    before, here = here, before
        return results

    def _by_octave(self, scale: Array) -> Iterator[tuple[Index, Panels, Array]]:
        """Indices of scales in one octave, with the samples for them."""
        octaves = np.frexp(scale)[1] - 1
        for octave in np.unique(octaves):
            yield np.flatnonzero(octaves == octave), *self._around(int(octave))

    def _around(self, octave: int) -> tuple[Panels, Array]:
        """Panels that matter for √q in [2^octave, 2^(octave + 1)), and f, f' in the core [2, 4]."""
        if octave not in self._gathered:
            needed = range(min(octave, 0) - _BELOW, octave + 1 + _ABOVE)
            # One build for many octaves: its cost hardly depends on their number.
            below = range(needed[0] - needed[0] % 8, needed[0])
            self._build([j for j in (*below, *needed) if self._lacks(j, octave)], octave)
            edge = 2.0 ** needed[0]
            core = self.activation(np.array([-edge, -_TINY, _TINY, edge]))
            panels = Panels.join([self._octaves[j] for j in needed])
            self._gathered[octave] = panels, np.stack(core)
        return self._gathered[octave]

    def _lacks(self, j: int, octave: int) -> bool:
        return j not in self._octaves or self._loose.get(j, octave) > octave

    def _build(self, octaves: list[int], octave: int) -> None:
        """Resolve octaves of |u| as well as √q near 2^octave needs them.

        Far below √q the values of f hardly count, so rounding noise in them is not chased. Octaves
        that were resolved so loosely are built again when a smaller q asks for them.
        """
        if not octaves:
            return
        lefts, rights, owners = [], [], []
        for j in octaves:
            # Most activations bend between 1 and 16; panels there are narrow.
            pieces = min(2 ** (j + 1), 8) if 0 <= j <= 4 else 1 if j < 0 else 2
            edges = np.linspace(2.0**j, 2.0 ** (j + 1), pieces + 1)
            lefts += [edges[:-1], -edges[1:]]
            rights += [edges[1:], -edges[:-1]]
            owners += [j] * (2 * pieces)
        left, right, owner = np.concatenate(lefts), np.concatenate(rights), np.array(owners)
        first = sample(self.activation, left, right)
        with np.errstate(over="ignore", invalid="ignore"):
            mass = np.stack([first.values**2 @ WEIGHTS, first.slopes**2 @ WEIGHTS]) * first.half
        for j in octaves:
            self._mass[j] = np.nan_to_num(mass[:, owner == j].sum(axis=1))
        sizes = self._root_mean_squares()
        scales = {j: _tolerance(j, octave - 3, sizes) for j in octaves}
        scale = np.stack([scales[j] for j in owner], axis=-1)
        base = min(octaves)
        allowance = np.where(np.arange(base, max(octaves) + 1) < _COARSE, 600, 10_000)
        panels, origin = resolve(self.activation, left, right, scale, owner - base, allowance)
        for j in octaves:
            own = panels.where(owner[origin] == j)
            worst = np.array([tails(own.values).max(), tails(own.slopes).max()])
            if (worst > RESOLVED * sizes[j]).any():
                self._loose[j] = octave
            self._octaves[j] = own

    def _root_mean_squares(self) -> dict[int, Array]:
        """Of f and f' between -2^(j + 1) and 2^(j + 1), for every octave j."""
        octaves = np.array(sorted(self._mass))
        with np.errstate(over="ignore"):
            total = np.cumsum([self._mass[j] for j in octaves], axis=0)
            return dict(zip(octaves, np.sqrt(total / 2.0 ** (octaves[:, None] + 2)), strict=True))

    def _blame(self, panels: Panels, scale: float) -> None:
        for what, values in (("value", panels.values), ("derivative", panels.slopes)):
            wrong = np.isnan(values) & (np.abs(panels.points) < 38 * scale)
            if wrong.any():
                where = panels.points[wrong][np.abs(panels.points[wrong]).argmin()]
                raise ValueError(
                    f"activation={self.activation.name}: its {what} is nan at z={where:.6g}"
                )


def _tolerance(j: int, near: int, sizes: dict[int, Array]) -> Array:
    """What errors of f and f' in octave j count against, plain and squared, [2, 2].

    An error of f² in octave j weighs 2^j against the integral of f² up to octave near.
    """
    own, whole, share = sizes[j], sizes[near], 2.0 ** max(near - j, 0)
    with np.errstate(all="ignore"):
        squared = np.maximum(own**2, whole**2 * share)
        plain = np.maximum(own, np.fmin(squared / own, whole * share))
    return np.stack([plain, squared], axis=1)


def _chunks(chosen: Index, size: int) -> list[Index]:
    return np.array_split(chosen, -(-chosen.size * size // _CHUNK))


def _integrate(panels: Panels, core: Array, scale: Array) -> tuple[Array, Array]:
    shape = (scale.size, *panels.points.shape)
    z = panels.points.ravel() / scale[:, None]
    # Squared together with f, the root of the density neither overflows nor underflows.
    root = np.exp(-0.25 * z * z).reshape(shape)
    edge = np.abs(panels.points).min()
    moments, errors = np.empty((2, scale.size)), np.zeros((2, scale.size))
    with np.errstate(over="ignore", invalid="ignore"):
        for row, samples in enumerate((panels.values, panels.slopes)):
            density = samples * root
            if not np.isfinite(samples).all():
                density[root == 0] = 0.0
            density *= density
            left, below, above, right = core[row] ** 2
            moments[row] = (density @ WEIGHTS) @ panels.half + edge / 2 * (
                left + below + above + right
            )
            errors[row] = tails(density) @ (2 * panels.half)
            errors[row] += edge * (abs(left - below) + abs(right - above))
        moments, errors = moments / scale / np.sqrt(2 * np.pi), errors / scale / np.sqrt(2 * np.pi)
        errors += _ROUNDING * moments
    return moments, np.where(np.isposinf(moments), np.inf, errors)
