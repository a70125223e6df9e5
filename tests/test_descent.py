"""Descents against closed forms, published numbers and torch.optim; Newton's roots."""

import numpy as np
import pytest
import torch

from stabilitykit.descent import METHODS, descend, newton_root

SCALES = torch.tensor([10.0, 1.0], dtype=torch.float64)


def bowl(v):
    return (SCALES * v**2).sum(-1)


def circle(v):
    return v[..., 0] ** 2 + v[..., 1] ** 2


def ellipse(v):
    return 20 * v[..., 0] ** 2 + v[..., 1] ** 2


def rosenbrock(v):
    return (1 - v[..., 0]) ** 2 + 100 * (v[..., 1] - v[..., 0] ** 2) ** 2


# Printed by the source on gradient descent after ten steps from (-60, 70) in float32, whose
# rounding shows in the fourth decimal: exact are -39.88996 and -88.81466.
PUBLISHED = [
    (circle, 0.02, ("-39.8899", "46.5383")),
    (ellipse, 0.02, ("-6.1440e-06", "46.5383")),
    (circle, 0.051, ("-20.4604", "23.8705")),
    (ellipse, 0.051, ("-88.8146", "23.8705")),
]


@pytest.mark.parametrize(("function", "lr", "published"), PUBLISHED)
def test_published_ends_of_gradient_descent(function, lr, published):
    path = descend(function, [-60, 70], "gd", lr=lr, steps=10)
    single = torch.tensor([-60.0, 70.0], requires_grad=True)
    optimizer = torch.optim.SGD([single], lr=lr)
    for _ in range(10):
        optimizer.zero_grad()
        function(single).backward()
        optimizer.step()
    for ours, theirs, text in zip(path.points[-1], single.tolist(), published, strict=True):
        assert (f"{theirs:.4e}" if "e" in text else f"{theirs:.4f}") == text
        # float32 rounds by 6e-8 of the number in each of ten steps
        assert ours == pytest.approx(theirs, rel=10 * 6e-8)


@pytest.mark.parametrize("lr", [0.01, 0.04, 0.099])
def test_gradient_descent_on_a_quadratic_is_a_geometric_sequence(lr):
    path = descend(bowl, [-70, 70], "gd", lr=lr, steps=20)
    k = np.arange(21)[:, None]
    np.testing.assert_allclose(path.points, [-70, 70] * (1 - 2 * lr * SCALES.numpy()) ** k)
    np.testing.assert_allclose(path.values, path.points**2 @ SCALES.numpy())


def test_at_twice_the_inverse_curvature_x_flips_its_sign_for_ever():
    path = descend(bowl, [100, 500], "gd", lr=0.1, steps=10)
    np.testing.assert_allclose(path.points[:, 0], 100 * (-1.0) ** np.arange(11))


@pytest.mark.parametrize(
    ("method", "ours", "theirs"),
    [
        ("gd", {}, {}),
        ("momentum", {"beta": 0.8}, {"momentum": 0.8}),
        ("momentum", {}, {"momentum": 0.9}),
    ],
)
def test_torch_optim_takes_the_same_steps(method, ours, theirs):
    path = descend(rosenbrock, [-1.2, 1.0], method, lr=1e-3, steps=50, **ours)
    x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=1e-3, **theirs)
    for point in path.points:
        np.testing.assert_allclose(point, x.detach(), rtol=1e-10)
        optimizer.zero_grad()
        rosenbrock(x).backward()
        optimizer.step()


def test_momentum_without_memory_is_gradient_descent():
    plain = descend(rosenbrock, [-1.2, 1.0], "gd", lr=1e-3, steps=9)
    heavy = descend(rosenbrock, [-1.2, 1.0], "momentum", lr=1e-3, steps=9, beta=0)
    np.testing.assert_array_equal(plain.points, heavy.points)


def test_newton_solves_a_quadratic_in_one_step():
    path = descend(lambda v: bowl(v) + v[..., 0] * v[..., 1], [3, -4], "newton", steps=1)
    np.testing.assert_allclose(path.points[-1], [0, 0], atol=1e-14)


def test_newton_contracts_a_quartic_by_two_thirds_and_a_cubic_by_one_half():
    quartic = descend(lambda v: 10 * v[..., 0] ** 4 + v[..., 1] ** 4, [20, 30], "newton", steps=20)
    np.testing.assert_allclose(quartic.points[-1], np.array([20, 30]) * (2 / 3) ** 20, rtol=1e-12)
    cubic = descend(lambda v: 5 * v[..., 0] ** 3 + v[..., 1] ** 3, [40, 50], "newton", steps=100)
    np.testing.assert_allclose(cubic.points[-1], np.array([40, 50]) * 0.5**100, rtol=1e-12)


def test_damping_adds_to_the_hessian():
    path = descend(lambda v: v[..., 0] ** 2, [3], "newton", steps=1, damping=4)
    assert path.points[-1, 0] == pytest.approx(3 - 6 / (2 + 4))


def test_a_path_that_overflows_stops_and_says_when():
    path = descend(bowl, [1, 1], "gd", lr=1e30, steps=500)
    assert path.diverged == len(path.points) == len(path.values)
    assert np.isfinite(path.points).all()
    assert np.isfinite(path.values).all()
    # |x| grows by 2e31 a step, so its square passes 1.8e308 at step 5
    assert path.diverged == 5


def test_a_gradient_that_is_not_a_number_is_a_divergence():
    path = descend(lambda v: v[..., 0].sqrt() - v[..., 0], [0.0], "gd", lr=1, steps=3)
    assert path.diverged == 1


def test_points_are_not_shared_between_steps():
    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    path = descend(bowl, start, "gd", lr=0.01, steps=3)
    assert start.tolist() == [1, 2]
    assert len(np.unique(path.points, axis=0)) == 4


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"method": "momentun"}, ValueError, "got 'momentun'; did you mean 'momentum'?"),
        ({"method": None}, ValueError, "one of gd, momentum, newton, got None"),
        ({"beta": 0.9}, TypeError, "method 'gd' takes lr; got beta=0.9"),
        ({"lr": None}, TypeError, "method 'gd' takes lr; lr is missing"),
        ({"method": "newton"}, TypeError, r"'newton' takes damping=0.0; got lr=0.1"),
        (
            {"method": "momentum", "beta": 1.0},
            ValueError,
            r"beta must be a number in \[0, 1\), got 1",
        ),
        ({"lr": -0.1}, ValueError, "lr must be a positive finite number, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be a positive finite number, got nan"),
        ({"lr": "fast"}, TypeError, "lr must be a positive finite number, got 'fast'"),
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number of at least 1, got 2.5"),
        (
            {"start": 3.0},
            ValueError,
            r"start must be the d coordinates of one point, got shape \[\]",
        ),
        ({"start": [[1, 2]]}, ValueError, r"got shape \[1, 2\]"),
        ({"start": [float("inf"), 0]}, ValueError, r"start=\[inf, 0.0\]: the function is inf"),
        ({"start": "here"}, TypeError, "start must hold numbers, got 'here'"),
        ({"function": 3}, TypeError, "function must be callable, got 3"),
        ({"function": lambda v: 1.0}, TypeError, "must return a torch tensor, got float 1.0"),
        (
            {"function": lambda v: v},
            ValueError,
            r"at a point of shape \[2\] it returned shape \[2\]",
        ),
        ({"function": lambda v: v.detach().sum()}, ValueError, "its value carries no gradient"),
    ],
)
def test_bad_input_is_named(changed, error, text):
    arguments = {"function": bowl, "start": [1.0, 2.0], "method": "gd", "lr": 0.1, "steps": 2}
    with pytest.raises(error, match=text):
        descend(**(arguments | changed))


def test_a_singular_hessian_is_named_with_the_way_out():
    flat = lambda v: v[..., 0] ** 2 + v[..., 1]  # noqa: E731
    with pytest.raises(
        ValueError, match=r"damping=0.0: .* at the point \[1.0, 2.0\] it is singular"
    ):
        descend(flat, [1, 2], "newton", steps=1)
    assert descend(flat, [1, 2], "newton", steps=1, damping=1).diverged is None


def test_every_method_reduces_a_bowl():
    for method in METHODS:
        lr = {} if method == "newton" else {"lr": 0.01}
        assert descend(bowl, [3, 4], method, steps=40, **lr).values[-1] < 0.5 * bowl(
            torch.tensor([3.0, 4.0])
        )


@pytest.mark.parametrize(
    ("power", "number", "published"),
    [
        (2, 2, 1.4142135623746899),
        (2, 3, 1.7320508075688772),
        (3, 2, 1.2599210500177698),
    ],
)
def test_published_roots_digit_for_digit(power, number, published):
    root = newton_root(lambda x: x**power - number, start=1.0)
    assert root.value == published
    assert root.value == root.iterates[-1]
    assert abs(root.value**power - number) < 1e-9
    assert abs(root.iterates[-2] ** power - number) >= 1e-9


def test_errors_of_a_root_shrink_quadratically():
    iterates = newton_root(lambda x: x**2 - 2, start=1.0, tolerance=1e-13).iterates
    errors = np.abs(iterates - 2**0.5)[1:4]
    # e' / e² tends to f''/(2 f') = 1/(2√2)
    np.testing.assert_allclose(errors[1:] / errors[:-1] ** 2, 1 / 8**0.5, rtol=0.06)


def test_a_start_on_the_root_takes_no_step():
    assert newton_root(torch.sin, start=0.0).iterates.tolist() == [0.0]


@pytest.mark.parametrize(
    ("f", "changed", "error", "text"),
    [
        (
            lambda x: x**2 - 2,
            {"start": 0.0},
            ValueError,
            "derivative of f is 0.0 at step 0, x = 0.0",
        ),
        (lambda x: x**2 + 1, {}, ValueError, "max_steps=100: no root from start=0.7"),
        (torch.atan, {"start": 2.0}, ValueError, "start=2.0: "),
        (torch.log, {"start": -1.0}, ValueError, "f is nan at step 0, x = -1.0"),
        (lambda x: x**2 - 2, {"tolerance": 0}, ValueError, "tolerance must be .*, got 0"),
        (lambda x: x**2 - 2, {"max_steps": 0}, ValueError, "max_steps must be .*, got 0"),
        (lambda x: x**2 - 2, {"start": [1.0, 2.0]}, ValueError, "start must be one finite number"),
        (torch.sin, {"start": "pi"}, TypeError, "start must hold numbers, got 'pi'"),
        (lambda x: 1.0, {}, TypeError, "must return a torch tensor, got float 1.0"),
    ],
)
def test_roots_that_cannot_be_found(f, changed, error, text):
    with pytest.raises(error, match=text):
        newton_root(f, **({"start": 0.7} | changed))
