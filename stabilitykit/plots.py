"""Results drawn on axes: prediction as a line, measurement as points with error bars.

Every function takes the axes first and returns it; none saves, shows or changes global settings.
Colours come from the property cycle ("C0", "C1", …) and from the text colour, so that a figure
follows its surroundings.

Examples:
    >>> from matplotlib.figure import Figure
    >>> ax = profile(Figure().subplots(), [1, 1, 1], [[0.9, 1.1, 1.0], [1.1, 0.8, 1.2]])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['predicted', 'measured (2 seeds)']
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from stabilitykit._checks import whole
from stabilitykit._drawing import (
    array,
    axes,
    contour_levels,
    cut,
    finite,
    heights,
    last_exit,
    legend,
    legend_above,
    limits,
    line,
    longest_step,
    named,
    points_of,
    summary,
    text,
)
from stabilitykit.descent import Path


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
    ax, x = axes(ax), line("x", x)
    y = line("y", y, len(x))
    default = {"color": mpl.rcParams["text.color"], "linewidth": 1.4, "zorder": 2}
    style = default | normalize_kwargs(style, Line2D)
    ax.plot(x, y, label=label, **style)
    return legend(ax)


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
    ax, x = axes(ax), line("x", x)
    samples = array("samples", samples)
    if samples.ndim != 2 or samples.shape[1] != len(x) or len(samples) == 0:
        raise ValueError(
            f"samples must have shape [seeds, {len(x)}] as x has {len(x)} entries, "
            f"got {list(samples.shape)}"
        )
    middle, below, above = summary(samples, center, spread)
    default: dict[str, Any] = {"fmt": "o", "markersize": 4, "linewidth": 1.2, "color": color}
    style = {"zorder": 3} | default | normalize_kwargs(style, Line2D)
    bars = np.nan_to_num(np.maximum([middle - below, above - middle], 0))
    count = f"{len(samples)} seed{'s' if len(samples) > 1 else ''}"
    ax.errorbar(x, middle, bars, label=f"{label} ({count})", **style)
    return legend(ax)


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
    ax, samples = axes(ax), array("samples", samples)
    if samples.ndim != 2:
        raise ValueError(f"samples must have shape [seeds, layers], got {list(samples.shape)}")
    layers = np.arange(1, samples.shape[1] + 1)
    drawn = samples
    if predicted is not None:
        predicted = line("predicted", predicted, len(layers))
        prediction(ax, layers, predicted, predicted_label)
        drawn = np.concatenate([samples, predicted[None]])
    every = max(1, len(layers) // 25) if every is None else whole("every", every)
    measurement(ax, layers[::every], samples[:, ::every], label, **style)
    drawn = drawn[np.isfinite(drawn)]
    if log or (log is None and drawn.size and drawn.max() > 10 * drawn.min() > 0):
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
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
    ax, groups = axes(ax), named("groups", groups, "values")
    if not groups:
        raise ValueError(f"groups must hold at least one named array, got {groups!r}")
    values = [finite(name, group) for name, group in groups.items()]
    places = np.arange(1, len(values) + 1)
    spread = [i for i, v in enumerate(values) if np.ptp(v) > 0]
    if spread:
        drawn = [values[i] for i in spread]
        parts: Any = ax.violinplot(drawn, places[spread], widths=0.8, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=color, edgecolor=color, alpha=0.3, linewidth=1)
    low, middle, high = np.array([np.percentile(v, [25, 50, 75]) for v in values]).T
    ax.vlines(places, low, high, color=color, linewidth=4)
    ax.plot(places, middle, "o", color=mpl.rcParams["text.color"], markersize=4, zorder=3)
    ax.set_xticks(places, list(groups))
    ax.grid(False, axis="x")
    if ylabel:
        ax.set_ylabel(ylabel)
    return ax


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
    ax, paths = axes(ax), named("paths", {} if paths is None else paths, "descents")
    xlim, ylim = limits("xlim", xlim), limits("ylim", ylim)
    x, y = (torch.linspace(*ends, 100, dtype=torch.float64) for ends in (xlim, ylim))
    z = heights(function, x, y)
    levels = contour_levels(levels, z)
    if z.count() and np.ptp(z.compressed()) > 0:
        ink = mpl.rcParams["text.color"]
        ax.contour(x, y, z, levels=levels, colors=ink, alpha=0.35, linewidths=0.8)
    for index, (name, path) in enumerate(paths.items()):
        _path(ax, name, path, f"C{index % 10}", *np.array([xlim, ylim], dtype=float).T)
    ax.set(xlim=xlim, ylim=ylim, xlabel=labels[0], ylabel=labels[1])
    ax.grid(False)
    return legend_above(ax)


def _path(ax: Axes, name: str, path: Any, color: str, low: np.ndarray, high: np.ndarray) -> None:
    diverged = path.diverged if isinstance(path, Path) else None
    given = path.points if isinstance(path, Path) else path
    points = cut(points_of(f"paths[{name!r}]", given), low, high)
    label = name if diverged is None else f"{name} (diverged at step {diverged})"
    ax.plot(*points.T, "-o", color=color, markersize=3.2, linewidth=1.2, label=label, zorder=3)
    ax.plot(*points[:1].T, "o", color=color, markersize=8, fillstyle="none", zorder=3)
    if (cross := last_exit(points, low, high)) is not None:
        ax.plot(*cross[:, None], "X", color=color, markersize=7, clip_on=False, zorder=4)
    if (step := longest_step(points, low, high)) is not None:
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 0, "mutation_scale": 13}
        (x, y), (dx, dy) = step[0], step[1] - step[0]
        tip = (x + 0.62 * dx, y + 0.62 * dy)
        ax.annotate("", tip, (x, y), arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})


def svg(draw: Callable[[Axes], Any], style: Mapping[str, Any], name: str = "figure") -> str:
    """A figure as SVG text, the same bytes on every run.

    Args:
        draw: draws on the axes that it is given.
        style: rcParams while drawing.
        name: salt of the ids within the SVG.

    Returns:
        The text.

    Raises:
        TypeError: nothing callable, a style that is no mapping, a name that is no text.
        ValueError: a style that matplotlib does not know.
    """
    if not callable(draw):
        raise TypeError(f"draw must be a callable on axes, got {draw!r}")
    style, name = named("style", style, "rcParams"), text("name", name)
    if unknown := [key for key in style if key not in mpl.rcParams]:
        raise ValueError(f"style must hold rcParams by name, got {unknown!r}")
    settings: Any = {**style, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure, file = Figure(figsize=(5.2, 3.2), layout="constrained"), io.StringIO()
        draw(figure.subplots())
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
