"""What a probe writes down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

Direction = Literal["input", "parameter", "forward", "backward", "gradient"]


class Record(NamedTuple):
    """One call of one layer in one recorded step.

    Where an entry is not finite, the moments of its tensor are nan.

    Attributes:
        step: number of the step, from 0.
        layer: name in `named_modules`; for a functional activation, of the module around it.
        call: how often this layer and kind was called before in this step.
        kind: lower-case class of the module, or name of the function.
        shape: of the output.
        mean: of the output's entries.
        std: their standard deviation, √E[(y − E y)²].
        rms: their root mean square, √E[y²].
        saturated: share of entries at which the activation's slope is less than 1 % of its largest
            slope; None where there is no activation.
        dead: share of units that lie within one flat stretch of the activation for the whole
            batch, such as a relu that is 0 for every sample; None where there is no activation and
            in mode "sampled", since a sample cannot tell.
        nonfinite: entries of the output that are nan or infinite.
        grad_rms: root mean square of ∂loss/∂output; None where no gradient arrived.
        grad_nonfinite: entries of that gradient that are nan or infinite; None where no gradient
            arrived, and in mode "hybrid" where a parameter's gradient is not finite and the sample
            of this one does not tell.
    """

    step: int
    layer: str
    call: int
    kind: str
    shape: tuple[int, ...]
    mean: float
    std: float
    rms: float
    saturated: float | None
    dead: float | None
    nonfinite: int
    grad_rms: float | None
    grad_nonfinite: int | None


class ParameterRecord(NamedTuple):
    """One parameter in one recorded step.

    Attributes:
        step: number of the step, from 0.
        parameter: name in `named_parameters`.
        grad_norm: ‖g‖ as the optimiser gets it; None without a gradient.
        weight_norm: ‖w‖ before the optimiser's step.
        update_ratio: ‖Δw‖ / ‖w‖ of the optimiser's step; None without an optimiser or a gradient,
            and where the weight was 0.
        nonfinite: entries of the weight that are nan or infinite.
        grad_nonfinite: entries of the gradient that are nan or infinite; None without a gradient.
    """

    step: int
    parameter: str
    grad_norm: float | None
    weight_norm: float
    update_ratio: float | None
    nonfinite: int
    grad_nonfinite: int | None


@dataclass(frozen=True)
class NonFinite:
    """Where nan or infinity was first seen.

    Within a step the order is: the model's input, its parameters, outputs in the order of the
    forward pass, their gradients in the order of the backward pass, the parameters' gradients.

    Attributes:
        step: number of the step, from 0.
        layer: name of the layer, or of the parameter.
        call: as in `Record`; 0 for parameters.
        direction: "input", "parameter", "forward", "backward" (of an output) or "gradient" (of a
            parameter).
    """

    step: int
    layer: str
    call: int
    direction: Direction


def scalars(
    records: Iterable[Record], parameters: Iterable[ParameterRecord]
) -> Iterator[tuple[str, int, float]]:
    """Every number as (tag, step, value), with tags such as "rms/encoder.0.linear"."""
    for record in records:
        name = ".".join(filter(None, (record.layer, record.kind)))
        name += f".{record.call}" if record.call else ""
        for field in ("mean", "std", "rms", "saturated", "dead", "nonfinite", "grad_rms"):
            value = getattr(record, field)
            if value is not None:
                yield f"{field}/{name}", record.step, value
    for parameter in parameters:
        for field in ("grad_norm", "weight_norm", "update_ratio"):
            value = getattr(parameter, field)
            if value is not None:
                yield f"{field}/{parameter.parameter}", parameter.step, value
