"""Initialisation that looks at the data."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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

    Each linear and convolutional layer gets orthogonal weights and zero biases. Then, in the order
    in which the batch passes them, each weight is divided by the standard deviation of its output
    until |Var − 1| ≤ tolerance (Mishkin & Matas 2016, algorithm 1, with its tolerance and number
    of steps; both are conventions). Layers that the batch does not reach keep their weights. A
    layer used several times is scaled for its first use.

    Args:
        model: changed in place; buffers, modes and gradients stay as they are.
        batch: (inputs, targets), of which only the inputs are used, or the inputs alone as a
            tensor. Inputs may be a tensor, or a tuple or dict that is unpacked into forward.
        tolerance: how far the variance may be from 1.
        max_steps: scalings of one layer at most.

    Returns:
        One entry for each layer, in the order of the forward pass.

    Raises:
        ValueError: a tolerance that is not positive, an output whose variance is zero or not
            finite, or one that does not come within the tolerance. The model is then as it was.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh())
        >>> report = lsuv(model, torch.randn(256, 8))
        >>> [entry.layer for entry in report], all(abs(e.after - 1) <= 0.05 for e in report)
        (['0', '2'], True)
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
    before = copy.deepcopy(model.state_dict())
    try:
        with torch.no_grad():
            return _scale_all(model, inputs, tolerance, max_steps)
    except BaseException:
        model.load_state_dict(before)
        raise


def _scale_all(model: nn.Module, inputs: Any, tolerance: float, most: int) -> tuple[Scaled, ...]:
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, _WEIGHTED)
    }
    if not names:
        raise ValueError(f"model={type(model).__name__} has no linear or convolutional layer")
    order = [name for name, _ in _variances(model, names, inputs)]
    layers: dict[str, Any] = {name: module for module, name in names.items()}
    for name in order:
        nn.init.orthogonal_(layers[name].weight)
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
    """Output variances by layer, in the order of first use; the model's buffers are put back."""
    seen: dict[str, float] = {}

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        seen.setdefault(names[module], output.float().var(correction=0).item())

    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    handles = [module.register_forward_hook(record) for module in names]
    try:
        if isinstance(inputs, dict):
            model(**inputs)
        elif isinstance(inputs, (tuple, list)):
            model(*inputs)
        else:
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for buffer, value in buffers:
            buffer.copy_(value)
    return list(seen.items())
