"""Argument checks that name the argument and repeat its value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from numbers import Real
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


def number(name: str, value: Any, expected: str, accept: Callable[[float], bool]) -> float:
    """A finite number that is accepted; also from an array or a tensor without dimensions."""
    try:
        result = float(_real(name, value, expected))
    except OverflowError:  # a whole number past the largest float64
        result = math.inf
    if not (math.isfinite(result) and accept(result)):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return result


def positive(name: str, value: Any) -> float:
    """A positive finite number."""
    return number(name, value, "a positive finite number", lambda v: v > 0)


def not_negative(name: str, value: Any) -> float:
    """A finite number of at least 0."""
    return number(name, value, "a finite number of at least 0", lambda v: v >= 0)


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least that."""
    expected = f"a whole number of at least {least}"
    plain = _real(name, value, expected)
    if not isinstance(plain, int) or plain < least:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return plain


def seed(name: str, value: Any) -> int:
    """A whole number that torch's generators take."""
    expected = "a whole number from -2**63 to 2**64 - 1"
    plain = _real(name, value, expected)
    if not isinstance(plain, int) or not -(2**63) <= plain < 2**64:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    return plain


def nearest(value: Any, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest known one, if one is near."""
    near = difflib.get_close_matches(str(value).lower(), list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _real(name: str, value: Any, expected: str) -> Any:
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    return plain
