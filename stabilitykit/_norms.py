"""How second moments pass norms of features, groups and batches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stabilitykit import _law
from stabilitykit._apart import apart
from stabilitykit._fields import Field
from stabilitykit._rules import rule
from stabilitykit._tape import State, Tape

_TAILS = 0.05  # convention: a fourth moment that is farther from a Gaussian's is not one's


def _affine(state: State, weight: Field | None, bias: Field | None, out: Tensor) -> Any:
    """Square and law of weight·x + bias, where x has the state's square and law."""
    square = state.square if weight is None else state.square * weight.square()
    law = state.law
    if bias is not None and bool(bias.any()):
        slope = torch.ones((), dtype=torch.float64).to(bias) if weight is None else weight
        square = square + bias.square() + 2 * slope * bias * state.mean
        shift = float(bias.mean())
        wide = float((slope**2).mean() * state.scale) ** 0.5
        spread = float(bias.var(correction=0)) if bias.numel() > 1 else 0.0
        if spread + shift**2 > 1e-6 * wide**2:
            law = _law.Law(wide * law.values + shift)
    return square.expand(out.shape), law


def normalise(
    tape: Tape, state: State, out: Tensor, dims: list[int], shape: Any, inverse: Field,
    centre: float, weight: Tensor | None, bias: Tensor | None, lost: float,
) -> State:  # fmt: skip
    """y = weight·(x − mean)/σ + bias.

    Args:
        shape: to which x is reshaped for dims to be the group's.
        inverse: 1/σ² by group, of the reshaped rank.
        centre: mean of the law that is taken off.
        lost: share of the gradient's square that the mean and the scale take away.
    """
    values = state.law.values - centre
    plain = state.square.reshape(shape) * (1 - centre**2) * inverse
    plain = plain.reshape(out.shape)
    inner = State(plain, _law.Law(values, state.law.gaussian))
    w = None if weight is None else weight.detach().double()
    b = None if bias is None else bias.detach().double()
    square, law = _affine(inner, w, b, out)
    result = State(square, law, like=state)

    def back() -> None:
        if result.gradient is None:
            return
        gradient = result.gradient if w is None else result.gradient * w.square()
        gradient = gradient.expand(out.shape).reshape(shape) * inverse * (1 - lost)
        state.receive(gradient.reshape(out.shape), result.weights)

    tape.step(back)
    return result


@rule("layer_norm", "rms_norm")
def _layer_norm(
    tape: Tape, out: Tensor, x: Any, normalized_shape: Any, weight: Tensor | None = None,
    *rest: Any, bias: Tensor | None = None, eps: float | None = None, function: Any = None,
) -> State | None:  # fmt: skip
    state = tape.of(x)
    if state is None:
        return None
    rms = function.__name__ == "rms_norm"
    if rms:
        eps = rest[0] if rest else eps
        eps = torch.finfo(x.dtype).eps if eps is None else eps
    else:
        bias = rest[0] if rest else bias
        eps = rest[1] if len(rest) > 1 else (1e-5 if eps is None else eps)
    dims = list(range(x.dim() - len(normalized_shape), x.dim()))
    n = math.prod(normalized_shape)
    square = state.square.mean(dims, keepdim=True)
    centre = 0.0 if rms else state.law.mean
    if state.known and not rms:
        variance = x.detach().double().var(dims, correction=0, keepdim=True)
    else:
        variance = square * (1 - centre**2)
    lost = (1 if rms else 2) / n
    inverse = 1 / (variance + eps)
    return normalise(tape, state, out, dims, x.shape, inverse, centre, weight, bias, min(lost, 1.0))


def _placed(field: Field, like: Tensor) -> Field:
    """The field with the shares of its mean by position, [N, C, positions…], that `like` has."""
    ours, theirs = (part.mean((0, 1), keepdim=True) for part in (field, like))
    whole = theirs.mean()
    if field.dim() < 3 or not whole > 0 or not whole.isfinite():
        return field
    within = torch.where(ours > 0, field / ours, torch.ones_like(field))
    return within * (theirs / whole * field.mean())


def _grouped(
    tape: Tape, state: State, x: Tensor, out: Tensor, shape: Any, dims: list[int],
    weight: Tensor | None, bias: Tensor | None, eps: float,
) -> State:  # fmt: skip
    """Norms over positions: how far entries of a group agree is read from the pass.

    The variance of each group is as measured over the measured E[x²], a number without scale, times
    the predicted E[x²]: behind an activation it differs by group and goes with the entries, so the
    law of what is left and the entries that the gradient meets are read from the pass, too, unless
    x is Gaussian. With y = (x − mean)/σ, n entries a group, and ⟨·⟩ the mean over a group,

        ∂x = (∂y − ⟨∂y⟩ − y⟨y ∂y⟩)/σ

    loses a share 2/n of independent ∂y. Behind a global average over P positions ∂y is the same at
    all of a sample: ⟨∂y⟩ takes 1/N, and of the rest y⟨y ∂y⟩ takes ⟨y⟩² by sample, 1/(N·P − 1) if
    the entries of y are exchangeable. How much is kept is read from the measured gradients, so a
    batch of any size is predicted.

    What is lost also differs by position: zero padding makes x small at the border, and where
    samples agree it is just there that x is farthest from its channel's mean. The next convolution
    reads the border less often, so the shares by position are read from the pass, both ways, as
    averages over samples and channels.
    """
    value = x.detach().double().reshape(shape)
    variance = value.var(dims, correction=0, keepdim=True)
    tiny = torch.finfo(torch.float64).tiny
    square = state.square.reshape(shape).mean(dims, keepdim=True)
    measured = value.square().mean()
    scaled = variance * (square.mean() / measured) if measured > 0 else torch.zeros_like(variance)
    inverse = torch.where(scaled + eps > 0, 1 / (scaled + eps), torch.zeros_like(scaled))
    # the mean square after the norm is that of what is left: var/(var + eps)
    n = math.prod(shape[d] for d in dims)
    centred = (scaled * inverse).mean(1, keepdim=True) / square.clamp(min=tiny)
    w = None if weight is None else weight.detach().double()
    b = None if bias is None else bias.detach().double()
    view = [1, -1] + [1] * (x.dim() - 2)
    w = None if w is None else w.view(view)
    b = None if b is None else b.view(view)
    plain = (state.square.reshape(shape) * centred).reshape(x.shape)
    centre = value.mean(dims, keepdim=True)
    left = ((value - centre) * (variance + eps).rsqrt()).reshape(x.shape)
    plain = _placed(plain, left.square())
    law, spread = state.law, left.square().mean()
    if not law.gaussian or abs(left.pow(4).mean() / spread.square() / 3 - 1) > _TAILS:
        law = _law.empirical(left / plain.clamp(min=tiny).sqrt())
    inner = State(plain, law)
    result_square, law = _affine(inner, w, b, out)
    result = State(result_square, law, like=state)
    ends = tape.watch(out), tape.watch(x)

    def back() -> None:
        if result.gradient is None:
            return
        gradient = result.gradient if w is None else result.gradient * w.square()
        gradient = gradient.expand(out.shape).reshape(shape)
        after, before = (tape.measured(end) for end in ends)
        kept = 1 - min(1.0, 2 / n)
        if after is not None and before is not None:
            whole = after if w is None else after * w.square()
            whole = whole.mean() * (1 / (variance + eps)).mean()
            kept = float(before.mean() / whole) if whole > 0 else 0.0
        level = gradient.mean() * inverse.mean() * kept
        gradient = (gradient * inverse).reshape(x.shape)
        gradient = gradient * (level / gradient.mean().clamp(min=tiny))
        if before is not None:
            gradient = _placed(gradient, before)
        if before is None or inner.law.gaussian:
            state.receive(gradient, result.weights)
        else:
            state.receive(gradient, state.ranked(before, result.weights))

    tape.step(back)
    return result


@rule("batch_norm", "instance_norm")
def _batch_norm(
    tape: Tape, out: Tensor, x: Any, running_mean: Tensor | None = None,
    running_var: Tensor | None = None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *,
    use_input_stats: bool = True, function: Any = None, before: Any = None,
) -> State | None:  # fmt: skip
    state = tape.of(x)
    if state is None:
        return None
    instance = function.__name__ == "instance_norm"
    if use_input_stats if instance else training:
        dims = list(range(2, x.dim())) if instance else [0, *range(2, x.dim())]
        result = _grouped(tape, state, x, out, x.shape, dims, weight, bias, eps)
        if not instance and state.apart is not None:
            result.apart = apart(out)  # the batch's mean is taken off, whatever it was
        return result
    if running_mean is None or running_var is None:
        return None
    return _running(tape, state, x, out, running_mean, running_var, weight, bias, eps)


def _running(
    tape: Tape, state: State, x: Tensor, out: Tensor, mean: Tensor, variance: Tensor,
    weight: Tensor | None, bias: Tensor | None, eps: float,
) -> State:  # fmt: skip
    """y = weight·(x − mean)/√(variance + ε) + bias, with statistics from earlier passes.

    They are those of x's own channels where x has the weights with which they were taken, and of
    no channel else. So x = b·mean + e with b by least squares: which share of E[x²] the first part
    has, and how E[e²] goes with the variance by channel, is read from the pass.
    """
    view = [1, -1] + [1] * (x.dim() - 2)
    mean = mean.detach().double().view(view)
    scale = (variance.detach().double() + eps).rsqrt().view(view)
    scale = scale if weight is None else scale * weight.detach().double().view(view)
    value, level = x.detach().double(), mean.square().mean()
    tiny = torch.finfo(torch.float64).tiny
    slope = (value * mean).mean() / level.clamp(min=tiny)
    rest = (value - slope * mean).square()
    share = slope.square() * level / value.square().mean().clamp(min=tiny)
    together = (rest * scale.square()).mean() / (rest.mean() * scale.square().mean())
    if not share.isfinite() or not together.isfinite():
        share, together = torch.zeros_like(level), torch.ones_like(level)
    slope = slope.sign() * (share * state.scale / level.clamp(min=tiny)).sqrt()
    centre = float((slope * mean).mean()) / max(state.scale, float(tiny)) ** 0.5
    law = state.law if state.law.gaussian else _law.Law(state.law.values - centre)
    inner = State(state.square * (1 - share).clamp(min=0) * together, law)
    shift = (slope - 1) * mean * scale
    shift = shift if bias is None else shift + bias.detach().double().view(view)
    square, law = _affine(inner, scale, shift, out)
    if not state.law.gaussian:  # centres and scales go with the entries
        square = square.mean(1, keepdim=True).expand(out.shape)
        law = _law.empirical(out.detach().double() / square.clamp(min=tiny).sqrt())
    result = State(square, law, like=state)
    ends = tape.watch(out), tape.watch(x)

    def back() -> None:
        if result.gradient is None:
            return
        gradient = result.gradient * scale.square()
        after, before = (tape.measured(end) for end in ends)
        if state.law.gaussian or after is None or before is None:
            state.receive(gradient, result.weights)
            return
        level = result.gradient.mean() * before.mean() / after.mean().clamp(min=tiny)
        gradient = gradient * (level / gradient.mean().clamp(min=tiny))
        state.receive(gradient, state.ranked(before, result.weights))

    tape.step(back)
    return result


@rule("group_norm")
def _group_norm(
    tape: Tape, out: Tensor, x: Any, num_groups: int, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> State | None:  # fmt: skip
    state = tape.of(x)
    if state is None:
        return None
    shape = (x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:])
    return _grouped(tape, state, x, out, shape, list(range(2, len(shape))), weight, bias, eps)
