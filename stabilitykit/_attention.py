"""How second moments pass attention and products of hidden tensors.

Over random weights the logits of one query are Gaussian, of variance τ² = scale²·d·E[q²]·E[k²],
and correlated between keys as the keys are. So E[Σ a²] of softmax is a Gaussian mean, and what
attention makes of the values follows from it and from how far tokens agree: Gram matrices of
queries, keys, values and of the output's gradient, divided by their diagonal, are read from the
pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stabilitykit import _law
from stabilitykit._anchor import turned
from stabilitykit._fields import Field, adjoint
from stabilitykit._rules import moved, rule, weighted
from stabilitykit._softmax import softmax_moments
from stabilitykit._tape import State, Tape


def gram(value: Tensor) -> Tensor:
    """Agreement of tokens, [..., 1, T, T] for [..., heads, T, d], with a diagonal of mean 1."""
    value = value.detach().double()
    products = value @ value.mT
    if products.dim() > 3:
        products = products.mean(-3, keepdim=True)
    level = products.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return products / level.clamp(min=torch.finfo(torch.float64).tiny)


def attend(
    tape: Tape, states: tuple[State, State, State], heads: tuple[Tensor, Tensor, Tensor],
    allowed: Tensor | None, scale: float, dropout: float, gradient: Any,
) -> State:  # fmt: skip
    """softmax(scale·q·kᵀ)·v, for q [..., T, d] and k, v [..., S, d].

    Args:
        states: of q, k, v.
        heads: q, k, v of the pass.
        allowed: which keys a query sees, bool that broadcasts to [..., T, S]; None for all.
        dropout: share of the attention weights that is dropped.
        gradient: gives the output's measured gradient as [..., T, d], or None.
    """
    query, key, value = states
    q, k, v = heads
    width, length = q.shape[-1], k.shape[-2]
    if allowed is None:
        allowed = torch.ones((), dtype=torch.bool, device=q.device)
    sees = allowed.expand(*torch.broadcast_shapes(allowed.shape, (q.shape[-2], length))).double()
    count = sees.sum(-1, keepdim=True).clamp(min=1)
    of_q, of_k, of_v = gram(q), gram(k), gram(v)

    def rows_of(agreement: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean by key over the seen keys, mean of all, and what each key has apart from it."""
        mean = sees @ agreement / count
        whole = (sees * mean).sum(-1, keepdim=True) / count
        own = agreement.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        return mean, whole, sees * (own - 2 * mean + whole).clamp(min=0)

    mean_k, whole_k, apart_k = rows_of(of_k)
    mean_v, whole_v, apart_v = rows_of(of_v)
    several = (count - 1).clamp(min=1)
    level_q, level_k, level_v = query.scale, key.scale, value.scale
    between = (apart_k.sum(-1, keepdim=True) / several).mean() / (count > 1).double().mean().clamp(
        min=1e-12
    )
    tau = scale**2 * width * level_q * level_k * float(between)
    if not math.isfinite(tau):
        tau = 0.0  # the values' square is not finite either
    shared, covariance, squares = softmax_moments(tau, count)
    shared = shared / (1 - dropout) if dropout < 1 else shared
    same = shared / count
    other = (1 - shared * (1 - dropout)) / (count * (count - 1)).clamp(min=1)

    def weigh(agreement: Tensor) -> Tensor:
        """Σ E[a_j a_j'] G_jj' by query, [..., T, 1]."""
        diagonal = agreement.diagonal(dim1=-2, dim2=-1)[..., None]
        on = sees @ diagonal
        whole = ((sees @ agreement) * sees).sum(-1, keepdim=True)
        return same * on + other * (whole - on)

    square = (level_v * weigh(of_v)).expand(*q.shape[:-1], v.shape[-1])
    result = State(square, _law.gaussian())

    def back() -> None:
        if result.gradient is None:
            return
        given: Field = result.gradient.expand(square.shape).mean(-1, keepdim=True)
        level = float(given.mean())
        measured = gradient()
        together = (
            gram(measured) if measured is not None else torch.eye(q.shape[-2]).to(given) * 1.0
        )
        together = together * level
        # E[a_ij a_i'j], alike for the keys j that both see
        variance = (same - 1 / count**2).clamp(min=0).sqrt()
        mine = torch.eye(q.shape[-2], dtype=torch.float64, device=q.device)
        pairs = 1 / (count * count.mT) + (of_q * (1 - mine) + mine) * (variance * variance.mT)

        def collect(agreement: Tensor) -> Tensor:
            """Σ E[a_ij a_i'j] G_ii' by key, [..., S, 1]."""
            return ((sees.mT @ (pairs * agreement)) * sees.mT).sum(-1, keepdim=True)

        value.receive(collect(together).expand(v.shape))
        factor = scale**2 * width * level_v
        # The covariance of values and keys under a, for how far those that are seen agree;
        # Σ of the product of doubly centred matrices, multiplied out.
        both = ((sees @ (of_v * of_k)) * sees).sum(-1, keepdim=True)
        both = both - 2 * count * (sees * mean_v * mean_k).sum(-1, keepdim=True)
        both = both + count**2 * whole_v * whole_k
        independent = several  # what `both` is where tokens do not agree
        query.receive((factor * level_k * given * covariance * both / independent).expand(q.shape))
        spread = (squares * apart_v / several).sqrt()
        collected = (spread.mT @ (together * of_q) * spread.mT).sum(-1, keepdim=True)
        key.receive((factor * level_q * collected).expand(k.shape))

    tape.step(back)
    return result


def _biased(*masks: Tensor | None) -> bool:
    """Whether a mask adds to logits that are seen, which is not modelled."""
    floats = [mask for mask in masks if mask is not None and mask.is_floating_point()]
    return any(bool((mask[mask > -1e4] != 0).any()) for mask in floats)


def _seen(
    mask: Tensor | None, causal: bool, queries: int, keys: int, device: torch.device
) -> Tensor | None:
    seen = None
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask > -1e4
    if causal:
        lower = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
        seen = lower if seen is None else seen & lower
    return seen


@rule("scaled_dot_product_attention")
def _attention(
    tape: Tape, out: Tensor, query: Any, key: Any, value: Any, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> State | None:  # fmt: skip
    q, k, v = tape.of(query), tape.of(key), tape.of(value)
    if q is None or k is None or v is None or enable_gqa or _biased(attn_mask):
        return None
    edge = tape.watch(out)
    seen = _seen(attn_mask, is_causal, query.shape[-2], key.shape[-2], query.device)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads = (query, key, value)
    result = attend(tape, (q, k, v), heads, seen, scale, dropout_p, lambda: tape.signed(edge))
    result.origin.made([q, k, v], _mixed_tokens)
    return result


def _mixed_tokens(fields: list[Field]) -> Field | None:
    """Units of the values, where all tokens have the same; logits are sums over many units."""
    value = fields[2]
    first = value[..., :1, :]
    return first if bool((value == first).all()) else None


@rule("multi_head_attention_forward")
def _multi_head(
    tape: Tape, out: Any, query: Any, key: Any, value: Any, embed_dim_to_check: int,
    num_heads: int, in_proj_weight: Tensor | None, in_proj_bias: Tensor | None,
    bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: float, out_proj_weight: Tensor,
    out_proj_bias: Tensor | None, training: bool = True, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None,
    static_k: Any = None, static_v: Any = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> list[State] | None:  # fmt: skip
    sources = (query, key, value)
    found = [tape.of(s) or State.measured(s, known=True) for s in sources]
    if bias_k is not None or add_zero_attn or static_k is not None or query.dim() != 3:
        return None
    if _biased(attn_mask, key_padding_mask):
        return None
    weights: Any = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight and in_proj_weight is not None:
        weights = in_proj_weight.chunk(3)
    biases: Any = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    states, heads = [], []
    for source, state, weight, bias in zip(sources, found, weights, biases, strict=True):
        plain = functional.linear(source.detach(), weight.detach(), bias)
        shape = plain.shape

        def spread(field: Field, shape: Any = shape) -> Field:
            return field.sum(-1, keepdim=True).expand(shape)

        def split(field: Field) -> Field:  # [T, B, E] to [B, heads, T, d]
            return field.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)

        projected = weighted(tape, state, plain, spread, weight, bias)
        head = split(plain)
        part = moved(tape, projected, head, split)
        assert isinstance(part, State)
        states.append(part)
        heads.append(head)
    result = out[0]
    edge = tape.watch(result)
    batch, length = query.shape[1], key.shape[0]
    if attn_mask is not None:
        attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask > -1e4
        if attn_mask.dim() == 3:
            attn_mask = attn_mask.view(batch, num_heads, -1, length)
    seen = _seen(attn_mask, is_causal and attn_mask is None, query.shape[0], length, query.device)
    if key_padding_mask is not None:
        padded = key_padding_mask
        real = ~padded if padded.dtype == torch.bool else padded > -1e4
        real = real.view(batch, 1, 1, length)
        seen = real if seen is None else seen & real

    def tokens() -> Tensor | None:
        # The output layer is linear and random: it keeps how far tokens agree.
        gradient = tape.signed(edge)
        return None if gradient is None else gradient.transpose(0, 1).unsqueeze(1)

    mixed = attend(
        tape, (states[0], states[1], states[2]), (heads[0], heads[1], heads[2]), seen,
        heads[0].shape[-1] ** -0.5, dropout_p if training else 0.0, tokens,
    )  # fmt: skip

    def join(field: Field) -> Field:
        return field.permute(2, 0, 1, 3).flatten(-2)

    joined = moved(tape, mixed, query, join)
    assert isinstance(joined, State)

    def widen(field: Field) -> Field:
        return field.sum(-1, keepdim=True).expand(result.shape)

    final = weighted(tape, joined, result, widen, out_proj_weight, out_proj_bias)
    extra = [State.measured(w, modelled=False) for w in out[1:] if w is not None]
    return [final, *extra]


@rule("matmul", "rmatmul", "bmm", "mm")
def _product(tape: Tape, out: Tensor, a: Any, b: Any, *, function: Any) -> State | None:
    """Products with weights, and of two hidden tensors that are independent up to an agreement.

    For two hidden tensors E[(Σ a b)²] = Σ E[a²] E[b²] holds where tokens do not agree; the ratio to
    it is read from the pass, forward and back.
    """
    left, right = tape.of(a), tape.of(b)
    if function.__name__ == "rmatmul" or left is None or b.dim() < 2 or a.dim() < 1:
        return None
    if right is None:
        if not b.requires_grad or turned(tape, a, b, -2):
            return None  # no weight, or one that is not independent of a
        return weighted(
            tape, left, out, lambda f: f.sum(-1, keepdim=True).expand(out.shape), b, None
        )
    if left.known or right.known:
        return None
    edges = [tape.watch(t) for t in (out, a, b)]
    independent = a.detach().double().square() @ b.detach().double().square()
    agreement = _ratio(out.detach().double().square(), independent)
    result = State((left.square @ right.square) * agreement, _law.gaussian())

    def back() -> None:
        if result.gradient is None:
            return
        after, *before = (tape.measured(e) for e in edges)
        maps = (
            (left, a, lambda f: f @ right.square, lambda f: f @ b.detach().double().square()),
            (right, b, lambda f: left.square @ f, lambda f: a.detach().double().square() @ f),
        )
        for (state, tensor, expected, actual), found in zip(maps, before, strict=True):
            gradient = adjoint(expected, tensor.shape, result.gradient.expand(out.shape))
            if gradient is None or after is None or found is None:
                continue
            plain = adjoint(actual, tensor.shape, after)
            state.receive(gradient * (_ratio(found, plain) if plain is not None else 1.0))

    tape.step(back)
    return result


def _ratio(measured: Tensor, independent: Tensor) -> float:
    whole = float(independent.mean())
    return float(measured.mean()) / whole if whole > 0 else 1.0
