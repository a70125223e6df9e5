"""Multilayer perceptrons: one, or many side by side."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stabilitykit import _checks
from stabilitykit._activations import NAMED, _by_name


class _Elementwise(nn.Module):
    """A named or callable activation as a module, so that hooks see it and repr names it."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)

    def extra_repr(self) -> str:
        return self.name


def as_module(activation: Any) -> nn.Module:
    if isinstance(activation, str):
        name, function = _by_name(activation, {})
        _made(name, lambda: function(torch.zeros(1)))
        return _Elementwise(name, NAMED[name])
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        module: nn.Module = _made(activation.__name__, activation)
        return module
    if isinstance(activation, nn.Module):
        return activation
    if callable(activation):
        return _Elementwise(getattr(activation, "__name__", repr(activation)), activation)
    raise TypeError(
        f"activation must be a name, an nn.Module or a callable on tensors, got {activation!r}"
    )


def _made(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except TypeError as error:  # it has options without a default
        raise TypeError(
            f"activation={name} needs options; expected a module made with them or a callable "
            f"({error})"
        ) from error


def checked_widths(widths: Iterable[int]) -> list[int]:
    expected = "at least two positive whole numbers, from inputs to outputs"
    sizes = _listed(widths)
    if sizes is None:
        raise TypeError(f"widths must be {expected}, got {widths!r}")
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in sizes]
    if len(sizes) < 2 or not all(whole) or min(sizes) < 1:
        raise ValueError(f"widths must be {expected}, got {widths!r}")
    return [int(n) for n in sizes]


def _listed(values: Any) -> list[Any] | None:
    """The entries, None of what has none; a text is one value."""
    try:
        return None if isinstance(values, (str, bytes)) else list(values)
    except TypeError:
        return None


class MLP(nn.Module):
    """A multilayer perceptron: linear layers with an activation between them, none after the last.

    The layers are made in order by `nn.Linear`, so torch's seed fixes the weights.

    Args:
        widths: units from the inputs to the outputs; n + 1 widths make n linear layers.
        activation: a name of torch's ("relu", "tanh", …), an `nn.Module` or its class, or a
            callable on tensors. One module serves all layers.
        bias: whether the layers have biases.

    Attributes:
        linears: the `nn.Linear` layers.
        activation: the module between them.

    Raises:
        ValueError: widths that are not positive whole numbers, an unknown activation.
        TypeError: widths that are no list, an activation that is no function or needs options.

    Examples:
        >>> _ = torch.manual_seed(420)
        >>> network = MLP([2, 4, 4, 4, 1], "sigmoid")
        >>> [[round(w, 4) for w in row] for row in network.linears[0].weight.tolist()]
        [[0.4318, -0.4256], [0.673, -0.5617], [-0.2157, -0.4873], [0.5453, 0.2653]]
        >>> network(torch.zeros(10, 2)).shape
        torch.Size([10, 1])
    """

    def __init__(self, widths: Sequence[int], activation: Any, *, bias: bool = True) -> None:
        super().__init__()
        sizes = checked_widths(widths)
        self.linears = nn.ModuleList(nn.Linear(n, m, bias=bias) for n, m in pairwise(sizes))
        self.activation = as_module(activation)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.linears
        for linear in hidden:
            x = self.activation(linear(x))
        return last(x)


def listed_seeds(seeds: int | Iterable[int]) -> list[int]:
    """The seeds 0, 1, … of a count, or those given."""
    if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool):
        listed: list[Any] | None = list(range(int(seeds)))
    else:
        listed = _listed(seeds)
    if not listed:
        raise ValueError(f"seeds must be a positive count or a list of seeds, got {seeds!r}")
    return [_checks.seed(f"seeds[{place}]", seed) for place, seed in enumerate(listed)]


class Ensemble(nn.Module):
    """Independent perceptrons of one shape, computed side by side.

    Network i is `MLP(widths, activation, bias=bias)` as made after `torch.manual_seed(seeds[i])`.
    Train all at once with `fit` and a loss that gives one number a network: the networks share
    the batches and nothing else.

    Args:
        widths: as in `MLP`.
        activation: as in `MLP`.
        seeds: one seed a network, or how many networks (seeds 0, 1, …).
        bias: as in `MLP`.

    Attributes:
        weights: parameters [networks, out, in], one a layer.
        biases: parameters [networks, 1, out], one a layer; empty without biases.

    Raises:
        ValueError: as `MLP`, and no seeds or seeds that torch does not take.
        TypeError: as `MLP`, and seeds that are no numbers.

    Examples:
        >>> many = Ensemble([2, 4, 1], "tanh", seeds=300)
        >>> many(torch.ones(10, 2)).shape
        torch.Size([300, 10, 1])
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Any,
        seeds: int | Iterable[int] = 100,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        drawn = listed_seeds(seeds)
        # torch.manual_seed takes a millisecond for all the other devices.
        on_cpu = torch.get_default_device().type == "cpu"
        manual_seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            one = MLP(widths, activation, bias=bias)
            layers: list[Any] = list(one.linears)
            self.activation = one.activation
            self.weights = nn.ParameterList(
                torch.empty(len(drawn), *linear.weight.shape) for linear in layers
            )
            self.biases = nn.ParameterList(
                torch.empty(len(drawn), 1, linear.out_features) for linear in layers if bias
            )
            for network, seed in enumerate(drawn):
                manual_seed(seed)
                for layer, linear in enumerate(layers):
                    linear.reset_parameters()
                    self.weights[layer][network] = linear.weight
                    if bias:
                        self.biases[layer][network, 0] = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [networks, batch, out] for inputs [batch, in] or [networks, batch, in]."""
        networks, _, width = self.weights[0].shape
        leading = x.shape[:-2] in ((), (1,), (networks,))
        if not (leading and x.ndim >= 2 and x.shape[-1] == width):
            raise ValueError(
                f"inputs must have shape [batch, {width}] or [{networks}, batch, {width}], "
                f"got {list(x.shape)}"
            )
        x = x.expand(networks, *x.shape[-2:])
        last = len(self.weights) - 1
        biases = self.biases or [None] * (last + 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, biases, strict=True)):
            x = x @ weight.mT if bias is None else torch.baddbmm(bias, x, weight.mT)
            if layer < last:
                x = self.activation(x)
        return x
