"""Paths of optimisers over functions of a few variables, and Newton's method for roots.

Each method is one small step function; its keyword-only parameters are its hyperparameters, and
`METHODS` names it. All arithmetic is float64.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """What a descent visited.

    Attributes:
        points: float64 array [steps + 1, d]; row k is the point after k steps, row 0 the start.
            After a divergence only the finite points before it: [diverged, d].
        values: the function at those points, float64 array [steps + 1] (or [diverged]).
        method: name of the method.
        diverged: the first step whose point or value was not finite, None if there was none.
    """

    points: np.ndarray
    values: np.ndarray
    method: str
    diverged: int | None = None


@dataclass(frozen=True)
class Root:
    """A root and the way to it.

    Attributes:
        value: the last iterate.
        iterates: float64 array [steps + 1], from the start to the root.
    """

    value: float
    iterates: np.ndarray


class _Objective:
    """A function with its derivatives at a point, all by autograd in float64."""

    def __init__(self, function: Function) -> None:
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
        value = self.value(x)
        if not value.requires_grad:
            raise ValueError(
                "function must depend on its argument through torch operations; "
                "its value carries no gradient"
            )
        return torch.autograd.grad(value, x)[0]

    def hessian(self, x: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(self.value, x)


def _gd(x: Tensor, objective: _Objective, memory: dict[str, Tensor], *, lr: float) -> Tensor:
    return x - lr * objective.gradient(x)


def _momentum(
    x: Tensor, objective: _Objective, memory: dict[str, Tensor], *, lr: float, beta: float = 0.9
) -> Tensor:
    velocity = memory.get("velocity", torch.zeros_like(x))
    memory["velocity"] = beta * velocity - lr * objective.gradient(x)
    return x + memory["velocity"]


def _newton(
    x: Tensor, objective: _Objective, memory: dict[str, Tensor], *, damping: float = 0.0
) -> Tensor:
    curvature = objective.hessian(x) + damping * torch.eye(len(x), dtype=x.dtype)
    step, singular = torch.linalg.solve_ex(curvature, objective.gradient(x))
    if singular:
        raise ValueError(
            f"damping={damping!r}: Newton's method needs an invertible Hessian plus damping, "
            f"and at the point {x.tolist()} it is singular"
        )
    return x - step


METHODS: dict[str, Callable[..., Tensor]] = {"gd": _gd, "momentum": _momentum, "newton": _newton}

# What each hyperparameter may be, whichever method takes it.
_DOMAINS: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda v: v > 0, "a positive finite number"),
    "beta": (lambda v: 0 <= v < 1, "a number in [0, 1)"),
    "damping": (lambda v: v >= 0, "a finite number of at least 0"),
}


def _number(name: str, value: Any) -> float:
    accept, expected = _DOMAINS[name]
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    if not (math.isfinite(value) and accept(float(value))):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return float(value)


def _hyperparameters(method: str, given: dict[str, Any]) -> dict[str, float]:
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


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must hold numbers, got {value!r}") from None


def descend(
    function: Function,
    start: Sequence[float] | np.ndarray | Tensor,
    method: str,
    *,
    lr: float | None = None,
    steps: int,
    **hyper: float,
) -> Path:
    """Follow an optimiser from a start and keep every point.

    With gradient g and Hessian H at the current point x:

    | method     | step                                 | hyperparameters   |
    | ---------- | ------------------------------------ | ----------------- |
    | "gd"       | x ← x − lr·g                         | lr                |
    | "momentum" | v ← beta·v − lr·g, x ← x + v         | lr, beta (0.9)    |
    | "newton"   | x ← x − (H + damping·I)⁻¹ g          | damping (0)       |

    A path that overflows stops there: `Path.diverged` holds the step, and every point and value in
    it is finite. Run several starts by calling this once for each.

    Args:
        function: the objective, from torch tensors [..., d] to [...]. Only single points [d] are
            asked for here; `plots.contours` asks for a whole grid at once.
        start: the d coordinates of the first point.
        method: a name of the table.
        lr: the learning rate η, for the methods that have one.
        steps: how many steps to take.
        **hyper: the method's other hyperparameters.

    Returns:
        The points [steps + 1, d] and the values [steps + 1].

    Raises:
        ValueError: an unknown method, a value out of its range, a start where the function is not
            finite, a singular Hessian.
        TypeError: a hyperparameter that the method does not take or that is missing, a function
            that returns no tensor.

    Examples:
        One step of gradient descent divides x by two here, one of Newton's method solves it:

        >>> bowl = lambda x: x[..., 0] ** 2 + 5 * x[..., 1] ** 2
        >>> descend(bowl, [8.0, 0.0], "gd", lr=0.25, steps=2).points.tolist()
        [[8.0, 0.0], [4.0, 0.0], [2.0, 0.0]]
        >>> descend(bowl, [8.0, 1.0], "newton", steps=1).values.tolist()
        [69.0, 0.0]

        The second coordinate is stable only for lr < 2/λ = 0.2:

        >>> path = descend(bowl, [8.0, 1.0], "gd", lr=1e200, steps=9)
        >>> path.diverged, len(path.points)
        (1, 1)
    """
    if method not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}{hint}")
    hyper = _hyperparameters(method, hyper if lr is None else {"lr": lr, **hyper})
    steps = _count("steps", steps)
    x = _tensor("start", start)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"start must be the d coordinates of one point, got shape {list(x.shape)}")
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    objective = _Objective(function)
    memory: dict[str, Tensor] = {}
    value = objective.value(x).detach()
    if not (x.isfinite().all() and value.isfinite()):
        raise ValueError(f"start={x.tolist()}: the function is {value.item()} there, not finite")
    points, values, diverged = [x.numpy()], [value.item()], None
    for step in range(1, steps + 1):
        x = METHODS[method](x, objective, memory, **hyper)
        value = objective.value(x).detach()
        if not (x.isfinite().all() and value.isfinite()):
            diverged = step
            break
        points.append(x.numpy())
        values.append(value.item())
    return Path(np.stack(points), np.array(values), method, diverged)


def newton_root(f: Function, start: float, tolerance: float = 1e-9, max_steps: int = 100) -> Root:
    """Find a root of a function of one variable by Newton's method.

    x ← x − f(x)/f'(x) until |f(x)| < tolerance, with f' by autograd, in float64. Near a simple
    root the number of correct digits doubles with each step.

    Args:
        f: a function from a scalar torch tensor to a scalar torch tensor.
        start: the first iterate.
        tolerance: the residual |f(x)| below which to stop.
        max_steps: how many steps to try.

    Returns:
        The root and all iterates.

    Raises:
        ValueError: the derivative vanishes, an iterate is not finite, or the residual is still too
            large after `max_steps` steps.

    Examples:
        >>> newton_root(lambda x: x**2 - 2, start=1.0).iterates.tolist()[:3]
        [1.0, 1.5, 1.4166666666666667]
        >>> newton_root(lambda x: x**2 - 2, start=1.0).value
        1.4142135623746899
    """
    if not (isinstance(tolerance, (int, float)) and tolerance > 0):
        raise ValueError(f"tolerance must be a positive number, got {tolerance!r}")
    max_steps = _count("max_steps", max_steps)
    x = _tensor("start", start)
    if x.ndim != 0 or not x.isfinite():
        raise ValueError(f"start must be one finite number, got {start!r}")
    objective, iterates = _Objective(f), [x.item()]
    for step in range(max_steps + 1):
        residual = objective.value(x).item()
        if not math.isfinite(residual):
            raise ValueError(f"start={start!r}: f is {residual} at step {step}, x = {x.item()!r}")
        if abs(residual) < tolerance:
            return Root(iterates[-1], np.array(iterates))
        slope = objective.gradient(x).item()
        if slope == 0 or not math.isfinite(slope):
            raise ValueError(
                f"start={start!r}: the derivative of f is {slope} at step {step}, x = {x.item()!r}"
            )
        x = x - residual / slope
        iterates.append(x.item())
    raise ValueError(
        f"max_steps={max_steps}: no root from start={start!r}; |f(x)| is {abs(residual):.3g} at "
        f"x = {iterates[-2]!r}, not below tolerance={tolerance!r}"
    )
