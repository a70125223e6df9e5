"""Newton's method for the roots of a function of one variable."""

import math
from dataclasses import dataclass

import numpy as np

from stabilitykit import _checks
from stabilitykit._steps import Function, Objective, count, tensor


@dataclass(frozen=True)
class Root:
    """A root and the way to it.

    Attributes:
        value: the last iterate.
        iterates: float64 array [steps + 1], from the start to the root.
    """

    value: float
    iterates: np.ndarray


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
        TypeError: a function that returns no tensor, a start or tolerance that is no number.
        ValueError: a tolerance that is not positive and finite, the derivative vanishes, an iterate
            is not finite, or the residual is still too large after `max_steps` steps.

    Examples:
        >>> newton_root(lambda x: x**2 - 2, start=1.0).iterates.tolist()[:3]
        [1.0, 1.5, 1.4166666666666667]
        >>> newton_root(lambda x: x**2 - 2, start=1.0).value
        1.4142135623746899
    """
    tolerance = _checks.positive("tolerance", tolerance)
    max_steps = count("max_steps", max_steps)
    x = tensor("start", start)
    if x.ndim != 0 or not x.isfinite():
        raise ValueError(f"start must be one finite number, got {start!r}")
    objective, iterates = Objective(f), [x.item()]
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
