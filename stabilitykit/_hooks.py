"""Hooks that see each layer's output and gradient, and leave nothing behind."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from stabilitykit._calls import NOT_FLAT, Call, Flatness, Frame, Seen, Step, kind
from stabilitykit._flatness import ACTIVATIONS, CHANNELS_FIRST, MODULES, bare
from stabilitykit._functional import flatness_of
from stabilitykit._ledger import Ledger, Sample
from stabilitykit._quiet import Quiet, in_backward, plain, quiet, tensors
from stabilitykit._samples import has_values
from stabilitykit._switches import EAGER, Hook, Watch, calling, follow, leave, pause, running


class Hooks:
    """Writes what passes through a model into a ledger while attached.

    Args:
        model: whose modules are watched.
        ledger: where the numbers go.
        on_gradient: called with autograd's number of each backward pass, at its first gradient.
        skip_evaluation: whether forwards without gradients in eval mode are left out.
    """

    def __init__(
        self,
        model: nn.Module,
        ledger: Ledger,
        on_gradient: Callable[[int], None],
        skip_evaluation: bool,
    ) -> None:
        self.model, self.ledger = model, ledger
        self.on_gradient, self.skip_evaluation = on_gradient, skip_evaluation
        self.on_call: Callable[[], None] = lambda: None
        self.step = Step()
        self.channels_first: bool | None = None
        self._handles: list[Any] = []
        self._removals: list[Any] = []
        self._stack: list[Frame] = []
        self._watch: Watch | None = None
        self.outermost: Any = None  # the frame of the call that the stack begins with
        self._thread: dict[str, int] = {}  # in which that is: calls in others do not count
        self._root = Frame(model, "", False)
        self._frames: dict[nn.Module, Frame] = {model: self._root}
        self._children: list[tuple[nn.Module, list[nn.Module | None]]] = []
        self._eager = False
        self.last: Seen | None = None  # the output of the layer before
        self._paused = False  # whether the watch is off, in a module where it would see nothing
        self._backward = -1  # autograd's number of the last backward pass

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def attach(self) -> None:
        """Watch every module; modules that torch.compile made run eagerly meanwhile."""
        if self._handles:
            return
        if "torch._dynamo" in sys.modules:  # its import takes seconds
            EAGER.hold()
            self._eager = True
        known, self._frames, self._children = self._frames, {}, []
        for name, module in self.model.named_modules():
            self._children.append((module, list(module._modules.values())))
            if "parametrizations" in name.split(".") or isinstance(module, torch.jit.ScriptModule):
                continue
            children = [n for n, child in module.named_children() if n != "parametrizations"]
            leaf = not children or isinstance(module, nn.MultiheadAttention)
            frame = known.get(module) or Frame(module, name, leaf)  # a call may be in it
            frame.name, frame.leaf, frame.bare = name, leaf, leaf and bare(module)
            self._frames[module] = frame
            before, after = Hook(self._enter, frame), Hook(self._leave, frame)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(after, always_call=True))

    def detach(self) -> None:
        """Remove every hook, also those on tensors, also in the middle of a forward pass."""
        self.fresh()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._unwatch()
        if self._eager:
            EAGER.release()
            self._eager = False

    def fresh(self) -> None:
        """Start a new step; gradients of the old one no longer count."""
        if self._stack and self._thread.get("of") == get_ident() and not running(self.outermost):
            self._unwatch()
        self.step = Step()
        self.last = None
        self._backward = -1
        for remove in self._removals:
            remove()
        self._removals.clear()

    # The hooks. What they return would replace the module's output: they return nothing.

    def enter_root(self, args: Any, kwargs: Any) -> None:
        """For hooks that were attached when the root's own call had begun."""
        self._enter(self._root, self.model, args, kwargs)

    def _enter(self, frame: Frame, _: nn.Module, args: Any, kwargs: Any) -> None:
        if is_compiling():
            return
        thread, stack = get_ident(), self._stack
        if self._thread.setdefault("of", thread) != thread:
            return
        again = stack and (frame is self._root or frame is stack[0])
        if again and not running(self.outermost):  # else the model calls itself
            self._unwatch()
        if not stack and not self._begin(frame, args, kwargs):
            self._thread.clear()
            return
        frame.flatness = NOT_FLAT
        stack.append(frame)
        if self._paused:  # an interrupt has left a layer without `_leave`
            self._resume()
        if frame.bare:
            self._pause(frame.module)

    def _begin(self, frame: Frame, args: Any, kwargs: Any) -> bool:
        """At a call from outside; whether it counts."""
        if self._idle():
            return False
        if frame.module is self.model and not in_backward():
            self.on_call()
            if not self.attached:
                return False
        if not self.step.started and self._other_modules():  # than were hooked
            self.detach()
            self.attach()
            if frame.module not in self._frames:
                return False
        if not in_backward():
            self.step.started = True
            key = frame.name, ""  # which is the kind of no layer
            call = self.step.counts[key] = self.step.counts.get(key, -1) + 1
            with Quiet():
                for tensor in tensors((args, kwargs)):
                    self.step.inputs.append((frame.name, call, self.ledger.moments(plain(tensor))))
        elif not self.step.without_graph:
            return False
        self.channels_first = None
        self.outermost, self._thread["of"] = calling(), get_ident()
        self._watch = Watch(self)
        self._watch.__enter__()
        return True

    def _leave(self, frame: Frame, module: nn.Module, _: Any, output: Any) -> None:
        if is_compiling():
            return
        if frame not in self._stack or self._thread.get("of") != get_ident():
            return  # not counted, or an earlier hook raised before `_enter`
        while self._stack.pop() is not frame:
            pass
        try:
            if frame.leaf and output is not None:
                self._record(frame.name, kind(module), output, frame.flatness)
        finally:
            if self._paused:
                self._resume()
            if not self._stack:
                self._unwatch()

    def _pause(self, module: nn.Module) -> None:
        """In torch's own layers the watch would see nothing, and each look costs 10 µs."""
        others = len(module._forward_pre_hooks) + len(module._forward_hooks) > 2  # which may act
        if self._watch is not None and not others and pause(self._watch):
            self._paused = True
            self.channels_first = CHANNELS_FIRST.get(type(module), self.channels_first)

    def _resume(self) -> None:
        self._paused = False
        torch.overrides._push_mode(self._watch)

    def activation(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run a functional activation; its module, if it has one of its own, makes the record."""
        frame = self._stack[-1] if self._stack else None
        z = args[0] if args else kwargs.get("input")
        with quiet(z):
            plain = frame is not None and has_values(z)
        if frame is None or not plain:
            return function(*args, **kwargs)
        # Now: it may work in place.
        flatness = flatness_of(self.ledger, self.last, self.channels_first, function, args, kwargs)
        output = function(*args, **kwargs)
        if flatness.whole is not None:
            flatness = flatness._replace(result=weakref.ref(output))
        if frame.leaf and isinstance(frame.module, MODULES):
            frame.flatness = flatness
        else:
            self._record(frame.name, ACTIVATIONS[function], output, flatness)
        return output

    def _record(self, layer: str, kind: str, output: Any, flatness: Flatness) -> None:
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
            number = step.counts.get(key, 0)
            step.counts[key] = number + 1
            inner = plain(tensor)
            seen = self._seen(tensor, inner, flatness)
            call = Call(layer, kind, number, tuple(inner.shape), seen.written, flatness)
            step.calls.append(call)
            if not grows:
                step.without_graph[key].append(call)
                return
            seen.box.append(call)
            if len(seen.box) == 1:
                self._follow(tensor, seen.box)

    def _follow(self, tensor: Tensor, box: list[Call]) -> None:
        """Wait for the gradient, on the tensor: modules' own hooks raise with in-place ones."""
        self._removals.append(follow(tensor, Hook(self._gradient, self.step, box)))

    def _seen(self, tensor: Tensor, inner: Tensor, flatness: Flatness) -> Seen:
        """The moments of an output, which may be known by now."""
        version = 0 if tensor.is_inference() else tensor._version  # such tensors have none
        last = self.last
        if last is not None and last.tensor() is tensor and last.version == version:
            return last  # as from dropout that drops nothing
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
        seen = Seen(weakref.ref(tensor), version, written, sample, self.ledger.drained, [])
        if not tensor.is_inference():
            self.last = seen
        return seen

    def _gradient(self, step: Step, box: list[Call], gradient: Tensor) -> None:
        if step is not self.step:
            return
        task = torch._C._current_graph_task_id()
        if task != self._backward:
            self._backward = task
            self.on_gradient(task)
        if step.again:
            for key, boxes in step.again.items():  # the calls computed again are the last ones
                calls = step.without_graph[key]
                for again, call in zip(boxes, calls[-len(boxes) :], strict=False):
                    again.append(call)
                del calls[-len(boxes) :]
            step.again.clear()
        if box and has_values(gradient):
            with quiet(gradient):
                written = self.ledger.moments(plain(gradient), sampled=True)
            for call in reversed(box):
                call.gradient = written
                step.gradients += 1
                call.order = step.gradients

    def _other_modules(self) -> bool:
        return any(list(m._modules.values()) != children for m, children in self._children)

    def _idle(self) -> bool:
        if torch._C._get_tracing_state() is not None:
            return True
        training = torch.is_grad_enabled() or self.model.training
        return self.skip_evaluation and not training

    def _unwatch(self) -> None:
        self._stack.clear()
        self._thread.clear()
        watch, self._watch, self.outermost = self._watch, None, None
        self._paused = False
        if watch is not None:
            leave(watch)
