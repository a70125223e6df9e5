"""Second moments by position, and linear maps of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stabilitykit import _law
from stabilitykit._law import Law

Field = Tensor


def dense(tensor: Tensor) -> Tensor:
    """The tensor with its zeros; what is expected of a sparse one counts them."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def pooled(value: Tensor) -> tuple[Field, Law]:
    """Mean squares by sample and by position, and the law of the entries over their roots.

    Channels are dimension 1, or the last of three.
    """
    value = value.double()
    square = value.square()
    whole, dims = square.mean(), range(value.dim())
    field = whole
    if sum(size > 1 for size in value.shape) > 1 and 0 < whole < math.inf:
        channel = 2 if value.dim() == 3 else 1
        field = square.mean(tuple(dims[1:]), keepdim=True)
        if value.dim() > 2:
            field = field * square.mean((0, channel), keepdim=True) / whole
    field = field.expand(value.shape)
    tiny = torch.finfo(torch.float64).tiny
    return field, _law.empirical(value / field.clamp(min=tiny).sqrt())


def compact(field: Field) -> Field:
    """The field without the repetitions of an expanded view."""
    for dim, (stride, size) in enumerate(zip(field.stride(), field.shape, strict=True)):
        if stride == 0 and size > 1:
            field = field.narrow(dim, 0, 1)
    return field


def pointwise(function: Callable[[Tensor], Tensor], field: Field) -> Field:
    """An elementwise function of a field, computed once where the field is an expanded view."""
    return function(compact(field)).expand(field.shape)


def adjoint(linear: Callable[[Tensor], Any], shape: Any, *cotangents: Field | None) -> Field | None:
    """The adjoint of a linear map of fields, applied to cotangents of its results."""
    given = [c for c in cotangents if c is not None]
    if not given:
        return None
    with torch.enable_grad():
        leaf = torch.zeros(shape, dtype=torch.float64, device=given[0].device, requires_grad=True)
        results = linear(leaf.view_as(leaf))
        results = [results] if isinstance(results, Tensor) else list(results)
        pairs = [
            (result, cotangent)
            for result, cotangent in zip(results, cotangents, strict=True)
            if cotangent is not None and result.requires_grad
        ]
        if not pairs:
            return None
        outs, grads = zip(*pairs, strict=True)
        (found,) = torch.autograd.grad(outs, leaf, grads, allow_unused=True)
    return found


def gradient_edge(tensor: Tensor) -> Any:
    """Where autograd gives the gradient of a tensor; None where it does not."""
    with torch._C.DisableTorchFunction():  # or a trace would see that `_base` is read
        if not (tensor.requires_grad and tensor.is_floating_point()):
            return None
        base = tensor._base
        if base is not None and base.requires_grad and tensor.grad_fn is None:
            return None  # a view made without autograd, as in a reentrant checkpoint
        return torch.autograd.graph.get_gradient_edge(tensor)
