"""Mean-field theory of wide networks: how variance and correlation travel through depth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stabilitykit import _checks
from stabilitykit._activations import Activation
from stabilitykit._correlation import CorrelationSeries
from stabilitykit._fixedpoints import critical, limits
from stabilitykit._gaussian import GaussianMeans
from stabilitykit._lengthmap import HIGH, LOW, ROUNDING, SLOPE, LengthMap

Array = NDArray[np.float64]


class MeanField:
    """A wide fully connected network with one activation, on a whole grid of variances at once.

    Each layer is h ← W f(h) + b with independent weights of variance weight_var/fan_in and biases
    of variance bias_var. As the width grows, pre-activations become Gaussian with variance q, and

        q ← σ_w² E[f(√q z)²] + σ_b²,    χ = σ_w² E[f'(√q z)²]

    tell all: the first is the length map, and χ is the factor by which the squared gradient grows
    per layer backwards and a small squared difference of two inputs forwards. χ < 1 is the ordered
    phase, χ > 1 the chaotic one (Poole et al. 2016; Schoenholz et al. 2017). Derived.

    Args:
        activation: name, ``nn.Module`` or callable on tensors, as in `gain`.
        weight_var: σ_w² = n·Var(w), zero or more; a number or an array.
        bias_var: σ_b², zero or more; a number or an array that broadcasts with weight_var.
        **options: keyword arguments of the activation.

    Raises:
        TypeError: the activation or a variance is of the wrong kind.
        ValueError: unknown or unfit activation, negative or non-finite variances, or shapes that do
            not broadcast.

    Examples:
        Weights of gain 5/3 hold the activations of a tanh network, but gradients explode:

        >>> field = MeanField("tanh", weight_var=(5 / 3) ** 2)
        >>> print(f"q* = {field.fixed_point():.6f}, chi = {field.chi():.6f}")
        q* = 1.178480, chi = 1.209831

        A whole line of weight variances at once:

        >>> MeanField("relu", weight_var=[1.0, 2.0, 3.0]).fixed_point()
        array([ 0.,  1., inf])
    """

    def __init__(
        self,
        activation: Any,
        weight_var: ArrayLike = 1.0,
        bias_var: ArrayLike = 0.0,
        **options: Any,
    ) -> None:
        weight = _checks.variances("weight_var", weight_var)
        bias = _checks.variances("bias_var", bias_var)
        self.shape = _checks.shapes(weight_var=weight, bias_var=bias)
        self.weight_var = np.broadcast_to(weight, self.shape)
        self.bias_var = np.broadcast_to(bias, self.shape)
        self._means = GaussianMeans(Activation(activation, options))
        self._lengths = LengthMap(self._means)
        self._fixed: dict[bytes, Array] = {}

    def lengths(self, depth: int, start: ArrayLike = 1.0) -> Array:
        """The variances q_0 … q_depth of the pre-activations (Poole et al. 2016, length map).

        Args:
            depth: number of layers.
            start: q_0, zero or more; broadcasts with the grid.

        Returns:
            Array [depth + 1, ...]; inf once it has passed the largest float64.

        Raises:
            TypeError, ValueError: a depth that is no whole number from 0, a start that is negative,
                not finite or of a shape that does not broadcast.

        Examples:
            >>> MeanField("relu", weight_var=1.0).lengths(depth=3)
            array([1.   , 0.5  , 0.25 , 0.125])
        """
        depth = _checks.count("depth", depth)
        q = _checks.variances("start", start)
        q = np.broadcast_to(q, _checks.shapes(start=q, weight_var=self.weight_var))
        steps = [q]
        for _ in range(depth):
            # 0 · V(inf) is 0: without weights, nothing passes
            value = np.where(self.weight_var > 0, self._lengths(steps[-1]), 0.0)
            steps.append(self.weight_var * value + self.bias_var)
        return np.stack(steps)

    def fixed_point(self, start: ArrayLike = 1.0) -> Array | np.float64:
        """q*, where the length map ends when it starts at `start`.

        With several fixed points it is the one that iteration reaches. It is inf where lengths
        diverge, 0 where they die out, and `start` where every q is a fixed point (ReLU at σ_w² = 2
        without bias). A relative step below 1e-13 counts as none, q beyond 4³² ≈ 2e19 as diverged.
        Cycles do not occur: √q E[f(√q z)²] never falls with q.

        Args:
            start: q_0, between 4⁻²⁰ ≈ 1e-12 and 4³²; a number or an array like the grid.

        Returns:
            Array of the grid's shape, or a number.

        Raises:
            ValueError: a start outside these bounds, or of a shape that does not broadcast.

        Examples:
            Of GELU's fixed points here the first attracts, and beyond the second lengths diverge:

            >>> field = MeanField("gelu", weight_var=2.0, bias_var=0.05)
            >>> print(f"{field.fixed_point():.4f} {field.fixed_point(start=100.0):.4f}")
            0.1245 inf
        """
        first = _checks.variances("start", start)
        if (first < LOW).any() or (first > HIGH).any():
            raise ValueError(f"start={start!r} is not between {LOW:.3g} and {HIGH:.3g}")
        shape = _checks.shapes(start=first, weight_var=self.weight_var)
        key = first.tobytes() + str(shape).encode()
        if key not in self._fixed:
            grids = np.broadcast_arrays(self.weight_var, self.bias_var, first)
            flat = (np.array(grid).ravel() for grid in grids)
            self._fixed[key] = limits(self._lengths, *flat).reshape(shape)
        return self._fixed[key].copy()[()]

    def chi(self, q: ArrayLike | None = None) -> Array | np.float64:
        """χ = σ_w² E[f'(√q z)²], at q* unless q is given.

        The expected squared gradient grows by χ per layer on the way back. The slope is autograd's:
        a jump in f counts as flat, as it does in training. At q* = 0 and q* = inf it is the limit.

        Args:
            q: variances, broadcasting with the grid.

        Returns:
            Array of the grid's shape, or a number.

        Raises:
            ValueError: a q that is negative, not finite or of a shape that does not broadcast.

        Examples:
            >>> MeanField("relu", weight_var=[1.0, 2.0]).chi(q=1.0)
            array([0.5, 1. ])
        """
        if q is None:
            at = np.asarray(self.fixed_point())
        else:
            at = _checks.variances("q", q)
            _checks.shapes(q=at, weight_var=self.weight_var)
        return (self.weight_var * self._lengths(at, SLOPE))[()]

    def depth_scale(self) -> Array | np.float64:
        """ξ = 1/|ln χ|: layers over which the squared gradient changes by a factor e.

        In the ordered phase it is also the depth over which two inputs become alike (Schoenholz et
        al. 2017, ξ_c = -1/ln χ). inf at criticality, |χ - 1| < 1e-13; 0 where χ = 0.

        Returns:
            Array of the grid's shape, or a number; in layers.

        Examples:
            >>> print(f"{MeanField('tanh', 1.3, 0.05).depth_scale():.3f}")
            7.834
        """
        return _scale(np.asarray(self.chi()))

    def length_scale(self) -> Array | np.float64:
        """ξ_q = 1/|ln dq_{l+1}/dq_l|: layers over which q approaches q* by a factor e.

        Schoenholz et al. (2017), ξ_q = -1/ln(χ + σ_w² E[f''(√q* z) f(√q* z)]); the bracket is the
        slope of the length map at q*, taken here from the map itself. inf where the slope is 1 to
        1e-11; nan where q* is not finite.

        Returns:
            Array of the grid's shape, or a number; in layers.

        Examples:
            >>> print(f"{MeanField('tanh', 1.3, 0.05).length_scale():.3f}")
            1.785
        """
        q = np.asarray(self.fixed_point())
        finite = np.isfinite(q)
        slope = self.weight_var * self._lengths.growth(np.where(finite, q, 1.0))
        return _scale(np.where(finite, np.abs(slope), np.nan), rounding=1e-11)

    def correlations(self, depth: int, start: ArrayLike = 0.5) -> Array:
        """c_0 … c_depth of two inputs that both have variance q* (Poole et al. 2016, c-map).

        c ← (σ_w² E[f(u₁) f(u₂)] + σ_b²)/q*, with u₁, u₂ Gaussian of variance q* and correlation c.
        Good to 1e-12 for smooth f and 1e-7 with kinks while q* is below about 10, to 1e-4 at larger
        q* or with jumps. c = 1 stays 1.

        Args:
            depth: number of layers.
            start: c_0 in [-1, 1]; broadcasts with the grid.

        Returns:
            Array [depth + 1, ...]; nan where q* is 0 or inf.

        Raises:
            TypeError, ValueError: a depth that is no whole number from 0, a start outside [-1, 1].

        Examples:
            >>> MeanField("relu", weight_var=2.0).correlations(depth=2, start=0.0).round(4)
            array([0.    , 0.3183, 0.4937])
        """
        depth = _checks.count("depth", depth)
        c = _checks.numbers("start", start)
        if (np.abs(c) > 1).any():
            raise ValueError(f"start={start!r} is not a correlation; expected numbers in [-1, 1]")
        shape = _checks.shapes(start=c, weight_var=self.weight_var)
        q = np.broadcast_to(self.fixed_point(), shape)
        lives = np.isfinite(q) & (q > 0)
        safe = np.where(lives, q, 1.0)
        mixed = CorrelationSeries(self._means, safe)
        steps = [np.where(lives, np.broadcast_to(c, shape), np.nan)]
        for _ in range(depth):
            c = np.where(lives, steps[-1], 0.0)
            after = (self.weight_var * mixed(c) + self.bias_var) / safe
            after = np.where(c == 1, 1.0, np.clip(after, -1, 1))
            steps.append(np.where(lives, after, np.nan))
        return np.stack(steps)


def critical_weight_var(
    activation: Any, bias_var: ArrayLike = 0.0, **options: Any
) -> Array | np.float64:
    """σ_w² on the critical line χ = 1 at a given bias variance: the edge of chaos.

    Solves σ_w² = 1/E[f'(√q z)²] together with q = σ_w² E[f(√q z)²] + σ_b² (Poole et al. 2016;
    Schoenholz et al. 2017). Of several solutions it is the one with the smallest q, which is q → 0
    where f(0) = 0 and bias_var is 0. That fixed point may repel, as for GELU below bias_var 0.173:
    iteration then ends elsewhere. Where only q = inf has χ = 1 (ReLU with a bias), the limit is
    returned; inf where f has no slope.

    Args:
        activation: name, ``nn.Module`` or callable on tensors.
        bias_var: σ_b², a number or an array.
        **options: keyword arguments of the activation.

    Returns:
        Array of the shape of bias_var, or a number.

    Raises:
        TypeError, ValueError: as `MeanField`.

    Examples:
        >>> print(f"{critical_weight_var('tanh', bias_var=0.05):.6f}")
        1.760955
        >>> print(f"{critical_weight_var('relu'):.6f}")
        2.000000
    """
    bias = _checks.variances("bias_var", bias_var)
    lengths = LengthMap(GaussianMeans(Activation(activation, options)))
    return critical(lengths, bias.ravel()).reshape(bias.shape)[()]


def _scale(factor: Array, rounding: float = ROUNDING) -> Array | np.float64:
    """1/|ln factor|, inf where the factor is 1 up to rounding."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / np.abs(np.log(factor))
    return np.where(np.abs(factor - 1) < rounding, np.inf, scale)[()]
