"""Hooks and a mode that watch a model, and are off again however its calls and copies end."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)
from torch.overrides import TorchFunctionMode

from stabilitykit._flatness import ACTIVATIONS, LAYOUTS


class Hook(partial):  # type: ignore[type-arg]
    """What a hook calls. In a copy of the model, or a file, it does nothing, and needs nothing."""

    __torch_unserializable__ = True  # no warning when a tensor is saved without it

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")


def follow(tensor: Tensor, hook: Hook) -> Callable[[], Any]:
    """Call the hook with the tensor's gradient; what it returns takes it off."""
    if type(tensor) is not Tensor:
        return tensor.register_hook(hook).remove  # type: ignore[no-any-return]
    # What `register_hook` does, without a handle for each, which costs as much again.
    hooks = tensor._backward_hooks
    if hooks is None:
        hooks = tensor._backward_hooks = OrderedDict()
        if tensor.grad_fn is not None:
            tensor.grad_fn._register_hook_dict(tensor)  # type: ignore[attr-defined]
    hooks[id(hook)] = hook
    return partial(hooks.pop, id(hook), None)


# Ways to a tensor's memory, through which it can be changed without a new version.
_PAST_VERSIONS = {
    *(Tensor.data.__get__, Tensor.data.__set__),  # type: ignore[attr-defined]
    *(Tensor.numpy, Tensor.data_ptr, Tensor.untyped_storage, Tensor.__dlpack__),
}


class Watch(TorchFunctionMode):
    """Sees the functional activations, which no module hook does."""

    def __init__(self, hooks: Any) -> None:
        super().__init__()
        self.hooks = hooks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ACTIVATIONS:
            return self.hooks.activation(func, args, kwargs)
        layout = LAYOUTS.get(func)
        if layout is not None:
            self.hooks.channels_first = layout
        elif func in _PAST_VERSIONS:
            self.hooks.outputs.last = None
        return func(*args, **kwargs)


class _Eager:
    """The compiler's stance force_eager, as long as any probe holds it, in whatever order."""

    def __init__(self) -> None:
        self._holders = 0
        self._stance: Any = None

    def hold(self) -> None:
        if not self._holders:
            self._stance = torch.compiler.set_stance("force_eager")
        self._holders += 1

    def release(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._stance.__exit__(None, None, None)


EAGER = _Eager()


def calling() -> FrameType | None:
    """The frame of torch that has called a hook of this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    return frame


def running(frame: FrameType | None) -> bool:
    """Whether a frame of this thread has not ended yet.

    Torch tells hooks of exceptions, and not of what is none, such as KeyboardInterrupt.
    """
    above: FrameType | None = sys._getframe(1)
    while above is not None and above is not frame:
        above = above.f_back
    return above is not None


def leave(mode: TorchFunctionMode) -> None:
    """Take a mode off this thread's stack, wherever in it it is, and if it is."""
    others = []
    while torch.overrides._len_torch_function_stack():
        top = torch.overrides._pop_mode()
        if top is mode:
            break
        others.append(top)
    for other in reversed(others):
        torch.overrides._push_mode(other)


def pause(mode: TorchFunctionMode) -> bool:
    """Take a mode off this thread's stack if it is the innermost one; whether it was."""
    if not _len_torch_function_stack():  # as while the mode itself handles a function
        return False
    top = _pop_torch_function_stack()
    if top is not mode:
        _push_on_torch_function_stack(top)
    return top is mode
