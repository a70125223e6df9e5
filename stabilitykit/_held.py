"""What a model, an optimizer and a loss hold: all that running them may change."""

from __future__ import annotations

import random
from collections import UserDict, deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_NUMPY = (np.random.Generator, np.random.RandomState)
_FUNCTIONS = (partial, MethodType, FunctionType)


class Held:
    """Attributes of modules, optimizers and dataclasses, and what containers in them hold.

    Modules are also found behind functions: bound to them, among their arguments, or by the names
    that they use. Objects of other classes are not looked into.

    Args:
        roots: modules, optimizers, containers, tensors, functions.
    """

    def __init__(self, *roots: Any) -> None:
        self.tensors: list[Tensor] = []
        self.arrays: list[np.ndarray[Any, Any]] = []
        self.generators: list[Any] = []
        self.containers: list[Any] = []
        seen: dict[int, Any] = {}  # keeps all alive: an id is unique only so long
        waiting = list(roots)
        while waiting:
            value = waiting.pop()
            if id(value) not in seen:
                seen[id(value)] = value
                waiting += self._sort(value)

    def _sort(self, value: Any) -> list[Any]:
        """Put the value where it belongs, and give what is within."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, np.ndarray):
            self.arrays.append(value)
        elif isinstance(value, (torch.Generator, random.Random, *_NUMPY)):
            self.generators.append(value)
        elif isinstance(value, (dict, UserDict)):
            self.containers.append(value)
            return list(value.values())
        elif isinstance(value, (list, deque, set)):
            self.containers.append(value)
            return list(value)
        elif isinstance(value, (tuple, frozenset)):
            return list(value)
        elif isinstance(value, Mapping):
            return list(value.values())
        elif isinstance(value, nn.Module):
            own = [*value.parameters(recurse=False), *value.buffers(recurse=False)]
            return [vars(value), *own, *value.children()]
        elif isinstance(value, _FUNCTIONS):
            return _called(value)
        elif _has_attributes(value):
            return [vars(value)]
        elif is_dataclass(value) and not isinstance(value, type):  # with slots
            return [getattr(value, each.name) for each in fields(value)]
        return []


def _has_attributes(value: Any) -> bool:
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return False
    if isinstance(value, (torch.optim.Optimizer, SimpleNamespace)) or is_dataclass(value):
        return True
    return callable(value) and not _of_torch(type(value))


def _of_torch(made: Any) -> bool:
    return str(getattr(made, "__module__", "")).partition(".")[0] == "torch"


def _called(function: Any) -> list[Any]:
    """The modules and functions that a function may call."""
    if isinstance(function, MethodType):
        return [function.__self__, function.__func__]
    if isinstance(function, partial):
        found = [function.func, *function.args, *function.keywords.values()]
    elif _of_torch(function):
        return []
    else:
        known = function.__globals__
        found = [known[name] for name in function.__code__.co_names if name in known]
        found += [_inside(cell) for cell in function.__closure__ or ()]
        found += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    lists = [value for value in found if isinstance(value, (list, tuple))]
    found += [entry for value in lists for entry in value]
    found += [entry for value in found if isinstance(value, dict) for entry in value.values()]
    return [f for f in found if isinstance(f, (nn.Module, *_FUNCTIONS)) or _is_callable_object(f)]


def _is_callable_object(value: Any) -> bool:
    return callable(value) and _has_attributes(value)


def _inside(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def contents(container: Any) -> Callable[[], None]:
    """What puts the entries of a container back; it does nothing where they are still the same."""
    mapping = isinstance(container, (dict, UserDict))

    def entries() -> list[Any]:
        return [e for pair in container.items() for e in pair] if mapping else list(container)

    kept = entries()

    def restore() -> None:
        now = entries()
        if len(now) == len(kept) and all(a is b for a, b in zip(now, kept, strict=True)):
            return
        container.clear()
        if mapping:
            for key, value in zip(kept[::2], kept[1::2], strict=True):
                container[key] = value
        elif isinstance(container, set):
            container.update(kept)
        else:
            container.extend(kept)

    return restore
