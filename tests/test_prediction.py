"""Predicted second moments against closed forms and against networks that are drawn anew."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import stabilitykit as sk


def rows(model, batch):
    return {(r.layer, r.kind, r.call): r for r in sk.predict(model, batch).layers}


def test_one_linear_layer_and_relu_in_closed_form():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5)), torch.randn(8, 30)
    found = rows(model, x)
    weights = [model[i].weight.double().square().mean().item() for i in (0, 2)]
    bias = model[0].bias.double().square().mean().item()
    q = weights[0] * x.double().square().sum(1).mean().item() + bias
    assert found["0", "linear", 0].forward == pytest.approx(q, rel=1e-9)
    assert found["1", "relu", 0].forward == pytest.approx(q / 2, rel=1e-6)
    assert found["1", "relu", 0].backward == pytest.approx(5 * weights[1], rel=1e-9)
    assert found["0", "linear", 0].backward == pytest.approx(5 * weights[1] / 2, rel=1e-6)
    assert found["2", "linear", 0].backward == 1
    assert all(row.modelled for row in found.values())


def snapshot(model):
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [
        len(getattr(m, name))
        for m in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    modes = [m.training for m in model.modules()]
    return [t.detach().clone() for t in tensors], hooks, modes, torch.get_rng_state()


def same(before, after):
    assert all(map(torch.equal, before[0], after[0]))
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("forward failed")


@pytest.mark.parametrize("tail", [nn.Identity(), Failing()])
def test_the_model_is_left_bit_identical(tail):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), tail
    )
    model[0].weight.grad = gradient = torch.ones_like(model[0].weight)
    x = torch.randn(4, 3, 8, 8)
    before = snapshot(model)
    kept = x.clone()
    if isinstance(tail, Failing):
        with pytest.raises(RuntimeError, match="forward failed"):
            sk.predict(model, x)
    else:
        sk.predict(model, x)
    same(before, snapshot(model))
    assert model[0].weight.grad is gradient
    assert bool((gradient == 1).all())
    assert torch.equal(x, kept)
    assert not x.requires_grad
    modules = torch.nn.modules.module
    assert not modules._global_forward_hooks
    assert not modules._global_forward_pre_hooks


def test_what_is_not_modelled_is_named_and_measured():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(20, 30), nn.Linear(30, 5)

        def forward(self, x):
            return self.two(torch.cumsum(functional.relu(self.one(x)), 1))

    torch.manual_seed(0)
    model, x = Odd(), torch.randn(16, 20)
    prediction = sk.predict(model, x)
    assert prediction.not_modelled == ("cumsum",)
    sums = functional.relu(model.one(x)).cumsum(1).detach().double()
    weight = model.two.weight.double().square().mean()
    expected = sums.square().sum(1).mean() * weight + model.two.bias.double().square().mean()
    last = prediction.layers[-1]
    assert last.forward == pytest.approx(expected.item(), rel=1e-6)


def test_bad_input():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"model='net' is not an nn.Module"):
        sk.predict("net", torch.ones(2, 3))
    with pytest.raises(TypeError, match="batch=None holds no tensor"):
        sk.predict(model, None)
    with pytest.raises(ValueError, match=r"batch has a tensor of shape \(0, 3\): it is empty"):
        sk.predict(model, torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"parameter '0\.weight' has no values yet"):
        sk.predict(nn.Sequential(nn.LazyLinear(3)), torch.ones(2, 3))


def test_a_model_without_parameters():
    found = rows(nn.Sequential(nn.ReLU()), torch.tensor([[3.0, -4.0]]))
    assert found["0", "relu", 0].forward == pytest.approx(4.5)
