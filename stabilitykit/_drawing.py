"""The numbers behind the pictures: checks, summaries of samples, and paths within a frame."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stabilitykit import _checks


def array(name: str, values: Any) -> np.ndarray:
    """Float64 numbers from an array, a list or a tensor, also one that requires a gradient."""
    try:
        given = np.asarray(values.detach() if isinstance(values, torch.Tensor) else values)
        if given.dtype.kind in "USMmcV":  # texts, dates and the like would be turned into numbers
            raise TypeError
        return given.astype(float)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must hold real numbers, got {values!r}") from None


def axes(value: Any) -> Any:
    """The axes to draw on, or an error that says what was given."""
    if not callable(getattr(value, "plot", None)):
        raise TypeError(f"ax must be matplotlib axes, got {value!r}")
    return value


def named(name: str, value: Any, expected: str) -> dict[str, Any]:
    """A mapping of names, or an error that names the argument."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must hold {expected} by name, got {value!r}")
    return dict(value)


def text(name: str, value: Any) -> str:
    """A text, or an error that names the argument."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {value!r}")
    return value


def limits(name: str, value: Any) -> tuple[float, float]:
    """An increasing pair of finite numbers."""
    pair = array(name, value)
    if pair.shape != (2,) or not -np.inf < pair[0] < pair[1] < np.inf:
        raise ValueError(f"{name} must be an increasing pair of finite numbers, got {value!r}")
    return float(pair[0]), float(pair[1])


def heights(function: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    """A vectorised function of two variables on a grid, masked where it is not finite."""
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    try:
        z = function(grid)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(
            f"function failed on points of shape {list(grid.shape)}; expected one from torch "
            f"tensors [..., 2] to [...]: {type(error).__name__}: {error}"
        ) from error
    shape = list(z.shape) if isinstance(z, torch.Tensor) else type(z).__name__
    if shape != list(grid.shape[:-1]):
        raise ValueError(
            "function must map [..., 2] to [...], as in x[..., 0]**2 + x[..., 1]**2; "
            f"it turned {list(grid.shape)} into {shape}"
        )
    return np.ma.masked_invalid(z.detach().double().numpy())


def contour_levels(levels: Any, z: np.ndarray) -> list[float]:
    """The heights asked for, or as many, evenly apart in the square root of the height."""
    given = array("levels", levels)
    if given.ndim == 1 and given.size and np.isfinite(given).all():
        return np.unique(given).tolist()
    if given.ndim:
        raise ValueError(f"levels must be a whole number or finite heights, got {levels!r}")
    count = _checks.whole("levels", levels)
    low, high = float(z.min()), float(z.max())
    return [low + (high - low) * (k / (count + 1)) ** 2 for k in range(1, count + 1)]


def line(name: str, values: Any, length: int | None = None) -> np.ndarray:
    """A one-dimensional array of that length, or an error that names the argument."""
    numbers = array(name, values)
    if numbers.ndim != 1 or numbers.size == 0 or length not in (None, len(numbers)):
        expected = "a non-empty 1-D array" if length is None else f"1-D of length {length}"
        raise ValueError(f"{name} must be {expected}, got shape {list(numbers.shape)}")
    return numbers


def summary(
    samples: np.ndarray, center: str, spread: str | tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle, lower and upper end of each column's finite samples, NaN where there are none."""
    if center not in ("mean", "median"):
        raise ValueError(f"center must be 'mean' or 'median', got {center!r}")
    finite = np.isfinite(samples)
    count = finite.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(finite, samples, 0).sum(0) / count
    clean = np.where(finite, samples, np.nan)
    clean[:, count == 0] = 0.0

    def percentile(q: float) -> np.ndarray:
        return np.where(count > 0, np.nanpercentile(clean, q, axis=0), np.nan)

    middle = mean if center == "mean" else percentile(50)
    if isinstance(spread, str) and spread in ("error", "std"):
        squares = (np.where(finite, samples - mean, 0) ** 2).sum(0)
        half = np.sqrt(squares / np.maximum(count - 1, 1))
        if spread == "error":
            half = 2 * half / np.sqrt(np.maximum(count, 1))
        return middle, middle - half, middle + half
    if isinstance(spread, (tuple, list)) and len(spread) == 2:
        low, high = (
            _checks.number(f"spread[{i}]", q, "a percentile from 0 to 100", lambda v: 0 <= v <= 100)
            for i, q in enumerate(spread)
        )
        return middle, percentile(low), percentile(high)
    raise ValueError(f"spread must be 'error', 'std' or a pair of percentiles, got {spread!r}")


def _inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    inside: np.ndarray = np.all((points >= low) & (points <= high), axis=1)
    return inside


def _crossing(start: np.ndarray, end: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where the segment from a start inside a box to an end outside crosses its border."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        border = np.where(end > high, high, low)
        shares = np.where((end > high) | (end < low), (border - start) / (end - start), 1.0)
    return start + shares.min() * (end - start)


def points_of(name: str, path: Any) -> np.ndarray:
    """The points [n, 2] of a path, or an error that names it."""
    points = array(name, path)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name} must hold points of shape [n, 2], got {list(points.shape)}")
    return points


def cut(points: np.ndarray, low: np.ndarray, high: np.ndarray, reach: float = 1e3) -> np.ndarray:
    """A path [n, 2] up to where it first goes `reach` frames away, as renderers overflow there."""
    points = points[np.isfinite(points).all(1)]
    low, high = low - reach * (high - low), high + reach * (high - low)
    outside = np.flatnonzero(~_inside(points, low, high))
    if outside.size == 0:
        return points
    first = outside[0]
    if first == 0:
        return points[:0]
    return np.vstack([points[:first], _crossing(points[first - 1], points[first], low, high)])


def last_exit(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """Where a path that ends outside the frame leaves it for the last time from a point inside."""
    inside = _inside(points, low, high)
    if not inside.any() or inside[-1]:
        return None
    last = np.flatnonzero(inside)[-1]
    return _crossing(points[last], points[last + 1], low, high)


def longest_step(
    points: np.ndarray, low: np.ndarray, high: np.ndarray, least: float = 0.06
) -> tuple[np.ndarray, np.ndarray] | None:
    """The longest step within the frame, None if all are shorter than a share of the frame."""
    inside = _inside(points, low, high)
    lengths = np.linalg.norm(np.diff(points, axis=0) / (high - low), axis=1)
    lengths = lengths * (inside[1:] & inside[:-1])
    if lengths.size == 0 or lengths.max() < least:
        return None
    tail = lengths.argmax()
    return points[tail], points[tail + 1]


def legend_above(ax: Any) -> Any:
    """The legend over the axes, in as many columns as fit."""
    names = ax.get_legend_handles_labels()[1]
    if names:
        figure = ax.get_figure(root=True)
        width = ax.get_position().width * (figure.get_size_inches()[0] if figure else 5)
        columns = max(1, int(16.5 * width / (max(map(len, names)) + 7)))
        ax.legend(
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            columnspacing=1.2,
            ncols=min(columns, len(names)),
        )
    return ax


def legend(ax: Any) -> Any:
    """A legend without a frame, where anything has a name."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return ax


def finite(name: str, group: Any) -> np.ndarray:
    """The finite values of a group, of which there must be one."""
    values = array(f"groups[{name!r}]", group)
    values = values[np.isfinite(values)]
    if values.size == 0:
        raise ValueError(f"groups[{name!r}] has no finite value to draw")
    return values
