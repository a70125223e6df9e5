"""Second moments of softmax over Gaussian logits."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_DRAWS = 512  # convention: E[Σ a²] is then within 1 % at τ = 1
_NODES = 24  # convention: numbers of keys between which n·E[Σ a²] is interpolated


def softmax_moments(variance: float, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of softmax weights a over n independent Gaussian logits, for every n in `keys`.

    Returns:
        E[Σ a²]; E[Cov²], the mean square under a of two independent values' covariance; and
        E[Σ a²(u − ū)²] for values u of variance 1, with ū = Σ a·u.
    """
    counts = keys.flatten().double().cpu()
    ends = counts.aminmax()
    nodes = torch.unique(
        torch.logspace(math.log2(ends.min), math.log2(ends.max), _NODES, base=2.0).round()
    )
    rows = []
    generator = torch.Generator().manual_seed(0)
    for n in nodes.int().tolist():
        draws = max(_DRAWS // 8, min(_DRAWS, (1 << 17) // n))
        z = torch.randn(draws, n, generator=generator, dtype=torch.float64)
        a = (torch.cat([z, -z]) * variance**0.5).softmax(1)  # symmetric: first order is exact
        p = a.square().sum(1, keepdim=True)
        cube = (a**3).sum(1, keepdim=True)
        # Σ a_j a_k (δ_jk − a_j − a_k + p)², multiplied out
        covariance = p - 2 * cube + p.square()
        apart = (a.square() * (1 - 2 * a + p)).sum(1)
        rows.append([float(v.mean()) * n for v in (p, covariance, apart)])
    table = np.array(rows)
    return tuple(  # type: ignore[return-value]
        torch.from_numpy(np.interp(counts.log2(), nodes.double().log2(), table[:, column]))
        .div(counts)
        .reshape(keys.shape)
        .to(keys.device)
        for column in range(3)
    )
