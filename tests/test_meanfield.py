"""Mean-field quantities against closed forms, plain iteration and simulated networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

import stabilitykit as sk
from stabilitykit._activations import Activation
from stabilitykit._correlation import CorrelationSeries
from stabilitykit._gaussian import GaussianMeans


def iterate(activation, weight, bias, steps, start=1.0):
    """The length map step by step, each by its own quadrature."""
    means, q = GaussianMeans(Activation(activation)), np.array([start])
    for _ in range(steps):
        q = weight * means.moments(q)[0][0] + bias
    return q.item()


def erf_moment(q):
    return 2 / math.pi * math.atan2(2 * q, math.sqrt(1 + 4 * q))


def test_tanh_at_five_thirds_keeps_its_activations_and_is_chaotic():
    field = sk.MeanField("tanh", weight_var=(5 / 3) ** 2)
    q = field.fixed_point()
    assert q == pytest.approx(1.178480, abs=5e-7)
    assert math.sqrt(sk.second_moment("tanh", q)) == pytest.approx(0.651347, abs=5e-7)
    assert field.chi() == pytest.approx(1.209831, abs=5e-7)
    assert field.chi() ** 49 == pytest.approx(1.1e4, rel=0.05)


def test_critical_line_of_tanh():
    critical = sk.critical_weight_var("tanh", bias_var=0.05)
    assert critical == pytest.approx(1.760955, abs=5e-7)  # Schoenholz et al. (2017): 1.76
    field = sk.MeanField("tanh", critical, 0.05)
    assert field.fixed_point() == pytest.approx(0.570048, abs=5e-7)
    assert field.depth_scale() == math.inf
    weights = [1.3, 1.5]
    np.testing.assert_allclose(sk.MeanField("tanh", weights, 0.05).chi(), [0.880, 0.939], atol=5e-4)


def test_half_stable_point_of_swish():
    """Roberts, Yaida & Hanin (2022) give C_W = 1.98800468 at C_b = 0.55514317."""
    assert sk.critical_weight_var("silu", 0.55514317) == pytest.approx(1.98800468, abs=1e-8)


def test_half_stable_point_of_gelu():
    """Roberts, Yaida & Hanin (2022) give C_W = 1.98305826 at C_b = 0.17292239.

    Below that bias the critical fixed point repels, above it attracts.
    """
    assert sk.critical_weight_var("gelu", 0.17292239) == pytest.approx(1.98305826, abs=1e-8)
    for bias, attracts in ((0.17, False), (0.18, True)):
        weight = sk.critical_weight_var("gelu", bias)
        q = optimize.brentq(lambda q, w=weight: w * sk.slope_moment("gelu", q) - 1, 1, 10)
        assert weight * sk.second_moment("gelu", q) + bias == pytest.approx(q, rel=1e-9)
        below = sk.MeanField("gelu", weight, bias).fixed_point(start=q * (1 - 1e-3))
        assert bool(below == pytest.approx(q, rel=1e-6)) is attracts


@pytest.mark.parametrize(("weight", "bias"), [(1.5, 0.1), (3.0, 0.0), (0.7, 0.3), (20.0, 2.0)])
def test_erf_by_the_arcsine_law(weight, bias):
    field = sk.MeanField("erf", weight, bias)
    q = optimize.brentq(lambda q: weight * erf_moment(q) + bias - q, 1e-6, 100, xtol=1e-15)
    assert field.fixed_point() == pytest.approx(q, rel=1e-12)
    chi = weight * 4 / math.pi / math.sqrt(1 + 4 * q)
    assert field.chi() == pytest.approx(chi, rel=1e-12)
    assert field.depth_scale() == pytest.approx(1 / abs(math.log(chi)), rel=1e-9)
    # Williams (1997), eq. 11
    c = np.linspace(-1, 1, 9)
    kernel = 2 / math.pi * np.arcsin(2 * q * c / (1 + 2 * q))
    expected = (weight * kernel + bias) / q
    np.testing.assert_allclose(field.correlations(1, c)[1], expected, atol=1e-12)


def test_relu_correlations_by_the_arc_cosine_kernel():
    """Cho & Saul (2009), degree 1; with σ_w² = 2 and no bias the map does not depend on q."""
    field = sk.MeanField("relu", weight_var=2.0)
    c = np.concatenate([-np.geomspace(1, 1e-3, 7), [0.0], 1 - np.geomspace(1e-6, 1, 13)])
    expected = (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / np.pi
    np.testing.assert_allclose(field.correlations(1, c)[1], expected, atol=1e-7)


def test_sign_correlations_by_the_arcsine():
    c = np.array([-1, -0.9, -0.3, 0, 0.5, 0.99, 1])
    expected = 2 / np.pi * np.arcsin(c)
    np.testing.assert_allclose(sk.MeanField(torch.sign).correlations(1, c)[1], expected, atol=1e-4)


@pytest.mark.parametrize("q", [0.1, 1.0, 10.0])
def test_hardtanh_correlations_by_conditional_means(q):
    """E[clip(u₁) E[clip(u₂) | u₁]], the inner mean in closed form, the outer by scipy."""
    cdf, pdf, s = stats.norm.cdf, stats.norm.pdf, math.sqrt(q)

    def clipped_mean(mean, std):
        low, high = (-1 - mean) / std, (1 - mean) / std
        inside = cdf(high) - cdf(low)
        return 1 - cdf(high) - cdf(low) + mean * inside + std * (pdf(low) - pdf(high))

    def integrand(z, c):
        return np.clip(s * z, -1, 1) * clipped_mean(c * s * z, s * math.sqrt(1 - c * c)) * pdf(z)

    series = CorrelationSeries(GaussianMeans(Activation("hardtanh")), np.full(5, q))
    c = np.array([-0.99, -0.5, 0.3, 0.9, 0.999])
    expected = [
        integrate.quad(integrand, 0, 10, args=(x,), points=[1 / s], limit=500, epsabs=1e-13)[0] * 2
        for x in c
    ]
    np.testing.assert_allclose(series(c), expected, atol=1e-9)


def test_correlations_agree_with_monte_carlo():
    n, c = 400_000, 0.6
    z = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for activation, weight, bias in (
        ("hardswish", 2.0, 0.3),
        ("tanh", 6.0, 0.1),
        ("elu", 1.2, 0.2),
    ):
        field = sk.MeanField(activation, weight, bias)
        q = field.fixed_point()
        pair = math.sqrt(q) * torch.stack([z[0], c * z[0] + math.sqrt(1 - c * c) * z[1]])
        product = getattr(torch.nn.functional, activation)(pair).prod(dim=0)
        error = weight / q * product.std().item() / math.sqrt(n)
        measured = (weight * product.mean().item() + bias) / q
        assert abs(field.correlations(1, c)[1] - measured) < 4.5 * error


def test_correlation_ends():
    field = sk.MeanField("tanh", [1.5, 3.0], 0.05)
    assert (field.correlations(20, 1.0) == 1).all()
    odd = sk.MeanField("tanh", 3.0).correlations(20, [-1.0, -0.5, 0.5])
    np.testing.assert_allclose(odd[:, 1], -odd[:, 2], atol=1e-12)
    assert odd[-1, 0] == pytest.approx(-1)
    ordered, chaotic = field.correlations(400, 0.3)[-1]
    assert ordered == pytest.approx(1, abs=1e-6)
    assert 0 < chaotic < 0.9
    dead = sk.MeanField("relu", [1.0, 3.0]).correlations(2)
    assert np.isnan(dead).all()  # no variance left, or too much: no correlation


def test_slope_of_the_correlation_map_at_one_is_chi():
    for name, weight, bias in (("tanh", 1.9, 0.1), ("gelu", 1.9, 0.1), ("relu", 2.0, 0.0)):
        field = sk.MeanField(name, weight, bias)
        small = 1e-6
        slope = (1 - field.correlations(1, 1 - small)[1]) / small
        assert slope == pytest.approx(field.chi(), rel=2e-3)


NAMES = st.sampled_from(["tanh", "relu", "gelu", "hardtanh", "softplus", "sigmoid"])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(NAMES, st.floats(0.1, 3), st.floats(0.01, 1))
def test_fixed_points_are_what_iteration_reaches(name, weight, bias):
    field = sk.MeanField(name, weight, bias)
    reached = iterate(name, weight, bias, 40)
    remaining = abs(weight * sk.second_moment(name, reached) + bias - reached)
    q = field.fixed_point()
    if q == math.inf:
        assert reached > 1
        assert remaining > 0
    else:
        assert weight * sk.second_moment(name, q) + bias == pytest.approx(q, rel=1e-11)
        contraction = math.exp(-1 / field.length_scale())
        assert abs(reached - q) <= 1.5 * remaining / (1 - contraction) + 1e-10


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_a_grid_is_its_points(name):
    weight = np.array([0.2, 1.0, 1.7, 3.9])[:, None]
    bias = np.array([0.0, 0.01, 0.3])
    grid = sk.MeanField(name, weight, bias)
    points = [[sk.MeanField(name, w, b) for b in bias] for w in weight[:, 0]]
    for method in ("fixed_point", "chi", "depth_scale", "length_scale"):
        values = getattr(grid, method)()
        assert values.shape == (4, 3)
        expected = [[getattr(point, method)() for point in row] for row in points]
        np.testing.assert_allclose(values, expected, rtol=1e-9)
    lengths = grid.lengths(3, start=[[0.5], [1.0], [2.0], [3.0]])
    assert lengths.shape == (4, 4, 3)
    assert lengths[1, 3, 2] == pytest.approx(iterate(name, 3.9, 0.3, 1, 3.0))


def test_the_hundred_by_hundred_grid_solves_its_equation():
    weight, bias = np.meshgrid(np.linspace(0.1, 4, 100), np.linspace(0.0, 0.5, 100))
    for name in ("tanh", "gelu"):
        field = sk.MeanField(name, weight, bias)
        q = field.fixed_point()
        live = np.isfinite(q) & (q > 0)
        assert live.sum() > 4000
        live &= np.random.default_rng(0).random(q.shape) < 0.05
        residual = weight[live] * sk.second_moment(name, q[live]) + bias[live] - q[live]
        assert np.abs(residual / q[live]).max() < 1e-13
        chi = weight[live] * sk.slope_moment(name, q[live])
        np.testing.assert_allclose(field.chi()[live], chi, rtol=1e-13)


def test_lengths_against_direct_quadrature_at_every_step():
    field = sk.MeanField("mish", 1.8, 0.05)
    assert field.lengths(30)[-1] == pytest.approx(iterate("mish", 1.8, 0.05, 30), rel=1e-12)


def test_near_the_critical_line_the_phase_is_right():
    for name, bias in (("tanh", 0.05), ("tanh", 1e-4), ("erf", 0.3), ("hardtanh", 0.1)):
        critical = sk.critical_weight_var(name, bias)
        for off in (1e-3, 1e-6, 1e-9):
            below, above = sk.MeanField(name, critical * np.array([1 - off, 1 + off]), bias).chi()
            assert below < 1 < above
        scales = sk.MeanField(name, critical * np.array([1 - 1e-6, 1 - 1e-3]), bias).depth_scale()
        assert scales[0] == pytest.approx(1000 * scales[1], rel=0.01)


def test_several_fixed_points_and_the_start_between_them():
    """GELU at σ_w² = 3: 0 attracts, the middle one repels, beyond it lengths diverge."""
    field = sk.MeanField("gelu", 3.0)
    middle = optimize.brentq(lambda q: 3 * sk.second_moment("gelu", q) / q - 1, 0.01, 100)
    starts = np.array([1e-6, middle * (1 - 1e-9), middle * (1 + 1e-9), 1e6])
    np.testing.assert_array_equal(field.fixed_point(starts), [0, 0, math.inf, math.inf])
    assert field.fixed_point(middle) == pytest.approx(middle)


@pytest.mark.parametrize("weight", [2.2, 2.3, 2.5, 2.55, 3.0, 3.3])
def test_the_last_fixed_point_before_lengths_diverge(weight):
    """Two fixed points merge where q - σ_w² V(q) is largest; beyond that bias there are none."""
    top = optimize.minimize_scalar(
        lambda q: weight * sk.second_moment("gelu", q) - q,
        bounds=(1e-3, 5),
        options={"xatol": 1e-12},
    )
    off = np.array([1e-3, 1e-6, 1e-9])
    q = sk.MeanField("gelu", weight, -top.fun * (1 - off)).fixed_point(start=0.01)
    assert (q < top.x).all()
    # two roots of a parabola: their distance shrinks like the root of what is left
    np.testing.assert_allclose((top.x - q[1:]) / (top.x - q[:-1]), math.sqrt(1e-3), rtol=0.1)
    assert (sk.MeanField("gelu", weight, -top.fun * (1 + off)).fixed_point(start=0.01) > 1e19).all()


def test_a_map_that_falls():
    """cos: V(q) = (1 + exp(-2q))/2 falls, and iteration swings in."""
    weight = np.array([0.5, 1.0, 3.0, 50.0])
    q = sk.MeanField(torch.cos, weight, 0.1).fixed_point()
    np.testing.assert_allclose(q, weight * (1 + np.exp(-2 * q)) / 2 + 0.1, rtol=1e-12)

    def bump(z):
        return z * torch.exp(-z * z)  # V rises, then falls

    field = sk.MeanField(bump, [0.5, 1.0, 3.0, 100.0, 1e4])
    reached = field.lengths(3000)[-1]
    np.testing.assert_allclose(field.fixed_point()[2:], reached[2:], rtol=1e-10)
    assert (field.fixed_point()[:2] == 0).all()
    assert reached[1] < 1e-4


def test_linear_activation():
    field = sk.MeanField("linear", [0.5, 1.0, 1.0, 2.0], [0.1, 0.0, 0.1, 0.0])
    np.testing.assert_allclose(field.fixed_point(), [0.2, 1.0, math.inf, math.inf], rtol=1e-12)
    np.testing.assert_allclose(field.chi(), [0.5, 1, 1, 2], rtol=1e-13)
    assert field.depth_scale()[0] == pytest.approx(1 / math.log(2))
    assert (field.depth_scale()[1:3] == math.inf).all()
    np.testing.assert_allclose(field.lengths(2)[:, 3], [1, 2, 4], rtol=1e-13)


def test_relu_at_two_returns_the_start():
    field = sk.MeanField("relu", 2.0)
    assert field.fixed_point() == 1.0
    assert field.fixed_point(start=7.5) == 7.5
    assert field.depth_scale() == math.inf
    assert field.length_scale() == math.inf
    np.testing.assert_allclose(field.lengths(1000, 3.0), 3.0, rtol=1e-11)
    assert sk.MeanField("relu", 2.0, 0.1).fixed_point() == math.inf
    assert sk.MeanField("relu", 1.9, 0.1).fixed_point() == pytest.approx(2.0, rel=1e-12)


def test_lengths_that_die_out():
    field = sk.MeanField("tanh", [0.0, 0.3, 0.999, 1.0])
    assert (field.fixed_point() == 0).all()
    np.testing.assert_allclose(field.chi(), [0, 0.3, 0.999, 1], rtol=1e-12)
    assert field.depth_scale()[0] == 0
    assert field.depth_scale()[3] == math.inf
    assert field.lengths(1500)[-1, 1] == pytest.approx(0, abs=1e-300)
    # a kink at 0: the limit is the mean over both sides
    assert sk.MeanField("elu", 0.3, alpha=2.0).chi() == pytest.approx(0.3 * 2.5)


def test_no_weights():
    field = sk.MeanField(torch.exp, 0.0, [0.0, 0.4])
    np.testing.assert_array_equal(field.fixed_point(), [0, 0.4])
    np.testing.assert_array_equal(field.lengths(2, 5.0), [[5, 5], [0, 0.4], [0, 0.4]])
    assert (field.chi() == 0).all()


def test_lengths_that_explode():
    field = sk.MeanField(lambda z: z**3, [0.01, 0.1, 1.0])  # V = 15 q³
    np.testing.assert_array_equal(field.fixed_point(), [0, math.inf, math.inf])
    lengths = field.lengths(12)
    assert lengths[-1, 0] == 0
    assert lengths[3, 2] == pytest.approx(15**13, rel=1e-11)
    assert (lengths[-1, 1:] == math.inf).all()
    exponential = sk.MeanField(torch.exp, [0.01, 0.1, 1.0])  # V = exp(2q)
    q = exponential.fixed_point()
    np.testing.assert_allclose(q[:2], [0.01, 0.1] * np.exp(2 * q[:2]), rtol=1e-12)
    assert q[2] == math.inf
    assert not np.isnan(exponential.lengths(20)).any()


def test_tiny_and_huge_biases():
    field = sk.MeanField("tanh", 0.5, [1e-30, 1e-15, 1e-9])
    np.testing.assert_allclose(field.fixed_point(), [2e-30, 2e-15, 2e-9], rtol=1e-8)
    assert sk.MeanField("tanh", 0.5, 1e9).fixed_point() == pytest.approx(1e9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.floats(0.05, 1.9), st.floats(1e-6, 10))
def test_relu_has_a_closed_form(weight, bias):
    field = sk.MeanField("relu", weight, bias)
    assert field.fixed_point() == pytest.approx(bias / (1 - weight / 2), rel=1e-11)
    assert field.chi() == pytest.approx(weight / 2, rel=1e-13)
    assert field.length_scale() == pytest.approx(1 / abs(math.log(weight / 2)), rel=1e-9)


def test_length_scale_is_the_rate_of_approach():
    field = sk.MeanField("tanh", [1.3, 2.0], 0.05)
    q = field.fixed_point()
    gap = np.abs(field.lengths(30) - q)
    np.testing.assert_allclose(1 / np.log(gap[14] / gap[15]), field.length_scale(), rtol=1e-3)


@pytest.mark.parametrize("name", ["tanh", "erf", "hardtanh", "elu", "selu", "sigmoid"])
def test_on_the_critical_line_chi_is_one(name):
    bias = np.array([1e-6, 0.02, 0.5, 3.0])
    field = sk.MeanField(name, sk.critical_weight_var(name, bias), bias)
    np.testing.assert_allclose(field.chi(field.fixed_point(start=1e-9)), 1, rtol=1e-9)
    if name != "sigmoid":  # f(0) = 0: without bias it is the limit q → 0
        limit = 1 / sk.slope_moment(name, 0.0)
        assert sk.critical_weight_var(name, 0.0) == pytest.approx(limit, rel=1e-12)


def test_critical_lines_at_their_ends():
    np.testing.assert_allclose(sk.critical_weight_var("relu", [0.0, 0.1]), 2.0, rtol=1e-12)
    np.testing.assert_allclose(sk.critical_weight_var("linear", [0.0, 0.1]), 1.0, rtol=1e-12)
    assert sk.critical_weight_var("leaky_relu", negative_slope=0.2) == pytest.approx(2 / 1.04)
    assert sk.critical_weight_var(torch.sign, 0.1) == math.inf
    assert sk.critical_weight_var("tanh", np.zeros((2, 3))).shape == (2, 3)


def test_gradients_of_a_wide_network_grow_as_chi():
    """Twelve tanh layers of 512 at gain 5/3: the squared gradient grows by χ per layer."""
    generator = torch.Generator().manual_seed(0)
    width, depth, seeds = 512, 12, 6
    field = sk.MeanField("tanh", (5 / 3) ** 2)
    ratios = []
    for _ in range(seeds):
        h = torch.randn(16, width, generator=generator) * math.sqrt(field.fixed_point())
        h.requires_grad_()
        hidden, x = [h], h
        for _ in range(depth):
            weight = torch.randn(width, width, generator=generator) * (5 / 3) / width**0.5
            x = torch.tanh(x) @ weight.T
            hidden.append(x)
        target = torch.randn(x.shape, generator=generator)
        grads = torch.autograd.grad((x * target).sum(), hidden)
        ratios.append((grads[0].square().mean() / grads[-1].square().mean()).item())
    logs = np.log(ratios)
    predicted = depth * math.log(field.chi())
    assert abs(logs.mean() - predicted) < 4 * logs.std(ddof=1) / math.sqrt(seeds) + 0.02


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"weight_var": -1.0}, ValueError, r"weight_var=-1.0 is negative; expected a variance"),
        ({"bias_var": -0.1}, ValueError, r"bias_var=-0.1 is negative"),
        ({"weight_var": math.nan}, ValueError, r"weight_var=nan is not finite"),
        ({"bias_var": math.inf}, ValueError, r"bias_var=inf is not finite"),
        ({"weight_var": "2"}, TypeError, r"weight_var='2' is not a number"),
        (
            {"weight_var": [1, 2, 3], "bias_var": [1, 2]},
            ValueError,
            r"shapes do not broadcast: weight_var \(3,\), bias_var \(2,\)",
        ),
        ({"negative_slope": 1}, ValueError, r"activation=tanh failed .*negative_slope"),
    ],
)
def test_bad_fields(arguments, error, text):
    with pytest.raises(error, match=text):
        sk.MeanField("tanh", **arguments)


def test_bad_arguments_of_the_methods():
    field = sk.MeanField("tanh", [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"depth=-1 is negative"):
        field.lengths(-1)
    with pytest.raises(TypeError, match=r"depth=2.5 is not an integer"):
        field.lengths(2.5)
    with pytest.raises(TypeError, match=r"depth=True is not an integer"):
        field.correlations(True)
    with pytest.raises(ValueError, match=r"start=-1 is negative"):
        field.lengths(2, start=-1)
    with pytest.raises(
        ValueError, match=r"shapes do not broadcast: start \(2,\), weight_var \(3,\)"
    ):
        field.lengths(2, start=[1, 2])
    with pytest.raises(ValueError, match=r"start=0 is not between"):
        field.fixed_point(start=0)
    with pytest.raises(ValueError, match=r"start=1.5 is not a correlation"):
        field.correlations(2, 1.5)
    with pytest.raises(ValueError, match=r"q=-2 is negative"):
        field.chi(-2)
    with pytest.raises(ValueError, match=r"shapes do not broadcast: q \(2,\)"):
        field.chi([1, 2])
    with pytest.raises(ValueError, match=r"bias_var=-1 is negative"):
        sk.critical_weight_var("tanh", -1)


def test_what_has_no_digits_is_refused():
    field = sk.MeanField(lambda z: z.abs().sqrt(), 0.5, 0.1)
    assert field.fixed_point() == pytest.approx(field.lengths(100)[-1])
    with pytest.raises(ValueError, match=r"E\[f'²\] at q=.* has no six digits"):
        field.chi()


def test_results_are_the_callers_own():
    field = sk.MeanField("tanh", [1.5, 2.0])
    field.fixed_point()[:] = 0
    assert (field.fixed_point() > 0).all()
