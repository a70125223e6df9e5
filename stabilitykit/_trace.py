"""One forward pass of a real model with a tape of second moments beside it."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stabilitykit import _arithmetic, _attention, _norms, _pooling  # noqa: F401 - their rules
from stabilitykit._anchor import Edge, anchor
from stabilitykit._calls import kind as kind_of
from stabilitykit._elementwise import Elementwise
from stabilitykit._flatness import ACTIVATIONS, MODULES
from stabilitykit._functions import (
    BROADCAST,
    ELEMENTWISE,
    ISOLATED,
    MOVES,
    SAME,
    SHAPED,
    WANTS_FUNCTION,
    WEIGHTED,
    named,
    plain_name,
    spelled,
    writes,
)
from stabilitykit._nested import replaced, tensors
from stabilitykit._origins import leaf
from stabilitykit._provenance import crossing
from stabilitykit._quiet import transforming
from stabilitykit._rules import RULES, moved, takes
from stabilitykit._tape import Call, State, Tape


class Trace(TorchFunctionMode):
    """Sees every torch function of a forward pass and lets the tape follow it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tape = Tape()
        self.calls: list[Call] = []
        self.missing: list[str] = []
        self._names = {
            module: name
            for name, module in reversed(list(model.named_modules()))
            if "parametrizations" not in name.split(".")
        }
        self._stack: list[nn.Module] = []
        self._numbers: dict[tuple[str, str], int] = {}
        self._elementwise = Elementwise()
        self._aliases: set[int] = set()

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The model's output; inputs are seen as known."""
        for tensor in tensors((args, kwargs)):
            self.tape.known(tensor)
        hooks = torch.nn.modules.module
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave),
        ]
        try:
            compiles = "torch._dynamo" in sys.modules  # its import takes seconds
            with self, torch.compiler.set_stance("force_eager") if compiles else nullcontext():
                return model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    # Modules

    def _enter(self, module: nn.Module, _: Any) -> None:
        if module in self._names:
            self._stack.append(module)

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if module not in self._names:
            return
        while self._stack and self._stack.pop() is not module:
            pass
        if leaf(module) and transforming():
            self._miss(kind_of(module), self._names[module])
        elif leaf(module):
            output = next((t for t in tensors(output) if t.is_floating_point()), None)
            if output is not None:
                kind = kind_of(module)
                self._check(output, kind, self._names[module])
                state = self.tape.of(output)
                if state is None:  # made of weights and integers, such as an embedding bag's
                    drawn = output.requires_grad
                    if drawn:
                        self._miss(kind, self._names[module])
                    state = State.measured(output, known=not drawn, modelled=not drawn)
                    self.tape.set(output, state)
                self._call(self._names[module], kind, state)

    def _call(self, layer: str, kind: str, state: State) -> None:
        number = self._numbers.get((layer, kind), 0)
        self._numbers[layer, kind] = number + 1
        self.calls.append(Call(layer, kind, number, state))

    @property
    def _layer(self) -> str:
        return self._names[self._stack[-1]] if self._stack else ""

    def _miss(self, kind: str, layer: str | None = None) -> None:
        layer = self._layer if layer is None else layer
        name = f"{layer} ({kind})" if layer else kind
        if name not in self.missing:
            self.missing.append(name)

    def _check(self, tensor: Tensor, kind: str, layer: str | None = None) -> None:
        """A tensor that came from operations nobody saw is named and measured."""
        if self.tape.untraced(tensor) and tensor.is_floating_point():
            edges = [self._edge(source) for source in self.tape.sources(tensor)]
            self._anchor(kind, edges, [tensor], False, layer)

    # Functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if transforming():  # what comes out of it is measured
            return func(*args, **kwargs)
        name = plain_name(func)
        for tensor in (given := list(tensors((args, kwargs)))):
            self._check(tensor, f"what {name} reads")
        if name in WEIGHTED and given and not self.tape.of(given[0]) and not given[0].requires_grad:
            self.tape.set(given[0], State.measured(given[0], known=True))
        tracked = self._tracked(name, args, kwargs)
        if not tracked and name != "embedding":
            out = func(*args, **kwargs)
            for tensor in tensors(out):
                if tensor.requires_grad and not tensor.is_leaf:
                    self.tape.constant(tensor)
            return out
        if func is torch.autograd.grad:  # which depends on all that was computed before
            earlier = [self._edge(tensor) for tensor in self.tape.differentiable()]
            out = func(*args, **kwargs)
            self._anchor(name, earlier, list(tensors(out)), False)
            return out
        if name in SHAPED:
            return self.tape.known(func(*args, **kwargs))
        inplace = writes(func, name, kwargs)
        rules = name in MOVES or name in RULES or name in ELEMENTWISE
        base = args[0]._base if inplace and args and isinstance(args[0], Tensor) else None
        if base is not None and self.tape.of(base):  # whose other views are written, too
            return self._write(name, func, args, kwargs, [base, *tracked])
        # Gradients of functions of the same entries cross: measure them together.
        apart = not rules and not crossing(self.tape.states(tracked), known=False)
        wide = name in BROADCAST and len({t.shape for t in tracked}) > 1
        if not inplace and (name in ISOLATED or wide or apart):
            args, kwargs = replaced(args, self._alias), replaced(kwargs, self._alias)
            tracked = self._tracked(name, args, kwargs)
        states = {id(t): self.tape.of(t) for t in tracked}
        edges = [self._edge(t) for t in tracked] if not rules else None
        known = all(s is not None and s.known for s in states.values())
        out = func(*args, **kwargs)
        made = [t for t in tensors(out) if t.is_floating_point()]
        if not made and name != "setitem":
            if edges is not None and any(t.requires_grad for t in tensors(out)):
                self._anchor(name, edges, [], known)  # complex numbers, such as a spectrum
            return out
        result: Any = None
        if known and name not in MOVES and name not in WEIGHTED and name != "embedding":
            pass
        elif rules:
            # Hooks on saved tensors, such as a checkpoint's, are not for what the rules compute.
            with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):
                result = self._model(name, func, args, kwargs, out, tracked)
        if result is None:
            if edges is None:
                edges = [self._edge(t, states[id(t)]) for t in tracked]
            self._anchor(name, edges, made or [args[0]], known)
        else:
            for tensor, state in zip(
                made, result if isinstance(result, list) else [result], strict=True
            ):
                self.tape.computed(tensor, state, tracked)
        if func in ACTIVATIONS and made and not self._within_activation():
            state = self.tape.of(made[0])
            if state is not None:
                self._call(self._layer, ACTIVATIONS[func], state)
        return out

    def _tracked(self, name: str, args: Any, kwargs: Any) -> list[Tensor]:
        """What an operation reads of the tape; a move has only its first tensor's values."""
        given = tensors(args[:1] if name in MOVES and args else (args, kwargs))
        return [t for t in given if self.tape.of(t) is not None]

    def _edge(self, tensor: Tensor, state: State | None = None) -> Edge:
        state = state or self.tape.states([tensor])[0]
        return Edge(self.tape, state, tensor if id(tensor) in self._aliases else None)

    def _write(self, name: str, func: Any, args: Any, kwargs: Any, read: list[Tensor]) -> Any:
        """An operation that writes into a part of a tensor."""
        edges = [self._edge(tensor) for tensor in read]
        known = all(edge.state.known for edge in edges)
        out = func(*args, **kwargs)
        self._anchor(name, edges, [read[0], args[0]], known)
        return out

    def _within_activation(self) -> bool:
        return any(isinstance(module, MODULES) and leaf(module) for module in self._stack[-1:])

    def _alias(self, tensor: Tensor) -> Tensor:
        """A view with a gradient of its own, for an operation that is measured."""
        state = self.tape.of(tensor)
        if state is None or not tensor.requires_grad:
            return tensor
        alias = tensor.view_as(tensor)
        self.tape.set(alias, state)
        self._aliases.add(id(alias))
        return alias

    def _model(
        self, name: str, func: Any, args: Any, kwargs: Any, out: Any, tracked: list[Tensor]
    ) -> Any:
        if name in MOVES:
            return self._move(func, args, kwargs, out, tracked)
        function = func
        if name in RULES:
            extra = {}
            if name in WANTS_FUNCTION or "pool" in name:
                extra["function"] = named(func, name)
            given, options = spelled(args, kwargs)
            if takes(RULES[name], out, given, options | extra):
                result = RULES[name](self.tape, out, *given, **options, **extra)
                if result is not None:
                    return result
        others = [t for t in tensors((args, kwargs)) if self.tape.of(t) is None]
        plain = all(t.numel() == 1 for t in others) and len(tracked) == 1
        if name not in ELEMENTWISE or not plain or not isinstance(out, Tensor):
            return None
        target = tracked[0]
        state = self.tape.of(target)
        if state is None or target.shape != out.shape:
            return None

        def elementwise(z: Tensor) -> Tensor:
            def put(t: Tensor) -> Tensor:
                return z if t is target else t.detach().to("cpu", torch.float64).reshape(())

            if name == "prelu":
                weight = next(t for t in others).detach().to("cpu", torch.float64)
                return nn.functional.prelu(z, weight.reshape(1))
            return function(*replaced(args, put), **replaced(kwargs, put))

        constants = tuple(float(t) for t in others)
        key = (func, repr([a for a in args if not isinstance(a, Tensor)]), constants,
               repr({k: v for k, v in kwargs.items() if not isinstance(v, Tensor)}))  # fmt: skip
        try:
            return self._elementwise(self.tape, state, key, elementwise)
        except ValueError:  # random or not differentiable
            return None

    def _move(self, func: Any, args: Any, kwargs: Any, out: Any, tracked: list[Tensor]) -> Any:
        if len(tracked) != 1:
            return None
        target = tracked[0]
        state = self.tape.of(target)
        filled = args[3] if len(args) > 3 else kwargs.get("value")
        if state is None or (plain_name(func) == "pad" and filled):
            return None

        def move(field: Tensor) -> Any:
            if plain_name(func) in SAME:
                return field * 1.0
            if plain_name(func) == "view":
                field = field.contiguous()

            def put(t: Tensor) -> Tensor:
                return field if t is target else t

            return func(*replaced(args, put), **replaced(kwargs, put))

        return moved(self.tape, state, out, move, target, plain_name(func) in SAME)

    def _anchor(
        self,
        name: str,
        edges: list[Edge],
        made: list[Tensor],
        known: bool,
        layer: str | None = None,
    ) -> None:
        """Not modelled: the moments behind it are measured ones, forward and back."""
        if not known:
            self._miss(name, layer)
        anchor(self.tape, edges, made, known)


def _same(tensor: Tensor) -> Tensor:
    return tensor
