"""Numbers of many tensors that wait for one reduction of them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from stabilitykit._flatness import Activation, Intervals
from stabilitykit._reductions import double, reduce_ends, reduce_flat, reduce_samples, wide

CHUNK = 64  # rows that are reduced at once, which bounds the memory
FIRST = 16  # convention: rows to begin with, before it is known how many a step needs

Reduced = list[tuple[list[int], Tensor]]  # slots, and the numbers of each


class Rows(ABC):
    """A buffer that is kept from step to step, so that a step allocates next to nothing.

    Args:
        size: entries of a row.
        dtype: theirs.
        device: where.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        self._used = 0  # rows since the last `reset`
        self._capacity = FIRST
        self._slots: list[int] = []
        self._buffers: list[Tensor] = []
        self._free: list[Any] = []

    def take(self, slot: int) -> Any:
        """What is to be written for a slot, valid until `drain`; None when that comes first."""
        taken = len(self._slots)
        if taken == len(self._free):
            if taken:
                return None
            with torch.inference_mode(False):  # else they could be written in that mode alone
                self._allocate()
        self._slots.append(slot)
        self._used += 1
        return self._free[taken]

    def _allocate(self) -> None:
        shape = self._capacity, self.size
        self._buffers = [torch.empty(shape, dtype=self.dtype, device=self.device)]
        self._free = list(self._buffers[0].unbind())

    def drain(self) -> Reduced:
        """Which slots were written, and the numbers of each."""
        slots, self._slots = self._slots, []
        if not slots:
            return []
        return self._reduce(slots, *(buffer[: len(slots)] for buffer in self._buffers))

    @abstractmethod
    def _reduce(self, slots: list[int], *rows: Tensor) -> Reduced:
        """The numbers of these rows."""

    def reset(self) -> None:
        """At the end of a step; buffers that do not fit the next one as well are given back."""
        used, self._used = self._used, 0
        self._slots = []
        if not 0 < min(used, CHUNK) <= self._capacity:
            self._capacity = min(used, CHUNK) or FIRST
            self._buffers, self._free = [], []


class Samples(Rows):
    """Samples of tensors, each with room for the sum of all entries, for `reduce_samples`."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(size, dtype, device)
        self._passed: dict[Activation, tuple[list[int], list[Tensor]]] = {}

    def _allocate(self) -> None:
        super()._allocate()
        totals = torch.empty(self._capacity, dtype=wide(self.dtype), device=self.device)
        self._buffers.append(totals)
        self._free = list(zip(self._free, totals.unbind(), strict=True))

    def passed(self, f: Activation, row: Tensor, slot: int) -> None:
        """Also reduce f of a row that was taken since the last `drain`."""
        slots, rows = self._passed.setdefault(f, ([], []))
        slots.append(slot)
        rows.append(row)

    def _reduce(self, slots: list[int], *rows: Tensor) -> Reduced:
        samples, totals = rows
        passed, self._passed = self._passed, {}
        stacks = [(f, torch.stack(rows).to(totals.dtype)) for f, (_, rows) in passed.items()]
        slots = [*slots, *chain.from_iterable(slots for slots, _ in passed.values())]
        return [(slots, reduce_samples(samples, totals, stacks))]

    def reset(self) -> None:
        self._passed = {}
        super().reset()


class Flat(Rows):
    """Samples of what activations get."""

    def __init__(
        self, intervals: Intervals, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(size, dtype, device)
        self._intervals = intervals

    def _reduce(self, slots: list[int], *rows: Tensor) -> Reduced:
        return [(slots, reduce_flat(self._intervals, rows[0])[:, None])]


class Ends:
    """The largest, and where it matters smallest, entries of units, for `reduce_ends`.

    Args:
        intervals: where the activation is flat.
        apply: the activation itself; None where only `dead` is asked for.
    """

    def __init__(self, intervals: Intervals, apply: Callable[[Tensor], Tensor] | None) -> None:
        self.intervals, self.apply = intervals, apply
        self._owners: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}  # by numbers of units
        self.reset()

    def add(self, slot: int, ends: tuple[Tensor, ...]) -> None:
        """Keep the largest entry of each unit, and the smallest one if there is a second."""
        self._slots.append(slot)
        self._ends.append(ends)
        self.units += len(ends[0])

    def drain(self) -> Reduced:
        """Which slots were written, and the numbers of each."""
        slots, ends = self._slots, self._ends
        if not slots:
            return []
        self.reset()
        columns = [torch.cat(column) for column in zip(*ends, strict=True)]
        lengths = tuple(len(high) for high, *_ in ends)
        if lengths not in self._owners:
            device = columns[0].device
            counts = torch.tensor(lengths, device="cpu")  # there repeating needs no waiting
            owners = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts)
            self._owners = {lengths: (owners.to(device), double(counts.to(device)))}
        return [(slots, reduce_ends(self.apply, self.intervals, *self._owners[lengths], *columns))]

    def reset(self) -> None:
        """Forget what was not reduced."""
        self._slots: list[int] = []
        self._ends: list[tuple[Tensor, ...]] = []
        self.units = 0
