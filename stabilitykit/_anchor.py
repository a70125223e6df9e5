"""Where the tape starts anew from what is measured, forward and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabilitykit._fields import Field, gradient_edge
from stabilitykit._provenance import crossing, forks
from stabilitykit._tape import State, Tape


class Edge:
    """A tensor that a measured operation reads, with its gradient in the pass.

    Args:
        tensor: as the operation reads it; None for all readers of the state's.
    """

    def __init__(self, tape: Tape, state: State, tensor: Tensor | None = None) -> None:
        self.tape, self.state, self.whole = tape, state, tensor is None
        self._edge = state.origin.edge if tensor is None else gradient_edge(tensor)
        self._number: int | None = None

    def watch(self) -> None:
        """Ask for the gradient."""
        self._number = self.tape.watch_edge(self._edge)

    def settle(self, factor: float = 1.0) -> None:
        """Give the state the measured gradient."""
        gradient = self.tape.measured(self._number)
        self.state.arrive(None if gradient is None else gradient * factor, self.whole)


class Rejoined:
    """Tensors to which gradients come by several ways from one, and agree.

    They are taken from the pass, by the factor between what is expected behind and found there.
    """

    def __init__(self, tape: Tape, edges: list[Edge], out: Tensor) -> None:
        self._tape, self._edges = tape, edges
        self._number = tape.watch(out) if edges else None
        for edge in edges:
            edge.watch()

    def settle(self, gradient: Field) -> None:
        """Give each its gradient, for what is expected of that where they come from."""
        found = self._tape.measured(self._number)
        if found is None or not float(found.mean()) > 0:
            return
        for edge in self._edges:
            edge.settle(float(gradient.mean()) / float(found.mean()))


def rejoining(tape: Tape, states: Sequence[State], known: bool = False) -> list[Edge]:
    """Where gradients of the states meet again further up, also at inputs if `known`."""
    if not crossing(states, known=known):
        return []
    return [Edge(tape, fork) for fork in forks(states) if fork.origin.edge is not None]


def anchor(tape: Tape, edges: list[Edge], made: list[Tensor], known: bool) -> None:
    """States of what an operation without a rule has made, and its step of the way back."""
    read = [edge.state for edge in edges]
    edges = edges + rejoining(tape, read, known=True)
    for edge in edges:
        edge.watch()
    for tensor in made:
        state = State.measured(tensor, known=known, modelled=known)
        state.origin.made(read)
        tape.set(tensor, state)

    def back() -> None:
        for edge in edges:
            edge.settle()

    tape.step(back)


def turned(tape: Tape, x: Tensor, weight: Tensor, dimension: int) -> bool:
    """Whether x meets the transpose of a weight that was multiplied by before.

    Then neither x nor the gradient there is independent of the weight.

    Args:
        tape: that saw it.
        x: what is multiplied.
        weight: by what.
        dimension: of the weight, over which is summed.
    """
    state = tape.of(x)
    if weight.layout != torch.strided or state is None:
        return False
    place, stride = weight.untyped_storage().data_ptr(), weight.stride(dimension)
    before, read = tape.read.setdefault(place, (stride, []))
    if before == stride:
        read.append(state)
        return False
    edges = [Edge(tape, one) for one in read]
    for edge in edges:
        edge.watch()

    def back() -> None:
        for edge in edges:
            edge.settle()

    tape.step(back)
    return True
