"""Parameters that no gradient reaches, and why: cut off, multiplied by zero, or never used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from stabilitykit._findings import Finding, finding
from stabilitykit._origins import Place, Tracer
from stabilitykit._remedies import frozen
from stabilitykit._restore import Randomness

# Convention: so many draws of the random numbers that a block left out by chance is used in one.
_DRAWS = 5
# Functions of slope zero wherever they have one.
_STEPS = ("round", "floor", "ceil", "trunc", "fix", "sign", "heaviside", "floor_divide")


def without_gradient(
    model: nn.Module, zeros: list[str], again: Callable[[], Tensor], randomness: Randomness
) -> list[Finding]:
    """no-gradient: parameters that backward does not reach, or reaches with exact zeros.

    What is computed and not read, as the last of several layers alike may be, gets a warning.

    What no function of the step was given (an expert that got no sample, a block that was left out)
    is not cut off. It is named, with a warning, only if no other draw of the random numbers uses
    it, and if no part beside it in the same container was used.

    Args:
        model: after `unmoved`.
        zeros: what that gave.
        again: computes the loss.
        randomness: the random state of the step.
    """
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    flat = not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    if not missing and not zeros:
        return []
    randomness.restore()
    used, cut = _watched(model, again, missing or zeros)
    idle = [n for n in (*missing, *zeros) if n not in used]
    missing, zeros = ([n for n in names if n in used] for names in (missing, zeros))
    if cut == "" and all(name.endswith("bias") for name in missing):
        missing = []  # a shift of what only the slope is learnt of, as of an energy by its forces
    found: list[Finding] = []
    if missing:
        how = f"Take out {cut}, which cuts it off from the loss" if cut else _KEEP
        how = _READ if cut is None else how
        remedy = f"{how}, or freeze what is not meant to learn: `{frozen(model, missing)}`."
        severity = "warning" if cut is None else "error"
        found.append(finding("no-gradient", missing[0], "none", "a gradient", remedy, severity))
    elif zeros and flat and not cut:
        expected = "a gradient that is not zero"
        found.append(finding("no-gradient", "loss", 0.0, expected, _FLAT, "warning"))
    elif zeros:
        how = f"Replace {cut}, whose slope is 0, by one with a slope" if cut else _DEPEND
        remedy = f"{how}, or freeze what is not meant to learn: `{frozen(model, zeros)}`."
        expected = "a gradient that is not zero"
        found.append(finding("no-gradient", zeros[0], 0.0, expected, remedy))
    if idle := _forgotten(model, again, idle, used):
        remedy = f"Call it in forward, or freeze it: `{frozen(model, idle)}`."
        said = "never used in this batch"
        found.append(finding("no-gradient", idle[0], said, "a gradient", remedy, "warning"))
    return found


_KEEP = "Keep it in the graph (no detach, data, item or torch.no_grad on its way to the loss)"
_FLAT = (
    "Take a batch that is not learnt yet, or look for a mask or a factor of zeros, since the loss "
    "changes with no weight."
)
_READ = "Let the loss read what is made of it"
_DEPEND = "Let the loss depend on it (its output is multiplied by zero, or never read)"


def _zero(model: nn.Module) -> list[str]:
    return [
        name
        for name, p in model.named_parameters()
        if p.ndim > 1 and p.grad is not None and not bool(p.grad.any())
    ]


def unmoved(model: nn.Module, again: Callable[[], Tensor], randomness: Randomness) -> list[str]:
    """Weights whose gradient is exactly zero, also after small steps of those that have one.

    The steps tell cut-off weights from those below a scale that starts at zero (the last
    normalisation of a residual branch, a head of zeros), which have a gradient once that scale has
    moved. Where several such follow each other each step reaches one more, so they are repeated as
    long as they reach a further parameter. They end with the gradients of the last of them.

    Args:
        model: with the gradients of the step; its values may change.
        again: computes the loss.
        randomness: the random state of the step.
    """
    zeros, reached = _zero(model), set[str]()
    while zeros and not reached.issuperset(moving := _moving(model)):
        reached |= moving
        for name in moving:
            _nudge(model.get_parameter(name))
        for p in model.parameters():
            p.grad = None
        randomness.restore()
        again().backward()
        still = set(_zero(model))
        zeros = [name for name in zeros if name in still]
    return zeros


def _moving(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def _nudge(parameter: Tensor) -> None:
    """A step down the gradient of a hundredth of the weights, at least of a thousandth."""
    assert parameter.grad is not None
    weight, gradient = parameter.data, parameter.grad
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    size = weight.square().mean().sqrt().clamp_min(0.1)
    weight.sub_(0.01 * size * gradient / gradient.square().mean().sqrt())


def _watched(
    model: nn.Module, again: Callable[[], Tensor], names: Sequence[str]
) -> tuple[set[str], str | None]:
    """The parameters that any function was given, and what cuts the named ones off first.

    It is None where nothing that is made of the first one comes to the loss.
    """
    owners = {id(p): n for n, p in model.named_parameters()}
    used: set[str] = set()
    # Of each tensor: the parameters from which it follows, and the cuts on every way from there.
    follows: dict[int, tuple[Tensor, dict[str, frozenset[int]]]] = {}
    cuts: list[str] = []
    chosen = set(names)

    def seen(place: Place, given: list[Tensor], made: list[Tensor], _: Any) -> None:
        if not made or not all(t.numel() for t in made):
            return
        own = {owners[id(t)] for t in given if id(t) in owners}
        used.update(own)
        ways = [dict.fromkeys(own & chosen, frozenset[int]())]
        ways += [follows[id(t)][1] for t in given if id(t) in follows]
        sources: dict[str, frozenset[int]] = {}
        for name, between in (pair for way in ways for pair in way.items()):
            sources[name] = sources.get(name, between) & between
        if not sources:
            return
        attached = any(t.requires_grad for t in given if id(t) in follows or id(t) in owners)
        for tensor in made:
            own_cut = attached and (place.function in _STEPS or not tensor.requires_grad)
            if own_cut:
                cuts.append(_said(place, tracer.grad))
            more = {len(cuts) - 1} if own_cut else frozenset[int]()
            follows[id(tensor)] = tensor, {n: between | more for n, between in sources.items()}

    tracer = Tracer(model, seen)
    with tracer.on():
        loss = again()
    used.update(n for n in owners.values() if n.rpartition(".")[0] in tracer.ran)
    first = next((n for n in names if n in used), "")
    _, sources = follows.get(id(loss), (loss, {}))
    if first not in sources:
        return used, None
    return used, cuts[min(sources[first])] if sources[first] else ""


def _said(place: Place, grad: bool) -> str:
    between = " after " in place.layer
    if not grad:
        return f"the torch.no_grad around {place.layer if between else repr(place.layer)}"
    return f"the {place.layer if between else f'{place.function} in {place.layer!r}'}"


def _forgotten(
    model: nn.Module, again: Callable[[], Tensor], idle: Iterable[str], used: set[str]
) -> list[str]:
    """Those that are not used by chance, nor one of several of which a sample takes some."""
    idle = [name for name in idle if not _beside(model, name, used)]
    for _ in range(_DRAWS if idle else 0):
        now, _ = _watched(model, again, ())
        idle = [name for name in idle if name not in now]
    return idle


def _beside(model: nn.Module, name: str, used: set[str]) -> bool:
    """Whether it belongs to a part of a container of which another part was used."""
    parts = name.split(".")
    for length in range(len(parts) - 1):
        container = model.get_submodule(".".join(parts[:length]))
        if isinstance(container, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            around, part = "".join(f"{p}." for p in parts[:length]), ".".join(parts[: length + 1])
            others = any(u.startswith(around) for u in used)
            if others and not any(u.startswith(f"{part}.") for u in used):
                return True
    return False
