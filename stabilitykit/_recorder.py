"""Which steps are recorded, when one ends, and what is then read."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stabilitykit._hooks import Hooks
from stabilitykit._ledger import Ledger
from stabilitykit._parameters import ParameterMeter
from stabilitykit._quiet import Quiet, in_backward
from stabilitykit._reading import Reading
from stabilitykit._recorded import Recorded
from stabilitykit._records import NonFinite, ParameterRecord, Record, scalars
from stabilitykit._switches import Hook, running


class Recorder:
    """Counts steps, attaches the hooks in those that are due, and turns them into records."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        every: int,
        mode: str,
        callback: Callable[[dict[str, float], int], Any] | None,
        scaler: Any,
    ) -> None:
        self.model, self.optimizer, self.every = model, optimizer, every
        self.callback, self.scaler = callback, scaler
        self.ledger = Ledger(mode)
        self.meter = ParameterMeter(model, self.ledger)
        self.hooks = Hooks(model, self.ledger, self._on_gradient, optimizer is not None)
        self.hooks.on_call = self._on_call
        self.records: list[Record] = []
        self.parameters: list[ParameterRecord] = []
        self.first_nonfinite: NonFinite | None = None
        self.step = 0
        self._ended: deque[Recorded] = deque()  # whose records are not made yet
        self._latest: tuple[Recorded, Reading] | None = None  # both of the last of these
        self._running = False
        self._handles: list[Any] = []
        self._scale: int | None = None
        self._unused = False  # whether a step began and no call of the model was in it
        self._gradients = 0
        self._updating = False

    def start(self) -> None:
        if self._running:
            raise RuntimeError("the probe is already running; leave its with block first")
        self._running = True
        try:
            self._attach()
        except BaseException:
            self.stop()
            raise

    def _attach(self) -> None:
        if self.optimizer is None:
            before = Hook(self._before_call)
            self._handles.append(self.model.register_forward_pre_hook(before, with_kwargs=True))
        else:
            self._handles += [
                self.optimizer.register_step_pre_hook(_uncompiled(self._before_update)),
                self.optimizer.register_step_post_hook(_uncompiled(self._after_update)),
            ]
        self._begin()

    def stop(self) -> None:
        """Remove everything; what was not read is lost."""
        self._running = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.hooks.detach()
        self._clear()
        self.meter.release()
        self.ledger.release()

    def finish(self, failed: bool) -> None:
        """Read what the last step left, then remove everything."""
        try:
            if self._running and self.hooks.step.started:
                self._close(collective=not failed)
        finally:
            self.stop()

    def catch_up(self) -> None:
        """Make the records so far.

        Without an optimiser nothing ends the last step, so asking for it does.
        """
        ends = self._running and self.optimizer is None and self.hooks.step.started
        if ends and not running(self.hooks.outermost) and not in_backward():
            self._close()
        self._make()

    # Where steps begin and end.

    def _begin(self) -> None:
        if self.step % self.every == 0:
            self.hooks.attach()
        elif self.hooks.attached:
            self.hooks.detach()

    def _before_call(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """At each call of a model without optimiser; the recorded steps count in `_on_call`."""
        if torch.compiler.is_compiling() or in_backward() or self.hooks.attached:
            return
        if not self._unused:
            self.step += 1
            self._begin()
            if self.hooks.attached:
                self.hooks.enter_root(args, kwargs)
        self._unused = False

    def _on_call(self) -> None:
        """At each call of the model in a step that is recorded."""
        if self.hooks.step.started and (self.optimizer is None or self._left_out()):
            self._close()
        self._unused = False

    def _left_out(self) -> bool:
        """Whether the scaler found infinities, and left the optimiser's step out."""
        if self.scaler is None or self._updating or not self.hooks.step.gradients:
            return False
        return all(parameter.grad is None for parameter in self.model.parameters())

    def _before_update(self, *_: Any) -> None:
        if self.hooks.attached:
            self._updating = True  # a closure may call the model
            self._gradients = self.hooks.step.gradients
            with Quiet():
                self.meter.before()

    def _after_update(self, *_: Any) -> None:
        self._updating = False
        if self.hooks.attached:
            with Quiet():
                self.meter.after(self.hooks.step.gradients > self._gradients)
            self._close()
        else:
            self.step += 1
            self._begin()

    def _on_gradient(self, task: int) -> None:
        if self.scaler is not None:
            with Quiet():
                self._write_scale()
        if self.optimizer is None and task != -1:
            # Twice, so that it runs after what DistributedDataParallel queues meanwhile.
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: engine.queue_callback(self._after_backward))

    def _after_backward(self) -> None:
        if self._running and self.hooks.step.started:
            with Quiet():
                self.meter.before()

    def _write_scale(self) -> None:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        scale = self.scaler.scale(torch.ones((1, 1), device=device))
        (self._scale,) = self.ledger.write(scale)

    # What is read.

    def _clear(self) -> None:
        self.ledger.clear()
        self.meter.clear()
        self._scale = None
        self._updating = False

    def _close(self, collective: bool = True) -> None:
        """Fetch the step's numbers, and begin the next."""
        step, number = self.hooks.step, self.step
        with Quiet():
            if not self.meter.seen:
                self.meter.before()
            self.meter.reduce()
            fetched = self.ledger.read()
            reading = Reading(fetched)
            parameters = self.meter.read(number, reading, collective)
        scale = reading.value(self._scale) if self._scale is not None else None
        hybrid = self.ledger.mode == "hybrid"
        ended = Recorded(number, step, fetched, scale or 1.0, hybrid, parameters)
        self._ended.append(ended)
        self._latest = ended, reading
        self.hooks.fresh()
        self._clear()
        self.step += 1
        self._unused = True
        self._begin()
        if self.callback is not None:
            values = scalars(ended.records(reading), parameters)
            self.callback({tag: value for tag, _, value in values}, number)

    def _make(self) -> None:
        """Make the records of the steps that have ended, also while another thread trains."""
        while self._ended:
            ended, latest = self._ended.popleft(), self._latest
            reading = latest[1] if latest and latest[0] is ended else Reading(ended.fetched)
            records = ended.records(reading)
            if self.first_nonfinite is None:
                self.first_nonfinite = next(ended.nonfinite(records, reading), None)
            self.records += records
            self.parameters += ended.parameters


def _uncompiled(function: Callable[..., None]) -> Callable[..., None]:
    """A hook that torch.compile does not look into, nor into what it calls."""

    def hook(*args: Any) -> None:
        if "torch._dynamo" in sys.modules:  # its import takes seconds
            torch.compiler.disable(function)(*args)
        else:
            function(*args)

    hook._torchdynamo_disable = True  # type: ignore[attr-defined]
    return hook
