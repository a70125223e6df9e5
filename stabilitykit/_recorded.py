"""What a recorded step left, of which its records are made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

from stabilitykit._calls import Call, Step
from stabilitykit._reading import Fetched, Reading
from stabilitykit._records import NonFinite, ParameterRecord, Record
from stabilitykit._samples import SAMPLE


@dataclass(frozen=True, slots=True)
class Recorded:
    """One step that has ended.

    Attributes:
        number: of the step.
        step: what was seen in it.
        fetched: the numbers of what was seen.
        scale: of the loss, by a GradScaler.
        hybrid: whether gradients were sampled and those of parameters were not.
        parameters: the parameters' records.
    """

    number: int
    step: Step
    fetched: Fetched
    scale: float
    hybrid: bool
    parameters: list[ParameterRecord]

    def records(self, reading: Reading) -> list[Record]:
        """In the order of the forward pass, from a reading of what was fetched."""
        doubtful = self.hybrid and any(p.grad_nonfinite for p in self.parameters)
        return [self._record(call, reading, doubtful) for call in self.step.calls]

    def _record(self, call: Call, reading: Reading, doubtful: bool) -> Record:
        output = reading.moments(call.output)
        gradient = reading.moments(call.gradient) if call.gradient else None
        bad = gradient.nonfinite if gradient else None
        # A parameter's gradient is not finite, and this sample does not tell whether it is why.
        if doubtful and bad == 0 and call.gradient and call.gradient.numel > SAMPLE:
            bad = None
        saturated, dead, whole, _ = call.flatness
        share, still = reading.value(saturated), reading.value(dead)
        if whole is not None:
            share, still = reading.values(whole.slot)[-1], reading.value(whole.total)
        return Record(
            self.number,
            call.layer,
            call.call,
            call.kind,
            call.shape,
            output.mean,
            output.std,
            output.rms,
            share,
            still,
            output.nonfinite,
            gradient.rms / self.scale if gradient else None,
            bad,
        )

    def nonfinite(self, records: list[Record], reading: Reading) -> Iterator[NonFinite]:
        """Where nan or infinity was seen, in the order of `NonFinite`.

        Args:
            records: those of the step.
            reading: of what was fetched.
        """
        number, step = self.number, self.step
        for name, call, written in step.inputs:
            if reading.moments(written).nonfinite:
                yield NonFinite(number, name, call, "input")
        for parameter in self.parameters:
            if parameter.nonfinite:
                yield NonFinite(number, parameter.parameter, 0, "parameter")
        for record in records:
            if record.nonfinite:
                yield NonFinite(number, record.layer, record.call, "forward")
        pairs = zip(step.calls, records, strict=True)
        wrong = [(call.order, record) for call, record in pairs if record.grad_nonfinite]
        for _, record in sorted(wrong, key=itemgetter(0)):
            yield NonFinite(number, record.layer, record.call, "backward")
        for parameter in self.parameters:
            if parameter.grad_nonfinite:
                yield NonFinite(number, parameter.parameter, 0, "gradient")
