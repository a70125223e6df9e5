"""The data sets: their law, their split, and that no pixel turns into NaN."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from stabilitykit.datasets import digits, polynomial_regression


def test_the_regression_task_follows_its_formula():
    x, y = polynomial_regression(n=20000, noise=0.1, seed=3)
    assert (x.shape, y.shape, x.dtype, y.dtype) == ((20000, 2), (20000, 1)) + (torch.float32,) * 2
    residual = y[:, 0] - (2 * x[:, 0] ** 2 - x[:, 1] ** 2)
    # standard errors: noise/√n for a mean, noise/√(2n) for a standard deviation
    assert abs(residual.mean()) < 4 * 0.1 / 20000**0.5
    assert abs(residual.std() - 0.1) < 4 * 0.1 / 40000**0.5
    assert (x.mean(0).abs() < 4 / 20000**0.5).all()
    assert ((x.std(0) - 1).abs() < 4 / 40000**0.5).all()
    assert abs(torch.corrcoef(torch.cat([x, residual[:, None]], 1).T).triu(1)).max() < 4 / 141


def test_a_seed_fixes_the_draw_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first, again, other = (polynomial_regression(10, seed=s)[0] for s in (1, 1, 2))
    digits(seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.rand(2), expected)


def test_digits_are_scikit_learns_each_once():
    data = digits(standardize=False)
    assert [part.dtype for part in data] == [torch.float32, torch.int64] * 2
    assert [len(part) for part in data] == [1258, 1258, 539, 539]
    images, classes = load_digits(return_X_y=True)
    ours = torch.cat([torch.cat([data.train_x, data.test_x]),
                      torch.cat([data.train_y, data.test_y])[:, None]], 1)  # fmt: skip
    theirs = torch.cat([torch.tensor(images), torch.tensor(classes)[:, None]], 1)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_standardised_pixels_have_mean_zero_and_variance_one_or_are_zero():
    raw, data = digits(standardize=False), digits()
    assert all(part.isfinite().all() for part in data)
    constant = raw.train_x.std(0) == 0
    assert constant.any()
    assert (data.train_x[:, constant] == 0).all()
    assert (data.test_x[:, constant] == 0).all()
    moving = data.train_x[:, ~constant].double()
    torch.testing.assert_close(
        moving.mean(0), torch.zeros(moving.shape[1]).double(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        moving.var(0, correction=0), torch.ones(moving.shape[1]).double(), rtol=1e-6, atol=0
    )
    # the test images are shifted and scaled by the training images' numbers
    shift, scale = raw.train_x.mean(0), raw.train_x.std(0, correction=0)
    expected = ((raw.test_x - shift) / scale)[:, ~constant]
    torch.testing.assert_close(data.test_x[:, ~constant], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(data.test_y, raw.test_y)


def test_every_class_is_in_both_parts_of_any_seed():
    for seed in range(5):
        data = digits(seed=seed)
        assert len(data.train_y.unique()) == len(data.test_y.unique()) == 10


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: polynomial_regression(0), "n must be a whole number of at least 1, got 0"),
        (lambda: polynomial_regression(2.5), "n must be .*, got 2.5"),
        (lambda: polynomial_regression(5, noise=-1), "noise must be .* at least 0, got -1"),
        (lambda: polynomial_regression(5, noise=float("nan")), "noise must be .*, got nan"),
        (lambda: digits(test_fraction=0), "test_fraction must be a number between 0 and 1, got 0"),
        (lambda: digits(test_fraction=1.5), "test_fraction must be .*, got 1.5"),
        (lambda: digits(test_fraction=1e-6), "test_fraction=1e-06 leaves one part without images"),
        (lambda: digits(seed=1.5), "seed must be a whole number .*, got 1.5"),
        (lambda: polynomial_regression(5, seed=2**64), "seed must be .*, got 18446744073709551616"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: polynomial_regression("a"), "n must be .*, got 'a'"),
        (lambda: polynomial_regression(True), "n must be .*, got True"),
        (lambda: polynomial_regression(5, noise="a"), "noise must be .* at least 0, got 'a'"),
        (lambda: polynomial_regression(5, seed="a"), "seed must be a whole number .*, got 'a'"),
        (lambda: digits(test_fraction="a"), "test_fraction must be .* 0 and 1, got 'a'"),
        (lambda: digits(seed=None), "seed must be a whole number .*, got None"),
    ],
)
def test_bad_kinds_of_input_are_named(call, text):
    with pytest.raises(TypeError, match=text):
        call()


@pytest.mark.parametrize("seed", [np.int64(7), torch.tensor(7), -(2**63), 2**64 - 1])
def test_seeds_of_numpy_and_torch_and_at_the_ends(seed):
    x, _ = polynomial_regression(3, noise=np.float32(0.5), seed=seed)
    assert torch.equal(x, torch.randn(3, 2, generator=torch.Generator().manual_seed(int(seed))))
