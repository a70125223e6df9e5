"""Perceptrons against published weights, and ensembles against single networks."""

import copy
import io
import re

import numpy as np
import pytest
import torch
from torch import nn

from stabilitykit.networks import MLP, Ensemble


def test_published_weights_of_seed_420():
    torch.manual_seed(420)
    weights = MLP([2, 4, 4, 4, 1], "sigmoid").linears[0].weight
    published = [[0.4318, -0.4256], [0.6730, -0.5617], [-0.2157, -0.4873], [0.5453, 0.2653]]
    torch.testing.assert_close(weights.detach(), torch.tensor(published), atol=5e-5, rtol=0)


def test_forward_has_no_activation_after_the_last_layer():
    network, x = MLP([3, 5, 4, 2], "tanh"), torch.randn(7, 3)
    first, second, third = network.linears
    expected = third(torch.tanh(second(torch.tanh(first(x)))))
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(MLP([3, 2], "relu")(x).shape, (7, 2))


@pytest.mark.parametrize(
    "activation", ["relu", "ReLU", nn.ReLU(), nn.ReLU, torch.relu, nn.functional.relu]
)
def test_an_activation_by_name_module_class_or_callable(activation):
    torch.manual_seed(0)
    network = MLP([2, 8, 1], activation)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(5, 2)
    torch.testing.assert_close(network(x), plain(x))


def test_without_biases():
    assert [name for name, _ in MLP([2, 3, 1], "relu", bias=False).named_parameters()] == [
        "linears.0.weight",
        "linears.1.weight",
    ]
    assert len(Ensemble([2, 3, 1], "relu", seeds=2, bias=False).biases) == 0


def test_a_network_can_be_copied_saved_and_named():
    network, x = MLP([2, 3, 1], "tanh"), torch.randn(4, 2)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for twin in (copy.deepcopy(network), torch.load(file, weights_only=False)):
        torch.testing.assert_close(twin(x), network(x))
    assert "tanh" in repr(network)


@pytest.mark.parametrize("bias", [True, False])
def test_each_network_of_an_ensemble_is_the_perceptron_of_its_seed(bias):
    seeds, x = [420, 29, 7], torch.randn(6, 2)
    outputs = Ensemble([2, 4, 4, 1], "sigmoid", seeds, bias=bias)(x)
    assert outputs.shape == (3, 6, 1)
    for seed, output in zip(seeds, outputs, strict=True):
        torch.manual_seed(seed)
        single = MLP([2, 4, 4, 1], "sigmoid", bias=bias)
        torch.testing.assert_close(output, single(x))


def test_an_ensemble_takes_one_batch_a_network():
    many, x = Ensemble([2, 4, 1], "tanh", seeds=3), torch.randn(3, 6, 2)
    torch.testing.assert_close(many(x)[1], many(x[1])[1])


@pytest.mark.parametrize("bias", [True, False])
def test_one_batch_serves_all_networks(bias):
    many, x = Ensemble([2, 4, 1], "tanh", seeds=3, bias=bias), torch.randn(6, 2)
    assert torch.equal(many(x[None]), many(x))


def test_an_ensemble_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Ensemble([2, 4, 1], "tanh", seeds=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("make", [MLP, Ensemble])
@pytest.mark.parametrize(
    ("widths", "activation", "error", "text"),
    [
        ([2], "relu", ValueError, r"widths must be at least two positive .*, got \[2\]"),
        ([2, 0, 1], "relu", ValueError, r"got \[2, 0, 1\]"),
        ([2, 2.5, 1], "relu", ValueError, r"got \[2, 2.5, 1\]"),
        ([2, True], "relu", ValueError, r"widths must be .*, got \[2, True\]"),
        (5, "relu", TypeError, "widths must be at least two positive whole numbers, .*, got 5"),
        ("23", "relu", TypeError, "widths must be .*, got '23'"),
        (torch.tensor(3), "relu", TypeError, r"widths must be .*, got tensor\(3\)"),
        ([2, 3], "threshold", TypeError, "activation=threshold needs options"),
        ([2, 3], nn.Threshold, TypeError, "activation=Threshold needs options"),
        ([2, 3], "tahn", ValueError, "'tahn'.*did you mean 'tanh'"),
        ([2, 3], 7, TypeError, "activation must be .*, got 7"),
    ],
)
def test_bad_input_is_named(make, widths, activation, error, text):
    with pytest.raises(error, match=text):
        make(widths, activation)


@pytest.mark.parametrize(
    "seeds", [0, -1, [], 2.5, None, True, "ab", "12", b"12", torch.tensor(1.0)]
)
def test_no_seeds(seeds):
    text = f"seeds must be a positive count or a list of seeds, got {seeds!r}"
    with pytest.raises(ValueError, match=re.escape(text) + "$"):
        Ensemble([2, 3], "relu", seeds)


@pytest.mark.parametrize(
    ("seeds", "error", "text"),
    [
        ([0, 1.5], ValueError, r"seeds\[1\] must be a whole number .*, got 1.5"),
        ([2**64], ValueError, r"seeds\[0\] must be .*, got 18446744073709551616"),
        (["a"], TypeError, r"seeds\[0\] must be .*, got 'a'"),
        ([True], TypeError, r"seeds\[0\] must be .*, got True"),
    ],
)
def test_bad_seeds_are_named(seeds, error, text):
    with pytest.raises(error, match=text):
        Ensemble([2, 3], "relu", seeds)


@pytest.mark.parametrize("seeds", [(3, 4), range(3, 5), np.array([3, 4]), torch.tensor([3, 4])])
def test_seeds_of_any_kind_of_list(seeds):
    expected = Ensemble([2, 3], "relu", [3, 4])
    assert torch.equal(Ensemble([2, 3], "relu", seeds).weights[0], expected.weights[0])


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 2), (4,), (1, 3, 4, 2)])
def test_inputs_that_do_not_fit_an_ensemble_are_named(shape):
    text = r"inputs must have shape \[batch, 2\] or \[3, batch, 2\], got "
    with pytest.raises(ValueError, match=text + re.escape(str(list(shape)))):
        Ensemble([2, 1], "relu", 3)(torch.ones(shape))
