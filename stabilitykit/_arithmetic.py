"""How second moments pass sums, products and dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stabilitykit import _law
from stabilitykit._addends import Shared
from stabilitykit._fields import Field, adjoint, pointwise
from stabilitykit._provenance import crossing, entrywise
from stabilitykit._rules import rule
from stabilitykit._tape import State, Tape


@rule("add", "radd", "iadd")
def _add(tape: Tape, out: Tensor, a: Any, b: Any, alpha: float = 1.0) -> State | None:
    return _binary(tape, out, a, b, torch.add, alpha)


@rule("mul", "rmul", "imul", "multiply")
def _mul(tape: Tape, out: Tensor, a: Any, b: Any) -> State | None:
    return _binary(tape, out, a, b, torch.mul, 1.0)


@rule("div", "truediv", "idiv", "itruediv", "divide")
def _div(tape: Tape, out: Tensor, a: Any, b: Any) -> State | None:
    if tape.of(b) is not None:
        return None
    return _binary(tape, out, a, torch.ones((), dtype=torch.float64) / b, torch.mul, 1.0)


@rule("sub", "isub", "subtract")
def _sub(tape: Tape, out: Tensor, a: Any, b: Any, alpha: float = 1.0) -> State | None:
    return _difference(tape, out, a, b, alpha)


def _difference(tape: Tape, out: Tensor, a: Any, b: Any, alpha: float) -> State | None:
    if tape.of(a) is None or tape.of(b) is None:
        return None  # differences with constants go as functions of one tensor
    return _binary(tape, out, a, b, torch.sub, alpha)


@rule("rsub")
def _rsub(tape: Tape, out: Tensor, a: Any, b: Any, alpha: float = 1.0) -> State | None:
    return _difference(tape, out, b, a, alpha)


def _as_state(tape: Tape, value: Any, like: Tensor) -> State | None:
    if isinstance(value, Tensor):
        return tape.of(value) or tape.aside(value, like)
    return State.measured(torch.as_tensor(float(value)).to(like.device), known=True)


def _apart(state: State, out: Tensor) -> float | None:
    """What tells samples apart in an operand; nothing where it is the same for all of them."""
    shape = state.square.shape
    return state.apart if len(shape) == out.dim() and shape[:1] == out.shape[:1] else 0.0


def _number(state: State) -> float | None:
    """The value of a known number."""
    if not state.known or state.square.numel() != 1:
        return None
    return float(state.law.values.mean().sign()) * state.scale**0.5


def _remember(result: State, left: State, right: State, operation: Any) -> None:
    factors = [1.0, -1.0 if operation is torch.sub else 1.0]
    if operation is not torch.mul:
        result.origin.made([left, right], entrywise, factors)
        return
    for one, other in ((left, right), (right, left)):
        number = _number(other)
        if number is not None:
            result.origin.made([one], entrywise, [number])
        elif other.known and float(other.law.values.min()) >= 0:
            result.origin.made([one], entrywise)  # a mask shares no more than sizes by position
    result.origin.made([left, right], entrywise)


def _binary(tape: Tape, out: Tensor, a: Any, b: Any, operation: Any, alpha: float) -> State | None:
    left, right = _as_state(tape, a, out), _as_state(tape, b, out)
    if left is None or right is None:
        return None
    if operation is not torch.mul and alpha != 1:
        return None
    operands, shape, shared = (left, right), out.shape, None
    if operation is not torch.mul and left.known and a is out:
        return None  # its values are overwritten
    # What is known counts where it has a mean: in no product, nor where a side is centred.
    centred = operation is torch.mul or left.law.gaussian or right.law.gaussian
    if crossing(operands, known=not centred):
        sides = (left, a), (right, b)
        shared = None if operation is torch.mul else Shared.of(tape, sides, out)
        if shared is None:
            return None  # two functions of the same entries
    if operation is not torch.mul:  # of a sum there is one law
        left, right = left.drawn(a), right.drawn(b)
    la, rb = left.square.expand(shape), right.square.expand(shape)
    constant = right.known and right.square.numel() == 1
    if operation is torch.mul:
        square = pointwise(lambda f: f * right.square, la) if constant else la * rb
        factors = [left.law.values, right.law.values]
        law, place, _ = _law.combine(torch.mul, *factors)
        if (left.law.gaussian and right.known) or (right.law.gaussian and left.known):
            law = _law.gaussian()
    else:
        sign = -1.0 if operation is torch.sub else 1.0
        cross = 2 * sign * left.law.mean * right.law.mean
        square = la + rb
        if abs(cross) > 1e-6:
            square = square + cross * (la * rb).sqrt()
        if shared is not None:
            square = (square + 2 * sign * shared.covariance).clamp(min=0)
        law, place, _ = _law.combine(
            operation, left.scale**0.5 * left.law.values, right.scale**0.5 * right.law.values
        )
        if left.law.gaussian and right.law.gaussian:
            law = _law.gaussian()
        elif shared is not None:
            law = _law.empirical(_law.relative(out, square))
    if constant and operation is torch.mul:
        sign = float(right.law.values.sign().mean())
        law = _law.Law(sign * left.law.values, left.law.gaussian)
        place = torch.arange(_law.ATOMS)[:, None].expand(_law.ATOMS, _law.ATOMS)
    result = State(square, law)
    _remember(result, *operands, operation)
    one, two = _apart(left, out), _apart(right, out)
    if one is not None and two is not None and result.scale > 0 and shared is None:
        if operation is torch.mul:
            result.apart = one + two - one * two
        else:  # what differs in direction adds up; what differs in size follows the squares
            parts = ((left, one, float(la.mean())), (right, two, float(rb.mean())))
            differs = sum(share * square for _, share, square in parts)
            turned = sum(max(share - state.sizes, 0.0) * square for state, share, square in parts)
            result.apart = max(differs / result.scale, turned / result.scale + result.sizes)

    ends: dict[int, tuple[int | None, int | None]] = {}
    for side, value in enumerate((a, b)):
        if isinstance(value, Tensor) and value.numel() < out.numel():
            ends[side] = tape.watch(value), tape.watch(out)

    def back() -> None:
        if result.gradient is None:
            return
        weights = result.weights
        pairs = None if weights is None or shared is not None else weights[place]
        if shared is not None:
            shared.back(sign, result.gradient.expand(shape), weights is not None)
        for state, axis, other, factor in ((operands[0], 1, right, b), (operands[1], 0, left, a)):
            gradient = result.gradient.expand(shape)
            if operation is torch.mul:
                gradient = gradient * other.square
            mine = None if shared is None or weights is None else shared.weights[1 - axis]
            if pairs is not None:
                shares = pairs
                if operation is torch.mul and not constant:
                    values = factors[axis].square()
                    shares = pairs * (values[None, :] if axis == 1 else values[:, None])
                mine = _law.normalised(shares.mean(axis))
                if operation is torch.mul and not constant and float(shares.mean()) > 0:
                    gradient = gradient * float(shares.mean())
            own = state.square.shape

            def spread(field: Field) -> Field:
                return field.expand(shape)

            def pull(after: Field, own: Any = own, factor: Any = factor) -> Field | None:
                if operation is torch.mul:
                    after = after * torch.as_tensor(factor).detach().double().square()
                return adjoint(spread, own, after)

            given = adjoint(spread, own, gradient)
            if given is not None and 1 - axis in ends:
                given = given * tape.agreement(*ends[1 - axis], pull)
            state.receive(given, mine)

    tape.step(back)
    return result


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout")
def _dropout(
    tape: Tape, out: Tensor, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False
) -> State | None:
    state = tape.of(x)
    if state is None or not training or p == 0:
        return state
    keep = 1 - p
    mask = (torch.arange(_law.ATOMS, dtype=torch.float64) >= p * _law.ATOMS).double()
    law, place, _ = _law.combine(torch.mul, state.law.values, mask)
    factor = 1 / keep if keep else 0.0
    result = State(pointwise(lambda f: f * factor, state.square), law)
    result.origin.made([state], entrywise, [1.0] if keep else None)
    if state.apart is not None:
        result.apart = 1 - keep * (1 - state.apart)

    def back() -> None:
        if result.gradient is None:
            return
        one = torch.ones(_law.ATOMS, dtype=torch.float64)
        weights = one if result.weights is None else result.weights
        shares = weights[place] * mask[None, :] * factor  # kept entries, by the atom they come from
        mean = float(shares.mean())
        state.receive(result.gradient * (mean * factor), _law.normalised(shares.mean(1)))

    tape.step(back)
    return result


@rule("detach")
def _detached(tape: Tape, out: Tensor, x: Any) -> State | None:
    state = tape.of(x)
    if state is None:
        return None
    return State(state.square, state.law, known=state.known, like=state)
