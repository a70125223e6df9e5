"""Sums of two tensors that have addends in common, such as a skip over blocks with skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stabilitykit._anchor import Edge, Rejoined
from stabilitykit._fields import Field
from stabilitykit._provenance import crossing, parts
from stabilitykit._tape import State, Tape


class Shared:
    """With x = Σ a_i r_i and y = Σ b_i r_i of independent r_i, Cov(x, y) = Σ a_i b_i Var(r_i).

    On the way back r_i gets (a_i + b_i)² of the sum's gradient: by way of x and y it gets a_i² and
    b_i², and 2 a_i b_i are added here. Where the gradient goes with the values, as in front of an
    activation, how much r_i gets is read from the pass.

    Args:
        every: all r_i.
        both: those of which both have a share, with a_i b_i.
        sides: x and y, with their tensors of the pass.
        out: their sum.
    """

    def __init__(
        self, tape: Tape, every: list[State], both: list[tuple[State, float]],
        sides: Sequence[tuple[State, Any]], out: Tensor,
    ) -> None:  # fmt: skip
        self._tape, self._both, self._number = tape, both, tape.watch(out)
        self._sides = [state for state, _ in sides]
        self._rejoined = Rejoined(tape, [Edge(tape, state) for state in every], out)
        self.weights: list[Tensor | None] = [None, None]

    @classmethod
    def of(cls, tape: Tape, sides: Sequence[tuple[State, Any]], out: Tensor) -> Shared | None:
        """None where what they have in common is no addend of both."""
        one, other = (parts(state) for state, _ in sides)
        every = [state for state, _ in (one | other).values()]
        if crossing(every):
            return None
        both = [(one[key][0], one[key][1] * other[key][1]) for key in one if key in other]
        if any(state.square.shape != out.shape for state, _ in both):
            return None
        return cls(tape, every, both, sides, out)

    @property
    def covariance(self) -> Field | float:
        drawn = [(state.drawn(self._tape.holds(state)), factor) for state, factor in self._both]
        return sum(state.square * (factor * (1 - state.law.mean**2)) for state, factor in drawn)

    def back(self, sign: float, gradient: Field, uneven: bool) -> None:
        """Give each r_i what it does not get by way of x and y.

        Args:
            uneven: whether the gradient goes with the values.
        """
        if uneven:
            self._rejoined.settle(gradient)
            found = self._tape.measured(self._number)
            self.weights = [None if side.known else side.ranked(found) for side in self._sides]
        for state, factor in self._both:
            state.receive(2 * sign * factor * gradient)
