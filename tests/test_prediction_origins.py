"""`predict` knows which tensors are functions of the same entries."""

import pytest
import torch
from test_prediction import Applied
from test_prediction_laws import agrees, relu, seeded
from torch import nn
from torch.nn import functional

import stabilitykit as sk


class Amid(nn.Module):
    """A function of the first layer's output, and of two layers at hand, in front of the last."""

    def __init__(self, function, last=None, width=256):
        super().__init__()
        self.one, self.two, self.three, self.end = (nn.Linear(width, width) for _ in range(4))
        self.function, self.last = function, last or nn.Identity()

    def forward(self, x):
        self.given = x
        return self.end(self.last(self.function(self, self.one(x))))


BEHIND_RELU = {
    "logarithm": (lambda m, h: torch.log1p(relu(h)), "log1p"),
    "root": (lambda m, h: (relu(h) + 0.01).sqrt(), "sqrt"),
    "sums": (lambda m, h: relu(h).cumsum(1), "cumsum"),
    "order": (lambda m, h: relu(h.view(-1, 4, 256)).sort(1)[0][:, 3], "sort"),
}


@pytest.mark.parametrize("name", BEHIND_RELU)
def test_an_activation_in_front_of_what_is_measured_passes_what_its_entries_get(name):
    """The gradient is largest where a relu has no slope, or where it has one."""
    function, operation = BEHIND_RELU[name]
    agrees(lambda width: Amid(function), seeded(64, 256), 256, 20, 8, (operation,))


def skips(m, h):
    """A skip over blocks with skips of their own."""
    y = h + relu(m.two(h))
    y = y + m.three(relu(y))
    return y + h


def highway(m, h):
    t = torch.sigmoid(m.three(h))
    return t * relu(m.two(h)) + (1 - t) * relu(h)


def both_gated(m, h):
    t = torch.sigmoid(m.three(h))
    return t * relu(h) + t * relu(m.two(h))


def skips_over_skips(m, h):
    one = h + 0.5 * relu(m.two(h))
    return relu((one + 0.5 * relu(m.three(one)) + one) + h)


def rectified(m, h):
    u = relu(h)
    return (u + m.two(u)) + u


AGAIN = {  # a tensor meets itself: by a number of times, or named
    "skip over a skip": (lambda m, h: (h + m.two(h)) + h, None),
    "skip over skips": (skips, None),
    "skip over a skip, rectified": (rectified, None),
    "in place": (lambda m, h: h.clone().add_(m.two(h)).add_(h), None),
    "dropped in part": (lambda m, h: h + functional.dropout(h, 0.2), None),
    "copy": (lambda m, h: h + h.clone(), None),
    "taken off": (lambda m, h: (h + m.two(h)) - h, None),
    "taken off in part": (lambda m, h: (h + m.two(h)) - 0.5 * h, None),
    "stacked": (lambda m, h: torch.stack([h, h.relu()]).sum(0), None),
    "view": (lambda m, h: h + h.view(-1, 16, 16).flatten(1), "add"),
    "gate beside": (lambda m, h: h + h * torch.sigmoid(m.two(h)), "add"),
    "highway": (highway, "add"),
    "gated alike": (both_gated, "add"),
    "product around": (lambda m, h: torch.tanh(h) * m.two(h) * torch.tanh(h), "mul"),
    "listed": (lambda m, h: sum([h, h.tanh(), m.two(h)]), "add"),
    "data gated": (
        lambda m, h: m.given * torch.sigmoid(h) + m.given * torch.sigmoid(m.two(h)),
        "add",
    ),
    "skips over skips": (skips_over_skips, None),
    "normed": (lambda m, h: functional.layer_norm(h, (256,)) - 0.5 * h, "sub"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_a_tensor_that_meets_itself_is_not_taken_for_independent(name):
    function, missing = AGAIN[name]
    named = (missing,) if missing else ()
    for last in (nn.Identity(), nn.Tanh()):
        agrees(lambda width, last=last: Amid(function, last), seeded(64, 256), 256, 24, 8, named)


def rotated(m, h):
    return 0.6 * h + 0.8 * torch.cat([-h[:, 128:], h[:, :128]], 1)


def gated(m, h):
    a, b = m.two(h).chunk(2, 1)
    return torch.cat([a * torch.sigmoid(b), h[:, :128]], 1)


def memory(m, h):
    """Two steps of a cell with three gates and a state, out of two layers."""
    h, c = h[:, :64], h[:, 64:128]
    for layer in (m.two, m.three):
        i, f, g, o = layer(functional.pad(h, (0, 192))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return torch.cat([h, c, h.new_zeros(len(h), 128)], 1)


def conditioned(m, h):
    shift, scale = m.two(functional.silu(h)).chunk(2, 1)
    return torch.cat([m.three(h)[:, :128] * (1 + scale) + shift, h[:, :128]], 1)


def gated_attention(m, h):
    h = h.view(8, 8, 256)
    q, k, v, g = m.two(h).chunk(4, -1)
    y = functional.scaled_dot_product_attention(q, k, v) * torch.sigmoid(g)
    return torch.cat([y, h[..., :192]], -1)


def masked(m, h):
    mask = (m.given > 0).to(h)
    h = h * mask
    return h + m.two(h) * mask


def scaled(m, h):
    """By signs that both sides share."""
    return (h * m.given[0]) + (relu(m.two(h)) * m.given[0])


APART = {
    "scaled": scaled,
    "rotated": rotated,
    "gated": gated,
    "memory": memory,
    "conditioned": conditioned,
    "attention": gated_attention,
    "masked": masked,
}


@pytest.mark.parametrize("name", APART)
def test_other_units_of_the_same_layer_are_independent(name):
    agrees(lambda width: Amid(APART[name]), seeded(64, 256), 256, 24, 8)


POSITIONS = {
    "average": (lambda h: functional.avg_pool2d(h, 3, 1, 1) - h, "sub"),
    "neighbour": (lambda h: h + functional.pad(h, (1, 0))[..., :-1], "add"),
    "centred": (lambda h: h - h.mean((2, 3), keepdim=True), "sub"),
    "largest": (lambda h: h.relu() + functional.max_pool2d(h, 3, 1, 1), "add"),
    "other channels": (lambda h: h + h.roll(1, 1), None),
    "gated by averages": (
        lambda h: h[:, 64:] * h[:, :64].mean((2, 3), keepdim=True).expand(-1, -1, 6, 6), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_of_a_channel_are_not_taken_for_independent(name):
    function, missing = POSITIONS[name]
    x = functional.avg_pool2d(3 * seeded(4, 3, 8, 8), 3, 1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.end = nn.Conv2d(3, 128, 3, padding=1), nn.LazyConv2d(64, 1)

        def forward(self, x):
            return self.end(function(self.one(x)))

    def build(width):
        model = Model()
        model(x)
        return model

    agrees(build, x, 128, 30, 10, (missing,) if missing else ())


LARGEST = {
    "max": lambda h: h.max(2)[0],
    "amax": lambda h: h.amax(-1),
    "kept": lambda h: h.max(dim=2, keepdim=True).values.squeeze(2),
    "two dims": lambda h: h.unflatten(2, (2, 2)).amax((2, 3)),
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_over_dims_is_predicted(name):
    """As in networks of point clouds."""

    def build(width, largest=LARGEST[name]):
        layers = nn.Conv1d(6, width, 1), nn.ReLU(), Largest(largest), nn.Linear(width, width)
        return nn.Sequential(*layers)

    agrees(build, seeded(8, 6, 4), 256, 20, 20)


def test_the_largest_of_many_points_behind_a_batch_norm():
    def build(width):
        return nn.Sequential(
            nn.Conv1d(6, width, 1), nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, width, 1),
            nn.BatchNorm1d(width), nn.ReLU(), Largest(lambda h: h.amax(2)), nn.Linear(width, 64),
        )  # fmt: skip

    agrees(build, seeded(8, 6, 32), 256, 20, 20)


class Largest(nn.Module):
    def __init__(self, largest):
        super().__init__()
        self.largest = largest

    def forward(self, x):
        return self.largest(x)


def test_the_larger_of_two_is_named():
    torch.manual_seed(0)
    model = Applied(lambda h, m: torch.max(h, m.two(h)))
    assert sk.predict(model, torch.randn(8, 16)).not_modelled == ("max",)
