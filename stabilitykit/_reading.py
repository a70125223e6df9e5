"""Numbers that were fetched from the device, and statistics that are made of them."""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

from torch import Tensor

from stabilitykit._reductions import finite, moments
from stabilitykit._samples import SAMPLE

ALIVE = -2  # the slot of a share that is known to be 0


class Moments(NamedTuple):
    """Of one tensor; nan when an entry is not finite."""

    mean: float
    std: float
    rms: float
    nonfinite: int


class Written(NamedTuple):
    """Where a reading has the statistics of one tensor.

    Attributes:
        numel: how many entries it has.
        slot: of its moments.
        total: slot whose last number is a sum that tells whether the whole is finite; or `ALIVE`,
            of an activation of which it is known that all is finite and no unit dead.
    """

    numel: int
    slot: int
    total: int = -1


class Fetched(NamedTuple):
    """All numbers of one step, in little memory.

    Attributes:
        exact: whether moments are of whole tensors.
        slots: those of each part.
        widths: how many numbers each slot of a part has.
        numbers: of the first slot of the first part, of the second, and so on.
    """

    exact: bool
    slots: list[list[int]]
    widths: list[int]
    numbers: array[float]


class Reading:
    """What was fetched, by slots."""

    def __init__(self, fetched: Fetched) -> None:
        self._exact, slots, widths, numbers = fetched
        self._numbers = numbers.tolist()
        self._found: dict[int, tuple[int, int]] = {}  # where those of a slot begin and end
        stop = 0
        for part, width in zip(slots, widths, strict=True):
            start, stop = stop, stop + width * len(part)
            ends = range(start, stop, width), range(start + width, stop + 1, width)
            self._found.update(zip(part, zip(*ends, strict=True), strict=True))

    def value(self, slot: int) -> float | None:
        """The first number of a slot; None for slot −1, where nothing was written."""
        if slot < 0:
            return 0.0 if slot == ALIVE else None
        return self._numbers[self._found[slot][0]]

    def values(self, slot: int) -> list[float]:
        start, stop = self._found[slot]
        return self._numbers[start:stop]

    def moments(self, written: Written) -> Moments:
        whole, slot, total = written
        if slot < 0:  # an empty tensor
            return Moments(math.nan, math.nan, math.nan, 0)
        entries, width = (whole, whole) if self._exact else (min(whole, SAMPLE), SAMPLE)
        mean, std, rms, bad = moments(self.values(slot), entries, width)
        count = round(bad * whole / entries) if bad else 0
        if not count and total >= 0:
            count = 0 if finite(self._numbers[self._found[total][1] - 1], rms) else 1
        if count:
            return Moments(math.nan, math.nan, math.nan, count)
        return Moments(mean, std, rms, 0)


def fetch(values: Tensor) -> list[float]:
    """The one place where the host waits for the device."""
    return values.tolist()
