"""Which function of a step did something to a tensor, and where in the model it stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stabilitykit._measure import tensors
from stabilitykit._quiet import Quiet


class Place(NamedTuple):
    """Where a function was called.

    Attributes:
        function: its name, such as "log".
        layer: the module without children that called it; else words, such as "log after a".
    """

    function: str
    layer: str


class Tracer(TorchFunctionMode):
    """Tells of every function that a model and its loss call, and which modules got anything.

    Args:
        model: whose modules are named.
        seen: called with the place, the tensors given and made, and all that was given.
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Callable[[Place, list[Tensor], list[Tensor], Any], None],
        left: Callable[[str, Any], None] = lambda *_: None,
    ) -> None:
        super().__init__()
        self.model, self.seen, self.left = model, seen, left
        self.ran: set[str] = set()
        self.grad = True  # whether autograd was on, at the function that is seen
        self._inside: list[tuple[str, nn.Module]] = []
        self._after, self._ended = "input", False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if name == "get":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        given = tensors((args, kwargs))
        if given:
            self.grad = torch.is_grad_enabled()
            with Quiet():
                self.seen(self._place(name), given, tensors(output), (args, kwargs, output))
        return output

    def _place(self, function: str) -> Place:
        if not self._inside:
            return Place(function, "loss" if self._ended else f"{function} after {self._after}")
        name, module = self._inside[-1]
        return Place(function, name if leaf(module) else f"{function} after {self._after}")

    @contextlib.contextmanager
    def on(self) -> Iterator[Tracer]:
        def enter(name: str) -> Callable[..., None]:
            return lambda module, _: self._inside.append((name, module))

        def leave(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                self._inside.pop()
                self._ended = self._ended or not self._inside
                with Quiet():
                    found = tensors((args, kwargs, output))
                    if not found or all(t.numel() for t in found):
                        self.ran.add(name)
                    if leaf(module):
                        self._after = name
                        self.left(name, output)

            return hook

        handles: list[Any] = []
        for name, module in self.model.named_modules():
            if "parametrizations" in name.split("."):
                continue
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave(name), with_kwargs=True))
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()


def leaf(module: nn.Module) -> bool:
    """Whether its calls make a record; as the probe has it."""
    children = [name for name, _ in module.named_children() if name != "parametrizations"]
    return not children or isinstance(module, nn.MultiheadAttention)
