"""A probe's numbers are those of the tensors, and the model trains as without it."""

import gc
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import stabilitykit as sk
from stabilitykit import _flatness, _ledger, _parameters, _quiet
from stabilitykit._samples import positions


class Net(nn.Module):
    """A convolution with an in-place activation, a functional one, and a shared layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.act = nn.ReLU(inplace=True)
        self.up = nn.Linear(8 * 36, 64)
        self.shared = nn.Linear(64, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        h = F.gelu(self.up(self.act(self.conv(x)).flatten(1)))
        return self.out(torch.tanh(self.shared(self.shared(h))))


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def mlp(depth=3, width=64, activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(
        *[m for _ in range(depth) for m in (nn.Linear(width, width), activation())]
    )


def train(model, steps=3, probe=None, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    torch.manual_seed(1)
    results = []

    def run():
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(torch.randn(32, 3, 8, 8)).square().mean()
            loss.backward()
            optimizer.step()
            results.append(loss.item())

    if probe is None:
        run()
        return results
    with sk.Probe(model, optimizer, **probe) as used:
        run()
    return results, used


def hooks(model):
    found = []
    for module in model.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found += list(getattr(module, kind).values())
    found += [p._backward_hooks for p in model.parameters() if p._backward_hooks]
    return found


def rms(tensor):
    return tensor.detach().double().square().mean().sqrt().item()


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_training_is_bit_identical(mode):
    bare = net()
    expected = train(bare)
    watched = net()
    results, _ = train(watched, probe={"mode": mode})
    assert results == expected
    assert all(map(torch.equal, bare.parameters(), watched.parameters()))
    assert not hooks(watched)


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_random_numbers_statistics_and_clipping_are_as_without(mode):
    ends = []
    for watch in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.RReLU(inplace=True),
            nn.Dropout(),
            nn.Flatten(),
        ).append(nn.Linear(288, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        with sk.Probe(model, optimizer, mode=mode) if watch else nullcontext():
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(32, 3, 8, 8)).square().mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
        ends.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *ends))


def test_exact_numbers_are_those_of_torch():
    model, x = net(), torch.randn(16, 3, 8, 8)
    with sk.Probe(model, mode="exact") as probe:
        model(x).square().sum().backward()
    conv = model.conv(x)
    h = F.gelu(model.up(F.relu(conv).flatten(1)))
    first = model.shared(h)
    second = model.shared(first)
    tanh = torch.tanh(second)
    out = model.out(tanh)
    expected = {
        ("conv", "conv2d", 0): conv,
        ("act", "relu", 0): F.relu(conv),
        ("up", "linear", 0): model.up(F.relu(conv).flatten(1)),
        ("", "gelu", 0): h,
        ("shared", "linear", 0): first,
        ("shared", "linear", 1): second,
        ("", "tanh", 0): tanh,
        ("out", "linear", 0): out,
    }
    assert [(r.layer, r.kind, r.call) for r in probe.records] == list(expected)
    for record, y in zip(probe.records, expected.values(), strict=True):
        assert record.shape == tuple(y.shape)
        assert record.mean == pytest.approx(y.double().mean().item(), rel=1e-6, abs=1e-9)
        assert record.std == pytest.approx(y.double().std(correction=0).item(), rel=1e-6)
        assert record.rms == pytest.approx(rms(y), rel=1e-6)
    by = {(r.layer, r.kind, r.call): r for r in probe.records}
    assert by["out", "linear", 0].grad_rms == pytest.approx(rms(2 * out), rel=1e-6)
    grads = torch.autograd.grad(out.square().sum(), [conv, first, second, tanh])
    keys = [
        ("conv", "conv2d", 0),
        ("shared", "linear", 0),
        ("shared", "linear", 1),
        ("", "tanh", 0),
    ]
    for key, gradient in zip(keys, grads, strict=True):
        assert by[key].grad_rms == pytest.approx(rms(gradient), rel=1e-5)
    assert by["act", "relu", 0].saturated == pytest.approx((conv <= 0).double().mean().item())
    dead = (conv <= 0).all(3).all(2).all(0).double().mean().item()
    assert by["act", "relu", 0].dead == pytest.approx(dead)
    flat = (1 - tanh.double() ** 2 < 0.01).double().mean().item()
    assert by["", "tanh", 0].saturated == pytest.approx(flat)


@pytest.mark.parametrize("mode", ["sampled", "hybrid"])
def test_samples_agree_with_the_whole(mode):
    _, exact = train(net(), probe={"mode": "exact"})
    _, other = train(net(), probe={"mode": mode})
    assert len(exact.records) == len(other.records) > 0
    for a, b in zip(exact.records, other.records, strict=True):
        assert (a.layer, a.kind, a.call, a.step) == (b.layer, b.kind, b.call, b.step)
        # Four standard errors of 640 entries or more: the rms to 4/√(2·640) = 11 %.
        assert b.rms == pytest.approx(a.rms, rel=0.11)
        assert b.grad_rms == pytest.approx(a.grad_rms, rel=0.25)  # heavier tails
        if a.saturated is not None:
            assert b.saturated == pytest.approx(a.saturated, abs=4 * 0.5 / math.sqrt(1024))
        assert b.dead == (a.dead if mode == "hybrid" else None)
    for a, b in zip(exact.parameters, other.parameters, strict=True):
        assert b.weight_norm == pytest.approx(a.weight_norm, rel=0.1)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-4 if mode == "hybrid" else 0.3)
        assert b.update_ratio == pytest.approx(a.update_ratio, rel=0.3)


def test_positions_meet_every_row_and_column():
    places = positions(512 * 512, torch.device("cpu"))
    assert len(places.unique()) == 1024
    for part in (places // 512, places % 512):  # 1,024 places among 16 equal parts of 64 each
        counts = torch.bincount(part // 32, minlength=16)
        assert counts.min() >= 50
        assert counts.max() <= 80


def test_parameters_by_hand():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    weight = model.weight.detach().clone()
    with sk.Probe(model, optimizer, mode="exact") as probe:
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    record = probe.parameters[0]
    gradient = model.weight.grad
    assert record.parameter == "weight"
    assert record.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-6)
    assert record.weight_norm == pytest.approx(weight.norm().item(), rel=1e-6)
    ratio = (0.5 * gradient).norm().item() / weight.norm().item()
    assert record.update_ratio == pytest.approx(ratio, rel=1e-5)


def test_a_weight_of_zero_has_no_ratio():
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with sk.Probe(model, optimizer) as probe:
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    assert [p.update_ratio is None for p in probe.parameters] == [False, True]


def test_every_nth_step_and_nothing_between():
    model = net()
    _, probe = train(model, steps=7, probe={"every": 3})
    assert sorted({r.step for r in probe.records}) == [0, 3, 6]
    assert sorted({p.step for p in probe.parameters}) == [0, 3, 6]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer, every=2):
        assert hooks(model)
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        assert not hooks(model)  # idle


def test_without_an_optimiser_each_call_is_a_step():
    model = net()
    with sk.Probe(model, every=3) as probe:
        for step in range(7):
            model(torch.randn(4, 3, 8, 8)).sum().backward()
            assert sorted({r.step for r in probe.records}) == [s for s in (0, 3, 6) if s <= step]
    assert sorted({r.step for r in probe.records}) == [0, 3, 6]
    assert all(r.grad_rms > 0 for r in probe.records)
    assert all(p.grad_norm > 0 for p in probe.parameters)
    assert all(p.update_ratio is None for p in probe.parameters)


def test_gradients_are_read_before_a_loop_by_hand_clears_them():
    model = nn.Linear(4, 1)
    with sk.Probe(model) as probe:
        for _ in range(2):
            model(torch.randn(8, 4)).sum().backward()
            model.zero_grad()
    assert all(p.grad_norm > 0 for p in probe.parameters)


def test_evaluation_does_not_count():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer) as probe:
        model(torch.randn(4, 3, 8, 8)).sum().backward()
        model.eval()
        with torch.no_grad():
            model(torch.randn(4, 3, 8, 8))
        model.train()
        optimizer.step()
    assert max(r.call for r in probe.records if r.layer == "conv") == 0


class Readings(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero")
        self.count += any(f"aten.{name}." in str(func) for name in waits)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_one_synchronisation_per_recorded_step(mode, monkeypatch):
    waited = []

    def counted(name):
        original = getattr(torch.Tensor, name)
        return lambda *args: waited.append(name) or original(*args)

    # Else the mode that counts would not see what the probe does in a pass.
    monkeypatch.setattr(_quiet, "_len_torch_dispatch_stack", lambda: 0)
    for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    model = net()
    train(model, probe={})  # the flat stretches of the activations are computed once
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    waited.clear()
    with sk.Probe(model, optimizer, mode=mode, every=2), Readings() as readings:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(16, 3, 8, 8)).square().mean().backward()
            optimizer.step()
    assert waited == ["tolist"] * 2
    assert readings.count == 0


@pytest.mark.parametrize("how", ["exception", "collected", "generator", "interrupt"])
def test_no_hook_stays(how):
    model, modes = net(), torch.overrides._len_torch_function_stack()
    model.out.register_forward_hook(lambda *a: stop(how))
    own = hooks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 3, 8, 8)

    def stop(how):
        if how in ("exception", "interrupt"):
            raise (ValueError if how == "exception" else KeyboardInterrupt)("stop")

    if how in ("exception", "interrupt"):
        with pytest.raises((ValueError, KeyboardInterrupt), match="stop"):  # noqa: SIM117
            with sk.Probe(model, optimizer) as probe:
                model(x)
        assert [r.layer for r in probe.records][:2] == ["conv", "act"]
    elif how == "collected":
        probe = sk.Probe(model, optimizer).__enter__()
        output = model(x)
        del probe
        gc.collect()
        assert not output._backward_hooks
        output.sum().backward()
    else:

        def generator():
            with sk.Probe(model, optimizer):
                yield model(x)

        running = generator()
        next(running)
        assert len(hooks(model)) > len(own)
        del running
        gc.collect()
    assert hooks(model) == own
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert torch.overrides._len_torch_function_stack() == modes


def test_hooks_on_tensors_are_removed_too():
    model = net()
    with sk.Probe(model) as probe:
        output = model(torch.randn(2, 3, 8, 8))
        assert output._backward_hooks
    assert not output._backward_hooks
    output.sum().backward()  # after the end: no longer recorded
    assert all(r.grad_rms is None for r in probe.records)


def test_a_probe_can_be_entered_again_and_not_twice_at_once():
    model = net()
    probe = sk.Probe(model)
    for _ in range(2):
        with probe:
            model(torch.randn(2, 3, 8, 8))
            with pytest.raises(RuntimeError, match="already running"):
                probe.__enter__()
    assert sorted({r.step for r in probe.records}) == [0, 1]
    assert not hooks(model)


def test_two_probes_at_once():
    model = net()
    with sk.Probe(model, mode="exact") as one, sk.Probe(model, mode="exact") as two:
        model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert one.records == two.records
    assert not hooks(model)


# Where nan and infinity begin.


def test_first_nonfinite_in_each_direction():
    x = torch.randn(4, 3, 8, 8)

    def first(model, x, mode="hybrid", loss=lambda y: y.square().sum()):
        with sk.Probe(model, mode=mode) as probe:
            loss(model(x)).backward()
        return probe.first_nonfinite

    assert first(net(), x) is None
    bad = x.clone()
    bad[0, 0, 0, 0] = math.inf
    assert first(net(), bad) == sk.NonFinite(0, "", 0, "input")
    model = net()
    with torch.no_grad():
        model.up.weight[3, 4] = math.nan
    assert first(model, x, "exact") == sk.NonFinite(0, "up.weight", 0, "parameter")
    model = net()
    model.shared.register_forward_hook(lambda m, i, o: o / 0.0)
    assert first(model, x) == sk.NonFinite(0, "shared", 0, "forward")
    # The square root's slope at 0 is infinite.
    found = first(net(), x, loss=lambda y: (y - y.detach()).abs().sqrt().sum())
    assert found == sk.NonFinite(0, "out", 0, "backward")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["hybrid", "exact"])
def test_one_entry_among_a_million_is_found(value, mode):
    model = nn.Identity()
    x = torch.zeros(1024, 1024)
    x[517, 33] = value
    with sk.Probe(model, mode=mode) as probe:
        model(x)
    (record,) = probe.records
    assert record.nonfinite == 1
    assert math.isnan(record.rms)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_entry_of_a_gradient_is_not_called_finite(value):
    """Hybrid mode samples it; the parameters' gradients, seen in whole, tell."""
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh())
    model[1].register_forward_hook(lambda m, i, o: o.register_hook(spoil) and None)

    def spoil(gradient):
        gradient = gradient.clone()
        gradient[17, 33] = value
        return gradient

    with sk.Probe(model) as probe:
        model(torch.randn(256, 256)).sum().backward()
    assert probe.parameters[0].grad_nonfinite == 256  # a row of the weight
    assert probe.records[0].grad_nonfinite != 0
    with sk.Probe(model, mode="exact") as probe:
        model(torch.randn(256, 256)).sum().backward()
    assert probe.records[0].grad_nonfinite == 1
    assert probe.first_nonfinite == sk.NonFinite(0, "1", 0, "backward")


def test_large_finite_numbers_are_finite():
    model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Identity())
    with torch.no_grad():
        model[0].weight.mul_(1e25)
    for mode in ("sampled", "hybrid", "exact"):
        with sk.Probe(model, mode=mode) as probe:
            (1e5 * model(torch.randn(64, 512))).sum().backward()
        assert probe.first_nonfinite is None
        assert 1e24 < probe.records[0].rms < 1e26  # its square overflows float32
        gradient = model[0].weight.grad.double().norm().item()
        assert probe.parameters[0].grad_norm == pytest.approx(gradient, rel=0.1)
        model.zero_grad()


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_gradients_whose_squares_leave_float32(size):
    model = nn.Linear(64, 64, bias=False)
    with sk.Probe(model) as probe:
        (size * model(torch.randn(8, 64))).sum().backward()
    expected = model.weight.grad.double().norm().item()
    assert probe.parameters[0].grad_norm == pytest.approx(expected, rel=1e-5)
    assert probe.parameters[0].grad_nonfinite == 0


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e-21, 1e25])
def test_one_synchronisation_also_for_gradients_beyond_float32(size, monkeypatch):
    """From the second step on: the first one finds where the squares have to be in float64."""
    fetched, original = [], _ledger.fetch
    for module in (_ledger, _parameters):
        monkeypatch.setattr(module, "fetch", lambda v: fetched.append(v.numel()) or original(v))
    model, x = mlp(), torch.randn(32, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with sk.Probe(model, optimizer) as probe:
        for factor in (1.0, size, size, size):
            optimizer.zero_grad()
            (factor * model(x)).sum().backward()
            fetched.clear()
            optimizer.step()
            waits = len(fetched)
    assert waits == 1
    expected = [p.grad.double().norm().item() for p in model.parameters()]
    found = [p.grad_norm for p in probe.parameters if p.step == 3]
    assert found == pytest.approx(expected, rel=1e-5, abs=0)
    assert all(p.grad_nonfinite == 0 for p in probe.parameters)


def test_ever_new_lengths_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(_ledger, "KNOWN", 8)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
    kept = []
    with sk.Probe(model) as probe:
        for length in range(20, 60):
            x = torch.randn(2, length, 64)
            model(x).sum().backward()
            ledger = probe._recorder.ledger
            kept.append(len(ledger._plans) + len(ledger._places))
            assert probe.records[-2].rms == pytest.approx(rms(model[0](x)), rel=0.15)
    assert max(kept) < 40


def test_ever_new_slopes_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(_ledger, "KNOWN", 8)
    x, kept = torch.randn(64, 64), []
    model = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 64))
    with sk.Probe(model) as probe:
        for step in range(30):
            model[1].negative_slope = step / 100
            model(x).sum().backward()
            assert probe.records[-2].dead is not None
            kept.append(len(probe._recorder.ledger._ends))
    assert max(kept) <= 9


def test_buffers_are_kept_between_steps_and_not_after_the_end():
    model, x = mlp(depth=40), torch.randn(32, 64)  # more rows than are reduced at once
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer) as probe:
        places = []
        for _ in range(4):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            ledger = probe._recorder.ledger
            places.append({c.data_ptr() for r in ledger._rows.values() for c in r._buffers})
    assert places[1] == places[2] == places[3] != set()
    assert not ledger._rows
    first, last = ([r for r in probe.records if r.step == step] for step in (0, 3))
    assert len(first) == len(last) == 80
    with sk.Probe(model, mode="exact") as exact:
        model(x).sum().backward()
    with sk.Probe(model) as fresh:
        model(x).sum().backward()
    for a, b in zip(exact.records, fresh.records, strict=True):
        assert b.rms == pytest.approx(a.rms, rel=0.2)
        assert b.dead == a.dead


def test_a_small_spread_around_a_large_mean_does_not_cancel():
    x = 1e4 + torch.randn(512, 512)
    for mode in ("sampled", "hybrid", "exact"):
        with sk.Probe(nn.Identity(), mode=mode) as probe:
            probe._recorder.model(x)
        assert probe.records[0].std == pytest.approx(1, rel=0.1)


# Flat stretches.

FLAT = {
    "relu": [(-math.inf, 0)],
    "relu6": [(-math.inf, 0), (6, math.inf)],
    "hardtanh": [(-math.inf, -1), (1, math.inf)],
    "hardsigmoid": [(-math.inf, -3), (3, math.inf)],
    "leaky_relu": [],
    # tanh' = 1 − tanh² < 0.01, and sigmoid' = s(1 − s) < 0.0025.
    "tanh": [(-math.inf, -math.atanh(0.99**0.5)), (math.atanh(0.99**0.5), math.inf)],
    "sigmoid": [
        (-math.inf, math.log(1 / (0.5 + (0.25 - 0.0025) ** 0.5) - 1)),
        (-math.log(1 / (0.5 + (0.25 - 0.0025) ** 0.5) - 1), math.inf),
    ],
    "softplus": [(-math.inf, math.log(0.01 / 0.99))],
    "elu": [(-math.inf, math.log(0.01))],
    "softshrink": [(-0.5, 0.5)],
}


@pytest.mark.parametrize("name", FLAT)
def test_flat_stretches_in_closed_form(name):
    found = _flatness.described(getattr(F, name), (torch.zeros(1),), {}).intervals
    assert np.allclose(found, FLAT[name], atol=1e-12) if FLAT[name] else found == ()


@pytest.mark.parametrize("name", sorted(set(_flatness.ACTIVATIONS.values()) - {"prelu"}))
def test_flat_stretches_agree_with_autograd(name):
    function = getattr(F, name, None) or getattr(torch, name)
    args = (0.1, 20.0) if name == "threshold" else ()
    intervals = _flatness.described(function, (torch.zeros(1), *args), {}).intervals
    z = torch.linspace(-12, 12, 20011, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(z, *args).sum(), z)
    expected = slope.abs() < 0.01 * slope.abs().max()
    agree = _flatness.within(z.detach(), z.detach(), intervals) == expected
    assert agree.double().mean() > 0.9995


def test_units_of_convolutions_are_channels_and_of_linear_layers_features():
    torch.manual_seed(0)
    bias = torch.tensor([-100.0, 100.0, -100.0, 100.0])
    linear, conv = nn.Linear(3, 4), nn.Conv1d(3, 4, 1)
    for layer in (linear, conv):
        with torch.no_grad():
            layer.bias.copy_(bias)
    for layer, x in ((linear, torch.randn(5, 4, 3)), (conv, torch.randn(5, 3, 4))):
        with sk.Probe(nn.Sequential(layer, nn.ReLU())) as probe:
            probe._recorder.model(x)
        assert probe.records[1].dead == 0.5
        assert probe.records[1].saturated == 0.5


def test_a_unit_that_jumps_between_two_flat_sides_is_not_dead():
    z = torch.tensor([[-50.0, 50.0, 9.0], [50.0, 50.0, 0.1]])
    with sk.Probe(nn.Tanh()) as probe:
        probe._recorder.model(z)
    assert probe.records[0].saturated == pytest.approx(5 / 6)
    assert probe.records[0].dead == pytest.approx(1 / 3)


def test_prelu_is_flat_where_its_slope_is_small():
    act = nn.PReLU(2)
    with torch.no_grad():
        act.weight.copy_(torch.tensor([0.0, 0.25]))
    with sk.Probe(act) as probe:
        act(torch.tensor([[-1.0, -1.0], [-2.0, -2.0]]))
    assert probe.records[0].saturated == 0.5
    assert probe.records[0].dead == 0.5


# Results.


def test_results_in_every_form(tmp_path):
    heard = []
    _, probe = train(net(), probe={"callback": lambda values, step: heard.append((step, values))})
    assert probe.dicts() == [r._asdict() for r in probe.records]
    frame = probe.frame()
    assert list(frame["layer"]) == [r.layer for r in probe.records]
    assert list(frame.columns) == list(sk.Record._fields)
    assert [step for step, _ in heard] == [0, 1, 2]
    record = probe.records[0]
    assert heard[0][1]["rms/conv.conv2d"] == record.rms
    assert "rms/shared.linear.1" in heard[0][1]
    assert heard[0][1]["update_ratio/conv.weight"] == probe.parameters[0].update_ratio
    assert probe.write(tmp_path / "runs") == tmp_path / "runs"
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    values = [(e.step, e.value) for e in events.Scalars("rms/conv.conv2d")]
    mine = [r for r in probe.records if r.layer == "conv"]
    assert values == [(r.step, float(np.float32(r.rms))) for r in mine]


def test_table():
    _, probe = train(net(), probe={})
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(probe.table())
    console.print(probe.table(step=0))
    text = console.export_text()
    assert "Step 2" in text
    assert "Step 0" in text
    assert "shared (1)" in text
    assert f"{probe.records[0].grad_rms:.2e}" in text
    with pytest.raises(ValueError, match="step=7 was not recorded; recorded: 0, 1, 2"):
        probe.table(step=7)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_narrow_table_leaves_out_columns_and_cuts_no_number(width):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("encoder_of_the_images", nn.Sequential(nn.Linear(8, 16), nn.Tanh()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer) as probe:
        model(torch.randn(32, 8)).square().mean().backward()
        optimizer.step()
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(probe.table())
    text = console.export_text()
    assert "…" not in text
    words = "".join(text.split())
    assert "layer" in words
    assert all(f"{r.rms:.3g}" in words and f"{r.grad_rms:.2e}" in words for r in probe.records)
    names = [line.strip().split("  ")[0] for line in text.splitlines()[4:]]
    assert "encoder_of_the_images.0" in "".join(names)
    heads = {"kind", "output", "mean", "flat", "dead", "update"}
    top, under = text.split("─" * 9, 1)[0], text.split("no room: ")[1:]
    left_out = set("".join(under).replace(",", " ").split())
    assert {head for head in heads if head in top} == heads - left_out
    assert (width == 120) is not bool(left_out)


def test_names_from_the_model_are_not_markup():
    model = nn.Sequential()
    model.add_module("[red]x", nn.Linear(2, 2))
    model.add_module("a\x1b[31m", nn.ReLU())
    with sk.Probe(model) as probe:
        model(torch.randn(2, 2))
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(probe.table())
    text = console.export_text()
    assert "[red]x" in text
    assert r"a\x1b[31m" in text
    assert "\x1b" not in text


def test_without_pandas_or_tensorboard(monkeypatch, tmp_path):
    import sys

    probe = sk.Probe(net())
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"Probe\.frame needs pandas: pip install pandas"):
        probe.frame()
    with pytest.raises(ImportError, match=r"Probe\.write needs TensorBoard"):
        probe.write(tmp_path)


def test_an_empty_batch_has_no_moments():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with sk.Probe(model) as probe:
        model(torch.zeros(0, 4))
    assert all(math.isnan(r.rms) and r.nonfinite == 0 for r in probe.records)
    assert probe.records[1].dead is None


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"model": 3}, TypeError, "model=3 is not an nn.Module"),
        ({"optimizer": "adam"}, TypeError, "optimizer='adam' is not a torch.optim.Optimizer"),
        ({"every": 0}, ValueError, "every=0 is below 1"),
        ({"every": 1.5}, TypeError, "every=1.5 is not an integer"),
        ({"mode": "exakt"}, ValueError, "mode='exakt' is unknown; did you mean 'exact'"),
        ({"callback": 1}, TypeError, "callback=1 is not callable"),
        ({"scaler": 2.0}, TypeError, r"scaler=2.0 is not a torch.amp.GradScaler"),
    ],
)
def test_bad_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        sk.Probe(**({"model": nn.Linear(1, 1)} | arguments))


def test_meta_parameters_have_no_values():
    with pytest.raises(ValueError, match="parameter 'weight' is on the meta device"):
        sk.Probe(nn.Linear(2, 2, device="meta"))


def test_layers_that_hand_on_their_input_share_its_numbers():
    """As dropout that drops nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Identity(), nn.Dropout(0.0), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer, mode="exact") as probe:
        output = model(torch.randn(9, 6))
        (output * torch.tensor(math.inf)).sum().backward()
        optimizer.step()
    first, *handed, _ = probe.records
    assert [r.layer for r in handed] == ["1", "2"]
    for record in handed:
        assert (record.rms, record.grad_nonfinite) == (first.rms, first.grad_nonfinite)
    assert first.grad_nonfinite == 54

    healthy = nn.Sequential(nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 1))
    with sk.Probe(healthy, mode="exact") as probe:
        x = torch.randn(9, 6)
        (gradient,) = torch.autograd.grad(healthy(x).sum(), healthy[0].bias)
    expected = healthy[2].weight.square().mean().sqrt().item()
    assert gradient.shape == (6,)
    assert [r.grad_rms for r in probe.records[:2]] == [pytest.approx(expected)] * 2


def test_a_weight_that_moves_elsewhere_is_still_followed():
    """Its place is remembered from step to step, and not beyond its stay there."""
    torch.manual_seed(0)
    model = nn.Linear(40, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer, mode="exact") as probe:
        for factor in (1.0, 3.0, 1.0):
            model.weight.data = model.weight.data * factor
            optimizer.zero_grad()
            model(torch.randn(5, 40)).square().mean().backward()
            before = model.weight.detach().clone()
            optimizer.step()
            record = next(r for r in probe.parameters[::-1] if r.parameter == "weight")
            moved = (model.weight.detach() - before).norm() / before.norm()
            assert record.weight_norm == pytest.approx(before.norm().item(), rel=1e-6)
            assert record.update_ratio == pytest.approx(moved.item(), rel=1e-4)
