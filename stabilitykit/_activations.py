"""What the user calls an activation, turned into one checked float64 function and its slope."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Array = NDArray[np.float64]


def _prelu(z: torch.Tensor, weight: float = 0.25) -> torch.Tensor:
    return functional.leaky_relu(z, negative_slope=float(weight))


def _identity(z: torch.Tensor) -> torch.Tensor:
    return z.clone()


NAMED: dict[str, Callable[..., torch.Tensor]] = {
    "celu": functional.celu,
    "elu": functional.elu,
    "erf": torch.erf,
    "gelu": functional.gelu,
    "hardshrink": functional.hardshrink,
    "hardsigmoid": functional.hardsigmoid,
    "hardswish": functional.hardswish,
    "hardtanh": functional.hardtanh,
    "identity": _identity,
    "leaky_relu": functional.leaky_relu,
    "linear": _identity,
    "logsigmoid": functional.logsigmoid,
    "mish": functional.mish,
    "prelu": _prelu,
    "relu": functional.relu,
    "relu6": functional.relu6,
    "selu": functional.selu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "sin": torch.sin,
    "softplus": functional.softplus,
    "softshrink": functional.softshrink,
    "softsign": functional.softsign,
    "swish": functional.silu,
    "tanh": torch.tanh,
    "tanhshrink": functional.tanhshrink,
    "threshold": functional.threshold,
}
_PLAIN = {name.replace("_", ""): name for name in NAMED}


class Activation:
    """An elementwise function on float64 arrays, with its slope by autograd.

    Args:
        activation: a name (``"tanh"``, ``"leaky_relu"``, ``"LeakyReLU"``), an ``nn.Module`` or its
            class, or a callable from a tensor to a tensor of the same shape.
        options: keyword arguments of the named or callable function.
    """

    def __init__(self, activation: Any, options: dict[str, Any] | None = None) -> None:
        self.name, self._function = _resolve(activation, dict(options or {}))
        self._refuse_what_is_not_a_function()

    def __call__(self, points: Array) -> tuple[Array, Array]:
        """Values f(u) and slopes f'(u) at a flat array of points."""
        leaf = torch.from_numpy(points).clone().requires_grad_(True)
        slope = None
        with torch.enable_grad():
            value = self._forward(leaf)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
        values = value.detach().numpy()
        return values, np.zeros_like(values) if slope is None else slope.numpy()

    def _forward(self, leaf: torch.Tensor) -> torch.Tensor:
        try:
            value = self._function(leaf.clone())  # in-place activations may write into a clone
        except Exception as error:
            raise ValueError(
                f"activation={self.name} failed on a float64 tensor of shape {tuple(leaf.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"activation={self.name} returned {type(value).__name__}; expected a torch.Tensor"
            )
        if value.shape != leaf.shape:
            raise ValueError(
                f"activation={self.name} turned shape {tuple(leaf.shape)} into "
                f"{tuple(value.shape)}; expected an elementwise function"
            )
        if value.dtype != torch.float64:
            raise ValueError(
                f"activation={self.name} returned {value.dtype} for torch.float64 input; expected "
                "torch.float64 (does it cast?)"
            )
        return value

    def _refuse_what_is_not_a_function(self) -> None:
        """Random, mixing elements, nan, or hiding its slope from autograd."""
        points = np.linspace(-2.93, 3.11, 61)  # not 0, where kinks are
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
            first, slopes = self(points)
            again, _ = self(points)
            alone, _ = self(points[40::-3].copy())
        for what, sample in (("value", first), ("derivative", slopes)):
            if np.isnan(sample).any():
                where = points[np.isnan(sample)][0]
                raise ValueError(f"activation={self.name}: its {what} is nan at z={where:.6g}")
        if not np.allclose(first, again, rtol=1e-12, atol=0):
            raise ValueError(
                f"activation={self.name} gives different values when called twice; expected a "
                "deterministic function without state (put dropout and rrelu in eval mode)"
            )
        # Vectorised kernels and their scalar remainders differ in the last digits.
        if not np.allclose(first[40::-3], alone, rtol=1e-10, atol=1e-14):
            raise ValueError(
                f"activation={self.name} mixes elements: f(z) changes with its neighbours; "
                "expected an elementwise function"
            )
        if not slopes.any() and np.mean(self(points + 1e-7)[0] != first) > 0.5:
            raise ValueError(
                f"activation={self.name} varies with z but autograd sees no slope; expected a "
                "function that torch can differentiate (does it call detach?)"
            )


def _resolve(activation: Any, options: dict[str, Any]) -> tuple[str, Callable[..., Any]]:
    if isinstance(activation, str):
        return _by_name(activation, options)
    if isinstance(activation, type) and issubclass(activation, torch.nn.Module):
        activation, options = activation(**options), {}
    if isinstance(activation, torch.nn.Module):
        if options:
            raise TypeError(
                f"activation={activation!r} is a module and takes no options; got "
                f"{', '.join(options)}"
            )
        module = copy.deepcopy(activation).to("cpu", torch.float64).requires_grad_(False)
        return repr(activation), module
    if isinstance(activation, torch.Tensor) or not callable(activation):
        raise TypeError(
            f"activation={activation!r} is not an activation; expected a name, an nn.Module or a "
            "callable from tensor to tensor"
        )
    name = getattr(activation, "__name__", repr(activation))
    return name, (lambda z: activation(z, **options))


def _by_name(name: str, options: dict[str, Any]) -> tuple[str, Callable[..., Any]]:
    key = _PLAIN.get(name.lower().replace("_", "").replace("-", ""))
    if key is None:
        near = difflib.get_close_matches(name.lower(), NAMED, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"activation={name!r} is unknown{hint} Known: {', '.join(NAMED)}; or pass a callable"
        )
    function = NAMED[key]
    return key, (lambda z: function(z, **options))
