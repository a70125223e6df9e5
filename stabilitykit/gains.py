"""What an activation does to the variance that passes through it, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from stabilitykit._activations import Activation
from stabilitykit._gaussian import Panels


@dataclass(frozen=True)
class Gain:
    """Gains of an activation at pre-activation variance q.

    Attributes:
        forward: sqrt(q / E[f(√q z)²]); weights of std forward/√fan_in keep the second moment.
        backward: 1/sqrt(E[f'(√q z)²]); weights of std backward/√fan_out keep the gradient's.
        error: bound on the absolute error of both.
        q: the pre-activation variance they belong to.
    """

    forward: float
    backward: float
    error: float
    q: float


class GainRow(NamedTuple):
    """One row of gain_table: torch_gain is None where torch has no constant."""

    name: str
    torch_gain: float | None
    forward: float
    backward: float
    label: str
    why: str


def gain(activation: Any, q: float = 1.0, **options: Any) -> Gain:
    """Gain of any activation, by quadrature.

    forward = sqrt(q / E[f(√q z)²]) and backward = 1 / sqrt(E[f'(√q z)²]) with z standard normal
    (He et al. 2015, eqs. 7 and 14, for ReLU; here for any f).

    Args:
        activation: name, ``nn.Module`` or callable on tensors.
        q: variance of the pre-activation, positive.
        **options: keyword arguments of the activation, such as ``negative_slope=0.2``.

    Returns:
        Gain with forward, backward, a bound on the error of both, and q.

    Raises:
        TypeError: the activation is not a name, module or callable, or returns no tensor.
        ValueError: unknown name, q not positive and finite, an activation that is random, mixes
            elements, gives nan or cannot be integrated.

    Examples:
        >>> g = gain("tanh")
        >>> print(f"{g.forward:.6f} {g.backward:.6f}")
        1.592537 1.467414
        >>> print(f"{gain('leaky_relu', negative_slope=0.2).forward:.6f}")
        1.386750
    """
    variances = check_q(q, positive=True)
    if variances.ndim:
        raise ValueError(f"q={q!r} is an array; expected one number (second_moment takes arrays)")
    panels = Panels(Activation(activation, options))
    value, slope, value_error, slope_error = (
        float(part[0]) for part in panels.expectations(variances.reshape(1))
    )
    variance = float(variances)
    forward = math.sqrt(variance / value) if value else math.inf
    backward = 1 / math.sqrt(slope) if slope else math.inf
    error = max(
        forward * value_error / (2 * value) if value else 0.0,
        backward * slope_error / (2 * slope) if slope else 0.0,
    )
    return Gain(forward, backward, error, variance)


def second_moment(
    activation: Any, q: ArrayLike = 1.0, **options: Any
) -> NDArray[np.float64] | np.float64:
    """E[f(√q z)²] for z standard normal.

    Examples:
        >>> print(f"{second_moment('relu', 3.0):.6f}")
        1.500000
    """
    return _moment(activation, q, options, 0)


def slope_moment(
    activation: Any, q: ArrayLike = 1.0, **options: Any
) -> NDArray[np.float64] | np.float64:
    """E[f'(√q z)²] for z standard normal.

    Examples:
        >>> print(f"{slope_moment('relu', 3.0):.6f}")
        0.500000
    """
    return _moment(activation, q, options, 1)


def _moment(activation: Any, q: ArrayLike, options: dict[str, Any], row: int) -> Any:
    variances = check_q(q)
    panels = Panels(Activation(activation, options))
    flat = np.maximum(variances.ravel(), 1e-200)
    return panels.expectations(flat)[row].reshape(variances.shape)[()]


def check_q(q: ArrayLike, *, positive: bool = False) -> NDArray[np.float64]:
    """Variances as a float64 array, or an error that names q."""
    try:
        variances = np.asarray(q, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"q={q!r} is not a number or an array of numbers") from None
    if (
        not np.isfinite(variances).all()
        or (variances < 0).any()
        or (positive and (variances == 0).any())
    ):
        kind = "positive" if positive else "non-negative"
        raise ValueError(f"q={q!r} is not a variance; expected finite {kind} numbers")
    return variances


def gain_table() -> tuple[GainRow, ...]:
    """Torch's constants beside the gains that the definition gives, at q = 1.

    Examples:
        >>> {row.name: row.label for row in gain_table()}["tanh"]
        'convention'
    """
    rows = []
    for name, (activation, label, why) in _TABLE.items():
        ours = gain(activation)
        try:
            constant = float(torch.nn.init.calculate_gain(name))
        except ValueError:
            constant = None
        rows.append(GainRow(name, constant, ours.forward, ours.backward, label, why))
    return tuple(rows)


_SAME = "A linear map keeps the second moment when n·Var(w) = 1."
_NONE = "Torch has no constant; the gain follows from the definition."
_TABLE = {
    **dict.fromkeys(
        (
            "linear",
            "conv1d",
            "conv2d",
            "conv3d",
            "conv_transpose1d",
            "conv_transpose2d",
            "conv_transpose3d",
        ),
        ("identity", "derived", _SAME),
    ),
    "sigmoid": (
        "sigmoid",
        "convention",
        "Torch's 1 leaves the weights unscaled; it is neither gain of the sigmoid.",
    ),
    "tanh": (
        "tanh",
        "convention",
        "5/3 is not 1/std at q = 1; it holds the output's std at 0.651347 at any depth.",
    ),
    "relu": ("relu", "derived", "ReLU keeps half of the second moment at every q, so √2."),
    "leaky_relu": (
        "leaky_relu",
        "derived",
        "It keeps (1 + slope²)/2 of the second moment at every q.",
    ),
    "selu": (
        "selu",
        "fitted",
        "3/4 was found by trying; it holds the output's std at 0.2010, not at SELU's designed 1.",
    ),
    **{
        name: (name, "derived", _NONE)
        for name in ("gelu", "silu", "mish", "elu", "softplus", "hardtanh", "hardswish", "softsign")
    },
}
