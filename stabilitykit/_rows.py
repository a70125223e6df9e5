"""Rows of numbers that wait for one reduction of them all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stabilitykit._reductions import wide

CHUNK = 64  # rows that are reduced at once, which bounds the memory
FIRST = 16  # convention: rows to begin with, before it is known how many a step needs


class Rows:
    """Buffers that are kept from step to step, so that a step allocates next to nothing.

    Args:
        reduce: takes one [rows, *shape] tensor for each shape and returns [rows, numbers].
        shapes: of one row, in each of its columns.
        dtype: of what is written.
        device: where.
        capacity: how many rows the step before needed.
        held: whether all rows stay writable until the end of the step.
    """

    def __init__(
        self,
        reduce: Callable[..., Tensor],
        shapes: tuple[tuple[int, ...], ...],
        dtype: torch.dtype,
        device: torch.device,
        capacity: int = FIRST,
        held: bool = False,
    ) -> None:
        self.reduce, self.held = reduce, held
        self.used = 0  # rows since the last `reset`
        self._make = lambda rows: [
            torch.empty((rows, *shape), dtype=dtype, device=device) for shape in shapes
        ]
        self._capacity = capacity if held else min(capacity, CHUNK)
        self._full: list[tuple[list[int], list[Tensor]]] = []
        self._renew()

    def _renew(self) -> None:
        with torch.inference_mode(False):  # else they could be written in that mode alone
            self._columns = self._make(self._capacity)
            self._free = list(zip(*(column.unbind() for column in self._columns), strict=True))
        self._slots: list[int] = []

    def take(self, slot: int) -> tuple[Tensor, ...] | None:
        """One row to be written, which stays valid until `drain`; None when that comes first."""
        taken = len(self._slots)
        if taken == self._capacity:
            if not self.held:
                return None
            self._full.append((self._slots, self._columns))
            self._renew()
            taken = 0
        self._slots.append(slot)
        self.used += 1
        return self._free[taken]

    def drain(self) -> list[tuple[list[int], Tensor]]:
        """Which slots were written, and the numbers of each."""
        done = [*self._full, (self._slots, [c[: len(self._slots)] for c in self._columns])]
        self._full, self._slots = [], []
        return [
            (slots, self.reduce(*(column.to(wide(column.dtype)) for column in columns)))
            for slots, columns in done
            if slots
        ]

    def reset(self) -> bool:
        """At the end of a step; whether these buffers fit the next one as well."""
        used, self.used = self.used, 0
        self._full, self._slots = [], []
        most = used if self.held else min(used, CHUNK)
        return 0 < most <= self._capacity
