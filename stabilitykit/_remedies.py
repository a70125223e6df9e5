"""What to do about a finding: sentences with calls that run as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stabilitykit._measure import WEIGHTED, Watch


def owner(layer: str) -> str:
    """The expression for a module by its name."""
    return f"model.get_submodule({layer!r})" if layer else "model"


def parameter(name: str) -> str:
    """The expression for a parameter by its name."""
    return f"model.get_parameter({name!r})"


def rescaling(model: nn.Module, records: Sequence[Any], watch: Watch) -> str:
    """What mends the scale of all layers."""
    modules = dict(model.named_modules())
    kinds = [modules.get(s.layer) for s in watch.signals]
    if not any(isinstance(m, WEIGHTED) for m in kinds):
        return (
            "Draw the weights again with the gain of ReLU: `for p in model.parameters(): "
            "nn.init.orthogonal_(p, 2**0.5) if p.ndim > 1 else None`."
        )
    calls = []
    # `lsuv` leaves recurrent weights and those of attention as they are.
    for recurrent in ("RNNBase", "RNNCellBase"):
        if any(isinstance(m, getattr(nn, recurrent)) for m in kinds):
            chosen = f"for m in model.modules() if isinstance(m, nn.{recurrent})"
            calls.append(f"[m.reset_parameters() {chosen}]")
    if any(isinstance(m, nn.MultiheadAttention) for m in kinds):
        calls.append(
            "[nn.init.xavier_uniform_(p) for n, p in model.named_parameters() "
            "if 'in_proj_weight' in n]"
        )
    if any(isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) for m in model.modules()):
        calls.append("sk.lsuv(model, batch)")
    last = max((i for i, r in enumerate(records) if r.saturated is None), default=0)
    gates = sum(kind == "sigmoid" for kind, _ in watch.gates)
    if sum(r.kind == "sigmoid" for r in records[:last]) > gates:
        said = "Replace the sigmoids between layers by nn.ReLU(), then draw all weights again:"
    else:
        said = "Draw all weights again:"
    return f"{said} `{'; '.join(calls)}`."


def again(layer: str, kind: str) -> str:
    """Draw a layer's weights again.

    Args:
        layer: its name.
        kind: lower-case class name.
    """
    call = f"{owner(layer)}.reset_parameters()"
    if kind == "multiheadattention" or kind.startswith("parametrized"):  # which that leaves as is
        weights = f"for p in {owner(layer)}.parameters() if p.ndim > 1"
        call = f"[nn.init.xavier_uniform_(p) {weights}]"
    return f"Draw that layer's weights again: `{call}`."


def redrawn(model: nn.Module, name: str) -> str:
    """Draw one parameter again, which holds what is not finite."""
    layer = name.rpartition(".")[0]
    module = model.get_submodule(layer)
    if hasattr(module, "reset_parameters") and not hasattr(module, "parametrizations"):
        return again(layer, "")
    weight = model.get_parameter(name).detach()
    finite = weight[weight.isfinite()]
    if not weight.is_complex() and finite.numel() and bool((finite > 0).all()):
        call = f"nn.init.ones_({parameter(name)})"
    elif weight.ndim > 1:
        call = f"nn.init.xavier_uniform_({parameter(name)})"
    else:
        call = f"nn.init.zeros_({parameter(name)})"
    return f"Draw that parameter again: `{call}`."


def unbias(module: nn.Module | None, layer: str) -> str:
    """Take the bias to zero where it outweighs the weights, else nothing."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        return ""
    rows = weight.detach().flatten(1).norm(dim=1) if weight.ndim > 1 else weight.detach().abs()
    if float(bias.detach().abs().mean()) <= float(rows.mean()):
        return ""
    return f"Take that layer's bias back to zero: `nn.init.zeros_({owner(layer)}.bias)`."


def frozen(model: nn.Module, names: Sequence[str]) -> str:
    """Freeze these parameters: whole modules, where all that they hold is among them."""
    chosen, calls = set(names), dict[str, None]()
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            module = ".".join(parts[:length])
            own = [n for n, p in model.get_submodule(module).named_parameters(module)]
            if chosen.issuperset(own) and own:
                calls[f"{owner(module)}.requires_grad_(False)"] = None
                break
        else:
            calls[f"{parameter(name)}.requires_grad_(False)"] = None
    return "; ".join(calls)


# Functions that are infinite or undefined at some finite arguments, and what keeps away from these.
_CAREFUL = {
    **dict.fromkeys(
        ("log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "pow", "norm", "std", "var"),
        "Keep what {0} gets above 0, by clamp_min(1e-8) or by adding 1e-8",
    ),
    **dict.fromkeys(
        ("div", "rdiv", "truediv", "rtruediv", "true_divide", "divide", "normalize"),
        "Keep the divisor away from 0, by clamp_min(1e-8) or by adding 1e-8",
    ),
    **dict.fromkeys(
        ("acos", "asin", "arccos", "arcsin", "atanh", "arctanh", "logit"),
        "Keep what {0} gets inside its domain, by clamp a little within its ends",
    ),
    **dict.fromkeys(
        ("exp", "exp2", "expm1", "cosh", "sinh"),
        "Subtract the largest entry first, as softmax and logsumexp do, or clamp what {0} gets",
    ),
    **dict.fromkeys(
        ("cross_entropy", "nll_loss"),
        "Leave at least one target that is not ignored, since the mean over none is 0/0",
    ),
    **dict.fromkeys(
        ("softmax", "log_softmax", "scaled_dot_product_attention", "multi_head_attention_forward"),
        "Leave at least one entry of each row unmasked, since {0} over nothing is 0/0",
    ),
}


def careful(function: str, place: str) -> str:
    """How to keep a function finite; nothing for those that only grow large with what they get."""
    if function not in _CAREFUL:
        return ""
    where = "in loss_fn" if place == "loss" else f"at {place!r}" if place else "in the model"
    said = _CAREFUL[function].format(function)
    return f"{said}, {where}."
