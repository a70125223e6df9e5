"""The part of a tensor that this process holds."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)


def local(tensor: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    """This process's part of a sharded tensor, and the groups over which it is spread."""
    if type(tensor) in PLAIN or not hasattr(tensor, "device_mesh"):
        return tensor.detach(), ()
    groups = tuple(
        tensor.device_mesh.get_group(dimension)
        for dimension, placement in enumerate(tensor.placements)  # type: ignore[attr-defined]
        if not placement.is_replicate()
    )
    return tensor.to_local().detach(), groups  # type: ignore[attr-defined]
