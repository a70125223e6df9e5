"""Second derivatives without the matrix that holds them."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from stabilitykit._steps import Function, Objective, tensor


def hvp(
    function: Function,
    point: Sequence[float] | np.ndarray | Tensor,
    vector: Sequence[float] | np.ndarray | Tensor,
) -> Tensor:
    """Multiply a Hessian by a vector for the price of two gradients.

    H v = ∇ₓ (∇f(x)·v), with v held fixed: differentiate the gradient along v, and the n² entries
    of H are never stored (Pearlmutter 1994, Fast exact multiplication by the Hessian, eq. 1).

    Args:
        function: the objective, from a torch tensor of the point's shape to a scalar tensor.
        point: where, of any shape. A floating tensor keeps its dtype, all else becomes float64.
        vector: what to multiply, of the point's shape.

    Returns:
        H v, of the point's shape and dtype.

    Raises:
        ValueError: shapes that differ, a function that is not scalar or carries no gradient.
        TypeError: entries that are no numbers, a function that returns no tensor.

    Examples:
        >>> bowl = lambda x: x[..., 0] ** 2 + 5 * x[..., 1] ** 2
        >>> hvp(bowl, [3.0, 4.0], [1.0, 1.0]).tolist()
        [2.0, 10.0]
    """
    if isinstance(point, Tensor) and point.is_floating_point():
        x = point.detach()
    else:
        x = tensor("point", point)
    v = tensor("vector", vector).to(x)
    if v.shape != x.shape:
        raise ValueError(
            f"vector must have the shape of point, {list(x.shape)}, got {list(v.shape)}"
        )
    return Objective(function).hessian_times(x, v)
