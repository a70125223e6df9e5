"""Units that are equal and stay so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from stabilitykit import _findings as f
from stabilitykit._findings import Finding, finding
from stabilitykit._measure import WEIGHTED, Signal


def tied(
    model: nn.Module, signals: Sequence[Signal], before: Mapping[str, Tensor]
) -> list[Finding]:
    """tied-units: equal incoming weights that also get equal gradients, thus stay equal.

    Gradients of zero are equal too. Below a scale that starts at zero they only are so until that
    has moved, which is why they are those after the small steps of `unmoved`.

    Args:
        model: after those.
        signals: the layers.
        before: the parameters before those.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    given = {id(p): before[name] for name, p in parameters.items()}  # a tied weight has two names
    for name, module in modules.items():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            share, units = _looked_up(module, given)
            if share > f.TIED:
                return [finding("tied-units", name, share, 1 / units, _RESET)]
    for signal in signals:
        module, plain = modules.get(signal.layer), parameters.get(signal.layer)
        share, units, remedy = 0.0, 1, _RESET
        if plain is not None and plain.ndim == 2 and plain.grad is not None:
            # A parameter in a product, whose units are its rows or its columns.
            pair = before[signal.layer], _gradient(plain)
            ways = [(_twins(*way), len(way[0])) for way in (pair, (pair[0].T, pair[1].T))]
            (share, units), remedy = max(ways), _DRAW
        elif isinstance(module, WEIGHTED):
            share, units = max(_layer(module, given))
        if share > f.TIED:
            return [finding("tied-units", signal.layer, share, 1 / units, remedy)]
    return []


def _looked_up(module: nn.Module, given: Mapping[int, Tensor]) -> tuple[float, int]:
    """The same of an embedding, whose units are its columns."""
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.grad is None or id(weight) not in given:
        return 0.0, 1
    return _twins(given[id(weight)].T, _gradient(weight).T), weight.shape[1]


_RESET = (
    "Draw all weights again, each unit its own: `model.apply(lambda m: m.reset_parameters() if "
    "hasattr(m, 'reset_parameters') else None)`."
)
_DRAW = (
    "Draw all weights again, each unit its own: "
    "`[nn.init.xavier_uniform_(p) for p in model.parameters() if p.ndim > 1]`."
)


def _layer(module: nn.Module, given: Mapping[int, Tensor]) -> Iterator[tuple[float, int]]:
    """The share of twins and the number of units, of each weight."""
    yield 0.0, 1
    for name, weight in module.named_parameters(recurse=False):
        if weight.ndim < 2 or weight.grad is None:
            continue
        rows, slopes = given[id(weight)].flatten(1), _gradient(weight).flatten(1)
        bias = module._parameters.get(name.replace("weight", "bias"))
        fits = bias is not None and bias is not weight and bias.grad is not None
        if bias is not None and fits and len(bias) == len(rows):
            rows = torch.cat([rows, given[id(bias)][:, None]], 1)
            slopes = torch.cat([slopes, _gradient(bias)[:, None]], 1)
        yield _twins(rows, slopes), len(rows)


def _twins(rows: Tensor, slopes: Tensor) -> float:
    """Largest share of rows that are bitwise equal and whose gradients are equal to 1e-4."""
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
