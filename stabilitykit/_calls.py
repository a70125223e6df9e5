"""What the hooks note down in one step."""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from stabilitykit._ledger import Sample
from stabilitykit._reading import Written


class Flatness(NamedTuple):
    """Of an activation, as places in the ledger; `whole` has all, and is that of `result`."""

    saturated: int = -1
    dead: int = -1
    whole: Written | None = None
    result: weakref.ref[Tensor] | None = None


NOT_FLAT = Flatness()


@dataclass(slots=True)
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


class Seen(NamedTuple):
    """The output of a layer, which what follows may get as it is."""

    tensor: weakref.ref[Tensor]
    version: int
    written: Written
    sample: Sample | None  # as long as `Ledger.drained` is the same
    drained: int
    box: list[Call]  # whose output it is

    def still(self, tensor: Any) -> bool:
        """Whether the tensor is that output, unchanged."""
        return self.tensor() is tensor and self.version == version(tensor)


@dataclass
class Step:
    """What is seen between two of the optimiser's steps."""

    calls: list[Call] = field(default_factory=list)
    inputs: list[tuple[str, int, Written]] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    without_graph: defaultdict[tuple[str, str], list[Call]] = field(
        default_factory=lambda: defaultdict(list)
    )
    again: defaultdict[tuple[str, str], list[list[Call]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    gradients: int = 0
    started: bool = False


def version(tensor: Any) -> int:
    """How often it was written into; tensors of inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def kind(module: nn.Module) -> str:
    """The lower-case name of the class, as it was before FSDP2 or a parametrization changed it."""
    return _kind(type(module))  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _kind(made: type) -> str:
    while (base := made.__bases__[-1]) and made.__name__ in (
        "FSDP" + base.__name__,
        "Parametrized" + base.__name__,
    ):
        made = base
    return made.__name__.lower()
