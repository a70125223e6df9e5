"""The tensors of a batch by name, and whether their scale is one that a layer can take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stabilitykit import _findings as f
from stabilitykit._findings import Finding, finding
from stabilitykit._measure import Feed


class Named(NamedTuple):
    """A tensor of the batch.

    Attributes:
        tensor: itself.
        expression: what gives it, such as "inputs['image']".
        layer: how a finding names it, such as "input['image']".
        path: the batch's part, then positions in sequences, and accessors as they are written.
    """

    tensor: Tensor
    expression: str
    layer: str
    path: tuple[int | str, ...]

    def assign(self, value: str) -> str:
        """A statement that puts another value in its place, in new tuples where it is in tuples."""
        path = list(self.path)
        while isinstance(key := path[-1], int):
            path.pop()
            around = _written(path)
            value = f"(*{around}[:{key}], {value}, *{around}[{key + 1}:])"
        return f"{_written(path)} = {value}"


def _written(path: Sequence[int | str]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else key for key in path)


def named(value: Any, part: str) -> list[Named]:
    """Every tensor in nested tuples, lists, mappings and dataclasses, with what gives it.

    Args:
        value: inputs or targets.
        part: which of both.

    Examples:
        >>> x = torch.zeros(2)
        >>> for one in named((x, {"mask": x}), "inputs"):
        ...     print(one.layer, "|", one.assign("y"))
        input[0] | inputs = (*inputs[:0], y, *inputs[1:])
        input[1]['mask'] | inputs[1]['mask'] = y
    """
    return list(_named(value, (part,)))


def _named(value: Any, path: tuple[int | str, ...]) -> Iterator[Named]:
    parts: Iterable[tuple[int | str, Any]] = ()
    if isinstance(value, Tensor):
        expression = _written(path)
        layer = expression.replace("inputs", "input", 1).replace("targets", "target", 1)
        yield Named(value, expression, layer, path)
    elif isinstance(value, Mapping):
        parts = ((f"[{key!r}]", value[key]) for key in value)
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif is_dataclass(value):
        parts = ((f".{one.name}", getattr(value, one.name)) for one in fields(value))
    for key, part in parts:
        yield from _named(part, (*path, key))


def unscaled(feeds: Sequence[Feed], inputs: Any) -> list[Finding]:
    """unscaled-input: what the first weighted layers receive from the batch."""
    found: dict[str, Finding] = {}
    for feed in feeds:
        if not math.isfinite(feed.rms):
            continue  # which is another finding
        measured: float | str = feed.rms
        expected: float | str = 1.0
        if f.INPUT_SMALL <= feed.rms <= f.INPUT_LARGE or not feed.rms > 0:
            if feed.offset <= f.INPUT_OFFSET:
                continue
            measured = f"mean {feed.offset:.3g} standard deviations from 0"
            expected = "mean 0"
        parts = named(inputs, "inputs")
        one = _source(feed, parts)
        if one is None and not any(p.tensor.is_floating_point() for p in parts):
            continue  # what an embedding made of indices
        layer = "input" if one is None else one.layer
        remedy = f"Standardise what layer {feed.layer!r} reads from the batch, by feature."
        if one is not None:
            remedy = f"Standardise the features: `{one.assign(_standardised(one, feed))}`."
        found.setdefault(layer, finding("unscaled-input", layer, measured, expected, remedy))
    return list(found.values())


def _standardised(one: Named, feed: Feed) -> str:
    """The expression for a tensor of mean 0 and deviation 1 by feature."""
    dimensions = one.tensor.ndim
    channels = feed.channels if feed.source.ndim == dimensions else dimensions - 1
    axes = "(0, 2, 3)" if dimensions == 4 and channels == 1 else str(tuple(range(channels)) or 0)
    x = one.expression if one.tensor.is_floating_point() else f"{one.expression}.float()"
    # Derived: a constant feature's distance to its rounded mean is a few units in the last place,
    # which must not become one of the size of a deviation.
    kind = one.tensor.dtype if one.tensor.is_floating_point() else torch.float32
    floor = 10.0 ** math.ceil(math.log10(10 * torch.finfo(kind).eps))
    spread = f"{x}.std({axes}, keepdim=True).clamp_min({floor:g} * {x}.abs().max())"
    return f"({x} - {x}.mean({axes}, keepdim=True)) / {spread}"


def _source(feed: Feed, parts: Sequence[Named]) -> Named | None:
    """The tensor of the batch that a layer reads, also when cast or reshaped on the way."""
    if len(parts) == 1 and parts[0].tensor.is_floating_point():
        return parts[0]
    flat = feed.source.flatten()
    for one in parts:
        if one.tensor.numel() == flat.numel():
            values = one.tensor.detach().flatten().to(flat)
            if bool(torch.equal(values, flat)):
                return one
    # Several were joined: the one that is furthest from unit size.
    sizes = {
        abs(math.log(size)): one
        for one in parts
        if one.tensor.is_floating_point()
        and 0 < (size := float(one.tensor.detach().double().square().mean().sqrt())) < math.inf
    }
    return sizes[max(sizes)] if sizes else None
