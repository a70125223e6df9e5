"""One-dimensional laws of a tensor's entries, as equally likely atoms.

The entries of a hidden tensor are taken as draws of one law, scaled by position. A linear layer
makes it Gaussian; relu, a residual sum or a maximum do not leave it so, and what a gradient meets
depends on the entry that it passes. 128 atoms of unit mean square carry both.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ATOMS = 128  # convention: halving or doubling changes predictions by less than 0.3 %
_SAMPLE = 1 << 16


class Law:
    """Atoms of unit mean square (or all zero) and whether they stand for a centred Gaussian."""

    def __init__(self, values: Tensor, gaussian: bool = False) -> None:
        square = values.square().mean()
        self.values = values / square.sqrt() if square > 0 else torch.zeros_like(values)
        self.gaussian = gaussian

    @property
    def mean(self) -> float:
        return float(self.values.mean())


def gaussian(mean: float = 0.0, std: float = 1.0) -> Law:
    """The law of mean + std·z; centred when the mean does not matter."""
    z = torch.special.ndtri((torch.arange(ATOMS, dtype=torch.float64) + 0.5) / ATOMS)
    z = z / z.square().mean().sqrt()
    centred = abs(mean) <= 1e-3 * std
    return Law(z if centred else mean + std * z, centred)


def empirical(values: Tensor) -> Law:
    """The law of given numbers."""
    flat = values.detach().flatten().to("cpu", torch.float64)
    if flat.numel() > _SAMPLE:
        flat = flat[:: -(-flat.numel() // _SAMPLE)]
    if not flat.numel() or not flat.isfinite().all():
        return Law(torch.full((ATOMS,), torch.nan, dtype=torch.float64))
    return Law(_buckets(flat.sort().values))


def _buckets(ordered: Tensor) -> Tensor:
    """Root mean squares, with the sign of the mean, of ATOMS equal shares of sorted numbers."""
    places = (torch.arange(ATOMS * 8, dtype=torch.float64) + 0.5) / (ATOMS * 8) * len(ordered)
    shares = ordered[places.long()].reshape(ATOMS, 8)
    return shares.square().mean(1).sqrt() * shares.mean(1).sign()


def combine(
    operation: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor
) -> tuple[Law, Tensor, float]:
    """The law of operation(a, b) for independent a and b.

    Args:
        operation: elementwise, such as torch.add.
        left: atoms of a, [ATOMS].
        right: atoms of b, [ATOMS].

    Returns:
        The law, the atom into which each pair of atoms falls [ATOMS, ATOMS], and the mean square.
    """
    both = operation(left[:, None], right[None, :]).flatten()
    order = both.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) // ATOMS
    shares = both[order].reshape(ATOMS, ATOMS)
    values = shares.square().mean(1).sqrt() * shares.mean(1).sign()
    return Law(values), place.reshape(ATOMS, ATOMS), float(both.square().mean())


def mixture(laws: list[Law], shares: list[float]) -> tuple[Law, list[Tensor]]:
    """The law of entries of several tensors, each up to its own scale.

    Args:
        laws: of the tensors.
        shares: of the tensors in the sum of squares, so that what a homogeneous function makes of
            that sum is exact.

    Returns:
        The law, and by tensor the atom into which each of its own falls [ATOMS].
    """
    whole = sum(shares)
    mass = [share / whole if 0 < whole < torch.inf else 1 / len(laws) for share in shares]
    values = torch.cat([law.values for law in laws])
    chances = torch.tensor(mass, dtype=torch.float64).repeat_interleave(ATOMS) / ATOMS
    order = values.argsort(stable=True)
    reached = chances[order].cumsum(0)
    points = (torch.arange(ATOMS * 8, dtype=torch.float64) + 0.5) / (ATOMS * 8)
    drawn = values[order][torch.searchsorted(reached, points).clamp(max=len(values) - 1)]
    place = torch.empty_like(order)
    place[order] = ((reached - chances[order] / 2) * ATOMS).long().clamp(0, ATOMS - 1)
    same = all(law.gaussian for law in laws)
    return gaussian() if same else Law(_buckets(drawn)), list(place.split(ATOMS))


def normalised(weights: Tensor | None) -> Tensor | None:
    """Weights of the atoms with mean 1; None, which stands for all equal, where all are 0."""
    if weights is None:
        return None
    mean = weights.mean()
    return weights / mean if mean > 0 else None


def relative(value: Tensor, square: Tensor) -> Tensor:
    """Values over the root of what is expected of their square; what is equal often stays equal."""
    tiny = torch.finfo(torch.float64).tiny
    result = value.detach().double() / square.clamp(min=tiny).sqrt()
    values, counts = value.detach().unique(return_counts=True)
    for one in values[counts * ATOMS > value.numel()]:
        result[value == one] = one.double() / square.mean().clamp(min=tiny).sqrt()
    return result


def by_rank(values: Tensor, gradient: Tensor, law: Law) -> Tensor | None:
    """How a measured gradient's square spreads over ranks of values, by atom of their law.

    Where atoms are equal, such as a relu's zeros, they stand for just the values that are equal,
    whose share need not be the law's.
    """
    if values.numel() < ATOMS:
        return None
    ordered, order = values.flatten().cpu().sort()
    total = gradient.flatten().cpu()[order].double().cumsum(0)
    total = torch.cat([total.new_zeros(1), total])
    atoms, places = law.values.sort()
    ends = {0: 0, ATOMS: len(ordered)}
    start = 0
    for size in torch.unique_consecutive(atoms.float(), return_counts=True)[1].tolist():
        if size > 1:
            value = ordered[(2 * start + size) * len(ordered) // (2 * ATOMS)]
            low, high = (
                torch.searchsorted(ordered, value),
                torch.searchsorted(ordered, value, right=True),
            )
            ends |= {start: int(low), start + size: int(high)}
        start += size
    known = sorted(ends)
    bounds = np.interp(np.arange(ATOMS + 1), known, [ends[k] for k in known])
    sums = np.interp(bounds, np.arange(len(total)), total.numpy())
    weights = torch.zeros(ATOMS, dtype=torch.float64)
    weights[places] = torch.from_numpy(np.diff(sums))
    return normalised(weights) if weights.isfinite().all() else None


def mixed_weights(parts: list[tuple[float, Tensor | None]]) -> Tensor | None:
    """Weights of a gradient that is the sum of several of these sizes; None where all are even."""
    if all(weights is None for _, weights in parts):
        return None
    one = torch.ones(ATOMS, dtype=torch.float64)
    sizes = torch.tensor([size for size, _ in parts], dtype=torch.float64)
    return normalised(sizes @ torch.stack([one if w is None else w for _, w in parts]))
