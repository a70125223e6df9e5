"""How second moments pass averages and maxima over positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stabilitykit import _law
from stabilitykit._fields import Field, adjoint
from stabilitykit._rules import rule
from stabilitykit._tape import State, Tape


def mixed(
    tape: Tape, state: State, x: Tensor, out: Tensor, mix: Callable[[Field], Field]
) -> State:  # fmt: skip
    """Fixed weights over positions, `mix` with the weights squared.

    What independent entries would give is corrected by the measured agreement of positions,
    E[y²] / Σ w² E[x²], a number without scale. The law, up to its scale, is read there, too, unless
    it is Gaussian: averages keep the mean of what is not.
    """
    independent = float(mix(x.detach().double().square()).mean())
    actual = float(out.detach().double().square().mean())
    agreement = actual / independent if independent > 0 else 1.0
    square = mix(state.square) * agreement
    law, tiny = _law.gaussian(), torch.finfo(torch.float64).tiny
    if not state.law.gaussian and 0 < actual < math.inf:
        law = _law.empirical(out.detach().double() / square.clamp(min=tiny).sqrt())
    result = State(square, law)
    result.origin.made([state], lambda fields: _kept(mix, fields[0]))

    def weights(found: Field | None) -> Tensor | None:
        return None if result.weights is None else state.ranked(found)

    _return(tape, (state, x), (result, out), mix, weights)
    return result


def _return(
    tape: Tape, before: tuple[State, Tensor], after: tuple[State, Tensor],
    linear: Callable[[Field], Field], weights: Callable[[Field | None], Tensor | None],
) -> None:  # fmt: skip
    """The step of the way back: by the adjoint, as far as the measured gradients agree.

    Args:
        before: what was read.
        after: what was made of it.
        linear: of the squares.
        weights: those of what was read, of the measured gradient there.
    """
    (state, x), (result, out) = before, after
    ends = tape.watch(x), tape.watch(out)

    def back() -> None:
        if result.gradient is None:
            return
        gradient = adjoint(linear, x.shape, result.gradient.expand(out.shape))
        if gradient is not None:
            agreed = tape.agreement(*ends, lambda behind: adjoint(linear, x.shape, behind))
            state.receive(gradient * agreed, weights(tape.measured(ends[0])))

    tape.step(back)


def _kept(mix: Callable[[Field], Field], field: Field) -> Field | None:
    """What `mix` makes of a field that is the same wherever it mixes; None for others."""
    count = mix(torch.ones_like(field))
    mean = mix(field) / count
    alike = (mix(field.square()) / count - mean.square()).abs() <= 1e-9 * mean.square()
    return mean.round() if bool(alike.all()) else None


@rule(
    "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "sum", "interpolate", "upsample",
)  # fmt: skip
def _averaged(
    tape: Tape, out: Tensor, x: Any, *rest: Any, function: Any = None, **options: Any
) -> State | None:
    state = tape.of(x)
    if state is None:
        return None
    name = function.__name__

    def plain(field: Field) -> Field:
        return function(field, *rest, **options)

    if name == "sum":
        return mixed(tape, state, x, out, plain)
    # every average of equal weights 1/k: the weights squared are 1/k times the weights
    count = x.numel() / max(1, out.numel())
    if "avg_pool" in name and not name.startswith("adaptive"):
        size = rest[0] if rest else options["kernel_size"]
        count = size ** int(name[-2]) if isinstance(size, int) else math.prod(size)
    if name in ("interpolate", "upsample"):
        mode = rest[2] if len(rest) > 2 else options.get("mode", "nearest")
        if not str(mode).startswith("nearest"):
            return None
        count = 1.0
    return mixed(tape, state, x, out, lambda f: plain(f) / count)


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d",
)  # fmt: skip
def _maximum(
    tape: Tape, out: Tensor, x: Any, *rest: Any, function: Any = None, **options: Any
) -> State | None:
    """The largest of a window; which ranks win is read from the pass, their sizes are predicted."""
    state = tape.of(x)
    if state is None or options.get("return_indices") or len(rest) > 5:
        return None
    tiny = torch.finfo(torch.float64).tiny
    relative = x.detach().double() / state.square.clamp(min=tiny).sqrt()
    pool = getattr(functional, function.__name__)
    options = {k: v for k, v in options.items() if k != "return_indices"}
    _, winners = pool(x.detach(), *rest[:5], **options, return_indices=True)
    spatial = int(function.__name__[-2])
    flat = (*x.shape[: x.dim() - spatial], -1)

    def pick(field: Field) -> Field:
        taken = field.reshape(flat).gather(-1, winners.reshape(*flat[:-1], -1))
        return taken.reshape(out.shape)

    winner, sizes = pick(relative), pick(state.square)
    won, energy = _ranks(relative, winner), _ranks(relative, winner, sizes)
    order = state.law.values.argsort(stable=True)
    atoms = state.law.values[order]
    chances = won / won.sum().clamp(min=tiny)
    level = float((energy * atoms.square()).sum() / energy.sum().clamp(min=tiny))
    middle = (torch.arange(_law.ATOMS, dtype=torch.float64) + 0.5) / _law.ATOMS
    source = torch.searchsorted(chances.cumsum(0), middle).clamp(max=_law.ATOMS - 1)
    result = State(sizes * level, _law.Law(atoms[source]))
    result.origin.made([state], lambda fields: pick(fields[0]))

    def weights(found: Field | None) -> Tensor | None:
        one = torch.ones(_law.ATOMS, dtype=torch.float64)
        shares = torch.zeros(_law.ATOMS, dtype=torch.float64)
        shares.index_add_(0, order[source], one if result.weights is None else result.weights)
        mine, wins = _law.normalised(shares), adjoint(pick, x.shape, torch.ones_like(sizes))
        often = wins is not None and float(wins.max()) > 1  # then it gets gradients that agree
        return state.ranked(found, mine) if often else mine

    _return(tape, (state, x), (result, out), pick, weights)
    return result


@rule("max")
def _max(tape: Tape, out: Any, x: Any, dim: Any = None, keepdim: bool = False) -> State | None:
    return _over_dims(tape, out[0], x, (dim,)) if isinstance(dim, int) else None


@rule("amax")
def _amax(tape: Tape, out: Tensor, x: Any, dim: Any = (), keepdim: bool = False) -> State | None:
    return _over_dims(tape, out, x, (dim,) if isinstance(dim, int) else tuple(dim))


def _over_dims(tape: Tape, out: Tensor, x: Any, dims: tuple[int, ...]) -> State | None:
    """The largest of many: how large against the others, and how it spreads, is read, too."""
    state = tape.of(x)
    if state is None or not dims:
        return None
    over = [d % x.dim() for d in dims]
    kept = [d for d in range(x.dim()) if d not in over]

    def rows(field: Field) -> Field:
        return field.permute(*kept, *over).flatten(len(kept))

    winners = rows(x.detach()).argmax(-1, keepdim=True)

    def pick(field: Field) -> Field:
        return rows(field).gather(-1, winners).reshape(out.shape)

    picked = pick(state.square)
    level = out.detach().double().square().mean() / picked.mean()
    level = level * state.square.mean() / x.detach().double().square().mean()
    square = picked * (level if level.isfinite() else torch.ones_like(level))
    result = State(square, _law.empirical(_law.relative(out, square)))
    result.origin.made([state], lambda fields: pick(fields[0]))
    _return(tape, (state, x), (result, out), pick, state.ranked)
    return result


def _ranks(values: Tensor, winners: Tensor, sizes: Tensor | None = None) -> Tensor:
    """How often each of ATOMS equal shares of ranks wins; equal values share their ranks evenly.

    Args:
        sizes: how much each winner counts.
    """
    ordered = values.flatten().cpu().sort().values
    won = winners.flatten().cpu()
    low = torch.searchsorted(ordered, won).double()
    high = torch.searchsorted(ordered, won, right=True).double()
    golden = torch.arange(len(won), dtype=torch.float64).mul(0.6180339887498949).frac()
    place = (low + golden * (high - low)) / len(ordered) * _law.ATOMS
    place = place.long().clamp(0, _law.ATOMS - 1)
    weights = None if sizes is None else sizes.flatten().cpu()
    return torch.bincount(place, weights, minlength=_law.ATOMS).double()
