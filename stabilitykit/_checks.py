"""Argument checks that name the argument and repeat its value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def numbers(name: str, value: Any) -> Array:
    """A float64 array of finite numbers."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}={value!r} is not a number or an array of numbers") from None
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}={value!r} is not a number or an array of numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}={value!r} is not finite")
    return array.astype(np.float64)


def variances(name: str, value: Any) -> Array:
    """A float64 array of finite, non-negative numbers."""
    array = numbers(name, value)
    if (array < 0).any():
        raise ValueError(f"{name}={value!r} is negative; expected a variance, zero or more")
    return array


def count(name: str, value: Any) -> int:
    """A non-negative integer."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}={value!r} is not an integer")
    if value < 0:
        raise ValueError(f"{name}={value!r} is negative; expected zero or more")
    return int(value)


def shapes(**arrays: Array) -> tuple[int, ...]:
    """The shape to which the arrays broadcast."""
    try:
        return np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"shapes do not broadcast: {listed}") from None
