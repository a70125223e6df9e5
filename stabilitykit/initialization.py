"""Initialisation that looks at the activation that follows, or at the data."""

from __future__ import annotations

import difflib
import math
from reprlib import repr as short
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stabilitykit import _following
from stabilitykit._nested import arguments
from stabilitykit._quiet import transforming
from stabilitykit._restore import check_values, restored
from stabilitykit._weights import draw, orthogonal
from stabilitykit.gains import gain

SCHEMES = (
    "auto", "kaiming", "kaiming_uniform", "xavier", "xavier_uniform", "lecun", "orthogonal",
)  # fmt: skip

_NOTHING = "has no linear or convolutional layer with a weight of its own to draw"


class Initialized(NamedTuple):
    """What `initialize` did to one layer.

    Attributes:
        layer: its name in `named_modules`.
        activation: the activation that follows its weight, "linear" where none does.
        gain: the factor on the scheme's standard deviation, with the share of a residual branch.
        before: standard deviation of the weight as it was.
        after: standard deviation of the weight as it is now.
        branches: 1, or the number N of residual blocks for the last layer of a branch: its gain
            was divided by √N, or by more (see `initialize`).
    """

    layer: str
    activation: str
    gain: float
    before: float
    after: float
    branches: int


def initialize(
    model: nn.Module, scheme: str = "auto", batch: Any = None
) -> tuple[Initialized, ...]:
    """Draw the weights anew, each with the gain of the activation that follows it.

    With n_in and n_out the fans and g = `gain(activation).forward` (√2 for relu, 1 where no
    activation follows; clamp, maximum with a number, sin, glu and the like count as activations),
    the standard deviation is

        auto, kaiming     g/√n_in, normal (He et al. 2015, eq. 10, for any activation)
        kaiming_uniform   the same, uniform
        xavier            g·√(2/(n_in + n_out)), normal (Glorot & Bengio 2010, eq. 12, times g)
        xavier_uniform    the same, uniform (their eq. 16 times g)
        lecun             1/√n_in, normal, whatever follows (LeCun et al. 1998, eq. 16)
        orthogonal        g times orthogonal rows or columns (Saxe et al. 2014)

    With a batch, "auto" also does two things. A layer that reads the batch itself, not another
    layer, gets 1/√E[x²] in place of g, so that the first activation, too, is met at q = 1 (derived:
    g makes up for what an activation before the weight takes). And the last layer of each of N
    residual branches is divided by √N, so that their sum stays of order 1 (derived: N branches of
    variance 1/N). If an activation with a share ρ = E[f]²/E[f²] of its square in the mean (at
    q = 1; 1/π for relu) stands between that layer and the sum, the means add up, and the divisor is
    √(N(1 − ρ) + N²ρ). A constant or a parameter by which the branch is multiplied is a factor on
    the divisor; where that leaves less than 1, the weight is not divided. A block is found where a
    sum adds a branch to what the branch began with; branches that end in a norm, and shortcuts with
    a layer of their own, are left alone. Biases become 0.

    Linear layers, convolutions and transposed convolutions are drawn; frozen weights, those that an
    embedding shares, norms, `nn.MultiheadAttention`, recurrent and parametrised weights stay.

    Args:
        model: changed in place; buffers, modes and gradients stay.
        scheme: one of the above.
        batch: (inputs, targets), of which only the inputs are used, or the inputs alone. One
            forward pass then shows which activation follows, functional ones too; layers that the
            batch does not reach stay as they are. Without a batch, what follows is guessed from the
            order in which modules were registered, and residual blocks are not seen.

    Returns:
        One entry for each layer that was drawn, in the order of the pass (or of registration).

    Raises:
        TypeError: the model is not an `nn.Module`, or the scheme not a string.
        ValueError: an unknown scheme, a model without such layers, a weight without entries, or no
            batch for a model with several layers and no activation module. The model is then as it
            was.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 400), nn.ReLU(), nn.Linear(400, 4))
        >>> for entry in initialize(model, "kaiming", torch.randn(2, 8)):
        ...     print(entry.layer, entry.activation, f"{entry.gain:.3f} {entry.after:.2f}")
        0 relu 1.414 0.50
        2 linear 1.000 0.05
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={short(model)} is not an nn.Module")
    _check_scheme(scheme)
    layers: dict[str, Any] = _following.weights(model)
    if not layers:
        raise ValueError(f"model={type(model).__name__} {_NOTHING}")
    if batch is None:
        found = _following.by_order(model)
        if len(layers) > 1 and all(use.function is None for use in found.uses.values()):
            raise ValueError(
                f"batch=None, and model={type(model).__name__} has no activation module; expected "
                "a batch, since functional activations are seen only in a forward pass"
            )
    else:
        check_values(model)
        inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
        with restored(model, None, inputs):
            found = _following.by_pass(model, *arguments(inputs))
    drawn = []
    for use in found.uses.values():
        layer = layers[use.layer]
        factor = 1.0
        if scheme != "lecun" and use.function is not None:
            factor = gain(use.function).forward
        if not math.isfinite(factor):
            raise ValueError(f"layer {use.layer!r}: activation {use.activation} gives only zeros")
        if not layer.weight.numel():
            raise ValueError(
                f"layer {use.layer!r}: its weight has shape {list(layer.weight.shape)}; expected "
                "at least one input and one output"
            )
        branches = 1
        if scheme == "auto":
            if use.reads is not None and 0 < use.reads < math.inf:
                factor = 1 / use.reads
            if use.ends_branch and (divisor := _following.divisor(use, found.blocks)) > 1:
                factor, branches = factor / divisor, found.blocks
        drawn.append((use, layer, factor, branches, draw(layer, scheme, factor)))
    done = []
    with torch.no_grad():
        for use, layer, factor, branches, weight in drawn:
            before = _std(layer.weight)
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.zero_()
            after = _std(layer.weight)
            done.append(Initialized(use.layer, use.activation, factor, before, after, branches))
    return tuple(done)


def _check_scheme(scheme: Any) -> None:
    if not isinstance(scheme, str):
        raise TypeError(f"scheme={scheme!r} is not a name; expected one of {', '.join(SCHEMES)}")
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme.lower(), SCHEMES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"scheme={scheme!r} is unknown{hint} Known: {', '.join(SCHEMES)}")


def _std(weight: Tensor) -> float:
    return weight.detach().double().std(correction=0).item()


class Scaled(NamedTuple):
    """What `lsuv` did to one layer.

    Attributes:
        layer: its name in `named_modules`.
        before: variance of its output with orthogonal weights, before scaling.
        after: variance of its output as it was left.
        steps: how often it was scaled.
    """

    layer: str
    before: float
    after: float
    steps: int


def lsuv(
    model: nn.Module, batch: Any, tolerance: float = 0.05, max_steps: int = 10
) -> tuple[Scaled, ...]:
    """Layer-sequential unit variance: orthogonal weights, then unit output variance by layer.

    Each linear and (transposed) convolutional layer gets orthogonal weights and zero biases. Then,
    in the order in which the batch passes them, each weight is divided by the standard deviation of
    its output until |Var − 1| ≤ tolerance (Mishkin & Matas 2016, algorithm 1, with its tolerance
    and number of steps; both are conventions). Layers that the batch does not reach, or only under
    torch.func, keep their weights, and so do frozen layers and those that share an embedding's. A
    layer used several times is scaled for the first use in which its output varies, a weight that
    several layers share for the first of them.

    Args:
        model: changed in place; buffers, modes and gradients stay as they are.
        batch: (inputs, targets), of which only the inputs are used, or the inputs alone as a
            tensor. Inputs may be a tensor, or a tuple or dict that is unpacked into forward.
        tolerance: how far the variance may be from 1.
        max_steps: scalings of one layer at most.

    Returns:
        One entry for each layer, in the order of the forward pass.

    Raises:
        TypeError: the model is not an `nn.Module`.
        ValueError: a tolerance that is not positive, max_steps that are no count, parameters
            without values, an output whose variance is zero or not finite, or one that does not
            come within the tolerance. The model is then as it was.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh())
        >>> report = lsuv(model, torch.randn(256, 8))
        >>> [entry.layer for entry in report], all(abs(e.after - 1) <= 0.05 for e in report)
        (['0', '2'], True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={short(model)} is not an nn.Module")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    if not isinstance(max_steps, int) or max_steps < 0:
        raise ValueError(f"max_steps={max_steps!r} is not a whole number of 0 or more")
    check_values(model)
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    with torch.no_grad():
        try:
            return _scale_all(model, inputs, tolerance, max_steps)
        except BaseException:
            for parameter, value in before:
                parameter.copy_(value)
            raise


def _scale_all(model: nn.Module, inputs: Any, tolerance: float, most: int) -> tuple[Scaled, ...]:
    kept = _following.kept(model)
    names: dict[nn.Module, str] = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, _following.LAYERS)
        and id(module._parameters.get("weight")) not in kept
    }
    if not names:
        raise ValueError(f"model={type(model).__name__} {_NOTHING}")
    order = [name for name, _ in _variances(model, names, inputs)]
    layers: dict[str, Any] = {name: module for module, name in names.items()}
    owned = {id(layers[n]._parameters.get("weight", n)): n for n in reversed(order)}
    order = [name for name in order if name in owned.values()]
    for name in order:
        layers[name].weight.copy_(orthogonal(layers[name].weight, 1.0))
        if layers[name].bias is not None:
            nn.init.zeros_(layers[name].bias)
    done = []
    for name in order:
        first = variance = dict(_variances(model, names, inputs))[name]
        steps = 0
        while not abs(variance - 1) <= tolerance:
            if not 0 < variance < float("inf") or steps == most:
                raise ValueError(
                    f"layer {name!r}: the variance of its output is {variance:.4g} after {steps} "
                    f"steps; expected 1 within {tolerance}"
                )
            layers[name].weight /= variance**0.5
            variance = dict(_variances(model, names, inputs))[name]
            steps += 1
        done.append(Scaled(name, first, variance, steps))
    return tuple(done)


def _variances(
    model: nn.Module, names: dict[nn.Module, str], inputs: Any
) -> list[tuple[str, float]]:
    """Output variances by layer, in the order of first use; all else is put back."""
    seen: dict[str, float] = {}

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        # Under torch.func no number can be read; a recurrent layer may begin from zeros.
        if not transforming() and not seen.get(names[module]):
            seen[names[module]] = output.float().var(correction=0).item()

    handles = [module.register_forward_hook(record) for module in names]
    try:
        args, kwargs = arguments(inputs)
        # forward may differentiate
        with restored(model, None, inputs), torch.enable_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.items())
