"""Mean-field quantities against closed forms and published numbers."""

import pytest

import stabilitykit as sk


def test_tanh_at_five_thirds_keeps_its_activations_and_is_chaotic():
    field = sk.MeanField("tanh", weight_var=(5 / 3) ** 2)
    assert field.fixed_point() == pytest.approx(1.178480, abs=5e-7)
    assert field.chi() == pytest.approx(1.209831, abs=5e-7)


def test_critical_line_of_tanh():
    critical = sk.critical_weight_var("tanh", bias_var=0.05)
    assert critical == pytest.approx(1.760955, abs=5e-7)
    assert sk.MeanField("tanh", critical, 0.05).fixed_point() == pytest.approx(0.570048, abs=5e-7)
