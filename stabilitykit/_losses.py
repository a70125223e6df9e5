"""Whether a loss fits what it is given: the functions of torch that it calls, and with what."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stabilitykit._findings import Finding, finding
from stabilitykit._makers import last_function, reach, squashed, squashed_twice

_POINTWISE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_LOGITS = ("cross_entropy", "binary_cross_entropy_with_logits")
_PROBABILITIES = ("nll_loss", "binary_cross_entropy", "kl_div", "ctc_loss")
_WATCHED = (*_POINTWISE, *_LOGITS, *_PROBABILITIES)


class Mismatch(NamedTuple):
    """A loss that does not fit.

    Attributes:
        measured: what was found.
        expected: what the loss takes.
        words: what to do.
        call: the same as a statement; empty where none does it.
    """

    measured: str
    expected: str
    words: str
    call: str

    def remedy(self, where: str) -> str:
        """One sentence: with the call, or for source that no call replaces.

        Args:
            where: that source; empty where loss_fn is the loss alone.
        """
        if not self.call:
            return f"{self.words[0].upper()}{self.words[1:]}."
        if where:
            return f"In {where}, {self.words}."
        return f"{self.words[0].upper()}{self.words[1:]}: `{self.call}`."


class LossWatch(TorchFunctionMode):
    """Sees the outermost loss functions that are called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Tensor, Tensor]] = []
        self.inside = 0  # how many of them the model made itself

    def finding(self, outputs: Any, targets: Any) -> Finding | None:
        """mismatched-loss: the first call that was given something else than it takes.

        Args:
            outputs: of the model.
            targets: of the batch.
        """
        for number, call in enumerate(self.calls):
            found = mismatch([call])
            if found is not None:
                alone = call[1] is outputs and call[2] is targets
                inside = number < self.inside
                where = "the model's forward" if inside else "" if alone else "loss_fn"
                remedy = found.remedy(where)
                return finding("mismatched-loss", "loss", found.measured, found.expected, remedy)
        return None

    def refused(self) -> bool:
        """Whether the last call was one that raises over values, as it does outside [0, 1]."""
        if not self.calls or self.calls[-1][0] != "binary_cross_entropy":
            return False
        scores = self.calls[-1][1].detach()
        return not bool(((scores >= 0) & (scores <= 1)).all())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _WATCHED:
            given = dict(zip(("input", "target"), args, strict=False)) | kwargs
            scores = given.get("input", given.get("log_probs"))
            target = given.get("target", given.get("targets"))
            if isinstance(scores, Tensor) and isinstance(target, Tensor):
                self.calls.append((name, scores, target))
        return func(*args, **kwargs)


def mismatch(calls: list[tuple[str, Tensor, Tensor]]) -> Mismatch | None:
    """The first loss call that was given something else than it takes, None if all fit."""
    for name, scores, target in calls:
        found = _judge(name, scores, target)
        if found is not None:
            return found
    return None


def _judge(name: str, scores: Tensor, target: Tensor) -> Mismatch | None:
    if not bool(scores.detach().isfinite().all()):
        return None  # which is another finding
    made = squashed(scores)
    if name in _POINTWISE:
        return _pointwise(name, scores, target, made)
    if name == "cross_entropy" and scores.ndim > 1 and scores.shape[1] == 1:
        return Mismatch(
            "cross_entropy over a single class, which is 0 whatever the output",
            "one logit a class, or binary_cross_entropy_with_logits for one logit",
            "use binary_cross_entropy_with_logits for one logit",
            "loss_fn = lambda y, t: "
            "nn.functional.binary_cross_entropy_with_logits(y.squeeze(1), t.float())",
        )
    if name in _LOGITS and made:
        own = "log_softmax" if name == "cross_entropy" else "sigmoid"
        return Mismatch(
            f"{name} on the output of a {made}",
            "logits",
            f"drop the {made}, since {name} applies {own} itself, or {_UNDO}",
            _undone(name, made),
        )
    if name == "binary_cross_entropy_with_logits":
        return _beyond(name, target)
    last, first = squashed_twice(scores) if name in _PROBABILITIES else ("", "")
    if first:
        return _twice(name, last, first)
    if name == "nll_loss":
        return _likelihood(scores, made)
    if name == "binary_cross_entropy":
        return _probability(scores, target)
    if name == "ctc_loss":
        return _alignment(scores, made)
    return _divergence(scores, made) if name == "kl_div" else None


def _pointwise(name: str, scores: Tensor, target: Tensor, made: str) -> Mismatch | None:
    if scores.shape != target.shape:
        return Mismatch(
            f"{name} of shapes {list(scores.shape)} and {list(target.shape)}, broadcast",
            "outputs and targets of one shape",
            "give both one shape",
            f"loss_fn = lambda y, t: nn.functional.{name}(y, t.view_as(y))",
        )
    if made and bool(((target == 0) | (target == 1)).all()):
        loss = "cross_entropy" if made == "softmax" else "binary_cross_entropy_with_logits"
        return Mismatch(
            f"{name} on the output of a {made}, against targets of 0 and 1",
            f"{loss} on the logits",
            f"drop the {made} and use {loss}, or {_UNDO}",
            _undone(loss, made),
        )
    last, (least, most) = last_function(scores), reach(scores)
    # Convention: more than half, since a few targets may lie a little beyond. What is within a
    # thousandth lies on the edge, as targets of half precision round.
    out = (target < least - 1e-3) | (target > most + 1e-3)
    if target.numel() and float(out.double().mean()) > 0.5:
        low, high = (float(v) for v in target.detach().aminmax())
        wanted = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
        undo = last in ("sigmoid", "softmax", "tanh")
        return Mismatch(
            f"{name} on the output of a {last}, against targets from {low:.3g} to {high:.3g}",
            f"targets {wanted}, beyond which no output comes",
            f"drop the {last}, or bring the targets to its range"
            + (f", or {_UNDO}" if undo else ""),
            _undone(name, last) if undo else "",
        )
    return None


def _twice(name: str, last: str, first: str) -> Mismatch:
    """Probabilities that are taken for logits once more, which leaves them near to equal."""
    both = (
        f"one of the two, {first} and {last}" if last == first else f"the {first} before the {last}"
    )
    return Mismatch(
        f"{name} on the {last} of the output of a {first}",
        f"the {last} of logits",
        f"drop {both}",
        "",
    )


def _beyond(name: str, target: Tensor) -> Mismatch | None:
    """Targets that are no probabilities: the loss then falls for ever as logits grow."""
    low, high = (float(v) for v in target.detach().aminmax()) if target.numel() else (0.0, 1.0)
    # Convention: by half the range; noise that is put on labels, up to 1.2, does no harm.
    if low >= -0.5 and high <= 1.5:
        return None
    return Mismatch(
        f"{name} against targets from {low:.3g} to {high:.3g}",
        "targets from 0 to 1",
        "bring the targets to the range from 0 to 1",
        f"loss_fn = lambda y, t: nn.functional.{name}("
        "y, (t - t.min()) / (t.max() - t.min()).clamp_min(1e-8))",
    )


def _likelihood(scores: Tensor, made: str) -> Mismatch | None:
    total = scores.detach().double().logsumexp(1 if scores.ndim > 1 else 0)
    if float(total.abs().max()) <= _rounded(scores, 1 if scores.ndim > 1 else 0):
        return None
    words, call = "use cross_entropy on logits", "loss_fn = nn.functional.cross_entropy"
    if made:
        words = f"drop the {made} and {words}, or {_UNDO}"
        call = _undone("cross_entropy", made)
    elif last_function(scores) == "logsoftmax":
        words = "drop the log_softmax, which is not over the classes, and use cross_entropy"
    return Mismatch(
        f"nll_loss on numbers whose exponentials sum to {float(total.exp().mean()):.3g}",
        "log-probabilities, whose exponentials sum to 1",
        words,
        call,
    )


def _rounded(scores: Tensor, classes: int) -> float:
    """How far the log of a sum of probabilities may be from 0.

    Derived: rounding moves it by at most eps times the entropy, which is at most the log of the
    number of classes. Convention: 1 %, where that is less.
    """
    return max(1e-2, torch.finfo(scores.dtype).eps * math.log(max(scores.shape[classes], 1)))


_UNDO = "let the loss undo it"


def _undone(loss: str, made: str) -> str:
    """The statement that makes a loss on probabilities of one that takes logits."""
    if loss == "binary_cross_entropy_with_logits":
        return "loss_fn = nn.functional.binary_cross_entropy"
    inverse = {
        "softmax": "y.clamp_min(1e-12).log()",
        "sigmoid": "y.logit(1e-6)",
        "tanh": "y.clamp(-1 + 1e-6, 1 - 1e-6).atanh()",
    }[made]
    return f"loss_fn = lambda y, t: nn.functional.{loss}({inverse}, t)"


def _probability(scores: Tensor, target: Tensor) -> Mismatch | None:
    low, high = (float(v) for v in scores.detach().aminmax()) if scores.numel() else (0.0, 1.0)
    rectified = last_function(scores) == "relu"
    same = scores.shape == target.shape
    stuck = rectified and same and bool(((scores.detach() == 0) & (target > 0)).any())
    if low >= 0 and high <= 1 and not stuck:
        return None
    drop = "drop the relu and " if rectified else ""
    return Mismatch(
        f"binary_cross_entropy on numbers from {low:.3g} to {high:.3g}"
        + (", of a relu" if rectified else ""),
        "probabilities, the output of a sigmoid",
        f"{drop}use binary_cross_entropy_with_logits",
        "loss_fn = nn.functional.binary_cross_entropy_with_logits",
    )


def _divergence(scores: Tensor, made: str) -> Mismatch | None:
    # Log-probabilities are at most 0; within what rounding of float16 adds.
    high = float(scores.detach().max()) if scores.numel() else 0.0
    if high <= 1e-2:
        return None
    took = "y.clamp_min(1e-12).log()" if made else "y.log_softmax(-1)"
    kind = "probabilities" if made else f"numbers up to {high:.3g}"
    return Mismatch(
        f"kl_div on {kind}",
        "log-probabilities, which are at most 0",
        "take log_softmax of the logits for kl_div",
        f"loss_fn = lambda y, t: nn.functional.kl_div({took}, t, reduction='batchmean')",
    )


def _alignment(scores: Tensor, made: str) -> Mismatch | None:
    total = scores.detach().double().logsumexp(-1)
    if float(total.abs().max()) <= _rounded(scores, -1):
        return None
    took = "y.clamp_min(1e-12).log()" if made else "y.log_softmax(-1)"
    return Mismatch(
        f"ctc_loss on numbers whose exponentials sum to {float(total.exp().mean()):.3g}",
        "log-probabilities, whose exponentials sum to 1",
        "take log_softmax of the logits for ctc_loss",
        f"loss_fn = lambda y, t, own=loss_fn: own({took}, t)",
    )
