"""A diagnosis as text for the terminal, as JSON, and as one self-contained HTML file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from stabilitykit import _html, plots
from stabilitykit._findings import QUANTITIES
from stabilitykit._sentences import (
    SEVERITIES,
    Indented,
    compared,
    explanation,
    read,
    shown,
    steps,
    visible,
)
from stabilitykit.diagnosis import Diagnosis


def verdict(diagnosis: Diagnosis) -> str:
    """How many findings, or healthy; how many layers; and the loss, in one line."""
    number = len(diagnosis.findings)
    said = "healthy" if diagnosis.healthy else f"{number} finding{'s' if number > 1 else ''}"
    layers = len({record.layer for record in diagnosis.records})
    return f"{said} ({layers} layer{'s' * (layers != 1)}, loss {shown(diagnosis.loss)})"


def table(diagnosis: Diagnosis) -> Table:
    """The findings, one a row, for `rich.print`; where there is little room, `text` is better.

    Examples:
        >>> import stabilitykit as sk
        >>> found = sk.Finding("dead-units", "0", 1.0, 0.6, "error", "Do: `this`.", "signal/seeds/")
        >>> table(sk.Diagnosis((found,), 1.0, (), (), None)).row_count
        1
    """
    grid = Table(
        title=verdict(diagnosis), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in ("code", "layer", "measured", "expected", "predicted", "remedy"):
        grid.add_column(column, overflow="fold", no_wrap=column == "code")
    for one in diagnosis.findings:
        values = map(shown, (one.measured, one.expected, one.predicted))
        cells = (one.code, one.layer, *values, one.remedy.replace("`", ""))
        grid.add_row(*(Text(visible(cell)) for cell in cells))
    return grid


def text(diagnosis: Diagnosis) -> Group:
    """The findings as paragraphs, which a narrow terminal can hold, for `rich.print`.

    What is no printable character in a name stands as its escape, such as `\\x1b`.

    Examples:
        >>> import rich
        >>> import stabilitykit as sk
        >>> rich.print(text(sk.Diagnosis((), 0.5, (), (), None)))
        healthy (0 layers, loss 0.5)
    """
    style = "green" if diagnosis.healthy else "bold"
    lines: list[Text | Indented] = [Text(verdict(diagnosis), style=style)]
    for one in diagnosis.findings:
        style = "bold red" if one.severity == "error" else "bold yellow"
        where = f" at {visible(one.layer) or '(model)'}, {one.severity}"
        lines += [Text(""), Text.assemble((one.code, style), where)]
        lines.append(Indented(f"{QUANTITIES[one.code]}:"))
        said = [compared(one), explanation(one)]
        lines += [Indented(visible(sentence)) for sentence in said if sentence]
        lines += steps(one.remedy)
        lines.append(Indented(f"page: {read(one)}", "dim"))
    return Group(*lines)


def _plain(value: Any) -> Any:
    """JSON has no numbers that are not finite; they become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def to_json(diagnosis: Diagnosis) -> str:
    """Everything in the diagnosis, as one JSON object.

    Its keys:

    - healthy: true or false.
    - loss: a number.
    - findings: a list of objects with the fields of `Finding`.
    - layers: of every layer call the fields of `Record`; "predicted" holds those of its
      `LayerPrediction`, or null.
    - parameters: the fields of `ParameterRecord`.
    - signals: of every weighted or normalising layer call, its layer, kind and call, whether it
      is weighted, its number of units, and the amplitude before it (source) and after it.
    - not_modelled: names of the layers that theory does not model.

    A number that is not finite is a string, "nan", "inf" or "-inf".

    Examples:
        >>> import json
        >>> import stabilitykit as sk
        >>> json.loads(to_json(sk.Diagnosis((), float("nan"), (), (), None)))["loss"]
        'nan'
    """
    expected = _expected(diagnosis)
    layers = []
    for record in diagnosis.records:
        entry = record._asdict()
        prediction = expected.get((record.layer, record.kind, record.call))
        entry["predicted"] = None if prediction is None else dataclasses.asdict(prediction)
        layers.append(entry)
    content = {
        "healthy": diagnosis.healthy,
        "loss": diagnosis.loss,
        "findings": [dataclasses.asdict(one) for one in diagnosis.findings],
        "layers": layers,
        "parameters": [one._asdict() for one in diagnosis.parameters],
        "signals": [signal._asdict() for signal in diagnosis.signals],
        "not_modelled": list(diagnosis.prediction.not_modelled if diagnosis.prediction else ()),
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False)


def _expected(diagnosis: Diagnosis) -> dict[tuple[str, str, int], Any]:
    layers = diagnosis.prediction.layers if diagnosis.prediction is not None else ()
    return {(one.layer, one.kind, one.call): one for one in layers}


def to_html(diagnosis: Diagnosis) -> str:
    """One HTML document: figures inline, no script, no request to anywhere, light and dark.

    Examples:
        >>> import stabilitykit as sk
        >>> page = to_html(sk.Diagnosis((), 0.5, (), (), None))
        >>> "<script" in page, "http" in page.replace("http-equiv", "")
        (False, False)
    """
    parts = [f"<h1>{_html.prose('Diagnosis: ' + verdict(diagnosis))}</h1>"]
    parts += ["<h2>Findings</h2>"] if diagnosis.findings else []
    for one in diagnosis.findings:
        entries = {
            "what": QUANTITIES[one.code],
            "measured": shown(one.measured),
            "expected": shown(one.expected),
            "predicted": shown(one.predicted),
            "why": explanation(one),
            "severity": SEVERITIES[one.severity],
            "remedy": one.remedy,
            "read": read(one),
        }
        title = f"{one.code} at `{one.layer or '(model)'}`"
        said = {name: value for name, value in entries.items() if value}
        parts.append(_html.article(title, one.severity, said))
    figures = _charts(diagnosis, _expected(diagnosis))
    parts += ["<h2>Theory and measurement</h2>"] if figures else []
    parts += figures
    if diagnosis.prediction is not None and diagnosis.prediction.not_modelled:
        names = ", ".join(f"`{name}`" for name in diagnosis.prediction.not_modelled)
        parts.append(f"<p>{_html.prose(f'Not modelled, measured instead: {names}.')}</p>")
    parts += _tables(diagnosis)
    return _html.page("Diagnosis: " + verdict(diagnosis), "\n".join(parts))


def _charts(diagnosis: Diagnosis, expected: dict[tuple[str, str, int], Any]) -> list[str]:
    pairs = [
        (expected[key], record)
        for record in diagnosis.records
        if (key := (record.layer, record.kind, record.call)) in expected
    ]
    if len(pairs) < 2:
        return []
    found = []
    both = [
        (one.amplitude, signal.amplitude)
        for signal in diagnosis.signals
        if (one := expected.get((signal.layer, signal.kind, signal.call))) and one.amplitude
    ]
    if len(both) > 1:
        found.append(_amplitudes(*zip(*both, strict=True)))
    found += [
        _profile(
            "forward",
            "mean square of the output",
            [one.forward for one, _ in pairs],
            [record.rms**2 for _, record in pairs],
        )
    ]
    met = [(one, record.grad_rms) for one, record in pairs if record.grad_rms]
    if len(met) > 1:
        # The prediction is for a gradient of mean square 1 at the model's output.
        scale = met[-1][0].backward / met[-1][1] ** 2
        predicted, measured = zip(*((o.backward, scale * g**2) for o, g in met), strict=True)
        unit = " Both relative to theory's at the last layer."
        pair = predicted, measured
        found.append(_profile("backward", "mean square of the gradient", *pair, unit))
    return found


def _amplitudes(predicted: Sequence[float], measured: Sequence[float]) -> str:
    caption = (
        "How far samples differ after each weighted or normalising layer: rms, over units, of the "
        "deviation from the mean over the batch. Line, expected of these weights; points, this "
        "batch. Points that fall in a straight line end where no sample can be told from another; "
        "in float32 rounding leaves a floor near 1e-8. An amplitude of 0 has no point."
    )
    quantity, layers = "amplitude over the batch", "weighted or normalising layer"
    return _drawn("amplitude", quantity, predicted, measured, caption, layers)


def _profile(name: str, quantity: str, predicted: Any, measured: Any, more: str = "") -> str:
    caption = f"{quantity.capitalize()}: line, expected of these weights; points, this batch."
    return _drawn(name, quantity, predicted, measured, caption + more, "layer call")


def _drawn(
    name: str,
    quantity: str,
    line: Sequence[float],
    points: Sequence[float],
    caption: str,
    layers: str,
) -> str:
    alt = (
        f"{quantity.capitalize()} by layer: measured {shown(points[0])} at the first, "
        f"{shown(points[-1])} at the last; predicted {shown(line[0])} and {shown(line[-1])}."
    )
    positive = [value for value in (*line, *points) if value > 0]

    def draw(ax: Any) -> None:
        x = range(1, len(line) + 1)
        plots.prediction(ax, x, line, "predicted")
        ax.plot(x, points, "o", color="C0", markersize=4, label="measured")
        if positive and max(positive) > 10 * min(positive):
            ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel=layers, ylabel=quantity)
        ax.legend()

    return _html.figure(_html.themed(plots.svg(draw, _html.STYLE, name), name, alt), caption)


def _tables(diagnosis: Diagnosis) -> list[str]:
    expected = _expected(diagnosis)
    fields: dict[str, Callable[[Any], Any]] = {
        "rms": lambda r: r.rms,
        "predicted rms": lambda r: _root(expected.get((r.layer, r.kind, r.call))),
        "flat": lambda r: r.saturated,
        "dead": lambda r: r.dead,
        "gradient rms": lambda r: r.grad_rms,
        "not finite": lambda r: str((r.nonfinite or 0) + (r.grad_nonfinite or 0)),
    }
    rows = [
        [r.layer or "(model)", r.kind, *(shown(get(r)) for get in fields.values())]
        for r in diagnosis.records
    ]
    norms: dict[str, Callable[[Any], Any]] = {
        "norm": lambda p: p.weight_norm,
        "gradient": lambda p: p.grad_norm,
        "update": lambda p: p.update_ratio,
    }
    said = "Norms, and the change of the optimizer's step relative to the weight"
    if all(p.update_ratio is None for p in diagnosis.parameters):
        said = "Norms; with an optimizer also how far its step moves each"
        del norms["update"]
    weights = [
        [p.parameter, *(shown(get(p)) for get in norms.values())] for p in diagnosis.parameters
    ]
    return [
        "<h2>Layers</h2>",
        _html.table(
            "Outputs, in the order of the forward pass; flat: the share of an activation's entries "
            "where its slope is below a hundredth of its largest",
            ["layer", "kind", *fields],
            rows,
            words=2,
        ),
        "<h2>Parameters</h2>",
        _html.table(said, ["parameter", *norms], weights),
    ]


def _root(prediction: Any) -> float | None:
    return None if prediction is None else float(prediction.forward**0.5)
