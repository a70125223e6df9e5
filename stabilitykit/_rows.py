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
        reduce: takes one [rows, *shape] tensor for each column and returns [rows, numbers].
        columns: shape of one row and dtype, of each of them.
        device: where.
    """

    def __init__(
        self,
        reduce: Callable[..., Tensor],
        columns: tuple[tuple[tuple[int, ...], torch.dtype], ...],
        device: torch.device,
    ) -> None:
        self.reduce, self.columns, self.device = reduce, columns, device
        self._used = 0  # rows since the last `reset`
        self._capacity = FIRST
        self._slots: list[int] = []
        self._buffers: list[Tensor] = []
        self._free: list[tuple[Tensor, ...]] = []

    def take(self, slot: int) -> tuple[Tensor, ...] | None:
        """One row to be written, which stays valid until `drain`; None when that comes first."""
        taken = len(self._slots)
        if taken == len(self._free):
            if taken:
                return None
            self._allocate()
        self._slots.append(slot)
        self._used += 1
        return self._free[taken]

    def _allocate(self) -> None:
        with torch.inference_mode(False):  # else they could be written in that mode alone
            self._buffers = [
                torch.empty((self._capacity, *shape), dtype=dtype, device=self.device)
                for shape, dtype in self.columns
            ]
            self._free = list(zip(*(buffer.unbind() for buffer in self._buffers), strict=True))

    def drain(self) -> list[tuple[list[int], Tensor]]:
        """Which slots were written, and the numbers of each."""
        slots, self._slots = self._slots, []
        if not slots:
            return []
        rows = [buffer[: len(slots)] for buffer in self._buffers]
        return [(slots, self.reduce(*(part.to(wide(part.dtype)) for part in rows)))]

    def reset(self) -> None:
        """At the end of a step; buffers that do not fit the next one as well are given back."""
        used, self._used = self._used, 0
        self._slots = []
        if not 0 < min(used, CHUNK) <= self._capacity:
            self._capacity = min(used, CHUNK) or FIRST
            self._buffers, self._free = [], []
