"""Results drawn on axes: prediction as a line, measurement as points with error bars.

Every function takes the axes first and returns it; none saves, shows or changes global settings.
Colours come from the property cycle ("C0", "C1", …) and from the text colour, so that a figure
follows its surroundings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from stabilitykit.descent import Path


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach() if isinstance(values, torch.Tensor) else values, dtype=float)


def _line(name: str, values: ArrayLike, length: int | None = None) -> np.ndarray:
    array = _array(values)
    if array.ndim != 1 or array.size == 0 or length not in (None, len(array)):
        expected = "a non-empty 1-D array" if length is None else f"1-D of length {length}"
        raise ValueError(f"{name} must be {expected}, got shape {list(array.shape)}")
    return array


def prediction(
    ax: Axes, x: ArrayLike, y: ArrayLike, label: str = "prediction", **style: Any
) -> Axes:
    """Draw a prediction as a line in the text colour.

    Args:
        ax: the axes.
        x: positions [n].
        y: predicted values [n].
        label: its name in the legend.
        **style: passed to `Axes.plot`.

    Returns:
        The axes.
    """
    x = _line("x", x)
    y = _line("y", y, len(x))
    default = {"color": mpl.rcParams["text.color"], "linewidth": 1.4, "zorder": 2}
    style = default | normalize_kwargs(style, Line2D)
    ax.plot(x, y, label=label, **style)
    return _legend(ax)


def measurement(
    ax: Axes,
    x: ArrayLike,
    samples: ArrayLike,
    label: str = "measurement",
    *,
    center: str = "mean",
    spread: str | tuple[float, float] = "error",
    color: str = "C0",
    **style: Any,
) -> Axes:
    """Draw many seeds' measurements as points with error bars.

    Args:
        ax: the axes.
        x: positions [n].
        samples: one row a seed, [seeds, n]; entries that are not finite are left out.
        label: its name in the legend; the number of seeds is added.
        center: "mean" or "median" of the seeds.
        spread: "error" for ± 2 standard errors of the mean, "std" for ± 1 standard deviation, or
            a pair of percentiles such as (5, 95).
        color: colour of points and bars.
        **style: passed to `Axes.errorbar`.

    Returns:
        The axes.

    Raises:
        ValueError: shapes that do not match, an unknown center or spread.
    """
    x = _line("x", x)
    samples = _array(samples)
    if samples.ndim != 2 or samples.shape[1] != len(x) or len(samples) == 0:
        raise ValueError(
            f"samples must have shape [seeds, {len(x)}] as x has {len(x)} entries, "
            f"got {list(samples.shape)}"
        )
    if center not in ("mean", "median"):
        raise ValueError(f"center must be 'mean' or 'median', got {center!r}")
    middle, below, above = _summary(samples, center, spread)
    default = {
        "fmt": "o",
        "markersize": 4,
        "linewidth": 1.2,
        "capsize": 0,
        "zorder": 3,
        "color": color,
    }
    style = default | normalize_kwargs(style, Line2D)
    bars = np.nan_to_num(np.maximum([middle - below, above - middle], 0))
    count = f"{len(samples)} seed{'s' if len(samples) > 1 else ''}"
    ax.errorbar(x, middle, bars, label=f"{label} ({count})", **style)
    return _legend(ax)


def _summary(samples: np.ndarray, center: str, spread) -> tuple[np.ndarray, ...]:
    finite = np.ma.masked_invalid(samples)
    average = finite.mean(0).filled(np.nan)
    clean = np.where(np.isfinite(samples), samples, np.nan)
    empty = ~np.isfinite(clean).any(0)
    clean[:, empty] = 0.0

    def percentile(q: float) -> np.ndarray:
        return np.where(empty, np.nan, np.nanpercentile(clean, q, axis=0))

    middle = average if center == "mean" else percentile(50)
    if isinstance(spread, str) and spread in ("error", "std"):
        half = finite.std(0).filled(np.nan)
        if spread == "error":
            half = 2 * half / np.sqrt(np.maximum(finite.count(0) - 1, 1))
        return middle, middle - half, middle + half
    if isinstance(spread, (tuple, list)) and len(spread) == 2:
        return middle, percentile(spread[0]), percentile(spread[1])
    raise ValueError(f"spread must be 'error', 'std' or a pair of percentiles, got {spread!r}")


def profile(
    ax: Axes,
    predicted: ArrayLike | None,
    samples: ArrayLike,
    *,
    label: str = "measured",
    predicted_label: str = "predicted",
    ylabel: str = "second moment",
    log: bool | None = None,
    every: int | None = None,
    **style: Any,
) -> Axes:
    """Draw a quantity layer by layer: the prediction as a line, the seeds as points with bars.

    Args:
        ax: the axes.
        predicted: expected values [layers], or None to draw the measurement alone.
        samples: measured values [seeds, layers], layer 1 first.
        label: name of the measurement.
        predicted_label: name of the prediction.
        ylabel: what is drawn.
        log: logarithmic vertical axis; by default when all drawn is positive and spans a decade.
        every: draw the measurement at each `every`-th layer; about 25 points by default.
        **style: passed to `measurement`.

    Returns:
        The axes.
    """
    samples = _array(samples)
    if samples.ndim != 2:
        raise ValueError(f"samples must have shape [seeds, layers], got {list(samples.shape)}")
    layers = np.arange(1, samples.shape[1] + 1)
    drawn = samples
    if predicted is not None:
        predicted = _line("predicted", predicted, len(layers))
        prediction(ax, layers, predicted, predicted_label)
        drawn = np.concatenate([samples, predicted[None]])
    every = every or max(1, len(layers) // 25)
    measurement(ax, layers[::every], samples[:, ::every], label, **style)
    drawn = drawn[np.isfinite(drawn)]
    if log or (log is None and drawn.size and drawn.max() > 10 * drawn.min() > 0):
        ax.set_yscale("log")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("layer")
    ax.set_ylabel(ylabel)
    return ax


def violins(
    ax: Axes,
    groups: Mapping[str, ArrayLike],
    *,
    color: str = "C0",
    ylabel: str = "",
) -> Axes:
    """Draw the distribution of each group as a violin with its median and quartiles.

    Args:
        ax: the axes.
        groups: values by name, any shape; entries that are not finite are left out.
        color: colour of the violins.
        ylabel: what the values are.

    Returns:
        The axes.

    Raises:
        ValueError: no groups, or a group without finite values.
    """
    if not groups:
        raise ValueError(f"groups must hold at least one named array, got {groups!r}")
    values = [_finite(name, group) for name, group in groups.items()]
    places = np.arange(1, len(values) + 1)
    spread = [i for i, v in enumerate(values) if np.ptp(v) > 0]
    if spread:
        bodies = ax.violinplot(
            [values[i] for i in spread], places[spread], widths=0.8, showextrema=False
        )["bodies"]
        for body in bodies:
            body.set(facecolor=color, edgecolor=color, alpha=0.3, linewidth=1)
    low, middle, high = np.array([np.percentile(v, [25, 50, 75]) for v in values]).T
    ax.vlines(places, low, high, color=color, linewidth=4)
    ax.plot(places, middle, "o", color=mpl.rcParams["text.color"], markersize=4, zorder=3)
    ax.set_xticks(places, list(groups))
    ax.grid(False, axis="x")
    if ylabel:
        ax.set_ylabel(ylabel)
    return ax


def _finite(name: str, group: Any) -> np.ndarray:
    array = _array(group)
    array = array[np.isfinite(array)]
    if array.size == 0:
        raise ValueError(f"groups[{name!r}] has no finite value to draw")
    return array


def contours(
    ax: Axes,
    function: Callable[[torch.Tensor], torch.Tensor],
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    *,
    paths: Mapping[str, Path | ArrayLike] | None = None,
    levels: int | Sequence[float] = 12,
    labels: tuple[str, str] = ("$x$", "$y$"),
) -> Axes:
    """Draw the contour lines of a function of two variables, and descents across them.

    Each path is a line with a point at every step, a ring at its start and an arrow on its longest
    step. A path that ends outside the picture has a cross where it leaves for the last time; one
    that diverged is named so in the legend, with the step. Contours are spaced evenly in the
    square root of the height above the lowest point drawn, so that those of a quadratic are evenly
    apart.

    Args:
        ax: the axes.
        function: from torch tensors [..., 2] to [...].
        xlim: range of the first coordinate.
        ylim: range of the second.
        paths: descents by name: a `Path`, or points [steps + 1, 2].
        levels: how many contour lines, or their heights.
        labels: names of the coordinates.

    Returns:
        The axes.

    Raises:
        ValueError: a function that is not vectorised over leading dimensions, empty ranges, paths
            that are not of points [n, 2].
    """
    for name, limits in (("xlim", xlim), ("ylim", ylim)):
        if not (len(limits) == 2 and -np.inf < limits[0] < limits[1] < np.inf):
            raise ValueError(f"{name} must be an increasing pair of finite numbers, got {limits!r}")
    x, y = (torch.linspace(*limits, 200, dtype=torch.float64) for limits in (xlim, ylim))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    heights = torch.as_tensor(function(grid)).detach()
    if heights.shape != grid.shape[:-1]:
        raise ValueError(
            "function must map [..., 2] to [...], as in x[..., 0]**2 + x[..., 1]**2; "
            f"it turned {list(grid.shape)} into {list(heights.shape)}"
        )
    z = np.ma.masked_invalid(heights.double().numpy())
    if isinstance(levels, (int, np.integer)):
        low, high = float(z.min()), float(z.max())
        levels = low + (high - low) * (np.arange(1, levels + 1) / (levels + 1)) ** 2
    if z.count() and np.ptp(z.compressed()) > 0:
        ax.contour(
            x, y, z, levels=levels, colors=mpl.rcParams["text.color"], alpha=0.35, linewidths=0.8
        )
    for index, (name, path) in enumerate((paths or {}).items()):
        _path(ax, name, path, f"C{index % 10}", *np.array([xlim, ylim], dtype=float).T)
    ax.set(xlim=xlim, ylim=ylim, xlabel=labels[0], ylabel=labels[1])
    ax.grid(False)
    return _legend_above(ax)


def _path(ax: Axes, name: str, path: Any, color: str, low: np.ndarray, high: np.ndarray) -> None:
    diverged = path.diverged if isinstance(path, Path) else None
    points = _array(path.points if isinstance(path, Path) else path)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"paths[{name!r}] must hold points of shape [n, 2], got {list(points.shape)}"
        )
    points = points[np.isfinite(points).all(1)]
    # The renderer overflows far outside the picture, so the line ends a long way out.
    far = np.flatnonzero((np.abs(points - low) > 1e3 * (high - low)).any(1))
    if far.size:
        points = points[: far[0] + 1].copy()
        if far[0] > 0:
            points[-1] = _leave(
                points[-2], points[-1], low - 99 * (high - low), 100 * high - 99 * low
            )
    label = name if diverged is None else f"{name} (diverged at step {diverged})"
    ax.plot(*points.T, "-o", color=color, markersize=3.2, linewidth=1.2, label=label, zorder=3)
    ax.plot(*points[:1].T, "o", color=color, markersize=8, fillstyle="none", zorder=3)
    inside = ((points >= low) & (points <= high)).all(1)
    if inside.any() and not inside[-1]:
        last = np.flatnonzero(inside)[-1]
        exit_ = _leave(points[last], points[last + 1], low, high)
        ax.plot(*exit_[:, None], "X", color=color, markersize=7, clip_on=False, zorder=4)
    lengths = np.linalg.norm(np.diff(points, axis=0) / (high - low), axis=1)
    lengths = lengths * (inside[1:] & inside[:-1])
    if lengths.size and lengths.max() > 0.06:
        tail = lengths.argmax()
        tip = points[tail] + 0.62 * (points[tail + 1] - points[tail])
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 0, "mutation_scale": 13}
        ax.annotate("", tip, points[tail], arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})


def _leave(start: np.ndarray, end: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where the segment from a start inside a box to an end outside crosses its border."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares = np.where(end > high, (high - start) / (end - start), (low - start) / (end - start))
    share = np.where((end > high) | (end < low), shares, 1.0).min()
    return start + share * (end - start)


def _legend_above(ax: Axes) -> Axes:
    """The legend over the axes, in as many columns as fit."""
    names = ax.get_legend_handles_labels()[1]
    if names:
        width = ax.get_position().width * ax.figure.get_size_inches()[0]
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


def _legend(ax: Axes) -> Axes:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return ax
