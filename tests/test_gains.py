"""Gains against closed forms, Monte Carlo and the published numbers."""

import pytest

import stabilitykit as sk


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("tanh", 1.592537, 1.467414),
        ("gelu", 1.533530, 1.481114),
        ("silu", 1.676532, 1.623320),
        ("mish", 1.486848, 1.444755),
        ("selu", 1.000000, 0.966026),
        ("sigmoid", 1.846229, 4.722646),
    ],
)
def test_gain_reproduces_verified_numbers(name, forward, backward):
    result = sk.gain(name)
    assert result.forward == pytest.approx(forward, abs=5e-7)
    assert result.backward == pytest.approx(backward, abs=5e-7)
