"""What theory predicts beside each finding of scale, against what was measured and closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import nets, sick

import stabilitykit as sk
from stabilitykit import diagnosis as module
from stabilitykit._measure import Signal
from stabilitykit._scales import allowance, backward

CODES = {"vanishing-signal", "exploding-signal", "vanishing-gradient", "exploding-gradient"}


def scales(model, batch=None, loss_fn=F.cross_entropy):
    """The findings of scale by code, in double precision: nothing is lost in rounding."""
    inputs, targets = batch or nets.table()
    found = sk.diagnose(model.double(), (inputs.double(), targets), loss_fn).findings
    return {one.code: one for one in found if one.code in CODES}


def chain(factors, last=64):
    """Linear layers without bias of known mean square: factor²/fan-in."""
    torch.manual_seed(0)
    sizes = [16, *[64] * (len(factors) - 2), last, 4]
    layers = [nn.Linear(n, m, bias=False) for n, m in pairwise(sizes)]
    for layer, factor in zip(layers, factors, strict=True):
        with torch.no_grad():
            layer.weight.normal_()
            layer.weight *= factor / (layer.weight.double().square().sum(1).mean() ** 0.5)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("factors", "fate"),
    [([0.2] * 7, "vanishing"), ([5.0] * 7, "exploding"), ([1, 1, 1e-4, 1, 1], "vanishing")],
)
def test_a_linear_chain_is_predicted_by_the_product_of_its_factors(factors, fate):
    """Forward all layers count, but the head where a signal vanishes; back all but both ends."""
    found = scales(chain(factors, last=160))
    signal, gradient = found[f"{fate}-signal"], found[f"{fate}-gradient"]
    head = 1 if fate == "vanishing" else 0
    forward = math.prod(factors[: len(factors) - head])
    assert signal.predicted == pytest.approx(forward, rel=1e-5)
    assert gradient.predicted == pytest.approx(math.prod(factors[1:-1]), rel=1e-5)
    for one in (signal, gradient):
        assert one.measured == pytest.approx(one.predicted, rel=0.4)
        assert one.explained is True


def test_each_more_sigmoid_is_predicted_to_cost_the_factor_of_mean_field_theory():
    """√χ in the limit of large width, both ways; the weights' mean squares err by 1/64."""
    predicted = []
    for depth in (12, 13):
        torch.manual_seed(0)
        model = sk.MLP([64] * depth + [10], "sigmoid")
        for layer in model.linears:
            nn.init.normal_(layer.weight, std=64**-0.5)
            nn.init.zeros_(layer.bias)
        found = scales(model, nets.table(features=64))
        predicted.append([found[f"vanishing-{what}"].predicted for what in ("signal", "gradient")])
    root = sk.MeanField("sigmoid").chi() ** 0.5
    for shorter, longer in zip(*predicted, strict=True):
        assert longer / shorter == pytest.approx(root, rel=0.03)


def test_below_the_rounding_of_float32_theory_tells_more_than_the_measurement():
    """Fifteen sigmoids leave 1e-12 of the signal, of which float32 shows its own noise."""
    model, batch, loss_fn = sick.build("deep-sigmoid-15")[:3]
    found = {one.code: one for one in sk.diagnose(model, batch, loss_fn).findings}
    rounded, exact = found["vanishing-signal"], scales(model, batch)["vanishing-signal"]
    assert rounded.measured > 1e3 * exact.measured
    assert rounded.predicted == pytest.approx(exact.measured, rel=0.5)
    assert rounded.explained


def blind():
    """Layers of healthy mean square, the second of which hardly reads what the first writes."""
    model = chain([1.0] * 5)
    with torch.no_grad():
        first, second = model[0].weight, model[1].weight
        first[32:], second[:, :32] = 0.0, second[:, :32] * 1e-6
        first *= 2**0.5
        second *= second.square().sum(1).mean() ** -0.5
    return model


def test_what_the_scale_of_the_weights_does_not_explain_is_said():
    """Theory takes weights for independent: of these, and of any like them, it expects no loss."""
    model = blind()
    (one,) = scales(model).values()
    assert one.code == "vanishing-signal"
    assert one.predicted == pytest.approx(1, rel=0.1)
    assert one.measured < 1e-5
    assert one.explained is False
    with torch.no_grad():
        for layer in model:
            layer.weight *= 2**0.5
    assert scales(model).keys() == {"vanishing-signal"}
    sk.initialize(model, "kaiming", nets.table()[0].double())
    assert scales(model) == {}


def test_rows_that_are_alike_explode_at_a_healthy_scale():
    torch.manual_seed(0)
    model = sk.MLP([16, *[64] * 12, 4], "relu")
    for layer in model.linears:
        with torch.no_grad():
            layer.weight.normal_().mul_(0.5).add_(1.0)
            layer.weight *= 2**0.5 / layer.weight.square().sum(1).mean() ** 0.5
            layer.bias.zero_()
    signal = scales(model)["exploding-signal"]
    assert signal.measured > 1e3 * signal.predicted
    assert signal.explained is False


class Wave(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real / 8


def test_what_follows_an_operation_that_is_not_modelled_has_no_prediction():
    layers = list(chain([0.2] * 9))
    for place in (0, 4, 8):
        for one in scales(nn.Sequential(*layers[:place], Wave(), *layers[place:])).values():
            assert (one.predicted, one.explained) == (None, None)


def test_what_is_not_modelled_behind_the_layers_does_no_harm():
    found = scales(nn.Sequential(*chain([0.2] * 7), nn.LogSoftmax(1)), loss_fn=F.nll_loss)
    assert len(found) == 2
    for one in found.values():
        assert one.measured == pytest.approx(one.predicted, rel=0.4)


@pytest.mark.parametrize("name", ["plain-parameters-small", "tiny-lstm-weights"])
def test_layers_that_are_not_predicted_have_no_prediction(name):
    found = [one for one in sk.diagnose(*sick.build(name)).findings if one.code in CODES]
    assert found
    assert all((one.predicted, one.explained) == (None, None) for one in found)


def test_where_predicting_fails_the_findings_stay(monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(module, "predict", fails)
    with pytest.warns(UserWarning, match="no prediction for this model, ZeroDivisionError"):
        found = scales(chain([0.2] * 7))
    assert len(found) == 2
    assert all((one.predicted, one.explained) == (None, None) for one in found.values())


def test_other_codes_have_no_prediction():
    (dead,) = sk.diagnose(*sick.build("relu-bias-minus-10")).findings
    assert (dead.code, dead.predicted, dead.explained) == ("dead-units", None, None)


def test_parametrized_layers_have_gradients_and_predictions_too():
    torch.manual_seed(0)
    layers = []
    for i in range(10):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(16 if i == 0 else 64, 64))
        with torch.no_grad():
            layer.parametrizations.weight.original0.mul_(0.5)
        layers += [layer, nn.Tanh()]
    found = scales(nn.Sequential(*layers, nn.Linear(64, 4)))
    assert found.keys() == {"vanishing-signal", "vanishing-gradient"}
    for one in found.values():
        assert one.predicted == pytest.approx(one.measured, rel=0.5)


@pytest.mark.parametrize(("norm", "explodes"), [(1e-6, False), (1.0, True)])
def test_a_gradient_explodes_from_the_head_where_the_last_layer_is_beside_the_way(norm, explodes):
    """As a shut gate is, whose own gradient is next to nothing."""
    layers = [Signal(str(i), "linear", 0, True, 256, 1.0, 1.0) for i in range(6)]
    below = [1.0, 1.0, 1.0, 1.0] if not explodes else [1e6, 1e5, 1e4, 1e2]
    found = {c.code: c for c in backward(layers, [*below, norm, 1.0])}
    change = found["exploding-gradient"]
    assert (change.total > allowance(change.stack)) == explodes


def test_one_cliff_is_named_also_behind_a_small_fall():
    """torch's own first layer loses half of the signal, layer 20 a million times as much."""
    torch.manual_seed(0)
    model = nets.stack([16] + [64] * 21 + [4])
    for layer in model[2:-1:2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    model[20].weight.data *= 1e-6
    batch = nets.table()
    for found in sk.diagnose(model, batch, F.cross_entropy).findings:
        assert found.layer == "20"
        exec(found.remedy.split("`")[1], {"model": model, "nn": nn, "torch": torch})
    assert sk.diagnose(model, batch, F.cross_entropy).healthy
