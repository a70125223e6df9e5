"""Where an activation is flat, and which torch functions are activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Intervals = tuple[tuple[float, float], ...]

SHARE_OF_SLOPE = 0.01  # convention: flat is a slope below this share of the largest slope
SURELY = 1e15  # convention: far above what a sum of activations comes to
_REACH, _STEP = 64, 1 / 256  # convention: 0 and all kinks of torch's activations are grid points
_RELU: Intervals = ((-math.inf, 0.0),)

# fmt: off
_NAMES = (
    "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu",
    "logsigmoid", "mish", "prelu", "relu", "relu6", "selu", "sigmoid", "silu", "softplus",
    "softshrink", "softsign", "tanh", "tanhshrink", "threshold",
)
# fmt: on
ACTIVATIONS: dict[Any, str] = {
    getattr(place, name + ending): name
    for place in (functional, torch, Tensor)
    for name in _NAMES
    for ending in ("", "_")
    if hasattr(place, name + ending)
}
# Whether the units of what follows are in dimension 1 (True) or in the last one.
_CHANNELS_FIRST: tuple[str, ...] = ("batch_norm", "instance_norm", "group_norm")
_CHANNELS_FIRST += tuple(f"conv{how}{d}d" for how in ("", "_transpose") for d in (1, 2, 3))
LAYOUTS: dict[Any, bool] = {getattr(functional, name): True for name in _CHANNELS_FIRST}
LAYOUTS[functional.linear] = LAYOUTS[torch.matmul] = False
MODULES = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin", "GLU")
)
# The same of modules, in which the functions are not looked at.
CHANNELS_FIRST: dict[type[nn.Module], bool] = dict.fromkeys(
    (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm),
    ),
    True,
)
CHANNELS_FIRST[nn.Linear] = False


def units_dimension(shape: torch.Size, channels_first: bool | None) -> int:
    """The dimension of units: channels after a convolution, features after a linear layer."""
    if channels_first is None:
        channels_first = len(shape) >= 4
    return 1 if channels_first and len(shape) > 2 else len(shape) - 1


@dataclass(frozen=True, eq=False, slots=True)
class Activation:
    """An activation with its options; the same object for the same ones.

    Attributes:
        intervals: closed, on which |f'| < 1 % of max |f'|.
        both: whether the low end of a range matters, too, to tell whether it is in one of them.
        apply: f itself; None where a parameter has a say in it.
    """

    intervals: Intervals
    both: bool
    apply: Callable[[Tensor], Tensor] | None


_PRELU = Activation(_RELU, False, None)


def described(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Activation | None:
    """One call of an activation; None when the options are not plain numbers."""
    if ACTIVATIONS[function] == "prelu":
        return _PRELU
    if "input" in kwargs:
        kwargs = {key: value for key, value in kwargs.items() if key != "input"}
    try:
        return _described(function, args[1:], tuple(kwargs.items()))
    except (TypeError, RuntimeError):  # tensors among the options, or an `out`
        return None


@lru_cache(maxsize=256)
def _described(
    function: Callable[..., Tensor], args: tuple[Any, ...], options: tuple[tuple[str, Any], ...]
) -> Activation:
    intervals = _intervals(function, args, options)
    both = not intervals or any(start > -math.inf for start, _ in intervals)
    return Activation(intervals, both, lambda z: function(z, *args, **dict(options)))


@lru_cache(maxsize=256)
def bounded(f: Activation, dtype: torch.dtype) -> bool:
    """Whether f(z) is finite where z is, if the sum of all z is below `SURELY`.

    Some f overflow at the end of float32's range. Entries there are multiples of 1e30, so they
    would show in the sum unless they cancel to the last digit.
    """
    if f.apply is None:
        return False
    largest = torch.finfo(dtype).max
    largest /= 16 if largest > 1e30 else 1
    ends = torch.tensor([largest, -largest], dtype=dtype, device="cpu")
    return bool(f.apply(ends).isfinite().all())


def argument(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor whose place in the intervals of `described` decides.

    For prelu the slope is a parameter: where it is small, z counts as for relu, else never.
    """
    z = args[0] if args else kwargs["input"]
    if ACTIVATIONS[function] != "prelu":
        return z
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    if weight.numel() > 1:
        weight = weight.view(-1, *[1] * (z.dim() - 2))
    return torch.where(weight.abs() < SHARE_OF_SLOPE, z, z.abs() + 1)


def _intervals(
    function: Callable[..., Tensor], args: tuple[Any, ...], options: tuple[tuple[str, Any], ...]
) -> Intervals:
    # Hooks on saved tensors, such as a checkpoint's, are not for what is computed here.
    apart = torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)

    def slope(z: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad(), apart:
            leaf = z.clone().requires_grad_()
            value = function(leaf.clone(), *args, **dict(options))  # may work in place
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return gradient.abs()

    count = round(2 * _REACH / _STEP) + 1
    z = torch.linspace(-_REACH, _REACH, count, dtype=torch.float64, device="cpu")
    slopes = slope(z)
    bound = SHARE_OF_SLOPE * float(slopes.max())
    is_flat = slopes < bound
    change = (is_flat[1:] != is_flat[:-1]).nonzero().flatten()
    # Bisection between a flat and a steep neighbour; `inside` stays flat.
    inside = torch.where(is_flat[change], z[change], z[change + 1])
    outside = torch.where(is_flat[change], z[change + 1], z[change])
    for _ in range(60):
        middle = (inside + outside) / 2
        still = slope(middle) < bound if len(middle) else middle > 0
        inside, outside = torch.where(still, middle, inside), torch.where(still, outside, middle)
    ends = inside.tolist()
    if is_flat[0]:
        ends.insert(0, -math.inf)
    if is_flat[-1]:
        ends.append(math.inf)
    return tuple(zip(ends[::2], ends[1::2], strict=True))


def within(low: Tensor, high: Tensor, intervals: Intervals) -> Tensor:
    """Whether [low, high] lies in one of the intervals; false where it is nan."""
    found: Tensor | None = None
    for start, stop in intervals:
        inside = high <= stop if start == -math.inf else low >= start
        if start > -math.inf and stop < math.inf:
            inside &= high <= stop
        found = inside if found is None else found | inside
    return torch.zeros_like(low, dtype=torch.bool) if found is None else found
