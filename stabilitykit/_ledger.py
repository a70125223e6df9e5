"""Statistics of many tensors, gathered on their device and read all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stabilitykit._flatness import Intervals, within
from stabilitykit._reductions import (
    Elementwise,
    double,
    extreme,
    finite,
    reduce_activation,
    reduce_ends,
    reduce_moments,
    reduce_scalar,
    reduce_units,
    wide,
)
from stabilitykit._rows import FIRST, Rows
from stabilitykit._samples import SAMPLE, flattened, positions, real

MODES = ("sampled", "hybrid", "exact")


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
        total: slot of a sum that tells whether the whole is finite.
    """

    numel: int
    slot: int
    total: int = -1


class Ledger:
    """Keeps statistics of tensors on their device until `read` fetches them in one transfer.

    Args:
        mode: "sampled", "hybrid" or "exact".
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.last: Tensor | None = None  # the sample that was taken last
        self.drained = 0  # how often rows were given back, whose samples are then gone
        self._positions: dict[Hashable, Any] = {}
        self._rows: dict[Hashable, Rows] = {}
        self._needed: dict[Hashable, int] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the step, and the rows that the next one is not likely to need."""
        self.last = None
        self.drained += 1
        self._needed = {key: rows.used for key, rows in self._rows.items()}
        self._rows = {key: rows for key, rows in self._rows.items() if rows.reset()}
        self._reduced: list[tuple[list[int], Tensor]] = []
        self._slots = 0
        self._results: dict[int, tuple[float, ...]] = {}

    def release(self) -> None:
        """Forget everything."""
        self._rows, self._needed = {}, {}
        self._positions = {}
        self.clear()

    def moments(self, tensor: Tensor, sampled: bool = False) -> Written:
        """Mean, std, rms and how many entries are not finite.

        Args:
            tensor: not kept.
            sampled: whether the sample has to do also in mode "hybrid".
        """
        numel = tensor.numel()
        if not numel:
            return Written(0, -1)
        flat = flattened(tensor)
        if self.mode == "exact":
            whole = double(real(tensor).reshape(-1) if flat is None else flat)
            return Written(numel, self._done(reduce_moments(whole[None])))
        whole = real(tensor) if flat is None else flat
        total = -1
        if numel > SAMPLE and self.mode == "hybrid" and not sampled:
            # The sum is the cheapest pass that meets every nan and infinity; isfinite and aminmax
            # take 3 to 20 times as long on a CPU. It also brings the tensor into the cache.
            dtype = wide(whole.dtype)
            total, (place,) = self.rows("scalar", reduce_scalar, dtype, whole.device, ())
            torch.sum(whole, tuple(range(whole.dim())), dtype=dtype, out=place)
        size = min(SAMPLE, whole.numel())
        slot, (row,) = self.rows("moments", reduce_moments, whole.dtype, whole.device, (size,))
        self.last = self.sample(tensor, flat, row)
        return Written(numel, slot, total)

    def activation(
        self, z: Tensor, row: Tensor, function: Elementwise, intervals: Intervals, dimension: int
    ) -> Written:
        """All of f(z) from the sample of z and the ends of its range, without a pass over f(z).

        Args:
            z: what the activation gets, of two dimensions at least.
            row: its sample.
            function: the activation, elementwise; called again on samples when these are reduced.
            intervals: where it is flat.
            dimension: of the units.
        """
        reduce: Callable[..., Tensor] = partial(reduce_activation, function, intervals)
        kind: Hashable = ("activation", function, intervals)
        slot, (place,) = self.rows(kind, reduce, z.dtype, z.device, row.shape)
        place.copy_(row)
        both = not intervals or any(start > -math.inf for start, _ in intervals)
        shapes = [(z.shape[dimension],)] * (1 + both)
        reduce = partial(reduce_ends, function, intervals)
        ends, places = self.rows(("ends", function, intervals), reduce, z.dtype, z.device, *shapes)
        extreme(torch.amax, z, dimension, places[0])
        if both:
            extreme(torch.amin, z, dimension, places[1])
        return Written(z.numel(), slot, ends)

    def saturation(self, z: Tensor, intervals: Intervals) -> int:
        """Share of entries within the intervals."""
        if not z.numel():
            return -1
        if self.mode == "exact":
            whole = double(z.reshape(-1))
            return self._done(within(whole, whole, intervals).double().mean().view(1, 1))
        row = self.sample(z)
        reduce = partial(reduce_units, intervals)
        slot, (place,) = self.rows(("units", intervals), reduce, z.dtype, z.device, row.shape)
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
        reduce, shapes = partial(reduce_units, intervals), [(z.shape[dimension],)] * len(wanted)
        slot, places = self.rows(("units", intervals), reduce, z.dtype, z.device, *shapes)
        for place, which in zip(places, wanted, strict=True):
            extreme(which, z, dimension, place)
        return slot

    def sample(
        self, tensor: Tensor, flat: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """A copy of at most 1,024 entries, spread over the tensor."""
        if flat is None:
            flat = flattened(tensor)
        if flat is None:
            tensor = real(tensor)
            key: Hashable = (tensor.shape, tensor.device)
            if key not in self._positions:
                spread = positions(tensor.numel(), tensor.device)
                self._positions[key] = torch.unravel_index(spread, tensor.shape)
            entries = tensor[self._positions[key]]
            return entries if out is None else out.copy_(entries)
        numel = flat.numel()
        if numel <= SAMPLE:
            return flat.clone() if out is None else out.copy_(flat)
        key = (numel, flat.device)
        places = self._positions.get(key)
        if places is None:
            places = self._positions[key] = positions(*key)
        return torch.index_select(flat, 0, places, out=out)

    def rows(
        self,
        kind: Hashable,
        reduce: Callable[..., Tensor],
        dtype: torch.dtype,
        device: torch.device,
        *shapes: tuple[int, ...],
    ) -> tuple[int, tuple[Tensor, ...]]:
        """A new slot, and what is to be written for it.

        Args:
            kind: all that `reduce` depends on.
            reduce: as for `Rows`.
            dtype: of what is written.
            device: where.
            shapes: of one row, in each of its columns.
        """
        key = (kind, dtype, device, shapes)
        rows = self._rows.get(key)
        if rows is None:
            needed = self._needed.get(key) or FIRST
            rows = self._rows[key] = Rows(reduce, shapes, dtype, device, needed)
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
            count = 0 if finite(self._results[written.total][0], rms) else 1
        if count:
            return Moments(math.nan, math.nan, math.nan, count)
        return Moments(mean, std, rms, 0)

    def _done(self, values: Tensor) -> int:
        return self.write(values)[0]


def fetch(values: Tensor) -> list[float]:
    """The one place where the host waits for the device."""
    return values.tolist()
