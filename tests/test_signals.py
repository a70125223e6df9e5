"""Signals through random networks against autograd on one network, closed forms and theory."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from stabilitykit.meanfield import MeanField
from stabilitykit.networks import MLP
from stabilitykit.signals import signal_profile


def known(weight, generator):
    """Weights that a test can rebuild."""
    values = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) + weight.shape[0])
    return weight.copy_(values.reshape(weight.shape) / weight.shape[1] ** 0.5)


@pytest.mark.parametrize("activation", ["tanh", "relu", nn.ReLU(inplace=True), nn.Softplus()])
def test_every_moment_equals_autograd_on_the_same_network(activation):
    widths = [5, 7, 6, 3]
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    profile = signal_profile(
        widths,
        activation,
        init=known,
        seeds=2,
        inputs=x,
        loss=lambda y: y.square().mean((1, 2)),
        dtype=torch.float64,
    )
    network, zs, fs = MLP(widths, activation, bias=False).double(), [], []
    hidden = x
    for linear in network.linears:
        known(linear.weight.data, None)
        z = linear(hidden)
        z.retain_grad()
        hidden = network.activation(z.clone())
        zs.append(z)
        fs.append(hidden)
    zs[-1].square().mean().backward()
    for row in range(2):
        for layer, (z, f, linear) in enumerate(zip(zs, fs, network.linears, strict=True)):
            a, b, c, d = torch.nn.functional.normalize(z, dim=1)
            expected = {
                "preactivation": z.square().mean(),
                "activation": f.square().mean(),
                "mean": f.mean(),
                "correlation": (a @ b + c @ d) / 2,
                "gradient": z.grad.square().mean(),
                "weight_gradient": linear.weight.grad.square().mean(),
            }
            for name, value in expected.items():
                assert getattr(profile, name)[row, layer] == pytest.approx(value.item(), rel=1e-10)


def test_shapes_and_layers():
    profile = signal_profile([10, 20, 5], "relu", seeds=7)
    assert {part.shape for part in profile} == {(7, 2)}
    assert {part.dtype for part in profile} == {np.dtype(np.float64)}


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_variances_of_the_first_layer_and_of_a_linear_network(init):
    profile = signal_profile(
        [50] * 6, "linear", weight_var=1.5, bias_var=0.25, init=init, seeds=2000, batch=1
    )
    q = [1.5 + 0.25]
    for _ in range(4):
        q.append(1.5 * q[-1] + 0.25)
    gradient = 1.5 ** np.arange(4, -1, -1)
    for samples, expected in ((profile.preactivation, q), (profile.gradient, gradient)):
        error = samples.std(0) / len(samples) ** 0.5
        assert (np.abs(samples.mean(0) - expected) < 4.5 * error).all()


def test_a_wide_tanh_network_follows_mean_field_theory():
    profile = signal_profile([1000] * 6, "tanh", weight_var=2.0, bias_var=0.1, seeds=6, batch=8)
    predicted = MeanField("tanh", 2.0, 0.1).lengths(4, start=2.1)
    # The mean over seeds leaves the theory by O(1/width) and by the scatter of six seeds.
    np.testing.assert_allclose(profile.preactivation.mean(0), predicted, rtol=0.02)


def test_orthogonal_weights_keep_every_length():
    profile = signal_profile(
        [30] * 5, "linear", init=nn.init.orthogonal_, seeds=3, dtype=torch.float64
    )
    np.testing.assert_allclose(profile.preactivation, profile.preactivation[:, :1] * np.ones(4))
    np.testing.assert_allclose(profile.gradient, profile.gradient[:, -1:] * np.ones(4))


def test_an_initialiser_of_torch_sets_the_variance():
    fill = functools.partial(nn.init.xavier_uniform_, gain=5 / 3)
    profile = signal_profile([100] * 3, "tanh", init=fill, seeds=400, batch=4)
    first = profile.preactivation[:, 0]
    assert abs(first.mean() - 25 / 9) < 4.5 * first.std() / 20


def test_a_network_depends_on_its_own_seed_only():
    widths = [256] * 9  # eight networks fill one portion, so ten need two
    many = signal_profile(widths, "tanh", seeds=10)
    for seed in (0, 9):
        alone = signal_profile(widths, "tanh", seeds=[seed])
        for part, row in zip(many, alone, strict=True):
            np.testing.assert_allclose(part[seed], row[0], rtol=1e-4)
    assert len(np.unique(many.preactivation[:, 0])) == 10


def test_moments_outlast_squares_that_overflow_float32():
    widths, standard = [256] * 36, {"weight_var": 256.0, "seeds": 2}
    single = signal_profile(widths, "linear", **standard)
    std = single.preactivation**0.5
    # 16 a layer: the squares of float32 overflow from layer 16, the numbers themselves after 31
    np.testing.assert_allclose(np.log2(std[:, :31]), 4 * np.arange(1, 32) * np.ones((2, 1)), atol=2)
    assert not np.isfinite(std[:, -1]).any()
    double = signal_profile(widths, "linear", dtype=torch.float64, **standard)
    assert np.isfinite(double.preactivation).all()


def test_correlation_of_equal_opposite_and_single_inputs():
    x = torch.randn(1, 20)
    for pair, expected in (((x, x), 1.0), ((x, -x), -1.0)):
        profile = signal_profile([20] * 4, "tanh", inputs=torch.cat(pair), seeds=3)
        np.testing.assert_allclose(profile.correlation, expected, rtol=1e-5)
    assert np.isnan(signal_profile([20] * 4, "tanh", batch=1, seeds=3).correlation).all()


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"weight_var": -1.0}, ValueError, "weight_var must be a finite number .*, got -1.0"),
        ({"bias_var": float("nan")}, ValueError, "bias_var must be a finite number .*, got nan"),
        (
            {"inputs": torch.ones(3, 4)},
            ValueError,
            r"inputs must have shape \[batch, 5\], got \[3, 4\]",
        ),
        (
            {"init": "orthogonal"},
            ValueError,
            "init must be 'normal', 'uniform' .*, got 'orthogonal'",
        ),
        ({"init": nn.init.zeros_, "weight_var": 2.0}, ValueError, "weight_var=2.0: .* init"),
        ({"batch": 0}, ValueError, "batch must be a whole number of at least 1, got 0"),
        ({"loss": lambda y: y.sum((1, 2, 0))}, ValueError, r"loss must .* \[2\], got \[\]"),
        ({"activation": "rellu"}, ValueError, "did you mean 'relu'"),
        ({"weight_var": "a"}, TypeError, "weight_var must be .* at least 0, got 'a'"),
        ({"bias_var": None}, TypeError, "bias_var must be .* at least 0, got None"),
        ({"batch": "a"}, TypeError, "batch must be a whole number of at least 1, got 'a'"),
        ({"seeds": -1}, ValueError, "seeds must be a positive count .*, got -1$"),
        ({"init": "orthgonal"}, ValueError, "got 'orthgonal'; did you mean 'orthogonal_'?"),
        ({"init": "unifrom"}, ValueError, "got 'unifrom'; did you mean 'uniform'?"),
        ({"init": ["normal"]}, ValueError, r"init must be .*, got \['normal'\]"),
        (
            {"init": nn.init.eye_},
            ValueError,
            r"init=eye_ failed as init\(weight \[4, 5\], generator=…\): TypeError: .*'generator'",
        ),
        (
            {"init": lambda weight, generator: torch.ones_like(weight)},
            ValueError,
            "init=<lambda> left entries of the weight that are not finite",
        ),
        ({"inputs": [[1.0] * 5]}, TypeError, r"inputs must be a tensor \[batch, 5\], got \[\["),
        ({"inputs": torch.ones(0, 5)}, ValueError, r"inputs must .*, got \[0, 5\]"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating .*, got torch.int64"),
        ({"dtype": "float32"}, TypeError, "dtype must be a floating torch.dtype, got 'float32'"),
        ({"loss": "mse"}, TypeError, "loss must be a callable .*, got 'mse'"),
        ({"loss": lambda y: 1.0}, TypeError, "loss must return a torch tensor, got float 1.0"),
        ({"loss": nn.MSELoss()}, ValueError, r"loss failed on outputs \[2, 16, 4\] .*'target'"),
        ({"loss": lambda y: torch.ones(2)}, ValueError, "loss must depend on the outputs"),
        ({"activation": lambda z: 1.0}, TypeError, "activation=.* must return a tensor, got 1.0"),
        (
            {"activation": nn.GLU()},
            ValueError,
            r"activation=GLU.* elementwise; it turned shape \[2, 16, 4\] into \[2, 16, 2\]",
        ),
        (
            {"activation": lambda z: z @ z},
            ValueError,
            r"activation=.* failed on shape \[2, 16, 4\]",
        ),
        ({"activation": torch.ones_like}, ValueError, "activation=.* it carries no gradient"),
    ],
)
def test_bad_input_is_named(changed, error, text):
    arguments = {"widths": [5, 4], "activation": "tanh", "seeds": 2} | changed
    with pytest.raises(error, match=text):
        signal_profile(**arguments)
