"""A tape of second moments beside a forward pass: states of tensors, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stabilitykit import _law
from stabilitykit._apart import apart, passed
from stabilitykit._fields import Field, compact, dense, gradient_edge, pointwise, pooled
from stabilitykit._law import Law
from stabilitykit._provenance import Origin, entrywise


class State:
    """What is expected of one tensor.

    Attributes:
        square: E[x²], float64 of the tensor's shape.
        law: how the entries spread, up to the root of the square.
        known: the values do not depend on any weight.
        origin: of which entries it is a function.
        modelled: False where the square is a measured one.
        gradient: E[(∂/∂x)²] of the tensor's shape, after the way back.
        weights: how the gradient's square spreads over the law's atoms, mean 1; None if evenly.
        pinned: whether the gradient is the measured one of all its readers.
        apart: share of the square that tells two samples apart; None where nothing predicts it.
        given: of the first tensor from which it was computed.
        behind: of that whose atoms these are, where a function of it is not monotone.
        entries: the tensor, and its version when it was computed.
    """

    def __init__(
        self, square: Field, law: Law, *, known: bool = False, like: State | None = None,
        modelled: bool = True,
    ) -> None:  # fmt: skip
        self.square, self.law, self.known = square, law, known
        self.origin = Origin()
        if like is not None:  # each entry is a function of one of these
            self.origin.made([like], entrywise)
        self.modelled = modelled
        self.gradient: Field | None = None
        self.weights: Tensor | None = None
        self.pinned = False
        self.apart: float | None = None
        self.given: State | None = None
        self.behind: State | None = None
        self.entries: tuple[Tensor, int] | None = None

    @classmethod
    def measured(cls, value: Tensor, *, known: bool = False, modelled: bool = True) -> State:
        """Of what is known the square is that of each entry, and the law that of the signs."""
        value = dense(value.detach())
        if not known:
            return cls(*pooled(value), modelled=modelled)
        signs = 1 - 2.0 * (value < 0)
        state = cls(value.double().square(), _law.empirical(signs), known=True, modelled=modelled)
        state.apart = apart(value)
        return state

    def drawn(self, value: Any) -> State:
        """The same with entries that are draws, where they are known: for what mixes them."""
        if not self.known or not isinstance(value, Tensor):
            return self
        state = State(*pooled(dense(value.detach())), known=True, modelled=self.modelled)
        state.apart = self.apart
        return state

    @property
    def scale(self) -> float:
        """Mean of the square over all positions."""
        return float(self.square.mean()) if self.square.numel() else 0.0

    @property
    def amplitude(self) -> float | None:
        """Rms, over units, of the deviation from the mean over the batch."""
        if self.apart is None:
            return None
        several = self.square.dim() > 1 and self.square.shape[0] > 1
        share = self.apart * (1 - 1 / self.square.shape[0]) if several else 1.0
        return max(self.scale * share, 0.0) ** 0.5

    @property
    def sizes(self) -> float:
        """The part of `apart` that is due to different sizes of samples."""
        field = compact(self.square)
        return apart(field.sqrt()) if field.dim() > 1 and field.shape[0] > 1 else 0.0

    @property
    def mean(self) -> Field:
        """E[x] by position."""
        return pointwise(lambda square: square.sqrt() * self.law.mean, self.square)

    @property
    def intact(self) -> bool:
        """Whether the entries are at hand: none has been overwritten."""
        return self.entries is not None and self.entries[0]._version == self.entries[1]

    def ranked(self, gradient: Field | None, otherwise: Tensor | None = None) -> Tensor | None:
        """How a measured gradient's square goes with the ranks of the entries, by atom."""
        source = self
        while source.behind is not None and source.behind.intact:
            source = source.behind
        if gradient is None or source.entries is None or not source.intact:
            return otherwise
        value = dense(source.entries[0].detach())
        if value.shape != gradient.shape or value.shape != source.square.shape:
            return otherwise
        return _law.by_rank(_law.relative(value, source.square), gradient, source.law)

    def receive(self, gradient: Field | None, weights: Tensor | None = None) -> None:
        """Add a gradient's second moment; gradients of several readers are uncorrelated."""
        if gradient is None or self.pinned:
            return
        if self.gradient is None:
            self.gradient, self.weights = gradient, weights
            return
        here, there = float(self.gradient.mean()), float(gradient.mean())
        self.weights = _law.mixed_weights([(here, self.weights), (there, weights)])
        self.gradient = self.gradient + gradient

    def arrive(self, gradient: Field | None, whole: bool = True) -> None:
        """Take a measured gradient, for that of all readers, known or not, where it is `whole`."""
        if gradient is None:
            return
        if whole:
            self.gradient, self.pinned = None, False
        self.receive(gradient, None if self.known else self.ranked(gradient))
        self.pinned = self.pinned or whole


@dataclass
class Call:
    """One call of a layer, with the state of its output."""

    layer: str
    kind: str
    number: int
    state: State


class Tape:
    """States by tensor, and the steps of the way back."""

    def __init__(self) -> None:
        self._states: dict[int, State] = {}
        self._aside: dict[int, State] = {}
        self._alive: list[Tensor] = []  # an id is unique only while its tensor lives
        self._constants: set[int] = set()
        self.tables: set[int] = set()  # ids of embeddings' weights
        self.read: dict[int, tuple[int, list[State]]] = {}  # by the memory of a weight
        self._back: list[Callable[[], None]] = []
        self._edges: list[Any] = []
        self.found: list[Tensor | None] = []

    def of(self, tensor: Any) -> State | None:
        return self._states.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def states(self, tensors: list[Tensor]) -> list[State]:
        """Of those that have one."""
        return [state for state in map(self.of, tensors) if state is not None]

    def set(self, tensor: Tensor, state: State) -> State:
        self._states[id(tensor)] = state
        self._alive.append(tensor)
        if state.entries is None and not tensor.is_inference():
            state.entries = tensor, tensor._version
        if state.origin.tensor is None:
            state.origin.tensor, state.origin.edge = tensor, gradient_edge(tensor)
        return state

    def aside(self, tensor: Tensor, like: Tensor) -> State:
        """The state of a tensor that is not followed, such as a vector that multiplies."""
        if id(tensor) not in self._aside:
            self._aside[id(tensor)] = State.measured(tensor.to(like.device), known=True)
            self._alive.append(tensor)
        return self._aside[id(tensor)]

    def holds(self, state: State) -> Tensor | None:
        """The tensor for which a state was made, unless that was written into since."""
        tensor = state.origin.tensor
        return tensor if self.of(tensor) is state else None

    def known(self, tensor: Tensor) -> Tensor:
        """The tensor, whose values do not depend on any weight."""
        if tensor.is_floating_point():
            self.set(tensor, State.measured(tensor, known=True))
        return tensor

    def computed(self, tensor: Tensor, state: State, read: list[Tensor]) -> None:
        """Set the state of what a rule knows; the share that it leaves open changes as measured."""
        given = [self._states[id(t)] for t in read]
        if given and state not in given:
            state.given = given[0]
            state.origin.made(given)
            shares = [one.apart for one in given if one.apart is not None]
            if state.apart is None and len(shares) == len(given):
                state.apart = passed(shares[-1], read[-1], tensor)
        self.set(tensor, state)

    def constant(self, tensor: Tensor) -> None:
        """Remember a tensor that is computed from weights alone."""
        self._constants.add(id(tensor))
        self._alive.append(tensor)

    def untraced(self, tensor: Tensor) -> bool:
        """Whether a tensor carries a gradient from operations that nobody saw."""
        return (
            tensor.requires_grad
            and not tensor.is_leaf
            and id(tensor) not in self._states
            and id(tensor) not in self._constants
        )

    def differentiable(self) -> list[Tensor]:
        """All tensors with a state that take part in autograd."""
        return [t for t in self._alive if id(t) in self._states and t.requires_grad]

    def sources(self, tensor: Tensor) -> list[Tensor]:
        """The nearest tensors with a state from which a tensor was computed out of sight."""
        known = {t.grad_fn: t for t in self._alive if id(t) in self._states and t.grad_fn}
        found, seen, waiting = [], set(), [tensor.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in known:
                found.append(known[node])
            else:
                waiting += [below for below, _ in node.next_functions]
        return found

    def step(self, back: Callable[[], None]) -> None:
        """Append what is done on the way back."""
        self._back.append(back)

    def watch(self, tensor: Tensor) -> int | None:
        """Ask for the measured gradient of a tensor; its number in `found`."""
        return self.watch_edge(gradient_edge(tensor))

    def watch_edge(self, edge: Any) -> int | None:
        """The same for a tensor's edge, as of when it was made."""
        if edge is None:
            return None
        self._edges.append(edge)
        return len(self._edges) - 1

    def signed(self, number: int | None) -> Tensor | None:
        """The measured gradient for a number given by `watch`."""
        gradient = self.found[number] if number is not None else None
        return None if gradient is None else dense(gradient)

    def measured(self, number: int | None) -> Field | None:
        """The measured gradient's square for a number given by `watch`."""
        gradient = self.signed(number)
        return None if gradient is None else gradient.double().square()

    def agreement(
        self, read: int | None, made: int | None, pull: Callable[[Field], Field | None]
    ) -> float:
        """Square of a measured gradient, `read`, over what `pull` makes of those behind, `made`."""
        before, after = self.measured(read), self.measured(made)
        if before is None or after is None:
            return 1.0
        independent = pull(after)
        whole = 0.0 if independent is None else float(independent.mean())
        return float(before.mean()) / whole if 0 < whole < math.inf else 1.0

    def reverse(self, outputs: list[Tensor], generator: torch.Generator) -> None:
        """Go back from outputs whose gradient is random signs: mean square 1."""
        seeds = [dense(o) for o in outputs if o.requires_grad]
        if self._edges and seeds:
            signs = [
                torch.randint(0, 2, o.shape, generator=generator).mul(2).sub(1).to(o) for o in seeds
            ]
            self.found = list(torch.autograd.grad(seeds, self._edges, signs, allow_unused=True))
        else:
            self.found = [None] * len(self._edges)
        for output in outputs:
            state = self.of(output)
            if state is not None:
                state.receive(
                    torch.ones((), dtype=torch.float64).to(output.device).expand(output.shape)
                )
        for back in reversed(self._back):
            back()
