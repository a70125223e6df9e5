"""Mean-field theory of wide networks: how variance and correlation travel through depth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import elementwise

from stabilitykit._activations import Activation
from stabilitykit._gaussian import Panels

Array = NDArray[np.float64]

_CELL = math.log(4.0)
_LOWEST, _HIGHEST = -40, 63  # cells of q: 4^-40 to 4^64
_DEGREE = 27
_NODES = chebyshev.chebpts1(_DEGREE + 1)
_FIT = np.linalg.inv(chebyshev.chebvander(_NODES, _DEGREE))
_NOISE = 1e-14


class _Table:
    """V(q) = E[f(√q z)²] and S(q) = E[f'(√q z)²] as Chebyshev series in log q, cell by cell."""

    def __init__(self, panels: Panels) -> None:
        self._panels = panels
        self._slot = np.full(_HIGHEST - _LOWEST + 1, -1)
        self._series = np.empty((0, 2, _DEGREE + 1))

    def need(self, cells: NDArray[np.int64]) -> None:
        missing = [c for c in np.unique(cells) if self._slot[c - _LOWEST] < 0]
        for cell in missing:
            q = self.grid(int(cell))
            value, slope, *_ = self._panels.expectations(q)
            self._slot[cell - _LOWEST] = len(self._series)
            self._series = np.concatenate([self._series, (np.stack([value, slope]) @ _FIT.T)[None]])

    def grid(self, cell: int) -> Array:
        return np.exp(_CELL * (cell + (_NODES + 1) / 2))

    def __call__(self, q: Array, row: int = 0) -> Array:
        """Row 0 is V, row 1 is S, for any array of q in [0, inf]."""
        q = np.asarray(q, dtype=np.float64)
        lowest, highest = 4.0**_LOWEST, 4.0 ** (_HIGHEST + 1)
        inside = np.clip(q, lowest, highest)
        where = np.log(inside) / _CELL
        cell = np.clip(np.floor(where).astype(np.int64), _LOWEST, _HIGHEST)
        self.need(cell)
        series = self._series[self._slot[cell - _LOWEST], row]
        x = 2 * (where - cell) - 1
        value = chebyshev.chebval(x, np.moveaxis(series, -1, 0), tensor=False)
        return value


class MeanField:
    """Mean-field theory of a wide network with one activation.

    Args:
        activation: name, ``nn.Module`` or callable on tensors.
        weight_var: n·Var(w), a number or an array.
        bias_var: variance of the biases, a number or an array that broadcasts with weight_var.

    Examples:
        >>> field = MeanField("tanh", weight_var=(5 / 3) ** 2)
        >>> print(f"{field.fixed_point():.6f} {field.chi():.6f}")
        1.178480 1.209831
    """

    def __init__(
        self,
        activation: Any,
        weight_var: ArrayLike = 1.0,
        bias_var: ArrayLike = 0.0,
        **options: Any,
    ) -> None:
        weight = _variances("weight_var", weight_var)
        bias = _variances("bias_var", bias_var)
        try:
            self.weight_var, self.bias_var = np.broadcast_arrays(weight, bias)
        except ValueError:
            raise ValueError(
                f"weight_var has shape {weight.shape} and bias_var {bias.shape}; expected shapes "
                "that broadcast"
            ) from None
        self._activation = Activation(activation, options)
        self._panels = Panels(self._activation)
        self._moments = _Table(self._panels)
        self._fixed: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight_var.shape

    def lengths(self, depth: int, start: ArrayLike = 1.0) -> Array:
        """q_0 … q_depth of q ← σ_w² E[f(√q z)²] + σ_b², [depth + 1, ...] (Poole 2016, eq. 3)."""
        q = np.broadcast_to(
            _variances("start", start), np.broadcast_shapes(self.shape, np.shape(start))
        )
        steps = [np.array(q)]
        for _ in range(depth):
            steps.append(self._step(steps[-1]))
        return np.stack(steps)

    def _step(self, q: Array) -> Array:
        return self.weight_var * self._moments(q) + self.bias_var

    def fixed_point(self) -> Array:
        """q* that the length map reaches from q = 1; inf where lengths diverge."""
        if self._fixed is None:
            found = _limits(self._moments, self.weight_var.ravel(), self.bias_var.ravel(), 1.0)
            self._fixed = found.reshape(self.shape)
        return self._fixed[()]

    def chi(self, q: ArrayLike | None = None) -> Array:
        """χ = σ_w² E[f'(√q z)²] (Schoenholz 2017, eq. 6), at q* unless q is given."""
        q = self.fixed_point() if q is None else _variances("q", q)
        return (self.weight_var * self._moments(q, 1))[()]

    def depth_scale(self) -> Array:
        """ξ = 1/|ln χ|, inf where χ = 1 (Schoenholz 2017, eq. 9: ξ_c = -1/ln χ where χ < 1)."""
        with np.errstate(divide="ignore"):
            return (1 / np.abs(np.log(self.chi())))[()]

    def correlations(self, depth: int, start: ArrayLike = 0.5) -> Array:
        """c_0 … c_depth of two inputs at q*, [depth + 1, ...] (Poole 2016, eq. 5).

        E[f(u₁) f(u₂)] = Σ a_n² cⁿ with a_n the Hermite coefficients of f at q* (Mehler's formula).
        """
        c = np.asarray(start, dtype=np.float64)
        if not (np.abs(c) <= 1).all():
            raise ValueError(f"start={start!r} is not a correlation; expected numbers in [-1, 1]")
        q = np.asarray(self.fixed_point())
        q, c, weight, bias = np.broadcast_arrays(q, c, self.weight_var, self.bias_var)
        good = np.isfinite(q) & (q > 0)
        safe = np.where(good, q, 1.0)
        unique, inverse = np.unique(safe, return_inverse=True)
        power = self._panels.hermite(unique, 200)[:, inverse.reshape(q.shape)] ** 2
        rest = np.maximum(self._moments(safe) - power.sum(axis=0), 0)
        steps = [np.where(good, c, np.nan)]
        for _ in range(depth):
            c = steps[-1]
            mixed = np.polynomial.polynomial.polyval(c, power, tensor=False)
            mixed = mixed + rest * c ** len(power)
            steps.append(np.clip((weight * mixed + bias) / safe, -1, 1))
        return np.stack(steps)


def critical_weight_var(activation: Any, bias_var: ArrayLike = 0.0, **options: Any) -> Any:
    """The weight variance at which χ = 1 at the fixed point.

    Examples:
        >>> print(f"{critical_weight_var('tanh', bias_var=0.05):.6f}")
        1.760955
    """
    bias = _variances("bias_var", bias_var)
    table = _Table(Panels(Activation(activation, options)))

    def excess(t: Array, b: Array) -> Array:
        q = np.exp(t)
        return (table(q) / table(q, 1) + b) / q - 1  # with χ = 1, σ_w² = 1/S(q)

    low, high = np.full(bias.shape, math.log(1e-18)), np.full(bias.shape, math.log(1e18))
    root = elementwise.find_root(excess, (low, high), args=(bias,))
    q = np.exp(root.x)
    q = np.where(bias == 0, 4.0**_LOWEST, q)
    return (1 / table(q, 1))[()]


def _limits(table: _Table, weight: Array, bias: Array, start: float) -> Array:
    """The first fixed point in the direction in which iteration from start moves."""

    def drift(q: Array, w: Array, b: Array) -> Array:
        return w * table(q) + b - q

    first = drift(np.full(weight.shape, start), weight, bias)
    found = np.full(weight.shape, start)
    still = np.abs(first) <= _NOISE * start
    direction = np.sign(first)
    for sign in (1, -1):
        todo = np.flatnonzero((direction == sign) & ~still)
        found[todo] = np.inf if sign > 0 else 0.0
        near = np.full(weight.shape, start)
        cell = math.floor(math.log(start) / _CELL)
        while todo.size and _LOWEST <= cell <= _HIGHEST:
            q = np.exp(_CELL * (cell + (np.sort(_NODES) + 1) / 2))
            q = q[(q - start) * sign > 0][::sign]
            if q.size:
                value = table(q)
                d = (weight[todo, None] * value + bias[todo, None] - q) * sign / q
                crossed = d < -_NOISE
                hit = crossed.any(axis=1)
                at = crossed.argmax(axis=1)
                before = d > _NOISE
                # last node that is clearly before the crossing
                index = (
                    np.where(np.arange(q.size) < np.where(hit, at, q.size)[:, None], 1, 0) * before
                )
                lastpos = np.where(
                    index.any(axis=1), q.size - 1 - index[:, ::-1].argmax(axis=1), -1
                )
                near[todo] = np.where(lastpos >= 0, q[lastpos], near[todo])
                done = todo[hit]
                if done.size:
                    far = q[at[hit]]
                    a, b = np.log(near[done]), np.log(far)
                    root = elementwise.find_root(
                        lambda t, w, v: drift(np.exp(t), w, v) / np.exp(t),
                        (np.minimum(a, b), np.maximum(a, b)),
                        args=(weight[done], bias[done]),
                        tolerances={"xatol": 1e-15, "xrtol": 1e-15},
                    )
                    found[done] = np.exp(root.x)
                todo = todo[~hit]
            cell += sign
    return found


def _variances(name: str, value: ArrayLike) -> Array:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} is not a number or an array of numbers") from None
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(
            f"{name}={value!r} is not a variance; expected finite non-negative numbers"
        )
    return array
