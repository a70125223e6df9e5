"""Statistics of many tensors, gathered on their device and read all at once."""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stabilitykit._flatness import SURELY, Activation, Intervals, bounded, within
from stabilitykit._reading import ALIVE, Fetched, Written, fetch
from stabilitykit._reductions import double, extreme, reduce_moments, wide
from stabilitykit._rows import CHUNK, Ends, Flat, Reduced, Rows, Samples
from stabilitykit._samples import SAMPLE, copy_entries, flattened, positions, real

MODES = ("sampled", "hybrid", "exact")
_LARGE = 2**17  # fitted: entries from which a look at a part of them pays
_ENOUGH = 256  # convention: entries of a unit that tell, nearly always, that it is not dead
KNOWN = 256  # convention: shapes whose plans are kept, 2 MiB; sequences may have ever new lengths


# Of a tensor: where its entries were written down, they, and their sum if it was needed; valid as
# long as `Ledger.drained` is the same.
Sample = tuple[Samples, Tensor, Tensor | None]


class _Plan(NamedTuple):
    """How tensors of one shape, layout and dtype are written down.

    Attributes:
        rows: where.
        size: their number of entries, as the shape of a flat view.
        flat: whether there is one.
        places: which entries are sampled.
        wide: the dtype of the sum of all entries; None where it is not needed.
        channels: size and stride of the first entry of every channel.
    """

    rows: Samples
    size: tuple[int]
    flat: bool
    places: Tensor
    wide: torch.dtype | None
    channels: tuple[tuple[int, ...], tuple[int, ...]]


class Ledger:
    """Keeps statistics of tensors on their device until `read` fetches them in one transfer.

    Args:
        mode: "sampled", "hybrid" or "exact".
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.last: Sample | None = None  # that was taken last
        self.drained = 0  # how often rows were given back, whose samples are then gone
        self.release()

    def clear(self) -> None:
        """Forget the step, and the buffers that the next one is not likely to need."""
        self.last = None
        self.drained += 1
        for rows in self._rows.values():
            rows.reset()
        if max(len(self._plans), len(self._places), len(self._ends)) > KNOWN:
            self._forget()
        for ends in self._ends.values():
            ends.reset()
        self._reduced: Reduced = []
        self._slots = 0

    def release(self) -> None:
        """Forget everything."""
        self._forget()
        self.clear()

    def _forget(self) -> None:
        self._rows: dict[Hashable, Rows] = {}
        self._ends: dict[Hashable, Ends] = {}
        self._plans: dict[Hashable, _Plan] = {}
        self._places: dict[Hashable, Tensor] = {}

    def moments(self, tensor: Tensor, sampled: bool = False) -> Written:
        """Mean, std, rms and how many entries are not finite.

        Args:
            tensor: not kept.
            sampled: whether the sample has to do also in mode "hybrid".
        """
        key = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, sampled)
        plan = self._plans.get(key)
        if plan is None:
            if not tensor.numel():
                return Written(0, -1)
            if tensor.is_complex():
                return self.moments(real(tensor), sampled)
            if self.mode == "exact":
                rows = reduce_moments(double(tensor.reshape(1, -1)))
                return Written(tensor.numel(), self.write(rows)[0])
            plan = self._plans[key] = self._plan(tensor, sampled)
        if plan.flat:
            return self._write(tensor, plan)
        slot, (row, total) = self.take(plan.rows)
        if plan.wide is not None:
            torch.sum(tensor, tuple(range(tensor.dim())), dtype=plan.wide, out=total)
        copy_entries(tensor, None, plan.places, row)
        self.last = plan.rows, row, None if plan.wide is None else total
        return Written(plan.size[0], slot, -1 if plan.wide is None else slot)

    def known(
        self, tensor: Tensor, sampled: bool = False, by_channels: bool = False
    ) -> Written | None:
        """`moments`, quickly; None where no tensor like it was seen before.

        Args:
            tensor: not kept.
            sampled: whether the sample has to do also in mode "hybrid".
            by_channels: whether each channel (dimension 1) is finite in whole or nowhere, so that
                its first entry tells which. Half precision may overflow anywhere.
        """
        key = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, sampled)
        plan = self._plans.get(key)
        if plan is None or not plan.flat:
            return None
        return self._write(tensor, plan, by_channels and plan.wide is tensor.dtype)

    def _write(self, tensor: Tensor, plan: _Plan, by_channels: bool = False) -> Written:
        """`moments` of a tensor that has a flat view."""
        rows, size, _, places, wide, channels = plan
        slot, (row, total) = self.take(rows)
        flat = tensor.as_strided(size, (1,))
        if wide is None:
            torch.index_select(flat, 0, places, out=row)
            self.last = rows, row, None
            return Written(size[0], slot)
        # The sum is the cheapest pass that meets every nan and infinity; isfinite and aminmax take
        # 3 to 20 times as long on a CPU. It also brings the tensor into the cache.
        summed = tensor.as_strided(*channels) if by_channels else flat
        torch.sum(summed, (0,), dtype=wide, out=total)
        torch.index_select(flat, 0, places, out=row)
        self.last = rows, row, total
        return Written(size[0], slot, slot)

    def _plan(self, tensor: Tensor, sampled: bool) -> _Plan:
        whole = tensor.numel()
        rows = self._rows_of(Samples, SAMPLE, tensor.dtype, tensor.device)
        summed = whole > SAMPLE and not sampled and self.mode == "hybrid"
        flat, places = flattened(tensor) is not None, self.places(tensor)
        if whole < SAMPLE:  # the first entry fills the row, as `moments` knows
            places = torch.cat([places, places.new_zeros(SAMPLE - whole)])
        channels = tuple(tensor.shape[1:2]), tensor.stride()[1:2]
        return _Plan(rows, (whole,), flat, places, wide(tensor.dtype) if summed else None, channels)

    def activation(self, z: Tensor, sample: Sample | None, f: Activation, units: int) -> Written:
        """All of f(z) from the sample of z and the ends of its range, without a pass over f(z).

        Args:
            z: what the activation gets, of two dimensions at least.
            sample: of z, since which no row was given back; None where there is none yet.
            f: called again on samples when these are reduced.
            units: the dimension of units.
        """
        if sample is None:
            self.moments(z, sampled=True)
            sample = self.last
        assert sample is not None
        rows, row, total = sample
        slot, self._slots = self._slots, self._slots + 1
        rows.passed(f, row, slot)
        if self._alive(z, total, f, units):
            return Written(z.numel(), slot, ALIVE)
        ends, self._slots = self._slots, self._slots + 1
        self._add(ends, z, f.intervals, f.apply, units, f.both)
        return Written(z.numel(), slot, ends)

    def _alive(self, z: Tensor, total: Tensor | None, f: Activation, units: int) -> bool:
        """Whether a part of the batch shows that no unit is dead, and f(z) is known to be finite.

        Only where the host need not wait for the answer.
        """
        if not z.is_cpu or z.numel() < _LARGE or total is None:
            return False
        shape = z.shape
        of_each = z.numel() // (shape[0] * shape[units])
        batch = min(shape[0] // 8, -(-_ENOUGH // of_each))
        if not batch or not abs(total.item()) < SURELY or not bounded(f, z.dtype):
            return False
        part = z.narrow(0, 0, batch)
        high = extreme(torch.amax, part, units)
        if not f.both:
            return high.amin().item() > max(stop for _, stop in f.intervals)
        return not within(extreme(torch.amin, part, units), high, f.intervals).any()

    def saturation(self, z: Tensor, intervals: Intervals) -> int:
        """Share of entries within the intervals."""
        if not z.numel():
            return -1
        if self.mode == "exact":
            whole = double(z.reshape(-1))
            return self.write(within(whole, whole, intervals).double().mean().view(1, 1))[0]
        places = self.places(z)
        slot, row = self.take(self._rows_of(Flat, len(places), z.dtype, z.device, intervals))
        copy_entries(z, flattened(z), places, row)
        return slot

    def dead(self, z: Tensor, intervals: Intervals, dimension: int) -> int:
        """Share of units, along the dimension, that lie within one interval for the whole batch."""
        if not z.numel() or self.mode == "sampled":
            return -1
        slot, self._slots = self._slots, self._slots + 1
        both = z.dim() > 1 and any(start > -math.inf for start, _ in intervals)
        self._add(slot, z if z.dim() else z.view(1), intervals, None, dimension, both)
        return slot

    def _add(
        self, slot: int, z: Tensor, intervals: Intervals, apply: Any, dimension: int, both: bool
    ) -> None:
        """Write down the ends of units' ranges."""
        key = intervals, apply, both, z.dtype, z.device
        ends = self._ends.get(key)
        if ends is None:
            ends = self._ends[key] = Ends(intervals, apply)
        elif ends.units > CHUNK * SAMPLE:
            self._reduced += ends.drain()
        high = extreme(torch.amax, z, dimension)
        ends.add(slot, (high, extreme(torch.amin, z, dimension)) if both else (high,))

    def places(self, tensor: Tensor) -> Tensor:
        """Of the at most 1,024 entries that stand for all."""
        key = tensor.numel(), tensor.device
        if key not in self._places:
            self._places[key] = positions(*key)
        return self._places[key]

    def _rows_of(
        self, kind: Any, size: int, dtype: torch.dtype, device: torch.device, *options: Any
    ) -> Any:
        key = kind, size, dtype, device, *options
        if key not in self._rows:
            self._rows[key] = kind(*options, size, dtype, device)
        return self._rows[key]

    def take(self, rows: Rows) -> tuple[int, Any]:
        """A new slot, and what is to be written for it."""
        slot, self._slots = self._slots, self._slots + 1
        row = rows.take(slot)
        if row is None:
            self._reduced += rows.drain()
            self.drained += 1
            row = rows.take(slot)
        return slot, row

    def write(self, values: Tensor) -> list[int]:
        """Slots for numbers that are reduced already, [rows, numbers]."""
        slots = list(range(self._slots, self._slots + len(values)))
        self._slots += len(values)
        self._reduced.append((slots, values))
        return slots

    def read(self) -> Fetched:
        """Fetch everything that was written, in one transfer."""
        kept: list[Rows | Ends] = [*self._rows.values(), *self._ends.values()]
        for waiting in kept:
            self._reduced += waiting.drain()
        numbers: list[float] = []
        if self._reduced:
            device = self._reduced[0][1].device
            numbers = fetch(torch.cat([v.reshape(-1).to(device) for _, v in self._reduced]))
        slots, widths = [s for s, _ in self._reduced], [v.shape[1] for _, v in self._reduced]
        self._reduced = []
        return Fetched(self.mode == "exact", slots, widths, array("d", numbers))
