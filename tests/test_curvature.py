"""Hessian-vector products against the matrix, its closed form, and differences of gradients."""

import numpy as np
import pytest
import torch

from stabilitykit.curvature import hvp

POINT, VECTOR = [-1.2, 1.0], [0.5, -2.0]


def rosenbrock(v):
    return (1 - v[..., 0]) ** 2 + 100 * (v[..., 1] - v[..., 0] ** 2) ** 2


def test_by_hand_by_the_matrix_and_by_differences():
    x, y = POINT
    by_hand = np.array([[2 - 400 * y + 1200 * x**2, -400 * x], [-400 * x, 200.0]]) @ VECTOR
    point, vector = (torch.tensor(v, dtype=torch.float64) for v in (POINT, VECTOR))
    matrix = torch.autograd.functional.hessian(rosenbrock, point)
    slope = torch.func.grad(rosenbrock)
    h = 1e-5
    differences = (slope(point + h * vector) - slope(point - h * vector)) / (2 * h)
    product = hvp(rosenbrock, POINT, VECTOR)
    np.testing.assert_allclose(product, by_hand, rtol=1e-14)
    np.testing.assert_allclose(product, matrix @ vector, rtol=1e-14)
    # truncation h²·|third derivatives| ≈ 1e-10·4e3, rounding 1e-16·1e3/h
    np.testing.assert_allclose(product, differences, rtol=1e-7)


def test_shape_and_dtype_of_the_point_are_kept():
    torch.manual_seed(0)
    weight, inputs = torch.randn(5, 3), torch.randn(7, 3)
    loss = lambda w: torch.tanh(inputs @ w.T).square().mean()  # noqa: E731
    vector = torch.randn(5, 3)
    product = hvp(loss, weight, vector)
    matrix = torch.autograd.functional.hessian(loss, weight).reshape(15, 15)
    assert product.shape == (5, 3)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.flatten(), matrix @ vector.flatten())
    assert not weight.requires_grad


def test_a_linear_function_has_no_curvature():
    assert hvp(lambda x: 3 * x[..., 0], [1.0, 2.0], [1.0, 1.0]).tolist() == [0, 0]
    # the gradient of x·y is (y, x), that of the unused third coordinate is constant
    assert hvp(lambda x: x[0] * x[1], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        (
            {"vector": [1.0]},
            ValueError,
            r"vector must have the shape of point, \[2\], got \[1\]",
        ),
        ({"point": "here"}, TypeError, "point must hold numbers, got 'here'"),
        ({"vector": "up"}, TypeError, "vector must hold numbers, got 'up'"),
        ({"point": [1j, 2.0]}, TypeError, r"point must hold numbers, got \[1j, 2.0\]"),
        ({"vector": torch.tensor([1j, 2.0])}, TypeError, "vector must hold numbers, got tensor"),
        ({"function": lambda x: x}, ValueError, r"it returned shape \[2\]"),
        ({"function": lambda x: 1.0}, TypeError, "must return a torch tensor, got float 1.0"),
        ({"function": lambda x: x.detach().sum()}, ValueError, "carries no gradient"),
        ({"function": None}, TypeError, "function must be callable, got None"),
    ],
)
def test_bad_input_is_named(changed, error, text):
    arguments = {"function": rosenbrock, "point": POINT, "vector": VECTOR} | changed
    with pytest.raises(error, match=text):
        hvp(**arguments)
