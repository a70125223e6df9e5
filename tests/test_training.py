"""The loop against steps by hand, one network against many, and its silence."""

import functools
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from stabilitykit.datasets import digits, polynomial_regression
from stabilitykit.networks import MLP, Ensemble
from stabilitykit.training import OPTIMIZERS, fit


def network(seed=0, widths=(2, 4, 1)):
    torch.manual_seed(seed)
    return MLP(widths, "tanh")


def data(n=30):
    return polynomial_regression(n, seed=1)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_full_batches_are_gradient_descent_by_hand():
    ours, theirs, (x, y) = network(), network(), data()
    history = fit(ours, (x, y), loss_fn=mse_loss, lr=0.05, epochs=7, gradients=True)
    losses, rms = [], []
    for _ in range(7):
        loss = mse_loss(theirs(x), y)
        gradients = torch.autograd.grad(loss, list(theirs.parameters()))
        losses.append(loss.item())
        rms.append([g.square().mean().sqrt().item() for g in gradients])
        with torch.no_grad():
            for p, g in zip(theirs.parameters(), gradients, strict=True):
                p -= 0.05 * g
    torch.testing.assert_close(weights(ours), weights(theirs))
    np.testing.assert_allclose(history.losses, losses, rtol=1e-5)
    assert list(history.gradient_rms) == [name for name, _ in ours.named_parameters()]
    np.testing.assert_allclose(np.transpose(list(history.gradient_rms.values())), rms, rtol=1e-4)


def test_every_point_is_used_once_an_epoch_and_weighted_alike():
    seen = []

    def loss_fn(output, target):
        seen.append(target[:, 0])
        return (output * 0 + target).mean()

    x, y = data(n=25)
    history = fit(network(), (x, y), loss_fn=loss_fn, lr=0.1, epochs=2, batch_size=10)
    assert [len(batch) for batch in seen] == [10, 10, 5] * 2
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sort().values, y[:, 0].sort().values)
    np.testing.assert_allclose(history.losses, y.mean().item(), rtol=1e-5)


def test_the_seed_alone_decides_the_batches():
    ends = []
    for seed, noise in ((5, 0), (5, 1), (6, 0)):
        model = network()
        torch.manual_seed(noise)
        fit(model, data(), loss_fn=mse_loss, lr=0.05, epochs=3, batch_size=4, seed=seed)
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_an_ensemble_trains_as_its_networks_do_alone():
    x, y = data()
    test = data(n=12)
    many = Ensemble([2, 4, 1], "tanh", seeds=3)

    def per_network(output, target):
        return (output - target).square().mean((1, 2))

    settings = {"lr": 0.05, "epochs": 4, "batch_size": 7, "test": test}
    together = fit(many, (x, y), loss_fn=per_network, **settings)
    assert together.losses.shape == together.test_losses.shape == (4, 3)
    for seed in range(3):
        single = network(seed)
        alone = fit(single, (x, y), loss_fn=mse_loss, **settings)
        np.testing.assert_allclose(together.losses[:, seed], alone.losses, rtol=1e-4)
        np.testing.assert_allclose(together.test_losses[:, seed], alone.test_losses, rtol=1e-4)
        torch.testing.assert_close(many.weights[0][seed], single.linears[0].weight)


def test_digits_are_learnt_and_accuracy_is_a_share():
    images = digits()
    model = network(widths=(64, 32, 10))
    history = fit(
        model,
        images[:2],
        loss_fn=cross_entropy,
        lr=0.01,
        epochs=6,
        batch_size=32,
        optimizer="adam",
        test=images[2:],
    )
    assert history.test_accuracies.shape == (6,)
    assert history.test_accuracies[-1] > 0.93
    expected = (model(images.test_x).argmax(1) == images.test_y).double().mean().item()
    assert history.test_accuracies[-1] == expected


def test_accuracies_of_an_ensemble():
    images = digits()
    many = Ensemble([64, 10], "relu", seeds=2)

    def per_network(output, target):
        return torch.stack([cross_entropy(o, target) for o in output])

    history = fit(many, images[:2], loss_fn=per_network, lr=0.1, epochs=2, test=images[2:])
    assert history.test_accuracies.shape == (2, 2)


def test_regression_has_no_accuracy_and_no_test_no_test_loss():
    with_test = fit(network(), data(), loss_fn=mse_loss, lr=0.1, epochs=1, test=data())
    without = fit(network(), data(), loss_fn=mse_loss, lr=0.1, epochs=1)
    assert with_test.test_accuracies is None
    assert with_test.test_losses.shape == (1,)
    assert without.test_losses is None


def test_a_loss_that_is_not_finite_stops_before_it_touches_the_weights():
    model = network()
    history = fit(model, data(), loss_fn=mse_loss, lr=1e25, epochs=50, batch_size=10)
    assert history.diverged == len(history.losses) + 1 < 50
    assert np.isfinite(history.losses).all()
    assert weights(model).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept_and_evaluation_is_in_eval_mode(training):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).train(training)
    history = fit(model, data(), loss_fn=mse_loss, lr=0.01, epochs=2, test=data(n=9))
    assert all(part.training is training for part in model.modules())
    x, y = data(n=9)
    assert history.test_losses[-1] == pytest.approx(mse_loss(model.eval()(x), y).item())


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_optimizer_by_name_factory_and_instance(name):
    ends = []
    for way in ("name", "factory", "instance"):
        model, lr = network(), 0.02
        optimizer = {"name": name, "factory": functools.partial(OPTIMIZERS[name])}.get(way)
        if way == "instance":
            optimizer, lr = OPTIMIZERS[name](model.parameters(), lr=lr), None
        fit(model, data(), loss_fn=mse_loss, lr=lr, epochs=3, optimizer=optimizer)
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], weights(network()))


def test_silent_unless_asked_or_at_a_terminal(capsys, monkeypatch):
    run = functools.partial(fit, loss_fn=mse_loss, lr=0.1, epochs=2)
    run(network(), data())
    run(network(), data(), progress=False)
    assert capsys.readouterr() == ("", "")
    run(network(), data(), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err
    assert "loss" in shown.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(network(), data())
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"optimizer": "sdg"}, ValueError, "one of sgd, adam.* got 'sdg'; did you mean 'sgd'?"),
        ({"optimizer": 3}, TypeError, "optimizer must be a name, .* got 3"),
        ({"lr": None}, ValueError, "lr must be a positive finite number, got None"),
        ({"lr": -1}, ValueError, "lr must be a positive finite number, got -1"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be .*, got 2.5"),
        (
            {"data": torch.ones(3)},
            TypeError,
            r"data must be a pair \(inputs, targets\), got Tensor",
        ),
        (
            {"data": (torch.ones(3, 2), [1])},
            TypeError,
            "data must be a pair of tensors, got Tensor",
        ),
        ({"test": (torch.ones(3, 2), torch.ones(2, 1))}, ValueError, "test must .*, got 3 and 2"),
        ({"loss_fn": lambda o, t: o - t}, ValueError, r"loss_fn must return .* shape \[30, 1\]"),
        ({"model": "m"}, TypeError, "model='m' is not an nn.Module"),
        ({"model": nn.Flatten()}, ValueError, "model=Flatten has no parameter that requires"),
        (
            {"model": network().requires_grad_(False)},
            ValueError,
            "model=MLP has no parameter that requires a gradient",
        ),
        ({"lr": "a"}, TypeError, "lr must be a positive finite number, got 'a'"),
        ({"lr": True}, TypeError, "lr must be a positive finite number, got True"),
        ({"lr": 10**400}, ValueError, "lr must be a positive finite number, got 1000"),
        ({"epochs": "a"}, TypeError, "epochs must be a whole number of at least 1, got 'a'"),
        ({"epochs": True}, TypeError, "epochs must be .*, got True"),
        ({"seed": "a"}, TypeError, "seed must be a whole number .*, got 'a'"),
        ({"seed": 1.5}, ValueError, "seed must be a whole number .*, got 1.5"),
        ({"seed": 2**64}, ValueError, "seed must be .* to 2\\*\\*64 - 1, got 18446744073709551616"),
        ({"loss_fn": None}, TypeError, r"loss_fn=None is .*; expected loss_fn\(outputs, targets\)"),
        ({"loss_fn": "mse"}, TypeError, "loss_fn='mse' is not a loss function"),
        ({"loss_fn": nn.MSELoss}, TypeError, "loss_fn=<class .*MSELoss.*> is not a loss function"),
        (
            {"loss_fn": lambda o, t: 1.0},
            TypeError,
            "loss_fn must return a torch tensor, got float 1.0",
        ),
        (
            {"loss_fn": lambda o, t: (o - t).detach().square().mean()},
            ValueError,
            "loss_fn must depend on the outputs; its value carries no gradient",
        ),
        (
            {"data": (torch.ones(6, 3), torch.ones(6, 1))},
            ValueError,
            r"data: model=MLP failed on inputs of shape \[6, 3\], torch.float32: .*mat1 and mat2",
        ),
        (
            {"data": (torch.ones(6, 2).double(), torch.ones(6, 1))},
            ValueError,
            r"data: model=MLP failed on inputs of shape \[6, 2\], torch.float64: ",
        ),
        (
            {"data": (torch.ones(6, 2), torch.ones(6, 4)), "loss_fn": lambda o, t: (o @ t).mean()},
            ValueError,
            r"data: loss_fn failed on outputs \[6, 1\] and targets \[6, 4\], torch.float32: ",
        ),
        (
            {"test": (torch.ones(6, 3), torch.ones(6, 1))},
            ValueError,
            r"test: model=MLP failed on inputs of shape \[6, 3\]",
        ),
        (
            {"data": (torch.tensor(1.0), torch.ones(1))},
            ValueError,
            r"data must be tensors \[n, ...\], got shapes \[\] and \[1\]",
        ),
        (
            {"optimizer": lambda parameters, lr: None},
            TypeError,
            "optimizer=.* must make a torch.optim.Optimizer, got NoneType",
        ),
        (
            {"optimizer": nn.Linear},
            TypeError,
            r"optimizer=.*Linear.* must be a factory \(parameters, lr=…\): .*'lr'",
        ),
        (
            {"optimizer": torch.optim.SGD(network().parameters(), lr=0.1), "lr": None},
            ValueError,
            "optimizer holds none of the model's parameters",
        ),
        ({"optimizer": torch.optim.LBFGS}, ValueError, "optimizer=LBFGS needs a closure"),
    ],
)
def test_bad_input_is_named(changed, error, text):
    arguments = {"data": data(), "loss_fn": mse_loss, "lr": 0.1, "epochs": 1} | changed
    with pytest.raises(error, match=text):
        fit(arguments.pop("model", network()), **arguments)


def test_what_the_model_raised_stays_in_the_chain():
    with pytest.raises(ValueError, match="mat1 and mat2") as raised:
        fit(network(), (torch.ones(6, 3), torch.ones(6, 1)), loss_fn=mse_loss, lr=0.1, epochs=1)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_batch_may_be_larger_than_any_data():
    ends = []
    for size in (None, 2**70):
        model = network()
        fit(model, data(), loss_fn=mse_loss, lr=0.1, epochs=2, batch_size=size)
        ends.append(weights(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, StopAsyncIteration])
@pytest.mark.parametrize("where", ["data", "test"])
def test_the_mode_is_kept_when_something_stops_the_training(training, stop, where):
    model = network().train(training)

    def loss_fn(output, target):
        if len(target) == {"data": 30, "test": 9}[where]:
            raise stop
        return mse_loss(output, target)

    with pytest.raises(stop):
        fit(model, data(), loss_fn=loss_fn, lr=0.1, epochs=1, test=data(n=9))
    assert all(part.training is training for part in model.modules())


def test_an_instance_brings_its_own_learning_rate():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"lr=0\.5: the given optimizer has its own"):
        fit(model, data(), loss_fn=mse_loss, lr=0.5, epochs=1, optimizer=optimizer)
