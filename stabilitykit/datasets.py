"""The small data sets of the lessons: one regression task, one set of real images."""

from typing import NamedTuple

import torch
from torch import Tensor

from stabilitykit import _checks


class Digits(NamedTuple):
    """Images [n, 64] in float32 and their classes [n] in int64, split in two."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def polynomial_regression(
    n: int = 1000, noise: float = 0.01, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw y = 2·x₁² − x₂² + noise·N(0, 1) with standard-normal features.

    Args:
        n: how many points.
        noise: standard deviation of the noise.
        seed: seed of the draw; torch's global generator is left alone.

    Returns:
        x [n, 2] and y [n, 1], float32.

    Raises:
        ValueError: n below 1, a negative noise, a seed that torch does not take.
        TypeError: an argument that is no number.

    Examples:
        >>> x, y = polynomial_regression(n=5, noise=0.0)
        >>> x.shape, y.shape
        (torch.Size([5, 2]), torch.Size([5, 1]))
        >>> torch.equal(y[:, 0], 2 * x[:, 0] ** 2 - x[:, 1] ** 2)
        True
    """
    n = _checks.whole("n", n)
    noise = _checks.not_negative("noise", noise)
    generator = torch.Generator().manual_seed(_checks.seed("seed", seed))
    x = torch.randn(n, 2, generator=generator)
    y = 2 * x[:, :1] ** 2 - x[:, 1:] ** 2
    return x, y + noise * torch.randn(n, 1, generator=generator)


def digits(standardize: bool = True, test_fraction: float = 0.3, seed: int = 0) -> Digits:
    """Load scikit-learn's 1797 handwritten digits of 8 × 8 pixels, shuffled and split.

    Args:
        standardize: give each pixel mean 0 and variance 1 over the training images, with the same
            shift and scale for the test images. Pixels that never change become 0. Otherwise the
            pixels keep their values 0 to 16.
        test_fraction: the share of images held out, rounded to whole images.
        seed: seed of the shuffle.

    Returns:
        The images and classes, training part first.

    Raises:
        ValueError: a test fraction outside (0, 1), a seed that torch does not take.
        TypeError: an argument that is no number.

    Examples:
        >>> data = digits()
        >>> data.train_x.shape, data.test_x.shape
        (torch.Size([1258, 64]), torch.Size([539, 64]))
        >>> print(f"{data.train_x.square().mean():.4f}")  # 60 of the 64 pixels change
        0.9375
    """
    from sklearn.datasets import load_digits

    test_fraction = _checks.number(
        "test_fraction", test_fraction, "a number between 0 and 1", lambda v: 0 < v < 1
    )
    seed = _checks.seed("seed", seed)
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    x = torch.from_numpy(images)[order]
    y = torch.from_numpy(classes)[order].long()
    held_out = round(test_fraction * len(x))
    if not 0 < held_out < len(x):
        raise ValueError(f"test_fraction={test_fraction!r} leaves one part without images")
    train_x, test_x = x[held_out:], x[:held_out]
    if standardize:
        shift, scale = train_x.mean(0), train_x.std(0, correction=0)
        changes = scale > 0
        scale = torch.where(changes, scale, 1.0)
        train_x, test_x = ((part - shift) / scale * changes for part in (train_x, test_x))
    return Digits(train_x.float(), y[held_out:], test_x.float(), y[:held_out])
