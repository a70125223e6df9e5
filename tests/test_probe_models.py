"""The probe works with what real models and training loops do."""

import copy
import dataclasses
import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import stabilitykit as sk
from stabilitykit import _flatness


def rms(tensor):
    return tensor.detach().double().square().mean().sqrt().item()


def key(record):
    return record.layer, record.kind, record.call


def block(width=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def numbers(records):
    """Everything but the step."""
    return [record._replace(step=0) for record in records]


def watched(model, *inputs, mode="exact", loss=lambda y: y.square().sum(), **kwargs):
    with sk.Probe(model, mode=mode) as probe:
        loss(model(*inputs, **kwargs)).backward()
    return probe.records


# What layers return.


@dataclasses.dataclass
class Output:
    name: str
    hidden: torch.Tensor
    more: tuple


@dataclasses.dataclass
class Unset:
    state: torch.Tensor = dataclasses.field(init=False)
    hidden: torch.Tensor


class Leaf(nn.Module):
    """A layer of its own that returns its result in some container."""

    def __init__(self, wrap):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4) * 2)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x @ self.weight)


class Around(nn.Module):
    def __init__(self, wrap, unwrap):
        super().__init__()
        self.leaf, self.unwrap = Leaf(wrap), unwrap

    def forward(self, x):
        return self.unwrap(self.leaf(x))


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda y: (y, None), lambda o: o[0]),
        (lambda y: [3, [y]], lambda o: o[1][0]),
        (lambda y: {"count": 4, "y": y}, lambda o: o["y"]),
        (lambda y: Output("a", y, (y,)), lambda o: o.hidden),
        (lambda y: Unset(y), lambda o: o.hidden),
        (lambda y: torch.return_types.max((y, y.long())), lambda o: o[0]),
    ],
    ids=["tuple", "list", "dict", "dataclass", "field unset", "named tuple"],
)
def test_containers(wrap, unwrap):
    x = torch.randn(8, 4)
    (record,) = watched(Around(wrap, unwrap), x)
    assert key(record) == ("leaf", "leaf", 0)
    assert record.rms == pytest.approx(rms(2 * x), rel=1e-6)
    assert record.grad_rms == pytest.approx(rms(4 * x), rel=1e-6)


def test_a_layer_without_tensors_has_no_record():
    assert (
        watched(
            Around(lambda y: (y.shape, y)[:1], lambda o: torch.ones(1, requires_grad=True)),
            torch.randn(2, 4),
        )
        == []
    )


def test_inputs_by_keyword():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x, *, scale):
            return self.a(x) * scale["s"]

    with sk.Probe(Two()) as probe:
        probe._recorder.model(torch.randn(2, 4), scale={"s": torch.tensor(math.nan)})
    assert probe.first_nonfinite == sk.NonFinite(0, "", 0, "input")


def test_the_call_in_which_an_input_is_not_finite():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    model, x = Two(), torch.randn(2, 4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    with sk.Probe(model, optimizer) as probe:
        for y in (x, x, x / 0.0, x):
            model(x, y)
        optimizer.step()
    assert probe.first_nonfinite == sk.NonFinite(0, "", 2, "input")


def test_lstm_and_multihead_attention():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 16, batch_first=True)
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            h, _ = self.lstm(x)
            return self.attention(h, h, h)[0]

    torch.manual_seed(0)
    model, x = Both(), torch.randn(4, 6, 8)
    records = watched(model, x)
    assert [key(r) for r in records] == [
        ("lstm", "lstm", 0),
        ("attention", "multiheadattention", 0),
    ]
    hidden, _ = model.lstm(x)
    out = model.attention(hidden, hidden, hidden)[0]
    (gradient,) = torch.autograd.grad(out.square().sum(), hidden)
    assert [r.rms for r in records] == pytest.approx([rms(hidden), rms(out)], rel=1e-6)
    assert [r.grad_rms for r in records] == pytest.approx([rms(gradient), rms(2 * out)], rel=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_transformer_layers_also_where_a_fast_path_would_skip_them(train):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(train)
    x = torch.randn(4, 6, 16)
    with torch.no_grad():
        expected = model(x)
        with sk.Probe(model) as probe:
            found = model(x)
    assert torch.allclose(found, expected, atol=1e-5)
    kinds = [(r.layer, r.kind) for r in probe.records if r.layer.startswith("layers.1")]
    assert ("layers.1.self_attn", "multiheadattention") in kinds
    assert ("layers.1", "relu") in kinds
    assert ("layers.1.linear2", "linear") in kinds


def test_an_activation_counts_once_as_module_and_as_function():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.act = nn.Linear(4, 4), nn.SiLU()

        def forward(self, x):
            h = self.act(self.lin(x))
            h = F.relu(h).sigmoid() + torch.relu_(h * 2)
            return F.leaky_relu(h, 0.1) + torch.tanh(input=h)

    records = watched(Mixed(), torch.randn(3, 4))
    assert [key(r) for r in records] == [
        ("lin", "linear", 0),
        ("act", "silu", 0),
        ("", "relu", 0),
        ("", "sigmoid", 0),
        ("", "relu", 1),
        ("", "leaky_relu", 0),
        ("", "tanh", 0),
    ]
    assert all((r.saturated is None) == (r.kind == "linear") for r in records)


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_in_place_activations_do_not_change_what_was_seen(mode):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.LeakyReLU(0.001, True), nn.Linear(8, 8), nn.ELU(1.0, True)
    )
    twin = copy.deepcopy(model)
    twin[1].inplace = twin[3].inplace = False
    x = torch.randn(16, 8)
    records = watched(model, x, mode=mode)
    assert records == watched(twin, x, mode=mode)
    assert records[1].saturated > 0.3
    with torch.no_grad():
        before = twin[0](x)
    assert records[0].rms == pytest.approx(rms(before), rel=1e-5)
    assert records[1].rms == pytest.approx(rms(F.leaky_relu(before, 0.001)), rel=1e-5)


def test_data_dependent_control_flow_and_recursion():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x, depth=2):
            y = F.relu(self.lin(x))
            return self(y, depth - 1) if depth and y.sum() > -1 else y

    records = watched(Deep(), torch.randn(2, 4))
    assert [key(r) for r in records if r.kind == "linear"] == [
        ("lin", "linear", c) for c in range(3)
    ]
    assert max(r.step for r in records) == 0


def test_parametrized_weights():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    records = watched(model, torch.randn(8, 4))
    assert [key(r)[:2] for r in records] == [("0", "linear"), ("1", "relu")]
    assert all(r.grad_rms > 0 for r in records)


def test_a_part_of_the_model_called_on_its_own():
    model = nn.ModuleDict({"encoder": block(), "decoder": block()})
    with sk.Probe(model) as probe:
        model["decoder"](model["encoder"](torch.randn(4, 16))).sum().backward()
    assert [r.layer for r in probe.records][::3] == ["encoder.0", "decoder.0"]


# Parameters.


def test_frozen_unused_and_sparse():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(50, 8, sparse=True)
            self.frozen, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.embedding(x))

    torch.manual_seed(0)
    for mode in ("sampled", "hybrid", "exact"):
        model = Odd()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with sk.Probe(model, optimizer, mode=mode) as probe:
            model(torch.tensor([1, 1, 1, 7])).square().sum().backward()  # a place that repeats
            dense = model.embedding.weight.grad.to_dense().norm().item()
            optimizer.step()
        by = {p.parameter: p for p in probe.parameters}
        assert by["embedding.weight"].grad_norm == pytest.approx(dense, rel=1e-5)
        assert by["embedding.weight"].update_ratio > 0
        for name in ("frozen.weight", "unused.bias"):
            assert by[name].grad_norm is by[name].update_ratio is by[name].grad_nonfinite is None
            assert by[name].weight_norm > 0
        assert all(r.grad_rms > 0 for r in probe.records)


def test_a_frozen_model_has_no_gradients():
    records = watched(
        block().requires_grad_(False),
        torch.randn(2, 16),
        loss=lambda y: torch.ones(1, requires_grad=True).sum(),
    )
    assert len(records) == 3
    assert all(r.grad_rms is None for r in records)


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer) as probe:
        model(torch.randn(4, 5)).sum().backward()
        optimizer.step()
    assert probe.records[0].kind == "linear"
    assert {p.parameter for p in probe.parameters} == {"0.weight", "0.bias"}


def test_gradient_accumulation_is_one_step():
    model = block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 16)
    with sk.Probe(model, optimizer, mode="exact") as probe:
        for _ in range(2):
            for part in x.chunk(4):
                model(part).square().sum().backward()
            whole = model[0].weight.grad.norm().item()
            optimizer.step()
            optimizer.zero_grad()
    first = [r for r in probe.records if r.step == 0]
    assert [r.call for r in first if r.layer == "0"] == [0, 1, 2, 3]
    assert {r.step for r in probe.records} == {0, 1}
    assert all(r.grad_rms > 0 for r in probe.records)
    assert probe.parameters[4].grad_norm == pytest.approx(whole, rel=1e-6)


def test_an_optimiser_with_a_closure():
    model = block()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x = torch.randn(8, 16)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    with sk.Probe(model, optimizer, mode="exact") as probe:
        optimizer.step(closure)
    assert {r.step for r in probe.records} == {0}
    assert max(r.call for r in probe.records) == len(probe.records) / 3 - 1 > 1
    for record, weight, start in zip(probe.parameters, model.parameters(), before, strict=True):
        moved = (weight.detach() - start).norm() / start.norm()
        assert record.update_ratio == pytest.approx(moved.item(), rel=1e-5)
        assert record.weight_norm == pytest.approx(start.norm().item(), rel=1e-6)
        assert record.grad_norm == pytest.approx(weight.grad.norm().item(), rel=1e-6)


# Precision and layout.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_other_precisions(dtype, mode):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.GELU()).to(dtype), torch.randn(256, 64).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Squares of the outputs are beyond float16: they are reduced in float32.
    with torch.no_grad():
        expected = [rms(y) for y in (model[0](1000 * x), model(1000 * x))]
    with sk.Probe(model, optimizer, mode=mode) as probe:
        model(1000 * x).sum().backward()
        grad = model[0].weight.grad.double().norm().item()
        optimizer.step()
    assert probe.first_nonfinite is None
    assert min(expected) ** 2 > torch.finfo(torch.float16).max
    assert [r.rms for r in probe.records] == pytest.approx(expected, rel=0.15)
    assert probe.records[1].grad_rms == pytest.approx(1)
    assert probe.parameters[0].grad_norm == pytest.approx(
        grad, rel=0.15 if mode == "sampled" else 1e-3
    )


def test_autocast():
    model, x = block(), torch.randn(8, 16)
    with sk.Probe(model, mode="exact") as probe:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
            loss = y.float().square().sum()
        loss.backward()
    plain = watched(model, x)
    for a, b in zip(probe.records, plain, strict=True):
        assert a.rms == pytest.approx(b.rms, rel=0.02)
        assert a.grad_rms == pytest.approx(b.grad_rms, rel=0.05)


def test_grad_scaler_is_taken_out_and_its_skipped_steps_are_told_apart():
    model, x = block(), torch.randn(8, 16)
    plain = watched(model, x)
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with sk.Probe(model, optimizer, mode="exact", scaler=scaler) as probe:
        for factor in (1.0, math.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(factor * model(x).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    steps = [[r for r in probe.records if r.step == s] for s in range(3)]
    for records in (steps[0], steps[2]):
        assert [r.grad_rms for r in records] == pytest.approx([r.grad_rms for r in plain], rel=1e-5)
    assert all(r.grad_nonfinite > 0 for r in steps[1])
    assert probe.first_nonfinite == sk.NonFinite(1, "2", 0, "backward")
    # Parameters as the optimiser gets them, so without the scale in any case.
    with sk.Probe(model, optimizer, mode="exact") as probe:
        optimizer.zero_grad()
        scaler.scale(model(x).square().sum()).backward()
        scaler.step(optimizer)
    expected = [p.grad.norm().item() for p in model.parameters()]
    assert [p.grad_norm for p in probe.parameters] == pytest.approx(expected, rel=1e-6)


def test_channels_last_and_other_strides_are_not_copied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    x = torch.randn(4, 3, 12, 12)
    plain = watched(model, x)
    other = watched(
        model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    )
    for a, b in zip(plain, other, strict=True):
        assert (a.shape, a.dead) == (b.shape, b.dead)
        assert (a.mean, a.rms, a.grad_rms) == pytest.approx((b.mean, b.rms, b.grad_rms), rel=1e-4)
    from stabilitykit._ledger import Ledger
    from stabilitykit._reading import Reading
    from stabilitykit._samples import flattened

    big = torch.randn(8, 64, 32, 32).to(memory_format=torch.channels_last)
    assert flattened(big).data_ptr() == big.data_ptr()
    half = torch.randn(64, 4096)[:, ::2]  # no view of dimension one
    assert flattened(half) is None
    ledger = Ledger("hybrid")
    written = ledger.moments(half)
    assert Reading(ledger.read()).moments(written).rms == pytest.approx(rms(half), rel=0.1)


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_as_many_entries_in_one_piece_and_strided(mode):
    class Strided(nn.Module):
        def forward(self, x):
            return torch.tanh(x[::2])  # whose result is in one piece

    x = torch.randn(8192)
    with sk.Probe(Strided(), mode=mode) as probe:
        probe._recorder.model(x)
    assert probe.records[0].rms == pytest.approx(rms(torch.tanh(x[::2])), rel=0.1)


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_an_activation_of_one_number(mode):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(9.0))

        def forward(self, x):
            return torch.tanh(self.weight) * x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tanh, _ = watched(Gate(), torch.randn(3), mode=mode)
    assert tanh.shape == ()
    assert tanh.rms == pytest.approx(math.tanh(9.0))
    assert tanh.saturated == 1
    assert tanh.dead == (None if mode == "sampled" else 1)


def test_complex_numbers():
    class Phase(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x)

    x = torch.randn(64, 64)
    for mode in ("sampled", "hybrid", "exact"):
        with sk.Probe(Phase(), mode=mode) as probe:
            y = probe._recorder.model(x)
        parts = torch.view_as_real(y)
        assert probe.records[0].rms == pytest.approx(rms(parts), rel=0.1)


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_complex_activations_and_weights(mode):
    """Where a function of complex numbers is flat is not asked; norms are those of torch."""

    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16, dtype=torch.complex64)

        def forward(self, x):
            return torch.tanh(self.linear(x))

    torch.manual_seed(0)
    model, x = Waves(), torch.randn(128, 16, dtype=torch.complex64)
    before = model.linear.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    with sk.Probe(model, optimizer, mode=mode) as probe:
        output = model(x)
        output.abs().square().sum().backward()
        optimizer.step()
    record, weight = probe.records[1], probe.parameters[0]
    assert (record.kind, record.saturated, record.dead) == ("tanh", None, None)
    assert record.rms == pytest.approx(rms(torch.view_as_real(output)), rel=0.1)
    gradient, moved = model.linear.weight.grad, model.linear.weight.detach() - before
    assert weight.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert weight.weight_norm == pytest.approx(before.norm().item(), rel=1e-5)
    assert weight.update_ratio == pytest.approx((moved.norm() / before.norm()).item(), rel=1e-4)


class Named(torch.Tensor):
    """A subclass with values of its own, as torchvision's images."""


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_a_subclass_with_values_is_measured(mode):
    model, x = block(), torch.randn(200, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    plain = watched(model, x, mode=mode)
    model.zero_grad()
    with sk.Probe(model, optimizer, mode=mode) as probe:
        model(x.as_subclass(Named)).square().sum().backward()
        optimizer.step()
    assert probe.records == plain
    assert type(probe.records[0].rms) is float


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_a_subclass_that_stands_for_other_tensors_is_left_out(mode):
    """As quantised weights, or fake tensors, which have no values."""
    model, x = block(), torch.randn(200, 16)
    weight = model[0].weight.detach()
    model[0].weight = nn.Parameter(TwoTensor(weight.clone(), weight.clone()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sk.Probe(model, optimizer, mode=mode) as probe:
        for _ in range(2):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
    assert probe.records == []  # all outputs are of that class, too
    assert {p.parameter for p in probe.parameters} == {"0.bias", "2.weight", "2.bias"}
    with FakeTensorMode(allow_non_fake_inputs=True), sk.Probe(block(), mode=mode) as probe:
        probe._recorder.model(torch.randn(200, 16))
    assert probe.records == []


# Passes that are not one forward and one backward.


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.middle, self.last = block(), block(), nn.Linear(16, 16)
        self.reentrant = reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self.last(F.relu(self.middle(self.middle(self.first(x)))))
        h = checkpoint(self.first, x, use_reentrant=self.reentrant)
        h = checkpoint(
            lambda z: F.relu(self.middle(self.middle(z))), h, use_reentrant=self.reentrant
        )
        return self.last(h)


@pytest.fixture
def first_use():
    """As in a process that has not met the activations yet."""
    _flatness._described.cache_clear()


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
@pytest.mark.parametrize("function", [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.PReLU(), nn.ELU()])
@pytest.mark.usefixtures("first_use")
def test_an_activation_met_first_inside_a_checkpoint(function, mode):
    model = nn.Sequential(nn.Linear(16, 16), function, nn.Linear(16, 16))
    x = torch.randn(128, 16, requires_grad=True)
    with sk.Probe(model, mode=mode) as probe:
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
    assert probe.records == watched(model, x, mode=mode)
    assert probe.records[1].saturated is not None


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.usefixtures("first_use")
def test_checkpointed_passes_count_once(reentrant):
    x = torch.randn(8, 16, requires_grad=True)
    plain, model = Checkpointed(None), Checkpointed(reentrant)
    model.load_state_dict(plain.state_dict())
    found, expected = numbers(watched(model, x)), numbers(watched(plain, x))
    if reentrant:  # computed again outside of any module, where nothing watches functions
        bare = ("", "relu", 0)
        assert [r.grad_rms for r in found if key(r) == bare] == [None]
        expected = [r for r in expected if key(r) != bare]
        found = [r for r in found if key(r) != bare]
    assert found == expected


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.usefixtures("first_use")
def test_the_whole_model_checkpointed(reentrant):
    model, x = block(), torch.randn(4, 16, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer, mode="exact") as probe:
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert numbers(probe.records) == numbers(watched(model, x))


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_a_checkpoint_that_keeps_some_results_does_not_get_those_of_the_probe(mode):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x):
            y = torch.tanh(self.linear(x))
            return y - y.amax(0) * y.sum((0, 1)) * y.index_select(1, torch.arange(64))

    def keep(*_, **__):
        return CheckpointPolicy.MUST_SAVE

    torch.manual_seed(0)
    model, x = Model(), torch.randn(64, 64, requires_grad=True)
    expected = watched(model, x, mode=mode)
    gradient, model.linear.weight.grad = model.linear.weight.grad, None
    with sk.Probe(model, mode=mode) as probe:
        contexts = partial(create_selective_checkpoint_contexts, keep)
        output = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
        output.square().sum().backward()
    assert torch.equal(model.linear.weight.grad, gradient)
    assert probe.records == expected


def test_torch_func():
    model, x = block(), torch.randn(8, 16)
    expected = watched(model, x)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    with sk.Probe(model, mode="exact") as probe:
        gradients = torch.func.grad(loss)(parameters, x)
    assert [r._replace(grad_rms=None, grad_nonfinite=None) for r in probe.records] == [
        r._replace(grad_rms=None, grad_nonfinite=None) for r in expected
    ]
    assert [r.grad_rms for r in probe.records] == pytest.approx([r.grad_rms for r in expected])
    bare = torch.func.grad(loss)(parameters, x)
    assert all(torch.equal(gradients[n], bare[n]) for n in bare)


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_vmap_and_ensembles(mode):
    models = [block(16) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    base, x = block(16), torch.randn(8, 16)

    def call(parameters, buffers):
        return torch.func.functional_call(base, (parameters, buffers), (x,))

    bare = torch.vmap(call)(parameters, buffers)
    with sk.Probe(base, mode=mode) as probe:
        output = torch.vmap(call)(parameters, buffers)
        output.square().sum().backward()
    assert torch.equal(output, bare)
    assert [r.layer for r in probe.records] == ["0", "1", "2"]
    assert probe.records[2].rms == pytest.approx(rms(bare), rel=1e-5)

    def loss(parameters, x):
        return torch.func.functional_call(base, parameters, (x,)).square().sum()

    own = dict(base.named_parameters())
    with sk.Probe(base, mode=mode) as probe:  # a gradient for each sample
        each = torch.vmap(torch.func.grad(loss), (None, 0))(own, x)
    assert torch.allclose(
        each["0.weight"].sum(0), torch.func.grad(loss)(own, x)["0.weight"], atol=1e-4
    )
    assert len(probe.records) == 3
    assert math.prod(probe.records[0].shape) == 8 * 16


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_vmap_and_ensembles_again_and_again(mode):
    """The next call, whose parameters are under transforms, ends the step of the one before."""
    base, x = block(), torch.randn(8, 16)
    stacked, _ = torch.func.stack_module_state([block() for _ in range(3)])

    def call(parameters):
        return torch.func.functional_call(base, parameters, (x,))

    bare = torch.vmap(call)(stacked)
    with sk.Probe(base, mode=mode) as probe:
        for _ in range(3):
            assert torch.equal(torch.vmap(call)(stacked), bare)
    assert [(r.step, r.layer) for r in probe.records] == [(s, n) for s in range(3) for n in "012"]
    assert [r.rms for r in probe.records[2::3]] == pytest.approx([rms(bare)] * 3, rel=1e-5)
    assert {p.step for p in probe.parameters} == {2}  # that of which no transform is left


def test_inference_mode():
    model = block()
    with torch.inference_mode(), sk.Probe(model) as probe:
        model(torch.randn(200, 16))
    assert len(probe.records) == 3
    with sk.Probe(model) as probe:
        model(torch.randn(200, 16)).sum().backward()
    assert all(r.grad_rms > 0 for r in probe.records)


def test_gradient_penalty():
    """Gradients are those of the last backward pass, here of the loss with the penalty in it."""
    model, x = block(), torch.randn(4, 16, requires_grad=True)

    def loss(output):
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return output.square().sum() + slope.square().sum()

    first = model[0](x)
    second = model[1](first)
    third = model[2](second)
    expected = torch.autograd.grad(loss(third), [first, second, third])
    with sk.Probe(model, mode="exact") as probe:
        loss(model(x)).backward()
    assert [r.grad_rms for r in probe.records] == pytest.approx(list(map(rms, expected)), rel=1e-5)
    found = [p.grad_norm for p in probe.parameters]
    assert found == pytest.approx([p.grad.norm().item() for p in model.parameters()], rel=1e-6)


def test_two_models_only_one_watched():
    one, two = block(), block()
    with sk.Probe(one) as probe:
        (F.relu(one(torch.randn(2, 16))) + F.relu(two(torch.randn(2, 16)))).sum().backward()
    assert [r.layer for r in probe.records] == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["wrapper of it", "model inside", "in place"])
def test_compiled_models(how):
    torch._dynamo.reset()
    counted = []

    def backend(graph, _):
        counted.append(graph)
        return graph.forward

    model, x = Checkpointed(None), torch.randn(8, 16)
    expected = watched(model, x)
    if how == "in place":
        model.compile(backend=backend)
        called = model
    else:
        called = torch.compile(model, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        called(x)  # compiled before the probe comes
    graphs = len(counted)
    assert graphs > 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with sk.Probe(
        called if how == "wrapper of it" else model, optimizer, every=2, mode="exact"
    ) as probe:
        for _ in range(3):
            called(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert {r.step for r in probe.records} == {0, 2}
    assert numbers(r for r in probe.records if r.step == 2) == numbers(expected)
    called(x)
    assert len(counted) == graphs  # nothing was compiled again
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ELU, nn.SiLU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_activation_measured_through_its_input(act, inplace, dtype):
    """Hybrid mode computes f on the sample of z; the numbers are those of f(z)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), act(inplace=inplace)).to(dtype)
    x = (10 * torch.randn(256, 64)).to(dtype)
    exact, hybrid = (watched(model, x, mode=mode)[1] for mode in ("exact", "hybrid"))
    assert hybrid.dead == exact.dead
    assert hybrid.saturated == pytest.approx(exact.saturated, abs=4 * 0.5 / math.sqrt(1024))
    assert hybrid.rms == pytest.approx(exact.rms, rel=0.1)
    assert hybrid.grad_rms == pytest.approx(exact.grad_rms, rel=0.1)
    for value in (math.nan, math.inf, -math.inf):
        z = x.clone()
        z[17, 3] = value
        only = nn.Sequential(act(inplace=inplace))
        exact, hybrid = (probed(only, z, mode) for mode in ("exact", "hybrid"))
        assert (hybrid.nonfinite > 0) == (exact.nonfinite > 0), value
        assert math.isnan(hybrid.rms) == math.isnan(exact.rms)


def probed(model, x, mode):
    with sk.Probe(model, mode=mode) as probe, torch.no_grad():
        model(x.clone())
    return probe.records[0]


def test_a_hook_that_replaces_an_activation_is_seen():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    model[1].register_forward_hook(lambda m, i, o: o * 0 + 7)
    assert watched(model, torch.randn(64, 64), mode="hybrid")[1].rms == pytest.approx(7)


def test_what_dropout_passes_on_as_it_is_is_measured_once(monkeypatch):
    counted = []
    original = torch.sum
    monkeypatch.setattr(torch, "sum", lambda *a, **k: counted.append(a) or original(*a, **k))
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.0), nn.Identity(), nn.Dropout(0.5))
    records = watched(model, torch.randn(64, 64), mode="hybrid")
    assert len(counted) == 3  # the input, the linear layer, and what dropout changed
    layer, first, second, dropped = records
    for record in (first, second):
        assert (record.rms, record.grad_rms) == (layer.rms, layer.grad_rms)
    assert dropped.rms != layer.rms


def test_an_activation_that_raised_leaves_nothing_to_the_next_call():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.last = nn.ReLU(), nn.Linear(4, 4)
            self.fail = self.act.register_forward_hook(self.stop)

        def stop(self, *_):
            raise ValueError("stop")

        def forward(self, x):
            try:
                self.act(x)
            except ValueError:
                self.fail.remove()
            return self.last(self.act(torch.tanh(x)))

    records = watched(Once(), torch.randn(8, 4))
    expected = [("act", "relu", 0), ("", "tanh", 0), ("act", "relu", 1), ("last", "linear", 0)]
    assert [key(r) for r in records] == expected
    assert [r.saturated is None for r in records] == [False, False, False, True]


def test_an_input_changed_between_layer_and_activation():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(64, 64)

        def forward(self, x):
            y = self.lin(x)
            y += 100.0
            return torch.tanh(y)

    records = watched(Shifted(), torch.randn(64, 64), mode="hybrid")
    assert records[0].rms < 5
    assert records[1].saturated == 1
    assert records[1].rms == pytest.approx(1)


class Clamped(nn.Module):
    """Changes what it gets past its version."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "data":
            x.data.clamp_(-0.1, 0.1)
        elif self.how == "detached data":
            x.detach().data.clamp_(-0.1, 0.1)
        else:
            np.clip(x.detach().numpy(), -0.1, 0.1, out=x.detach().numpy())
        return x


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
@pytest.mark.parametrize("how", ["data", "detached data", "numpy"])
def test_a_change_past_the_version_is_seen(how, mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), Clamped(how), nn.ReLU(), nn.Linear(64, 4))
    with sk.Probe(model, mode=mode) as probe:
        model(torch.randn(400, 16)).sum().backward()
    linear, clamped, relu, _ = (record.rms for record in probe.records)
    assert linear > 0.3
    assert 0.05 < clamped <= 0.1
    assert 0.03 < relu < clamped


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_a_hook_that_changes_an_output_past_its_version_is_seen(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

    def treble(module, args, output):
        output.data.mul_(3)

    with sk.Probe(model, mode=mode) as probe:
        handle = model[0].register_forward_hook(treble)
        model(torch.randn(400, 16)).sum().backward()
    handle.remove()
    linear, relu, _ = (record.rms for record in probe.records)
    assert relu == pytest.approx(3 * linear / 2**0.5, rel=0.1)


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_derivatives_in_forward_mode(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x, direction = torch.randn(300, 8), torch.randn(300, 8)
    _, expected = torch.func.jvp(model, (x,), (direction,))
    with sk.Probe(model, mode=mode) as probe, forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent
        assert torch._C._is_fwd_grad_enabled()
    assert torch.equal(tangent, expected)
    assert [(record.layer, record.kind) for record in probe.records] == [
        ("0", "linear"), ("1", "relu"), ("2", "linear"),
    ]  # fmt: skip
    assert all(record.rms > 0 for record in probe.records)
