"""What an activation does to the variance that passes through it, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from stabilitykit import _checks
from stabilitykit._activations import Activation
from stabilitykit._gaussian import GaussianMeans

_ROUGH = 1e-6
_MOMENTS = ("E[f²]", "E[f'²]")


@dataclass(frozen=True)
class Gain:
    """Gains of an activation at pre-activation variance q.

    Attributes:
        forward: sqrt(q / E[f(√q z)²]). Weights of variance forward²/fan_in give the next layer
            variance q again.
        backward: 1/sqrt(E[f'(√q z)²]). Weights of variance backward²/fan_out keep the second moment
            of the gradient.
        error: bound on the absolute error of both.
        q: the variance at which they hold.
    """

    forward: float
    backward: float
    error: float
    q: float


class GainRow(NamedTuple):
    """One row of `gain_table`.

    Attributes:
        name: nonlinearity, as torch names it.
        torch_gain: ``torch.nn.init.calculate_gain(name)``, None where torch has none.
        forward: our forward gain at q = 1.
        backward: our backward gain at q = 1.
        label: where torch's constant comes from (ours where torch has none): "derived", "fitted" or
            "convention".
        why: one sentence.
    """

    name: str
    torch_gain: float | None
    forward: float
    backward: float
    label: str
    why: str


def gain(activation: Any, q: float = 1.0, **options: Any) -> Gain:
    """Gain of any activation at pre-activation variance q, by quadrature.

    forward = sqrt(q / E[f(√q z)²]) and backward = 1/sqrt(E[f'(√q z)²]), z standard normal: what He
    et al. (2015), eqs. 10 and 14, derive for ReLU, here for any f. Derived.

    f is sampled on panels of √q z that are cut where it bends, so kinks and jumps need not be told;
    f' comes from autograd. Smooth functions come out to 1e-12 and kinked ones to 1e-8 or better.
    A bump narrower than the gaps between the first samples (0.02 near ±1, more farther out) can be
    missed, as by any quadrature.

    Args:
        activation: a name such as ``"tanh"`` or ``"LeakyReLU"``, an ``nn.Module`` or its class, or
            an elementwise callable on tensors.
        q: variance of the pre-activation, positive.
        **options: keyword arguments of the activation, such as ``negative_slope=0.2``.

    Returns:
        forward, backward, a bound on the error of both, and q. backward is inf where f is flat.

    Raises:
        TypeError: the activation is no name, module or callable, or does not return a tensor.
        ValueError: unknown name; q not positive and finite; an activation that is random, mixes
            elements, gives nan, hides its slope from autograd or has no finite expectation.

    Examples:
        >>> g = gain("tanh")
        >>> print(f"{g.forward:.6f} {g.backward:.6f}, error below 1e-12: {g.error < 1e-12}")
        1.592537 1.467414, error below 1e-12: True
        >>> print(f"{gain(torch.nn.functional.leaky_relu, negative_slope=0.2).forward:.6f}")
        1.386750
        >>> print(f"{gain(lambda z: z * torch.sigmoid(z), q=2.0).forward:.6f}")
        1.581976
    """
    variance = _checks.variances("q", q)
    if variance.ndim:
        raise ValueError(f"q={q!r} is an array; expected one number (second_moment takes arrays)")
    if variance == 0:
        raise ValueError(f"q={q!r} is not positive")
    moments, errors = _moments(activation, variance.reshape(1), options, (0, 1))
    (value, slope), (value_error, slope_error) = moments[:, 0].tolist(), errors[:, 0].tolist()
    forward = math.sqrt(float(variance) / value) if value else math.inf
    backward = 1 / math.sqrt(slope) if slope else math.inf
    error = max(
        forward * value_error / (2 * value) if value else 0.0,
        backward * slope_error / (2 * slope) if slope else 0.0,
    )
    return Gain(forward, backward, error, float(variance))


def second_moment(
    activation: Any, q: ArrayLike = 1.0, **options: Any
) -> NDArray[np.float64] | np.float64:
    """E[f(√q z)²], z standard normal: the second moment of the activation's output.

    Args:
        activation: as in `gain`.
        q: variances, zero or more, any shape; at 0 the limit from above.
        **options: keyword arguments of the activation.

    Returns:
        A number or an array of the shape of q.

    Raises:
        TypeError, ValueError: as `gain`.

    Examples:
        >>> second_moment("relu", [0.0, 1.0, 3.0])
        array([0. , 0.5, 1.5])
    """
    variances = _checks.variances("q", q)
    moments, _ = _moments(activation, variances.ravel(), options, (0,))
    return moments[0].reshape(variances.shape)[()]


def slope_moment(
    activation: Any, q: ArrayLike = 1.0, **options: Any
) -> NDArray[np.float64] | np.float64:
    """E[f'(√q z)²], z standard normal: the factor on the gradient's second moment.

    Args:
        activation: as in `gain`.
        q: variances, zero or more, any shape; at 0 the limit from above.
        **options: keyword arguments of the activation.

    Returns:
        A number or an array of the shape of q.

    Raises:
        TypeError, ValueError: as `gain`.

    Examples:
        >>> print(f"{slope_moment('tanh', 1.178480):.6f}")
        0.435539
    """
    variances = _checks.variances("q", q)
    moments, _ = _moments(activation, variances.ravel(), options, (1,))
    return moments[1].reshape(variances.shape)[()]


def _moments(
    activation: Any, q: NDArray[np.float64], options: dict[str, Any], rows: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    means = GaussianMeans(Activation(activation, options))
    moments, errors = means.moments(q)
    for row in rows:
        for i in np.flatnonzero(moments[row] == 0):
            if means.activation(math.sqrt(q[i]) * np.linspace(-8, 8, 160))[row].any():
                raise ValueError(
                    f"activation={means.activation.name}: {_MOMENTS[row]} at q={q[i]:.6g} is below "
                    "the smallest float64"
                )
        wrong = ~np.isfinite(moments[row]) | (errors[row] > _ROUGH * moments[row])
        if wrong.any():
            i = wrong.argmax()
            raise ValueError(
                f"activation={means.activation.name}: {_MOMENTS[row]} at q={q[i]:.6g} has no six "
                f"digits ({moments[row, i]:.6g} ± {errors[row, i]:.2g}); f is too rough, or the "
                "expectation is not finite"
            )
    return moments, errors


def gain_table() -> tuple[GainRow, ...]:
    """Torch's gain constants beside the gains that the definition gives at q = 1.

    Rows are every nonlinearity that ``torch.nn.init.calculate_gain`` knows, with its defaults, and
    common activations that it does not know.

    Returns:
        Rows of name, torch_gain, forward, backward, label and why.

    Examples:
        >>> rows = {row.name: row for row in gain_table()}
        >>> rows["selu"].torch_gain, rows["selu"].label
        (0.75, 'fitted')
        >>> rows["gelu"].torch_gain is None
        True
    """
    rows = []
    for name, (activation, label, why) in _TABLE.items():
        ours = gain(activation)
        try:
            constant = float(torch.nn.init.calculate_gain(name))  # type: ignore[arg-type]
        except ValueError:
            constant = None
        rows.append(GainRow(name, constant, ours.forward, ours.backward, label, why))
    return tuple(rows)


_LINEAR = ("identity", "derived", "A linear map keeps the second moment when n·Var(w) = 1.")
_OURS = "Torch has no constant; these follow from the definition at q = 1."
_TABLE = {
    "linear": _LINEAR,
    "conv1d": _LINEAR,
    "conv2d": _LINEAR,
    "conv3d": _LINEAR,
    "conv_transpose1d": _LINEAR,
    "conv_transpose2d": _LINEAR,
    "conv_transpose3d": _LINEAR,
    "sigmoid": (
        "sigmoid",
        "convention",
        "Torch's 1 leaves the weights as they are: it is neither gain, and with it the squared "
        "gradient shrinks to 0.0557 of itself per layer.",
    ),
    "tanh": (
        "tanh",
        "convention",
        "Torch derives 5/3 nowhere and it is not 1/std at q = 1: it holds the output's std at "
        "0.651347 at any depth, while the squared gradient grows by 1.209831 per layer.",
    ),
    "relu": ("relu", "derived", "ReLU keeps half of the second moment, at every q."),
    "leaky_relu": (
        "leaky_relu",
        "derived",
        "It keeps (1 + negative_slope²)/2 of the second moment, at every q.",
    ),
    "selu": (
        "selu",
        "fitted",
        "Torch's source says that 3/4 was found empirically: it holds the output's std at 0.1996, "
        "not SELU's designed 1, and steadies the squared gradient at 1.0037 per layer (1.0716 with "
        "the paper's gain of 1).",
    ),
    "gelu": ("gelu", "derived", _OURS),
    "silu": ("silu", "derived", _OURS),
    "mish": ("mish", "derived", _OURS),
    "elu": ("elu", "derived", _OURS),
    "softplus": ("softplus", "derived", _OURS),
    "hardtanh": ("hardtanh", "derived", _OURS),
    "hardswish": ("hardswish", "derived", _OURS),
    "softsign": ("softsign", "derived", _OURS),
}
