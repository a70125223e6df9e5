"""Hooks that see each layer's output and gradient, and leave nothing behind."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch._C import _set_grad_enabled as set_grad
from torch.compiler import is_compiling

from stabilitykit._calls import NOT_FLAT, Flatness, Step, kind
from stabilitykit._flatness import ACTIVATIONS, CHANNELS_FIRST, MODULES
from stabilitykit._frames import Frame, frames
from stabilitykit._functional import flatness_of
from stabilitykit._ledger import Ledger
from stabilitykit._outputs import Outputs
from stabilitykit._quiet import Quiet, in_backward, plain, tensors, unmoved
from stabilitykit._switches import EAGER, Hook, Watch, calling, leave, pause, running


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
        self.outputs, self.skip_evaluation = Outputs(ledger, on_gradient), skip_evaluation
        self.on_call: Callable[[], None] = lambda: None
        self.channels_first: bool | None = None
        self._handles: list[Any] = []
        self._stack: list[Frame] = []
        self._watch: Watch | None = None
        self.outermost: Any = None  # the frame of the call that the stack begins with
        self._thread: dict[str, int] = {}  # in which that is: calls in others do not count
        self._root = Frame(model)
        self._frames: dict[nn.Module, Frame] = {model: self._root}
        self._children: list[tuple[nn.Module, list[nn.Module | None]]] = []
        self._eager = False
        self._paused: Frame | None = None  # in which the watch is off
        self._alone = False  # whether no other mode is at work there, and gradients are to come

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    @property
    def step(self) -> Step:
        return self.outputs.step

    def attach(self) -> None:
        """Watch every module; modules that torch.compile made run eagerly meanwhile."""
        if self._handles:
            return
        if "torch._dynamo" in sys.modules:  # its import takes seconds
            EAGER.hold()
            self._eager = True
        self._children = [(m, list(m._modules.values())) for m in self.model.modules()]
        self._frames = frames(self.model, self._frames)
        for module, frame in self._frames.items():
            if frame.light:
                end = Hook(self._end, frame)
                self._handles.append(module.register_forward_hook(end, with_kwargs=True))
                continue
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
        self.outputs.fresh()

    # The hooks. What they return would replace the module's output: they return nothing.

    def enter_root(self, args: Any, kwargs: Any) -> None:
        """For hooks that were attached when the root's own call had begun."""
        self._enter(self._root, self.model, args, kwargs)

    def _enter(self, frame: Frame, _: nn.Module, args: Any, kwargs: Any) -> None:
        if self._alone and frame.pure:  # `_leave` sees all
            return
        stack = self._stack
        if is_compiling() or not self._here():
            return
        again = stack and (frame is self._root or frame is stack[0])
        if again and not running(self.outermost):  # else the model calls itself
            self._unwatch()
        if not stack and not self._begin(frame, args, kwargs):
            return
        if self._paused and frame not in self._paused.within:  # which an interrupt has ended
            self._resume()
        frame.flatness = NOT_FLAT
        stack.append(frame)
        if frame.bare and not self._paused:
            self._pause(frame)
        if self._paused and frame.function is not None:
            known = self._flatness(frame.function, args, {**kwargs, **frame.given()})
            frame.flatness = known or NOT_FLAT

    def _here(self) -> bool:
        """Whether this is the thread whose calls count, if there is one by now."""
        thread = get_ident()
        return self._thread.setdefault("of", thread) == thread

    def _begin(self, frame: Frame, args: Any, kwargs: Any) -> bool:
        """At a call from outside; whether it counts."""
        begins = self._begins(frame, args, kwargs)
        if not begins:
            self._thread.clear()
        return begins

    def _begins(self, frame: Frame, args: Any, kwargs: Any) -> bool:
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

    def _leave(self, frame: Frame, module: nn.Module, args: Any, output: Any) -> None:
        if self._alone and frame.pure:
            if output is not None and self._thread.get("of") == get_ident():
                self._activation(frame, module, args, output)
            return
        if is_compiling():
            return
        stack = self._stack
        if frame not in stack or self._thread.get("of") != get_ident():
            return  # not counted, or an earlier hook raised before `_enter`
        while stack.pop() is not frame:
            pass
        try:
            if frame.leaf and output is not None:
                self._layer(frame, module, output)
        finally:
            if not stack:
                self._unwatch()
            elif self._paused and (self._paused is frame or self._paused not in stack):
                self._resume()

    def _end(self, frame: Frame, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Of a layer at whose beginning nothing had to be done."""
        if self._alone and self._thread.get("of") == get_ident():
            set_grad(False)
            try:
                # One entry that is not finite makes mean and std, and all of its channel, so.
                by_channels = frame.batch_norm and module.training
                quickly = self.outputs.layer(frame.key, output, by_channels)
            finally:
                set_grad(True)
            if quickly:
                self.channels_first = CHANNELS_FIRST.get(type(module), self.channels_first)
                return
        if is_compiling() or not self._here():
            return
        whole = not self._stack
        if whole and not self._begin(frame, args, kwargs):
            return
        try:
            self._layer(frame, module, output)
        finally:
            if whole:
                self._unwatch()

    def _activation(self, frame: Frame, module: nn.Module, args: Any, output: Any) -> None:
        """Of an activation in a sequence that nothing disturbs."""
        f = frame.activation()
        if f is not None and f.apply is not None:
            set_grad(False)
            try:
                if self.outputs.activation(frame.key, args[0], output, f, self.channels_first):
                    return
            finally:
                set_grad(True)
        frame.flatness = self._flatness(frame.function, args, frame.given()) or NOT_FLAT
        self._layer(frame, module, output)

    def _layer(self, frame: Frame, module: nn.Module, output: Any) -> None:
        flatness = frame.flatness
        if frame.bare:
            self.channels_first = CHANNELS_FIRST.get(type(module), self.channels_first)
            if flatness.whole is not None and flatness.result is None:
                flatness = flatness._replace(result=weakref.ref(output))
        self.outputs.record(frame.name, kind(module), output, flatness)

    def _pause(self, frame: Frame) -> None:
        """Where nothing is called that must be seen, for each look costs 10 µs."""
        if self._watch is not None and frame.undisturbed() and pause(self._watch):
            self._paused = frame
            alone = torch.is_grad_enabled() and unmoved() and not in_backward()
            self._alone = alone and not frame.leaf

    def _resume(self) -> None:
        self._paused, self._alone = None, False
        torch.overrides._push_mode(self._watch)

    def activation(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run a functional activation; its module, if it has one of its own, makes the record."""
        frame = self._stack[-1] if self._stack else None
        if frame is None:
            return function(*args, **kwargs)
        flatness = self._flatness(function, args, kwargs)  # now: it may work in place
        output = function(*args, **kwargs)
        if flatness is None:
            return output
        if flatness.whole is not None:
            flatness = flatness._replace(result=weakref.ref(output))
        if frame.leaf and isinstance(frame.module, MODULES):
            frame.flatness = flatness
        else:
            self.outputs.record(frame.name, ACTIVATIONS[function], output, flatness)
        return output

    def _flatness(self, function: Any, args: Any, kwargs: Any) -> Flatness | None:
        last = self.outputs.last
        return flatness_of(self.ledger, last, self.channels_first, function, args, kwargs)

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
        self._paused, self._alone = None, False
        if watch is not None:
            leave(watch)
