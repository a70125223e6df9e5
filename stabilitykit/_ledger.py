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
    finite,
    reduce_activation,
    reduce_moments,
    reduce_scalar,
    reduce_units,
    reduce_update,
    wide,
)

MODES = ("sampled", "hybrid", "exact")
SAMPLE = 1024  # convention: the standard deviation of normal entries is then within 2 %
_CHUNK = 64  # rows that wait for their reduction, which bounds the memory
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_FLOATS |= {torch.complex64, torch.complex128}


class Moments(NamedTuple):
    """Of one tensor; nan when an entry is not finite."""

    mean: float
    std: float
    rms: float
    nonfinite: int


class Written(NamedTuple):
    """Where the ledger will find the statistics of one tensor: how many entries, which slot."""

    numel: int
    slot: int


def has_values(tensor: Any) -> bool:
    """Whether it is a dense tensor of floats on a real device."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in _FLOATS or tensor.is_meta:
        return False
    return tensor.layout == torch.strided and not tensor.is_nested


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as twice as many real numbers."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def flattened(tensor: Tensor) -> Tensor | None:
    """A view of dimension one, in memory order; None when that would need a copy."""
    if tensor.dtype.is_complex:
        tensor = real(tensor)
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)  # as for channels last
    tensor = tensor.permute(order)
    return tensor.view(-1) if tensor.is_contiguous() else None


class Ledger:
    """Keeps statistics of tensors as device scalars until `read` fetches them in one transfer.

    Args:
        mode: "sampled", "hybrid" or "exact".
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.last: Tensor | None = None  # the sample that was taken last
        self._positions: dict[Hashable, Any] = {}
        self.clear()

    def clear(self) -> None:
        self.last = None
        self._groups: dict[Hashable, tuple[Callable[..., Tensor], list[int], list[Any]]] = {}
        self._reduced: list[tuple[list[int], Tensor]] = []
        self._slots = 0
        self._results: dict[int, tuple[float, ...]] = {}

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
        if sampled or self.mode == "sampled" or numel <= SAMPLE:
            return Written(numel, self._add("moments", reduce_moments, self.sample(tensor, flat)))
        # The sum is the cheapest pass that meets every nan and infinity; isfinite and aminmax take
        # 3 to 20 times as long on a CPU. It also brings the tensor into the cache.
        whole = real(tensor) if flat is None else flat
        total = whole.sum() if whole.dtype == torch.float32 else whole.sum(dtype=wide(whole.dtype))
        row = self.last = self.sample(tensor, flat)
        return Written(numel, self._add("sum", reduce_moments, row, total))

    def square(self, tensor: Tensor) -> int:
        """Sum of squares over the whole tensor, in float32 at least."""
        flat = flattened(tensor)
        if flat is not None and flat.dtype in (torch.float32, torch.float64):
            return self._add("scalar", reduce_scalar, torch.dot(flat, flat))
        whole = real(tensor) if flat is None else flat
        norm = torch.linalg.vector_norm(whole, dtype=wide(whole.dtype))
        return self._add("scalar", reduce_scalar, norm.square())

    def row(self, numel: int, sample: Tensor) -> Written:
        """Moments of a tensor of which a sample was taken."""
        if not numel:
            return Written(0, -1)
        if self.mode == "exact":
            return Written(numel, self._done(reduce_moments(sample[None])))
        return Written(numel, self._add("moments", reduce_moments, sample))

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
        others = [d for d in range(z.dim()) if d != dimension]
        rows = [row, z.amax(others)]
        if not intervals or any(start > -math.inf for start, _ in intervals):
            rows.append(z.amin(others))
        kind = ("activation", function, intervals, rows[1].numel(), len(rows))
        reduce = partial(reduce_activation, function, intervals)
        return Written(z.numel(), self._add(kind, reduce, *rows))

    def saturation(self, z: Tensor, intervals: Intervals) -> int:
        """Share of entries within the intervals."""
        if not z.numel():
            return -1
        if self.mode == "exact":
            whole = double(z.reshape(-1))
            return self._done(within(whole, whole, intervals).double().mean().view(1, 1))
        row = self.sample(z)
        return self._add(("saturation", intervals), partial(reduce_units, intervals), row)

    def dead(self, z: Tensor, intervals: Intervals, dimension: int) -> int:
        """Share of units, along the dimension, that lie within one interval for the whole batch."""
        if not z.numel() or self.mode == "sampled":
            return -1
        others = [d for d in range(z.dim()) if d != dimension]
        high = z.amax(others) if others else z.clone().view(-1)
        low = high
        if others and any(start > -math.inf for start, _ in intervals):
            low = z.amin(others)
        rows = (high,) if low is high else (low, high)
        return self._add(("dead", intervals, len(rows)), partial(reduce_units, intervals), *rows)

    def update(self, before: Tensor, after: Tensor) -> int:
        """Sums of squares of the change and of the weight before."""
        if self.mode == "exact":
            return self._done(reduce_update(before[None], after[None]))
        return self._add("update", reduce_update, before, after)

    def scalar(self, value: Tensor) -> int:
        return self._add("scalar", reduce_scalar, value)

    def sample(self, tensor: Tensor, flat: Tensor | None = None) -> Tensor:
        """A copy of at most 1,024 entries, spread over the tensor."""
        if flat is None:
            flat = flattened(tensor)
        if flat is None:
            tensor = real(tensor)
            key: Hashable = (tensor.shape, tensor.device)
            if key not in self._positions:
                spread = positions(tensor.numel(), tensor.device)
                self._positions[key] = torch.unravel_index(spread, tensor.shape)
            return tensor[self._positions[key]]
        numel = flat.numel()
        if numel <= SAMPLE:
            return flat.clone()
        key = (numel, flat.device)
        places = self._positions.get(key)
        if places is None:
            places = self._positions[key] = positions(*key)
        return flat.index_select(0, places)

    def read(self) -> None:
        """Fetch everything that was written, in one transfer."""
        for key in list(self._groups):
            self._drain(key)
        if not self._reduced:
            return
        device = self._reduced[0][1].device
        parts = [values.reshape(-1).double().to(device) for _, values in self._reduced]
        numbers = iter(fetch(torch.cat(parts)))
        for slots, values in self._reduced:
            for slot in slots:
                self._results[slot] = tuple(next(numbers) for _ in range(values.shape[1]))
        self._reduced = []

    def value(self, slot: int) -> float | None:
        return self._results[slot][0] if slot >= 0 else None

    def values(self, slot: int) -> tuple[float, ...]:
        return self._results[slot]

    def read_moments(self, written: Written) -> Moments:
        if written.slot < 0:  # an empty tensor
            return Moments(math.nan, math.nan, math.nan, 0)
        mean, std, rms, share, *total = self._results[written.slot]
        count = round(share * written.numel)
        if total and not count:
            count = 0 if finite(total[0], rms) else 1
        if count:
            return Moments(math.nan, math.nan, math.nan, count)
        return Moments(mean, std, rms, 0)

    def _add(self, kind: Hashable, reduce: Callable[..., Tensor], *rows: Tensor) -> int:
        slot, self._slots = self._slots, self._slots + 1
        key = (kind, rows[0].numel(), rows[0].dtype, rows[0].device)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = (reduce, [], [])
        group[1].append(slot)
        group[2].append(rows)
        if len(group[1]) == _CHUNK:
            self._drain(key)
        return slot

    def _done(self, values: Tensor) -> int:
        slot, self._slots = self._slots, self._slots + 1
        self._reduced.append(([slot], values))
        return slot

    def _drain(self, key: Hashable) -> None:
        reduce, slots, waiting = self._groups.pop(key)
        columns = [torch.stack(rows) for rows in zip(*waiting, strict=True)]
        columns = [column.to(wide(column.dtype)) for column in columns]
        self._reduced.append((slots, reduce(*columns)))


def positions(numel: int, device: torch.device) -> Tensor:
    """1,024 places below numel at a stride of the golden ratio, in ascending order.

    A stride that shares no factor with numel meets every row, column and channel alike.
    """
    stride = int(0.6180339887498949 * numel)
    while math.gcd(stride, numel) > 1:
        stride += 1
    places = torch.arange(min(SAMPLE, numel), dtype=torch.int64, device="cpu") * stride % numel
    return places.sort().values.to(device)


def fetch(values: Tensor) -> list[float]:
    """The one place where the host waits for the device."""
    return values.tolist()
