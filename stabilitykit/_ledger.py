"""Statistics of many tensors, gathered on their device and read all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stabilitykit._flatness import Activation, Intervals, within
from stabilitykit._reductions import (
    double,
    extreme,
    finite,
    reduce_activation,
    reduce_ends,
    reduce_moments,
    reduce_units,
    reduce_whole,
    wide,
)
from stabilitykit._rows import Rows
from stabilitykit._samples import SAMPLE, flattened, positions, real

MODES = ("sampled", "hybrid", "exact")
KNOWN = 256  # convention: shapes whose plans are kept, 2 MiB; sequences may have ever new lengths
ONE = (1,)


class Moments(NamedTuple):
    """Of one tensor; nan when an entry is not finite."""

    mean: float
    std: float
    rms: float
    nonfinite: int


class Written(NamedTuple):
    """Where the ledger will find the statistics of one tensor.

    Attributes:
        numel: how many entries it has.
        slot: of its moments.
        total: slot whose last number is a sum that tells whether the whole is finite.
    """

    numel: int
    slot: int
    total: int = -1


class _Plan(NamedTuple):
    """How tensors of one shape, layout and dtype are written down.

    Attributes:
        rows: where.
        size: their number of entries, as the shape of a flat view; None where there is none.
        places: which entries are sampled; None when all are.
        wide: the dtype of the sum of all entries; None where it is not needed.
    """

    rows: Rows
    size: tuple[int] | None
    places: Any
    wide: torch.dtype | None


class Ledger:
    """Keeps statistics of tensors on their device until `read` fetches them in one transfer.

    Args:
        mode: "sampled", "hybrid" or "exact".
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.last: Tensor | None = None  # the sample that was taken last
        self.drained = 0  # how often rows were given back, whose samples are then gone
        self.release()

    def clear(self) -> None:
        """Forget the step, and the buffers that the next one is not likely to need."""
        self.last = None
        self.drained += 1
        for rows in self._rows.values():
            rows.reset()
        if len(self._plans) > KNOWN or len(self._positions) > KNOWN:
            self._forget()
        self._reduced: list[tuple[list[int], Tensor]] = []
        self._slots = 0
        self._results: dict[int, tuple[float, ...]] = {}

    def release(self) -> None:
        """Forget everything."""
        self._forget()
        self.clear()

    def _forget(self) -> None:
        self._rows: dict[Hashable, Rows] = {}
        self._plans: dict[Hashable, _Plan] = {}
        self._positions: dict[Hashable, Any] = {}

    def moments(self, tensor: Tensor, sampled: bool = False) -> Written:
        """Mean, std, rms and how many entries are not finite.

        Args:
            tensor: not kept.
            sampled: whether the sample has to do also in mode "hybrid".
        """
        numel = tensor.numel()
        if not numel:
            return Written(0, -1)
        if tensor.is_complex():
            tensor = real(tensor)
        if self.mode == "exact":
            flat = flattened(tensor)
            whole = double(tensor.reshape(-1) if flat is None else flat)
            return Written(numel, self.write(reduce_moments(whole[None]))[0])
        key = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, sampled)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(tensor, sampled)
        entries = tensor if plan.size is None else tensor.as_strided(plan.size, ONE)
        slot, row = self.take(plan.rows)
        total = -1
        if plan.wide is not None:
            # The sum is the cheapest pass that meets every nan and infinity; isfinite and aminmax
            # take 3 to 20 times as long on a CPU. It also brings the tensor into the cache.
            total = slot
            torch.sum(entries, tuple(range(entries.dim())), dtype=plan.wide, out=row[1])
        self.last = row[0]
        if plan.size is None:
            row[0].copy_(tensor[plan.places])
        elif plan.places is None:
            row[0].copy_(entries)
        else:
            torch.index_select(entries, 0, plan.places, out=row[0])
        return Written(numel, slot, total)

    def _plan(self, tensor: Tensor, sampled: bool) -> _Plan:
        whole, flat = tensor.numel(), flattened(tensor)
        column = ((min(SAMPLE, whole),), tensor.dtype)
        size = None if flat is None else (whole,)
        places = None if flat is not None and whole <= SAMPLE else self._places(tensor, flat)
        if whole <= SAMPLE or sampled or self.mode != "hybrid":
            rows = self.rows("moments", reduce_moments, tensor.device, column)
            return _Plan(rows, size, places, None)
        total = ((), wide(tensor.dtype))
        rows = self.rows("whole", reduce_whole, tensor.device, column, total)
        return _Plan(rows, size, places, total[1])

    def activation(self, z: Tensor, row: Tensor, f: Activation, dimension: int) -> Written:
        """All of f(z) from the sample of z and the ends of its range, without a pass over f(z).

        Args:
            z: what the activation gets, of two dimensions at least.
            row: its sample.
            f: called again on samples when these are reduced.
            dimension: of the units.
        """
        assert f.apply is not None
        reduce = partial(reduce_activation, f.apply, f.intervals)
        rows = self.rows(("activation", f), reduce, z.device, (row.shape, z.dtype))
        slot, (place,) = self.take(rows)
        place.copy_(row)
        reduce_both = partial(reduce_ends, f.apply, f.intervals)
        columns = (((z.shape[dimension],), z.dtype),) * (1 + f.both)
        ends, places = self.take(self.rows(("ends", f), reduce_both, z.device, *columns))
        extreme(torch.amax, z, dimension, places[0])
        if f.both:
            extreme(torch.amin, z, dimension, places[1])
        return Written(z.numel(), slot, ends)

    def saturation(self, z: Tensor, intervals: Intervals) -> int:
        """Share of entries within the intervals."""
        if not z.numel():
            return -1
        if self.mode == "exact":
            whole = double(z.reshape(-1))
            return self.write(within(whole, whole, intervals).double().mean().view(1, 1))[0]
        row = self.sample(z)
        slot, (place,) = self.take(self._units(intervals, z.device, (row.shape, z.dtype)))
        place.copy_(row)
        return slot

    def dead(self, z: Tensor, intervals: Intervals, dimension: int) -> int:
        """Share of units, along the dimension, that lie within one interval for the whole batch."""
        if not z.numel() or self.mode == "sampled":
            return -1
        z = z if z.dim() else z.view(1)
        wanted: list[Any] = [torch.amax]
        if z.dim() > 1 and any(start > -math.inf for start, _ in intervals):
            wanted.insert(0, torch.amin)
        columns = [((z.shape[dimension],), z.dtype)] * len(wanted)
        slot, places = self.take(self._units(intervals, z.device, *columns))
        for place, which in zip(places, wanted, strict=True):
            extreme(which, z, dimension, place)
        return slot

    def sample(
        self, tensor: Tensor, flat: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """A copy of at most 1,024 entries, spread over the tensor."""
        if flat is None:
            flat = flattened(tensor)
        places = self._places(tensor, flat)
        if flat is None:
            entries = real(tensor)[places]
            return entries if out is None else out.copy_(entries)
        if flat.numel() <= SAMPLE:
            return flat.clone() if out is None else out.copy_(flat)
        return torch.index_select(flat, 0, places, out=out)

    def _places(self, tensor: Tensor, flat: Tensor | None) -> Any:
        """Of the sample: in the flat view, or in the tensor when there is none."""
        whole = real(tensor) if flat is None else flat
        key = (whole.shape, whole.device, flat is None)
        if key not in self._positions:
            spread = positions(whole.numel(), whole.device)
            places = spread if flat is not None else torch.unravel_index(spread, whole.shape)
            self._positions[key] = places
        return self._positions[key]

    def rows(
        self,
        kind: Hashable,
        reduce: Callable[..., Tensor],
        device: torch.device,
        *columns: tuple[tuple[int, ...], torch.dtype],
    ) -> Rows:
        """Rows for numbers of one kind, which stands for all that `reduce` depends on."""
        key = (kind, device, columns)
        if key not in self._rows:
            self._rows[key] = Rows(reduce, columns, device)
        return self._rows[key]

    def _units(self, intervals: Intervals, device: torch.device, *columns: Any) -> Rows:
        return self.rows(("units", intervals), partial(reduce_units, intervals), device, *columns)

    def take(self, rows: Rows) -> tuple[int, tuple[Tensor, ...]]:
        """A new slot, and what is to be written for it."""
        slot, self._slots = self._slots, self._slots + 1
        row = rows.take(slot)
        if row is None:
            self._reduced += rows.drain()
            self.drained += 1
            row = rows.take(slot)
        return slot, row  # type: ignore[return-value]

    def write(self, values: Tensor) -> list[int]:
        """Slots for numbers that are reduced already, [rows, numbers]."""
        slots = list(range(self._slots, self._slots + len(values)))
        self._slots += len(values)
        self._reduced.append((slots, values))
        return slots

    def read(self) -> None:
        """Fetch everything that was written, in one transfer."""
        for rows in self._rows.values():
            self._reduced += rows.drain()
        if not self._reduced:
            return
        device = self._reduced[0][1].device
        parts = [values.reshape(-1).double().to(device) for _, values in self._reduced]
        numbers = fetch(torch.cat(parts))
        start = 0
        for slots, values in self._reduced:
            width = values.shape[1]
            for slot in slots:
                self._results[slot] = tuple(numbers[start : start + width])
                start += width
        self._reduced = []

    def value(self, slot: int) -> float | None:
        return self._results[slot][0] if slot >= 0 else None

    def values(self, slot: int) -> tuple[float, ...]:
        return self._results[slot]

    def read_moments(self, written: Written) -> Moments:
        if written.slot < 0:  # an empty tensor
            return Moments(math.nan, math.nan, math.nan, 0)
        mean, std, rms, share = self._results[written.slot][:4]
        count = round(share * written.numel)
        if written.total >= 0 and not count:
            count = 0 if finite(self._results[written.total][-1], rms) else 1
        if count:
            return Moments(math.nan, math.nan, math.nan, count)
        return Moments(mean, std, rms, 0)


def fetch(values: Tensor) -> list[float]:
    """The one place where the host waits for the device."""
    return values.tolist()
