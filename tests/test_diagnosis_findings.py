"""What `diagnose` names, where it says that it starts, and what it leaves alone."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import nets, sick

import stabilitykit as sk
from stabilitykit import _verdicts
from stabilitykit._findings import CODES, HIDES, causes, finding
from stabilitykit._recurrent import growing, recurrent


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_masks_of_infinity_and_gaps_left_out_are_no_findings():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.head = nn.Linear(16, 1)

        def forward(self, x, mask):
            return self.head(self.attention(x, x, x, attn_mask=mask)[0])

    torch.manual_seed(0)
    mask = torch.full((6, 6), float("-inf")).triu(1)
    targets = torch.randn(8, 6, 1)
    targets[0] = float("nan")

    def loss_fn(y, t):
        there = ~t.isnan()
        return (y[there] - t[there]).square().mean()

    batch = ((torch.randn(8, 6, 16), mask), targets)
    assert sk.diagnose(Masked(), batch, loss_fn).findings == ()


def test_causes_hide_what_follows_from_them():
    found = [finding(code, "x", 1, 0, "Do.") for code in CODES]
    kept = [f.code for f in causes(found[1:])]
    assert "unscaled-input" in kept
    assert "saturated" not in kept
    flat = [finding(c, "x", 1, 0, "Do.") for c in ("vanishing-signal", "update-too-small")]
    assert causes(flat) == (flat[0],)
    assert set(HIDES) <= set(CODES)
    assert set().union(*HIDES.values()) <= set(CODES)


def test_a_slope_of_zero_of_saturated_units_is_no_cut():
    torch.manual_seed(0)
    model = nets.stack([16, 48, 48, 4], nn.Sigmoid)
    nn.init.constant_(model[2].bias, -200.0)  # whose sigmoid is 0, and so is its slope
    (found,) = sk.diagnose(model, nets.table(), F.cross_entropy).findings
    assert (found.code, found.layer) == ("saturated", "2")


def test_a_rate_that_is_no_number_spoils_the_first_weight():
    torch.manual_seed(0)
    model = nets.stack([16, 48, 4])
    optimizer = torch.optim.SGD(model.parameters(), lr=float("nan"))
    (found,) = sk.diagnose(model, nets.table(), F.cross_entropy, optimizer).findings
    assert (found.code, found.layer) == ("non-finite", "0.weight")
    assert (
        found.measured == "768 entries of 0.weight are nan or infinite after the optimizer's step"
    )
    assert found.remedy.startswith("Lower the learning rate")
    assert all(p.isfinite().all() for p in model.parameters())


class Leftover(nn.Module):
    """What the last layer leaves of the input is computed, and read by nobody."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.back = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(32, 16)

    def forward(self, x):
        h = torch.relu(self.body(x))
        x = x - self.back(h)
        return self.head(h)


def test_what_the_loss_does_not_read_is_no_cut():
    torch.manual_seed(0)
    (found,) = sk.diagnose(Leftover(), nets.table(), F.cross_entropy).findings
    assert (found.code, found.layer) == ("no-gradient", "back.weight")
    assert found.remedy.startswith("Let the loss read what is made of it, or freeze")
    assert found.severity == "warning"


class Opened(nn.Module):
    """Positive outputs by an exponential."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).exp()


def test_an_overflow_of_unscaled_inputs_names_both():
    torch.manual_seed(0)
    model, (x, t) = Opened(nets.stack([16, 48, 4])), nets.table()
    found = sk.diagnose(model, (1e4 * x, t), F.cross_entropy).findings
    assert [(one.code, one.layer) for one in found] == [
        ("non-finite", "exp after net.2"),
        ("unscaled-input", "input"),
    ]
    x[3, 2] = float("nan")
    (found,) = sk.diagnose(model, (x, t), F.cross_entropy).findings
    assert (found.code, found.layer) == ("non-finite", "input")


def test_sigmoids_that_are_gates_stay():
    (found, *_) = sk.diagnose(*sick.build("cnn-gated-tiny-weights")).findings
    assert found.remedy == "Draw all weights again: `sk.lsuv(model, batch)`."
    (found, *_) = sk.diagnose(*sick.build("deep-sigmoid-6")).findings
    assert found.remedy.startswith("Replace the sigmoids between layers")


@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid])
def test_gates_may_be_open_for_good(gate):
    """As training makes them; what is no gate may not."""
    torch.manual_seed(0)
    model = nets.gated()
    for module in model:
        if isinstance(module, nets.Gated):
            module.gate = gate()
            nn.init.constant_(module.excite.bias, 6.0)  # flat in both
            nn.init.normal_(module.excite.weight, std=0.01)
    batch = nets.images()
    diagnosis = sk.diagnose(model, batch, F.cross_entropy)
    shares = [r.saturated for r in diagnosis.records if r.kind == gate.__name__.lower()]
    assert shares == [1.0, 1.0]
    assert all(found.code != "saturated" for found in diagnosis.findings)
    (found,) = _verdicts.activations(model, diagnosis.records, "", gates=set())
    assert (found.code, found.layer) == ("saturated", "2.excite")


def test_one_number_in_a_million_weights_out_of_place_is_found():
    model = sick.poked(nets.stack([16, 1000, 1000, 4]), "2.weight", float("nan"))
    (found,) = sk.diagnose(model, nets.table(), F.cross_entropy).findings
    assert (found.code, found.layer) == ("non-finite", "2.weight")
    assert found.measured == "1 entry of 2.weight is nan or infinite"


def test_plain_parameters_are_named():
    found = sk.diagnose(*sick.build("plain-parameters-small"))
    assert {one.layer for one in found.findings} == {"weights.0", "weights.23"}
    assert {s.kind for s in found.signals} == {"product"}


def test_recurrent_layers_are_judged_whatever_they_are_given():
    """Packed sequences, states from outside, no batch, several layers of two directions."""
    torch.manual_seed(0)
    x = torch.randn(5, 40, 6)
    packed = nn.utils.rnn.pack_padded_sequence(x, [40, 30, 20, 9, 1], batch_first=True)
    many = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    state = torch.randn(4, 5, 24)
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        layer = kind(6, 24, **many)
        states = (state, state) if kind is nn.LSTM else state
        for given in ((x,), (x, states), (packed,), (x[0],)):
            assert recurrent(layer, lambda g=given, m=layer: m(*g)) == []
        for name, weight in layer.named_parameters():
            weight.data *= 20 if "weight_hh" in name else 1
        for given in ((x,), (x, states), (packed,), (x[0],)):
            found = recurrent(layer, lambda g=given, m=layer: m(*g))
            assert [one.code for one in found] == ["exploding-gradient"]


def test_a_gradient_through_time_grows_as_products_of_slopes_do():
    """tanh at h = 0 has slope 1: with weights 2R, R a rotation, each step doubles."""
    layer = nn.RNN(3, 8, bias=False)
    nn.init.orthogonal_(layer.weight_hh_l0, 2.0)
    grown = growing(layer, torch.zeros(6, 4, 3))
    assert grown == pytest.approx(6 * math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("detached-branch", "Take out the detach after right, which cuts it off from the loss"),
        ("detached-features", "Take out the detach in '2', which cuts it off from the loss"),
        ("rounded-features", "Replace the round in '1', whose slope is 0, by one with a slope"),
        ("features-without-grad", "Take out the torch.no_grad around '1', which cuts it off"),
        ("forgotten-branch", "Call it in forward, or freeze it"),
        ("reverse-lstm-read-at-the-end", "Let the loss depend on it (its output is multiplied by"),
    ],
)
def test_what_cuts_a_gradient_off_is_named(name, said):
    (found,) = sk.diagnose(*sick.build(name)).findings
    assert found.remedy.startswith(said)
    assert found.severity == ("warning" if name == "forgotten-branch" else "error")


def test_a_detach_beside_the_way_is_not_blamed():
    class Logs(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, x):
            h = self.one(x)
            self.seen = h.detach().norm()
            return self.head(self.two(x) + h.data)

    (found,) = sk.diagnose(Logs(), nets.table(), F.cross_entropy).findings
    assert found.remedy.startswith("Take out the data after two, which cuts it off")


def test_whole_modules_are_frozen_not_each_weight():
    class Far(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nets.stack([16] + [48] * 5 + [8]), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.body(x).detach())

    (found,) = sk.diagnose(Far(), nets.table(), F.cross_entropy).findings
    assert found.remedy.endswith("`model.get_submodule('body').requires_grad_(False)`.")


def test_logs_of_masks_are_no_origin_of_nan():
    """log(0) = −inf on purpose, added to scores; the nan comes of a division later."""

    class Masked(nn.Module):
        def __init__(self, safe):
            super().__init__()
            self.scores, self.head, self.safe = nn.Linear(16, 8), nn.Linear(8, 4), safe

        def forward(self, x):
            share = (self.scores(x) + (torch.arange(8) % 2).log()).softmax(1)
            return self.head(share / (share + (1e-8 if self.safe else 0)))

    assert sk.diagnose(Masked(True), nets.table(), F.cross_entropy).healthy
    (found,) = sk.diagnose(Masked(False), nets.table(), F.cross_entropy).findings
    assert (found.code, found.layer) == ("non-finite", "div after scores")
