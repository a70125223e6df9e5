"""The rules of a diagnosis: measurements in, findings out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from stabilitykit import _findings as f
from stabilitykit._findings import Finding, finding
from stabilitykit._measure import WEIGHTED, Line, Signal
from stabilitykit._remedies import again, parameter, unbias

# Activations that are flat on both sides, and where: |f'| is below 1 % of its maximum beyond.
BOUNDED = {
    "tanh": math.acosh(10),
    "sigmoid": 2 * math.acosh(10),
    "hardtanh": 1.0,
    "hardsigmoid": 3.0,
    "softsign": 9.0,
}
_FLOOR = 1e-300  # so that the logarithm of an exact zero is finite
_RESOLUTION = 2.0**-20  # of float32 is 2**-24; 16 units of it are still seen


def _log(value: float) -> float:
    return math.log(max(value, _FLOOR))


def allowance(stack: Sequence[Signal]) -> float:
    """How far the log amplitude may move through these layers, see `SCALES` and `WALK`."""
    walk = f.WALK * sum(1 / s.units for s in stack if s.weighted)
    return f.SCALES + f.DEVIATIONS * math.sqrt(walk) / 2  # half: the amplitude is a square root


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


def _cure(falls: Sequence[float], signal: Signal, rescale: str) -> str:
    """Draw one layer again where it alone is at fault, for most of the change, else rescale all."""
    alone = len(falls) > 1 and max(falls) > 0.75 * sum(falls)
    # What attention does to a gradient is for what it gets to say, as much as for its weights.
    if not alone or not signal.weighted or signal.kind == "multiheadattention":
        return rescale
    if signal.kind == "product":
        call = f"nn.init.orthogonal_({parameter(signal.layer)}, 2**0.5)"
        return f"Draw that weight again: `{call}`."
    return again(signal.layer, signal.kind)


def forward(signals: Sequence[Signal], rescale: str) -> list[Finding]:
    """vanishing-signal (before the last weighted layer, the head) and exploding-signal.

    What is restored or unused later does not count: an amplitude has vanished where all that
    follows is as small, and exploded where all is as large.
    """
    first = next((i for i, s in enumerate(signals) if s.weighted), len(signals))
    signals = signals[first:]  # a normalisation of the inputs sets the scale, it loses nothing
    heads = [i for i, s in enumerate(signals) if s.weighted]
    found: list[Finding] = []
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
        found += _change(code, sign, logs, stack, rescale)
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
        record = measured.get((signal.layer, signal.kind, signal.call))
        norm = products.get(place)
        if record is not None and record.grad_rms is not None:
            norm = record.grad_rms * math.prod(record.shape) ** 0.5
        norms.append(norm)
    return norms


def backward(
    signals: Sequence[Signal], norms: Sequence[float | None], rescale: str
) -> list[Finding]:
    """vanishing-gradient and exploding-gradient, from the last hidden layer to the first.

    The norm of the gradient over all entries of an output is kept by weights of variance 2/fan-in
    under ReLU whatever the widths, so 1 is expected of every layer.

    Args:
        signals: the layers.
        norms: of the gradient of each output; None where there is none.
        rescale: what to do where all layers are at fault.
    """
    heads = [i for i, s in enumerate(signals) if s.weighted]
    hidden = signals[: heads[-1]] if heads else []
    pairs = [(s, n) for s, n in zip(hidden, norms, strict=False) if n is not None][::-1]
    if len(pairs) < 2 or not pairs[0][1] > 0:
        return []
    # A step from one output to the one below is the work of the layer above.
    found = []
    for code, worst, sign, path in (
        ("vanishing-gradient", max, -1, _by_layer(pairs)),
        ("exploding-gradient", min, 1, pairs),
    ):
        logs = [_log(norm) for norm in _nonzero([norm for _, norm in path])]
        logs = [logs[0], *_envelope(logs[1:], worst)]
        if len(path) > 1:
            found += _change(code, sign, logs, [s for s, _ in path], rescale)
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


def _change(
    code: str, sign: int, path: Sequence[float], stack: Sequence[Signal], rescale: str
) -> list[Finding]:
    total = path[-1] - path[0]
    if sign * total <= allowance(stack):
        return []
    steps = [max(0.0, sign * (b - a)) for a, b in pairwise(path)]
    start = stack[onset(steps)]
    remedy, ratio = _cure(steps, start, rescale), math.exp(min(total, 700))
    severity = "error" if abs(total) > 2 * allowance(stack) else "warning"
    return [finding(code, start.layer, ratio, 1.0, remedy, severity)]


def activations(model: nn.Module, records: Sequence[Any], rescale: str) -> list[Finding]:
    """saturated and dead-units, at the layer with parameters that feeds the activation.

    Activations after the last weighted layer are outputs, which may well be at 0 and 1.
    """
    modules = dict(model.named_modules())
    holds = {name for name, m in modules.items() if list(m.parameters(recurse=False))}
    layers = [i for i, r in enumerate(records) if r.saturated is None]
    weighted = [i for i in layers if isinstance(modules.get(records[i].layer), WEIGHTED)]
    found: dict[str, Finding] = {}
    feeding = ""
    for record in records[: weighted[-1] if weighted else -1]:
        if record.saturated is None:
            feeding = record.layer if record.layer in holds else feeding
            continue
        if record.kind in BOUNDED:
            code, share, limit = "saturated", record.saturated, f.SATURATED
            expected = math.erfc(BOUNDED[record.kind] / math.sqrt(2))
            remedy = rescale
        else:
            units = record.shape[1] if len(record.shape) > 3 else record.shape[-1]
            code, share = "dead-units", record.dead
            limit = expected = f.DEAD + f.DEVIATIONS * math.sqrt(0.25 / units)
            remedy = again(feeding, type(modules.get(feeding)).__name__.lower())
        if share is not None and share > limit and code not in found:
            remedy = unbias(modules.get(feeding), feeding) or remedy
            found[code] = finding(code, feeding, share, expected, remedy)
    return list(found.values())


def step(line: Line | None) -> list[Finding]:
    """update-too-large and update-too-small, from the loss along the optimizer's step."""
    if line is None:
        return []
    if line.promise == 0:
        measured = "no weight moves by half a unit in its last place"
        remedy = "Raise the learning rate: `for g in optimizer.param_groups: g['lr'] = 1e-3`."
        small = finding("update-too-small", line.layer, measured, 1e-3, remedy, "warning")
        return [small]
    remedy = (
        f"Multiply the learning rate by {line.factor:g}: "
        f"`for g in optimizer.param_groups: g['lr'] *= {line.factor:g}`."
    )
    # A bounded loss rises by little; then even a tenth of the step is beyond the best one.
    if line.stretch > f.STEP_LARGE or (line.stretch > 2 and line.factor < 0.1):
        length = line.stretch if line.stretch > f.STEP_LARGE else 1 / line.factor
        return [finding("update-too-large", line.layer, length, 1.0, remedy)]
    # By the definition of the stretch, L(Δw) − L = |g·Δw| (stretch / 2 − 1).
    rise = abs(line.promise) * (line.stretch / 2 - 1)
    if rise > f.STEP_RISE * max(abs(line.loss), abs(line.promise)):
        return [finding("update-too-large", line.layer, line.stretch, 1.0, remedy, "warning")]
    if line.factor >= 1 / f.STEP_SMALL:
        share = 1 / line.factor
        return [finding("update-too-small", line.layer, share, 1.0, remedy, "warning")]
    return []
