"""What the hooks note down in one step."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from stabilitykit._ledger import Written


class Flatness(NamedTuple):
    """Of an activation, as places in the ledger; `whole` has all, and is that of `result`."""

    saturated: int = -1
    dead: int = -1
    whole: Written | None = None
    result: weakref.ref[Tensor] | None = None


NOT_FLAT = Flatness()


@dataclass
class Call:
    """One call of a layer, as places in the ledger."""

    layer: str
    kind: str
    call: int
    shape: tuple[int, ...]
    output: Written
    flatness: Flatness
    gradient: Written | None = None
    order: int = 0  # in which the gradients came


@dataclass
class Frame:
    module: nn.Module
    name: str
    leaf: bool
    flatness: Flatness = NOT_FLAT


@dataclass
class Step:
    """What is seen between two of the optimiser's steps."""

    calls: list[Call] = field(default_factory=list)
    inputs: list[tuple[str, int, Written]] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    without_graph: defaultdict[tuple[str, str], list[Call]] = field(
        default_factory=lambda: defaultdict(list)
    )
    again: defaultdict[tuple[str, str], list[list[Call]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    gradients: int = 0
    started: bool = False
