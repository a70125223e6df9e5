"""Newton's roots against published digits and the law of quadratic convergence."""

import numpy as np
import pytest
import torch

from stabilitykit.roots import newton_root


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
        (lambda x: x**2 - 2, {"tolerance": "a"}, TypeError, "tolerance must be .*, got 'a'"),
        (lambda x: x**2 - 2, {"tolerance": True}, TypeError, "tolerance must be .*, got True"),
        (lambda x: x**2 - 2, {"tolerance": np.inf}, ValueError, "tolerance must be .*, got inf"),
        (lambda x: x**2 - 2, {"max_steps": 0}, ValueError, "max_steps must be .*, got 0"),
        (lambda x: x**2 - 2, {"start": [1.0, 2.0]}, ValueError, "start must be one finite number"),
        (torch.sin, {"start": "pi"}, TypeError, "start must hold numbers, got 'pi'"),
        (lambda x: 1.0, {}, TypeError, "must return a torch tensor, got float 1.0"),
    ],
)
def test_roots_that_cannot_be_found(f, changed, error, text):
    with pytest.raises(error, match=text):
        newton_root(f, **({"start": 0.7} | changed))
