"""Models that cannot learn, each with the code that it must get and the layer where it starts."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from zoo import healthy, nets
from zoo.healthy import BCE, CE, MSE, adam, autoencoder, binary, denoising, seeded, sgd

SICK = {}


@dataclass
class Sick:
    """A sick model.

    Attributes:
        code: what is wrong.
        layer: where it starts; several where chance decides between neighbours.
        make: gives (model, batch, loss_fn) or (model, batch, loss_fn, optimizer).
        edit: what the remedy asks of the model's source, model -> model, before its calls run;
            None where the calls suffice.
        loss_fn: what the remedy asks of the loss's source; None where it asks nothing.
        rewritten: the cure without any call, model -> model, where the calls are the other way out.
    """

    code: str
    layer: str | tuple[str, ...]
    make: Callable
    edit: Callable | None = None
    loss_fn: Callable | None = None
    rewritten: Callable | None = None


def sick(name, code, layer, make, edit=None, **more):
    assert name not in SICK
    SICK[name] = Sick(code, layer, make, edit, **more)


def build(name):
    seeded(name)
    warnings.simplefilter("ignore")
    return SICK[name].make()


def altered(model, name, change):
    with torch.no_grad():
        change(model.get_parameter(name))
    return model


def poked(model, name, value):
    return altered(model, name, lambda p: p.view(-1)[3:4].fill_(value))


def changed_inputs(batch, change):
    return change(batch[0].clone()), batch[1]


def constant(model, value):
    for p in model.parameters():
        nn.init.constant_(p, value)
    return model


def altered_all(model, change):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                change(module.weight)
    return model


def times(model, factor, of="weight"):
    """Multiply weights of the recurrent layer."""
    for name, p in model.rnn.named_parameters():
        if of in name:
            p.data *= factor
    return model


def every(model, factor):
    """Multiply every matrix of the model."""
    for p in model.parameters():
        p.data *= factor if p.ndim > 1 else 1
    return model


def shares(x, least=0.0):
    """Each unit relative to the mean unit of its sample."""
    return x.relu() / (x.relu().mean(1, keepdim=True) + least)


class Opaque(nn.Module):
    """Something done to the signal on its way."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def without(kind, by=nn.Identity):
    """A copy of the model with every module of a kind replaced."""

    def edit(model):
        for name, module in list(model.named_modules()):
            if isinstance(module, kind):
                parent = model.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], by())
        return model

    return edit


MLP = [16, 48, 48, 48, 4]
DEEP = [16] + [64] * 24 + [4]
relu_not_sigmoid = without(nn.Sigmoid, nn.ReLU)


def spoilt_statistics():
    model = nets.stack([16, 48, 48, 4], norm=nn.BatchNorm1d).eval()
    model[1].running_var[3] = float("nan")
    return model


# non-finite
NAN, INF = float("nan"), float("inf")


def spoil(value):
    def change(x):
        x.view(-1)[5] = value
        return x

    return change


sick(
    "nan-in-inputs",
    "non-finite",
    "input",
    lambda: (nets.stack(MLP), changed_inputs(nets.table(), spoil(NAN)), CE),
)
sick(
    "inf-in-images",
    "non-finite",
    "input",
    lambda: (nets.cnn(2), changed_inputs(nets.images(), spoil(INF)), CE),
)
sick(
    "nan-in-targets",
    "non-finite",
    "input",
    lambda: (nets.UNet(), (lambda x, y: (x, spoil(NAN)(y.clone())))(*denoising()), MSE),
)
sick(
    "nan-in-a-weight",
    "non-finite",
    "4.weight",
    lambda: (poked(nets.stack(MLP), "4.weight", NAN), nets.table(), CE),
)
sick(
    "inf-in-a-bias",
    "non-finite",
    "2.bias",
    lambda: (poked(nets.cnn(3), "2.bias", INF), nets.images(), CE),
)
sick(
    "nan-in-lstm",
    "non-finite",
    "rnn.weight_hh_l0",
    lambda: (poked(nets.Recurrent(), "rnn.weight_hh_l0", NAN), nets.sequences(), CE),
)
sick(
    "nan-in-transformer",
    "non-finite",
    "blocks.1.wide.weight",
    lambda: (poked(nets.Transformer(), "blocks.1.wide.weight", NAN), nets.tokens(), CE),
)
# 1000/√6 a layer: 400^15 is beyond the 3.4e38 of float32, in the fifteenth layer.
sick(
    "overflow-in-forward",
    "non-finite",
    "28",
    lambda: (nets.scaled(nets.stack([16] + [64] * 30 + [4]), 1e3), nets.table(), CE),
)
sick(
    "nan-in-a-parameter-of-the-model",
    "non-finite",
    "position",
    lambda: (poked(nets.Transformer(), "position", NAN), nets.tokens(), CE),
)
sick(
    "nan-in-attention",
    "non-finite",
    "encoder.layers.0.self_attn.in_proj_weight",
    lambda: (
        poked(nets.Encoder(True), "encoder.layers.0.self_attn.in_proj_weight", NAN),
        nets.tokens(),
        CE,
    ),
)
sick(
    "nan-in-complex-factors",
    "non-finite",
    "factors",
    lambda: (poked(nets.Spectral(), "factors", complex("nan")), nets.table(), CE),
)
sick(
    "nan-in-a-weight-norm",
    "non-finite",
    "2.parametrizations.weight.original1",
    lambda: (
        poked(healthy.weight_normed(nets.stack(MLP)), "2.parametrizations.weight.original1", NAN),
        nets.table(),
        CE,
    ),
)
sick(
    "nan-in-named-inputs",
    "non-finite",
    "input['b']",
    lambda: (
        nets.TwoInputs(),
        (lambda x, t: ({"a": x, "b": spoil(NAN)(x.flip(1))}, t))(*nets.table()),
        CE,
    ),
)
sick(
    "nan-in-running-statistics",
    "non-finite",
    "1",
    lambda: (spoilt_statistics(), nets.table(), CE),
)
sick(
    "overflow-of-half-precision",
    "non-finite",
    "2",
    lambda: (
        nets.scaled(nets.stack([16, 48, 48, 4]), 300).half(),
        (lambda x, t: (x.half(), t))(*nets.table()),
        CE,
    ),
)
sick(
    "relu-rnn-overflows-the-loss",
    "non-finite",
    "loss",
    lambda: (
        times(
            nets.Recurrent(nn.RNN, classes=1, nonlinearity="relu"),
            10.0,
        ),
        (lambda x, _: (x, x[:, -1, :1]))(*nets.sequences(length=40)),
        MSE,
    ),
)
sick(
    "log-of-zero-in-the-loss",
    "non-finite",
    "loss",
    lambda: (nets.stack(MLP), nets.table(), lambda y, t: y.relu().log().mean()),
    loss_fn=lambda y, t: (y.relu() + 1e-8).log().mean(),
)
sick(
    "log-of-zero-between-layers",
    "non-finite",
    "log after layers.0",
    lambda: (nets.Functional(lambda x: x.relu().log()), nets.table(), CE),
    lambda m: setattr(m, "function", lambda x: x.relu().add(1e-2).log()) or m,
)
sick(
    "zero-by-zero-between-layers",
    "non-finite",
    "div after layers.0",
    lambda: (
        altered(nets.Functional(shares), "layers.0.bias", lambda b: b.zero_()),
        changed_inputs(nets.table(), lambda x: x.index_fill_(0, torch.tensor([7]), 0.0)),
        CE,
    ),
    lambda m: setattr(m, "function", lambda x: shares(x, 1e-8)) or m,
)
sick(
    "infinite-slope-between-layers",
    "non-finite",
    "sqrt after layers.1",
    lambda: (nets.Functional(lambda x: x.relu().sqrt()), nets.table(), CE),
    lambda m: setattr(m, "function", lambda x: x.relu().add(1e-2).sqrt()) or m,
)
sick(
    "infinite-slope-of-sqrt",
    "non-finite",
    "4",
    lambda: (
        nn.Sequential(
            nn.Linear(16, 48),
            nn.ReLU(),
            nn.Linear(48, 48),
            nn.ReLU(),
            Opaque(torch.sqrt),
            nn.Linear(48, 4),
        ),
        nets.table(),
        CE,
    ),
    lambda m: setattr(m[4], "function", lambda x: (x + 1e-2).sqrt()) or m,
)


def without_eps():
    """One unit is dead, so that Adam divides 0 by 0 + eps."""
    model = altered(nets.stack([16, 48, 4]), "0.bias", lambda b: b[:1].fill_(-50.0))
    return model, nets.table(), CE, torch.optim.Adam(model.parameters(), eps=0.0)


def without_range():
    """In half precision 1e-8 is 0."""
    model, (x, t) = nets.stack([16, 48, 4]).half(), nets.table()
    return model, (x.half(), t), CE, adam(model)


sick("adam-without-eps", "non-finite", "0.weight", without_eps)
sick("adam-in-half-precision", "non-finite", "0.weight", without_range)


# vanishing-signal
sick(
    "cnn-gated-tiny-weights",
    "vanishing-signal",
    "0",
    lambda: (nets.scaled(nets.gated(), 1e-3, "0", "3"), nets.images(), CE),
)
sick(
    "xavier-relu-24",
    "vanishing-signal",
    "2",
    lambda: (nets.scaled(nets.kaiming(nets.stack(DEEP)), 0.5**0.5), nets.table(), CE),
)
sick("default-relu-24", "vanishing-signal", "0", lambda: (nets.stack(DEEP), nets.table(), CE))
sick(
    "default-gelu-24",
    "vanishing-signal",
    "0",
    lambda: (nets.stack(DEEP, nn.GELU), nets.table(), CE),
)
sick(
    "tiny-tanh-weights",
    "vanishing-signal",
    "0",
    lambda: (
        altered_all(nets.stack([16] + [48] * 6 + [4], nn.Tanh), lambda w: w.normal_(0, 0.01)),
        nets.table(),
        CE,
    ),
)
sick(
    "one-tiny-layer",
    "vanishing-signal",
    "4",
    lambda: (
        nets.scaled(nets.stack([16, 48, 48, 48, 48, 4], bias=False), 1e-5, "4"),
        nets.table(),
        CE,
    ),
)
sick(
    "cnn-tiny-weights",
    "vanishing-signal",
    "0",
    lambda: (nets.scaled(nets.kaiming(nets.cnn(8)), 0.15), nets.images(), CE),
)
sick(
    "unet-tiny-weights",
    "vanishing-signal",
    "down",
    lambda: (nets.scaled(nets.UNet(), 1e-3), denoising(), MSE),
)

sick(
    "plain-parameters-small",
    "vanishing-signal",
    "weights.0",
    lambda: (nets.Products(gain=0.7), nets.table(), CE),
)

sick(
    "tiny-lstm-weights",
    "vanishing-signal",
    "rnn",
    lambda: (times(nets.Recurrent(), 0.01), nets.sequences(), CE),
)

# exploding-signal
sick(
    "gain-2-relu-24",
    "exploding-signal",
    "0",
    lambda: (nets.scaled(nets.kaiming(nets.stack(DEEP)), 2.0), nets.table(), CE),
)
sick(
    "normal-weights-linear",
    "exploding-signal",
    "0",
    lambda: (
        altered_all(nets.stack([16] + [64] * 6 + [4]), lambda w: w.normal_()),
        nets.table(),
        CE,
    ),
)
sick(
    "one-huge-layer",
    "exploding-signal",
    "4",
    lambda: (nets.scaled(nets.stack(MLP), 1e6, "4"), nets.table(), CE),
)
sick(
    "cnn-normal-weights",
    "exploding-signal",
    "0",
    lambda: (altered_all(nets.cnn(8), lambda w: w.normal_()), nets.images(), CE),
)
sick(
    "plain-residual-40",
    "exploding-signal",
    "blocks.0",
    lambda: (nets.Residual(40), nets.table(), CE),
)
sick(
    "residual-40-learnt-scale",
    "exploding-signal",
    "blocks.0",
    lambda: (nets.Residual(40, scale=nn.Parameter(torch.ones(()))), nets.table(), CE),
)
sick(
    "plain-resnet-huge",
    "exploding-signal",
    "stem",
    lambda: (nets.scaled(nets.ResNet(6, norm=False), 8.0), nets.images(), CE),
)

sick(
    "plain-parameters-large",
    "exploding-signal",
    "weights.0",
    lambda: (nets.Products(gain=4.0), nets.table(), CE),
)

# vanishing-gradient
sick(
    "deep-sigmoid-6",
    "vanishing-gradient",
    "10",
    lambda: (nets.stack([16] + [64] * 6 + [4], nn.Sigmoid), nets.table(), CE),
    relu_not_sigmoid,
)
sick(
    "deep-sigmoid-15",
    "vanishing-gradient",
    "28",
    lambda: (nets.stack([16] + [64] * 15 + [4], nn.Sigmoid), nets.table(), CE),
    relu_not_sigmoid,
)
sick(
    "deep-functional-sigmoid",
    "vanishing-gradient",
    "layers.7",
    lambda: (nets.Functional(torch.sigmoid, [16] + [64] * 8 + [4]), nets.table(), CE),
    lambda m: setattr(m, "function", F.relu) or m,
)
sick(
    "xavier-relu-32-backward",
    "vanishing-gradient",
    "62",
    lambda: (
        nets.scaled(nets.kaiming(nets.stack([16] + [64] * 32 + [4])), 0.5**0.5),
        nets.table(),
        CE,
    ),
)
sick(
    "one-tiny-layer-backward",
    "vanishing-gradient",
    "6",
    lambda: (
        nets.scaled(nets.kaiming(nets.stack([16] + [48] * 5 + [4], nn.Tanh), "tanh"), 1e-4, "6"),
        nets.table(),
        CE,
    ),
)
sick(
    "cnn-sigmoid",
    "vanishing-gradient",
    "12",
    lambda: (nets.cnn(7, activation=nn.Sigmoid), nets.images(), CE),
    relu_not_sigmoid,
)

sick(
    "encoder-pre-ln-tiny",
    "vanishing-gradient",
    "encoder.layers.0.self_attn",
    lambda: (every(nets.Encoder(True), 1e-3), nets.tokens(), CE),
)

# exploding-gradient
sick(
    "encoder-pre-ln-times-30",
    "exploding-gradient",
    "encoder.layers.1.self_attn",
    lambda: (every(nets.Encoder(True), 30.0), nets.tokens(), CE),
)
sick(
    "chaotic-tanh-40",
    "exploding-gradient",
    "78",
    lambda: (
        nets.scaled(nets.kaiming(nets.stack([16] + [64] * 40 + [4], nn.Tanh), "linear"), 2.5),
        nets.table(),
        CE,
    ),
)
sick(
    "chaotic-functional-tanh",
    "exploding-gradient",
    "layers.39",
    lambda: (
        nets.scaled(nets.Functional(torch.tanh, [16] + [64] * 40 + [4]), 5.0),
        nets.table(),
        CE,
    ),
)
sick(
    "gain-2-relu-backward",
    "exploding-gradient",
    "46",
    lambda: (nets.scaled(nets.kaiming(nets.stack(DEEP)), 2.0), nets.table(), CE),
)
sick(
    "residual-40-backward",
    "exploding-gradient",
    ("blocks.38", "blocks.39"),
    lambda: (nets.Residual(40), nets.table(), CE),
)

# saturated
sick(
    "tanh-weights-times-30",
    "saturated",
    "0",
    lambda: (nets.scaled(nets.stack([16, 48, 48, 4], nn.Tanh), 30.0), nets.table(), CE),
)
sick(
    "tanh-weights-times-30-with-its-slope",
    "saturated",
    "model.0",
    lambda: (
        nets.Slope(nets.scaled(nets.stack([16, 48, 48, 1], nn.Tanh), 30.0)),
        *((lambda x: (x, x[:, :1]))(nets.table()[0]), MSE),
    ),
)
sick(
    "tanh-bias-10",
    "saturated",
    "2",
    lambda: (
        altered(nets.stack(MLP, nn.Tanh), "2.bias", lambda b: b.fill_(10.0)),
        nets.table(),
        CE,
    ),
)
sick(
    "sigmoid-bias-minus-20",
    "saturated",
    "0",
    lambda: (
        altered(nets.stack([16, 48, 48, 4], nn.Sigmoid), "0.bias", lambda b: b.fill_(-20.0)),
        nets.table(),
        CE,
    ),
)
sick(
    "functional-tanh-second",
    "saturated",
    "layers.1",
    lambda: (nets.scaled(nets.Functional(torch.tanh), 50.0, "layers.1"), nets.table(), CE),
)
sick(
    "hardtanh-cnn",
    "saturated",
    "0",
    lambda: (nets.scaled(nets.cnn(3, activation=nn.Hardtanh), 20.0), nets.images(), CE),
)
sick(
    "hardtanh-cnn-12-wide",
    "saturated",
    "0",
    lambda: (
        nets.scaled(nets.cnn(12, channels=16, activation=nn.Hardtanh), 6.0),
        nets.images(),
        CE,
    ),
)

# recurrent weights
for key, code_, make in (
    ("rnn-cell-weights-tiny", "vanishing-signal", lambda: times(nets.Stepwise(nn.RNNCell), 1e-5)),
    ("lstm-cell-input-weights-times-50", "saturated", lambda: times(nets.Stepwise(), 50, "_ih")),
    (
        "gru-cell-recurrent-weights-times-20",
        "exploding-gradient",
        lambda: times(nets.Stepwise(nn.GRUCell), 20, "_hh"),
    ),
    ("rnn-weights-times-30", "exploding-gradient", lambda: times(nets.Recurrent(nn.RNN), 30)),
    ("gru-weights-times-50", "exploding-gradient", lambda: times(nets.Recurrent(nn.GRU), 50)),
    (
        "lstm-2-weights-times-30",
        "exploding-gradient",
        lambda: times(nets.Recurrent(num_layers=2), 30),
    ),
    (
        "gru-recurrent-weights-times-20",
        "exploding-gradient",
        lambda: times(nets.Recurrent(nn.GRU), 20, "weight_hh"),
    ),
    (
        "lstm-bidirectional-recurrent-weights-times-30",
        "exploding-gradient",
        lambda: times(nets.Recurrent(bidirectional=True, last=False), 30, "weight_hh"),
    ),
    ("lstm-input-weights-times-50", "saturated", lambda: times(nets.Recurrent(), 50, "weight_ih")),
    (
        "rnn-input-weights-times-50",
        "saturated",
        lambda: times(nets.Recurrent(nn.RNN), 50, "weight_ih"),
    ),
):
    sick(key, code_, "rnn", lambda make=make: (make(), nets.sequences(length=40), CE))
sick(
    "elman-recurrent-weights-times-20",
    "exploding-gradient",
    ("i", "k"),
    lambda: (nets.scaled(nets.Elman(), 20, "k"), nets.sequences(length=40), CE),
)

# dead-units
sick(
    "relu-bias-minus-10",
    "dead-units",
    "2",
    lambda: (altered(nets.stack(MLP), "2.bias", lambda b: b.fill_(-10.0)), nets.table(), CE),
)
sick(
    "three-quarters-dead",
    "dead-units",
    "0",
    lambda: (
        altered(nets.stack([16, 64, 64, 4]), "0.bias", lambda b: b[:54].fill_(-20.0)),
        nets.table(),
        CE,
    ),
)
sick(
    "cnn-dead-channels",
    "dead-units",
    "2",
    lambda: (
        altered(nets.cnn(3, channels=16), "2.bias", lambda b: b.fill_(-30.0)),
        nets.images(),
        CE,
    ),
)
sick(
    "batchnorm-dead",
    "dead-units",
    "1",
    lambda: (
        altered(
            nets.stack([16, 48, 48, 4], norm=nn.BatchNorm1d), "1.bias", lambda b: b.fill_(-9.0)
        ),
        nets.table(),
        CE,
    ),
)
sick(
    "gelu-bias-minus-20",
    "dead-units",
    "blocks.0.wide",
    lambda: (
        altered(nets.Transformer(), "blocks.0.wide.bias", lambda b: b.fill_(-20.0)),
        nets.tokens(),
        CE,
    ),
)
sick(
    "functional-relu-dead",
    "dead-units",
    "layers.0",
    lambda: (
        altered(nets.Functional(F.relu), "layers.0.bias", lambda b: b.fill_(-15.0)),
        nets.table(),
        CE,
    ),
)
sick(
    "negative-weights-after-relu",
    "dead-units",
    "2",
    lambda: (altered(nets.stack(MLP), "2.weight", lambda w: w.copy_(-w.abs())), nets.table(), CE),
)

# tied-units
sick("zero-weights", "tied-units", "0", lambda: (constant(nets.stack(MLP), 0.0), nets.table(), CE))
sick(
    "constant-weights",
    "tied-units",
    "0",
    lambda: (constant(nets.stack(MLP, nn.Tanh), 0.05), nets.table(), CE),
)
sick("constant-cnn", "tied-units", "0", lambda: (constant(nets.cnn(2), 0.1), nets.images(), CE))
sick("constant-unet", "tied-units", "down", lambda: (constant(nets.UNet(), 0.05), denoising(), MSE))
sick(
    "constant-rnn-cell",
    "tied-units",
    "rnn",
    lambda: (constant(nets.Stepwise(nn.RNNCell), 0.1), nets.sequences(), CE),
)
sick(
    "plain-parameters-constant",
    "tied-units",
    "inner",
    lambda: (constant(nets.Products(2), 0.05), nets.table(), CE),
)
for key, value in (("constant", 0.1), ("zero", 0.0)):
    sick(
        f"{key}-embeddings",
        "tied-units",
        "users",
        lambda value=value: (constant(nets.Factors(), value), nets.ratings(), MSE),
    )
sick(
    "zero-lstm",
    "tied-units",
    "rnn",
    lambda: (constant(nets.Recurrent(), 0.0), nets.sequences(), CE),
)

# no-gradient
sick(
    "detached-branch",
    "no-gradient",
    "right.weight",
    lambda: (
        nets.TwoInputs(used=False),
        (lambda x, t: ({"a": x, "b": x.flip(1)}, t))(*nets.table()),
        CE,
    ),
    rewritten=lambda m: setattr(m, "used", True) or m,
)
sick(
    "rounded-features",
    "no-gradient",
    "0.weight",
    lambda: (
        nn.Sequential(nn.Linear(16, 48), Opaque(torch.round), nn.Linear(48, 4)),
        nets.table(),
        CE,
    ),
    rewritten=lambda m: setattr(m[1], "function", lambda x: x + (x.round() - x).detach()) or m,
)
sick(
    "detached-features",
    "no-gradient",
    "0.weight",
    lambda: (
        nn.Sequential(nn.Linear(16, 48), nn.ReLU(), Opaque(torch.detach), nn.Linear(48, 4)),
        nets.table(),
        CE,
    ),
    rewritten=lambda m: setattr(m[2], "function", lambda x: x) or m,
)
sick(
    "features-without-grad",
    "no-gradient",
    "0.weight",
    lambda: (
        nn.Sequential(nn.Linear(16, 48), Opaque(torch.no_grad()(torch.relu)), nn.Linear(48, 4)),
        nets.table(),
        CE,
    ),
    rewritten=lambda m: setattr(m[1], "function", torch.relu) or m,
)
sick(
    "forgotten-branch",
    "no-gradient",
    "right.weight",
    lambda: (
        nets.TwoInputs(called=False),
        (lambda x, t: ({"a": x, "b": x.flip(1)}, t))(*nets.table()),
        CE,
    ),
    rewritten=lambda m: setattr(m, "called", True) or m,
)
sick(
    "reverse-lstm-read-at-the-end",
    "no-gradient",
    "rnn.weight_hh_l0_reverse",
    lambda: (nets.Recurrent(bidirectional=True), nets.sequences(), CE),
    rewritten=lambda m: setattr(m, "last", False) or m,
)

# unscaled-input
sick(
    "features-at-1e4",
    "unscaled-input",
    "input",
    lambda: (nets.stack(MLP), changed_inputs(nets.table(), lambda x: x * 1e4), CE),
)
sick(
    "one-feature-at-1e4",
    "unscaled-input",
    "input",
    lambda: (
        nets.stack(MLP),
        changed_inputs(
            nets.table(), lambda x: x.index_copy_(1, torch.tensor([2]), 1e4 * x[:, 2:3])
        ),
        CE,
    ),
)
sick(
    "bytes",
    "unscaled-input",
    "input",
    lambda: (nets.cnn(3), changed_inputs(nets.images(), lambda x: (x.sigmoid() * 255).round()), CE),
)
sick(
    "years",
    "unscaled-input",
    "input",
    lambda: (nets.stack(MLP, nn.Tanh), changed_inputs(nets.table(), lambda x: 2000 + 10 * x), CE),
)
sick(
    "tiny-features",
    "unscaled-input",
    "input",
    lambda: (nets.Recurrent(), changed_inputs(nets.sequences(), lambda x: x * 1e-4), CE),
)
sick(
    "far-from-zero",
    "unscaled-input",
    "input",
    lambda: (nets.stack(MLP), changed_inputs(nets.table(), lambda x: 20 + x), CE),
)


def photos():
    x, t = nets.images(channels=3)
    return {"image": x.sigmoid() * 255, "about": torch.randn(len(x), 5)}, t


sick(
    "one-of-two-named-inputs",
    "unscaled-input",
    "input['image']",
    lambda: (nets.Photo(), photos(), CE),
)
sick(
    "second-of-two-inputs",
    "unscaled-input",
    "input[1]",
    lambda: (
        nets.Photo(),
        (lambda x, t: ((x["image"] / 128 - 1, 1e4 * x["about"]), t))(*photos()),
        CE,
    ),
)
sick(
    "bytes-of-images",
    "unscaled-input",
    "input[0]",
    lambda: (
        nets.Photo(),
        (lambda x, t: ((x["image"].byte(), x["about"]), t))(*photos()),
        CE,
    ),
)
sick(
    "joined-inputs",
    "unscaled-input",
    "input['b']",
    lambda: (
        nets.Joined(),
        (lambda x, t: ({"a": x, "b": 1e4 * x.flip(1)}, t))(*nets.table()),
        CE,
    ),
)

# mismatched-loss
softmax_off, sigmoid_off = without(nn.Softmax), without(nn.Sigmoid)
sick(
    "softmax-before-cross-entropy",
    "mismatched-loss",
    "loss",
    lambda: (nn.Sequential(*nets.stack(MLP), nn.Softmax(1)), nets.table(), CE),
    rewritten=softmax_off,
)
sick(
    "sigmoid-before-cross-entropy",
    "mismatched-loss",
    "loss",
    lambda: (nn.Sequential(*nets.stack(MLP), nn.Sigmoid()), nets.table(), CE),
    rewritten=sigmoid_off,
)
sick(
    "sigmoid-before-bce-with-logits",
    "mismatched-loss",
    "loss",
    lambda: (nn.Sequential(*nets.stack([16, 48, 1]), nn.Sigmoid()), binary(), BCE),
    rewritten=sigmoid_off,
)
sick(
    "sigmoid-with-mse",
    "mismatched-loss",
    "loss",
    lambda: (nn.Sequential(*nets.stack([16, 48, 1]), nn.Sigmoid()), binary(), MSE),
    rewritten=sigmoid_off,
)
sick(
    "softmax-with-mse",
    "mismatched-loss",
    "loss",
    lambda: (
        nn.Sequential(*nets.stack(MLP), nn.Softmax(1)),
        (lambda x, t: (x, F.one_hot(t, 4).float()))(*nets.table()),
        nn.MSELoss(),
    ),
    rewritten=softmax_off,
)
sick(
    "nll-of-logits",
    "mismatched-loss",
    "loss",
    lambda: (nets.stack(MLP), nets.table(), nn.NLLLoss()),
)
sick(
    "nll-of-probabilities",
    "mismatched-loss",
    "loss",
    lambda: (nn.Sequential(*nets.cnn(2), nn.Softmax(1)), nets.images(), F.nll_loss),
    rewritten=without(nn.Softmax, lambda: nn.LogSoftmax(1)),
)
sick(
    "cross-entropy-of-one-logit",
    "mismatched-loss",
    "loss",
    lambda: (nets.stack([16, 48, 1]), (lambda x, t: (x, (t[:, 0]).long() * 0))(*binary()), CE),
)
sick(
    "mse-that-broadcasts",
    "mismatched-loss",
    "loss",
    lambda: (nets.stack([16, 48, 1]), (lambda x, t: (x, x.sum(1)))(*nets.table()), MSE),
)


def softmax_by_hand(z):
    return z.exp() / z.exp().sum(1, keepdim=True)


def sigmoid_by_hand(z):
    return 1 / (1 + torch.exp(-z))


def ending(widths, function):
    return nn.Sequential(*nets.stack(widths), Opaque(function))


def own_loss(batch):
    """For a model that computes its loss itself."""
    x, t = batch
    return {"x": x, "labels": t}, t


without_end = without(Opaque)
for key, code_loss, function in (
    ("cross-entropy", CE, softmax_by_hand),
    ("cross-entropy-scaled", CE, lambda z: z.softmax(1) * 1.0),
):
    sick(
        f"softmax-by-hand-before-{key}",
        "mismatched-loss",
        "loss",
        lambda function=function, loss=code_loss: (ending(MLP, function), nets.table(), loss),
        rewritten=without_end,
    )
for key, function in (
    ("by-hand", sigmoid_by_hand),
    ("clamped", lambda z: z.sigmoid().clamp(1e-6, 1 - 1e-6)),
):
    sick(
        f"sigmoid-{key}-before-bce-with-logits",
        "mismatched-loss",
        "loss",
        lambda function=function: (ending([16, 48, 1], function), binary(), BCE),
        rewritten=without_end,
    )
sick(
    "softmax-by-hand-before-nll",
    "mismatched-loss",
    "loss",
    lambda: (ending(MLP, softmax_by_hand), nets.table(), F.nll_loss),
    rewritten=lambda m: setattr(m[-1], "function", lambda z: z.log_softmax(1)) or m,
)
sick(
    "softmax-by-hand-with-mse",
    "mismatched-loss",
    "loss",
    lambda: (
        ending(MLP, softmax_by_hand),
        nets.table(),
        lambda y, t: F.mse_loss(y, F.one_hot(t, 4).float()),
    ),
    without_end,
)


sick(
    "sigmoid-before-targets-beyond",
    "mismatched-loss",
    "loss",
    lambda: (
        nn.Sequential(*nets.stack([16, 48, 1]), nn.Sigmoid()),
        *((lambda x: (x, 3 * x[:, :1]))(nets.table()[0]), F.smooth_l1_loss),
    ),
    rewritten=without(nn.Sigmoid),
)
for key, ends, loss, batch, off in (
    ("softmax-nll", [nn.Softmax(1)], lambda y, t: F.nll_loss(y.log_softmax(1), t), nets.table, 0),
    ("sigmoid-nll", [nn.Sigmoid()], lambda y, t: F.nll_loss(y.log_softmax(1), t), nets.table, 1),
    ("softmax-log-softmax", [nn.Softmax(1), nn.LogSoftmax(1)], nn.NLLLoss(), nets.table, 0),
    (
        "softmax-softmax-log",
        [nn.Softmax(1), nn.Softmax(1)],
        lambda y, t: F.nll_loss(y.clamp_min(1e-9).log(), t),
        *(nets.table, 2),
    ),
    (
        "softmax-kl",
        [nn.Softmax(1)],
        lambda y, t: F.kl_div(y.log_softmax(1), healthy.smooth(t), reduction="batchmean"),
        *(nets.table, 0),
    ),
    (
        "sigmoid-bce",
        [nn.Linear(4, 1), nn.Sigmoid()],
        lambda y, t: F.binary_cross_entropy(y.sigmoid(), t),
        *(binary, 1),
    ),
):
    sick(
        f"twice-{key}",
        "mismatched-loss",
        "loss",
        lambda ends=ends, loss=loss, batch=batch: (
            nn.Sequential(*nets.stack(MLP), *ends),
            *(batch(), loss),
        ),
        (softmax_off, sigmoid_off, lambda m: m[:-1])[off],
    )
sick(
    "log-softmax-over-the-batch",
    "mismatched-loss",
    "loss",
    lambda: (nn.Sequential(*nets.stack(MLP), nn.LogSoftmax(0)), nets.table(), F.nll_loss),
    rewritten=without(nn.LogSoftmax, lambda: nn.LogSoftmax(1)),
)
for end, shift in ((nn.Tanh, 50), (nn.ReLU, -5), (nn.ReLU6, 50), (nn.Hardtanh, 50)):
    sick(
        f"{end.__name__.lower()}-before-targets-beyond",
        "mismatched-loss",
        "loss",
        lambda end=end, shift=shift: (
            nn.Sequential(*nets.stack([16, 48, 1]), end()),
            *((lambda x: (x, shift + x[:, :1]))(nets.table()[0]), MSE),
        ),
        None if end is nn.Tanh else lambda m: m[:-1],
    )
sick(
    "softplus-before-targets-beyond",
    "mismatched-loss",
    "loss",
    lambda: (
        nn.Sequential(*nets.stack([16, 48, 1]), nn.Softplus()),
        *((lambda x: (x, x[:, :1] - 5))(nets.table()[0]), F.l1_loss),
    ),
    without(nn.Softplus),
)


def signs(batch):
    """Targets of −1 and 1 for those of 0 and 1."""
    return batch[0], 2 * batch[1] - 1


sick(
    "bce-with-logits-against-signs",
    "mismatched-loss",
    "loss",
    lambda: (lambda m: (m, signs(binary()), BCE, adam(m)))(nets.stack([16, 48, 1])),
)


def aligned(log_probabilities, targets):
    """CTC over all steps, to three labels a sample."""
    steps, samples, _ = log_probabilities.shape
    lengths = torch.full((samples,), steps), torch.full((samples,), 3)
    return F.ctc_loss(log_probabilities, targets, *lengths)


for key, end in (("logits", nn.Identity), ("probabilities", lambda: nn.Softmax(-1))):
    sick(
        f"ctc-of-{key}",
        "mismatched-loss",
        "loss",
        lambda end=end: (
            nn.Sequential(*nets.stack([6, 48, 4]), end()),
            *((torch.randn(12, 16, 6), torch.randint(1, 4, (16, 3))), aligned),
        ),
    )
sick(
    "bce-of-logits",
    "mismatched-loss",
    "loss",
    lambda: (nets.stack([16, 48, 1]), binary(), nn.BCELoss()),
)
sick(
    "bce-of-a-relu",
    "mismatched-loss",
    "loss",
    lambda: (
        nn.Sequential(*nets.scaled(nets.stack([16, 48, 1]), 0.3), nn.ReLU()),
        binary(),
        nn.BCELoss(),
    ),
    without(nn.ReLU, nn.Identity),
)
sick(
    "kl-of-probabilities",
    "mismatched-loss",
    "loss",
    lambda: (
        nn.Sequential(*nets.stack(MLP), nn.Softmax(1)),
        (lambda x, t: (x, F.one_hot(t, 4).float()))(*nets.table()),
        nn.KLDivLoss(reduction="batchmean"),
    ),
)
sick(
    "kl-of-logits",
    "mismatched-loss",
    "loss",
    lambda: (
        nets.stack(MLP),
        (lambda x, t: (x, F.one_hot(t, 4).float()))(*nets.table()),
        nn.KLDivLoss(reduction="batchmean"),
    ),
)
sick(
    "softmax-before-the-models-own-loss",
    "mismatched-loss",
    "loss",
    lambda: (
        nets.OwnLoss(lambda z: z.softmax(-1)),
        own_loss(nets.table()),
        lambda y, t: y["loss"],
    ),
    lambda m: setattr(m, "finish", lambda z: z) or m,
)


# update-too-large, update-too-small
def stepped(make, optimizer):
    model, batch, loss_fn = make()
    return model, batch, loss_fn, optimizer(model)


def plain():
    """Adam moves each entry by lr, so the largest fan-in, of the smallest weights, moves most."""
    return nets.stack([16, 24, 48, 96, 4]), nets.table(), CE


def chance(classes=10):
    """Labels that can only be learnt by heart."""
    return torch.randn(64, 16), torch.randint(0, classes, (64,))


def shallow():
    return nets.stack([16, 64, 10]), chance(), CE


def deeper():
    return nets.stack([16, 48, 48, 48, 10]), chance(), CE


def normed():
    return nets.stack([16, 48, 48, 10], norm=nn.BatchNorm1d), chance(), CE


def uneven(model):
    """One layer with a rate of its own."""
    others = [p for n, p in model.named_parameters() if n != "2.weight"]
    own = {"params": [model.get_parameter("2.weight")], "lr": 1e4}
    return torch.optim.SGD([{"params": others}, own], lr=0.1)


for key, code, layer, make, optimizer in (
    ("sgd-lr-100", "update-too-large", "6.weight", plain, lambda m: sgd(m, 100.0)),
    ("one-rate-of-1e4", "update-too-large", "2.weight", plain, uneven),
    ("adam-lr-1", "update-too-large", "6.weight", plain, lambda m: adam(m, 1.0)),
    ("momentum-lr-50", "update-too-large", "6.weight", plain, lambda m: sgd(m, 50, momentum=0.9)),
    (
        "cnn-adam-lr-1",
        "update-too-large",
        "8.weight",
        lambda: (nets.cnn(3), nets.images(), CE),
        lambda m: adam(m, 1.0),
    ),
    (
        "autoencoder-sgd-lr-1e4",
        "update-too-large",
        "4.weight",
        lambda: autoencoder()[:3],
        lambda m: sgd(m, 1e4),
    ),
    (
        "contrastive-adam-lr-1",
        "update-too-large",
        ("left.2.weight", "right.2.weight"),
        lambda: (nets.Contrastive(), nets.views(), CE),
        lambda m: adam(m, 1.0),
    ),
    ("sgd-lr-10", "update-too-large", "2.weight", shallow, lambda m: sgd(m, 10.0)),
    ("sgd-lr-20", "update-too-large", "6.weight", deeper, lambda m: sgd(m, 20.0)),
    ("batchnorm-sgd-lr-10", "update-too-large", "6.weight", normed, lambda m: sgd(m, 10.0)),
    ("sgd-lr-1e-6", "update-too-small", "6.weight", plain, lambda m: sgd(m, 1e-6)),
    ("adam-lr-1e-8", "update-too-small", "6.weight", plain, lambda m: adam(m, 1e-8)),
    ("sgd-lr-1e-12", "update-too-small", "0.weight", plain, lambda m: sgd(m, 1e-12)),
    (
        "cnn-adam-lr-1e-8",
        "update-too-small",
        "8.weight",
        lambda: (nets.cnn(3), nets.images(), CE),
        lambda m: adam(m, 1e-8),
    ),
):
    sick(key, code, layer, lambda make=make, o=optimizer: stepped(make, o))


def stuck():
    """An optimizer of something else."""
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
