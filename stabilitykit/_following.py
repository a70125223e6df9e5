"""Which activation follows each weight, and which weights end a residual branch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stabilitykit._activations import Activation
from stabilitykit._flatness import ACTIVATIONS, MODULES
from stabilitykit._functions import MOVES, plain_name
from stabilitykit._gaussian import GaussianMeans
from stabilitykit._nested import tensors
from stabilitykit._quiet import transforming

LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_NORMS = {"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"}
# What lies between a weight and its activation without being one.
_PASSING = MOVES | _NORMS | {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout",
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "mean", "sum", "cat", "concat", "stack", "add", "radd", "sub", "mul",
    "rmul", "div", "truediv", "interpolate",
}  # fmt: skip

# Functions of one tensor that some write instead of an activation, or use as one.
_BENDING = {
    "clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "sin", "cos", "erf", "atan",
    "arctan",
}  # fmt: skip
_MODULES = (*MODULES, nn.GLU)
_IN_PLACE = {"iadd", "imul", "itruediv"}


@dataclass
class Use:
    """One layer's weight: what follows it.

    Attributes:
        layer: name in `named_modules`.
        activation: its name, "linear" where none follows.
        function: the activation as a callable.
        ends_branch: whether its output is added to what the branch began with.
        through: whether its activation stands before that sum.
        scale: by which constants and parameters multiply its output before that sum.
        reads: root mean square of what it reads, where no weight comes before it; else None.
    """

    layer: str
    activation: str = "linear"
    function: Callable[[Tensor], Tensor] | None = None
    ends_branch: bool = False
    through: bool = False
    scale: float = 1.0
    reads: float | None = None


@dataclass
class Found:
    """What a pass or the order of modules tells of the weights."""

    uses: dict[str, Use] = field(default_factory=dict)
    blocks: int = 0


def kept(model: nn.Module) -> set[int]:
    """Ids of weights that are not to be drawn: frozen ones, and those of embeddings."""
    frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    embeddings = (nn.Embedding, nn.EmbeddingBag)
    return frozen | {id(m.weight) for m in model.modules() if isinstance(m, embeddings)}


def weights(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolutional layers that own a weight that is not frozen, each once."""
    modules = list(model.modules())
    attention = {id(m.out_proj) for m in modules if isinstance(m, nn.MultiheadAttention)}
    taken = kept(model)
    owners = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
        and id(module) not in attention
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and id(module.weight) not in taken
        and not nn.parameter.is_lazy(module.weight)
    }
    first = {id(module.weight): name for name, module in reversed(owners.items())}
    return {name: owners[name] for name in owners if first[id(owners[name].weight)] == name}


class Follow(TorchFunctionMode):
    """Follows the outputs of layers through a forward pass up to the next activation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found = Found()
        self._names = {id(module.weight): name for name, module in weights(model).items()}
        self._waiting: dict[int, frozenset[str]] = {}
        self._ended: dict[int, frozenset[str]] = {}  # the same, activations passed too
        self._scale: dict[int, float] = {}  # of a tensor, since the last weight
        self._drawn = {id(p) for p in model.parameters()}  # depends on a parameter
        self._normed: dict[int, bool] = {}  # whether a norm stands between
        self._past: dict[int, int] = {}  # the operations behind a tensor, as bits
        self._number: dict[int, int] = {}
        self._parameters = {id(p) for p in model.parameters() if p.dim() > 1}
        self._constant = set(self._drawn)  # made of parameters alone
        self._weighted = 0  # the operations that have a weight, as bits
        self._alive: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if transforming():
            return func(*args, **kwargs)
        name = plain_name(func)
        given = list(tensors((args, kwargs)))
        before = [(self._past.get(id(t), 0), self._number.get(id(t), -1)) for t in given]
        waiting = frozenset[str]().union(*(self._waiting.get(id(t), ()) for t in given))
        ended = frozenset[str]().union(*(self._ended.get(id(t), ()) for t in given))
        scale = self._scaled(name, args, given)
        normed = name in _NORMS or any(self._normed.get(id(t), False) for t in given)
        layer = next((self._names[id(t)] for t in given[1:] if id(t) in self._names), None)
        if name in ("add", "iadd", "radd") and len(given) == 2:
            self._join(given, before)
        out = func(*args, **kwargs)
        if layer is not None:
            self.found.uses.setdefault(layer, Use(layer, reads=self._reads(given[0])))
            waiting = ended = frozenset([layer])
            normed, scale = False, 1.0
        elif (waiting or ended) and (function := _bending(func, name, args, kwargs)) is not None:
            for key in waiting:
                use = self.found.uses[key]
                if use.function is None:
                    use.activation, use.function = ACTIVATIONS.get(func, name), function
            waiting = frozenset()
        elif name not in _PASSING and name not in _IN_PLACE:
            waiting = ended = frozenset()
        bits = 0
        for past, number in before:
            bits |= past | (1 << number if number >= 0 else 0)
        weighs = any(id(t) in self._parameters for t in given)
        drawn = any(id(t) in self._drawn for t in given)
        constant = drawn and all(id(t) in self._constant for t in given)
        for tensor in tensors(out):
            self._alive.append(tensor)
            self._waiting[id(tensor)], self._normed[id(tensor)] = waiting, normed
            self._ended[id(tensor)], self._scale[id(tensor)] = ended, scale
            self._drawn |= {id(tensor)} if drawn else set()
            self._constant |= {id(tensor)} if constant else set()
            self._past[id(tensor)] = bits
            self._number[id(tensor)] = len(self._alive)
            self._weighted |= weighs << len(self._alive)
        return out

    def _join(self, given: list[Tensor], before: list[tuple[int, int]]) -> None:
        """A sum of a branch and of what it began with is a residual block."""
        for branch, other in ((0, 1), (1, 0)):
            (past, number), (origin, start) = before[branch], before[other]
            since = (past | 1 << max(number, 0)) & ~origin
            if start < 0 or not past >> start & 1 or not since & self._weighted & ~(1 << start):
                continue
            self.found.blocks += 1
            place = id(given[branch])
            waiting = self._waiting.get(place, frozenset())
            if not self._normed.get(place, False):
                for key in waiting or self._ended.get(place, frozenset()):
                    use = self.found.uses[key]
                    use.ends_branch, use.through = True, not waiting
                    use.scale = self._scale.get(place, 1.0)

    def _scaled(self, name: str, args: tuple[Any, ...], given: list[Tensor]) -> float:
        """The constant factor since the last weight, by root mean square where it is a vector."""
        scale = max((self._scale[id(t)] for t in given if id(t) in self._scale), default=1.0)
        if name not in ("mul", "rmul", "imul", "multiply", "div", "truediv", "itruediv"):
            return scale
        for place, factor in enumerate(args[:2]):
            if isinstance(factor, Tensor):
                if factor.dim() and id(factor) not in self._constant:
                    continue
                size = float(factor.detach().double().square().mean()) ** 0.5
            elif isinstance(factor, (int, float)):
                size = abs(factor)
            else:
                continue
            if "div" not in name:
                scale *= size
            elif place == 1 and size:
                scale /= size
        return scale

    def _reads(self, x: Tensor) -> float | None:
        """Root mean square of data as they come."""
        if id(x) in self._drawn:
            return None
        x = x.detach()
        dense = x if x.layout == torch.strided else x.to_dense()
        return float(dense.double().square().mean()) ** 0.5


def _bending(func: Any, name: str, args: Any, kwargs: Any) -> Callable[[Tensor], Tensor] | None:
    """What this call does to a tensor if it is an activation, or as good as one."""
    if func in ACTIVATIONS:
        return _plain(func, args, kwargs)
    if name == "rrelu":
        return _random_slopes(
            *args[1:3], **{k: kwargs[k] for k in ("lower", "upper") if k in kwargs}
        )
    if name == "glu":
        return _gated()
    if name not in _BENDING:
        return None
    if name in ("maximum", "minimum") and len(args) == 2:
        args = sorted(args, key=torch.numel, reverse=True)
    bounds = {k: v for k, v in kwargs.items() if k != "input"}
    if any(t.numel() > 1 for t in tensors((args[1:], bounds))):
        return None
    rest = [t.detach().double().cpu() if isinstance(t, Tensor) else t for t in args[1:]]
    return _plain(func, (None, *rest), bounds)


@cache
def _gated() -> Callable[[Tensor], Tensor]:
    """Of glu: a·σ(b) has mean 0, and at q = 1 the second moment E[σ²]."""
    means = GaussianMeans(Activation(torch.sigmoid))
    factor = float(means.moments(np.ones(1))[0][0, 0]) ** 0.5
    return lambda z: factor * z


def _random_slopes(lower: float = 1 / 8, upper: float = 1 / 3) -> Callable[[Tensor], Tensor]:
    """Of rrelu, by the root mean square of slopes that are uniform in [lower, upper]."""
    slope = ((lower**2 + lower * upper + upper**2) / 3) ** 0.5
    return lambda z: nn.functional.leaky_relu(z, slope)


def _plain(func: Any, args: Any, kwargs: Any) -> Callable[[Tensor], Tensor]:
    options = {k: v for k, v in kwargs.items() if k != "input"}
    rest = args[1:]
    if ACTIVATIONS.get(func) == "prelu":
        weight = (rest[0] if rest else options["weight"]).detach().double().cpu().mean()
        return lambda z: nn.functional.leaky_relu(z, float(weight))
    return lambda z: func(z, *rest, **options)


def by_pass(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Found:
    """What follows each weight in one forward pass."""
    follow = Follow(model)
    for tensor in tensors((args, kwargs)):  # the input is what the first branch may begin with
        follow._alive.append(tensor)
        follow._number[id(tensor)] = len(follow._alive)
    with torch.enable_grad(), follow:  # since forward may differentiate
        model(*args, **kwargs)
    return follow.found


def by_order(model: nn.Module) -> Found:
    """What follows each weight in the order in which modules were registered."""
    found, last = Found(), None
    named = weights(model)
    for name, module in model.named_modules():
        if name in named:
            last = found.uses[name] = Use(name)
        elif isinstance(module, _MODULES) and last is not None and last.function is None:
            last.activation, last.function = type(module).__name__.lower(), module
            if isinstance(module, nn.PReLU):  # which may have a slope for each unit
                last.function = _plain(nn.functional.prelu, (None, module.weight), {})
            elif isinstance(module, nn.RReLU):
                last.function = _random_slopes(module.lower, module.upper)
            elif isinstance(module, nn.GLU):
                last.function = _gated()
    return found


def divisor(use: Use, blocks: int) -> float:
    """Root of E[(Σ b)²]/E[b²] over branches b that share no more than their mean; times a scale."""
    share = 0.0
    if use.through and use.function is not None:
        means, one = GaussianMeans(Activation(use.function)), np.ones(1)
        share = float(means.hermite(one, 1)[0, 0] ** 2 / means.moments(one)[0][0, 0])
    return use.scale * (blocks * (1 - share) + blocks**2 * share) ** 0.5
