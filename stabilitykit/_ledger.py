"""Statistics of many tensors, gathered on their device and read all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stabilitykit._flatness import Intervals, within

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
    """Where the ledger will find the statistics of one tensor; -1 where it has none."""

    numel: int
    moments: int
    extremes: int = -1
    norm: int = -1


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
    if not tensor.is_contiguous():  # such as channels last
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        tensor = tensor.permute(order)
    return tensor.view(-1) if tensor.is_contiguous() else None


class Ledger:
    """Keeps statistics of tensors as device scalars until `read` fetches them in one transfer.

    Args:
        mode: "sampled", "hybrid" or "exact".
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._positions: dict[Hashable, Any] = {}
        self.clear()

    def clear(self) -> None:
        self._groups: dict[Hashable, tuple[Callable[..., Tensor], list[int], list[Any]]] = {}
        self._reduced: list[tuple[list[int], Tensor]] = []
        self._slots = 0
        self._results: dict[int, tuple[float, ...]] = {}

    def moments(self, tensor: Tensor, norm: bool = False) -> Written:
        """Mean, std, rms and finiteness; with `norm`, the whole tensor's norm in mode "hybrid"."""
        if not tensor.numel():
            return Written(0, -1)
        tensor = real(tensor)
        flat = flattened(tensor)
        if self.mode == "exact":
            whole = _double(tensor.reshape(-1) if flat is None else flat)
            return Written(tensor.numel(), self._done(_reduce_moments(whole[None])))
        row = self.sample(tensor, flat)
        slot = self._add(("moments", row.shape, row.dtype, row.device), _reduce_moments, row)
        if self.mode == "sampled" or row.numel() == tensor.numel():
            return Written(tensor.numel(), slot)
        whole = tensor if flat is None else flat
        device = (whole.dtype, whole.device)
        # Not the norm, which overflows, nor isfinite, which takes 20 times as long on a CPU.
        ends = whole.aminmax()
        extremes = self._add(("extremes", *device), _reduce_extremes, ends.min, ends.max)
        if not norm:
            return Written(tensor.numel(), slot, extremes)
        length = torch.linalg.vector_norm(
            whole, dtype=torch.promote_types(whole.dtype, torch.float32)
        )
        return Written(
            tensor.numel(), slot, extremes, self._add(("norm", *device), _reduce_scalar, length)
        )

    def saturation(self, z: Tensor, intervals: Intervals) -> int:
        """Share of entries within the intervals."""
        if not z.numel():
            return -1
        if self.mode == "exact":
            whole = _double(z.reshape(-1))
            return self._done(within(whole, whole, intervals).double().mean().view(1, 1))
        row = self.sample(z)
        key = ("saturation", intervals, row.shape, row.dtype, row.device)
        return self._add(key, lambda rows: _reduce_units(rows, rows, intervals), row)

    def dead(self, z: Tensor, intervals: Intervals, dimension: int) -> int:
        """Share of units, along the dimension, that lie within one interval for the whole batch."""
        if not z.numel() or self.mode == "sampled":
            return -1
        others = [d for d in range(z.dim()) if d != dimension]
        high = z.amax(others) if others else z.clone().view(-1)
        low = high
        if others and any(start > -math.inf for start, _ in intervals):
            low = z.amin(others)
        key = ("dead", intervals, low is high, high.shape, high.dtype, high.device)
        rows = (high,) if low is high else (low, high)
        return self._add(key, lambda *rows: _reduce_units(rows[0], rows[-1], intervals), *rows)

    def update(self, before: Tensor, after: Tensor) -> int:
        """Sums of squares of the change and of the weight before."""
        if self.mode == "exact":
            return self._done(_reduce_update(before[None], after[None]))
        key = ("update", before.shape, before.dtype, before.device)
        return self._add(key, _reduce_update, before, after)

    def scalar(self, value: Tensor) -> int:
        return self._add(("scalar", value.dtype, value.device), _reduce_scalar, value)

    def sample(self, tensor: Tensor, flat: Tensor | None = None) -> Tensor:
        """A copy of at most 1,024 entries, spread over the tensor."""
        tensor = real(tensor)
        flat = flattened(tensor) if flat is None else flat
        if flat is None:
            shape = tensor.shape
            key: Hashable = (shape, tensor.device)
            if key not in self._positions:
                spread = positions(tensor.numel(), tensor.device)
                self._positions[key] = torch.unravel_index(spread, shape)
            return tensor[self._positions[key]]
        if flat.numel() <= SAMPLE:
            return flat.clone()
        key = (flat.numel(), flat.device)
        if key not in self._positions:
            self._positions[key] = positions(*key)
        return flat.index_select(0, self._positions[key])

    def read(self) -> None:
        """Fetch everything that was written, in one transfer."""
        for key in list(self._groups):
            self._drain(key)
        if not self._reduced:
            return
        device = self._reduced[0][1].device
        parts = [values.reshape(-1).to(device) for _, values in self._reduced]
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
        if written.moments < 0:  # an empty tensor
            return Moments(math.nan, math.nan, math.nan, 0)
        mean, std, rms, share = self._results[written.moments]
        count = round(share * written.numel)
        if written.extremes >= 0:
            finite = self._results[written.extremes][0] > 0
            count = 0 if finite else max(1, count)
        if count:
            return Moments(math.nan, math.nan, math.nan, count)
        return Moments(mean, std, rms, 0)

    def read_norm(self, written: Written) -> tuple[float, int]:
        """The norm, and how many entries are not finite."""
        if written.moments < 0:
            return 0.0, 0
        moments = self.read_moments(written)
        norm = moments.rms * math.sqrt(written.numel)
        if written.norm >= 0 and not moments.nonfinite:
            whole = self._results[written.norm][0]
            norm = whole if 0 < whole < math.inf else norm  # float32 overflows from 1e19 on
        return norm, moments.nonfinite

    def _add(self, key: Hashable, reduce: Callable[..., Tensor], *rows: Tensor) -> int:
        slot, self._slots = self._slots, self._slots + 1
        _, slots, waiting = self._groups.setdefault(key, (reduce, [], []))
        slots.append(slot)
        waiting.append(rows)
        if len(slots) == _CHUNK:
            self._drain(key)
        return slot

    def _done(self, values: Tensor) -> int:
        slot, self._slots = self._slots, self._slots + 1
        self._reduced.append(([slot], values))
        return slot

    def _drain(self, key: Hashable) -> None:
        reduce, slots, waiting = self._groups.pop(key)
        columns = [_double(torch.stack(rows)) for rows in zip(*waiting, strict=True)]
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


def _double(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _reduce_moments(rows: Tensor) -> Tensor:
    """Mean, std (two passes), rms and the share that is not finite, of each row."""
    scale = rows.abs().amax(1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    unit = rows / scale  # squares of float64 overflow, too
    mean = unit.mean(1, keepdim=True)
    std = (unit - mean).square().mean(1, keepdim=True).sqrt()
    rms = unit.square().mean(1, keepdim=True).sqrt()
    share = (~rows.isfinite()).to(rows.dtype).mean(1, keepdim=True)
    return torch.cat([mean * scale, std * scale, rms * scale, share], dim=1)


def _reduce_extremes(low: Tensor, high: Tensor) -> Tensor:
    return (low.isfinite() & high.isfinite()).to(low.dtype)[:, None]


def _reduce_scalar(values: Tensor) -> Tensor:
    return values[:, None]


def _reduce_units(low: Tensor, high: Tensor, intervals: Intervals) -> Tensor:
    return within(low, high, intervals).to(low.dtype).mean(1, keepdim=True)


def _reduce_update(before: Tensor, after: Tensor) -> Tensor:
    squares = [(after - before).square().sum(1), before.square().sum(1)]
    return torch.stack(squares, dim=1)
