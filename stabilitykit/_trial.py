"""Whether an optimizer's steps that overshoot lead down all the same, by making some of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stabilitykit import _findings as f
from stabilitykit._restore import Randomness


class Trial(NamedTuple):
    """How far the loss of the batch falls in `STEP_TRIAL` steps of the optimizer.

    Attributes:
        given: with its learning rates; minus infinity where the loss leaves all numbers.
        cured: with those that the remedy would set.
    """

    given: float
    cured: float

    @property
    def lowers(self) -> bool:
        """Whether the loss ends below where it began."""
        return self.given > 0

    @property
    def enough(self) -> bool:
        """Whether the remedy would gain little."""
        return self.lowers and self.given >= f.STEP_ENOUGH * self.cured


def attempt(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, Tensor],
    factor: float,
    again: Callable[[], Tensor],
    randomness: Randomness,
) -> Trial:
    """Train on the batch, once as it is and once with all rates times the factor.

    Args:
        model: left with other values and without gradients.
        optimizer: left with another state.
        before: the parameters from which to start.
        factor: that of the remedy.
        again: computes the loss.
        randomness: puts back all but the parameters, the optimizer's state among it.
    """
    falls = []
    for scale in (1.0, factor):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
        randomness.restore()
        for group in optimizer.param_groups:
            if "lr" in group:
                group["lr"] = group["lr"] * scale
        falls.append(_fall(model, optimizer, again))
    return Trial(*falls)


def _fall(model: nn.Module, optimizer: torch.optim.Optimizer, again: Callable[[], Tensor]) -> float:
    losses: list[float] = []
    for _ in range(f.STEP_TRIAL + 1):
        for p in (*model.parameters(), *(p for g in optimizer.param_groups for p in g["params"])):
            p.grad = None
        try:
            loss = again()
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
        except Exception:  # what the reader's code does not take comes of such steps
            return -math.inf
        if not math.isfinite(losses[-1]):
            return -math.inf
    last = losses[-(f.STEP_TRIAL // 4) :]
    return losses[0] - sum(last) / len(last)
