"""Which entries of a tensor stand for all of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stabilitykit._sharded import PLAIN

SAMPLE = 1024  # convention: the standard deviation of normal entries is then within 2 %
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_FLOATS |= {torch.complex64, torch.complex128}


def has_values(tensor: Any) -> bool:
    """Whether it is a dense tensor of floats on a real device, and no stand-in for others."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in _FLOATS or tensor.is_meta:
        return False
    if tensor.layout != torch.strided or tensor.is_nested:
        return False
    kind = type(tensor)
    if kind in PLAIN or kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
        return True
    return hasattr(tensor, "device_mesh")  # of which `local` knows this process's part


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as twice as many real numbers."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def positions(numel: int, device: torch.device) -> Tensor:
    """1,024 places below numel at a stride of the golden ratio, in ascending order.

    A stride that shares no factor with numel meets every row, column and channel alike.
    """
    stride = int(0.6180339887498949 * numel)
    while math.gcd(stride, numel) > 1:
        stride += 1
    places = torch.arange(min(SAMPLE, numel), dtype=torch.int64, device="cpu") * stride % numel
    return places.sort().values.to(device)


def flattened(tensor: Tensor) -> Tensor | None:
    """A view of dimension one, in memory order; None when that would need a copy."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)  # as for channels last
    tensor = tensor.permute(order)
    return tensor.view(-1) if tensor.is_contiguous() else None


def copy_entries(tensor: Tensor, flat: Tensor | None, places: Tensor, out: Tensor) -> None:
    """Copy the entries at these places.

    Args:
        tensor: any, whatever its strides are.
        flat: what `flattened` makes of it, which takes half the time.
        places: counted through `flat`, or else in the order of the dimensions.
        out: of as many entries as `places`.
    """
    if flat is not None:
        torch.index_select(flat, 0, places, out=out)
    elif tensor.device.type == "mps":
        out.copy_(tensor.reshape(-1)[places])
    else:
        torch.take(tensor, places, out=out)
