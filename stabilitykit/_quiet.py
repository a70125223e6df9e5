"""Looking at tensors in the middle of a pass without taking part in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from stabilitykit._samples import has_values
from stabilitykit._sharded import PLAIN, local

_NOTHING = nullcontext()


def in_backward() -> bool:
    """Whether autograd is at work, so that a forward pass is a checkpoint's second one."""
    return torch._C._current_graph_task_id() != -1


def transforming() -> bool:
    """Whether torch.func is at work, under which a tensor may stand for many."""
    return _functorch.peek_interpreter_stack() is not None


def plain(tensor: Tensor) -> Tensor:
    """The values under the wrappers of torch.func, or this process's part of a sharded tensor."""
    if type(tensor) in PLAIN and not _functorch.is_functorch_wrapped_tensor(tensor):
        return tensor
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return local(tensor)[0]


def quiet(tensor: Any) -> AbstractContextManager[None]:
    """`Quiet`, or as much of it as is needed for a look at this tensor."""
    if type(tensor) not in PLAIN or not unmoved():
        return Quiet()
    return _WithoutGrad() if torch.is_grad_enabled() else _NOTHING


def at_rest() -> bool:
    """Whether plain tensors can be looked at with nothing switched off."""
    return unmoved() and not torch.is_grad_enabled()


def unmoved() -> bool:
    """Whether no mode and no transform is at work."""
    return not (
        _len_torch_function_stack()
        or _len_torch_dispatch_stack()
        or transforming()
        or forward_ad._current_level >= 0
    )


class _WithoutGrad:
    __slots__ = ()

    def __enter__(self) -> None:
        torch._C._set_grad_enabled(False)

    def __exit__(self, *error: Any) -> None:
        torch._C._set_grad_enabled(True)


class Quiet:
    """Without autograd, modes, and the transforms of torch.func, whose results die with them."""

    __slots__ = ("_dispatch", "_forward", "_grad", "_modes", "_transforms")

    def __enter__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._modes = torch._C.DisableTorchFunction()
        self._modes.__enter__()
        torch._C._set_grad_enabled(False)  # which the modes would see, too
        self._forward = torch._C._is_fwd_grad_enabled()
        torch._C._set_fwd_grad_enabled(False)
        self._dispatch: Any = None
        if _len_torch_dispatch_stack():  # as where a checkpoint keeps some results
            self._dispatch = torch._C._DisableTorchDispatch()
            self._dispatch.__enter__()
        self._transforms: Any = None
        if transforming():
            self._transforms = temporarily_clear_interpreter_stack()
            self._transforms.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._transforms is not None:
            self._transforms.__exit__(None, None, None)
        if self._dispatch is not None:
            self._dispatch.__exit__(None, None, None)
        torch._C._set_fwd_grad_enabled(self._forward)
        torch._C._set_grad_enabled(self._grad)
        self._modes.__exit__(None, None, None)


def tensors(value: Any) -> Iterator[Tensor]:
    """Tensors with values in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        if has_values(value):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from tensors(getattr(value, each.name, None))  # it may not be set
