"""Gaussian expectations of an activation with kinks and jumps at unknown places.

E[f(√q z)²] is an integral over u = √q z in which q enters only through the Gaussian weight, and the
kinks of f stay where they are. So f is resolved once, on panels in u that are cut where f bends,
and the same samples serve every q.

A panel carries 33 Chebyshev points, its end points moved inward by two units in the last place: a
kink on an end point disturbs neither side, and a kink anywhere else shows in the last Chebyshev
coefficients of f'. Panels whose last coefficients have not died are cut into eight, all at once,
until they are resolved or as narrow as float64 allows; what is left there is a breakpoint.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from stabilitykit._activations import Activation

Array = NDArray[np.float64]

DEGREE = 32
SPLIT = 8
REACH = 38.5  # the standard normal density underflows here
INNER = 36  # octaves below √q that are resolved; the rest weighs 2^-36
RESOLVED = 1e-13  # last coefficients against the root mean square of f
MAX_PANELS = 6000
_EPS = np.finfo(np.float64).eps

_NODES = chebyshev.chebpts2(DEGREE + 1)
_TO_COEFFICIENTS = np.linalg.inv(chebyshev.chebvander(_NODES, DEGREE))
_MOMENTS = np.array(
    [0.0 if k % 2 else 2.0 / (1 - k * k) for k in range(DEGREE + 1)]
)  # ∫ T_k over [-1, 1]
_WEIGHTS = _MOMENTS @ _TO_COEFFICIENTS


def _tails(samples: Array) -> Array:
    """Largest of the last three Chebyshev coefficients; samples [panels, nodes] -> [panels]."""
    return np.abs(samples @ _TO_COEFFICIENTS[-3:].T).max(axis=1)


def _points(left: Array, right: Array) -> Array:
    middle, half = (left + right) / 2, (right - left) / 2
    points = middle[:, None] + half[:, None] * _NODES
    tiny = np.finfo(np.float64).tiny
    points[:, 0] = np.minimum(left + 2 * _EPS * np.abs(left) + tiny, middle)
    points[:, -1] = np.maximum(right - 2 * _EPS * np.abs(right) - tiny, middle)
    return np.clip(points, points[:, :1], points[:, -1:])


class Panels:
    """Samples of f and f' on panels of u that resolve them, grown on demand by octaves."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.breakpoints: list[float] = []
        self._octaves: dict[int, tuple[Array, Array, Array, Array]] = {}
        self._samples: dict[tuple[int, int], tuple[Array, ...]] = {}

    def expectations(self, q: Array) -> tuple[Array, Array, Array, Array]:
        """E[f²], E[f'²] and a bound on the error of each, for a flat array of q > 0."""
        results = np.empty((4, q.size))
        scale = np.sqrt(q)
        low = np.frexp(scale)[1] - 1
        for octave in np.unique(low):
            chosen = np.flatnonzero(low == octave)
            samples = self._around(int(octave))
            for part in np.array_split(chosen, max(1, chosen.size * samples[0].size // 2_000_000)):
                results[:, part] = _integrate(samples, scale[part])
        return results[0], results[1], results[2], results[3]

    def hermite(self, q: Array, terms: int) -> Array:
        """Coefficients E[f(√q z) h_n(z)], h_n the normalised Hermite polynomials; [terms, q]."""
        results = np.empty((terms, q.size))
        scale = np.sqrt(q)
        low = np.frexp(scale)[1] - 1
        for octave in np.unique(low):
            points, half, f, _, _, _ = self._around(int(octave))
            mass = (half[:, None] * _WEIGHTS).ravel()
            for i in np.flatnonzero(low == octave):
                z = points.ravel() / scale[i]
                # Hermite functions h_n(z)·φ(z)^½ stay bounded where the polynomials overflow.
                near = np.abs(z) < REACH
                z, weight = z[near], (mass * f.ravel())[near] / scale[i]
                root = np.exp(-0.25 * z * z) / (2 * np.pi) ** 0.25
                before, here = np.zeros_like(z), root
                for n in range(terms):
                    results[n, i] = weight @ (here * root)
                    before, here = here, (z * here - np.sqrt(n) * before) / np.sqrt(n + 1)
        return results

    def _around(self, octave: int) -> tuple[Array, ...]:
        """Everything that matters for √q in [2^octave, 2^(octave + 1))."""
        first, last = octave - INNER, octave + 1 + int(np.ceil(np.log2(REACH)))
        key = (first, last)
        if key not in self._samples:
            missing = [j for j in range(first, last) if j not in self._octaves]
            if missing:
                self._build(missing)
            parts = [self._octaves[j] for j in range(first, last)]
            edge = 2.0**first
            inner = np.array([-edge, -np.finfo(np.float64).tiny, np.finfo(np.float64).tiny, edge])
            f, df = self.activation(inner)
            core = np.stack([f, df])
            self._samples[key] = (
                *(np.concatenate([part[i] for part in parts]) for i in range(4)),
                np.array([edge]),
                core,
            )
        return self._samples[key]

    def _build(self, octaves: list[int]) -> None:
        left, right, owner = [], [], []
        for j in octaves:
            pieces = min(2 ** (j + 1), 8) if 0 <= j <= 4 else (1 if j < 0 else 2)
            edges = np.linspace(2.0**j, 2.0 ** (j + 1), pieces + 1)
            left += [*edges[:-1], *-edges[1:]]
            right += [*edges[1:], *-edges[:-1]]
            owner += [j] * (2 * pieces)
        panels = _Resolver(self.activation).resolve(
            np.array(left), np.array(right), np.array(owner)
        )
        points, half, f, df, owners, breakpoints = panels
        self.breakpoints = sorted({*self.breakpoints, *breakpoints})
        for j in octaves:
            own = owners == j
            self._octaves[j] = (points[own], half[own], f[own], df[own])


class _Resolver:
    """Adaptive cutting of a set of panels."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def sample(self, left: Array, right: Array) -> tuple[Array, Array, Array]:
        points = _points(left, right)
        f, df = self.activation(points.ravel())
        return points, f.reshape(points.shape), df.reshape(points.shape)

    def resolve(self, left: Array, right: Array, owner: NDArray[np.int64]) -> tuple:
        points, f, df = self.sample(left, right)
        scales = _root_mean_squares(left, right, f, df)
        origin = np.arange(left.size)
        kept: list[tuple[Array, ...]] = []
        found: list[tuple[int, float]] = []
        roots = (left, right, owner)
        tails = np.full(left.size, np.inf)
        total = 0
        while left.size:
            excess = self._excess(f, df, scales[:, origin])
            bad = excess > 1
            width = right - left
            floor = 8 * _EPS * np.maximum(np.abs(left), np.abs(right))
            narrow = bad & (width <= floor)
            found += [
                (int(o), float(c))
                for o, c in zip(origin[narrow], ((left + right) / 2)[narrow], strict=True)
            ]
            stuck = bad & ~narrow & (excess < 1e6) & (excess > 0.25 * tails)
            done = ~bad | narrow | stuck
            kept.append((left[done], right[done], f[done], df[done], points[done], origin[done]))
            total += int(done.sum())
            cut = ~done
            if total + SPLIT * int(cut.sum()) > MAX_PANELS:
                kept.append((left[cut], right[cut], f[cut], df[cut], points[cut], origin[cut]))
                break
            edges = left[cut, None] + width[cut, None] * np.linspace(0, 1, SPLIT + 1)
            edges[:, -1] = right[cut]
            left, right = edges[:, :-1].ravel(), edges[:, 1:].ravel()
            origin = np.repeat(origin[cut], SPLIT)
            # A kink worsens one child; noise worsens most of them, and cutting does not help it.
            parent = np.repeat(excess[cut], SPLIT)
            if left.size:
                points, f, df = self.sample(left, right)
                child = self._excess(f, df, scales[:, origin]).reshape(-1, SPLIT)
                most = np.repeat((child > 1).sum(axis=1) >= SPLIT - 2, SPLIT)
                tails = np.where(most, parent, np.inf)
        return self._assemble(kept, found, roots)

    def _excess(self, f: Array, df: Array, scales: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.maximum(_tails(f) / scales[0], _tails(df) / scales[1])
        return np.nan_to_num(ratio / RESOLVED, nan=0.0, posinf=0.0)

    def _assemble(self, kept: list, found: list, roots: tuple) -> tuple:
        columns = [np.concatenate([part[i] for part in kept]) for i in range(6)]
        left, right, f, df, points, origin = columns
        broken = sorted({o for o, _ in found})
        if broken:
            # With the breakpoints known, a few wide panels replace the cascade around each kink.
            lefts, rights, owners = [], [], []
            for o in broken:
                edges = sorted({roots[0][o], roots[1][o], *(c for k, c in found if k == o)})
                lefts += edges[:-1]
                rights += edges[1:]
                owners += [o] * (len(edges) - 1)
            new = self._refine(np.array(lefts), np.array(rights), np.array(owners))
            stay = ~np.isin(origin, broken)
            columns = [np.concatenate([c[stay], n]) for c, n in zip(columns, new, strict=True)]
            left, right, f, df, points, origin = columns
        half = (right - left) / 2
        return points, half, f, df, roots[2][origin], [c for _, c in found]

    def _refine(self, left: Array, right: Array, origin: Array) -> tuple[Array, ...]:
        kept = []
        for level in range(12):
            points, f, df = self.sample(left, right)
            scale = (
                np.maximum(np.abs(f).max(axis=1), 1e-300),
                np.maximum(np.abs(df).max(axis=1), 1e-300),
            )
            bad = np.maximum(_tails(f) / scale[0], _tails(df) / scale[1]) > 10 * RESOLVED
            if level == 11 or left.size > MAX_PANELS:
                bad[:] = False
            done = ~bad
            kept.append((left[done], right[done], f[done], df[done], points[done], origin[done]))
            if not bad.any():
                break
            middle = (left[bad] + right[bad]) / 2
            left, right = np.concatenate([left[bad], middle]), np.concatenate([middle, right[bad]])
            origin = np.concatenate([origin[bad], origin[bad]])
        return tuple(np.concatenate([part[i] for part in kept]) for i in range(6))


def _root_mean_squares(left: Array, right: Array, f: Array, df: Array) -> Array:
    """Root mean square of f and f' over [-|u|, |u|] for each panel, [2, panels]."""
    outer = np.maximum(np.abs(left), np.abs(right))
    order = np.argsort(outer)
    scales = np.empty((2, left.size))
    for row, values in enumerate((f, df)):
        with np.errstate(over="ignore", invalid="ignore"):
            mass = (values**2 @ _WEIGHTS) * (right - left) / 2
            total = np.cumsum(mass[order])
        # Both panels of a mirrored pair see the same total.
        last = np.searchsorted(outer[order], outer, side="right") - 1
        scales[row] = np.sqrt(np.maximum(total[last], 0) / (2 * outer))
    return np.maximum(scales, np.finfo(np.float64).tiny)


def _integrate(samples: tuple[Array, ...], scale: Array) -> Array:
    points, half, f, df, edge, core = samples
    z = points.ravel() / scale[:, None]
    root = (
        np.exp(-0.25 * z * z) / (2 * np.pi) ** 0.25
    )  # squared with f: neither over- nor underflows
    results = np.empty((4, scale.size))
    panels = (scale.size, *points.shape)
    for row, values in enumerate((f, df)):
        with np.errstate(over="ignore", invalid="ignore"):
            density = ((values.ravel() * root) ** 2).reshape(panels)
            density = np.where(root.reshape(panels) == 0, 0.0, density)
            sums = (density @ _WEIGHTS) * half
            tails = np.abs(density @ _TO_COEFFICIENTS[-3:].T).max(axis=2) * 2 * half
            inner = core[row] ** 2
            centre = edge / 2 * inner.sum()
            spread = edge * (abs(inner[0] - inner[1]) + abs(inner[3] - inner[2]))
            weight = 1 / np.sqrt(2 * np.pi)
            results[row] = (sums.sum(axis=1) + weight * centre) / scale
            results[2 + row] = (tails.sum(axis=1) + weight * spread) / scale
    results[2:] += 32 * _EPS * results[:2]
    return results
