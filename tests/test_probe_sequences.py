"""Sequences of torch's own layers, at which the probe looks with the least effort."""

import contextlib
import copy
import math
from threading import Thread

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import stabilitykit as sk
from stabilitykit._frames import _FUNCTIONS, frames
from stabilitykit._outputs import Outputs
from stabilitykit._samples import positions

OPTIONS = {
    nn.LeakyReLU: [{}, {"negative_slope": 0.3}],
    nn.ELU: [{}, {"alpha": 0.5}],
    nn.GELU: [{}, {"approximate": "tanh"}],
}
ACTIVATIONS = [(kind, each) for kind in _FUNCTIONS for each in OPTIONS.get(kind, [{}])]


def shown(model, x, mode="hybrid"):
    with sk.Probe(model, mode=mode) as probe:
        model(x).square().sum().backward()
    return probe.records


def conv_net(activation):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation, nn.MaxPool2d(2))
    return nn.Sequential(nn.Sequential(*layers), nn.Sequential(nn.Flatten(), nn.Linear(392, 4)))


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
@pytest.mark.parametrize(("kind", "options"), ACTIVATIONS, ids=str)
def test_the_records_are_those_of_functions_that_are_looked_at_one_by_one(kind, options, mode):
    x = torch.randn(16, 3, 16, 16)
    lightly = shown(conv_net(kind(**options)), x, mode)
    other = conv_net(kind(**options))
    for module in other.modules():  # which might call anything
        module.register_forward_hook(lambda module, args, output: None)
    assert shown(other, x, mode) == lightly
    kinds = ["conv2d", "batchnorm2d", kind.__name__.lower(), "maxpool2d", "flatten", "linear"]
    assert [r.kind for r in lightly] == kinds
    assert lightly[2].saturated is not None
    assert (lightly[2].dead is None) == (mode == "sampled")


def convolutions(**options):
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
    with torch.no_grad():
        second.bias[3] = -100  # a dead unit
    normed = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(**options))
    return nn.Sequential(normed, second, nn.ReLU(**options), nn.Flatten(), nn.Linear(1152, 4))


class Elsewhere(nn.Module):
    """A sequence gets another tensor than the layer before it has put out."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.after = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, x):
        return self.after(0.1 * self.conv(x))


def features():
    first = nn.Linear(16, 16)
    with torch.no_grad():
        first.bias[3] = -1e4  # a dead unit in the last dimension
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 4))


def frozen():
    model = convolutions()
    model[0].requires_grad_(False)
    return model


LATER = {
    "elsewhere": Elsewhere,
    "frozen": frozen,
    "convolutions": convolutions,
    "in place": lambda: convolutions(inplace=True),
    "changed": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(inplace=True), nn.Flatten()),
    "features": features,
    "shared": lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3), nn.ReLU()] * 3, nn.Flatten()),
    "first": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.GELU()),
    "handed on": lambda: nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.Identity(), nn.SiLU(), nn.Dropout(0.0), nn.Tanh())
    ),
    "small": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3), nn.ELU()
    ),
    "prelu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()),
    "one dimension": lambda: nn.Sequential(nn.Conv2d(3, 48, 3), nn.Flatten(0), nn.Sigmoid()),
}


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
@pytest.mark.parametrize("name", LATER)
def test_in_later_steps_too_at_which_more_is_known(name, mode):
    found = []
    for disturbed in (False, True):
        torch.manual_seed(0)
        model, x = LATER[name](), torch.randn(16, 3, 16, 16)
        x[3] *= 100
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for module in model.modules() if disturbed else ():
            module.register_forward_hook(lambda module, args, output: None)
        with sk.Probe(model, optimizer, mode=mode) as probe:
            for step in range(4):
                optimizer.zero_grad()
                for part in x.split([4, 12]) if step == 2 else [x]:  # other shapes
                    model(part).square().mean().backward()
                with torch.no_grad():
                    model(x)
                    x.mul_(math.nan if step == 2 else 1)
                optimizer.step()
        found.append([repr(record) for record in probe.records])
        if name == "convolutions" and mode != "sampled":
            assert any(r.dead for r in probe.records)
    assert found[0] == found[1]


def test_most_layers_are_looked_at_quickly(monkeypatch):
    quickly = []
    note = Outputs._note
    monkeypatch.setattr(Outputs, "_note", lambda *a: (quickly.append(a[1]), note(*a)))
    model, x = convolutions(), torch.randn(16, 3, 16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with sk.Probe(model, optimizer):
        for _ in range(2):
            quickly.clear()
            model(x).square().mean().backward()
            optimizer.step()
    seen = list(quickly)
    assert seen == [(r.layer, r.kind) for r in shown(model, x)]


def outside_the_sample(shape):
    """A place of which the probe keeps no number."""
    numel = math.prod(shape)
    missing = set(range(numel)) - set(positions(numel, torch.device("cpu")).tolist())
    return sorted(missing)[len(missing) * 2 // 3]


def normed(norm, x, change):
    """How much of each step's output is not finite, and whether its record says that any is.

    What is to be changed is changed before the last step.
    """
    model = nn.Sequential(norm, nn.Flatten(0))
    found = []
    with sk.Probe(model, torch.optim.SGD(model.parameters(), lr=0.0)) as probe:
        for step in range(3):
            if step == 2:
                change()
            y = model(x)
            found.append(int(y.isfinite().logical_not().sum()))
            y.sum().backward()
            probe._recorder.optimizer.step()
    return found, [bool(r.nonfinite) for r in probe.records if r.layer == "0"]


@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("norm", "shape", "spoilt"),
    [
        (nn.BatchNorm1d(24), (512, 24), 512),
        (nn.BatchNorm1d(24), (32, 24, 16), 512),
        (nn.BatchNorm2d(24), (32, 24, 8, 8), 2048),
        (nn.BatchNorm3d(24), (8, 24, 4, 4, 4), 512),
        (nn.BatchNorm2d(24).eval(), (32, 24, 8, 8), 1),
        (nn.GroupNorm(12, 24), (32, 24, 8, 8), 128),
        (nn.InstanceNorm2d(24, affine=True), (32, 24, 8, 8), 64),
        (nn.LayerNorm(8), (32, 24, 8, 8), 8),
    ],
    ids=str,
)
def test_one_entry_that_is_not_finite_is_seen_behind_a_normalization(norm, shape, entry, spoilt):
    """It takes what it is normalized with along: in batch norms all of its channel."""
    x, norm = torch.randn(shape), copy.deepcopy(norm)

    def change():
        x.view(-1)[outside_the_sample(shape)] = entry

    bad, seen = normed(norm, x, change)
    assert bad == [0, 0, spoilt]
    assert seen == [False, False, True]


def test_a_channel_that_a_batch_norm_has_spoilt_is_seen():
    """Also where the sample has none of it, as of most of 3,000 channels."""
    norm = nn.BatchNorm1d(3000)
    sampled = set((positions(4 * 3000, torch.device("cpu")) % 3000).tolist())
    channel = max(set(range(3000)) - sampled)

    def change():
        with torch.no_grad():
            norm.bias[channel] = math.nan

    bad, seen = normed(norm, torch.randn(4, 3000), change)
    assert bad == [0, 0, 4]
    assert seen == [False, False, True]


def test_an_entry_that_overflows_in_half_precision_behind_a_batch_norm_is_seen():
    """Its channel is finite elsewhere."""
    x = torch.randn(32, 2, 16, 16).half()
    norm = nn.BatchNorm2d(2).half()

    def change():
        with torch.no_grad():
            norm.weight.fill_(2000)
            x.view(-1)[outside_the_sample(x.shape)] = 1000

    bad, seen = normed(norm, x, change)
    assert bad == [0, 0, 1]
    assert seen == [False, False, True]


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Functions, Operations])
def test_modes_around_later_steps_do_not_see_the_probe_at_work(kind):
    def seen(watched):
        model, x, mode = convolutions(), torch.randn(16, 3, 16, 16), kind()
        with sk.Probe(model) if watched else contextlib.nullcontext():
            for step in range(3):
                with mode if step == 2 else contextlib.nullcontext():
                    loss = model(x).square().mean()
                loss.backward()
        return mode.seen

    assert seen(True) == seen(False) != []


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_sequence_counts_once_in_later_steps_too(reentrant):
    x = torch.randn(16, 3, 16, 16, requires_grad=True)
    found = []
    for run in (lambda model: model(x), lambda m: checkpoint(m, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        model = convolutions()
        model[0][1].momentum = 0.0  # else the second pass counts twice
        with sk.Probe(model) as probe:
            for _ in range(3):
                run(model).square().mean().backward()
        found.append([repr(record) for record in probe.records])
    assert len(found[0]) == 3 * 7
    assert found[0] == found[1]


def test_another_thread_in_the_middle_of_a_sequence_is_not_recorded(monkeypatch):
    model, x = convolutions(), torch.randn(16, 3, 16, 16)

    def other():
        for layer in (model[0][0], model[0][2]):
            layer(x)

    def batch_norm(*args, **options):
        thread = Thread(target=other)
        thread.start()
        thread.join()
        return norm(*args, **options)

    norm = F.batch_norm
    monkeypatch.setattr(F, "batch_norm", batch_norm)
    with sk.Probe(model) as probe:
        for _ in range(3):
            model(x).square().mean().backward()
    assert [(r.layer, r.call) for r in probe.records] == 3 * [
        (name, 0) for name in ("0.0", "0.1", "0.2", "1", "2", "3", "4")
    ]


def test_a_sequence_of_nested_tensors_is_left_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    ragged = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    with sk.Probe(model) as probe:
        for _ in range(2):
            torch.nested.to_padded_tensor(model(ragged), 0.0).sum().backward()
            model(torch.randn(3, 8)).sum().backward()
    assert [r.shape for r in probe.records] == 2 * 4 * [(3, 8)]


@pytest.mark.parametrize(("kind", "options"), ACTIVATIONS, ids=str)
def test_the_functions_of_activations_are_those_that_they_call(kind, options):
    """Else the share that is flat, and f of the samples, would be another function's."""
    function, names = _FUNCTIONS[kind]
    module, x = kind(**options), torch.linspace(-4, 4, 1001)
    assert torch.equal(module(x), function(x, **{name: getattr(module, name) for name in names}))


def test_an_option_that_changes_between_steps_counts_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.3), nn.Flatten())
    with sk.Probe(model) as probe:
        for step in range(4):
            model[1].negative_slope = 0.001 if step == 3 else 0.3
            model(torch.randn(16, 3, 16, 16)).sum().backward()
    saturated = [r.saturated for r in probe.records if r.layer == "1"]
    assert saturated[:3] == [0.0, 0.0, 0.0]
    assert 0.3 < saturated[3] < 0.7


def test_an_activation_that_works_in_place_is_seen_before():
    x = torch.randn(16, 3, 16, 16)
    alone, in_place = (shown(conv_net(nn.ReLU(inplace=i)), x) for i in (False, True))
    assert [r._replace(grad_rms=0.0) for r in in_place] == [r._replace(grad_rms=0.0) for r in alone]
    assert 0 < in_place[2].saturated < 1


def test_only_undisturbed_sequences_of_torchs_own_layers_are_looked_at_lightly():
    class Own(nn.Linear):
        def forward(self, x):
            return F.relu(super().forward(x))

    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    def light(model):
        return [frame.name for frame in frames(model, {}).values() if frame.light]

    pair = nn.Linear(4, 4), nn.Tanh()
    assert light(nn.Sequential(*pair, nn.Dropout(), nn.Identity())) == ["0", "2", "3"]
    assert light(nn.Sequential(nn.Sequential(*pair), nn.Linear(4, 4))) == ["0.0", "1"]
    assert light(nn.Sequential(nn.Linear(4, 4), nn.Dropout(inplace=True))) == ["0"]
    assert light(nn.Sequential(nn.Linear(4, 4), Own(4, 4))) == []
    assert light(nn.Sequential(nn.Linear(4, 4), nn.PReLU())) == []  # whose function is not known
    assert light(Doubled(*pair)) == []
    assert light(nn.Linear(4, 4)) == []
    disturbed = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    disturbed[1].register_forward_pre_hook(lambda module, args: None)
    assert light(disturbed) == []


def test_what_hooks_call_that_come_while_the_probe_runs_is_seen():
    """After the layer, since the probe's hook was there first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = [("0", "linear"), ("1", "linear"), ("2", "tanh")]
    with sk.Probe(model, optimizer) as probe:
        for step in range(3):
            if step == 1:
                handle = model[1].register_forward_hook(lambda m, a, output: torch.selu(output))
            if step == 2:
                handle.remove()
            optimizer.zero_grad()
            model(torch.randn(8, 6)).sum().backward()
            optimizer.step()
    seen = [[(r.layer, r.kind) for r in probe.records if r.step == step] for step in range(3)]
    assert seen == [plain, [plain[0], plain[1], ("", "selu"), plain[2]], plain]
    assert all(r.grad_rms is not None for r in probe.records)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_layer_of_a_sequence_is_seen_when_it_is_called_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.full((8, 6), torch.nan)
    with sk.Probe(model, optimizer) as probe:
        model[1](torch.randn(8, 6)).sum().backward()
        model[0](input=x).sum().backward()
        optimizer.step()
    assert [(r.layer, r.kind) for r in probe.records] == [("1", "batchnorm1d"), ("0", "linear")]
    assert probe.first_nonfinite == sk.NonFinite(0, "0", 0, "input")


class Stubborn(nn.Module):
    """Goes on after an interrupt, which no hook is told of, in a sequence or one layer."""

    def __init__(self, part, other):
        super().__init__()
        self.part, self.other = part, other

    def forward(self, x):
        with contextlib.suppress(KeyboardInterrupt):
            x = self.part(x)
        return x if self.other is None else self.other(x)


class Hinged(nn.Linear):
    def forward(self, x):
        return F.relu(super().forward(x))


class Ending(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return torch.tanh(self.body(x))


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_a_model_that_goes_on_after_an_interrupt_in_a_sequence(alone, more, monkeypatch):
    torch.manual_seed(0)
    part = nn.Linear(6, 6) if alone else nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU())
    model = Ending(Stubborn(part, Hinged(6, 6) if more else None))
    before = torch.overrides._len_torch_function_stack()
    expected = [("body.part.0", "linear")] if not alone else []
    expected += [("body.other", "relu"), ("body.other", "hinged")] if more else []
    expected.append(("", "tanh"))
    with sk.Probe(model) as probe:
        linear = F.linear
        torn = model.body.part if alone else model.body.part[1]
        monkeypatch.setattr(
            F, "linear", lambda x, w, b: interrupt() if w is torn.weight else linear(x, w, b)
        )
        model(torch.randn(8, 6))
    assert torch.overrides._len_torch_function_stack() == before
    assert [(r.layer, r.kind) for r in probe.records] == expected


@pytest.mark.parametrize("inside", [True, False])
def test_a_layer_that_raises_leaves_the_sequence_as_it_was(inside):
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Linear(5, 5)), nn.ReLU())
    if not inside:
        model = nn.Sequential(*model[0], nn.ReLU())
    before = torch.overrides._len_torch_function_stack()
    with sk.Probe(model) as probe:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                model(torch.randn(8, 6))
            assert torch.overrides._len_torch_function_stack() == before
    assert [r.kind for r in probe.records] == ["linear", "linear"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
