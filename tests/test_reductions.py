"""Reductions of samples and units."""

import math

import pytest
import torch

from stabilitykit._reductions import extreme

SHAPES = [(6,), (5, 6), (5, 6, 4), (5, 6, 7, 2), (5, 6, 1, 1), (2, 6, 15, 14), (3, 6, 2, 3, 2)]


@pytest.mark.parametrize("which", [torch.amax, torch.amin])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["contiguous", "reversed"])
def test_extremes_of_units_are_those_of_a_plain_loop(which, shape, order):
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if order == "reversed":
        z = z.permute(*range(z.dim())[::-1]).contiguous().permute(*range(z.dim())[::-1])
    for dimension in {min(1, z.dim() - 1), z.dim() - 1}:
        rows = [row.flatten().tolist() for row in z.movedim(dimension, 0)]
        pick = max if which is torch.amax else min
        assert extreme(which, z, dimension).tolist() == [pick(row) for row in rows]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_extremes_keep_nan(shape):
    z = torch.zeros(shape)
    z.view(-1)[-1] = math.nan
    assert extreme(torch.amax, z, min(1, z.dim() - 1)).isnan().tolist() == [False] * 5 + [True]
