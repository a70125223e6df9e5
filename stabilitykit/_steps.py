"""One small step function for each method of `descend`, and checks of its hyperparameters.

A step function takes the point, the objective and a memory that it may change, and returns the
next point. Its keyword-only parameters are the method's hyperparameters, with their defaults.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabilitykit import _checks

Function = Callable[[Tensor], Tensor]
Memory = dict[str, Any]


class Objective:
    """A function with its derivatives at a point, all by autograd."""

    def __init__(self, function: Function) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable, got {function!r}")
        self.function = function

    def value(self, x: Tensor) -> Tensor:
        value = self.function(x)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"function must return a torch tensor, got {type(value).__name__} {value!r}"
            )
        if value.shape != ():
            raise ValueError(
                "function must map a point [d] to a scalar, as in x[..., 0]**2 + x[..., 1]**2; "
                f"at a point of shape {list(x.shape)} it returned shape {list(value.shape)}"
            )
        return value

    def gradient(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self._attached(x), x)[0]

    def hessian(self, x: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(self.value, x)

    def hessian_times(self, x: Tensor, vector: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        gradient = torch.autograd.grad(self._attached(x), x, create_graph=True)[0]
        if not gradient.requires_grad:  # the function is linear
            return torch.zeros_like(x)
        product = torch.autograd.grad(gradient, x, vector, materialize_grads=True)[0]
        return product.detach()

    def _attached(self, x: Tensor) -> Tensor:
        value = self.value(x)
        if not value.requires_grad:
            raise ValueError(
                "function must depend on its argument through torch operations; "
                "its value carries no gradient"
            )
        return value


def _gd(x: Tensor, objective: Objective, memory: Memory, *, lr: float) -> Tensor:
    return x - lr * objective.gradient(x)


def _momentum(
    x: Tensor, objective: Objective, memory: Memory, *, lr: float, beta: float = 0.9
) -> Tensor:
    velocity = memory.get("velocity", torch.zeros_like(x))
    memory["velocity"] = beta * velocity - lr * objective.gradient(x)
    return x + memory["velocity"]


def _nesterov(
    x: Tensor, objective: Objective, memory: Memory, *, lr: float, beta: float = 0.9
) -> Tensor:
    velocity = memory.get("velocity", torch.zeros_like(x))
    memory["velocity"] = beta * velocity - lr * objective.gradient(x + beta * velocity)
    return x + memory["velocity"]


def _adagrad(
    x: Tensor,
    objective: Objective,
    memory: Memory,
    *,
    lr: float = 0.01,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> Tensor:
    g = objective.gradient(x) + weight_decay * x
    taken = memory.setdefault("taken", 0)
    memory["taken"] += 1
    memory["sum"] = memory.get("sum", initial_accumulator_value) + g**2
    return x - lr / (1 + taken * lr_decay) * g / (memory["sum"].sqrt() + eps)


def _rmsprop(
    x: Tensor,
    objective: Objective,
    memory: Memory,
    *,
    lr: float = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> Tensor:
    g = objective.gradient(x) + weight_decay * x
    memory["mean"] = alpha * memory.get("mean", 0.0) + (1 - alpha) * g**2
    memory["velocity"] = momentum * memory.get("velocity", 0.0) + g / (memory["mean"].sqrt() + eps)
    return x - lr * memory["velocity"]


def _adam_direction(g: Tensor, memory: Memory, betas: tuple[float, float], eps: float) -> Tensor:
    """m̂ / (√v̂ + eps): both means divided by 1 − βᵗ, the weight that they have gathered so far."""
    memory["t"] = memory.get("t", 0) + 1
    corrected = []
    for name, beta, new in (("m", betas[0], g), ("v", betas[1], g**2)):
        memory[name] = beta * memory.get(name, 0.0) + (1 - beta) * new
        corrected.append(memory[name] / (1 - beta ** memory["t"]))
    return corrected[0] / (corrected[1].sqrt() + eps)


def _adam(
    x: Tensor,
    objective: Objective,
    memory: Memory,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Tensor:
    g = objective.gradient(x) + weight_decay * x
    return x - lr * _adam_direction(g, memory, betas, eps)


def _adamw(
    x: Tensor,
    objective: Objective,
    memory: Memory,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Tensor:
    direction = _adam_direction(objective.gradient(x), memory, betas, eps)
    return (1 - lr * weight_decay) * x - lr * direction


def _newton(x: Tensor, objective: Objective, memory: Memory, *, damping: float = 0.0) -> Tensor:
    curvature = objective.hessian(x) + damping * torch.eye(len(x), dtype=x.dtype)
    step, singular = torch.linalg.solve_ex(curvature, objective.gradient(x))
    if singular and curvature.isfinite().all():
        raise ValueError(
            f"damping={damping!r}: Newton's method needs an invertible Hessian plus damping, "
            f"and at the point {x.tolist()} it is singular"
        )
    return x - step


def _saddle_free_newton(
    x: Tensor, objective: Objective, memory: Memory, *, damping: float = 0.0
) -> Tensor:
    hessian = objective.hessian(x)
    if not hessian.isfinite().all():
        return torch.full_like(x, math.nan)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    sizes = eigenvalues.abs() + damping
    if (sizes == 0).any():
        raise ValueError(
            f"damping={damping!r}: |H|⁻¹ needs an invertible Hessian or damping, "
            f"and at the point {x.tolist()} the Hessian has the eigenvalue 0"
        )
    return x - vectors @ ((vectors.mT @ objective.gradient(x)) / sizes)


METHODS: dict[str, Callable[..., Tensor]] = {
    "gd": _gd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
    "newton": _newton,
    "saddle_free_newton": _saddle_free_newton,
}

_Domain = tuple[Callable[[float], bool], str]
_POSITIVE: _Domain = (lambda v: v > 0, "a positive finite number")
_NOT_NEGATIVE: _Domain = (lambda v: v >= 0, "a finite number of at least 0")
_SHARE: _Domain = (lambda v: 0 <= v < 1, "a number in [0, 1)")

# What each hyperparameter may be, whichever method takes it.
_DOMAINS: dict[str, _Domain] = {
    "lr": _POSITIVE,
    "beta": _SHARE,
    "betas": _SHARE,
    "alpha": _SHARE,
    "momentum": _NOT_NEGATIVE,
    "eps": _NOT_NEGATIVE,
    "lr_decay": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "initial_accumulator_value": _NOT_NEGATIVE,
    "damping": _NOT_NEGATIVE,
}


def _number(name: str, value: Any) -> Any:
    accept, expected = _DOMAINS[name]
    if name == "betas":
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"betas must be a pair of numbers in [0, 1), got {value!r}")
        for i in (0, 1):
            _checks.number(f"betas[{i}]", value[i], expected, accept)
        return float(value[0]), float(value[1])
    return _checks.number(name, value, expected, accept)


def hyperparameters(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The checked hyperparameters of a method, or an error that lists the ones it takes."""
    takes = {
        name: parameter.default
        for name, parameter in inspect.signature(METHODS[method]).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    listed = ", ".join(
        name if default is inspect.Parameter.empty else f"{name}={default!r}"
        for name, default in takes.items()
    )
    for name, value in given.items():
        if name not in takes:
            raise TypeError(f"method {method!r} takes {listed}; got {name}={value!r}")
    for name, default in takes.items():
        if default is inspect.Parameter.empty and name not in given:
            raise TypeError(f"method {method!r} takes {listed}; {name} is missing")
    return {name: _number(name, value) for name, value in given.items()}


def count(name: str, value: Any) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def tensor(name: str, value: Any) -> Tensor:
    """A float64 copy that shares nothing with the caller's."""
    try:
        given = torch.as_tensor(value)
        if given.is_complex():  # the imaginary part would be dropped
            raise TypeError
        return torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must hold numbers, got {value!r}") from None
