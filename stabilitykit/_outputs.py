"""Outputs of layers, and their gradients when they come, written into a ledger."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stabilitykit._calls import NOT_FLAT, Call, Flatness, Seen, Step, version
from stabilitykit._flatness import Activation, units_dimension
from stabilitykit._ledger import Ledger, Sample
from stabilitykit._quiet import at_rest, in_backward, plain, quiet, tensors
from stabilitykit._reading import Written
from stabilitykit._samples import has_values
from stabilitykit._switches import Hook, follow


class Outputs:
    """What is seen in one step.

    Args:
        ledger: where the numbers go.
        on_gradient: called with autograd's number of each backward pass, at its first gradient.
    """

    def __init__(self, ledger: Ledger, on_gradient: Callable[[int], None]) -> None:
        self.ledger, self.on_gradient = ledger, on_gradient
        self._removals: list[Any] = []
        self.fresh()

    def fresh(self) -> None:
        """Start a new step; gradients of the old one no longer count."""
        self.step = Step()
        self.last: Seen | None = None  # the output of the layer before
        self._backward = -1  # autograd's number of the last backward pass
        self._at_rest = False  # whether nothing need be switched off in it
        for remove in self._removals:
            remove()
        self._removals.clear()

    def record(self, layer: str, kind: str, output: Any, flatness: Flatness) -> None:
        """Write down the output of one call of a layer.

        Args:
            layer: its name.
            kind: of the layer.
            output: the first tensor of floats in it counts.
            flatness: of the activation, if it is one.
        """
        with quiet(output):
            tensor = output if type(output) is Tensor else next(tensors(output), None)
            if tensor is None or not has_values(tensor):
                return
            step, key = self.step, (layer, kind)
            grows = tensor.requires_grad
            if in_backward():  # a checkpoint computes its part again
                if key in step.without_graph and grows:
                    box: list[Call] = []
                    step.again[key].append(box)
                    self._follow(tensor, box)
                return
            inner = plain(tensor)
            seen = self._seen(tensor, inner, flatness)
            call = self._call(key, inner, seen.written, flatness)
            if not grows:
                step.without_graph[key].append(call)
                return
            seen.box.append(call)
            if len(seen.box) == 1:
                self._follow(tensor, seen.box)

    def layer(self, key: tuple[str, str], output: Any, by_channels: bool) -> bool:
        """`record`, quickly, where nothing need be switched off; False where it does not suffice.

        Args:
            key: name and kind of a layer that is no activation.
            output: its own.
            by_channels: as in `Ledger.known`.
        """
        if not self._new(output):
            return False
        written = self.ledger.known(output, by_channels=by_channels)
        if written is None:
            return False
        self._note(key, output, written, self.ledger.last, NOT_FLAT)
        return True

    def activation(
        self, key: tuple[str, str], z: Any, output: Any, f: Activation, channels_first: bool | None
    ) -> bool:
        """The same of an activation, where z is what the layer before it has put out."""
        last, ledger = self.last, self.ledger
        if last is None or not last.still(z) or last.drained != ledger.drained:
            return False
        if last.sample is None or last.sample[2] is None or z.dim() < 2 or not self._new(output):
            return False
        units = units_dimension(z.shape, channels_first)
        written = ledger.activation(z, last.sample, f, units)
        self._note(key, output, written, None, Flatness(whole=written))
        return True

    def _new(self, output: Any) -> bool:
        """Whether it is a plain tensor with a gradient to come, and not what a layer got."""
        if type(output) is not Tensor or not output.requires_grad:
            return False
        if output.is_nested or output.layout is not torch.strided:  # of which there are no strides
            return False
        return self.last is None or self.last.tensor() is not output

    def _note(
        self,
        key: tuple[str, str],
        output: Tensor,
        written: Written,
        sample: Sample | None,
        flatness: Flatness,
    ) -> None:
        box = [self._call(key, output, written, flatness)]
        made, drained = weakref.ref(output), self.ledger.drained
        self.last = Seen(made, output._version, written, sample, drained, box)
        self._follow(output, box)

    def _call(
        self, key: tuple[str, str], output: Tensor, written: Written, flatness: Flatness
    ) -> Call:
        step = self.step
        number = step.counts.get(key, 0)
        step.counts[key] = number + 1
        call = Call(*key, number, tuple(output.shape), written, flatness)
        step.calls.append(call)
        return call

    def _follow(self, tensor: Tensor, box: list[Call]) -> None:
        """Wait for the gradient, on the tensor: modules' own hooks raise with in-place ones."""
        self._removals.append(follow(tensor, Hook(self._gradient, self.step, box)))

    def _seen(self, tensor: Tensor, inner: Tensor, flatness: Flatness) -> Seen:
        """The moments of an output, which may be known by now."""
        if self.last is not None and self.last.still(tensor):
            return self.last  # as from dropout that drops nothing
        sample: Sample | None = None
        if (
            flatness.whole is not None
            and flatness.result is not None
            and flatness.result() is tensor
        ):
            written = flatness.whole
        else:  # a layer, or a hook of the user's has replaced the output
            written = self.ledger.moments(inner)
            sample = self.ledger.last
        drained, box = self.ledger.drained, list[Call]()
        seen = Seen(weakref.ref(tensor), version(tensor), written, sample, drained, box)
        if not tensor.is_inference():
            self.last = seen
        return seen

    def _gradient(self, step: Step, box: list[Call], gradient: Tensor) -> None:
        if step is not self.step:
            return
        task = torch._C._current_graph_task_id()
        if task != self._backward:
            self._backward = task
            self._at_rest = at_rest()  # and stays so in this pass
            self.on_gradient(task)
        if step.again:
            for key, boxes in step.again.items():  # the calls computed again are the last ones
                calls = step.without_graph[key]
                for again, call in zip(boxes, calls[-len(boxes) :], strict=False):
                    again.append(call)
                del calls[-len(boxes) :]
            step.again.clear()
        if not box:
            return
        written: Written | None = None
        if self._at_rest and type(gradient) is Tensor and gradient.layout is torch.strided:
            written = self.ledger.known(gradient, sampled=True)
        if written is None:
            if not has_values(gradient):
                return
            with quiet(gradient):
                written = self.ledger.moments(plain(gradient), sampled=True)
        for call in reversed(box):
            call.gradient = written
            step.gradients += 1
            call.order = step.gradients
