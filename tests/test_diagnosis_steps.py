"""Whether the optimizer's step is too long or too short, and what more steps say of that."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import healthy, nets, sick

import stabilitykit as sk
from stabilitykit._line import Line
from stabilitykit._verdicts import overshoots


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def held(model, optimizer):
    """Copies of all that training changes."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [v for state in optimizer.state.values() for v in state.values()]
    rates = [dict(group, params=None) for group in optimizer.param_groups]
    return [t.detach().clone() for t in tensors], rates, torch.get_rng_state()


@pytest.mark.parametrize("steps", [0, 3])
def test_a_trial_of_twenty_steps_leaves_nothing_behind(steps):
    torch.manual_seed(0)
    model = nets.stack([16, 48, 48, 4], norm=nn.BatchNorm1d)
    model.insert(3, nn.Dropout(0.1))
    optimizer, batch = healthy.adam(model), nets.table()
    healthy.trains(model, batch, F.cross_entropy, optimizer, steps, enough=0)
    optimizer.param_groups[0]["lr"] = 10.0
    before = held(model, optimizer)
    (found,) = sk.diagnose(model, batch, F.cross_entropy, optimizer).findings
    assert found.code == "update-too-large"
    after = held(model, optimizer)
    for one, other in zip(before[0], after[0], strict=True):
        assert torch.equal(one, other)
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])


def test_what_raises_on_the_way_of_a_trial_is_divergence():
    def loss_fn(y, t):
        loss = F.cross_entropy(y, t)
        if not loss.isfinite():
            raise ValueError("no number")
        return loss

    model, batch, _, optimizer = sick.build("sgd-lr-100")
    (found,) = sk.diagnose(model, batch, loss_fn, optimizer).findings
    assert (found.code, found.severity) == ("update-too-large", "error")


@pytest.mark.parametrize(("rate", "severity"), [(1e-3, None), (1e-2, "warning"), (0.1, "error")])
def test_where_steps_lead_to_decides(rate, severity):
    """Each of these first steps raises the loss, at 1e-3 from 1.7 to 10."""
    torch.manual_seed(0)
    batch = healthy.products()
    model = nets.kaiming(nets.stack([16, 512, 512, 512, 1]))
    nn.init.kaiming_normal_(model[-1].weight)
    optimizer = healthy.adam(model, rate)
    found = sk.diagnose(model, batch, F.mse_loss, optimizer).findings
    assert [(f.code, f.severity) for f in found] == (
        [("update-too-large", severity)] if severity else []
    )


def critic():
    """Arjovsky et al. 2017: weights clipped to 0.01, RMSprop at 5e-5."""
    model = nets.stack([16, 128, 128, 1], lambda: nn.LeakyReLU(0.2))
    for p in model.parameters():
        p.data.clamp_(-0.01, 0.01)
    return model, torch.optim.RMSprop(model.parameters(), 5e-5)


def straight():
    model = nn.Linear(16, 1)
    return model, torch.optim.SGD(model.parameters(), 1e-3)


@pytest.mark.parametrize("make", [critic, straight])
def test_a_loss_without_curvature_makes_no_step_short(make):
    torch.manual_seed(0)
    model, optimizer = make()
    batch = torch.randn(128, 16), torch.ones(128, 1)
    batch[1][::2] = -1
    batch[0][::2] += 0.5

    def loss_fn(y, t):
        return -(y * t).mean()

    assert sk.diagnose(model, batch, loss_fn, optimizer).healthy
    for group in optimizer.param_groups:
        group["lr"] *= 1e-5
    (found,) = sk.diagnose(model, batch, loss_fn, optimizer).findings
    assert found.code == "update-too-small"
    exec(found.remedy.split("`")[1], {"optimizer": optimizer})
    assert 1e-7 < optimizer.param_groups[0]["lr"] < 1  # and not 1e+10 times the rate


def test_a_rise_that_is_small_beside_the_loss_is_none():
    """A momentum step in the midst of a training: far beyond the best one, along a flat line."""
    line = Line(1.0, -6e-4, 121.0, 1e-3, "0.weight", 1e-3, 1e-3)  # the loss rises by 3.6 %
    assert overshoots(line) == ""
    assert overshoots(line._replace(promise=-6e-3)) == "error"
    assert overshoots(line._replace(stretch=1.9, overall=2.0)) == "error"
