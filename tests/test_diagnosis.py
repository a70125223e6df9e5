"""`diagnose` runs a step, leaves no trace of it, and says what is wrong with its arguments."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import healthy, nets, sick

import stabilitykit as sk
from stabilitykit._findings import PAGES


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def bits(value):
    """Anything as nested tuples that compare equal only when every bit is equal."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous()
        return (str(value.dtype), tuple(value.shape), data.view(-1).numpy().tobytes())
    if isinstance(value, dict):
        return tuple((str(k), bits(v)) for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(bits, value))
    return repr(value)


def everything(model, optimizer):
    """All that a diagnosis must leave alone."""
    hooks = [
        (name, key, list(table))
        for name, module in model.named_modules()
        for key, table in vars(module).items()
        if "hook" in key and isinstance(table, dict)
    ]
    return {
        "values": bits(model.state_dict()),
        "buffers": [(n, id(b), bits(b)) for n, b in model.named_buffers()],
        "gradients": [(n, id(p.grad), bits(p.grad)) for n, p in model.named_parameters()],
        "required": [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        "tensor hooks": [bool(p._backward_hooks) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": hooks,
        "random": (random.getstate(), bits(torch.get_rng_state()), numpy_state()),
        "optimizer": None if optimizer is None else bits(optimizer.state_dict()),
        "state": None if optimizer is None else [id(t) for t in state_tensors(optimizer)],
    }


def numpy_state():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return name, keys.tobytes(), rest


def state_tensors(optimizer):
    return [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]


def used(name, steps=2):
    """A model of the zoo after some steps, with gradients and optimizer state."""
    model, batch, loss_fn, optimizer = healthy.build(name)
    healthy.trains(model, batch, loss_fn, optimizer, steps=steps, enough=0)
    return model, batch, loss_fn, optimizer


@pytest.mark.parametrize(
    "name",
    ["mlp-3-relu-adam", "mlp-in-place", "mlp-10-batchnorm", "mlp-dropout", "resnet-4-zero-gamma",
     "lstm", "encoder-post-ln", "mlp-frozen-first", "mlp-two-inputs", "unet"],
)  # fmt: skip
def test_nothing_is_changed(name):
    model, batch, loss_fn, optimizer = used(name)
    model.register_forward_hook(lambda *_: None)
    next(model.children()).eval()
    before, data = everything(model, optimizer), bits(batch)
    assert sk.diagnose(model, batch, loss_fn, optimizer).healthy
    assert everything(model, optimizer) == before
    assert bits(batch) == data


@pytest.mark.parametrize(
    "make",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad,
     torch.optim.AdamW],
)  # fmt: skip
def test_an_optimizer_goes_on_as_if_nothing_had_been(make):
    runs = []
    for diagnosed in (False, True):
        model, batch, loss_fn, _ = healthy.build("mlp-3-relu-adam")
        optimizer = make(model.parameters(), lr=1e-3)
        for _ in range(3):
            if diagnosed:
                sk.diagnose(model, batch, loss_fn, optimizer)
            optimizer.zero_grad()
            loss_fn(model(batch[0]), batch[1]).backward()
            optimizer.step()
        runs.append((bits(model.state_dict()), bits(optimizer.state_dict())))
    assert runs[0] == runs[1]


def test_a_scheduler_does_not_take_the_step_for_its_own():
    model, batch, loss_fn, optimizer = healthy.build("mlp-3-relu-adam")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = vars(optimizer).copy()
    sk.diagnose(model, batch, loss_fn, optimizer)
    assert vars(optimizer).keys() == before.keys()
    assert not getattr(optimizer, "_opt_called", False)
    assert scheduler.get_last_lr() == [3e-3]


def fails_at(place):
    """A model, batch and loss that raise at the place, all in the middle of something."""
    model, (x, t), loss_fn, optimizer = used("mlp-10-batchnorm")

    def explode(*_):
        raise ArithmeticError("out of luck")

    if place == "forward":
        model[4].forward = explode
    if place == "loss_fn":
        loss_fn = explode
    if place == "backward":
        loss_fn = Exploding.apply
    if place == "optimizer.step":
        optimizer.step = explode
    return model, (x, t), loss_fn, optimizer


class Exploding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, outputs, targets):
        return outputs.sum()

    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError("out of luck")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("forward", "forward of layer '4' raised ArithmeticError: out of luck"),
        ("loss_fn", "loss_fn raised ArithmeticError: out of luck"),
        ("backward", "backward raised ArithmeticError: out of luck"),
        ("optimizer.step", "optimizer.step raised ArithmeticError: out of luck"),
    ],
)
def test_an_exception_says_where_and_leaves_all_as_it_was(place, said):
    model, batch, loss_fn, optimizer = fails_at(place)
    before = everything(model, optimizer)
    with pytest.raises(RuntimeError, match=said) as caught:
        sk.diagnose(model, batch, loss_fn, optimizer)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert everything(model, optimizer) == before


def test_nan_in_weights_keeps_its_bits():
    model = nets.stack([16, 8, 4])
    model[0].weight.data.view(torch.int32)[0, 0] = 0x7FC12345
    batch = nets.table()
    before = everything(model, None)
    assert not sk.diagnose(model, batch, F.cross_entropy).healthy
    assert everything(model, None) == before


class Counting(nn.Module):
    """Keeps state of its own: a counter, a cache, and a buffer that it replaces."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.calls, self.cache = 0, None
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        self.calls += 1
        self.cache = x
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        x = x + torch.randn_like(x) * 0.01 * random.random() * np.random.rand()  # noqa: NPY002
        return self.linear(x - self.mean)


def test_a_models_own_state_is_put_back():
    model, batch = Counting(), nets.table()
    before = everything(model, None)
    sk.diagnose(model, batch, F.cross_entropy)
    assert everything(model, None) == before
    assert (model.calls, model.cache) == (0, None)


def test_grad_mode_does_not_matter():
    model, batch, loss_fn, _ = healthy.build("mlp-2-relu-sgd")
    with torch.no_grad():
        assert sk.diagnose(model, batch, loss_fn).healthy
        assert not torch.is_grad_enabled()


X, T = torch.zeros(8, 16), torch.zeros(8, dtype=torch.long)


def net():
    return nets.stack([16, 8, 4])


def frozen():
    return net().requires_grad_(False)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (lambda: ("net", (X, T), F.cross_entropy), TypeError, "model='net' is not an nn.Module"),
        (lambda: (net(), X, F.cross_entropy), TypeError, r"batch must be \(inputs, targets\), got"),
        (
            lambda: ((X, T), (X, T), F.cross_entropy),
            TypeError,
            r"^model=\(tensor.{,80}\) is not an nn.Module",
        ),
        (lambda: (net(), (X, T), None), TypeError, "loss_fn=None is not callable"),
        (lambda: (nn.ReLU(), (X, T), F.cross_entropy), ValueError, "model=ReLU has no parameters"),
        (lambda: (frozen(), (X, T), F.cross_entropy), ValueError, "all are frozen"),
        (lambda: (nn.LazyLinear(4), (X, T), F.cross_entropy), ValueError, "'weight' is lazy"),
        (lambda: (net().to("meta"), (X, T), F.cross_entropy), ValueError, "'0.weight' is on the m"),
        (lambda: (net(), (X[:0], T[:0]), F.cross_entropy), ValueError, r"shape \[0, 16\] are"),
        (lambda: (net(), (X, T[:0]), F.cross_entropy), ValueError, r"targets of shape \[0\] are e"),
        (
            lambda: (net(), (X.to("meta"), T), F.cross_entropy),
            ValueError,
            r"inputs are on 'meta', the model's parameters on 'cpu'; .* inputs.to\('cpu'\)",
        ),
        (lambda: (net(), (X, T.to("meta")), F.cross_entropy), ValueError, "targets are on 'meta'"),
        (lambda: (net(), ("text", T), F.cross_entropy), TypeError, "inputs hold no tensor"),
        (
            lambda: (net(), (X, T), nn.CrossEntropyLoss(reduction="none")),
            ValueError,
            r"a tensor of shape \[8\]; expected a scalar: add .mean\(\)",
        ),
        (lambda: (net(), (X, T), lambda y, t: 1.0), TypeError, "loss_fn gave float; expected"),
        (
            lambda: (net(), (X, T), lambda y, t: (y.argmax(1) == t).float().mean()),
            ValueError,
            "a loss without a gradient; expected one that is differentiable",
        ),
        (lambda: (net(), (X[:, :3], T), F.cross_entropy), RuntimeError, "forward of layer '0'"),
        (lambda: (net(), (X, T), F.cross_entropy, 0.1), TypeError, "optimizer=0.1 is not a"),
        (
            lambda: (net(), (X, T), F.cross_entropy, sick.stuck()),
            ValueError,
            "optimizer holds none of the model's parameters",
        ),
        (
            lambda: (m := net(), (X, T), F.cross_entropy, torch.optim.LBFGS(m.parameters())),
            ValueError,
            "optimizer=LBFGS needs a closure; leave the optimizer out",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(arguments, error, said):
    given = arguments()
    whole = isinstance(given[0], nn.Sequential) and not given[0][0].weight.is_meta
    before = everything(given[0], None) if whole else None
    with pytest.raises(error, match=said):
        sk.diagnose(*given)
    assert (everything(given[0], None) if whole else None) == before


def test_a_finding_says_all_that_it_should():
    (found,) = sk.diagnose(*sick.build("relu-bias-minus-10")).findings
    assert (found.code, found.layer, found.severity) == ("dead-units", "2", "error")
    assert found.measured == 1.0
    assert found.expected == pytest.approx(0.5 + 1.5 / 48**0.5)
    assert found.remedy.endswith("`nn.init.zeros_(model.get_submodule('2').bias)`.")
    assert found.page == "signal/seeds/"


def test_a_diagnosis_holds_what_was_measured_and_predicted():
    model, batch, loss_fn, optimizer = healthy.build("mlp-2-relu-sgd")
    diagnosis = sk.diagnose(model, batch, loss_fn, optimizer)
    assert diagnosis.healthy
    assert diagnosis.loss == loss_fn(model(batch[0]), batch[1]).item()
    assert [r.layer for r in diagnosis.records] == ["0", "1", "2"]
    assert [p.layer for p in diagnosis.prediction.layers] == ["0", "1", "2"]
    assert all(p.update_ratio > 0 for p in diagnosis.parameters)


def test_the_amplitude_is_what_theory_says():
    """√(2/n)-normal weights times 1/√2: a factor 2 in E[z²] a layer, over 23 layers 2^-11.5."""
    found = sk.diagnose(*sick.build("xavier-relu-24")).findings[0]
    assert found.code == "vanishing-signal"
    # Within three deviations of the walk, and the variance over the batch, which falls faster as
    # ReLU's samples align, at most by the ratio (1 − 1/π) at the first layer and some more.
    assert 2**-11.5 * 1e-3 < found.measured < 2**-11.5 * 10


def test_the_stretch_of_a_step_is_lr_times_curvature():
    """loss = λ/2 ‖w‖² has a curvature of λ in every direction."""
    for rate, curvature, severity in ((0.2, 9.0, None), (0.3, 9.0, "warning"), (0.5, 9.0, "error")):
        model = nn.Linear(3, 3, bias=False)
        batch = (torch.eye(3), torch.zeros(3, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        half = curvature / 2
        found = sk.diagnose(model, batch, lambda y, t, h=half: h * y.square().sum(), optimizer)
        steps = [f for f in found.findings if f.code.startswith("update")]
        assert [f.severity for f in steps] == ([severity] if severity else [])
        for one in steps:
            assert one.code == "update-too-large"
            assert one.measured == pytest.approx(rate * curvature, rel=1e-4)


def test_one_sample_is_enough_to_run():
    torch.manual_seed(0)
    model = nets.stack([16, 64, 64, 4])
    x, t = nets.table()
    assert sk.diagnose(model, (x[:1], t[:1]), F.cross_entropy).healthy


def test_a_compiled_model_is_seen_through():
    model, batch, loss_fn = sick.build("relu-bias-minus-10")
    compiled = torch.compile(model, backend="eager")
    assert [f.layer for f in sk.diagnose(compiled, batch, loss_fn).findings] == ["2"]


def test_every_page_is_one_of_the_site(root):
    import tomllib

    planned = tomllib.loads((root / "scripts" / "curriculum.toml").read_text(encoding="utf-8"))
    pages = {f"{room}/{page}/" for room, own in planned.items() for page in own}
    assert set(PAGES.values()) <= pages


def test_a_diagnosis_does_not_depend_on_the_random_state_outside():
    model, batch, loss_fn, optimizer = used("mlp-dropout")
    torch.manual_seed(5)
    first = sk.diagnose(model, batch, loss_fn, optimizer)
    torch.manual_seed(5)
    second = sk.diagnose(copy.deepcopy(model), batch, loss_fn)
    assert first.loss == second.loss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.diagnose(model, batch, loss_fn)


def test_findings_outlive_a_prediction_that_fails(monkeypatch):
    torch.manual_seed(0)
    model, (x, t) = nn.Sequential(nn.Linear(16, 4)), nets.table()
    monkeypatch.setattr("stabilitykit.diagnosis.predict", boom)
    with pytest.warns(UserWarning, match="no prediction for this model, RuntimeError: boom"):
        found = sk.diagnose(model, (1e4 * x, t), F.cross_entropy)
    assert [one.code for one in found.findings] == ["unscaled-input"]
    assert found.prediction is None


def boom(*_):
    raise RuntimeError("boom")


def test_a_step_that_is_too_short_is_lengthened_to_one_that_trains():
    data = sk.digits()
    batch = data.train_x[:256], data.train_y[:256]
    torch.manual_seed(0)
    model = sk.MLP([64] * 4 + [10], "relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    (found,) = sk.diagnose(model, batch, F.cross_entropy, optimizer).findings
    assert found.code == "update-too-small"
    call = found.remedy.split("`")[1]
    exec(call, {"optimizer": optimizer})
    rate = optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-3 * 0.01 / found.measured)
    assert sk.diagnose(model, batch, F.cross_entropy, optimizer).healthy
    how = {"lr": rate, "epochs": 10, "batch_size": 64, "progress": False}
    run = sk.fit(model, data[:2], loss_fn=F.cross_entropy, **how)
    assert run.diverged is None
    assert run.losses[-1] < run.losses[0] / 2
