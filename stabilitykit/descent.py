"""Paths of optimisers over functions of a few variables, in float64."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from stabilitykit import _checks
from stabilitykit._steps import METHODS, Function, Memory, Objective, count, hyperparameters, tensor


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


def descend(
    function: Function,
    start: Sequence[float] | np.ndarray | Tensor,
    method: str,
    *,
    lr: float | None = None,
    steps: int,
    **hyper: Any,
) -> Path:
    """Follow an optimiser from a start and keep every point.

    With gradient g and Hessian H at the current point x, and all operations on vectors taken
    coordinate by coordinate:

    | method               | step                                                               |
    | -------------------- | ------------------------------------------------------------------ |
    | "gd"                 | x ← x − lr·g                                                       |
    | "momentum"           | v ← beta·v − lr·g, x ← x + v                                       |
    | "nesterov"           | the same, with g taken at x + beta·v                               |
    | "adagrad"            | s ← s + g², x ← x − lr·g / (√s + eps)                              |
    | "rmsprop"            | s ← alpha·s + (1 − alpha)·g², x ← x − lr·g / (√s + eps)            |
    | "adam"               | m, s ← running means of g, g², x ← x − lr·m̂ / (√ŝ + eps)           |
    | "adamw"              | the same after x ← (1 − lr·weight_decay)·x                         |
    | "newton"             | x ← x − (H + damping·I)⁻¹ g                                        |
    | "saddle_free_newton" | x ← x − (abs H + damping·I)⁻¹ g, abs of the eigenvalues            |

    m̂ and ŝ are m / (1 − betas[0]ᵗ) and s / (1 − betas[1]ᵗ) after t steps. The adaptive methods have
    the names, defaults and steps of torch.optim. The two with `beta` are in classical form, where
    torch.optim keeps −v/lr, and for Nesterov the points x + beta·v (Sutskever et al. 2013).
    Adaptive methods: Duchi et al. 2011, Tieleman and Hinton 2012, Kingma and Ba 2015 (algorithm 1),
    Loshchilov and Hutter 2019 (algorithm 2). abs H: Dauphin et al. 2014.

    A path that overflows stops there: `Path.diverged` holds the step, and every point and value in
    it is finite. Run several starts by calling this once for each.

    Args:
        function: the objective, from torch tensors [..., d] to [...]. Only single points [d] are
            asked for here; `plots.contours` asks for a whole grid at once.
        start: the d coordinates of the first point.
        method: a name of the table.
        lr: the learning rate η. The adaptive methods have torch's defaults (0.01 for "adagrad" and
            "rmsprop", 0.001 for "adam" and "adamw"); the Newton methods have none.
        steps: how many steps to take.
        **hyper: the method's other hyperparameters. An unknown one raises an error that lists them
            all with their defaults.

    Returns:
        The points [steps + 1, d] and the values [steps + 1].

    Raises:
        ValueError: an unknown method, a value out of its range, a start where the function is not
            finite, a singular Hessian without damping.
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

        The first step of Adagrad is lr times the sign of the gradient:

        >>> descend(bowl, [8.0, -1.0], "adagrad", lr=0.5, steps=1, eps=0).points.tolist()
        [[8.0, -1.0], [7.5, -0.5]]

        At a saddle Newton's method arrives, its saddle-free form leaves:

        >>> saddle = lambda x: x[..., 0] ** 2 - x[..., 1] ** 2
        >>> descend(saddle, [4.0, 1.0], "newton", steps=1).points[-1].tolist()
        [0.0, 0.0]
        >>> descend(saddle, [4.0, 1.0], "saddle_free_newton", steps=1).points[-1].tolist()
        [0.0, 2.0]
    """
    if not isinstance(method, str) or method not in METHODS:
        hint = _checks.nearest(method, METHODS)
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}{hint}")
    hyper = hyperparameters(method, hyper if lr is None else {"lr": lr, **hyper})
    steps = count("steps", steps)
    x = tensor("start", start)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"start must be the d coordinates of one point, got shape {list(x.shape)}")
    objective = Objective(function)
    memory: Memory = {}
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
