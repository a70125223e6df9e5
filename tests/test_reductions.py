"""Reductions of samples and units."""

import math

import pytest
import torch

from stabilitykit._reductions import extreme, moments, reduce_moments, reduce_update

SHAPES = [(6,), (5, 6), (5, 6, 4), (5, 6, 7, 2), (5, 6, 1, 1), (2, 6, 15, 14), (3, 6, 2, 3, 2)]
LARGEST = {torch.float32: 1e38, torch.float64: 1e307, torch.bfloat16: 1e38, torch.float16: 3e4}


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


def exactly(row):
    """Mean, std and rms by Python's own arithmetic, in which sums are exact."""
    x = row.double().tolist()
    largest = max(map(abs, x)) or 1.0
    x = [value / largest for value in x]
    mean = math.fsum(x) / len(x)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in x) / len(x))
    rms = math.sqrt(math.fsum(value * value for value in x) / len(x))
    return mean * largest, std * largest, rms * largest


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0, 300.0])
@pytest.mark.parametrize("entries", [1, 2, 100, 1024])
def test_moments_of_short_and_whole_rows(dtype, offset, entries):
    generator = torch.Generator().manual_seed(entries)
    for size in (1.0, 1e-30, LARGEST[dtype] / 400):
        z = torch.randn(entries, generator=generator, dtype=torch.float64) + offset
        row = z.mul(size).to(dtype)
        filled = torch.cat([row, row[:1].expand(1024 - entries)])
        *found, bad = moments(reduce_moments(filled[None])[0].tolist(), entries, 1024)
        mean, std, rms = exactly(row)
        assert bad == 0
        assert found == pytest.approx([mean, std, rms], rel=1e-9, abs=1e-9 * rms)


def test_a_constant_row_has_no_deviation():
    for value in (0.1, 1e-40, 3e38):
        row = torch.full((1, 1024), value)
        assert moments(reduce_moments(row)[0].tolist(), 1024, 1024)[1] == 0


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
@pytest.mark.parametrize("places", [[0], [1], [0, 5], [99], range(100)], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite_are_counted_once(dtype, places, value):
    """Also the first one, which is repeated to the end of a short row."""
    row = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    row[list(places)] = value
    filled = torch.cat([row, row[:1].expand(924)])
    *found, bad = moments(reduce_moments(filled[None])[0].tolist(), 100, 1024)
    assert bad == len(places)
    assert all(map(math.isnan, found))


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
def test_norms_of_a_change_and_of_what_was_before(dtype):
    before, after = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = [
        [row.double().norm().item() for row in (old, new.double() - old.double())]
        for old, new in zip(before, after, strict=True)
    ]
    found = reduce_update(torch.stack([before, after]))
    assert found.tolist() == [pytest.approx(pair, rel=1e-6) for pair in expected]
