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
    """

    def __init__(
        self,
        reduce: Callable[..., Tensor],
        shapes: tuple[tuple[int, ...], ...],
        dtype: torch.dtype,
        device: torch.device,
        capacity: int = FIRST,
    ) -> None:
        self.reduce = reduce
        self.used = 0  # rows since the last `reset`
        self._capacity = min(capacity, CHUNK)
        self._slots: list[int] = []
        with torch.inference_mode(False):  # else they could be written in that mode alone
            self._columns = [
                torch.empty((self._capacity, *shape), dtype=dtype, device=device)
                for shape in shapes
            ]
            self._free = list(zip(*(column.unbind() for column in self._columns), strict=True))

    def take(self, slot: int) -> tuple[Tensor, ...] | None:
        """One row to be written, which stays valid until `drain`; None when that comes first."""
        taken = len(self._slots)
        if taken == self._capacity:
            return None
        self._slots.append(slot)
        self.used += 1
        return self._free[taken]

    def drain(self) -> list[tuple[list[int], Tensor]]:
        """Which slots were written, and the numbers of each."""
        slots, self._slots = self._slots, []
        if not slots:
            return []
        columns = [column[: len(slots)] for column in self._columns]
        return [(slots, self.reduce(*(column.to(wide(column.dtype)) for column in columns)))]

    def reset(self) -> bool:
        """At the end of a step; whether these buffers fit the next one as well."""
        used, self.used = self.used, 0
        self._slots = []
        return 0 < min(used, CHUNK) <= self._capacity
