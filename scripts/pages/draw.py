"""Figures: one house style, and SVG that takes its colours from the page's theme."""

from __future__ import annotations

import functools
import re
from html import escape
from typing import Any

# Colour by role: what a figure file shows, and the CSS variable that replaces it inline.
COLOURS = {
    "#1f2430": "--sk-fg",
    "#5b6270": "--sk-muted",
    "#d5d9e0": "--sk-grid",
    "#fefefe": "--sk-bg",
    "#0b6bcb": "--sk-c0",
    "#c4500c": "--sk-c1",
    "#1a7f4b": "--sk-c2",
    "#b5257d": "--sk-c3",
    "#6a4fc4": "--sk-c4",
    "#8a6d00": "--sk-c5",
    "#0f7c8a": "--sk-c6",
    "#7a7f8a": "--sk-c7",
}
_FG, _MUTED, _GRID, _BG, *_CYCLE = COLOURS
_PNG_DPI = 200  # convention: sharp on a slide
_DECADES = 2  # convention: a logarithmic axis that shows more has ticks at powers of ten only
_POWER = r"\$\\mathdefault\{(.*)\^\{([-\d]+)\}\}\$"  # how matplotlib writes one
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def style() -> dict[Any, Any]:
    """The rcParams of every figure: readable at 390 px, the same bytes on every run."""
    from cycler import cycler

    return {
        "figure.figsize": (5.2, 3.2),
        "figure.constrained_layout.use": True,
        "figure.facecolor": _BG,
        "savefig.facecolor": _BG,
        "axes.facecolor": _BG,
        "axes.edgecolor": _MUTED,
        "axes.labelcolor": _FG,
        "axes.titlecolor": _FG,
        "axes.titlesize": 10,
        "axes.labelsize": 10,
        "axes.prop_cycle": cycler(color=_CYCLE),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "text.color": _FG,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "xtick.labelcolor": _FG,
        "ytick.labelcolor": _FG,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "patch.edgecolor": _BG,
        "svg.fonttype": "path",
    }


def capture(figure, salt: str, png: bool = True) -> tuple[str, bytes | None]:
    """A matplotlib figure as SVG text, and as PNG where wanted; the same bytes on every run."""
    import io

    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    _lighten_logarithmic_axes(figure)
    # By `savefig` each file would be drawn twice and laid out twice, which takes twice as long.
    svg, pixels = io.StringIO(), io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    if not png:
        return _compact(svg.getvalue()), None
    figure.set_layout_engine("none")
    figure.set_dpi(_PNG_DPI)
    FigureCanvasAgg(figure).print_png(pixels, metadata={"Software": None})
    return _compact(svg.getvalue()), pixels.getvalue()


def _lighten_logarithmic_axes(figure) -> None:
    """Write 10⁻³ as text, not as a formula, and leave out the ticks between many powers of ten.

    Parsing one formula takes milliseconds, and eight ticks in each of ten decades, which nobody
    can tell apart, take a third of a figure's time.
    """
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for formatter in (axis.get_major_formatter(), axis.get_minor_formatter()):
                if type(formatter) is LogFormatterSciNotation:
                    formatter.__class__ = _powers()
            low, high = sorted(axis.get_view_interval())
            if type(axis.get_minor_locator()) is LogLocator and high > low * 10**_DECADES:
                axis.set_minor_locator(NullLocator())


@functools.cache
def _powers() -> type:
    from matplotlib.ticker import LogFormatterSciNotation

    class Powers(LogFormatterSciNotation):
        def __call__(self, x, pos=None):
            return re.sub(_POWER, _superscript, super().__call__(x, pos))

    return Powers


def _superscript(power: re.Match[str]) -> str:
    return power[1].replace(r"\times", "×") + power[2].translate(_RAISED)


def _compact(svg: str) -> str:
    """Drop what matplotlib writes for editors, and digits below a hundredth of a point."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.S)

    def rounded(match: re.Match[str]) -> str:
        return re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", match[0])

    svg = re.sub(r'\b(?:d|x|y|points)="[^"]*"|translate\([^)]*\)', rounded, svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip() + "\n"


def themed(svg: str, name: str, alt: str) -> str:
    """The SVG for inlining: theme colours, ids of its own, the alt text as its label."""
    width = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if width is None:
        raise ValueError(f"figure {name!r}: the SVG has no viewBox")
    # Points to CSS pixels; below seven tenths of its natural width text is too small to read.
    natural = float(width[1]) * 4 / 3
    opening = (
        f'<svg class="sk-svg" role="img" aria-label="{escape(alt, quote=True)}" '
        f'viewBox="0 0 {width[1]} {width[2]}" '
        f'style="width:{natural:.0f}px;min-width:{0.7 * natural:.0f}px" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    body = re.sub(r"^<svg[^>]*>", opening, svg.strip(), count=1)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'\bhref="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    for colour, variable in COLOURS.items():
        body = re.sub(colour, f"var({variable})", body, flags=re.IGNORECASE)
    # One line: Markdown must not take a blank line inside for the end of the HTML.
    return re.sub(r"\s*\n\s*", " ", body)
