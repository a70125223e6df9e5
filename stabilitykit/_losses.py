"""Whether a loss fits what it is given: the functions of torch that it calls, and with what."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

_POINTWISE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_WATCHED = (*_POINTWISE, "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits")

# Operations that only move numbers about, as their nodes in autograd's graph are called.
_MOVES = (
    *("View", "Reshape", "Squeeze", "Unsqueeze", "Permute", "Transpose", "T", "Clone", "Select"),
    *("Slice", "Expand", "ToCopy", "UnsafeView", "Alias", "Contiguous", "Split", "Index"),
)


class Mismatch(NamedTuple):
    """A loss that does not fit.

    Attributes:
        measured: what was found.
        expected: what the loss takes.
        remedy: one sentence with the call.
    """

    measured: str
    expected: str
    remedy: str


class LossWatch(TorchFunctionMode):
    """Sees the outermost loss functions that are called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _WATCHED:
            given = dict(zip(("input", "target"), args, strict=False)) | kwargs
            scores, target = given.get("input"), given.get("target")
            if isinstance(scores, Tensor) and isinstance(target, Tensor):
                self.calls.append((name, scores, target))
        return func(*args, **kwargs)


def last_function(x: Tensor) -> str:
    """The operation that made a tensor, moves left aside: "softmax", "sigmoid", "addmm", …

    Examples:
        >>> import torch
        >>> last_function(torch.zeros(2, 3, requires_grad=True).softmax(1).unsqueeze(0))
        'softmax'
    """
    node: Any = x.grad_fn
    while node is not None:
        name = node.name().rsplit("::", 1)[-1].split("Backward")[0].lstrip("_")
        if name not in _MOVES or not node.next_functions:
            return str(name).lower()
        node = node.next_functions[0][0]
    return ""


def mismatch(calls: list[tuple[str, Tensor, Tensor]]) -> Mismatch | None:
    """The first loss call that was given something else than it takes, None if all fit."""
    for name, scores, target in calls:
        found = _judge(name, scores, target)
        if found is not None:
            return found
    return None


def _judge(name: str, scores: Tensor, target: Tensor) -> Mismatch | None:
    made = last_function(scores)
    squashed = made in ("softmax", "sigmoid")
    if name in _POINTWISE:
        if scores.shape != target.shape:
            return Mismatch(
                f"{name} of shapes {list(scores.shape)} and {list(target.shape)}, broadcast",
                "outputs and targets of one shape",
                "Give both one shape: "
                f"`loss_fn = lambda y, t: nn.functional.{name}(y, t.view_as(y))`.",
            )
        classes = bool(((target == 0) | (target == 1)).all())
        if squashed and classes:
            one_hot = made == "softmax"
            loss = "cross_entropy" if one_hot else "binary_cross_entropy_with_logits"
            return Mismatch(
                f"{name} on the output of a {made}, against targets of 0 and 1",
                f"{loss} on the logits",
                f"Drop the {made} and use `loss_fn = nn.functional.{loss}`.",
            )
    if name == "cross_entropy":
        if scores.ndim > 1 and scores.shape[1] == 1:
            return Mismatch(
                "cross_entropy over a single class, which is 0 whatever the output",
                "one logit a class, or binary_cross_entropy_with_logits for one logit",
                "Use `loss_fn = lambda y, t: "
                "nn.functional.binary_cross_entropy_with_logits(y.squeeze(1), t.float())`.",
            )
        if squashed:
            return Mismatch(
                f"cross_entropy on the output of a {made}",
                "logits",
                f"Drop the {made}: `loss_fn = nn.functional.cross_entropy` applies "
                "log_softmax itself.",
            )
    if name == "binary_cross_entropy_with_logits" and squashed:
        return Mismatch(
            f"{name} on the output of a {made}",
            "logits",
            f"Drop the {made}, since `loss_fn = nn.functional.binary_cross_entropy_with_logits` "
            "applies sigmoid itself.",
        )
    if name == "nll_loss" and made not in ("logsoftmax", "log_softmax"):
        total = scores.detach().double().logsumexp(1 if scores.ndim > 1 else 0)
        # Convention: log-probabilities of float16 sum to one within 1 %.
        if float(total.abs().max()) > 1e-2:
            return Mismatch(
                f"nll_loss on numbers whose exponentials sum to {float(total.exp().mean()):.3g}",
                "log-probabilities, whose exponentials sum to 1",
                "Use `loss_fn = nn.functional.cross_entropy` on the logits.",
            )
    return None
