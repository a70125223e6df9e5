"""Signals forward and gradients backward through many random networks at once."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stabilitykit import _checks
from stabilitykit.networks import as_module, checked_widths, listed_seeds

Initializer = Callable[..., Any]

_MISFITS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


class SignalProfile(NamedTuple):
    """Second moments by layer, each a float64 array [seeds, depth], layer 1 in column 0.

    Attributes:
        preactivation: q_l, the mean over units and batch of z_l².
        activation: the mean of f(z_l)².
        mean: the mean of f(z_l); `activation - mean**2` is the variance.
        correlation: mean cosine of the angle between z_l for inputs 0 and 1, 2 and 3, …; NaN for a
            batch of one.
        gradient: mean of (∂loss/∂z_l)².
        weight_gradient: mean over the entries of W_l of (∂loss/∂W_l)².
    """

    preactivation: np.ndarray
    activation: np.ndarray
    mean: np.ndarray
    correlation: np.ndarray
    gradient: np.ndarray
    weight_gradient: np.ndarray


def signal_profile(
    widths: Sequence[int],
    activation: Any,
    *,
    weight_var: float | None = None,
    bias_var: float = 0.0,
    init: str | Initializer = "normal",
    seeds: int | Iterable[int] = 100,
    batch: int = 16,
    inputs: Tensor | None = None,
    loss: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> SignalProfile:
    """Send signals forward and gradients backward through many random networks.

    z_1 = W_1 x + b_1, z_{l+1} = W_{l+1} f(z_l) + b_{l+1}; the outputs are z_L, as in `MLP`.
    Weights have variance weight_var / fan_in, biases bias_var. All networks of one call are
    computed by batched products, in portions that fit the cache; moments are taken in float64, so
    that signals near the limits of `dtype` are still measured. Network i depends on its own seed
    only, and keeps its random numbers when others are added.

    With standard-normal inputs, q_1 = weight_var + bias_var in expectation, and
    `MeanField.lengths(depth - 1, start=q_1)` predicts the columns of `preactivation`.

    Args:
        widths: units from inputs to outputs, [L + 1].
        activation: as in `MLP`.
        weight_var: σ_w² = fan_in · Var(w); 1 unless given.
        bias_var: σ_b².
        init: "normal" or "uniform" weights of that variance, or a function of `torch.nn.init`,
            called as init(weight [out, in], generator=…) for each layer, which then replaces
            `weight_var`.
        seeds: one seed a network, or how many networks (seeds 0, 1, …).
        batch: how many standard-normal inputs to draw for each network.
        inputs: the inputs [batch, widths[0]] for all networks, in place of random ones.
        loss: from outputs [seeds, batch, out] to losses [seeds]; by default the gradient at the
            outputs is standard normal, independent of the signal, as mean-field theory assumes.
        dtype: in which to compute.

    Returns:
        The moments, [seeds, L] each. Overflow shows as inf or NaN, underflow as 0.

    Raises:
        ValueError: a variance that is negative or not finite, an unknown activation, inputs of
            another width, an initialisation that is unknown, fails or leaves entries out.
        TypeError: an argument of a kind that cannot be meant.

    Examples:
        Kaiming's weight variance of 2 keeps the moments in a ReLU network:

        >>> profile = signal_profile([200] * 11, "relu", weight_var=2.0, seeds=50)
        >>> profile.preactivation.shape
        (50, 10)
        >>> print(f"{profile.preactivation[:, -1].mean():.1f}")  # E[z²] = weight_var
        2.0
        >>> bool(abs(profile.gradient[:, 0].mean() - 1) < 0.2)  # 1 at the outputs
        True
    """
    sizes, function, listed = checked_widths(widths), as_module(activation), listed_seeds(seeds)
    if weight_var is not None and callable(init):
        raise ValueError(f"weight_var={weight_var!r}: a function as init sets the variance itself")
    weight_var = _checks.not_negative("weight_var", 1.0 if weight_var is None else weight_var)
    bias_var, batch = _checks.not_negative("bias_var", bias_var), _checks.whole("batch", batch)
    if inputs is not None:
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs must be a tensor [batch, {sizes[0]}], got {inputs!r}")
        if inputs.ndim != 2 or inputs.shape[1] != sizes[0] or not len(inputs):
            raise ValueError(
                f"inputs must have shape [batch, {sizes[0]}], got {list(inputs.shape)}"
            )
    if not (loss is None or callable(loss)):
        raise TypeError(f"loss must be a callable from outputs to losses, got {loss!r}")
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating torch.dtype, got {dtype!r}")
    fill = _initializer(init, weight_var)
    portion = max(1, 2**22 // sum(n * m for n, m in pairwise(sizes)))
    portions = []
    for first in range(0, len(listed), portion):
        generators = [torch.Generator().manual_seed(s) for s in listed[first : first + portion]]
        size = (len(generators), batch, sizes[0])
        x = _normal(size, 1.0, generators, dtype) if inputs is None else inputs.to(dtype)
        layers = []
        for n, m in pairwise(sizes):
            weight = torch.empty(len(generators), m, n, dtype=dtype)
            for own, generator in zip(weight, generators, strict=True):
                fill(own, generator=generator)
            layers.append((weight, _normal((len(generators), 1, m), bias_var, generators, dtype)))
        portions.append(
            _moments(x.expand(len(generators), -1, -1), layers, function, loss, generators)
        )
    return SignalProfile(*(np.concatenate(parts) for parts in zip(*portions, strict=True)))


def _initializer(init: str | Initializer, weight_var: float) -> Initializer:
    def normal(weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight.normal_(0.0, (weight_var / weight.shape[1]) ** 0.5, generator=generator)

    def uniform(weight: Tensor, generator: torch.Generator) -> Tensor:
        bound = (3 * weight_var / weight.shape[1]) ** 0.5
        return weight.uniform_(-bound, bound, generator=generator)

    def given(weight: Tensor, generator: torch.Generator) -> None:
        weight.fill_(torch.nan)  # an entry that the function forgets is then seen
        name = getattr(init, "__name__", repr(init))
        try:
            init(weight, generator=generator)  # type: ignore[operator]
        except _MISFITS as error:
            raise ValueError(
                f"init={name} failed as init(weight {list(weight.shape)}, generator=…): "
                f"{type(error).__name__}: {error}"
            ) from error
        if not weight.isfinite().all():
            raise ValueError(f"init={name} left entries of the weight that are not finite numbers")

    if callable(init):
        return given
    named = {"normal": normal, "uniform": uniform}
    if not isinstance(init, str) or init not in named:
        of_torch = [name for name in dir(nn.init) if name.endswith("_") and name[0] != "_"]
        raise ValueError(
            "init must be 'normal', 'uniform' or a function of torch.nn.init, got "
            f"{init!r}{_checks.nearest(init, [*named, *of_torch])}"
        )
    return named[init]


def _normal(
    size: tuple[int, ...], variance: float, generators: list[torch.Generator], dtype: torch.dtype
) -> Tensor:
    draws = torch.empty(size, dtype=dtype)
    for own, generator in zip(draws, generators, strict=True):
        own.normal_(0.0, variance**0.5, generator=generator)
    return draws


def _activated(function: nn.Module, z: Tensor) -> Tensor:
    """f(z), from a copy, as an in-place activation must not write into z."""
    try:
        hidden = function(z.clone())
    except _MISFITS as error:
        raise ValueError(
            f"activation={function} failed on shape {list(z.shape)}, {z.dtype}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(hidden, Tensor):
        raise TypeError(f"activation={function} must return a tensor, got {hidden!r}")
    if hidden.shape != z.shape:
        raise ValueError(
            f"activation={function} must be elementwise; it turned shape {list(z.shape)} into "
            f"{list(hidden.shape)}"
        )
    if not hidden.requires_grad:
        raise ValueError(f"activation={function} must depend on its input; it carries no gradient")
    return hidden


def _moments(
    x: Tensor,
    layers: list[tuple[Tensor, Tensor]],
    function: nn.Module,
    loss: Callable[[Tensor], Tensor] | None,
    generators: list[torch.Generator],
) -> tuple[np.ndarray, ...]:
    """The six moments of one portion of networks, [seeds, L] each."""
    hidden, signals, zs = x, [], []
    for weight, bias in layers:
        signals.append(hidden.detach())
        z = (hidden @ weight.mT + bias).requires_grad_()
        zs.append(z)
        hidden = _activated(function, z)
    cotangent = _normal(tuple(zs[-1].shape), 1.0, generators, x.dtype) if loss is None else None
    try:
        target = zs[-1] if loss is None else loss(zs[-1])
    except _MISFITS as error:
        raise ValueError(
            f"loss failed on outputs {list(zs[-1].shape)} of [seeds, batch, out]: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(target, Tensor):
        raise TypeError(f"loss must return a torch tensor, got {type(target).__name__} {target!r}")
    if loss is not None and target.shape != (len(x),):
        raise ValueError(
            "loss must give one number a network, as y.square().mean((1, 2)) does: shape "
            f"{[len(x)]}, got {list(target.shape)}"
        )
    if not target.requires_grad:
        raise ValueError("loss must depend on the outputs; its value carries no gradient")
    gradients = torch.autograd.grad(target if loss is None else target.sum(), zs, cotangent)
    signals.append(hidden.detach())
    rows = []
    for layer, (z, gradient) in enumerate(zip(zs, gradients, strict=True)):
        z, f, incoming = z.detach().double(), signals[layer + 1].double(), signals[layer].double()
        gradient = gradient.double()
        pairs = (z / z.norm(dim=2, keepdim=True))[:, : 2 * (z.shape[1] // 2)].unflatten(1, (-1, 2))
        # |Σ_b g_b h_bᵀ|² through the Gram matrices of the batch, without the n × m matrix
        outer = (gradient @ gradient.mT) * (incoming @ incoming.mT)
        entries = z.shape[2] * incoming.shape[2]
        rows.append(
            (
                z.square().mean((1, 2)),
                f.square().mean((1, 2)),
                f.mean((1, 2)),
                pairs.prod(2).sum(2).mean(1),
                gradient.square().mean((1, 2)),
                outer.sum((1, 2)) / entries,
            )
        )
    return tuple(torch.stack(column, 1).numpy() for column in zip(*rows, strict=True))
