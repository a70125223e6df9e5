"""Gains by three routes: closed forms, quadrature that knows the kinks, Monte Carlo."""

import math
import typing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch.nn import functional

import stabilitykit as sk
from stabilitykit._activations import Activation
from stabilitykit._gaussian import GaussianMeans

VARIANCES = [1e-12, 1e-3, 0.3, 1.0, 2.5, 40.0, 1e4, 1e12]


def moments(activation, q, **options):
    """Values and error bounds, [2] each, at one q."""
    values, errors = GaussianMeans(Activation(activation, options)).moments(np.array([float(q)]))
    return values[:, 0], errors[:, 0]


def hardtanh_moment(q):
    s = math.sqrt(q)
    inside = special.erf(1 / (s * math.sqrt(2)))
    return q * (inside - math.sqrt(2 / math.pi) / s * math.exp(-1 / (2 * q))) + 1 - inside


# activation: (options, E[f²] as a function of q, E[f'²] as a function of q)
CLOSED_FORMS = {
    "identity": ({}, lambda q: q, lambda q: 1.0),
    "relu": ({}, lambda q: q / 2, lambda q: 0.5),
    "leaky_relu": ({"negative_slope": 0.3}, lambda q: q * 1.09 / 2, lambda q: 1.09 / 2),
    "prelu": ({"weight": 0.25}, lambda q: q * 1.0625 / 2, lambda q: 1.0625 / 2),
    # Williams (1997): the arcsine law, and the slope's Gaussian integral
    "erf": (
        {},
        lambda q: 2 / math.pi * math.atan2(2 * q, math.sqrt(1 + 4 * q)),
        lambda q: 4 / math.pi / math.sqrt(1 + 4 * q),
    ),
    "sin": ({}, lambda q: -math.expm1(-2 * q) / 2, lambda q: (1 + math.exp(-2 * q)) / 2),
    "hardtanh": ({}, hardtanh_moment, lambda q: special.erf(1 / math.sqrt(2 * q))),
}


@pytest.mark.parametrize("q", VARIANCES[2:-2])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_are_met_within_the_stated_error(name, q):
    options, value, slope = CLOSED_FORMS[name]
    truth = np.array([value(q), slope(q)])
    values, errors = moments(name, q, **options)
    assert (np.abs(values - truth) <= errors).all()
    assert (errors <= 1e-12 * truth).all()
    result = sk.gain(name, q, **options)
    assert abs(result.forward - math.sqrt(q / truth[0])) <= result.error
    assert abs(result.backward - 1 / math.sqrt(truth[1])) <= result.error


@pytest.mark.parametrize("q", VARIANCES)
@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu", "prelu", "erf"])
def test_closed_forms_from_tiny_to_huge_variance(name, q):
    options, value, slope = CLOSED_FORMS[name]
    values, errors = moments(name, q, **options)
    truth = np.array([value(q), slope(q)])
    assert (np.abs(values - truth) <= errors).all()
    assert (errors <= 1e-12 * truth).all()


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
    assert result.error < 1e-12
    assert result.q == 1.0


SMOOTH = {
    "tanh": (np.tanh, lambda u: np.cosh(u) ** -2),
    "sigmoid": (special.expit, lambda u: special.expit(u) * special.expit(-u)),
    "gelu": (
        lambda u: u * special.ndtr(u),
        lambda u: special.ndtr(u) + u * np.exp(-u * u / 2) / math.sqrt(2 * math.pi),
    ),
    "silu": (
        lambda u: u * special.expit(u),
        lambda u: special.expit(u) * (1 + u * special.expit(-u)),
    ),
    "softplus": (lambda u: np.logaddexp(0, u), special.expit),
}


@pytest.mark.parametrize("q", [0.05, 1.0, 9.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_activations_agree_with_adaptive_quadrature(name, q):
    values, errors = moments(name, q)
    for value, error, f in zip(values, errors, SMOOTH[name], strict=True):
        truth, uncertainty = integrate.quad(
            lambda z, f=f: f(math.sqrt(q) * z) ** 2 * stats.norm.pdf(z),
            -30,
            30,
            points=np.linspace(-10, 10, 21),
            epsabs=0,
            epsrel=1e-13,
            limit=500,
        )
        assert uncertainty < 1e-12 * truth
        assert abs(value - truth) <= error + 1e-12 * truth


def test_activations_agree_with_monte_carlo():
    n = 400_000
    z = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("mish", "elu", "selu", "hardswish", "softsign", "celu", "relu6", "hardsigmoid"):
        for q in (0.4, 3.0):
            u = (math.sqrt(q) * z).requires_grad_()
            f = getattr(functional, name)(u)
            (slope,) = torch.autograd.grad(f.sum(), u)
            for measured, moment in ((f, sk.second_moment), (slope, sk.slope_moment)):
                square = measured.detach() ** 2
                deviation = (square.mean().item() - moment(name, q)) / (
                    square.std().item() / n**0.5
                )
                assert abs(deviation) < 4.5, (name, q, deviation)


def piecewise_linear(kinks, steps):
    """Σ steps·relu(z - kinks), its E[f²] and E[f'²] at q = 1 by Gaussian integrals of pieces."""

    def f(z):
        return sum(s * functional.relu(z - k) for s, k in zip(steps, kinks, strict=True))

    order = np.argsort(kinks)
    slope = np.concatenate([[0.0], np.cumsum(np.array(steps)[order])])
    offset = np.concatenate([[0.0], -np.cumsum((np.array(steps) * np.array(kinks))[order])])
    low = np.concatenate([[-np.inf], np.array(kinks)[order]])
    high = np.concatenate([np.array(kinks)[order], [np.inf]])
    mass = stats.norm.cdf(high) - stats.norm.cdf(low)
    first = stats.norm.pdf(low) - stats.norm.pdf(high)
    edge = [np.where(np.isfinite(x), x, 0) * stats.norm.pdf(x) for x in (low, high)]
    second = mass + edge[0] - edge[1]
    value = slope**2 * second + 2 * slope * offset * first + offset**2 * mass
    return f, value.sum(), (slope**2 * mass).sum()


ODD = st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(ODD, min_size=5, max_size=5), st.lists(ODD, min_size=5, max_size=5))
def test_five_kinks_at_unknown_places(kinks, steps):
    f, value, slope = piecewise_linear(kinks, steps)
    values, errors = moments(f, 1.0)
    scale = sum(s * s for s in steps)  # the closed form cancels down from here
    assert (np.abs(values - [value, slope]) <= errors + 1e-14 * scale).all()
    assert (errors <= 1e-8 * np.maximum(values, 1e-6 * scale)).all()


@pytest.mark.parametrize("q", [0.02, 1.0, 30.0])
@pytest.mark.parametrize("kink", [0.3, -1.7, 1e-4, 1 + 1e-9, 5.123456789])
def test_a_shifted_absolute_value_keeps_its_error_promise(kink, q):
    values, errors = moments(lambda z: (z - kink).abs(), q)
    truth = np.array([q + kink**2, 1.0])
    assert (np.abs(values - truth) <= errors).all()
    assert (errors <= 1e-8 * truth).all()


@pytest.mark.parametrize("place", [0.0, 0.3, -1.0, 2.123])
def test_jumps(place):
    values, errors = moments(lambda z: (z > place).to(z.dtype), 1.0)
    assert abs(values[0] - stats.norm.sf(place)) <= errors[0] <= 1e-12
    assert values[1] == 0  # autograd sees no slope at a jump, and neither does training


def test_a_staircase_of_many_jumps():
    steps = 8
    values, errors = moments(lambda z: torch.round(steps * z.clamp(-1, 1)) / steps, 1.0)
    edges = (np.arange(-steps, steps) + 0.5) / steps
    mass = np.diff(stats.norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]])))
    truth = (mass * (np.arange(-steps, steps + 1) / steps) ** 2).sum()
    assert abs(values[0] - truth) <= errors[0] <= 1e-12


def test_hardswish_by_its_polynomial_pieces():
    value, _ = integrate.quad(
        lambda z: (z * np.clip(z + 3, 0, 6) / 6) ** 2 * stats.norm.pdf(z),
        -3,
        20,
        points=[3],
        epsabs=0,
        epsrel=1e-13,
    )
    values, errors = moments("hardswish", 1.0)
    assert abs(values[0] - value) <= errors[0] + 1e-12


def test_an_expectation_without_digits_is_refused():
    with pytest.raises(ValueError, match=r"E\[f'²\] at q=1 has no six digits"):
        sk.gain(lambda z: z.abs().sqrt())
    assert sk.second_moment(lambda z: z.abs().sqrt()) == pytest.approx(math.sqrt(2 / math.pi))
    with pytest.raises(ValueError, match=r"E\[f²\] at q=1 has no six digits"):
        sk.second_moment(lambda z: torch.sin(1e5 * z))
    with pytest.raises(ValueError, match=r"E\[f²\] at q=1 has no six digits"):
        sk.second_moment(lambda z: 1 / z)
    with pytest.raises(ValueError, match=r"E\[f²\] at q=1 has no six digits"):
        sk.second_moment(lambda z: 1 / (z - 0.3))
    with pytest.raises(ValueError, match=r"E\[f²\] at q=1 has no six digits"):
        sk.second_moment(lambda z: torch.exp(z * z))


def test_what_underflows_is_refused():
    with pytest.raises(ValueError, match=r"E\[f²\] at q=1 is below the smallest float64"):
        sk.gain(lambda z: 1e-200 * z)
    zero = sk.gain(lambda z: 0 * z)
    assert zero.forward == zero.backward == math.inf


@pytest.mark.parametrize("q", [0.1, 1.0, 6.0])
def test_growth_up_to_the_edge_of_float64(q):
    assert sk.second_moment(torch.exp, q) == pytest.approx(math.exp(2 * q), rel=1e-12)


NAMES = st.sampled_from(["tanh", "gelu", "relu", "hardtanh", "silu", "softplus"])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(NAMES, st.floats(0.01, 100), st.floats(0.01, 100))
def test_gain_of_a_multiple(name, factor, q):
    f = getattr(functional, name) if name != "tanh" else torch.tanh
    one, many = sk.gain(name, q), sk.gain(lambda z: -factor * f(z), q)
    assert many.forward == pytest.approx(one.forward / factor, rel=1e-12)
    assert many.backward == pytest.approx(one.backward / factor, rel=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(-2, 2), st.floats(1e-8, 1e8))
def test_homogeneous_functions_have_one_gain_at_every_q(slope, q):
    result = sk.gain("leaky_relu", q, negative_slope=slope)
    assert result.forward == pytest.approx(math.sqrt(2 / (1 + slope**2)), rel=1e-12)
    assert result.backward == pytest.approx(result.forward, rel=1e-12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(NAMES, st.floats(0.1, 10), st.floats(0.1, 10))
def test_scaling_the_input_scales_q(name, factor, q):
    f = getattr(functional, name) if name != "tanh" else torch.tanh
    scaled = sk.second_moment(lambda z: f(factor * z), q)
    assert scaled == pytest.approx(sk.second_moment(name, factor**2 * q), rel=1e-11)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(NAMES, st.floats(0.01, 50), st.floats(1.01, 10))
def test_root_q_times_a_moment_never_falls(name, q, factor):
    """∫ f(u)² exp(-u²/2q) du rises with q: why the length map has no cycles."""
    for moment in (sk.second_moment, sk.slope_moment):
        low, high = moment(name, [q, factor * q])
        assert math.sqrt(factor) * high >= low * (1 - 1e-12)


def test_moments_take_arrays_and_limits():
    q = np.array([[0.0, 1e-200, 1e-9], [1.0, 1e9, 1e200]])
    moment = sk.second_moment("relu", q)
    assert moment.shape == q.shape
    np.testing.assert_allclose(moment, q / 2, rtol=1e-13)
    np.testing.assert_allclose(sk.slope_moment("relu", q), 0.5, rtol=1e-13)
    assert sk.second_moment("sigmoid", 0.0) == 0.25
    assert sk.slope_moment("elu", 0.0, alpha=2.0) == pytest.approx(2.5)  # both sides of the kink
    assert isinstance(sk.second_moment("tanh", 1), float)


def test_names_modules_classes_and_callables_agree():
    expected = sk.gain("leaky_relu", negative_slope=0.2)
    assert sk.gain("LeakyReLU", negative_slope=0.2) == expected
    assert sk.gain(torch.nn.LeakyReLU(0.2)) == expected
    assert sk.gain(torch.nn.LeakyReLU, negative_slope=0.2) == expected
    assert sk.gain(functional.leaky_relu, negative_slope=0.2) == expected
    assert sk.gain(torch.nn.LeakyReLU(0.2, inplace=True)) == expected
    assert sk.gain(torch.nn.PReLU(init=0.5)).forward == pytest.approx(math.sqrt(1.6), rel=1e-12)
    tanh_form = sk.gain("gelu", approximate="tanh")
    assert tanh_form.forward != sk.gain("gelu").forward
    assert tanh_form.forward == pytest.approx(sk.gain("gelu").forward, abs=1e-3)
    assert sk.gain("swish") == sk.gain(lambda z: z * torch.sigmoid(z)) or math.isclose(
        sk.gain("swish").forward, sk.gain(lambda z: z * torch.sigmoid(z)).forward, rel_tol=1e-13
    )


def test_modules_and_random_numbers_are_left_alone():
    module = torch.nn.PReLU().train()
    state = torch.random.get_rng_state()
    sk.gain(module)
    with pytest.raises(ValueError, match="twice"):
        sk.gain(torch.nn.Dropout(0.5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.training
    assert module.weight.dtype == torch.float32
    assert module.weight.requires_grad
    assert module.weight.grad is None
    with torch.no_grad():
        assert sk.gain("tanh").backward == pytest.approx(1.467414, abs=1e-6)


def test_dropout_and_rrelu_are_functions_in_eval_mode():
    assert sk.gain(torch.nn.Dropout(0.5).eval()).forward == pytest.approx(1)
    middle = (1 / 8 + 1 / 3) / 2
    expected = math.sqrt(2 / (1 + middle**2))
    assert sk.gain(torch.nn.RReLU().eval()).forward == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("activation", "options", "error", "text"),
    [
        ("tahn", {}, ValueError, r"activation='tahn' is unknown; did you mean 'tanh'\?"),
        ("leakyrelu6x", {}, ValueError, r"activation='leakyrelu6x' is unknown; did you mean"),
        (3.0, {}, TypeError, r"activation=3.0 is not an activation"),
        (None, {}, TypeError, r"activation=None is not an activation"),
        (torch.ones(3), {}, TypeError, r"is not an activation"),
        (torch.nn.ReLU(), {"slope": 1}, TypeError, r"takes no options; got slope"),
        ("relu", {"slope": 1}, ValueError, r"activation=relu failed .* TypeError"),
        (lambda z: z.numpy(), {}, ValueError, r"failed on a float64 tensor .* RuntimeError"),
        (lambda z: 1.0, {}, TypeError, r"returned float; expected a torch.Tensor"),
        (lambda z: z.sum(), {}, ValueError, r"turned shape \(61,\) into \(\)"),
        (lambda z: z.float(), {}, ValueError, r"returned torch.float32 for torch.float64 input"),
        (lambda z: z > 0, {}, ValueError, r"returned torch.bool for torch.float64 input"),
        (lambda z: z.sqrt(), {}, ValueError, r"its value is nan at z=-2.93"),
        (lambda z: z.detach().tanh(), {}, ValueError, r"autograd sees no slope"),
        (torch.nn.Dropout(0.5), {}, ValueError, r"different values when called twice"),
        (torch.nn.RReLU(), {}, ValueError, r"different values when called twice"),
        (torch.nn.Softmax(dim=0), {}, ValueError, r"mixes elements"),
        (lambda z: z - z.mean(), {}, ValueError, r"mixes elements"),
        (torch.nn.GLU(dim=0), {}, ValueError, r"activation=GLU\(dim=0\) failed"),
        (torch.nn.Linear(2, 2), {}, ValueError, r"activation=Linear.* failed"),
        (torch.nn.BatchNorm1d(61), {}, ValueError, r"activation=BatchNorm1d.* failed"),
    ],
)
def test_what_is_not_an_activation(activation, options, error, text):
    for function in (sk.gain, sk.second_moment, sk.slope_moment, sk.MeanField):
        with pytest.raises(error, match=text):
            function(activation, 1.0, **options)
    with pytest.raises(error, match=text):
        sk.critical_weight_var(activation, **options)


def test_nan_far_out_is_found_and_named():
    def broken(z):
        return z + torch.where(z > 9, math.nan, 0.0)

    with pytest.raises(ValueError, match=r"its value is nan at z=9$"):
        sk.gain(broken)
    with pytest.raises(ValueError, match=r"its value is nan at z=9$"):
        sk.MeanField(broken).fixed_point()
    # 9 is 100 standard deviations away: it cannot matter
    assert sk.gain(broken, 0.0081).forward == pytest.approx(1)


@pytest.mark.parametrize(
    ("q", "error", "text"),
    [
        (-1.0, ValueError, r"q=-1.0 is negative"),
        (math.nan, ValueError, r"q=nan is not finite"),
        (math.inf, ValueError, r"q=inf is not finite"),
        ("1", TypeError, r"q='1' is not a number"),
        (None, TypeError, r"q=None is not a number"),
        (1j, TypeError, r"q=1j is not a number"),
        ([[1], [1, 2]], TypeError, r"is not a number or an array"),
    ],
)
def test_bad_variances(q, error, text):
    for function in (sk.gain, sk.second_moment, sk.slope_moment):
        with pytest.raises(error, match=text):
            function("tanh", q)


def test_gain_wants_one_positive_variance():
    with pytest.raises(ValueError, match=r"q=0 is not positive"):
        sk.gain("tanh", 0)
    with pytest.raises(ValueError, match=r"q=\[1, 2\] is an array"):
        sk.gain("tanh", [1, 2])


def test_flat_functions_have_no_backward_gain():
    result = sk.gain(torch.sign)
    assert result.forward == pytest.approx(1, rel=1e-12)
    assert result.backward == math.inf


def test_table_holds_what_torch_knows_and_more():
    rows = {row.name: row for row in sk.gain_table()}
    known = set(
        typing.get_args(typing.get_type_hints(torch.nn.init.calculate_gain)["nonlinearity"])
    )
    assert known
    assert known <= set(rows)
    assert {"gelu", "silu", "mish", "elu", "softplus", "hardtanh", "hardswish"} <= set(rows)
    for name, row in rows.items():
        if name in known:
            assert row.torch_gain == torch.nn.init.calculate_gain(name)
        else:
            assert row.torch_gain is None
        assert row.label in {"derived", "fitted", "convention"}
        assert row.why.endswith(".")
        if row.label == "derived" and row.torch_gain is not None:
            assert row.forward == pytest.approx(row.torch_gain, rel=1e-12)
            assert row.backward == pytest.approx(row.torch_gain, rel=1e-12)
        elif row.torch_gain is not None:
            assert abs(row.forward - row.torch_gain) > 0.05
            assert abs(row.backward - row.torch_gain) > 0.05


def fixed_output(name):
    """Output std and χ that torch's gain holds at any depth."""
    field = sk.MeanField(name, weight_var=torch.nn.init.calculate_gain(name) ** 2)
    q = float(field.fixed_point())
    f = {"tanh": torch.tanh, "selu": functional.selu, "sigmoid": torch.sigmoid}[name]
    mean, _ = integrate.quad(
        lambda z: f(torch.tensor(math.sqrt(q) * z, dtype=torch.float64)).item() * stats.norm.pdf(z),
        -12,
        12,
        points=[0],
        epsabs=1e-12,
    )
    return math.sqrt(sk.second_moment(name, q) - mean**2), field.chi()


def test_the_numbers_in_the_reasons_are_so():
    why = {row.name: row.why for row in sk.gain_table()}
    std, chi = fixed_output("tanh")
    assert f"{std:.6f}" in why["tanh"]
    assert f"{chi:.6f}" in why["tanh"]
    std, chi = fixed_output("selu")
    assert f"{std:.4f}" in why["selu"]
    assert f"{chi:.4f}" in why["selu"]
    assert f"{sk.MeanField('selu', 1.0).chi():.4f}" in why["selu"]
    _, chi = fixed_output("sigmoid")
    assert f"{chi:.4f}" in why["sigmoid"]
