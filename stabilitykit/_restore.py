"""A model, its optimizer and the random numbers, put back exactly as they were."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Randomness:
    """The state of every random number generator that a model may draw from."""

    def __init__(self) -> None:
        self.python = random.getstate()
        self.numpy = np.random.get_state()  # noqa: NPY002 - models draw from the global one
        self.torch = torch.get_rng_state()
        started = torch.cuda.is_available() and torch.cuda.is_initialized()
        self.cuda = torch.cuda.get_rng_state_all() if started else None

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


class Values:
    """Dense tensors and copies of what they hold; only those that changed are written back."""

    def __init__(self, tensors: list[Tensor]) -> None:
        dense = [t for t in tensors if t.layout == torch.strided and not t.is_nested]
        self.pairs = [(tensor, tensor.detach().clone()) for tensor in dense]

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, value in self.pairs:
                if not _same_bits(tensor.detach(), value):
                    tensor.detach().copy_(value)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point():
        return a.shape == b.shape and bool(torch.equal(a, b))
    same = (a == b) & (torch.signbit(a) == torch.signbit(b))
    return bool(same.all())  # NaN differs from itself and is written back, bits and all


# What a module keeps in dictionaries of its own, which a forward pass may change in place.
_TABLES = ("_parameters", "_buffers", "_modules")


def _hook_tables(owner: Any) -> list[dict[Any, Any]]:
    return [
        value for name, value in vars(owner).items() if "hook" in name and isinstance(value, dict)
    ]


@contextmanager
def restored(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, batch: list[Tensor]
) -> Iterator[None]:
    """Run anything on a model; afterwards all is bit-identical, also after an exception.

    Kept are weights, buffers, gradients (the same tensors), modes, plain attributes and hooks of
    every module, the optimizer's state, the batch and its gradients, and the random numbers.

    Args:
        model: its gradients are None inside.
        optimizer: or None.
        batch: tensors of the batch, which an in-place operation could change.
    """
    randomness = Randomness()
    owners: list[Any] = list(model.modules()) + ([optimizer] if optimizer is not None else [])
    attributes = [(vars(owner), dict(vars(owner))) for owner in owners]
    tables = [vars(m)[name] for m in model.modules() for name in _TABLES]
    tables += [table for owner in owners for table in _hook_tables(owner)]
    contents = [(table, copy.copy(table)) for table in tables]
    parameters = list(model.parameters())
    held = _optimized(optimizer)
    known = {id(p) for p in parameters}
    leaves = parameters + [p for p in held if id(p) not in known]
    leaves += [t for t in batch if t.is_leaf and id(t) not in known]
    gradients = [(leaf, leaf.grad, leaf.requires_grad) for leaf in leaves]
    values = Values(leaves + list(model.buffers()) + [t for t in batch if not t.is_leaf])
    state = _OptimizerState(optimizer) if optimizer is not None else None
    for leaf in leaves:
        leaf.grad = None
    try:
        yield
    finally:
        for attribute, content in attributes:
            attribute.clear()
            attribute.update(content)
        for table, content in contents:
            table.clear()
            table.update(content)
        values.restore()
        for leaf, gradient, required in gradients:
            if leaf.is_leaf and leaf.requires_grad != required:
                leaf.requires_grad_(required)
            leaf.grad = gradient
        if state is not None:
            state.restore()
        randomness.restore()


def _optimized(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    if optimizer is None:
        return []
    return [p for group in optimizer.param_groups for p in group["params"]]


class _OptimizerState:
    """State and groups of an optimizer; the tensors stay the same objects."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.groups = [(group, dict(group)) for group in optimizer.param_groups]
        self.entries: list[tuple[Any, Any, Any]] = []
        tensors: list[Tensor] = []
        for key, entry in optimizer.state.items():
            kept = dict(entry) if isinstance(entry, dict) else copy.deepcopy(entry)
            self.entries.append((key, entry, kept))
            if isinstance(kept, dict):
                tensors += [v for v in kept.values() if isinstance(v, Tensor)]
                kept |= {k: copy.deepcopy(v) for k, v in kept.items() if not isinstance(v, Tensor)}
        tensors += [v for _, g in self.groups for v in g.values() if isinstance(v, Tensor)]
        self.values = Values(tensors)

    def restore(self) -> None:
        for group, content in self.groups:
            group.clear()
            group.update(content)
        self.optimizer.state.clear()
        for key, entry, kept in self.entries:
            if isinstance(entry, dict):
                entry.clear()
                entry.update(kept)
                self.optimizer.state[key] = entry
            else:
                self.optimizer.state[key] = kept
        self.values.restore()
