"""Of which entries a tensor is a function, and which tensors are functions of the same ones.

Layers with weights start anew: over random weights their output is uncorrelated with what they
read. All else is linked to what it read. Of one layer's output different units are independent, so
two tensors that share it meet only where both read the same unit.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stabilitykit._fields import Field, compact

if TYPE_CHECKING:
    from stabilitykit._tape import State

Place = Callable[[list[Field]], Field | None]
_MAPS = 8  # convention: beyond, every unit may be in every entry


def entrywise(fields: list[Field]) -> Field:
    """The place of functions of entries: each stays where it is."""
    return fields[0]


class Origin:
    """How one tensor was made.

    Attributes:
        reads: of what it is a function; nothing where weights or inputs start anew.
        place: where it puts the entries that it reads, given one field for each of `reads`; None
            where units mix.
        factors: by which it multiplies each of `reads` to sum them up; None where it does not.
        axis: of the units, for a layer with weights; None where entries are not independent.
        number: higher than that of anything it reads.
        tensor: of the pass, and `edge`, where its gradient is found.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.reads: list[State] | None = None
        self.place: Place | None = None
        self.factors: list[float] | None = None
        self.axis: int | None = None
        self.number = next(self._numbers)
        self.tensor: Tensor | None = None
        self.edge: Any = None

    def made(
        self, reads: Sequence[State], place: Place | None = None,
        factors: list[float] | None = None,
    ) -> None:  # fmt: skip
        """Remember of what it is made, unless that is known."""
        if self.reads is None:
            self.reads, self.place, self.factors = list(reads), place, factors

    def drawn(self, axis: int) -> None:
        """Start anew: what weights make, with independent units along an axis."""
        self.reads, self.axis = [], axis


def lineage(*states: State) -> list[State]:
    """The states themselves and all of which they are functions, the latest first."""
    found, waiting = {}, list(states)
    while waiting:
        state = waiting.pop()
        if id(state) not in found:
            found[id(state)] = state
            waiting += state.origin.reads or []
    return sorted(found.values(), key=lambda s: -s.origin.number)


def _units(state: State, source: State) -> list[Field] | None:
    """Which unit of the source is in each entry, from 1 on and 0 for none, in one map or several.

    None where it may be any.
    """
    maps: dict[int, list[Field] | None] = {}
    for one in reversed(lineage(state)):
        shape = one.square.shape
        if one is source:
            axis = source.origin.axis
            if axis is None:
                return None
            view = [1] * len(shape)
            view[axis] = -1
            ids = torch.arange(1.0, shape[axis] + 1, dtype=torch.float64).view(view)
            maps[id(one)] = [ids.to(one.square.device).expand(shape)]
            continue
        reads = one.origin.reads or []
        own = [maps.get(id(read), []) for read in reads]
        if any(part is None for part in own):
            maps[id(one)] = None
        elif any(own):
            maps[id(one)] = _placed(one, [part or [] for part in own])
    return maps.get(id(state), [])


def _placed(state: State, own: list[list[Field]]) -> list[Field] | None:
    place, reads = state.origin.place, state.origin.reads or []
    if place is None or sum(map(len, own)) > _MAPS:
        return None
    placed: list[Field] = []
    for i, part in enumerate(own):
        for one in part:
            fields = [torch.zeros_like(read.square) for read in reads]
            fields[i] = one
            field = one if place is entrywise else place(fields)
            try:
                field = None if field is None else field.expand(state.square.shape)
            except RuntimeError:
                field = None
            if field is None:
                return None
            if not any(torch.equal(compact(field), compact(other)) for other in placed):
                placed.append(field)
    return placed


def _meet(left: State, right: State, source: State) -> bool:
    """Whether two states read the same unit of a source in the same entry."""
    one, other = _units(left, source), _units(right, source)
    if one is None or other is None:
        return True
    for a, b in itertools.product(one, other):
        try:
            same = compact(a) == compact(b)
        except RuntimeError:
            return True
        if bool((same & (compact(a) > 0)).any()):
            return True
    return False


def crossing(states: Sequence[State], known: bool = True) -> bool:
    """Whether any two of the states are functions of the same entries.

    Args:
        known: whether the entries of inputs count, too.
    """
    seen: dict[int, list[State]] = {}
    for state in states if len(states) > 1 else ():
        for source in lineage(state):
            if source.origin.reads or (source.known and not known):
                continue
            for other in seen.setdefault(id(source), []):
                if other is state or _meet(state, other, source):
                    return True
            seen[id(source)].append(state)
    return False


def forks(states: Sequence[State]) -> list[State]:
    """Which states to measure where the given ones, that are functions of the same, meet again.

    These are the ones that are read by several ways, as far back as the ways join in one, and what
    is multiplied on the way: there a gradient goes with the values of all factors.
    """
    whole, counts = lineage(*states), Counter[int]()
    for one in states:
        counts.update({id(state) for state in lineage(one)})
    leads: set[int] = set()  # to what is common
    for state in reversed(whole):
        if counts[id(state)] > 1 or any(id(r) in leads for r in state.origin.reads or []):
            leads.add(id(state))
    found: dict[int, State] = {}
    waiting = Counter(id(state) for state in states if id(state) in leads)
    for state in whole:
        ways = waiting.pop(id(state), 0)
        if ways > 1:
            found[id(state)] = state
        if not ways or (not waiting and counts[id(state)] > 1):
            continue  # behind one that all ways pass, gradients are as of any tensor
        reads = state.origin.reads or []
        waiting.update(id(read) for read in reads if id(read) in leads)
        if len(reads) > 1 and state.origin.factors is None:
            found |= {id(read): read for read in reads}
    return list(found.values())


def parts(state: State) -> dict[int, tuple[State, float]]:
    """The state as a sum of others, each times a number."""
    found: dict[int, tuple[State, float]] = {}
    weights = {id(state): 1.0}
    for one in lineage(state):
        factor = weights.get(id(one))
        if factor is None:
            continue
        factors = one.origin.factors
        if factors is None:
            found[id(one)] = one, factor
            continue
        for read, times in zip(one.origin.reads or [], factors, strict=True):
            weights[id(read)] = weights.get(id(read), 0.0) + factor * times
    return found
