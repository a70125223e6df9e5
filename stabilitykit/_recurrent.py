"""Recurrent layers: as deep as their sequence is long, with gates that may be shut; and cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from stabilitykit import _findings as f
from stabilitykit._findings import Finding, finding
from stabilitykit._measure import tensors
from stabilitykit._remedies import again
from stabilitykit._verdicts import BOUNDED

_LSTM, _GRU = ("sigmoid", "sigmoid", "tanh", "sigmoid"), ("sigmoid", "sigmoid", "tanh")
_GATES = {nn.LSTM: _LSTM, nn.LSTMCell: _LSTM, nn.GRU: _GRU, nn.GRUCell: _GRU}


def recurrent(model: nn.Module, run: Callable[[], Any]) -> list[Finding]:
    """saturated and exploding-gradient, within recurrent layers at their first call.

    Nothing is said of gradients that fade through time: what a layer learns from the last steps is
    enough to train it, and torch's default weights forget within tens of steps.

    Args:
        model: any.
        run: a forward pass.
    """
    kinds = (nn.RNNBase, nn.RNNCellBase)
    layers: dict[nn.Module, str] = {m: n for n, m in model.named_modules() if isinstance(m, kinds)}
    if not layers:
        return []
    calls: dict[nn.Module, tuple[Any, Any]] = {}

    def seen(module: Any, args: Any, kwargs: Any) -> None:
        calls.setdefault(module, (args, kwargs))

    handles = [m.register_forward_pre_hook(seen, with_kwargs=True) for m in layers]
    try:
        run()  # with autograd, since forward may differentiate
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Finding] = {}
    for layer, (args, kwargs) in calls.items():
        given = [*args, *(kwargs[k] for k in ("input", "hx") if k in kwargs)]
        for one in _judge(layers[layer], layer, *given[:2]):
            found.setdefault(one.code, one)
    return list(found.values())


def _judge(name: str, layer: nn.Module, x: Any, state: Any = None) -> list[Finding]:
    remedy = again(name, type(layer).__name__.lower())
    found = []
    share, expected = shut(layer, x)
    if share > f.SATURATED:
        found.append(finding("saturated", name, share, expected, remedy))
    if not isinstance(layer, nn.RNNBase):
        return found  # the calls of a cell are seen one by one
    steps = len(x.batch_sizes) if isinstance(x, PackedSequence) else x.shape[layer.batch_first]
    if not isinstance(x, PackedSequence) and x.ndim == 2:
        steps = len(x)
    walk = f.WALK * steps / layer.hidden_size
    limit = f.SCALES + f.DEVIATIONS * math.sqrt(walk) / 2  # as of so many layers, see `allowance`
    growth = growing(layer, x, state)
    if growth > limit:
        severity = "error" if growth > 2 * limit else "warning"
        ratio = math.exp(min(growth, 700))
        found.append(finding("exploding-gradient", name, ratio, 1.0, remedy, severity))
    return found


def shut(layer: nn.Module, x: Any) -> tuple[float, float]:
    """The share of gates and states that the input alone holds where they are flat, and expected.

    Expected is the share at unit normal pre-activations.
    """
    kinds = next((k for kind, k in _GATES.items() if isinstance(layer, kind)), ("tanh",))
    if getattr(layer, "nonlinearity", "tanh") == "relu":
        return 0.0, 0.0
    weights: Any = layer
    end = "_l0" if isinstance(layer, nn.RNNBase) else ""
    matrix = getattr(weights, f"weight_ih{end}")
    biases = [getattr(weights, f"bias_{of}{end}") for of in ("ih", "hh")] if weights.bias else []
    x = x.data if isinstance(x, PackedSequence) else x
    z = (nn.functional.linear(x, matrix) + sum(biases)).detach()
    z = z.unflatten(-1, (len(kinds), -1))
    limits = torch.tensor([BOUNDED[kind] for kind in kinds], device=z.device)
    share = float((z.abs() > limits[:, None]).double().mean())
    return share, sum(math.erfc(BOUNDED[k] / math.sqrt(2)) for k in kinds) / len(kinds)


def growing(layer: nn.RNNBase, x: Any, state: Any = None) -> float:
    """The log of the factor by which a gradient grows from the last state to the first one.

    It is ‖vᵀ ∂s_T/∂s_0‖ / ‖v‖ for a normal v over all states of the batch.

    Examples:
        A state that is doubled at each of five steps:

        >>> layer = nn.RNN(1, 1, nonlinearity="relu", bias=False)
        >>> _ = layer.weight_hh_l0.data.fill_(2.0), layer.weight_ih_l0.data.fill_(1.0)
        >>> round(growing(layer, torch.ones(5, 1)) / math.log(2), 3)
        5.0
    """
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        given = state if state is not None else _zeros(layer(x)[1])
        start = [t.detach().clone().requires_grad_() for t in tensors(given)]
        end = tensors(layer(x, tuple(start) if isinstance(layer, nn.LSTM) else start[0])[1])
        fixed = torch.Generator().manual_seed(0)
        drawn = [torch.randn(t.shape, generator=fixed).to(t) for t in end]
        slopes = torch.autograd.grad(end, start, drawn, allow_unused=True)
    top, bottom = _norm([s for s in slopes if s is not None]), _norm(drawn)
    return math.log(top / bottom) if top > 0 else -math.inf


def _zeros(state: Any) -> Any:
    return [torch.zeros_like(t) for t in tensors(state)]


def _norm(parts: list[Tensor]) -> float:
    return float(sum(float(p.double().square().sum()) for p in parts) ** 0.5)
