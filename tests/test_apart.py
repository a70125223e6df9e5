"""How far samples differ after each layer, against closed forms and networks drawn anew."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import stabilitykit as sk
from scripts.benchmarks import prediction as benchmark
from stabilitykit import _law
from stabilitykit._activations import Activation
from stabilitykit._apart import apart, through
from stabilitykit._gaussian import GaussianMeans


def mapped(name, share, square=1.0, law=None, sizes=0.0):
    activation = Activation(name)
    law = law or _law.gaussian()
    image, steepness = map(torch.from_numpy, activation((square**0.5 * law.values).numpy()))
    return through(share, sizes, law, GaussianMeans(activation), square, image, steepness)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 1e-2, 1e-4, 1e-8, 1e-12])
def test_relu_in_closed_form(share):
    """E[relu(a) relu(b)] = (sin θ + (π − θ) cos θ)/(2π), Cho & Saul 2009, eq. 6 with n = 1."""
    angle = 2 * math.asin((share / 2) ** 0.5)
    # 1 − (sin θ + (π − θ) cos θ)/π without cancellation
    shared = math.sin(angle) - angle * math.cos(angle)
    exact = 2 * math.sin(angle / 2) ** 2 - shared / math.pi
    assert mapped("relu", share) == pytest.approx(exact, rel=0.02)


def test_erf_in_closed_form():
    """E[erf(a) erf(b)] = 2/π asin(2qc/(1 + 2q)), Williams 1996."""
    for share in (1.5, 0.9, 0.2, 0.01):
        q = 0.7
        both = [2 / math.pi * math.asin(2 * q * c / (1 + 2 * q)) for c in (1 - share, 1.0)]
        share_after = mapped(torch.erf, share, q)
        assert share_after == pytest.approx(1 - both[0] / both[1], rel=1e-3)


def test_without_a_series_small_differences_and_independence_are_exact():
    """E[(f(x) − f(x'))²]/2 is E[f'(x)²]·E[(x − x')²]/2 for small ones, and Var f for x' anew."""
    x = 1 + torch.randn(1 << 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law, square = _law.empirical(x), x.square().mean().item()
    y = x.tanh()
    slope = (1 - y**2).square().mean() / y.square().mean() * square
    assert mapped("tanh", 1e-6, square, law) == pytest.approx(1e-6 * slope.item(), rel=0.01)
    independent = (y.var() / y.square().mean()).item()
    assert mapped("tanh", 1 - law.mean**2, square, law) == pytest.approx(independent, rel=0.01)
    assert mapped(lambda z: 2 * z, 0.3, square, law) == pytest.approx(0.3, rel=1e-6)


def test_samples_of_different_size_stay_so_through_relu():
    """Of c·z and z, relu keeps the ratio; so the share (1 − c)²/(1 + c²) is kept."""
    for c in (0.9, 0.5, 0.1):
        share = (1 - c) ** 2 / (1 + c**2)
        assert mapped("relu", share, 1.0, None, share) == pytest.approx(share, rel=1e-6)


def test_measured_shares():
    x = torch.randn(4000, 50, generator=torch.Generator().manual_seed(0)).double()
    assert apart(x) == pytest.approx(1, abs=0.02)
    assert apart(x + 3) == pytest.approx(0.1, rel=0.02)
    assert apart(x[:1]) == apart(x[0]) == 1
    assert apart(x.to_sparse()) == apart(x)
    assert apart(torch.zeros(3, 2)) == apart(torch.full((3, 2), math.nan)) == 0


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.start = nn.Linear(32, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(4)
        )

    def forward(self, x):
        x = self.start(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return x


NETWORKS = {
    "sigmoid": lambda: sk.MLP([32, *[256] * 6], "sigmoid"),
    "tanh": lambda: benchmark.perceptron(256, "tanh"),
    "relu": lambda: benchmark.perceptron(256, "relu"),
    "residual": lambda: benchmark.drawn(Residual(256)),
    "layer norm": lambda: nn.Sequential(
        nn.Linear(32, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 256), nn.SiLU(),
        nn.Dropout(0.2), nn.Linear(256, 256),
    ),
    "batch norm": lambda: nn.Sequential(
        nn.Linear(32, 256), nn.Sigmoid(), nn.BatchNorm1d(256), nn.Linear(256, 256),
    ),
}  # fmt: skip


def amplitudes(model, x):
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, _, y, name=name: found.update({name: y}))
    with torch.no_grad():
        model(x)
    return {k: (y - y.mean(0)).double().square().mean().sqrt().item() for k, y in found.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_amplitudes_of_networks_drawn_anew(name):
    """Samples that agree by two thirds; within a tenth, of which finite width takes a part."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(16, 32, generator=generator) + 1.4 * torch.randn(1, 32, generator=generator)
    ratios = []
    for seed in range(6):
        torch.manual_seed(seed)
        model = NETWORKS[name]()
        rows = [row for row in sk.predict(model, x).layers if row.kind == "linear"]
        measured = amplitudes(model, x)
        ratios.append([row.amplitude / measured[row.layer] for row in rows])
    logs = np.log(np.array(ratios))
    error = logs.std(0, ddof=1) / len(logs) ** 0.5
    assert (error < 0.12).all()
    assert (np.abs(logs.mean(0)) < 0.1 + 3 * error).all()


def test_the_source_is_what_the_module_was_given():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 4)), torch.randn(32, 8)
    first, second, third = sk.predict(model, x).layers
    assert first.source == pytest.approx((x - x.mean(0)).square().mean().sqrt().item(), rel=1e-5)
    assert (second.source, third.source) == (first.amplitude, second.amplitude)


def test_zero_weights_leave_no_amplitude_and_sparse_inputs_have_one():
    model = nn.Linear(8, 64)
    nn.init.zeros_(model.weight)
    for x in (torch.randn(32, 8), torch.randn(32, 8).to_sparse()):
        (row,) = sk.predict(model, x).layers
        assert row.amplitude == 0
        assert row.source == pytest.approx(x.to_dense().var(0, correction=0).mean() ** 0.5)


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(6))

    def forward(self, x):
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return x


def test_samples_of_different_size_stay_so_through_sums():
    """Without biases all of it is homogeneous: from c·z and z come multiples, also of sums."""
    torch.manual_seed(0)
    z = torch.randn(1, 64)
    for row in sk.predict(Sums(), torch.cat([z, 0.8 * z])).layers:
        share = 2 * row.amplitude**2 / row.forward
        assert share == pytest.approx((1 - 0.8) ** 2 / (1 + 0.8**2), rel=1e-5)
