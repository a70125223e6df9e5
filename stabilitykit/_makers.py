"""What made a tensor, by autograd's graph and by its values: a softmax, a sigmoid, …"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Operations that only move numbers about, as their nodes in autograd's graph are called.
_MOVES = (
    *("View", "Reshape", "Squeeze", "Unsqueeze", "Permute", "Transpose", "T", "Clone", "Select"),
    *("Slice", "Expand", "ToCopy", "UnsafeView", "Alias", "Contiguous", "Split", "Index"),
)


# Those that change numbers but keep what a sigmoid made of them, where they stay in [0, 1].
_TOUCHES = ("clamp", "clampmin", "clampmax", "mul", "div", "add", "sub", "rsub")


def last_function(x: Tensor) -> str:
    """The operation that made a tensor, moves left aside: "softmax", "sigmoid", "addmm", …

    Examples:
        >>> import torch
        >>> last_function(torch.zeros(2, 3, requires_grad=True).softmax(1).unsqueeze(0))
        'softmax'
    """
    node = maker(x)
    return "" if node is None else _name(node).lower()


def maker(x: Tensor) -> Any:
    """The node in autograd's graph of the operation that made a tensor, moves left aside."""
    node: Any = x.grad_fn
    while node is not None and _name(node) in _MOVES and node.next_functions:
        node = node.next_functions[0][0]
    return node


def _name(node: Any) -> str:
    return str(node.name().rsplit("::", 1)[-1].split("Backward")[0].lstrip("_"))


def squashed(scores: Tensor) -> str:
    """Whether numbers are the output of a "softmax" or a "sigmoid", else nothing.

    By the last function; by values, where rows in [0, 1] sum to 1; and by the functions before a
    clamp or a scaling that leave all in [0, 1], also of a sigmoid that is written out.

    Examples:
        >>> import torch
        >>> z = torch.linspace(-3, 3, 8, requires_grad=True).view(4, 2)
        >>> squashed(1 / (1 + torch.exp(-z))), squashed(z.exp() / z.exp().sum(1, keepdim=True))
        ('sigmoid', 'softmax')
        >>> squashed(z.relu()), squashed(z.detach().sigmoid())
        ('', '')
    """
    made = last_function(scores)
    if made in ("softmax", "sigmoid"):
        return made
    values = scores.detach()
    if not values.numel() or not bool(((values >= 0) & (values <= 1)).all()):
        return ""
    values = values.double()
    # Convention: closer to 1 than chance comes, and no closer than rounding leaves it.
    near = max(1e-4, 2 * torch.finfo(scores.dtype).eps)
    for dimension in (1, -1) if scores.ndim > 1 else ():
        total = values.sum(dimension)
        if scores.shape[dimension] > 1 and bool(((total - 1).abs() < near).all()):
            return "softmax"
    names = list(_path(scores.grad_fn))
    while names and names[0] in _TOUCHES:
        names.pop(0)
    written = names[:3] == ["reciprocal", "add", "exp"]
    return "sigmoid" if names[:1] == ["sigmoid"] or written else ""


def squashed_twice(scores: Tensor) -> tuple[str, str]:
    """The function that made (log-)probabilities of what is already a "softmax" or "sigmoid".

    By functions alone: what went in is not kept, and logits may have such values.

    Examples:
        >>> import torch
        >>> z = torch.randn(4, 3, requires_grad=True)
        >>> squashed_twice(z.softmax(1).log_softmax(1)), squashed_twice(z.log_softmax(1))
        (('log_softmax', 'softmax'), ('', ''))
        >>> squashed_twice(z.log_softmax(1).log_softmax(1))  # which changes nothing
        ('', '')
    """
    names = list(_path(scores.grad_fn))
    while names and names[0] in ("log", "add", "clamp", "clampmin", "clampmax"):
        names.pop(0)
    if names[1:4] == ["reciprocal", "add", "exp"]:
        names[1] = "sigmoid"
    last, first = names[:2] if len(names) > 1 else ("", "")
    if last not in ("softmax", "logsoftmax", "sigmoid") or first not in ("softmax", "sigmoid"):
        return "", ""
    return last.replace("logsoft", "log_soft"), first


# Operations that cannot give all numbers, and which they give.
_RANGES = {
    "softmax": (0.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "softplus": (0.0, math.inf),
}


def reach(x: Tensor) -> tuple[float, float]:
    """The least and the largest number that the operation which made a tensor can give.

    Examples:
        >>> import torch
        >>> z = torch.zeros(2, requires_grad=True)
        >>> reach(z.tanh()), reach(torch.nn.functional.relu6(z)), reach(2 * z)
        ((-1.0, 1.0), (0.0, 6.0), (-inf, inf))
    """
    node = maker(x)
    if node is not None and _name(node).lower() == "hardtanh":
        return float(node._saved_min_val), float(node._saved_max_val)
    return _RANGES.get(last_function(x), (-math.inf, math.inf))


def _path(node: Any) -> Iterator[str]:
    """The operations from a node on, the last first, as long as each has one input."""
    while node is not None:
        if _name(node) not in _MOVES:
            yield _name(node).lower()
        before = [below for below, _ in node.next_functions if below is not None]
        node = before[0] if len(before) == 1 else None
