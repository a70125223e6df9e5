"""`diagnose` on checkpoints and in other number formats says what it says of the plain model."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo import nets

import stabilitykit as sk
from stabilitykit import _flatness


@pytest.fixture(autouse=True)
def fresh():
    torch.set_num_threads(1)
    _flatness._described.cache_clear()  # as in a process that has not met the activations yet


class Checkpointed(nn.Module):
    """A deep multilayer perceptron whose middle may be computed twice."""

    def __init__(self, variance, reentrant=None, depth=16):
        super().__init__()
        self.first, self.last = nn.Linear(16, 64), nn.Linear(64, 4)
        self.middle = nn.Sequential(*(f() for _ in range(depth) for f in (nn.ReLU, self.linear)))
        for layer in self.middle[1::2]:
            nn.init.normal_(layer.weight, 0, (variance / 64) ** 0.5)
        self.reentrant = reentrant

    def linear(self):
        return nn.Linear(64, 64)

    def forward(self, x):
        h = self.first(x)
        if self.reentrant is None:
            return self.last(self.middle(h))
        return self.last(checkpoint(self.middle, h, use_reentrant=self.reentrant))


def deep(variance, **options):
    torch.manual_seed(0)
    return Checkpointed(variance, **options)


def codes(diagnosis):
    return [(one.code, one.layer) for one in diagnosis.findings]


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


SICK = {2.0: [], 0.5: ["vanishing-signal", "vanishing-gradient"]}  # He's variance, and a quarter


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variance", SICK)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_model_is_diagnosed_as_the_plain_one(reentrant, variance):
    batch = nets.table()
    model, plain = deep(variance, reentrant=reentrant), deep(variance)
    found = sk.diagnose(model, batch, F.cross_entropy, adam(model))
    expected = sk.diagnose(plain, batch, F.cross_entropy, adam(plain))
    assert [one.code for one in found.findings] == SICK[variance]
    assert codes(found) == codes(expected)
    assert found.loss == expected.loss
    assert found.records == expected.records
    assert found.parameters == expected.parameters
    assert found.signals == expected.signals
    assert found.prediction == expected.prediction


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variance", SICK)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_diagnosed_as_single_precision(dtype, variance):
    model, (x, t) = deep(variance), nets.table()
    expected = sk.diagnose(model, (x, t), F.cross_entropy, adam(model))
    half = copy.deepcopy(model).to(dtype)
    before = {n: p.detach().clone() for n, p in half.named_parameters()}
    found = sk.diagnose(half, (x.to(dtype), t), F.cross_entropy)
    assert codes(found) == codes(expected)
    assert found.loss == pytest.approx(expected.loss, rel=0.02)
    for one, other in zip(found.records, expected.records, strict=True):
        assert one.rms == pytest.approx(other.rms, rel=0.1)
    for one, other in zip(found.prediction.layers, expected.prediction.layers, strict=True):
        assert one.forward == pytest.approx(other.forward, rel=0.02)
    assert all(torch.equal(p, before[n]) for n, p in half.named_parameters())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variance", SICK)
@pytest.mark.parametrize("around", [True, False])
def test_autocast_is_diagnosed_as_single_precision(around, variance):
    model, batch = deep(variance), nets.table()
    expected = sk.diagnose(model, batch, F.cross_entropy, adam(model))
    if not around:
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        found = sk.diagnose(model, batch, F.cross_entropy, adam(model))
    assert codes(found) == codes(expected)
    assert found.loss == pytest.approx(expected.loss, rel=0.02)


def test_autocast_keeps_no_weights_over_steps():
    """It casts a weight once, and has the copy until it ends: the step would go unseen."""
    torch.manual_seed(0)
    model, batch = nets.stack([16, 64, 4]), nets.table()
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = sk.diagnose(model, batch, F.cross_entropy, optimizer)
        outputs = model(batch[0])
    assert [one.code for one in found.findings] == ["update-too-large"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(batch[0]), outputs)
