"""The tensors of a batch by name, and whether their scale is one that a layer can take."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        place: (part, key or position), or (part,) for a batch of one tensor.
    """

    tensor: Tensor
    expression: str
    layer: str
    place: tuple[Any, ...]

    def assign(self, value: str) -> str:
        """A statement that puts another value in its place, in new tuples where it is in tuples."""
        part, *keys = self.place
        while keys and isinstance(keys[-1], int):
            key = keys.pop()
            around = part + "".join(f"[{k!r}]" for k in keys)
            value = f"(*{around}[:{key}], {value}, *{around}[{key + 1}:])"
        return f"{part}{''.join(f'[{k!r}]' for k in keys)} = {value}"


def named(value: Any, part: str) -> list[Named]:
    """Every tensor in nested tuples, lists and mappings, with the expression that gives it."""
    return _named(value, part, part.rstrip("s"), (part,))


def _named(value: Any, expression: str, layer: str, place: tuple[Any, ...]) -> list[Named]:
    if isinstance(value, Tensor):
        return [Named(value, expression, layer, place)]
    pairs: list[tuple[Any, Any]] = []
    if hasattr(value, "keys"):
        pairs = [(key, value[key]) for key in value]
    elif isinstance(value, (tuple, list)):
        pairs = list(enumerate(value))
    return [
        one
        for key, part in pairs
        for one in _named(part, f"{expression}[{key!r}]", f"{layer}[{key!r}]", (*place, key))
    ]


def unscaled(feeds: Sequence[Feed], inputs: Any) -> list[Finding]:
    """unscaled-input: what the first weighted layers receive from the batch."""
    found: dict[str, Finding] = {}
    for feed in feeds:
        measured: float | str = feed.rms
        expected: float | str = 1.0
        if f.INPUT_SMALL <= feed.rms <= f.INPUT_LARGE or not feed.rms > 0:
            if feed.offset <= f.INPUT_OFFSET:
                continue
            measured = f"mean {feed.offset:.3g} standard deviations from 0"
            expected = "mean 0"
        one = _source(feed, named(inputs, "inputs"))
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
    return f"({x} - {x}.mean({axes}, keepdim=True)) / {x}.std({axes}, keepdim=True).clamp_min(1e-8)"


def _source(feed: Feed, parts: Sequence[Named]) -> Named | None:
    """The tensor of the batch that a layer reads, also when cast or reshaped on the way."""
    if len(parts) == 1:
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
