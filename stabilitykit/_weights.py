"""Weights as the schemes of `initialize` draw them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def draw(layer: Any, scheme: str, factor: float) -> Tensor:
    """A weight for this layer, factor times the deviation of the scheme."""
    weight = torch.empty_like(layer.weight)
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        # Its weight is [in, out/groups, …], and of the kernel only 1/stride reaches an output.
        reach = math.prod(k / s for k, s in zip(layer.kernel_size, layer.stride, strict=True))
        fan_in = max(1, round(layer.in_channels / layer.groups * reach))
        fan_out = weight.shape[1] * math.prod(layer.kernel_size)
    if scheme == "orthogonal":
        return orthogonal(weight, factor)
    wide = scheme.startswith("xavier")
    std = factor * (2 / (fan_in + fan_out)) ** 0.5 if wide else factor / fan_in**0.5
    if scheme.endswith("uniform"):
        bound = 3**0.5 * std
        return nn.init.uniform_(weight, -bound, bound)
    return nn.init.normal_(weight, 0.0, std)


def orthogonal(weight: Tensor, factor: float) -> Tensor:
    """In float32 at least, since torch factorises no matrices of fewer bits."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return nn.init.orthogonal_(torch.empty_like(weight, dtype=wide), factor)
