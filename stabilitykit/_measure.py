"""What a diagnosis needs to know of one training step, beyond the probe's records."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stabilitykit import _nested
from stabilitykit._fresh import Fresh
from stabilitykit._makers import maker
from stabilitykit._quiet import transforming

WEIGHTED = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    *(nn.RNNBase, nn.RNNCellBase),
    nn.MultiheadAttention,
)
_SIGMOIDS = ("sigmoid", "hardsigmoid")
PRODUCTS = (
    *("linear", "matmul", "rmatmul", "mm", "bmm", "baddbmm", "addmm", "einsum"),
    *("conv1d", "conv2d", "conv3d"),
)
NORMALISING = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Signal(NamedTuple):
    """The output of one call of a weighted or normalising layer.

    Attributes:
        layer: name in `named_modules`; of the parameter, for a product outside such modules.
        kind: lower-case class name, or "product".
        call: how often the layer was called before in this step.
        weighted: whether it multiplies by a weight matrix.
        units: width of the output.
        source: amplitude of its input: the rms, over units, of the deviation from the mean over
            the batch (of the whole input where the batch has one sample).
        amplitude: the same of its output.
    """

    layer: str
    kind: str
    call: int
    weighted: bool
    units: int
    source: float
    amplitude: float


class Feed(NamedTuple):
    """What a weighted layer receives straight from the batch.

    Attributes:
        layer: the layer.
        rms: root mean square of all entries that are not zero.
        offset: |mean| over standard deviation, in root mean squares over the features.
        channels: the dimension of the features.
        source: the tensor.
    """

    layer: str
    rms: float
    offset: float
    channels: int
    source: Tensor


class _Products(TorchFunctionMode):
    """Calls back for every product with a parameter, and with what a sigmoid lets through.

    It follows what is fresh, too.
    """

    def __init__(
        self,
        seen: Callable[[Tensor, Tensor, Tensor], None],
        gates: set[tuple[str, int]],
        fresh: Fresh,
    ) -> None:
        super().__init__()
        self.seen, self.gates, self.fresh = seen, gates, fresh
        self.sigmoids: dict[Any, tuple[str, int]] = {}  # by their nodes in autograd's graph
        self.counts = dict.fromkeys(_SIGMOIDS, 0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if isinstance(output, (Tensor, tuple, list)):
            self.fresh.follow(name, tensors((args, kwargs)), tensors(output))
        if name in PRODUCTS and isinstance(output, Tensor) and not transforming():
            factors = [_owner(t) for t in tensors((args, kwargs)) if t.ndim > 1]
            if len(factors) == 2:
                self.seen(factors[0], factors[1], output)
        elif name in ("mul", "rmul", "imul", "multiply"):
            factors = [t for t in tensors((args, kwargs)) if t.numel() > 1]
            if len(factors) == 2:
                made = (self.sigmoids.get(maker(t)) for t in factors)
                self.gates.update(place for place in made if place is not None)
        elif name in _SIGMOIDS and isinstance(output, Tensor):
            place = name, self.counts[name]
            self.counts[name] += 1
            if output.grad_fn is not None:
                self.sigmoids[output.grad_fn] = place
        return output


def _owner(tensor: Tensor) -> Tensor:
    """The tensor of which this is a view (a transposed weight), else itself."""
    return tensor if tensor._base is None else tensor._base


@dataclass
class Watch:
    """Hooks on the layers of a model for one forward pass."""

    signals: list[Signal] = field(default_factory=list)
    norms: dict[int, float] = field(default_factory=dict)  # of gradients of products, by position
    feeds: list[Feed] = field(default_factory=list)
    # Which calls of sigmoids, by their kind, something else is multiplied by.
    gates: set[tuple[str, int]] = field(default_factory=set)
    entered: list[str] = field(default_factory=list)  # modules whose forward has not ended

    @contextlib.contextmanager
    def on(self, model: nn.Module, batch: list[Tensor]) -> Iterator[Watch]:
        fresh = Fresh(batch, model.buffers())
        calls: dict[str, int] = {}
        handles = []
        weights = {id(p): name for name, p in model.named_parameters() if p.ndim > 1}
        modules = dict(model.named_modules())

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: self.entered.append(name)

        def product(left: Tensor, right: Tensor, output: Tensor) -> None:
            inside = any(isinstance(modules[name], WEIGHTED) for name in self.entered)
            known = [id(t) in weights for t in (left, right)]
            if sum(known) != 1 or inside or first_tensor(output) is None:
                return
            weight, source = (left, right) if known[0] else (right, left)
            name, place = weights[id(weight)], len(self.signals)
            call = calls.get(name, 0)
            calls[name] = call + 1
            amplitudes = amplitude(source.detach()), amplitude(output.detach())
            self.signals.append(Signal(name, "product", call, True, output.shape[-1], *amplitudes))
            if output.requires_grad:
                output.register_hook(lambda g: self.norms.update({place: float(g.double().norm())}))

        def leave(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                self.entered.pop()
                if isinstance(module, WEIGHTED + NORMALISING) and not transforming():
                    call = calls.get(name, 0)
                    calls[name] = call + 1
                    self._record(name, module, call, (args, kwargs), output, fresh)

            return hook

        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave(name), with_kwargs=True))
        try:
            with _Products(product, self.gates, fresh):
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def _record(
        self, name: str, module: nn.Module, call: int, given: Any, output: Any, fresh: Fresh
    ) -> None:
        source, result = first_tensor(given), first_tensor(output)
        if source is None or result is None:
            return
        weighted = isinstance(module, WEIGHTED)
        if weighted and call == 0 and (not self.signals or source in fresh):
            self.feeds.append(_feed(name, module, source.detach()))
        kind = type(module).__name__.lower()
        units = result.shape[_features(module, result)]
        amplitudes = amplitude(source.detach()), amplitude(result.detach())
        self.signals.append(Signal(name, kind, call, weighted, units, *amplitudes))


def first_tensor(value: Any) -> Tensor | None:
    """The first dense floating-point tensor in nested tuples, lists, mappings and dataclasses."""
    return next(filter(_is_plain, _nested.tensors(value)), None)


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and not tensor.is_nested
    return dense and tensor.is_floating_point() and bool(tensor.numel())


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses."""
    return list(_nested.tensors(value))


def amplitude(x: Tensor) -> float:
    """Rms over units of the deviation from the batch's mean; what differs between samples."""
    x = x.double()
    if x.ndim > 1 and x.shape[0] > 1:
        x = x - x.mean(0)
    return float(x.square().mean().sqrt())


def _features(module: nn.Module, x: Tensor) -> int:
    """The dimension of features, also of a sample without a batch around it."""
    spatial = len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else 0
    return x.ndim - 1 - spatial


def _feed(name: str, module: nn.Module, x: Tensor) -> Feed:
    channels = _features(module, x)
    source, x = x, x.double()
    filled = x[x != 0]
    rms = float(filled.square().mean().sqrt()) if filled.numel() else 0.0
    features = x.movedim(channels, 0).reshape(x.shape[channels], -1)
    spread = float(features.var(1, correction=0).mean()) if features.shape[1] > 1 else 0.0
    offset = (float(features.mean(1).square().mean()) / spread) ** 0.5 if spread else 0.0
    return Feed(name, rms, offset, channels, source)
