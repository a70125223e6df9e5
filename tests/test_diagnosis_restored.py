"""After `diagnose` and `predict` all is as it was, whatever holds it."""

import dataclasses
import random
from collections import UserDict, deque
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_diagnosis import bits, everything
from torch import nn
from torch.nn import functional as F
from zoo import nets

import stabilitykit as sk


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


# A graph that was made before is still there for its backward pass.


class InPlace(nn.Module):
    """Changes its input, a buffer and a parameter in place."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(16, 4), nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(16))

    def forward(self, x):
        with torch.no_grad():
            self.shift.add_(0.1)
            self.scale.mul_(1.1)
            x.mul_(2)
        return self.linear(x * self.scale + self.shift)


def batchnorm():
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


GRAPHS = {
    "mlp": lambda: nets.stack([16, 32, 4]),
    "train": batchnorm,
    "eval": lambda: batchnorm().eval(),
    "in place": InPlace,
}


@pytest.mark.parametrize("make", [None, torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_made_before_can_still_go_back(name, make):
    model, (x, t) = GRAPHS[name](), nets.table()
    optimizer = make(model.parameters(), lr=0.1) if make else None
    loss = F.cross_entropy(model(x), t)
    expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    versions = [v._version for v in (x, *model.parameters(), *model.buffers())]
    sk.diagnose(model, (x, t), F.cross_entropy, optimizer)
    sk.predict(model, (x, t))
    assert [v._version for v in (x, *model.parameters(), *model.buffers())] == versions
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


# What runs within the backward pass.


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_in_the_backward_pass_makes_no_step(make):
    model, (x, t) = nets.stack([16, 32, 4]), nets.table()
    optimizers = {p: make([p], lr=0.01) for p in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    F.cross_entropy(model(x), t).backward()
    before = [everything(model, o) for o in optimizers.values()]
    assert sk.diagnose(model, (x, t), F.cross_entropy).findings == ()
    assert [everything(model, o) for o in optimizers.values()] == before
    F.cross_entropy(model(x), t).backward()
    assert all(p.grad is None for p in model.parameters())
    assert [everything(model, o) for o in optimizers.values()] != before


# What modules hold beside parameters and buffers.


@dataclasses.dataclass
class Tally:
    calls: int = 0
    seen: list = dataclasses.field(default_factory=list)


class Keeping(nn.Module):
    """Keeps state in everything but parameters and buffers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.list, self.dict, self.set, self.last = [1], {"a": [2]}, {3}, deque([4], maxlen=2)
        self.user, self.tally, self.space = UserDict(n=0), Tally(), SimpleNamespace(n=0)
        self.tensor, self.array, self.hidden = torch.zeros(16), np.zeros(3), [nn.Linear(16, 16)]
        self.pair = (torch.ones(2), [5])
        self.generator, self.python = torch.Generator().manual_seed(1), random.Random(1)
        self.numpy = np.random.default_rng(1)
        self.old = np.random.RandomState(1)

    def forward(self, x):
        self.list.append(len(self.list))
        self.dict["a"].append(self.list[-1])
        self.dict["b"] = {"c": 1}
        self.set.add(len(self.set))
        self.last.append(1)
        self.user["n"] += 1
        self.tally.calls += 1
        self.tally.seen.append(1)
        self.space.n += 1
        self.tensor += x.detach().mean(0)
        self.array += 1
        self.pair[0].add_(1)
        self.pair[1].append(1)
        noise = 0.01 * torch.randn(x.shape, generator=self.generator)
        noise = noise * self.python.random() * self.numpy.random() * self.old.rand()
        return self.linear(self.hidden[0](x) + noise)

    def state(self):
        plain = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        plain |= {"generator": self.generator.get_state(), "python": self.python.getstate()}
        plain |= {"numpy": str(self.numpy.bit_generator.state), "old": str(self.old.get_state())}
        plain |= {"user": dict(self.user), "hidden": dict(self.hidden[0].named_parameters())}
        plain |= {"gradients": [p.grad for p in self.hidden[0].parameters()]}
        return bits(plain)


def test_containers_and_generators_of_a_module_are_put_back():
    model, batch = Keeping(), nets.table()
    objects = [(key, id(value)) for key, value in vars(model).items()]
    before = model.state()
    model(batch[0])
    assert model.state() != before  # it does change all that
    assert len({a for a, b in zip(before, model.state(), strict=True) if a != b}) > 12
    before = model.state()
    sk.predict(model, batch)
    assert model.state() == before
    sk.diagnose(model, batch, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.state() == before
    assert [(key, id(value)) for key, value in vars(model).items()] == objects


def test_noise_of_a_generator_of_ones_own_is_the_same_along_the_step():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.generator = nn.Linear(16, 4), torch.Generator().manual_seed(0)

        def forward(self, x):
            return self.linear(x + torch.randn(x.shape, generator=self.generator))

    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    assert sk.diagnose(model, nets.table(), F.cross_entropy, optimizer).healthy


class Swapping(torch.optim.SGD):
    """Puts new tensors under its parameters."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def test_values_stay_where_they_were():
    model, batch = nets.stack([16, 32, 4]), nets.table()
    places, before = [p.data_ptr() for p in model.parameters()], everything(model, None)
    sk.diagnose(model, batch, F.cross_entropy, Swapping(model.parameters(), lr=0.1))
    assert everything(model, None) == before
    assert [p.data_ptr() for p in model.parameters()] == places


# What the loss holds.


class Centred(nn.Module):
    """A loss with a parameter, a buffer, a counter and a mode."""

    def __init__(self):
        super().__init__()
        self.centre, self.calls = nn.Parameter(torch.zeros(4)), 0
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, y, t):
        self.calls += 1
        self.mean.lerp_(y.detach().mean(0), 0.1)
        return F.cross_entropy(y - self.centre, t) + 0.01 * self.centre.square().sum()


class Criterion:
    """Not a module, and has one."""

    def __init__(self, loss):
        self.loss, self.calls = loss, 0

    def __call__(self, y, t):
        self.calls += 1
        return self.loss(y, t)


def scaled(loss, y, t, scale=1.0):
    return scale * loss(y, t)


GLOBAL = Centred()


def by_name(y, t):
    return GLOBAL(y, t)


def by_default(y, t, loss=GLOBAL):
    return loss(y, t)


LOSSES = {
    "module": lambda loss: loss,
    "lambda": lambda loss: lambda y, t: 2 * loss(y, t),
    "list": lambda loss: lambda y, t, losses=[loss]: sum(one(y, t) for one in losses),
    "partial": lambda loss: partial(scaled, loss, scale=2.0),
    "method": lambda loss: loss.forward,
    "object": Criterion,
    "object's method": lambda loss: Criterion(loss).__call__,
    "name": lambda _: by_name,
    "default": lambda _: by_default,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("optimized", [False, True])
def test_modules_of_the_loss_are_put_back(name, optimized):
    model, batch = nets.stack([16, 32, 4]), nets.table()
    loss = GLOBAL if name in ("name", "default") else Centred()
    loss_fn = LOSSES[name](loss)
    both = [*model.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(both, lr=0.01) if optimized else None
    loss_fn(model(batch[0]), batch[1]).backward()
    before, calls = (everything(model, optimizer), everything(loss, None)), loss.calls
    assert sk.diagnose(model, batch, loss_fn, optimizer).healthy
    assert (everything(model, optimizer), everything(loss, None)) == before
    assert loss.calls == calls
    assert name != "object" or loss_fn.calls == 1
