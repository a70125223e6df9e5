"""Losses: whether they fit what the model gives, and where they are mended."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import healthy, nets, sick

import stabilitykit as sk
from stabilitykit._losses import LossWatch, mismatch
from stabilitykit._makers import last_function, squashed


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_a_loss_that_is_flat_is_no_cut():
    """A hinge that every sample has passed, of spectral norms, which make numbers without grad."""
    torch.manual_seed(0)
    model = nets.stack([16, 48, 1])
    for layer in model[::2]:
        nn.utils.parametrizations.spectral_norm(layer)
    batch = nets.table()[0], torch.zeros(96, 1)
    (found,) = sk.diagnose(model, batch, lambda y, t: F.relu(y - 10 - t).mean()).findings
    assert (found.code, found.layer, found.severity) == ("no-gradient", "loss", "warning")
    assert found.remedy.startswith("Take a batch that is not learnt yet")
    model[1] = Rounded()
    (found,) = sk.diagnose(model, batch, lambda y, t: F.relu(y + 10 - t).mean()).findings
    assert found.remedy.startswith("Replace the round in '1', whose slope is 0")


class Rounded(nn.Module):
    def forward(self, x):
        return x.round()


def test_losses_are_seen_with_what_they_get():
    y, t = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    with LossWatch() as watch:
        F.cross_entropy(y, t)
        nn.MSELoss()(y, torch.zeros(4, 3))
        F.binary_cross_entropy_with_logits(input=y, target=torch.zeros(4, 3))
        F.nll_loss(y.log_softmax(1), t)
    names = [name for name, *_ in watch.calls]
    assert names[:3] == ["cross_entropy", "mse_loss", "binary_cross_entropy_with_logits"]
    assert "nll_loss" in names
    assert mismatch(watch.calls) is None


def test_the_last_function_is_found_through_moves():
    y = torch.randn(4, 3, requires_grad=True)
    assert last_function(y.sigmoid().view(2, 6).unsqueeze(0).permute(1, 0, 2)) == "sigmoid"
    assert last_function(y.softmax(1)[:2].squeeze()) == "softmax"
    assert last_function(2 * y.sigmoid()) == "mul"
    assert last_function(y) == ""


def test_regression_through_a_sigmoid_onto_shares_is_no_mismatch():
    y = torch.randn(6, 2, requires_grad=True).sigmoid()
    assert mismatch([("mse_loss", y, torch.rand(6, 2))]) is None
    assert mismatch([("mse_loss", y, torch.ones(6, 2))]) is not None


def test_a_loss_inside_the_model_is_mended_in_its_source():
    (found,) = sk.diagnose(*sick.build("softmax-before-the-models-own-loss")).findings
    assert found.remedy.startswith("In the model's forward, drop the softmax")
    assert "`" not in found.remedy


def test_a_loss_within_the_loss_is_mended_in_its_source():
    (found,) = sk.diagnose(*sick.build("softmax-by-hand-with-mse")).findings
    assert found.remedy.startswith("In loss_fn, drop the softmax")
    assert "`" not in found.remedy


def test_what_the_loss_refuses_may_be_nan():
    model = sick.poked(
        nn.Sequential(*nets.stack([16, 8, 1]), nn.Sigmoid()), "0.weight", float("nan")
    )
    (found,) = sk.diagnose(model, healthy.binary(), F.binary_cross_entropy).findings
    assert (found.code, found.layer) == ("non-finite", "0.weight")


def test_other_errors_of_the_loss_stay_errors():
    model, (x, t) = nn.Sequential(*nets.stack([16, 8, 1]), nn.Sigmoid()), healthy.binary()
    with pytest.raises(RuntimeError, match="loss_fn raised ValueError: Using a target size"):
        sk.diagnose(model, (x, t[:3]), F.binary_cross_entropy)


def test_numbers_that_look_like_probabilities_by_chance_are_logits():
    torch.manual_seed(0)
    weight = torch.ones(5, 3, requires_grad=True)
    shares = torch.rand(5, 3)
    assert squashed(weight * shares / 3) == ""  # in [0, 1], but the rows sum to something else
    assert squashed(weight * shares / shares.sum(1, keepdim=True)) == "softmax"
    gate = torch.randn(5, 1, requires_grad=True)
    assert squashed(gate.sigmoid() * weight) == ""  # a gate, of which nobody knows
    assert squashed((3 * gate.sigmoid()).relu() - 1) == ""


def test_a_loss_without_targets_left_is_said():
    model, (x, t) = nets.stack([16, 8, 4]), nets.table()
    (found,) = sk.diagnose(model, (x, t.fill_(-100)), F.cross_entropy).findings
    assert (found.code, found.layer) == ("non-finite", "loss")
    assert "ignore" in found.remedy


def test_log_softmax_twice_does_no_harm():
    torch.manual_seed(0)
    model, batch = nn.Sequential(*nets.stack([16, 48, 4]), nn.LogSoftmax(1)), nets.table()
    assert sk.diagnose(model, batch, F.cross_entropy).healthy
    assert sk.diagnose(model, batch, lambda y, t: F.nll_loss(y.log_softmax(1), t)).healthy


def test_log_probabilities_of_half_precision_sum_to_one_up_to_rounding():
    y = torch.zeros(2, 50000, dtype=torch.bfloat16, requires_grad=True)
    assert mismatch([("nll_loss", y.log_softmax(1), torch.tensor([0, 1]))]) is None


def test_targets_on_the_edge_of_what_an_output_reaches_are_none_beyond():
    y = torch.zeros(4, 1, requires_grad=True)
    edge = torch.tensor([[-1.0005], [1.0005], [1.0005], [0.0]])
    assert mismatch([("mse_loss", y.tanh(), edge)]) is None
    assert mismatch([("mse_loss", y.tanh(), 1.01 * edge)]) is not None
    assert mismatch([("mse_loss", y.relu(), edge)]) is None
    assert mismatch([("mse_loss", F.relu6(y), 7 * edge.abs())]) is not None
