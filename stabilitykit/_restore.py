"""A model, its optimizer and the random numbers, put back exactly as they were."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import grad_mode

from stabilitykit._held import Held, contents


def check_values(model: nn.Module) -> None:
    """Refuse parameters that have nothing to put back."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} has no values yet (meta or lazy)")


class Randomness:
    """The state of every random number generator that a model may draw from.

    Args:
        generators: those of the model's own, beside the global ones.
    """

    def __init__(self, generators: Sequence[Any] = ()) -> None:
        self.python = random.getstate()
        self.numpy = np.random.get_state()  # noqa: NPY002 - models draw from the global one
        self.torch = torch.get_rng_state()
        started = torch.cuda.is_available() and torch.cuda.is_initialized()
        self.cuda = torch.cuda.get_rng_state_all() if started else None
        self.own = [(generator, _state(generator)) for generator in generators]

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        for generator, state in self.own:
            _set_state(generator, state)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


class Values:
    """Dense tensors and copies of what they hold; only those that changed are written back."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.kept = [(t, t.data, t.detach().clone()) for t in tensors if _is_dense(t)]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, data, value in self.kept:
            if not _same_place(tensor, data):  # `tensor.data = …`, or resized
                tensor.data = data
            if not _same_bits(tensor.detach(), value):
                tensor.detach().copy_(value)


def _is_dense(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and not tensor.is_nested
    return strided and not tensor.is_meta and not nn.parameter.is_lazy(tensor)


def _same_place(tensor: Tensor, data: Tensor) -> bool:
    if tensor.shape != data.shape or tensor.stride() != data.stride():
        return False
    plain = type(tensor) in (Tensor, nn.Parameter)  # others have no address of their own
    return not plain or tensor.data_ptr() == data.data_ptr()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    same = (a == b) & (torch.signbit(a) == torch.signbit(b))
    return bool(same.all())  # NaN differs from itself and is written back, bits and all


class Start(Randomness):
    """All that a pass may change beside the model's parameters: buffers, batch, attributes, …

    Args:
        held: what the pass may reach.
        parameters: left alone.
    """

    def __init__(self, held: Held, parameters: Iterable[Tensor]) -> None:
        super().__init__(held.generators)
        left = {id(parameter) for parameter in parameters}
        self.containers = [contents(container) for container in held.containers]
        self.arrays = [(array, array.copy()) for array in held.arrays if array.flags.writeable]
        self.values = Values([t for t in held.tensors if id(t) not in left])

    def restore(self) -> None:
        for restore in self.containers:
            restore()
        for array, content in self.arrays:
            array[...] = content
        self.values.restore()
        super().restore()


@contextmanager
def restored(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, batch: Any, loss_fn: Any = None
) -> Iterator[Start]:
    """Run anything on a model; afterwards all is bit-identical, also after an exception.

    Kept are values and gradients (the same tensors, which autograd takes for never changed) of all
    parameters and buffers, modes, hooks, and plain attributes of every module, with what is in
    lists, dicts, sets, arrays, random generators and dataclasses there; so for the optimizer, the
    batch, and the modules that the loss calls. Objects of other classes that a module holds are the
    same ones afterwards, whatever they did meanwhile; so are variables that functions write to.

    Inside, gradients are None and stay: what hooks do after each is accumulated, such as an
    optimizer's step, is left out. Autocast keeps no casts of weights.

    Args:
        model: with all its submodules.
        optimizer: or None.
        batch: which operations in place could change.
        loss_fn: None, a module, or a function that may call modules.

    Yields:
        What puts back all but the model's parameters, for another pass like the first.
    """
    held, parameters = Held(model, optimizer, batch, loss_fn), list(model.parameters())
    start, values = Start(held, parameters), Values(parameters)
    leaves = [t for t in held.tensors if t.is_leaf]
    gradients = [(leaf, leaf.grad, leaf.requires_grad) for leaf in leaves]
    caching = torch.is_autocast_cache_enabled()
    with ExitStack() as afterwards:
        for tensor in held.tensors:
            if not tensor.is_inference():  # such have no version
                afterwards.enter_context(grad_mode._unsafe_preserve_version_counter(tensor))
        after = [t._post_accumulate_grad_hooks for t in leaves if t._post_accumulate_grad_hooks]
        hooks = [contents(table) for table in after]
        for table in after:
            table.clear()
        for leaf in leaves:
            if leaf.grad is not None:
                leaf.grad = None
        torch.set_autocast_cache_enabled(False)
        try:
            yield start
        finally:
            torch.set_autocast_cache_enabled(caching)
            start.restore()
            values.restore()
            for leaf, gradient, required in gradients:
                if leaf.is_leaf and leaf.requires_grad != required:
                    leaf.requires_grad_(required)
                if leaf.is_leaf and leaf.grad is not gradient:
                    leaf.grad = gradient
            for restore in hooks:
                restore()
