"""Norms of parameters and of their gradients, and how far the optimiser moved them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from stabilitykit._ledger import Ledger, Written, fetch
from stabilitykit._records import ParameterRecord
from stabilitykit._reductions import double, reduce_update, wide
from stabilitykit._samples import SAMPLE, flattened, has_values, real

_PLAIN = (Tensor, nn.Parameter)
# Convention: an rms between which the squares of entries are in float32's range, and normal, since
# a norm of squares below 1e-38 takes a hundred times as long.
_SMALL, _LARGE = 1e-15, 1e15


@dataclass
class _Seen:
    name: str
    parameter: Tensor
    weight: Tensor  # this process's part of it
    groups: tuple[Any, ...]  # the process groups over which a sharded parameter is spread
    slot: int  # of what `reduce_update` gives
    flat: Tensor | None
    before: Tensor
    after: Tensor | None
    gradient: Tensor | None = None
    norm: int = -1  # slot of the gradient's norm, or of its moments
    double: bool = False  # whether its squares were summed in float64
    updated: bool = False


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
        self._rms: dict[str, float] = {}  # of the gradients, in the step before

    def clear(self) -> None:
        self.seen = []

    @torch.no_grad()
    def before(self) -> None:
        """Write down weights and gradients, and keep a copy of the (sampled) weights."""
        self.clear()
        for name, parameter in self.model.named_parameters():
            if isinstance(parameter, nn.UninitializedParameter) or not has_values(parameter):
                continue
            weight, groups = local(parameter)
            self.seen.append(_Seen(name, parameter, weight, groups, *self._weight(weight)))
        self._gradients()

    def _weight(self, weight: Tensor) -> tuple[int, Tensor | None, Tensor, Tensor | None]:
        """Its slot, a flat view, its (sampled) values, and where to write them after the step."""
        if self.ledger.mode == "exact":
            before = double(weight.reshape(-1))
            (slot,) = self.ledger.write(reduce_update(before[None], before[None]))
            return slot, None, before, None
        # A pass over all weights would cost as much as the optimiser's: their sample has to do.
        flat = flattened(weight)
        whole = real(weight) if flat is None else flat
        shape = (min(SAMPLE, whole.numel()),)
        slot, (before, after) = self.ledger.rows(
            "update", reduce_update, whole.dtype, whole.device, shape, shape, held=True
        )
        self.ledger.sample(weight, flat, before)
        return slot, flat, before, after

    @torch.no_grad()
    def after(self, gradients: bool) -> None:
        """Write down how far the weights moved since `before`.

        Args:
            gradients: whether to look at these again, since the step itself computed them.
        """
        if gradients:
            self._gradients()
        for seen in self.seen:
            if seen.gradient is None:
                continue
            seen.updated = True
            if seen.after is not None:
                self.ledger.sample(seen.weight, seen.flat, seen.after)
            else:
                after = double(seen.weight.reshape(-1))
                values = reduce_update(seen.before[None], after[None])
                (seen.slot,) = self.ledger.write(values)

    def _gradients(self) -> None:
        together: dict[Any, list[_Seen]] = {}
        for seen in self.seen:
            gradient = seen.parameter.grad
            if gradient is None:
                continue
            gradient, _ = local(gradient)
            if gradient.is_sparse:  # entries at the same place are summed
                gradient = gradient.coalesce().values()
            seen.gradient = gradient
            if self.ledger.mode == "sampled":
                seen.norm = self.ledger.moments(gradient).slot
            elif self.ledger.mode == "exact":
                (seen.norm,) = self.ledger.write(_square_and_nonfinite(gradient)[None])
            elif self.ledger.mode == "hybrid" and gradient.numel():
                known = _SMALL < self._rms.get(seen.name, 0.0) < _LARGE
                seen.double = not known and gradient.device.type != "mps"
                key = gradient.dtype, gradient.device, seen.double
                together.setdefault(key, []).append(seen)
        for (dtype, _, precise), group in together.items():
            gradients = [real(seen.gradient) for seen in group if seen.gradient is not None]
            if dtype == torch.float32 and not precise:
                norms = list(torch._foreach_norm(gradients))  # as in clip_grad_norm_
            else:
                wider = torch.float64 if precise else wide(gradients[0].dtype)
                norms = [torch.linalg.vector_norm(g, dtype=wider) for g in gradients]
            slots = self.ledger.write(torch.stack(norms)[:, None])
            for seen, slot in zip(group, slots, strict=True):
                seen.norm = slot

    def _read_gradients(self) -> list[tuple[float, int]]:
        """Of each: the sum of squares, and how many entries are not finite."""
        found: list[tuple[float, int]] = []
        doubtful: dict[int, Tensor] = {}
        for index, seen in enumerate(self.seen):
            gradient = seen.gradient
            if gradient is None or not gradient.numel():
                found.append((0.0, 0))
                continue
            if self.ledger.mode == "sampled":
                moments = self.ledger.read_moments(Written(gradient.numel(), seen.norm))
                found.append((moments.rms**2 * gradient.numel(), moments.nonfinite))
                continue
            if self.ledger.mode == "exact":
                square, bad = self.ledger.values(seen.norm)
                found.append((square, round(bad)))
                continue
            (norm,) = self.ledger.values(seen.norm)
            self._rms[seen.name] = norm / math.sqrt(gradient.numel())
            if norm < math.inf and (seen.double or self._rms[seen.name] > _SMALL):
                found.append((norm * norm, 0))
                continue
            # Out of float32's range since the step before, or not finite: worth a second look.
            doubtful[index] = _square_and_nonfinite(gradient)
            found.append((0.0, 0))
        if doubtful:
            device = next(iter(doubtful.values())).device
            numbers = fetch(torch.cat([pair.to(device) for pair in doubtful.values()]))
            for index, total, bad in zip(doubtful, numbers[::2], numbers[1::2], strict=True):
                found[index] = total, round(bad)
        return found

    @torch.no_grad()
    def read(self, step: int, collective: bool = True) -> list[ParameterRecord]:
        """The records, after the ledger was read.

        Args:
            step: their step.
            collective: whether the other processes read, too; else sharded parameters are left out.
        """
        rows: list[list[float]] = []
        for seen, (square, bad) in zip(self.seen, self._read_gradients(), strict=True):
            moved, start, share = self.ledger.values(seen.slot)
            numel = seen.weight.numel()
            wrong = round(share * numel) if numel else 0
            scale = numel / max(1, seen.before.numel())  # a sample of a shard stands for all of it
            weight = math.nan if wrong else scale * start
            moved = scale * moved if seen.updated else 0.0
            rows.append([weight, wrong, square, bad, moved, scale * start])
        kept = list(zip(self.seen, rows, strict=True))
        if any(seen.groups for seen in self.seen):
            kept = _summed(kept) if collective else [k for k in kept if not k[0].groups]
        return [_record(step, seen, row) for seen, row in kept]


def _square_and_nonfinite(gradient: Tensor) -> Tensor:
    """The sum of squares in float64, and how many entries are not finite."""
    whole = gradient.detach().flatten()
    wider = torch.promote_types(whole.dtype, torch.double)
    square = torch.linalg.vector_norm(whole, dtype=wider).square().double()
    return torch.stack([square, whole.isfinite().logical_not().sum().double()])


def _record(step: int, seen: _Seen, row: list[float]) -> ParameterRecord:
    weight, bad, gradient, gradient_bad, moved, start = row
    known = seen.gradient is not None
    return ParameterRecord(
        step,
        seen.name,
        math.sqrt(gradient) if known else None,
        math.sqrt(weight),
        math.sqrt(moved / start) if seen.updated and start > 0 else None,
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
