"""Norms of parameters and of their gradients, and how far the optimiser moved them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from stabilitykit._ledger import Ledger, Written, fetch, has_values
from stabilitykit._records import ParameterRecord


class _Seen(NamedTuple):
    name: str
    weight: Written
    gradient: Written | None
    before: Tensor | None
    tensor: Tensor  # the local part, to be looked at again after the step
    groups: tuple[Any, ...]  # process groups over which a sharded parameter is spread


class ParameterMeter:
    """Looks at all parameters before and after the optimiser's step.

    Args:
        model: whose `named_parameters` are measured.
        ledger: where the numbers go.
    """

    def __init__(self, model: nn.Module, ledger: Ledger) -> None:
        self.model = model
        self.ledger = ledger
        self.clear()

    def clear(self) -> None:
        self.seen: list[_Seen] = []
        self.updates: list[int] = []

    @torch.no_grad()
    def before(self, keep: bool) -> None:
        """Write down weights and gradients; with `keep`, remember weights for `after`."""
        self.clear()
        for name, parameter in self.model.named_parameters():
            if isinstance(parameter, nn.UninitializedParameter) or not has_values(parameter):
                continue
            weight, groups = local(parameter)
            gradient = parameter.grad
            self.seen.append(
                _Seen(
                    name,
                    self.ledger.moments(weight, norm=True),
                    None if gradient is None else self.ledger.moments(_values(gradient), norm=True),
                    self._copy(weight) if keep and parameter.requires_grad else None,
                    weight,
                    groups,
                )
            )

    @torch.no_grad()
    def after(self, gradients: bool) -> None:
        """Write down how far the weights moved since `before`.

        Args:
            gradients: whether to look at these again, since the step itself computed them.
        """
        if gradients:
            now = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
            self.seen = [
                seen._replace(gradient=self.ledger.moments(_values(now[seen.name]), norm=True))
                if seen.name in now
                else seen
                for seen in self.seen
            ]
        for seen in self.seen:
            moved = -1
            if seen.before is not None and seen.before.numel():
                moved = self.ledger.update(seen.before, self._copy(seen.tensor))
            self.updates.append(moved)

    def _copy(self, weight: Tensor) -> Tensor:
        if self.ledger.mode == "exact":
            return weight.detach().double().flatten()
        return self.ledger.sample(weight.detach())

    def read(self, step: int, collective: bool = True) -> list[ParameterRecord]:
        """The records, after the ledger was read.

        Args:
            step: their step.
            collective: whether the other processes read, too; else sharded parameters are left out.
        """
        rows: list[list[float]] = []
        for index, seen in enumerate(self.seen):
            weight = self.ledger.read_norm(seen.weight)
            gradient = self.ledger.read_norm(seen.gradient) if seen.gradient else (0.0, 0)
            slot = self.updates[index] if self.updates else -1
            moved, start = self.ledger.values(slot) if slot >= 0 else (0.0, 0.0)
            # A sample of a shard stands for the whole shard.
            scale = seen.tensor.numel() / max(1, 0 if seen.before is None else seen.before.numel())
            rows.append(
                [
                    weight[0] ** 2,
                    weight[1],
                    gradient[0] ** 2,
                    gradient[1],
                    scale * moved,
                    scale * start,
                ]
            )
        kept = list(zip(self.seen, rows, strict=True))
        if any(seen.groups for seen in self.seen):
            kept = _summed(kept) if collective else [k for k in kept if not k[0].groups]
        records = []
        for seen, (norm, bad, grad, grad_bad, moved, start) in kept:
            known = seen.gradient is not None
            moves = known and bool(self.updates) and start > 0
            records.append(
                ParameterRecord(
                    step,
                    seen.name,
                    math.sqrt(grad) if known else None,
                    math.sqrt(norm),
                    math.sqrt(moved / start) if moves else None,
                    round(bad),
                    round(grad_bad) if known else None,
                )
            )
        return records


def _values(gradient: Tensor) -> Tensor:
    """Those of a sparse gradient are summed over repeated places first."""
    gradient, _ = local(gradient)
    return gradient.coalesce().values() if gradient.is_sparse else gradient.detach()


def local(tensor: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    """This process's part of a sharded tensor, and the groups over which it is spread."""
    if not hasattr(tensor, "device_mesh"):
        return tensor.detach(), ()
    groups = tuple(
        tensor.device_mesh.get_group(dimension)
        for dimension, placement in enumerate(tensor.placements)  # type: ignore[attr-defined]
        if not placement.is_replicate()
    )
    return tensor.detach().to_local(), groups  # type: ignore[attr-defined]


def _summed(kept: list[tuple[_Seen, list[float]]]) -> list[tuple[_Seen, list[float]]]:
    """Sums of squares over the processes; one collective for each set of groups."""
    totals = {index: row for index, (_, row) in enumerate(kept)}
    for groups in dict.fromkeys(seen.groups for seen, _ in kept if seen.groups):
        places = [index for index, (seen, _) in enumerate(kept) if seen.groups == groups]
        device = kept[places[0]][0].tensor.device
        values = torch.tensor([kept[i][1] for i in places], dtype=torch.float64, device=device)
        for group in groups:
            distributed.all_reduce(values, group=group)
        numbers = iter(fetch(values.flatten()))
        for place in places:
            totals[place] = [next(numbers) for _ in range(6)]
    return [(seen, totals[index]) for index, (seen, _) in enumerate(kept)]
