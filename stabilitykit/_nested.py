"""Tensors within tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from tensors(entry)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def replaced(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples, lists, dicts and dataclasses with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(replaced(entry, change) for entry in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replaced(entry, change) for entry in value))
    if isinstance(value, (dict, UserDict)):
        new = copy.copy(value)
        for key, entry in value.items():
            new[key] = replaced(entry, change)
        return new
    if is_dataclass(value) and not isinstance(value, type):
        made = copy.copy(value)
        for field in fields(value):  # also of a frozen one
            object.__setattr__(made, field.name, replaced(getattr(value, field.name), change))
        return made
    return value


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with: mappings, tuples and lists are unpacked."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}
