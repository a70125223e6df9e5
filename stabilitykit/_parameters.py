"""Norms of parameters and of their gradients, and how far the optimiser moved them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._C import _functorch

from stabilitykit._ledger import Ledger
from stabilitykit._reading import Reading, Written, fetch
from stabilitykit._records import ParameterRecord
from stabilitykit._reductions import euclidean, reduce_update, square_and_nonfinite, wide
from stabilitykit._samples import SAMPLE, copy_entries, flattened, has_values, real
from stabilitykit._sharded import PLAIN, local

# Convention: an rms between which the squares of entries are in float32's range, and normal, since
# a norm of squares below 1e-38 takes a hundred times as long.
_SMALL, _LARGE = 1e-15, 1e15
_INSIDE = attrgetter("_parameters", "_modules")


@dataclass(slots=True)
class _Seen:
    name: str
    parameter: Tensor
    weight: Tensor  # this process's part of it
    groups: tuple[Any, ...]  # the process groups over which a sharded parameter is spread
    pointer: int  # to its values, which no longer stand there when another tensor was put in
    flat: Tensor | None
    places: Tensor | None  # which of its values are sampled; None when all of them are
    before: Tensor = field(init=False)  # its (sampled) values before the step, and after it
    after: Tensor = field(init=False)
    gradient: Tensor | None = None
    norm: int = -1  # slot of the gradient's norm, or of its moments
    double: bool = False  # whether its squares were summed in float64
    updated: bool = False
    slot: int = -1  # of what `reduce_update` gives


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
        self._known: list[_Seen] = []  # as they were seen in the step before
        self._modules: list[nn.Module] = []  # in which they are
        self._placed: tuple[list[Any], ...] = ()
        self._samples: list[tuple[list[_Seen], Tensor]] = []  # all of one kind, before and after
        self._rms: dict[str, float] = {}  # of the gradients, in the step before

    def clear(self) -> None:
        """Forget the step, and not where parameters are."""
        for seen in self.seen:
            seen.gradient, seen.norm, seen.updated = None, -1, False
        self.seen = []
        if self.ledger.mode == "exact":  # whose copies are as large as the model
            self._known, self._samples, self._modules = [], [], []

    def release(self) -> None:
        """Forget everything."""
        self.clear()
        self._known, self._samples, self._modules = [], [], []

    def before(self) -> None:
        """Write down weights and gradients, and keep a copy of the (sampled) weights."""
        self.clear()
        if not self._still():
            self._place()
        self.seen = self._known
        self._copy(self.seen, [seen.before for seen in self.seen])
        self._gradients()

    def _still(self) -> bool:
        """Whether all parameters are where they were, as buffers assume."""
        return bool(self._modules) and self._place_now() == self._placed

    def _place_now(self) -> tuple[list[Any], ...]:
        """Under which names which modules and parameters stand, and where their values are."""
        # By C alone: in the middle of a step each line of Python costs several times its usual.
        inside = [*chain.from_iterable(map(_INSIDE, self._modules))]
        parameters = [seen.parameter for seen in self._known]
        looks = Tensor.data_ptr, Tensor.size, Tensor.stride
        return (
            [*chain.from_iterable(inside)],
            [*map(id, chain.from_iterable(map(dict.values, inside)))],
            *([*map(look, parameters)] for look in looks),
        )

    def _place(self) -> None:
        """Find every parameter's values, and make room for them twice."""
        exact, self._modules = self.ledger.mode == "exact", list(self.model.modules())
        self._known, self._samples = [], []
        kinds: dict[Any, list[_Seen]] = {}
        for name, parameter in self.model.named_parameters():
            unready = isinstance(parameter, nn.UninitializedParameter)
            wrapped = _functorch.is_functorch_wrapped_tensor(parameter)  # put in for one call
            usual = type(parameter) in PLAIN
            if not usual or parameter.is_complex() or unready or wrapped:
                self._modules = []  # these are looked up each time
            if not has_values(parameter) or unready or wrapped:
                continue
            weight, groups = local(parameter)
            weight = real(weight)
            pointer = parameter.data_ptr() if usual else 0
            whole = exact or weight.numel() <= SAMPLE
            places = None if whole else self.ledger.places(weight)
            seen = _Seen(name, parameter, weight, groups, pointer, flattened(weight), places)
            self._known.append(seen)
            key = weight.dtype, weight.device, weight.numel() if exact else None
            kinds.setdefault(key, []).append(seen)
        for (dtype, device, _), group in kinds.items():
            # What differs in size is reduced together, the rest of a row being 0.
            width = max(seen.weight.numel() if seen.places is None else SAMPLE for seen in group)
            with torch.inference_mode(False):  # else they could be written in that mode alone
                rows = torch.zeros((2, len(group), width), dtype=dtype, device=device)
            for index, seen in enumerate(group):
                pair, numel = rows[:, index], seen.weight.numel()
                if seen.places is None:
                    pair = pair[:, :numel].view(2, *seen.weight.shape)
                seen.before, seen.after = pair
            self._samples.append((group, rows))
        if any(isinstance(module, torch.jit.ScriptModule) for module in self._modules):
            self._modules = []
        self._placed = self._place_now() if self._modules else ()

    def _copy(self, seen: list[_Seen], rows: list[Tensor]) -> None:
        """Write down the (sampled) weights: a pass over all would cost as much as the optimiser."""
        small: tuple[list[Tensor], list[Tensor]] = [], []
        for one, row in zip(seen, rows, strict=True):
            if one.places is None:
                small[0].append(row)
                small[1].append(one.weight)
            else:
                copy_entries(one.weight, one.flat, one.places, row)
        if small[0]:
            torch._foreach_copy_(*small)

    def after(self, gradients: bool) -> None:
        """Write down how far the weights moved since `before`.

        Args:
            gradients: whether to look at these again, since the step itself computed them.
        """
        if gradients:
            self._gradients()
        updated = [seen for seen in self.seen if seen.gradient is not None]
        for seen in updated:
            seen.updated = True
            if seen.pointer and seen.parameter.data_ptr() != seen.pointer:  # as after p.data = …
                seen.weight = real(seen.parameter.detach())
                seen.flat = flattened(seen.weight)
        self._copy(updated, [seen.after for seen in updated])

    def reduce(self) -> None:
        """What is still samples, as numbers in the ledger."""
        for group, rows in self._samples if self.seen else []:
            for seen, slot in zip(group, self.ledger.write(reduce_update(rows)), strict=True):
                seen.slot = slot

    def _gradients(self) -> None:
        together: dict[Any, list[_Seen]] = {}
        for seen in self.seen:
            gradient = seen.parameter.grad
            if gradient is None:
                continue
            if type(gradient) not in PLAIN:
                gradient, _ = local(gradient)
            if gradient.is_sparse:  # entries at the same place are summed
                gradient = gradient.coalesce().values()
            if type(gradient) not in PLAIN and not has_values(gradient):
                continue
            seen.gradient = gradient
            if self.ledger.mode == "sampled":
                seen.norm = self.ledger.moments(real(gradient)).slot
            elif self.ledger.mode == "exact":
                (seen.norm,) = self.ledger.write(square_and_nonfinite(gradient)[None])
            elif self.ledger.mode == "hybrid" and gradient.numel():
                known = _SMALL < self._rms.get(seen.name, 0.0) < _LARGE
                seen.double = not known and gradient.device.type != "mps"
                key = gradient.dtype, gradient.device, seen.double
                together.setdefault(key, []).append(seen)
        for (dtype, device, precise), group in together.items():
            gradients = [real(seen.gradient) for seen in group if seen.gradient is not None]
            if dtype == torch.float32 and not precise:
                norms = euclidean(gradients, device)
            else:
                wider = torch.float64 if precise else wide(gradients[0].dtype)
                norms = torch.stack([torch.linalg.vector_norm(g, dtype=wider) for g in gradients])
            slots = self.ledger.write(norms[:, None])
            for seen, slot in zip(group, slots, strict=True):
                seen.norm = slot

    def _read_gradients(self, reading: Reading) -> list[tuple[float, int]]:
        """Of each: the sum of squares, and how many entries are not finite."""
        found: list[tuple[float, int]] = []
        doubtful: dict[int, Tensor] = {}
        for index, seen in enumerate(self.seen):
            gradient = seen.gradient
            if gradient is None or not gradient.numel():
                found.append((0.0, 0))
                continue
            if self.ledger.mode == "sampled":
                numel = real(gradient).numel()
                moments = reading.moments(Written(numel, seen.norm))
                found.append((moments.rms**2 * numel, moments.nonfinite))
                continue
            if self.ledger.mode == "exact":
                square, bad = reading.values(seen.norm)
                found.append((square, round(bad)))
                continue
            (norm,) = reading.values(seen.norm)
            self._rms[seen.name] = norm / math.sqrt(gradient.numel())
            if norm < math.inf and (seen.double or self._rms[seen.name] > _SMALL):
                found.append((norm * norm, 0))
                continue
            # Out of float32's range since the step before, or not finite: worth a second look.
            doubtful[index] = square_and_nonfinite(gradient)
            found.append((0.0, 0))
        if doubtful:
            device = next(iter(doubtful.values())).device
            numbers = fetch(torch.cat([pair.to(device) for pair in doubtful.values()]))
            for index, total, bad in zip(doubtful, numbers[::2], numbers[1::2], strict=True):
                found[index] = total, round(bad)
        return found

    def read(self, step: int, reading: Reading, collective: bool = True) -> list[ParameterRecord]:
        """The records.

        Args:
            step: their step.
            reading: of the ledger.
            collective: whether the other processes read, too; else sharded parameters are left out.
        """
        rows: list[list[float]] = []
        for seen, (square, bad) in zip(self.seen, self._read_gradients(reading), strict=True):
            start, moved = reading.values(seen.slot)
            wrong = 0
            if not math.isfinite(start):  # worth a second look, at the sample that is still there
                (share,) = fetch(seen.before.isfinite().logical_not().float().mean()[None])
                wrong = round(share * seen.weight.numel())
            # A sample stands for all of its shard.
            scale = seen.weight.numel() / max(1, seen.before.numel())
            weight = math.nan if wrong else scale * start**2
            moved = scale * moved**2 if seen.updated else 0.0
            rows.append([weight, wrong, square, bad, moved, scale * start**2])
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
        math.sqrt(moved / start) if seen.updated and start > 0 else None,
        round(bad),
        round(gradient_bad) if known else None,
    )


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
