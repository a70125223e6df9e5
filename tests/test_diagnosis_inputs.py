"""`diagnose` takes what models take: mappings, dataclasses, single samples."""

import dataclasses
from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType

import pytest
import torch
from test_diagnosis import bits
from torch import nn
from torch.nn import functional as F
from zoo import nets

import stabilitykit as sk


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@dataclasses.dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    length: int = 3


Pair = namedtuple("Pair", ["x", "scale"])


class Model(nn.Module):
    """Takes a tensor by name, and may change in place what it is given."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.layers, self.factor = nets.stack([16, 64, 64, 4]), factor

    def forward(self, x, scale=1.0):
        if isinstance(x, Batch):
            x = x.x
        return self.layers(x.mul_(self.factor) * (scale / self.factor))


WRAPS = {
    "dict": lambda x: {"x": x},
    "OrderedDict": lambda x: OrderedDict(x=x, scale=1.0),
    "UserDict": lambda x: UserDict(x=x),
    "Mapping": lambda x: MappingProxyType({"x": x}),
    "tuple": lambda x: (x, 1.0),
    "named tuple": lambda x: Pair(x, 1.0),
    "dataclass": Batch,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("size", "codes"), [(1.0, []), (1e4, ["unscaled-input"])])
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_inputs_may_be_wrapped(wrap, size, codes):
    model, (x, t) = Model(), nets.table()
    x = size * x
    plain = sk.diagnose(model, (x, t), F.cross_entropy)
    inputs, before = wrap(x.clone()), bits(x)
    found = sk.diagnose(model, (inputs, t), F.cross_entropy)
    assert [one.code for one in found.findings] == codes
    assert found.loss == plain.loss
    assert found.signals == plain.signals
    assert found.prediction == plain.prediction
    assert sk.predict(model, (inputs, t)) == plain.prediction
    inside = inputs[0] if isinstance(inputs, tuple) else getattr(inputs, "x", None)
    assert bits(inputs["x"] if inside is None else inside) == before


def test_a_model_that_changes_its_input_sees_the_same_one_along_the_step():
    model, (x, t) = Model(factor=3.0), nets.table()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    assert sk.diagnose(model, (x, t), F.cross_entropy, optimizer).healthy
    assert sk.diagnose(model, (x, t), F.cross_entropy).prediction == sk.predict(model, (x, t))


@pytest.mark.parametrize("scale", [sk.lsuv, lambda *a: sk.initialize(*a[:1], batch=a[1])])
def test_the_remedies_take_mappings_too(scale):
    (x, t), models = nets.table(), (Model(factor=1.0), Model(factor=1.0))
    models[1].load_state_dict(models[0].state_dict())
    for model, inputs in zip(models, (x, UserDict(x=x.clone())), strict=True):
        torch.manual_seed(1)
        scale(model, (inputs, t))
    assert bits(models[0].state_dict()) == bits(models[1].state_dict())


class Last(nn.Module):
    """The last state of a recurrent net."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.cell(x)[0][-1])


def pictures():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(0),
        nn.Linear(512, 4),
    )  # fmt: skip


def sounds():
    return nn.Sequential(nn.Conv1d(3, 16, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(96, 4))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("build", "shape", "units"),
    [
        (lambda: nn.Linear(8, 4), [8], [4]),
        (lambda: nets.stack([8, 64, 64, 4]), [8], [64, 64, 4]),
        (pictures, [3, 8, 8], [16, 32, 4]),
        (sounds, [3, 8], [16, 4]),
        (Last, [12, 8], [32, 4]),
    ],
)
@pytest.mark.parametrize("make", [None, torch.optim.Adam])
def test_a_sample_without_a_batch_around_it(build, shape, units, make):
    model, x, t = build(), torch.randn(shape), torch.tensor(1)
    optimizer = make(model.parameters(), lr=1e-3) if make else None
    found = sk.diagnose(model, (x, t), F.cross_entropy, optimizer)
    assert found.findings == ()
    assert [signal.units for signal in found.signals] == units
    assert found.prediction is not None


def test_a_regression_of_one_sample():
    found = sk.diagnose(nn.Linear(8, 4), (torch.randn(8), torch.randn(4)), F.mse_loss)
    assert found.healthy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("constant", [1234.567, 0.1, 0.0])
def test_standardising_does_not_blow_up_a_constant_feature(dtype, constant):
    torch.manual_seed(0)
    inputs = (1e4 * torch.randn(250, 8)).to(dtype)
    inputs[:, 3] = constant
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).to(dtype)
    targets = torch.arange(250) % 4
    (found,) = sk.diagnose(model, (inputs, targets), nn.functional.cross_entropy).findings
    assert found.code == "unscaled-input"
    scope = {"inputs": inputs, "torch": torch}
    exec(found.remedy.split("`")[1], scope)
    mended = scope["inputs"]
    assert mended.dtype == dtype
    assert mended[:, 3].abs().max() < 0.5
    assert (mended[:, :3].float().std(0) - 1).abs().max() < 0.02
    assert sk.diagnose(model, (mended, targets), nn.functional.cross_entropy).healthy


class WideAndDeep(nn.Module):
    """A category and features: one layer reads the category alone, one both."""

    def __init__(self, wide_first, normed):
        super().__init__()
        self.embedding, self.wide = nn.Embedding(20, 8), nn.Linear(20, 4)
        self.norm = nn.LayerNorm(4) if normed else nn.Identity()
        self.deep, self.wide_first = nets.stack([24, 48, 4]), wide_first

    def forward(self, category, x):
        def wide():
            return self.norm(self.wide(F.one_hot(category, 20).float()))

        def deep():
            return self.deep(torch.cat([self.embedding(category), x.double().float()], 1))

        first, second = (wide, deep) if self.wide_first else (deep, wide)
        return first() + second()


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("wide_first", [False, True])
@pytest.mark.parametrize(("size", "layers"), [(1.0, []), (1e4, ["input[1]"])])
def test_the_order_of_branches_hides_no_input(wide_first, normed, size, layers):
    model, (x, t) = WideAndDeep(wide_first, normed), nets.table()
    x[:, 3] *= size
    batch = (torch.randint(0, 20, (len(x),)), x), t
    found = sk.diagnose(model, batch, F.cross_entropy).findings
    assert [(one.code, one.layer) for one in found] == [("unscaled-input", n) for n in layers]


class Late(nn.Module):
    """What layers made stands beside the batch; the model's own numbers are alone."""

    def __init__(self):
        super().__init__()
        self.body, self.place = nn.Linear(16, 16), nn.Linear(1, 4)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        h = 1e3 * self.body(x)
        h = self.head(torch.cat([h, x], 1)) / 1e3
        return h + self.place(torch.arange(4.0)[:, None] + 100).mean() / 1e3


def test_what_layers_made_or_the_model_brought_along_is_no_input():
    found = sk.diagnose(Late(), nets.table(), F.cross_entropy).findings
    assert all(one.code != "unscaled-input" for one in found)
