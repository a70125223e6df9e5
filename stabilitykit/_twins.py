"""Units that are equal and stay so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stabilitykit import _findings as f
from stabilitykit._findings import Finding, finding
from stabilitykit._measure import WEIGHTED, Signal


def tied(model: nn.Module, signals: Sequence[Signal]) -> list[Finding]:
    """tied-units: equal incoming weights that also get equal gradients, thus stay equal."""
    modules = dict(model.named_modules())
    for signal in signals:
        module = modules.get(signal.layer)
        if not isinstance(module, WEIGHTED):
            continue
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim < 2 or weight.grad is None or weight.shape[0] < 2:
                continue
            bias = module._parameters.get(name.replace("weight", "bias"))
            share = _twins(weight, bias if bias is not weight else None)
            if share > f.TIED:
                remedy = (
                    "Draw all weights again, each unit its own: `model.apply(lambda m: "
                    "m.reset_parameters() if hasattr(m, 'reset_parameters') else None)`."
                )
                return [finding("tied-units", signal.layer, share, 1 / len(weight), remedy)]
    return []


def _twins(weight: Tensor, bias: Tensor | None) -> float:
    """Largest share of rows that are bitwise equal and whose gradients are equal to 1e-4."""
    rows, slopes = weight.detach().flatten(1), _gradient(weight).flatten(1)
    if bias is not None and bias.grad is not None and len(bias) == len(rows):
        rows = torch.cat([rows, bias.detach()[:, None]], 1)
        slopes = torch.cat([slopes, _gradient(bias)[:, None]], 1)
    # One number for a row: equal rows give equal numbers, others do not by any chance.
    key = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device).sin()
    _, group, counts = (rows.double() * key).sum(1).unique(return_inverse=True, return_counts=True)
    own = group == counts.argmax()
    if int(own.sum()) < 2:
        return 0.0
    slope = (slopes[own].double() * key).sum(1)
    scale = float(slopes.double().norm(dim=1).max())
    near = (slope[:, None] - slope[None, :]).abs() <= 1e-4 * scale
    return int(near.sum(1).max()) / len(rows)


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient
