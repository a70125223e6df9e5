"""Models that train; `trains` confirms it by a short run."""

import copy
import zlib

import torch
from torch import nn
from torch.nn import functional as F

from zoo import nets

CE, BCE, MSE = F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss
HEALTHY = {}


def adam(model, lr=1e-3):
    return torch.optim.Adam(model.parameters(), lr=lr)


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def case(name, make):
    """Register a function that gives (model, batch, loss_fn, optimizer)."""
    assert name not in HEALTHY
    HEALTHY[name] = make


def trains(model, batch, loss_fn, optimizer, steps=60, enough=0.7):
    """Whether that many steps on the batch bring its loss below a share of where it began."""
    inputs, targets = batch
    first = None
    for _ in range(steps):
        optimizer.zero_grad()
        if isinstance(inputs, dict):
            outputs = model(**inputs)
        else:
            outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        loss = loss_fn(outputs, targets)
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
        if loss.item() < enough * first:
            return True
    return False


def seeded(name):
    torch.manual_seed(zlib.crc32(name.encode()))


def build(name):
    seeded(name)
    return HEALTHY[name]()


def confirmed(name):
    """A healthy model as built, after a copy of it has trained."""
    model, batch, loss_fn, optimizer = build(name)
    trained, own = copy.deepcopy((model, optimizer))
    assert trains(trained, batch, loss_fn, own), f"{name} does not train: no healthy model"
    return model, batch, loss_fn, optimizer


def supervised(model, batch, optimizer, loss_fn=CE):
    return model, batch, loss_fn, optimizer(model)


ACTIVATIONS = {
    name: getattr(nn, name)
    for name in ("ReLU", "Tanh", "GELU", "SiLU", "ELU", "SELU", "LeakyReLU", "Mish", "Hardtanh")
}
for key, activation in ACTIVATIONS.items():
    case(
        f"mlp-3-{key.lower()}-adam",
        lambda a=activation: supervised(
            nets.stack([16, 48, 48, 48, 4], a), nets.table(), lambda m: adam(m, 3e-3)
        ),
    )
for key in ("ReLU", "Tanh", "GELU"):
    case(
        f"mlp-2-{key.lower()}-sgd",
        lambda a=ACTIVATIONS[key]: supervised(nets.stack([16, 64, 4], a), nets.table(), sgd),
    )

case(
    "mlp-2-relu-sgd-3",
    lambda: supervised(nets.stack([16, 64, 10]), nets.table(classes=10), lambda m: sgd(m, 3.0)),
)
case(
    "mlp-3-batchnorm-sgd-3",
    lambda: supervised(
        nets.stack([16, 48, 48, 10], norm=nn.BatchNorm1d),
        *(nets.table(classes=10), lambda m: sgd(m, 3.0)),
    ),
)

MORE = {
    "mlp-1-sigmoid": lambda: (nets.stack([16, 64, 4], nn.Sigmoid), nets.table(), CE, 1e-2),
    "mlp-2-sigmoid": lambda: (nets.stack([16, 48, 48, 4], nn.Sigmoid), nets.table(), CE, 1e-2),
    "mlp-5-relu-default": lambda: (nets.stack([16] + [48] * 5 + [4]), nets.table(), CE, 3e-3),
    "mlp-8-relu-kaiming": lambda: (
        *(nets.kaiming(nets.stack([16] + [48] * 8 + [4])), nets.table(), CE, 1e-3),
    ),
    "mlp-20-relu-kaiming": lambda: (
        *(nets.kaiming(nets.stack([16] + [64] * 20 + [4])), nets.table(), CE, 3e-4),
    ),
    "mlp-20-tanh-xavier": lambda: (
        nets.kaiming(nets.stack([16] + [48] * 20 + [4], nn.Tanh), "linear"),
        *(nets.table(), CE, 5e-4),
    ),
    "mlp-10-tanh-five-thirds": lambda: (
        nets.kaiming(nets.stack([16] + [48] * 10 + [4], nn.Tanh), "tanh"),
        *(nets.table(), CE, 1e-3),
    ),
    "mlp-10-batchnorm": lambda: (
        nets.stack([16] + [32] * 10 + [4], norm=nn.BatchNorm1d),
        *(nets.table(), CE, 3e-3),
    ),
    "mlp-10-layernorm": lambda: (
        nets.stack([16] + [32] * 10 + [4], norm=nn.LayerNorm),
        *(nets.table(), CE, 3e-3),
    ),
    "mlp-zero-head": lambda: (zero_head(nets.stack([16, 48, 48, 4])), nets.table(), CE, 3e-3),
    "mlp-small-head": lambda: (
        nets.scaled(nets.stack([16, 48, 48, 4]), 1e-3, "4"),
        *(nets.table(), CE, 3e-3),
    ),
    "mlp-dropout": lambda: (
        nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 4)),
        *(nets.table(), CE, 1e-2),
    ),
    "mlp-in-place": lambda: (
        nets.stack([16, 48, 48, 4], lambda: nn.ReLU(inplace=True)),
        *(nets.table(), CE, 3e-3),
    ),
    "mlp-functional-relu": lambda: (nets.Functional(F.relu), nets.table(), CE, 3e-3),
    "mlp-functional-gelu": lambda: (nets.Functional(F.gelu), nets.table(), CE, 3e-3),
    "mlp-functional-tanh": lambda: (nets.Functional(torch.tanh), nets.table(), CE, 3e-3),
    "mlp-float64": lambda: double(nets.stack([16, 48, 4])),
    "mlp-inputs-0-to-1": lambda: (
        nets.stack([16, 64, 4]),
        *(((lambda x, t: (x.sigmoid(), t))(*nets.table())), CE, 2e-2),
    ),
    "mlp-inputs-0-to-16": lambda: (
        nets.stack([16, 64, 4]),
        *(((lambda x, t: (16 * x.sigmoid(), t))(*nets.table())), CE, 3e-3),
    ),
    "mlp-one-hot": lambda: (
        nets.stack([64, 64, 4]),
        *(((lambda k: (F.one_hot(k, 64).float(), k % 4))(torch.arange(96) % 64)), CE, 1e-2),
    ),
    "mlp-sparse-inputs": lambda: (
        nets.stack([16, 64, 4]),
        *(((lambda x, t: (x * (x > 1.0), t))(*nets.table())), CE, 1e-2),
    ),
    "mlp-regression": lambda: (
        nets.stack([16, 64, 64, 1]),
        *(((lambda x: (x, x[:, :1] + x[:, 1:2].tanh()))(nets.table()[0])), MSE, 3e-3),
    ),
    "mlp-512-kaiming-regression": lambda: (
        nets.kaiming(nets.stack([16, 512, 512, 512, 1])),
        *(products(), MSE, 1e-3),
    ),
    "transformer-128-regression": lambda: regression_by_transformer(True),
    "transformer-128-post-ln-regression": lambda: regression_by_transformer(False),
    "factors": lambda: (nets.Factors(), nets.ratings(), MSE, 3e-2),
    "contrastive": lambda: (nets.Contrastive(), nets.views(), CE, 3e-3),
    "mlp-huber": lambda: (
        nets.stack([16, 64, 64, 1], nn.Tanh),
        *(((lambda x: (x, x.mean(1, keepdim=True) * 4))(nets.table()[0])), F.huber_loss, 3e-3),
    ),
    "mlp-binary-logits": lambda: (
        nets.stack([16, 64, 1]),
        *(binary(), BCE, 1e-2),
    ),
    "mlp-binary-probabilities": lambda: (
        nn.Sequential(*nets.stack([16, 64, 1]), nn.Sigmoid()),
        *(binary(), F.binary_cross_entropy, 1e-2),
    ),
    "mlp-log-softmax-nll": lambda: (
        nn.Sequential(*nets.stack([16, 64, 4]), nn.LogSoftmax(1)),
        *(nets.table(), F.nll_loss, 1e-2),
    ),
    "mlp-binary-noisy-labels": lambda: (
        nets.stack([16, 64, 1]),
        *((lambda x, t: (x, 1.2 * t))(*binary()), BCE, 1e-2),
    ),
    "mlp-own-loss": lambda: (
        nets.OwnLoss(),
        *((lambda x, t: ({"x": x, "labels": t}, t))(*nets.table()), own, 1e-2),
    ),
    "mlp-kl-of-log-probabilities": lambda: (
        nn.Sequential(*nets.stack([16, 64, 4]), nn.LogSoftmax(1)),
        *((lambda x, t: (x, smooth(t)))(*nets.table()), F.kl_div, 1e-2),
    ),
    "mlp-smooth-labels": lambda: (
        nets.stack([16, 64, 4]),
        *((lambda x, t: (x, smooth(t)))(*nets.table()), CE, 1e-2),
    ),
    "mlp-shares-by-softmax-mse": lambda: (
        nn.Sequential(*nets.stack([16, 64, 4]), nn.Softmax(1)),
        *((lambda x: (x, (2 * x[:, :4]).softmax(1)))(nets.table()[0]), MSE, 1e-2),
    ),
    "mlp-sigmoid-targets-a-little-beyond": lambda: (
        nn.Sequential(*nets.stack([16, 64, 1]), nn.Sigmoid()),
        *((lambda x: (x, 0.5 + x[:, :1] / 3))(nets.table()[0]), MSE, 1e-2),
    ),
    "mlp-targets-in-0-to-1": lambda: (
        nn.Sequential(*nets.stack([16, 64, 1]), nn.ReLU()),
        *((lambda x: (x, x[:, :1].sigmoid()))(nets.table()[0]), MSE, 3e-3),
    ),
    "mlp-relu-logits": lambda: (
        nn.Sequential(*nets.stack([16, 64, 4]), nn.ReLU()),
        *(nets.table(), CE, 1e-2),
    ),
    "mlp-small-logits": lambda: (
        nn.Sequential(*nets.stack([16, 64, 1]), Scale(0.1)),
        *(binary(), BCE, 1e-2),
    ),
    "autoencoder-sigmoid-mse": lambda: autoencoder(),
    "mlp-batchnorm-on-inputs-at-1e4": lambda: (
        nn.Sequential(nn.BatchNorm1d(16), *nets.stack([16, 64, 4])),
        *(((lambda x, t: (5e4 + 1e4 * x, t))(*nets.table())), CE, 1e-2),
    ),
    "mlp-scaled-inside": lambda: (
        nn.Sequential(Scale(1 / 255), *nets.stack([16, 64, 4])),
        *(((lambda x, t: (255 * x.sigmoid(), t))(*nets.table())), CE, 1e-2),
    ),
    "mlp-weight-norm": lambda: (
        weight_normed(nets.stack([16, 48, 48, 4])),
        *(nets.table(), CE, 3e-3),
    ),
    "plain-parameters": lambda: (nets.Products(8), nets.table(), CE, 1e-3),
    "mlp-with-its-slope": lambda: (
        nets.Slope(nets.stack([16, 48, 48, 1], nn.Tanh)),
        *((lambda x: (x, x[:, :1]))(nets.table()[0]), MSE, 3e-3),
    ),
    "forces-of-an-energy": lambda: (
        nets.Slope(nets.stack([16, 64, 1], nn.Tanh), alone=True),
        *((lambda x: (x, x.flip(1)))(nets.table()[0]), MSE, 1e-2),
    ),
    "gru-with-its-slope": lambda: (
        nets.Slope(nets.Recurrent(nn.GRU)),
        *(nets.sequences(), CE, 1e-2),
    ),
    "mlp-under-vmap": lambda: (nets.OneByOne(nets.stack([16, 48, 48])), nets.table(), CE, 3e-3),
    "mlp-on-a-spectrum": lambda: (nets.Spectral(), nets.table(), CE, 3e-3),
    "mlp-two-inputs": lambda: (
        nets.TwoInputs(),
        *(((lambda x, t: ({"a": x, "b": x.flip(1)}, t))(*nets.table())), CE, 3e-3),
    ),
    "mlp-frozen-first": lambda: (frozen(nets.stack([16, 64, 64, 4])), nets.table(), CE, 5e-3),
    "mlp-trained-before": lambda: pretrained(),
    "residual-10": lambda: (nets.Residual(10, scale=0.3), nets.table(), CE, 3e-3),
    "residual-zero-branches-zero-head": lambda: (nets.Branches(), nets.table(), CE, 3e-3),
    "rezero-zero-head": lambda: (nets.Branches(scale=True), nets.table(), CE, 3e-3),
    "adaln-zero": lambda: (nets.Conditioned(), nets.table(), CE, 3e-3),
    "residual-30-layernorm": lambda: (
        nets.Residual(30, scale=0.2, norm=True),
        *(nets.table(), CE, 1e-3),
    ),
    "cnn-3-relu": lambda: (nets.cnn(3), nets.images(), CE, 3e-3),
    "cnn-3-gelu": lambda: (nets.cnn(3, activation=nn.GELU), nets.images(), CE, 3e-3),
    "cnn-4-batchnorm": lambda: (nets.cnn(4, norm=nn.BatchNorm2d), nets.images(), CE, 3e-3),
    "cnn-8-kaiming": lambda: (nets.kaiming(nets.cnn(8)), nets.images(), CE, 1e-3),
    "cnn-colour": lambda: (nets.cnn(2, inputs=3), nets.images(channels=3), CE, 3e-3),
    "resnet-4": lambda: (nets.ResNet(4), nets.images(), CE, 3e-3),
    "resnet-4-zero-gamma": lambda: (nets.ResNet(4, zero=True), nets.images(), CE, 3e-3),
    "resnet-4-zero-gamma-zero-head": lambda: (
        zero_head(nets.ResNet(4, zero=True)),
        *(nets.images(), CE, 3e-3),
    ),
    "resnet-3-plain": lambda: (nets.ResNet(3, norm=False), nets.images(), CE, 3e-3),
    "cnn-gated": lambda: (nets.gated(), nets.images(), CE, 3e-3),
    "unet": lambda: (nets.UNet(), denoising(), MSE, 1e-2),
    "unet-groupnorm-silu": lambda: (
        nets.UNet(norm=True, activation=F.silu),
        denoising(),
        MSE,
        1e-2,
    ),
    "lstm": lambda: (nets.Recurrent(), nets.sequences(), CE, 2e-2),
    "lstm-2-bidirectional": lambda: (
        nets.Recurrent(num_layers=2, bidirectional=True, last=False),
        *(nets.sequences(), CE, 1e-2),
    ),
    "gru": lambda: (nets.Recurrent(nn.GRU), nets.sequences(), CE, 1e-2),
    "rnn-40": lambda: (nets.Recurrent(nn.RNN), nets.sequences(length=40), CE, 1e-2),
    "gru-40": lambda: (nets.Recurrent(nn.GRU), nets.sequences(length=40), CE, 1e-2),
    "lstm-40": lambda: (nets.Recurrent(), nets.sequences(length=40), CE, 1e-2),
    "lstm-2-layers": lambda: (
        nets.Recurrent(num_layers=2),
        *(nets.sequences(length=20), CE, 2e-2),
    ),
    "rnn-orthogonal": lambda: (
        orthogonal(nets.Recurrent(nn.RNN)),
        *(nets.sequences(length=40), CE, 1e-2),
    ),
    "gru-orthogonal": lambda: (
        orthogonal(nets.Recurrent(nn.GRU)),
        *(nets.sequences(length=40), CE, 1e-2),
    ),
    "rnn-relu-identity": lambda: (
        identity(nets.Recurrent(nn.RNN, nonlinearity="relu")),
        *(nets.sequences(length=40), CE, 1e-3),
    ),
    "lstm-forget-bias": lambda: (
        remembering(nets.Recurrent()),
        *(nets.sequences(length=40), CE, 2e-2),
    ),
    "lstm-inputs-at-10": lambda: (
        nets.Recurrent(),
        *((lambda x, t: (10 * x, t))(*nets.sequences(length=20)), CE, 1e-2),
    ),
    "lstm-cell": lambda: (nets.Stepwise(), nets.sequences(), CE, 2e-2),
    "gru-cell-40": lambda: (nets.Stepwise(nn.GRUCell), nets.sequences(length=40), CE, 1e-2),
    "rnn-cell-40": lambda: (nets.Stepwise(nn.RNNCell), nets.sequences(length=40), CE, 1e-2),
    "elman-by-hand-40": lambda: (
        nets.Elman(),
        *(nets.sequences(length=40), CE, 1e-2),
    ),
    "elman-by-hand-15": lambda: (nets.Elman(), nets.sequences(length=15), CE, 1e-2),
    "lora": lambda: (lora(), nets.table(features=64), CE, 1e-2),
    "lora-plain-parameters": lambda: (lora(plain=True), nets.table(features=64), CE, 1e-2),
    "lora-frozen-head": lambda: (
        lora(head=False),
        *(nets.table(features=64), CE, 1e-2),
    ),
    "mixture-of-idle-experts": lambda: (nets.Mixture(), nets.table(), CE, 1e-2),
    "mixture-of-empty-batches": lambda: (nets.Mixture(every=True), nets.table(), CE, 1e-2),
    "stochastic-depth": lambda: (nets.Skipping(), nets.table(), CE, 3e-3),
    "transformer-pre-ln": lambda: (nets.Transformer(), nets.tokens(), CE, 3e-3),
    "transformer-4-dropout": lambda: (nets.Transformer(4, dropout=0.1), nets.tokens(), CE, 3e-3),
    "transformer-8-small-init": lambda: (
        small_init(nets.Transformer(8)),
        *(nets.tokens(), CE, 1e-3),
    ),
    "encoder-tiny-embeddings": lambda: (
        tiny_embeddings(nets.Encoder(True)),
        *(nets.tokens(), CE, 3e-3),
    ),
    "encoder-post-ln": lambda: (nets.Encoder(False), nets.tokens(), CE, 3e-3),
    "encoder-pre-ln": lambda: (nets.Encoder(True), nets.tokens(), CE, 3e-3),
}


def with_adam(make):
    model, batch, loss_fn, lr = make()
    return model, batch, loss_fn, adam(model, lr)


for key, made in MORE.items():
    case(key, lambda make=made: with_adam(make))


def zero_head(model):
    head = list(model.modules())[-1]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return model


def products(samples=256):
    """A regression whose targets have mean 0 and deviation 1."""
    x = torch.randn(samples, 16)
    y = x[:, :1] * x[:, 1:2] + x[:, 2:3].sin()
    return x, (y - y.mean()) / y.std()


def regression_by_transformer(norm_first, width=128):
    """torch's encoder between two linear layers, on the mean of one feature."""
    layer = nn.TransformerEncoderLayer(
        width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=norm_first
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    mean = nn.AvgPool2d((16, 1))  # over time
    model = nn.Sequential(
        *(nn.Linear(8, width), encoder, nn.LayerNorm(width), mean, nn.Linear(width, 1))
    )
    x = torch.randn(64, 16, 8)
    return model, (x, 4 * x[:, :, :1].mean(1, keepdim=True)), MSE, 1e-3


def smooth(targets, share=0.1):
    """One-hot targets, of which a share goes to all classes."""
    return F.one_hot(targets, 4) * (1 - share) + share / 4


def own(outputs, _):
    return outputs["loss"]


def double(model):
    x, t = nets.table()
    return model.double(), (x.double(), t), CE, 1e-2


class Scale(nn.Module):
    """Multiplies by a number, as a model does that takes bytes."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def weight_normed(model):
    for module in model:
        if isinstance(module, nn.Linear):
            nn.utils.parametrizations.weight_norm(module)
    return model


def lora(plain=False, head=True):
    adapters = [nets.Adapter(plain=plain), nn.ReLU(), nets.Adapter(plain=plain), nn.ReLU()]
    model = nn.Sequential(*adapters, nn.Linear(64, 4))
    model[-1].requires_grad_(head)
    return model


def orthogonal(model):
    """Recurrent weights orthogonal, gate by gate."""
    width = model.rnn.hidden_size
    for gate in model.rnn.weight_hh_l0.data.split(width):
        nn.init.orthogonal_(gate)
    return model


def identity(model):
    """Le, Jaitly & Hinton 2015: the identity, and zero biases."""
    nn.init.eye_(model.rnn.weight_hh_l0)
    nn.init.normal_(model.rnn.weight_ih_l0, 0.0, 0.1)
    nn.init.zeros_(model.rnn.bias_ih_l0)
    nn.init.zeros_(model.rnn.bias_hh_l0)
    return model


def remembering(model):
    """Forget gates that start at 1 (their second quarter of the biases)."""
    width = model.rnn.hidden_size
    model.rnn.bias_ih_l0.data[width : 2 * width] = 1.0
    return model


def tiny_embeddings(model):
    model.embedding.weight.data *= 5e-3
    return model


def small_init(model):
    """GPT-2's: weights N(0, 0.02²), zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model


def frozen(model):
    model[0].requires_grad_(False)
    return model


def binary():
    x, _ = nets.table()
    return x, (x @ torch.randn(16, 1) > 0).float()


def autoencoder():
    model = nn.Sequential(*nets.stack([16, 48, 48, 16]), nn.Sigmoid())
    x = (torch.randn(96, 2) @ torch.randn(2, 16) * 2).sigmoid()
    return model, (x, x), MSE, 1e-2


def denoising():
    x, _ = nets.images()
    clean = x.cumsum(-1) / 3
    return clean + 0.1 * torch.randn_like(clean), clean


def pretrained():
    """Trained: its loss is a fifth of where it began, its units have found their places."""
    model, batch = nets.stack([16, 48, 48, 4]), nets.table()
    assert trains(model, batch, CE, adam(model, 3e-3), 60, enough=0.2)
    return model, batch, CE, 3e-3
