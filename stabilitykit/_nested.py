"""Tensors within tuples, lists, dicts and dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from tensors(entry)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def replaced(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples, lists and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is dict:
        return {key: replaced(entry, change) for key, entry in value.items()}
    if type(value) in (tuple, list):
        return type(value)(replaced(entry, change) for entry in value)
    return value
