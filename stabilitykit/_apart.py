"""How far samples of a batch differ: E[(x_a − x_b)²]/(2 E[x²]) of two of them, per operation.

It is 1 minus their correlation about zero. Layers with weights keep what differs and add a bias
that does not; functions of Gaussian entries map it by Mehler's formula, E[f(x_a) f(x_b)] =
Σ a_n² cⁿ at correlation c, with a_n the Hermite coefficients of f (Poole et al. 2016). What is
carried is 1 − c, since it is far below the rounding of c where a signal is lost.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from stabilitykit._gaussian import GaussianMeans
from stabilitykit._law import Law

_TERMS = 64  # convention: beyond, what differs by 1e-3 or more is taken for different
_SMALL = 1e-3  # convention: below, f is linear over the difference; relu then errs by 1 %
_ROUNDING = 1e-9


def apart(value: Tensor) -> float:
    """As measured, over all pairs of different samples; 1 for a single one.

    Examples:
        >>> apart(torch.tensor([[1.0, 2.0], [1.0, -2.0]])), apart(torch.ones(2, 3))
        (1.6, 0.0)
    """
    if value.dim() < 2 or len(value) < 2:
        return 1.0
    value = (value if value.layout == torch.strided else value.to_dense()).detach().double()
    whole = float(value.square().mean())
    if not (whole > 0 and math.isfinite(whole)):
        return 0.0
    centred = value - value.mean(0)  # in two passes: var(0) takes several times as long
    return float(centred.square().mean()) * len(value) / (len(value) - 1) / whole


def passed(share: float, before: Tensor, after: Tensor) -> float:
    """Through what no law of two samples knows: the measured change of the share."""
    start = apart(before)
    return share * apart(after) / start if start > _ROUNDING else share


def through(
    share: float, sizes: float, law: Law, means: GaussianMeans, square: float, image: Tensor,
    steepness: Tensor,
) -> float:  # fmt: skip
    """Through a function f of entries.

    Samples differ in size, √q, and in direction. Sizes go on as slopes have it: √q_a − √q_b gives
    (√q_a − √q_b)²·E[z² f'(√q z)²]/E[f²], which is exact for relu. Of the share before, `sizes` is
    the part that they have; `image` and `steepness` are f and f' at the atoms of the law, scaled to
    the mean square.
    """
    whole, linear = float(image.square().mean()), square * float(steepness.square().mean())
    if not (whole > 0 and math.isfinite(whole + linear)):
        return 0.0
    stretched = square * float((law.values * steepness).square().mean()) / whole
    sizes = min(max(sizes, 0.0), share, 1 - _ROUNDING)
    after = min(sizes * stretched, 1.0)
    share = (share - sizes) / (1 - sizes)  # of samples of one size
    turned = _mehler(share, means, square) if law.gaussian else None
    if turned is None:
        # No series is at hand: between what slopes make of small differences and independence,
        # 1 − (1 − u)^χ, as if f had one Hermite coefficient.
        most = max(1 - law.mean**2, 1e-12)
        turned = max(1 - float(image.mean()) ** 2 / whole, 1e-12)
        chi = linear / whole * most / turned
        turned *= -math.expm1(chi * math.log1p(-min(share / most, 1 - 1e-12)))
    return turned + after - turned * after


def _mehler(share: float, means: GaussianMeans, square: float) -> float | None:
    """For Gaussian entries; None where the moments of f are not known well."""
    scale = np.array([square])
    moments, errors = means.moments(scale)
    whole = float(moments[0, 0])
    if not (whole > 0 and np.isfinite(moments).all() and errors[0, 0] <= whole):
        return None
    if share < _SMALL:
        return share * square * float(moments[1, 0]) / whole
    powers = means.hermite(scale, _TERMS)[:, 0] ** 2
    rest = max(whole - float(powers.sum()), 0.0)
    return (float(powers @ (1 - (1 - share) ** np.arange(_TERMS))) + rest) / whole
