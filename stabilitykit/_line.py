"""The loss along the step that an optimizer makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stabilitykit._restore import Randomness


class Line(NamedTuple):
    """The loss along the optimizer's step.

    Attributes:
        loss: before the step.
        promise: the change that the gradient promises, g·Δw; negative where the step descends.
        stretch: step length over the best one. Along Δw the loss is L + g·Δw k + c k²/2 to second
            order, its minimum at k = −g·Δw/c; the stretch is the inverse, c/|g·Δw|, which is lr·λ
            for plain gradient descent along an eigenvector of curvature λ.
        factor: the power of ten by which to multiply the step to bring the stretch below one.
        layer: the weight that changes most, relative to its size.
        ratio: that change.
        overall: the change of all parameters together, relative to their size.
    """

    loss: float
    promise: float
    stretch: float
    factor: float
    layer: str
    ratio: float
    overall: float


def stretch(loss: float, after: float, promise: float) -> float:
    """2 (ΔL − g·Δw) / |g·Δw|, infinite where the loss is not finite.

    Examples:
        A step of 3/λ on λx²/2 from x = 1 with λ = 1, thus to x = −2:

        >>> stretch(0.5, 2.0, -3.0)
        3.0
    """
    bend = after - loss - promise
    if abs(bend) < 16 * torch.finfo(torch.float32).eps * abs(loss):  # rounding of the loss
        return 0.0
    return 2 * bend / abs(promise) if bend == bend else float("inf")


# Derived: half a unit in the last place of float32; a weight moved by less stays where it is.
LOST = 2.0**-24


def along(
    model: nn.Module,
    before: dict[str, Tensor],
    loss: float,
    evaluate: Callable[[], float],
    randomness: Randomness,
) -> Line | None:
    """Measure the loss along the step that the optimizer has just made; None if it descends not.

    Args:
        model: after the step, with the gradients of the step.
        before: its parameters before the step.
        loss: before the step.
        evaluate: computes the loss.
        randomness: puts back what was there when `loss` was computed, parameters aside.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        moves = {n: p.detach() - before[n] for n, p in parameters.items()}
        promise = sum(
            float((_dense(p.grad).double() * moves[n].double()).sum())
            for n, p in parameters.items()
        )
        ratios = {
            n: float(moves[n].norm() / before[n].norm().clamp_min(1e-30))
            for n, p in parameters.items()
            if p.ndim > 1
        }
        overall = _norm(moves.values()) / max(_norm(before[n] for n in moves), 1e-30)
    layer = max(ratios, key=lambda n: ratios[n], default="")
    ratio = ratios.get(layer, 0.0)
    if ratio < LOST or not any(bool(move.any()) for move in moves.values()):
        return Line(loss, 0.0, 0.0, 0.0, layer, ratio, overall)
    if not promise < 0:
        return None

    def at(scale: float) -> float:
        randomness.restore()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name] + scale * moves[name])
        # With autograd, as the first loss was: without it layers may take other paths.
        return stretch(loss, evaluate(), scale * promise)

    value, factor = at(1.0), 1.0
    while value > 1 and factor > 1e-12 and at(factor) > 1:
        factor /= 10
    while value <= 1 and factor < 1e12 and at(10 * factor) <= 1:
        factor *= 10
    return Line(loss, promise, value, factor, layer, ratio, overall)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float(t.abs().double().norm()) for t in tensors))


def _dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient
