"""What a diagnosis is given, checked before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stabilitykit._measure import tensors


def intake(model: Any, batch: Any, loss_fn: Any, optimizer: Any) -> tuple[Any, Any]:
    """Inputs and targets of the batch, or an error that names what is wrong."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={short(model)} is not an nn.Module")
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        hint = "; a mapping goes first: (mapping, targets)" if isinstance(batch, Mapping) else ""
        if isinstance(batch, DataLoader):
            hint = "; take one batch of it: next(iter(loader))"
        raise TypeError(f"batch must be (inputs, targets), got {type(batch).__name__}{hint}")
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn={short(loss_fn)} is not callable; expected loss_fn(outputs, targets)"
        )
    parameters = dict(model.named_parameters())
    name = type(model).__name__
    if not parameters:
        raise ValueError(f"model={name} has no parameters; there is nothing to train")
    for key, parameter in parameters.items():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(f"model: parameter {key!r} is lazy; call the model once before")
        if parameter.is_meta:
            raise ValueError(f"model: parameter {key!r} is on the meta device and has no values")
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"model={name}: no parameter requires a gradient; all are frozen")
    inputs, targets = batch
    devices = {p.device for p in parameters.values()}
    for part, value in (("inputs", inputs), ("targets", targets)):
        for tensor in tensors(value):
            if not tensor.numel():
                raise ValueError(f"batch: {part} of shape {list(tensor.shape)} are empty")
            if tensor.device not in devices and (tensor.ndim or part == "inputs"):
                here, there = tensor.device, next(iter(devices))
                raise ValueError(
                    f"batch: {part} are on {str(here)!r}, the model's parameters on "
                    f"{str(there)!r}; expected one device: {part}.to({str(there)!r})"
                )
    if not tensors(inputs):
        raise TypeError(f"batch: inputs hold no tensor, got {type(inputs).__name__}")
    if optimizer is not None:
        check_optimizer(optimizer, model)
    return inputs, targets


def check_optimizer(optimizer: Any, model: nn.Module) -> None:
    """Refuse what is no optimizer, holds no parameter of the model or steps only by a closure."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer={short(optimizer)} is not a torch.optim.Optimizer")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer holds none of the model's parameters")
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer={type(optimizer).__name__} needs a closure; leave the optimizer out"
        )


def scalar(loss: Any) -> Tensor:
    """The loss as a tensor without dimensions, once it is clear that it can be differentiated."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn gave {type(loss).__name__}; expected a scalar tensor")
    if loss.numel() != 1:
        raise ValueError(
            f"loss_fn gave a tensor of shape {list(loss.shape)}; expected a scalar: add .mean()"
        )
    if not loss.requires_grad:
        raise ValueError(
            "loss_fn gave a loss without a gradient; expected one that is differentiable "
            "(no detach, item, argmax or torch.no_grad between parameters and loss)"
        )
    return loss.reshape(())
