"""What happens to a watched model between and within its steps leaves the probe right."""

import contextlib
import copy
import io
import math
import pickle
import threading
import tracemalloc
import warnings

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import stabilitykit as sk


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


LAYERS = ["first", "", "last"]


def net():
    torch.manual_seed(0)
    return Net()


def modes():
    return torch.overrides._len_torch_function_stack()


def layers(probe):
    """The layers of each step that was recorded, in order."""
    steps = sorted({r.step for r in probe.records})
    return [[r.layer for r in probe.records if r.step == step] for step in steps]


def interrupt(model, times=1):
    """Let the last layer be interrupted as by Ctrl-C, which is no Exception."""
    left = [KeyboardInterrupt] * times

    def stop(*_):
        if left:
            raise left.pop()

    model.last.register_forward_hook(stop)


@pytest.mark.parametrize("optimizing", [True, False])
def test_a_loop_that_goes_on_after_an_interrupted_forward(optimizing):
    model, before = net(), modes()
    interrupt(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 6)
    with sk.Probe(model, optimizer if optimizing else None) as probe:
        with pytest.raises(KeyboardInterrupt):
            model(x)
        for _ in range(2):
            if optimizing:
                optimizer.step()
                optimizer.zero_grad()
            model(x).sum().backward()
            assert modes() == before
            torch.relu(x)
        optimizer.step()
    assert layers(probe) == [LAYERS[:2], LAYERS, LAYERS]
    assert all(r.call == 0 for r in probe.records)
    assert modes() == before


def test_an_interrupted_part_of_the_model():
    model, x = net(), torch.randn(4, 6)
    interrupt(model)
    with sk.Probe(model) as probe:
        with pytest.raises(KeyboardInterrupt):
            model.last(x)
        for _ in range(2):
            model(x)
    assert layers(probe) == [LAYERS, LAYERS]


def test_a_probe_that_ends_after_an_interrupt_takes_off_its_own_mode_alone():
    class Other(TorchFunctionMode):
        seen = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen += func is torch.relu
            return func(*args, **(kwargs or {}))

    model, x, before = net(), torch.randn(4, 6), modes()
    interrupt(model)
    probe = sk.Probe(model).__enter__()
    with pytest.raises(KeyboardInterrupt):
        model(x)
    with Other() as other:
        probe.__exit__(None, None, None)
        torch.relu(x)
    assert other.seen == 1
    assert modes() == before


def test_calls_in_two_threads_at_once_are_kept_apart():
    """As of a thread that evaluates, or of replicas: the one that came first is recorded."""
    model, x, before = net(), torch.randn(4, 6), modes()
    inside, go_on = threading.Event(), threading.Event()
    found = {}

    def wait(*_):
        if threading.current_thread() is worker:
            inside.set()
            assert go_on.wait(30)

    def work():
        found["output"] = model(x)
        found["modes"] = modes()

    model.first.register_forward_hook(wait)
    worker = threading.Thread(target=work)
    with sk.Probe(model) as probe:
        worker.start()
        assert inside.wait(30)
        other = model(x)
        assert modes() == before
        go_on.set()
        worker.join()
        assert torch.equal(found["output"], other)
        model(x)  # by now no other thread is in the model
    assert layers(probe) == [LAYERS, LAYERS]
    assert found["modes"] == modes() == before


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    assert b"stabilitykit" not in file.getvalue()  # so that it can be read without
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": saved,
}


@pytest.mark.parametrize("optimizing", [True, False])
@pytest.mark.parametrize("how", COPIES)
def test_copies_made_meanwhile_are_not_watched(how, optimizing):
    """As an average of the weights, or a checkpoint of the whole model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizing else None
    x = torch.randn(4, 6)
    with sk.Probe(model, optimizer, callback=lambda values, step: None) as probe:
        output = model(x)
        assert set(model.state_dict()) == {"0.weight", "0.bias"}
        twin = COPIES[how](model)
        for _ in range(2):
            assert torch.equal(twin(x), output)
        assert not twin(x)._backward_hooks
    assert layers(probe) == [["0", "1"]]
    for module in twin:
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
            assert "stabilitykit" not in repr(hook)


def test_an_output_is_saved_without_a_warning():
    model = net()
    with sk.Probe(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.dumps(model(torch.randn(4, 6)).requires_grad_())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_torch_jit_made_is_left_out():
    torch.manual_seed(0)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    model = nn.Sequential(nn.Linear(6, 6), scripted, nn.Linear(6, 6))
    with sk.Probe(model) as probe:
        model(torch.randn(4, 6)).sum().backward()
    assert layers(probe) == [["0", "2"]]
    assert [p.parameter for p in probe.parameters if p.grad_norm][:4:2] == [
        "0.weight",
        "1.0.weight",
    ]
    with pytest.raises(
        TypeError, match=r"model is a torch\.jit\.ScriptModule, which takes no hooks"
    ):
        sk.Probe(scripted)


@pytest.mark.parametrize("optimizing", [True, False])
def test_a_probe_that_cannot_start_leaves_no_hook(optimizing):
    class Closed(nn.Linear):
        def register_forward_hook(self, *_, **__):
            raise ValueError("closed")

    model = nn.Sequential(nn.Linear(6, 6), Closed(6, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="closed"):
        sk.Probe(model, optimizer if optimizing else None).__enter__()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


class Adapted(nn.Module):
    """A layer with a low-rank one beside it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(6, 2), nn.Linear(2, 6)

    def forward(self, x):
        return self.base(x) + torch.relu(self.up(self.down(x)))


@pytest.mark.parametrize("optimizing", [True, False])
def test_layers_that_are_added_replaced_and_taken_away_between_steps(optimizing):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    old, x = model[0], torch.randn(4, 6)

    def step():
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with sk.Probe(model, optimizer if optimizing else None, mode="exact") as probe:
        step()
        model[0] = Adapted(old)
        step()
        model.append(nn.Linear(6, 1))
        step()
        model[0] = nn.Linear(6, 6)
        step()
        old(x)  # no longer of the model
    expected = [["0", "1"], ["0.base", "0.down", "0.up", "0", "1"]]
    expected += [[*expected[1], "2"], ["0", "1", "2"]]
    assert layers(probe) == expected
    assert all(r.grad_rms > 0 for r in probe.records)
    for module in [*model.modules(), *old.modules()]:
        assert not module._forward_hooks


def test_a_part_that_is_called_on_its_own_after_a_change():
    model = nn.ModuleDict({"one": nn.Linear(6, 6)})
    x = torch.randn(4, 6)
    with sk.Probe(model) as probe:
        model["two"] = nn.Linear(6, 6)
        model["one"](x)
        model["two"](x)
    assert layers(probe) == [["one", "two"]]


def test_a_part_that_was_taken_away_is_not_watched():
    model, x, before = nn.ModuleDict({"one": nn.Linear(6, 6)}), torch.randn(4, 6), modes()
    with sk.Probe(model) as probe:
        old, model["one"] = model["one"], nn.Linear(6, 6)
        old(x)
        assert modes() == before
        assert not old._forward_hooks
        model["one"](x)
    assert layers(probe) == [["one"]]


class Assigning(torch.optim.Optimizer):
    """Puts another tensor in, as hand-written optimizers do."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter.data - group["lr"] * parameter.grad


@pytest.mark.parametrize("mode", ["sampled", "hybrid", "exact"])
def test_an_optimizer_that_puts_other_tensors_in(mode):
    model, x = net(), torch.randn(4, 6)
    optimizer = Assigning(model.parameters(), lr=0.1)
    expected = []
    with sk.Probe(model, optimizer, mode=mode) as probe:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            expected += [
                0.1 * (p.grad.norm() / p.detach().norm()).item() for p in model.parameters()
            ]
            optimizer.step()
    assert [p.update_ratio for p in probe.parameters] == pytest.approx(expected, rel=1e-5)


def test_two_players_whose_optimizers_take_turns():
    """The one's step leaves gradients in the other, which are set to None before its own."""
    one, two = net(), nn.Linear(6, 1)
    first = torch.optim.SGD(one.parameters(), lr=0.1)
    second = torch.optim.SGD(two.parameters(), lr=0.1)
    with sk.Probe(one, first) as maker, sk.Probe(two, second) as judge:
        for _ in range(3):
            z = torch.randn(4, 6)
            second.zero_grad()
            (two(z).mean() - two(one(z).detach()).mean()).backward()
            second.step()
            first.zero_grad()
            two(one(z)).mean().backward()
            first.step()
    assert layers(maker) == [[*LAYERS, *LAYERS]] * 3
    assert layers(judge) == [["", ""], ["", "", ""], ["", "", ""], [""]]
    assert all((r.grad_rms is None) == (r.call == 0) for r in maker.records)


def test_two_passes_for_one_step_with_gradients_cleared_between():
    """As in sharpness-aware minimisation: the second pass is at weights a little off."""
    model, x = net(), torch.randn(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with sk.Probe(model, optimizer, mode="exact") as probe:
        for _ in range(2):
            model(x).square().sum().backward()
            away = [1e-3 * p.grad for p in model.parameters()]
            with torch.no_grad():
                torch._foreach_add_(list(model.parameters()), away)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            with torch.no_grad():
                torch._foreach_sub_(list(model.parameters()), away)
            expected += [p.grad.norm().item() for p in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
    assert layers(probe) == [[*LAYERS, *LAYERS]] * 2
    assert [p.grad_norm for p in probe.parameters] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_asking_for_records_in_the_middle_of_a_pass_does_not_end_the_step(where):
    model, x, asked = net(), torch.randn(4, 6), []

    def ask(*_):
        asked.append(len(probe.records))

    if where == "forward":
        model.first.register_forward_hook(ask)
    else:
        model.last.register_forward_hook(lambda m, i, o: o.register_hook(ask) and None)
    with sk.Probe(model) as probe:
        for _ in range(2):
            model(x).sum().backward()
        assert len(probe.records) == 6
    assert asked == [0, 3]
    assert layers(probe) == [LAYERS, LAYERS]
    assert all(r.grad_rms > 0 for r in probe.records)


class Hinged(nn.Linear):
    def forward(self, x):
        return torch.relu(super().forward(x))


def test_activations_within_layers_of_torch_are_seen_wherever_somebody_puts_them():
    """In torch's own layers nothing is looked for, unless something was added to them."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)), Hinged(6, 6), nn.Linear(6, 6))
    model[0].register_forward_hook(lambda module, args, output: torch.tanh(output))
    model[1].register_forward_pre_hook(lambda module, args: torch.sigmoid(args[0]))
    model[2].forward = lambda x: torch.selu(x)
    expected = [("0", "tanh"), ("0", "linear"), ("", "sigmoid"), ("1", "linear"), ("2", "selu")]
    expected += [("2", "linear"), ("3", "linear"), ("4", "relu"), ("4", "hinged"), ("5", "linear")]
    with sk.Probe(model) as probe, sk.Probe(model) as other:
        model(torch.randn(8, 6)).sum().backward()
    for each in (probe, other):
        assert [(r.layer, r.kind) for r in each.records] == expected
        assert all(r.grad_rms is not None for r in each.records)


class Telling(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Told(Net):
    """Has a mode of its own on while its first layer runs."""

    def forward(self, x):
        with Telling() as self.telling:
            h = self.first(x)
        return self.last(torch.tanh(h))


def test_modes_within_and_around_a_model_see_what_they_would():
    torch.manual_seed(0)
    model, before = Told(), modes()
    with Telling() as around, sk.Probe(model) as probe:
        model(torch.randn(8, 6)).sum().backward()
    assert modes() == before
    assert model.telling.seen.count(nn.functional.linear) == 1
    assert around.seen.count(nn.functional.linear) == 2
    assert [r.layer for r in probe.records] == LAYERS


class Placed(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Telling, Placed])
@pytest.mark.parametrize("optimizing", [True, False])
def test_modes_around_a_step_do_not_see_the_probe_at_work(kind, optimizing):
    def step(watched):
        model, x = net(), torch.ones(8, 6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probe = sk.Probe(model, optimizer if optimizing else None)
        with probe if watched else contextlib.nullcontext(), kind() as mode:
            for _ in range(2):
                optimizer.zero_grad()
                model(x).sum().backward()
                optimizer.step()
        return mode.seen

    assert step(True) == step(False)


@pytest.mark.parametrize("kind", [Telling, Placed])
def test_a_mode_around_one_of_several_backward_passes_does_not_see_it_either(kind):
    def step(watched):
        model, x = net(), torch.ones(8, 6)
        probe = sk.Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
        with probe if watched else contextlib.nullcontext():
            losses = [model(x).sum() for _ in range(4)]
            losses[0].backward()
            with kind() as mode:
                losses[1].backward()
            losses[2].backward()
            with torch.enable_grad(), kind() as other:
                torch.autograd.grad(losses[3], list(model.parameters()), create_graph=True)
        grown = [r.grad_rms for r in probe.records] if watched else []
        return mode.seen, other.seen, grown

    *watched, gradients = step(True)
    assert watched == list(step(False)[:2])
    calls = [gradients[call * len(LAYERS) :][: len(LAYERS)] for call in range(4)]
    assert calls[0] == calls[1] == calls[2] == calls[3]
    assert None not in calls[0]


def through(module, x):
    """A function that modes see, and that calls a module."""
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(through, (x,), module, x)
    return module(x)


class Dispatching(Net):
    def forward(self, x):
        return through(self.last, torch.tanh(through(self.first, x)))


def test_layers_that_are_called_while_the_watch_handles_a_function():
    torch.manual_seed(0)
    model, before = Dispatching(), modes()
    with sk.Probe(model) as probe:
        model(torch.randn(8, 6)).sum().backward()
    assert modes() == before
    assert [r.layer for r in probe.records] == LAYERS


class Stopping(TorchFunctionMode):
    """Interrupts the first product, as Ctrl-C in the middle of a layer would."""

    def __init__(self):
        super().__init__()
        self.left = 1

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.linear and self.left:
            self.left = 0
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


class Obstinate(Net):
    def forward(self, x):
        with contextlib.suppress(KeyboardInterrupt):
            self.first(x)
        return super().forward(x)


def test_a_model_that_goes_on_after_an_interrupt_within_a_layer_of_torch():
    torch.manual_seed(0)
    model, before = Obstinate(), modes()
    with Stopping(), sk.Probe(model) as probe:
        for _ in range(2):
            model(torch.randn(8, 6)).sum().backward()
    assert modes() == before
    kinds = [[r.kind for r in probe.records if r.step == step] for step in (0, 1)]
    assert kinds == [["linear", "tanh", "linear"], ["linear", "linear", "tanh", "linear"]]


def test_a_hook_of_the_users_on_an_output_comes_and_goes_beside_the_probes():
    model, seen = net(), []

    def watch(module, args, output):
        handles.append(output.register_hook(seen.append))

    for before in (True, False):
        handles = []
        probe = sk.Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
        if before:
            handle = model.first.register_forward_hook(watch)
        with probe:
            if not before:
                handle = model.first.register_forward_hook(watch)
            for _ in range(2):
                model(torch.randn(8, 6)).sum().backward()
                probe._recorder.optimizer.step()
        handle.remove()
        assert len(seen) == 2
        for number, gradient in enumerate(seen):
            record = next(r for r in probe.records if (r.step, r.layer) == (number, "first"))
            assert record.grad_rms == pytest.approx(gradient.square().mean().sqrt().item())
        for each in handles:
            each.remove()
        seen.clear()


@pytest.mark.parametrize("elsewhere", [True, False])
def test_records_are_the_same_whenever_and_wherever_they_are_asked_for(elsewhere):
    def train(ask):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
        with sk.Probe(model, optimizer) as probe:
            for step in range(6):
                optimizer.zero_grad()
                model(x * (math.nan if step == 4 else 1)).sum().backward()
                optimizer.step()
                ask(probe)
        return probe.records, probe.parameters, probe.first_nonfinite

    def ask(probe):
        assert len(probe.records) == 3 * len(probe.parameters) // 4

    def ask_elsewhere(probe):
        threads = [threading.Thread(target=lambda: probe.records) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert repr(train(ask_elsewhere if elsewhere else ask)) == repr(train(lambda probe: None))


def test_a_step_that_nobody_has_asked_for_takes_little_memory():
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(20)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train():
        for _ in range(30):
            optimizer.zero_grad()
            model(torch.ones(8, 6)).sum().backward()
            optimizer.step()

    with sk.Probe(model, optimizer) as probe:
        train()
        count = len(probe.records) + len(probe.parameters)
        tracemalloc.start()
        try:
            train()
            waiting = tracemalloc.get_traced_memory()[0]
            assert len(probe.records) + len(probe.parameters) == 2 * count
            made = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert waiting < 2 * made < 2 * 500 * count


class Sparse(torch.autograd.Function):
    """Passes on what it gets, and a sparse gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to_sparse()


class Thinned(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.last(Sparse.apply(self.first(x)))


@pytest.mark.parametrize("shape", [(8, 6), (1, 1)])
def test_a_sparse_gradient_of_an_output_is_left_out(shape):
    model, x = Thinned(), torch.randn(shape, requires_grad=True)
    with sk.Probe(model, torch.optim.SGD([x], lr=0.1)) as probe:
        for _ in range(2):
            model(x.clone()).sum().backward()
    assert [r.grad_rms for r in probe.records] == [None, 1.0] * 2


def test_what_sums_left_in_one_step_does_not_count_for_gradients_in_the_next():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sk.Probe(model, optimizer) as probe:
        fine, bad = torch.ones(64, 64), torch.full((64, 64), math.inf)
        for calls, x in ((1, fine), (4, bad), (1, fine)):
            for _ in range(calls):
                output = model(x)
            if calls == 1:
                output.sum().backward()
            optimizer.step()
    assert all(r.nonfinite for r in probe.records if r.step == 1)
    assert [r.grad_nonfinite for r in probe.records if r.step == 2] == [0, 0]
