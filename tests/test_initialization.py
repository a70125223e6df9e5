"""LSUV gives unit variance layer by layer, and leaves everything else alone."""

import pytest
import torch
from torch import nn

import stabilitykit as sk


def mixed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.GELU(), nn.BatchNorm1d(64), nn.Linear(64, 64), nn.Tanh(),
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


def outputs(model, x):
    found = {}

    def record(name, output):
        found.setdefault(name, output.var(correction=0).item())

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda m, i, out, name=name: record(name, out))
    model(x)
    return found


def test_every_layer_ends_at_unit_variance():
    model, x = mixed(), 30 * torch.randn(512, 8)
    report = sk.lsuv(model, x, tolerance=0.01)
    assert [entry.layer for entry in report] == ["0", "3", "5", "7"]
    assert all(abs(v - 1) <= 0.01 for v in outputs(model, x).values())
    # The input has variance 900; eight orthogonal columns share it among 64 rows: 112.5.
    assert 90 < report[0].before < 135
    assert report[0].steps == 1


def test_scaled_weights_stay_orthogonal():
    model = mixed()
    sk.lsuv(model, torch.randn(512, 8))
    product = model[3].weight @ model[3].weight.mT
    assert torch.allclose(product / product[0, 0], torch.eye(64), atol=1e-5)


def test_convolutions_and_batches_with_targets():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    x = torch.randn(32, 3, 8, 8)
    sk.lsuv(model, (x, torch.zeros(32)))
    assert all(abs(v - 1) <= 0.05 for v in outputs(model, x).values())


def test_buffers_modes_hooks_and_gradients_stay():
    model = mixed()
    buffers = [b.clone() for b in model.buffers()]
    sk.lsuv(model, torch.randn(64, 8))
    assert all(map(torch.equal, buffers, model.buffers()))
    assert model.training
    assert all(not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.zeros(16, 8), "layer '0': the variance of its output is 0 after 0 steps"),
        (torch.full((16, 8), float("nan")), "the variance of its output is nan"),
        (torch.randn(16, 7), "cannot be multiplied"),
    ],
)
def test_a_bad_batch_leaves_the_model_as_it_was(batch, said):
    model = mixed()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((ValueError, RuntimeError), match=said):
        sk.lsuv(model, batch)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())


def test_bad_arguments():
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        sk.lsuv(mixed(), torch.randn(4, 8), tolerance=0)
    with pytest.raises(ValueError, match="model=ReLU has no linear or convolutional layer"):
        sk.lsuv(nn.ReLU(), torch.randn(4, 8))
