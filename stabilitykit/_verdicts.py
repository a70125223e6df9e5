"""The rules of a diagnosis for saturated and dead units and for the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stabilitykit import _findings as f
from stabilitykit._findings import Finding, finding
from stabilitykit._line import Line
from stabilitykit._measure import WEIGHTED
from stabilitykit._remedies import again, unbias
from stabilitykit._trial import Trial

# Activations that are flat on both sides, and where: |f'| is below 1 % of its maximum beyond.
BOUNDED = {
    "tanh": math.acosh(10),
    "sigmoid": 2 * math.acosh(10),
    "hardtanh": 1.0,
    "hardsigmoid": 3.0,
    "softsign": 9.0,
}


def activations(
    model: nn.Module, records: Sequence[Any], rescale: str, gates: set[tuple[str, int]]
) -> list[Finding]:
    """saturated and dead-units, at the layer with parameters that feeds the activation.

    Activations after the last weighted layer are outputs, which may well be at 0 and 1. So may
    gates be shut or open, unless they are read again and again, as those of a recurrence.
    """
    modules = dict(model.named_modules())
    holds = {name for name, m in modules.items() if list(m.parameters(recurse=False))}
    layers = [i for i, r in enumerate(records) if r.saturated is None]
    weighted = [i for i in layers if isinstance(modules.get(records[i].layer), WEIGHTED)]
    found: dict[str, Finding] = {}
    feeding = ""
    counts: dict[str, int] = {}
    often = {record.layer for record in records if record.call}
    for record in records[: weighted[-1] if weighted else -1]:
        if record.saturated is None:
            feeding = record.layer if record.layer in holds else feeding
            continue
        place = record.kind, counts.get(record.kind, 0)
        counts[record.kind] = place[1] + 1
        if place in gates and feeding not in often:
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


def spoilt(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Finding | None:
    """non-finite: the first weight that the optimizer's step took beyond all numbers."""
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups if optimizer is not None else ():
        for p in group["params"]:
            number = int((~p.detach().isfinite()).sum())
            if not number or id(p) not in names:
                continue
            said = f"{f.not_finite(number, names[id(p)])} after the optimizer's step"
            remedy = "Lower the learning rate, or mend what optimizer.step makes of the gradient."
            least = torch.finfo(p.dtype).tiny  # below, it may round to 0
            if group.get("eps", 1.0) < least:
                call = f"for g in optimizer.param_groups: g['eps'] = {max(least, 1e-8):g}"
                remedy = f"Raise eps, which keeps the optimizer from dividing by zero: `{call}`."
            return finding("non-finite", names[id(p)], said, 0, remedy)
    return None


def overshoots(line: Line) -> str:
    """The severity of update-too-large as this one step alone would have it, else nothing."""
    if line.stretch > 1 and line.factor < 0.1 and line.overall > f.STEP_WHOLE:
        return "error"
    # By the definition of the stretch, L(Δw) − L = |g·Δw| (stretch / 2 − 1).
    rise = abs(line.promise) * (line.stretch / 2 - 1)
    if not rise > f.STEP_RISE * abs(line.loss):
        return ""
    # A bounded loss rises by little; then even a tenth of the step is beyond the best one.
    if line.stretch > f.STEP_LARGE or (line.stretch > 2 and line.factor < 0.1):
        return "error"
    return "warning" if rise > f.STEP_RISE * abs(line.promise) else ""


def step(line: Line | None, trial: Trial | None) -> list[Finding]:
    """update-too-large and update-too-small, from the loss along the optimizer's step.

    Args:
        line: that loss; None where there is none, or where the step does not descend.
        trial: what more steps lead to, where this one `overshoots`.
    """
    if line is None:
        return []
    if line.promise == 0:
        measured = "no weight moves by half a unit in its last place"
        remedy = (
            "Raise the learning rate, and diagnose once more, which then can measure the step: "
            "`for g in optimizer.param_groups: g['lr'] = max(1e-3, 1000 * g['lr'])`."
        )
        small = finding("update-too-small", line.layer, measured, 1e-3, remedy, "warning")
        return [small]
    severity = overshoots(line)
    if severity and not (trial is not None and trial.enough):
        if trial is not None and trial.lowers and not line.overall > f.STEP_WHOLE:
            severity = "warning"
        beyond = line.stretch > f.STEP_LARGE or severity == "warning"
        length = line.stretch if beyond else 1 / line.factor
        return [
            finding("update-too-large", line.layer, length, 1.0, _multiply(line.factor), severity)
        ]
    # A loss without curvature, as a linear critic's, has no best step: then the weights are the
    # measure of what is short, and of how far to lengthen it.
    if line.factor >= 1 / f.STEP_SMALL and line.overall < f.STEP_SMALL:
        longer = min(line.factor, 1 / line.overall) * f.STEP_AIM
        share, remedy = 1 / line.factor, _multiply(float(f"{longer:.1g}"))
        return [finding("update-too-small", line.layer, share, 1.0, remedy, "warning")]
    return []


def _multiply(factor: float) -> str:
    return (
        f"Multiply the learning rate by {factor:g}: "
        f"`for g in optimizer.param_groups: g['lr'] *= {factor:g}`."
    )
