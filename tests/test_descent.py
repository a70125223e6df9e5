"""Descents against closed forms, published numbers and torch.optim."""

import inspect

import numpy as np
import pytest
import torch

from stabilitykit._steps import METHODS
from stabilitykit.descent import descend

START = [-1.2, 1.0]
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


def torch_points(optimizer, steps, **hyper):
    """What torch.optim visits on Rosenbrock's function, [steps + 1, 2]."""
    x = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer, points = optimizer([x], **hyper), []
    for _ in range(steps):
        points.append(x.detach().numpy().copy())
        optimizer.zero_grad()
        rosenbrock(x).backward()
        optimizer.step()
    return np.stack([*points, x.detach().numpy()])


ORACLES = [
    ("gd", {"lr": 1e-3}, torch.optim.SGD, {"lr": 1e-3}),
    ("momentum", {"lr": 1e-3}, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    ("momentum", {"lr": 1e-3, "beta": 0.8}, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.8}),
    *(
        (optimizer.__name__.lower(), hyper, optimizer, hyper)
        for optimizer, settings in {
            torch.optim.Adagrad: [
                {},
                {"lr": 0.5, "lr_decay": 0.1, "weight_decay": 0.3, "eps": 1e-3},
                {"lr": 0.5, "initial_accumulator_value": 2.0},
            ],
            torch.optim.RMSprop: [
                {},
                {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.3, "momentum": 0.5},
            ],
            torch.optim.Adam: [
                {},
                {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3},
            ],
            torch.optim.AdamW: [
                {},
                {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3},
            ],
        }.items()
        for hyper in settings
    ),
]


@pytest.mark.parametrize(("method", "ours", "optimizer", "theirs"), ORACLES)
def test_torch_optim_takes_the_same_steps(method, ours, optimizer, theirs):
    path = descend(rosenbrock, START, method, steps=100, **ours)
    np.testing.assert_allclose(path.points, torch_points(optimizer, 100, **theirs), rtol=1e-10)


@pytest.mark.parametrize("method", ["adagrad", "rmsprop", "adam", "adamw"])
def test_adaptive_hyperparameters_and_their_defaults_are_torchs(method):
    names = {"adagrad": "Adagrad", "rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW"}
    theirs = inspect.signature(getattr(torch.optim, names[method])).parameters
    ours = inspect.signature(METHODS[method]).parameters.values()
    for parameter in (p for p in ours if p.kind is p.KEYWORD_ONLY):
        assert theirs[parameter.name].default == parameter.default


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_torch_keeps_the_points_where_nesterov_takes_its_gradient(beta):
    points = descend(rosenbrock, START, "nesterov", lr=1e-3, beta=beta, steps=100).points
    velocities = np.diff(points, axis=0, prepend=points[:1])
    theirs = torch_points(torch.optim.SGD, 100, lr=1e-3, momentum=beta, nesterov=True)
    np.testing.assert_allclose(points + beta * velocities, theirs, rtol=1e-10)


def test_nesterov_on_a_quadratic_obeys_its_recurrence():
    lr, beta = 0.03, 0.7
    points = descend(bowl, [3, -4], "nesterov", lr=lr, beta=beta, steps=30).points
    factor = 1 - 2 * lr * SCALES.numpy()
    expected = factor * ((1 + beta) * points[1:-1] - beta * points[:-2])
    np.testing.assert_allclose(points[2:], expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["adagrad", "adam"])
def test_the_first_step_is_lr_times_the_sign(method):
    path = descend(rosenbrock, START, method, lr=0.1, steps=1, eps=0)
    x = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    sign = np.sign(torch.autograd.grad(rosenbrock(x), x)[0].numpy())
    np.testing.assert_allclose(path.points[1], START - 0.1 * sign, rtol=1e-15)


@pytest.mark.parametrize("method", ["adagrad", "rmsprop", "adam"])
def test_adaptive_steps_do_not_see_the_units_of_a_coordinate(method):
    plain = descend(bowl, [3, -4], method, lr=0.1, steps=30, eps=0)
    heights = torch.tensor([1000.0, 0.01], dtype=torch.float64)
    other = descend(lambda v: (heights * v**2).sum(-1), [3, -4], method, lr=0.1, steps=30, eps=0)
    np.testing.assert_allclose(plain.points, other.points, rtol=1e-10)


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


def saddle(v):
    return v[..., 0] ** 2 - v[..., 1] ** 2 + v[..., 0] * v[..., 1]


def test_the_saddle_free_step_uses_the_sizes_of_the_eigenvalues():
    hessian = np.array([[2.0, 1.0], [1.0, -2.0]])
    size = np.sqrt(5) * np.eye(2)  # |H|² = H² = 5 I
    path = descend(saddle, [3, 1], "saddle_free_newton", steps=1)
    np.testing.assert_allclose(path.points[1], [3, 1] - np.linalg.solve(size, hessian @ [3, 1]))
    damped = descend(saddle, [3, 1], "saddle_free_newton", steps=1, damping=2)
    step = np.linalg.solve(size + 2 * np.eye(2), hessian @ [3, 1])
    np.testing.assert_allclose(damped.points[1], [3, 1] - step)


def test_newton_lands_on_a_saddle_and_its_saddle_free_form_leaves():
    lands = descend(saddle, [3, 1], "newton", steps=1)
    np.testing.assert_allclose(lands.points[1], [0, 0], atol=1e-14)
    leaves = descend(saddle, [3, 1], "saddle_free_newton", steps=20)
    assert (np.diff(leaves.values) < 0).all()
    assert leaves.values[-1] < -1e6


def test_where_the_hessian_is_positive_both_newtons_agree():
    tilted = lambda v: bowl(v) + v[..., 0] * v[..., 1] + v[..., 0] ** 4  # noqa: E731
    plain = descend(tilted, [3, -4], "newton", steps=5, damping=0.5)
    free = descend(tilted, [3, -4], "saddle_free_newton", steps=5, damping=0.5)
    np.testing.assert_allclose(plain.points, free.points, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("method", ["newton", "saddle_free_newton"])
def test_a_hessian_that_is_not_finite_is_a_divergence(method):
    root = lambda v: (v**2).sum(-1) ** 1.5 + v[..., 0].sqrt()  # noqa: E731
    assert descend(root, [0.0, 1.0], method, steps=3).diverged == 1


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
        ({"method": None}, ValueError, "one of gd, momentum, nesterov, .*, got None"),
        ({"method": "adamW"}, ValueError, "got 'adamW'; did you mean 'adamw'?"),
        ({"beta": 0.9}, TypeError, "method 'gd' takes lr; got beta=0.9"),
        ({"lr": None}, TypeError, "method 'gd' takes lr; lr is missing"),
        ({"method": "newton"}, TypeError, r"'newton' takes damping=0.0; got lr=0.1"),
        (
            {"method": "momentum", "beta": 1.0},
            ValueError,
            r"beta must be a number in \[0, 1\), got 1",
        ),
        (
            {"method": "adam", "beta": 0.9},
            TypeError,
            r"'adam' takes lr=0.001, betas=\(0.9, 0.999\), eps=1e-08, .*; got beta=0.9",
        ),
        (
            {"method": "adam", "betas": 0.9},
            TypeError,
            r"betas must be a pair of numbers in \[0, 1\), got 0.9",
        ),
        (
            {"method": "adam", "betas": (0.9, 1.0)},
            ValueError,
            r"betas\[1\] must be a number in \[0, 1\), got 1.0",
        ),
        (
            {"method": "rmsprop", "alpha": -0.1},
            ValueError,
            r"alpha must be a number in \[0, 1\), got -0.1",
        ),
        (
            {"method": "adamw", "weight_decay": -1},
            ValueError,
            "weight_decay must be a finite number of at least 0, got -1",
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
    with pytest.raises(ValueError, match=r"damping=0.0: .* the Hessian has the eigenvalue 0"):
        descend(flat, [1, 2], "saddle_free_newton", steps=1)
    assert descend(flat, [1, 2], "saddle_free_newton", steps=1, damping=1).diverged is None


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reduces_a_bowl(method):
    lr = {} if method.endswith("newton") else {"lr": 0.01 if "g" not in method else 0.02}
    path = descend(bowl, [0.3, 0.4], method, steps=40, **lr)
    assert path.values[-1] < 0.5 * path.values[0]
