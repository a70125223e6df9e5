"""How second moments pass each operation, forward and back."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stabilitykit import _law
from stabilitykit._anchor import Rejoined, rejoining, turned
from stabilitykit._apart import apart
from stabilitykit._fields import Field, adjoint, dense, pointwise
from stabilitykit._tape import State, Tape

Rule = Callable[..., State | list[State] | None]
RULES: dict[str, Rule] = {}
_NARROW = 64  # convention: weights, below which a sum of them is not taken for Gaussian


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for functions of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def takes(rule: Rule, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a rule knows all arguments of a call, `rounding_mode` or `out` among them."""
    try:
        signature(rule).bind(None, out, *args, **kwargs)
    except TypeError:
        return False
    return True


def weighted(
    tape: Tape, state: State, out: Tensor, spread: Callable[[Field], Field], weight: Tensor,
    bias: Tensor | None, axis: int = -1, narrow: Tensor | None = None,
) -> State:  # fmt: skip
    """Random weights: E[y²] = mean(w²)·Σ E[x²] + mean(b²), the sum in `spread`; and its adjoint.

    Args:
        narrow: what the weights multiply, where an output sums few of them: then it is not Gaussian
            and a norm behind it makes its gradient depend on them, so both are read from the pass.
    """
    drawn = dense(weight.detach())
    factor = float(drawn.double().square().mean()) if drawn.numel() else 0.0
    shift, constant = 0.0, 0.0
    if bias is not None and bias.numel():
        bias = bias.detach().double()
        shift, constant = float(bias.mean()), float(bias.square().mean())
        if shift**2 <= 9 * constant / bias.numel():  # no more than the mean of so many draws
            shift = 0.0
    summed = spread(state.square)
    square = pointwise(lambda field: field * factor + constant, summed)
    part = factor * float(summed.mean()) if square.numel() else 0.0
    whole = part + constant
    law = _law.gaussian(shift, max(whole - shift**2, 0.0) ** 0.5) if shift else _law.gaussian()
    result, ends = State(square.expand(out.shape), law), None
    result.origin.drawn(axis)
    if narrow is not None and not state.known:
        ends, tiny = (tape.watch(narrow), tape.watch(out)), torch.finfo(torch.float64).tiny
        result.law = _law.empirical(out.detach().double() / result.square.clamp(min=tiny).sqrt())
    if state.apart is not None:
        result.apart = state.apart * part / whole if whole > 0 else 0.0

    def pull(gradient: Field) -> Field | None:
        given = adjoint(spread, state.square.shape, gradient.expand(out.shape))
        return None if given is None else given * factor

    def back() -> None:
        gradient = None if result.gradient is None else pull(result.gradient)
        if gradient is None or ends is None:
            state.receive(gradient)
        else:
            before = tape.measured(ends[0])
            gradient = gradient * tape.agreement(*ends, pull)
            state.receive(gradient, state.ranked(before))

    tape.step(back)
    return result


@rule("linear")
def _linear(
    tape: Tape, out: Tensor, x: Any, weight: Tensor, bias: Tensor | None = None
) -> State | None:
    state = tape.of(x)
    if state is None or tape.of(weight) is not None or id(weight) in tape.tables:
        return None  # a weight that is tied to an embedding is not independent of x
    if turned(tape, x, weight, -1):
        return None

    def spread(field: Field) -> Field:
        return field.sum(-1, keepdim=True).expand(out.shape)

    return weighted(tape, state, out, spread, weight, bias)


@rule("conv1d", "conv2d", "conv3d")
def _convolution(
    tape: Tape, out: Tensor, x: Any, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> State | None:  # fmt: skip
    state = tape.of(x)
    if state is None:
        return None
    convolve = getattr(functional, f"conv{weight.dim() - 2}d")
    batched = x.dim() == weight.dim()

    def spread(field: Field) -> Field:
        field = field if batched else field[None]
        shared = field.unflatten(1, (groups, -1)).sum(2)
        ones = shared.new_ones((groups, 1, *weight.shape[2:]))
        shared = convolve(shared, ones, None, stride, padding, dilation, groups)
        wide = shared.unsqueeze(2).expand(-1, -1, weight.shape[0] // groups, *shared.shape[2:])
        wide = wide.flatten(1, 2)
        return wide if batched else wide[0]

    narrow = x if weight[0].numel() < _NARROW else None
    return weighted(tape, state, out, spread, weight, bias, 1 - weight.dim(), narrow)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(
    tape: Tape, out: Tensor, x: Any, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
    dilation: Any = 1,
) -> State | None:  # fmt: skip
    state = tape.of(x)
    if state is None:
        return None
    convolve = getattr(functional, f"conv_transpose{weight.dim() - 2}d")
    batched = x.dim() == weight.dim()

    def spread(field: Field) -> Field:
        field = field if batched else field[None]
        shared = field.unflatten(1, (groups, -1)).sum(2)
        ones = shared.new_ones((groups, 1, *weight.shape[2:]))
        shared = convolve(shared, ones, None, stride, padding, output_padding, groups, dilation)
        wide = shared.unsqueeze(2).expand(-1, -1, weight.shape[1], *shared.shape[2:])
        wide = wide.flatten(1, 2)
        return wide if batched else wide[0]

    narrow = x if weight[:, 0].numel() < _NARROW * groups else None
    return weighted(tape, state, out, spread, weight, bias, 1 - weight.dim(), narrow)


@rule("embedding")
def _embedding(tape: Tape, out: Tensor, _: Any, weight: Tensor, *__: Any, **___: Any) -> State:
    tape.tables.add(id(weight))
    square = out.detach().double().square()
    state = State(square.mean(-1, keepdim=True).expand(out.shape), _law.gaussian())
    state.apart = apart(out)
    state.origin.drawn(-1)
    return state


def moved(
    tape: Tape, state: State, out: Any, move: Callable[[Field], Any], source: Tensor | None = None,
    same: bool = False,
) -> list[State] | State:  # fmt: skip
    """An operation that only moves, repeats or drops entries.

    Args:
        source: what is moved, where that may repeat entries: how far the gradients at the copies
            agree is read from the pass.
        same: whether each entry stays where it is.
    """
    outs = [out] if isinstance(out, Tensor) else list(out)
    fields = move(state.square)
    fields = [fields] if isinstance(fields, Tensor) else list(fields)
    results = [
        State(field, state.law, known=state.known, modelled=state.modelled) for field in fields
    ]
    for i, one in enumerate(results):

        def place(given: list[Field], i: int = i) -> Field:
            moved = move(given[0])
            return moved if isinstance(moved, Tensor) else list(moved)[i]

        one.origin.made([state], place, [1.0] if same else None)

    ends = None
    if source is not None and isinstance(out, Tensor) and out.numel() > source.numel():
        ends = tape.watch(source), tape.watch(out)

    def back() -> None:
        gradients = [r.gradient for r in results]
        weights = [(float(r.gradient.sum()), r.weights) for r in results if r.gradient is not None]
        if not weights:
            return
        shapes = [o.shape for o in outs]
        full = [
            None if g is None else g.expand(shape)
            for g, shape in zip(gradients, shapes, strict=True)
        ]
        shape = state.square.shape
        gradient = adjoint(move, shape, *full)
        if gradient is not None and ends is not None:
            gradient = gradient * tape.agreement(*ends, lambda g: adjoint(move, shape, g))
        state.receive(gradient, _law.mixed_weights(weights))

    tape.step(back)
    return results[0] if isinstance(out, Tensor) else results


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack")
def _joined(
    tape: Tape, out: Tensor, tensors: Any, dim: int = 0, *, function: Any = None
) -> State | None:
    given = [tape.of(t) or State.measured(t, known=True) for t in tensors]
    parts = [state.drawn(t) for state, t in zip(given, tensors, strict=True)]
    extra = () if function.__name__ in ("hstack", "vstack") else (dim,)
    square = function([p.square for p in parts], *extra)
    law, places = _law.mixture([p.law for p in parts], [float(p.square.sum()) for p in parts])
    result = State(square, law, known=all(p.known for p in parts))
    result.origin.made(given, lambda fields: function(fields, *extra))
    rejoined = Rejoined(tape, rejoining(tape, given), out)
    whole = float(sum(p.square.sum() for p in parts))
    if dim % out.dim() and whole > 0 and all(p.apart is not None for p in parts):
        result.apart = sum(float(p.square.sum()) * (p.apart or 0.0) for p in parts) / whole

    # Weights by atom do not tell parts apart whose positions agree more or less; the pass does.
    edge, tiny = tape.watch(out), torch.finfo(torch.float64).tiny

    def back() -> None:
        if result.gradient is None:
            return
        gradient, found = result.gradient.expand(out.shape), tape.measured(edge)
        rejoined.settle(gradient)
        for i, part in enumerate(given):

            def place(field: Field, i: int = i) -> Field:
                fields = [torch.zeros_like(p.square) for p in parts]
                fields[i] = field
                return function(fields, *extra)

            own = adjoint(place, part.square.shape, gradient)
            if own is None or result.weights is None:
                part.receive(own)
            elif found is not None and (whole := float(found.sum())) > 0:
                read = adjoint(place, part.square.shape, found)
                share = 0.0 if read is None else float(read.sum()) / whole
                own = own * (share * float(gradient.sum()) / max(float(own.sum()), tiny))
                part.receive(own, part.ranked(read))
            else:
                weights = result.weights[places[i]]
                part.receive(own * float(weights.mean()), _law.normalised(weights))

    tape.step(back)
    return result
