"""How far signals and gradients move along a model, as measured and by theory; what is too far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from stabilitykit import _findings as f
from stabilitykit._findings import Finding, finding
from stabilitykit._measure import Signal
from stabilitykit._remedies import again, parameter

_FLOOR = 1e-300  # so that the logarithm of an exact zero is finite
_RESOLUTION = 2.0**-20  # of float32 is 2**-24; 16 units of it are still seen


def _log(value: float) -> float:
    return math.log(max(value, _FLOOR))


class Change(NamedTuple):
    """How the log amplitude of a signal, or the log norm of a gradient, moves along a model."""

    code: str  # of the finding where it moves too far
    sign: int  # the direction of that
    path: list[float]  # the log, before and after each layer
    stack: list[Signal]  # the layers

    @property
    def total(self) -> float:
        """From the first to the last."""
        return self.path[-1] - self.path[0]


def chance(stack: Sequence[Signal]) -> float:
    """Three deviations of the random walk of the log amplitude, see `WALK`."""
    walk = f.WALK * sum(1 / s.units for s in stack if s.weighted)
    return f.DEVIATIONS * math.sqrt(walk) / 2  # half: the amplitude is a square root


def allowance(stack: Sequence[Signal]) -> float:
    """How far the log amplitude may move through these layers, see `SCALES` and `WALK`."""
    return f.SCALES + chance(stack)


def onset(falls: Sequence[float]) -> int:
    """The first entry that falls at least half as much as they do on average.

    Examples:
        >>> onset([1.0, 1.1, 0.9]), onset([0.0, 0.1, 9.0, 0.0])
        (0, 2)
    """
    share = sum(falls) / (2 * len(falls))
    return next(i for i, fall in enumerate(falls) if fall >= share)


def _envelope(values: Sequence[float], worst: Callable[[float, float], float]) -> list[float]:
    """The largest (or smallest) of each value and all that follow it."""
    found = list(values)
    for i in range(len(found) - 2, -1, -1):
        found[i] = worst(found[i], found[i + 1])
    return found


def _alone(falls: Sequence[float], stack: Sequence[Signal]) -> Signal | None:
    """The layer that is at fault for most of the change, if one is and can be drawn again."""
    most = max(range(len(falls)), key=lambda i: falls[i])
    # What attention does to a gradient is for what it gets to say, as much as for its weights.
    drawn = stack[most].weighted and stack[most].kind != "multiheadattention"
    most_of_all = len(falls) > 1 and falls[most] > 0.75 * sum(falls)
    return stack[most] if most_of_all and drawn else None


def _redraw(signal: Signal) -> str:
    """The remedy for one layer."""
    if signal.kind == "product":
        call = f"nn.init.orthogonal_({parameter(signal.layer)}, 2**0.5)"
        return f"Draw that weight again: `{call}`."
    return again(signal.layer, signal.kind)


def forward(signals: Sequence[Signal]) -> list[Change]:
    """vanishing-signal (before the last weighted layer, the head) and exploding-signal.

    What is restored or unused later does not count: an amplitude has vanished where all that
    follows is as small, and exploded where all is as large.
    """
    first = next((i for i, s in enumerate(signals) if s.weighted), len(signals))
    signals = signals[first:]  # a normalisation of the inputs sets the scale, it loses nothing
    heads = [i for i, s in enumerate(signals) if s.weighted]
    found: list[Change] = []
    if not heads or not signals[0].source > 0:
        return found
    # What the next layer receives is more than this output where a skip connection is added.
    hidden = [
        s._replace(amplitude=max(s.amplitude, following.source))
        for s, following in pairwise(signals[: heads[-1] + 1])
    ]
    for code, worst, stack, sign in (
        ("vanishing-signal", max, hidden, -1),
        # Zeros (a branch that starts at zero) say nothing about explosion.
        ("exploding-signal", min, [s for s in signals if s.amplitude > 0], 1),
    ):
        if not stack:
            continue
        logs = [_log(signals[0].source)]
        logs += _envelope([_log(a) for a in _unrounded(logs[0], stack)], worst)
        found.append(Change(code, sign, logs, stack))
    return found


def _unrounded(source: float, stack: Sequence[Signal]) -> list[float]:
    """Amplitudes, where zeros that rounding explains keep the last value before them.

    A deviation of 1e-9 on top of a mean of ½ is 0 in float32; the layer where that happens is not
    the one where the signal is lost.

    Examples:
        >>> _unrounded(0.0, [Signal("a", "linear", 0, True, 9, 1.0, a) for a in (0.1, 1e-9, 0.0)])
        [0.1, 1e-09, 1e-09]
        >>> _unrounded(0.0, [Signal("a", "linear", 0, True, 9, 1.0, a) for a in (0.1, 0.0)])
        [0.1, 0.0]
    """
    found: list[float] = []
    for signal in stack:
        last = found[-1] if found else math.inf
        lost = signal.amplitude == 0 and _log(last) < source + math.log(_RESOLUTION)
        found.append(last if lost else signal.amplitude)
    return found


def _key(signal: Signal) -> tuple[str, str, int]:
    """Of its record and prediction, whose kind is that of the class before a parametrization."""
    kind = signal.kind.removeprefix("fsdp").removeprefix("parametrized")
    return signal.layer, kind, signal.call


def gradients(
    signals: Sequence[Signal], products: Mapping[int, float], records: Sequence[Any]
) -> list[float | None]:
    """The norm of the gradient of each signal's output, None where there is none.

    Args:
        signals: the layers.
        products: the norms of those outside of modules, by position.
        records: of the probe, which has the others.
    """
    measured = {(r.layer, r.kind, r.call): r for r in records}
    norms: list[float | None] = []
    for place, signal in enumerate(signals):
        record = measured.get(_key(signal))
        norm = products.get(place)
        if record is not None and record.grad_rms is not None:
            norm = record.grad_rms * math.prod(record.shape) ** 0.5
        norms.append(norm)
    return norms


def backward(signals: Sequence[Signal], norms: Sequence[float | None]) -> list[Change]:
    """vanishing-gradient and exploding-gradient, from the last hidden layer to the first.

    The norm of the gradient over all entries of an output is kept by weights of variance 2/fan-in
    under ReLU whatever the widths, so 1 is expected of every layer.

    Args:
        signals: the layers.
        norms: of the gradient of each output; None where there is none.
    """
    heads = [i for i, s in enumerate(signals) if s.weighted]
    hidden = signals[: heads[-1]] if heads else []
    pairs = [(s, n) for s, n in zip(hidden, norms, strict=False) if n is not None][::-1]
    if len(pairs) < 2 or not pairs[0][1] > 0:
        return []
    # A step from one output to the one below is the work of the layer above.
    found = []
    head, top = signals[heads[-1]], norms[heads[-1]] or 0.0
    for code, worst, sign, path in (
        ("vanishing-gradient", max, -1, _by_layer(pairs)),
        ("exploding-gradient", min, 1, pairs),
    ):
        logs = [_log(norm) for norm in _nonzero([norm for _, norm in path])]
        if sign > 0 and _log(top) - logs[0] > allowance([head]):
            # One layer does not do that: the last hidden one stands beside the way, as a shut gate.
            logs[0] = _log(top)
        logs = [logs[0], *_envelope(logs[1:], worst)]
        if len(path) > 1:
            found.append(Change(code, sign, logs, [s for s, _ in path]))
    return found


def _by_layer(pairs: Sequence[tuple[Signal, float]]) -> list[tuple[Signal, float]]:
    """Each layer once, at its last call: the gradients of all its calls add up in its weights."""
    squares: dict[str, float] = {}
    for signal, norm in pairs:
        squares[signal.layer] = squares.get(signal.layer, 0.0) + norm**2
    last = {signal.layer: signal for signal, _ in reversed(pairs)}
    return [(last[layer], square**0.5) for layer, square in squares.items()]


def _nonzero(norms: Sequence[float]) -> list[float]:
    """Norms, where a gradient of exact zeros keeps the last value before it.

    It was multiplied by zero, as below the B of LoRA, which starts at zero, and not made small;
    whether it stays so is judged for the weights. Underflow comes after small values, which count.

    Examples:
        >>> _nonzero([1.0, 0.5, 0.0, 0.2])
        [1.0, 0.5, 0.5, 0.2]
    """
    found: list[float] = []
    for norm in norms:
        found.append(norm if norm > 0 or not found else found[-1])
    return found


def foretold(
    signals: Sequence[Signal],
    norms: Sequence[float | None],
    records: Sequence[Any],
    layers: Sequence[Any],
) -> dict[str, Change]:
    """What `forward` and `backward` give by theory, for the weights as they are, by code.

    Predicted amplitudes and gradients go through the same rules as the measured ones, so both have
    one definition. There are none where a layer is not predicted, or follows something that is not
    modelled: theory starts anew there from what is measured.
    """
    sizes = {(one.layer, one.kind, one.call): math.prod(one.shape) for one in records}
    expected = {(one.layer, one.kind, one.call): one for one in layers}
    drawn: list[Signal] = []
    back: list[float | None] = []
    for signal, norm in zip(signals, norms, strict=True):
        key = _key(signal)
        row = expected.get(key)
        if row is None or row.amplitude is None or row.source is None or key not in sizes:
            return {}
        drawn.append(signal._replace(source=row.source, amplitude=row.amplitude))
        back.append(None if norm is None else float((row.backward * sizes[key]) ** 0.5))
    return {change.code: change for change in forward(drawn) + backward(drawn, back)}


def findings(
    signals: Sequence[Signal],
    products: Mapping[int, float],
    records: Sequence[Any],
    layers: Sequence[Any],
    rescale: str,
) -> list[Finding]:
    """The changes that go too far, each beside the same by theory.

    The scale of the weights explains a change when theory has it go as far, or farther, up to the
    walk and `AGREES`. Farther: below the rounding of float32 a measured signal falls no more.

    Args:
        signals: the layers.
        products: as for `gradients`.
        records: of the probe.
        layers: of the prediction.
        rescale: what to do where all layers are at fault.
    """
    found = []
    norms = gradients(signals, products, records)
    theory = foretold(signals, norms, records, layers)
    for change in forward(signals) + backward(signals, norms):
        code, sign, path, stack = change
        if sign * change.total <= allowance(stack):
            continue
        steps = [max(0.0, sign * (b - a)) for a, b in pairwise(path)]
        sole = _alone(steps, stack)
        start = stack[onset(steps)] if sole is None else sole
        remedy, severity = rescale if sole is None else _redraw(sole), "warning"
        if sign * change.total > 2 * allowance(stack):
            severity = "error"
        one = finding(code, start.layer, _ratio(change.total), 1.0, remedy, severity)
        if code in theory and math.isfinite(theory[code].total):
            rest = sign * (change.total - theory[code].total)
            said = rest <= math.log(f.AGREES) + chance(stack)
            one = replace(one, predicted=_ratio(theory[code].total), explained=said)
        found.append(one)
    return found


def _ratio(log: float) -> float:
    return math.exp(min(log, 700))
