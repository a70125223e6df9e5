"""Norms of parameters and of their gradients, and how far the optimiser moved them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from stabilitykit._ledger import Ledger, Written, fetch, has_values
from stabilitykit._records import ParameterRecord

_PLAIN = (Tensor, nn.Parameter)
_LEAST = 1e-30  # convention: below it, the squares in float32 are inexact


@dataclass
class _Seen:
    name: str
    parameter: Tensor
    weight: Tensor  # this process's part of it
    groups: tuple[Any, ...]  # the process groups over which a sharded parameter is spread
    written: Written
    before: Tensor
    gradient: Tensor | None = None
    square: int = -1
    update: int = -1


class ParameterMeter:
    """Looks at all parameters before and after the optimiser's step.

    Args:
        model: whose `named_parameters` are measured.
        ledger: where the numbers go.
    """

    def __init__(self, model: nn.Module, ledger: Ledger) -> None:
        self.model = model
        self.ledger = ledger
        self.seen: list[_Seen] = []

    def clear(self) -> None:
        self.seen = []

    @torch.no_grad()
    def before(self) -> None:
        """Write down weights and gradients, and keep a copy of the (sampled) weights."""
        self.clear()
        exact = self.ledger.mode == "exact"
        for name, parameter in self.model.named_parameters():
            if isinstance(parameter, nn.UninitializedParameter) or not has_values(parameter):
                continue
            weight, groups = local(parameter)
            # A pass over all weights would cost as much as the optimiser's: their sample has to do.
            copy = weight.double().flatten() if exact else self.ledger.sample(weight)
            written = self.ledger.row(weight.numel(), copy)
            seen = _Seen(name, parameter, weight, groups, written, copy)
            self._gradient(seen)
            self.seen.append(seen)

    @torch.no_grad()
    def after(self, gradients: bool) -> None:
        """Write down how far the weights moved since `before`.

        Args:
            gradients: whether to look at these again, since the step itself computed them.
        """
        exact = self.ledger.mode == "exact"
        for seen in self.seen:
            if gradients:
                self._gradient(seen)
            if seen.gradient is not None and seen.before.numel():
                weight = seen.weight
                now = weight.double().flatten() if exact else self.ledger.sample(weight)
                seen.update = self.ledger.update(seen.before, now)

    def _gradient(self, seen: _Seen) -> None:
        gradient = seen.parameter.grad
        if gradient is None:
            return
        gradient, _ = local(gradient)
        if gradient.is_sparse:  # entries at the same place are summed
            gradient = gradient.coalesce().values()
        seen.gradient = gradient
        if self.ledger.mode == "sampled":
            seen.square = self.ledger.moments(gradient).slot
        elif self.ledger.mode == "hybrid":
            seen.square = self.ledger.square(gradient)

    def _read_gradient(self, seen: _Seen) -> tuple[float, int]:
        """Sum of squares, and how many entries are not finite."""
        gradient = seen.gradient
        if gradient is None or not gradient.numel():
            return 0.0, 0
        if self.ledger.mode == "sampled":
            moments = self.ledger.read_moments(Written(gradient.numel(), seen.square))
            return moments.rms**2 * gradient.numel(), moments.nonfinite
        if self.ledger.mode == "hybrid":
            square = self.ledger.values(seen.square)[0]
            if _LEAST < square < math.inf:
                return square, 0
        # Out of float32's range, or not finite: worth a second look.
        whole = gradient.detach().flatten()
        norm = torch.linalg.vector_norm(whole, dtype=torch.promote_types(whole.dtype, torch.double))
        bad = whole.isfinite().logical_not().sum()
        square, count = fetch(torch.stack([norm.square().double(), bad.double()]))
        return square, round(count)

    @torch.no_grad()
    def read(self, step: int, collective: bool = True) -> list[ParameterRecord]:
        """The records, after the ledger was read.

        Args:
            step: their step.
            collective: whether the other processes read, too; else sharded parameters are left out.
        """
        rows: list[list[float]] = []
        for seen in self.seen:
            moments = self.ledger.read_moments(seen.written)
            square, bad = self._read_gradient(seen)
            moved, start = self.ledger.values(seen.update) if seen.update >= 0 else (0.0, 0.0)
            numel = seen.weight.numel()
            scale = numel / max(1, seen.before.numel())  # a sample of a shard stands for all of it
            weight = moments.rms**2 * numel if numel else 0.0
            rows.append([weight, moments.nonfinite, square, bad, scale * moved, scale * start])
        kept = list(zip(self.seen, rows, strict=True))
        if any(seen.groups for seen in self.seen):
            kept = _summed(kept) if collective else [k for k in kept if not k[0].groups]
        return [_record(step, seen, row) for seen, row in kept]


def _record(step: int, seen: _Seen, row: list[float]) -> ParameterRecord:
    weight, bad, gradient, gradient_bad, moved, start = row
    known = seen.gradient is not None
    return ParameterRecord(
        step,
        seen.name,
        math.sqrt(gradient) if known else None,
        math.sqrt(weight),
        math.sqrt(moved / start) if seen.update >= 0 and start > 0 else None,
        round(bad),
        round(gradient_bad) if known else None,
    )


def local(tensor: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    """This process's part of a sharded tensor, and the groups over which it is spread."""
    if type(tensor) in _PLAIN or not hasattr(tensor, "device_mesh"):
        return tensor.detach(), ()
    groups = tuple(
        tensor.device_mesh.get_group(dimension)
        for dimension, placement in enumerate(tensor.placements)  # type: ignore[attr-defined]
        if not placement.is_replicate()
    )
    return tensor.detach().to_local(), groups  # type: ignore[attr-defined]


def _summed(kept: list[tuple[_Seen, list[float]]]) -> list[tuple[_Seen, list[float]]]:
    """Sums of squares over the processes; one collective for each set of groups."""
    totals = [row for _, row in kept]
    for groups in dict.fromkeys(seen.groups for seen, _ in kept if seen.groups):
        places = [index for index, (seen, _) in enumerate(kept) if seen.groups == groups]
        device = kept[places[0]][0].weight.device
        values = torch.tensor([totals[i] for i in places], dtype=torch.float64, device=device)
        for group in groups:
            distributed.all_reduce(values, group=group)
        numbers = iter(fetch(values.flatten()))
        for place in places:
            totals[place] = [next(numbers) for _ in totals[place]]
    return [(seen, row) for (seen, _), row in zip(kept, totals, strict=True)]
