"""What is wrong with a model, where it starts, and what to do about it."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from stabilitykit import _verdicts
from stabilitykit._files import write
from stabilitykit._findings import Finding, causes
from stabilitykit._inputs import unscaled
from stabilitykit._intake import intake, scalar
from stabilitykit._judging import Seen, judge
from stabilitykit._line import Line, along
from stabilitykit._losses import LossWatch
from stabilitykit._measure import Signal, Watch, tensors
from stabilitykit._nested import arguments
from stabilitykit._nonfinite import first_nonfinite
from stabilitykit._remedies import rescaling
from stabilitykit._restore import Randomness, restored
from stabilitykit._stages import stage
from stabilitykit._trial import Trial, attempt
from stabilitykit.prediction import Prediction, predict
from stabilitykit.probe import ParameterRecord, Probe, Record, unwrapped

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        findings: causes first; empty for a healthy model.
        loss: of the batch.
        records: the probe's record of every layer call.
        parameters: the probe's record of every parameter.
        prediction: what theory expects of every layer; None where the step was not finite, and
            where predicting failed, of which a warning tells.
        signals: amplitude before and after every weighted or normalising layer: the rms, over
            units, of the deviation from the mean over the batch, which tells samples apart.
    """

    findings: tuple[Finding, ...]
    loss: float
    records: tuple[Record, ...]
    parameters: tuple[ParameterRecord, ...]
    prediction: Prediction | None
    signals: tuple[Signal, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    def table(self) -> Table:
        """The findings for `rich.print`, one a row."""
        table: Table = _report().table(self)
        return table

    def text(self) -> Group:
        """The findings for `rich.print` as the command line prints them, calls ready to copy."""
        text: Group = _report().text(self)
        return text

    def to_json(self) -> str:
        """Findings and measurements as JSON, one object.

        Its keys are healthy, loss, findings, layers (records, each beside its prediction),
        parameters, signals and not_modelled, with the fields of `Finding`, `Record`,
        `LayerPrediction` and `ParameterRecord`. "nan", "inf" and "-inf" are strings.
        """
        text: str = _report().to_json(self)
        return text

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one HTML file that needs nothing else, and give its path.

        Args:
            path: the file; replaced only once the new one is whole.

        Raises:
            OSError: the file cannot be written; what was there before stays.
        """
        return write(path, _report().to_html(self))


def _report() -> Any:
    return importlib.import_module("stabilitykit.report")  # brings matplotlib, when asked for


def diagnose(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer | None = None,
) -> Diagnosis:
    """Run one training step, compare each layer with theory, and say what is wrong.

    The model runs in the mode in which it is given. Afterwards its weights, buffers, gradients,
    modes and hooks, its other attributes with the lists and dicts in them, the optimizer's state,
    the modules of the loss, the batch and the random numbers are what they were, bit for bit, also
    after an exception. With an optimizer the step is made (and undone) as well, and the loss along
    it says whether it is too short, or may be too long; then twenty steps from here, and as many of
    the length that the remedy proposes, are made and undone to decide. An optimizer in a hook after
    the accumulation of a gradient makes no step. What can not be put back is what objects of other
    classes that the model holds have done meanwhile, what functions have written to variables, and
    what went to files.

    A signal counts as lost, or as exploded, when its amplitude moves by more than a factor e⁶ = 403
    between the input and the last hidden layer (a convention: that is twelve depth scales, where
    Schoenholz et al. 2017, section 5, find that training slows after six), with three standard
    deviations of the random walk that finite widths cause (Hanin & Rolnick 2018) on top; and so for
    the gradient on its way back, where a layer that is called several times counts by the sum of
    its calls, and where the steps of a recurrent layer count. Beside each of these stands what
    theory predicts for the weights as they are. All thresholds, with reasons, stand in
    `stabilitykit/_findings.py`.

    Args:
        model: on the device of the batch.
        batch: (inputs, targets); inputs is a tensor, a tuple or mapping that is unpacked into
            forward, or a dataclass. Take a batch as in training: 32 samples or more.
        loss_fn: called as loss_fn(outputs, targets), gives a scalar.
        optimizer: of the model's parameters.

    Returns:
        The findings, and what was measured and predicted.

    Raises:
        TypeError: a model, batch, loss or optimizer of another kind.
        ValueError: a model without (trainable, materialised) parameters, an empty batch, one on
            another device, a loss that is not scalar or not differentiable.
        RuntimeError: forward, loss, backward or the optimizer's step raised; it names the layer.

    Examples:
        Fifteen sigmoid layers let almost no gradient through to the first:

        >>> from stabilitykit.networks import MLP
        >>> _ = torch.manual_seed(0)
        >>> inputs, targets = torch.randn(64, 16), torch.randint(0, 4, (64,))
        >>> deep = MLP([16] + [64] * 15 + [4], "sigmoid")
        >>> found = diagnose(deep, (inputs, targets), nn.functional.cross_entropy)
        >>> [finding.code for finding in found.findings]
        ['vanishing-signal', 'vanishing-gradient']
        >>> diagnose(MLP([16, 64, 4], "relu"), (inputs, targets), nn.CrossEntropyLoss()).healthy
        True
    """
    inputs, targets = intake(model, batch, loss_fn, optimizer)
    model = unwrapped(model)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        restored(model, optimizer, batch, loss_fn) as randomness,
    ):
        return _run(model, inputs, targets, loss_fn, optimizer, randomness)


def _call(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def _run(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer | None,
    randomness: Randomness,
) -> Diagnosis:
    watch, losses = Watch(), LossWatch()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def rewind() -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.data.copy_(before[name])
        randomness.restore()

    def again() -> Any:
        return loss_fn(_call(model, inputs), targets)

    def nonfinite(loss: Tensor, gradients: dict[str, Tensor | None]) -> Finding | None:
        rescale = rescaling(model, probe.records, watch)
        return first_nonfinite(
            *(model, before, gradients, (inputs, targets), loss),
            *(probe.first_nonfinite, probe.records, rescale, rewind, again),
        )

    with Probe(model, optimizer, mode="exact") as probe:
        outputs: Any = None
        try:
            with stage("forward", watch.entered), watch.on(model, tensors(inputs)), losses:
                outputs = _call(model, inputs)
            losses.inside = len(losses.calls)
            with stage("loss_fn"), losses:
                raw = loss_fn(outputs, targets)
        except RuntimeError:
            if not losses.refused():
                raise
            nan = torch.tensor(float("nan"))
            bad = losses.finding(outputs, targets) or nonfinite(nan, {})
            findings, records = (bad,) if bad else (), tuple(probe.records)
            return Diagnosis(findings, float("nan"), records, (), None, tuple(watch.signals))
        loss = scalar(raw)
        with stage("backward"):
            loss.backward()
        gradients = {
            n: None if p.grad is None else p.grad.detach().clone()
            for n, p in model.named_parameters()
        }
        if optimizer is not None:
            with stage("optimizer.step"):
                optimizer.step()
    value = float(loss.detach())
    records, parameters = tuple(probe.records), tuple(probe.parameters)
    bad = nonfinite(loss.detach(), gradients) or _verdicts.spoilt(model, optimizer)
    if bad is not None:
        stopped = (bad, *unscaled(watch.feeds, inputs))
        return Diagnosis(stopped, value, records, parameters, None, tuple(watch.signals))

    def evaluate() -> float:
        return float(loss_fn(_call(model, inputs), targets).detach())

    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]
    line: Line | None = None
    trial: Trial | None = None
    if optimizer is not None:
        with stage("forward after the optimizer's step"):
            line = along(model, before, value, evaluate, randomness)
        if line is not None and _verdicts.overshoots(line):
            trial = attempt(model, optimizer, before, line.factor, again, randomness)
    rewind()
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]
    prediction = _predicted(model, (inputs, targets))
    layers = prediction.layers if prediction is not None else ()
    seen = Seen(watch, records, layers, losses.finding(outputs, targets), line, trial, before)
    found = causes(judge(model, seen, inputs, lambda: _call(model, inputs), again, randomness))
    return Diagnosis(found, value, records, parameters, prediction, tuple(watch.signals))


def _predicted(model: nn.Module, batch: Any) -> Prediction | None:
    """What theory expects; it stands beside what is found, which outlives its failure."""
    try:
        return predict(model, batch)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        warnings.warn(f"diagnose: no prediction for this model, {said}", stacklevel=4)
        return None
