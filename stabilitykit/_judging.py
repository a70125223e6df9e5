"""All rules of a diagnosis, on what one training step has shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from stabilitykit import _scales, _verdicts
from stabilitykit._findings import Finding
from stabilitykit._inputs import unscaled
from stabilitykit._line import Line
from stabilitykit._measure import Watch
from stabilitykit._recurrent import recurrent
from stabilitykit._remedies import rescaling
from stabilitykit._restore import Randomness
from stabilitykit._stages import stage
from stabilitykit._trial import Trial
from stabilitykit._twins import tied
from stabilitykit._unreached import unmoved, without_gradient


class Seen(NamedTuple):
    """What a training step has shown.

    Attributes:
        watch: signals, and what comes from the batch.
        records: of the probe.
        layers: of the prediction.
        misfit: of the loss.
        line: the loss along the optimizer's step.
        trial: what more steps lead to, where that one overshoots.
        before: the parameters as they were given.
    """

    watch: Watch
    records: Sequence[Any]
    layers: Sequence[Any]
    misfit: Finding | None
    line: Line | None
    trial: Trial | None
    before: Mapping[str, Tensor]


def judge(
    model: nn.Module,
    seen: Seen,
    inputs: Any,
    forward: Callable[[], Any],
    again: Callable[[], Tensor],
    randomness: Randomness,
) -> list[Finding]:
    """Every finding, also those that follow from another.

    Args:
        model: as it was given, with the gradients of the step; its values may change.
        seen: in that step.
        inputs: of the batch.
        forward: calls the model.
        again: computes the loss.
        randomness: puts back all but the parameters.
    """
    watch, records = seen.watch, seen.records
    rescale = rescaling(model, records, watch)
    findings = unscaled(watch.feeds, inputs)
    findings += _scales.findings(watch.signals, watch.norms, records, seen.layers, rescale)
    findings += _verdicts.activations(model, records, rescale, watch.gates)
    randomness.restore()
    findings += recurrent(model, forward)
    findings += [seen.misfit] if seen.misfit is not None else []
    findings += _verdicts.step(seen.line, seen.trial)
    with stage("a second step"):
        zeros = unmoved(model, again, randomness)
        findings += tied(model, watch.signals, seen.before)
        return findings + without_gradient(model, zeros, again, randomness)
