"""`predict` knows how entries spread, and which of them a gradient meets."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from scripts.benchmarks import prediction as benchmark


class Between(nn.Module):
    """What `function` makes of a linear layer's output, and linear layers to use in it."""

    def __init__(self, function, width, outputs):
        super().__init__()
        self.one, self.two = nn.Linear(64, width), nn.Linear(width, width)
        self.head, self.function = nn.Linear(outputs, width), function

    def forward(self, x):
        return self.head(self.function(self.one(x), self.two))


def agrees(build, x, width=128, seeds=40, predictions=10, measured=()):
    """Within 5 % and three standard errors, with these operations measured."""
    network = benchmark.Network(lambda width: benchmark.drawn(build(width)), lambda: x)
    for ratio in benchmark.compare(network, width, seeds, predictions, 1.0, measured):
        assert ratio.error < 0.06, ratio
        assert abs(ratio.ratio - 1) < 0.05 + 3 * ratio.error, ratio


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def halves(h, _):
    a, b = functional.gelu(h).chunk(2, 1)
    return torch.cat([functional.relu(a), b], 1)


relu = functional.relu
JOINED = {
    "two relus": lambda h, two: relu(torch.cat([relu(h), relu(two(h))], 1)),
    "of two scales": lambda h, two: relu(torch.cat([relu(h), 3 * two(h)], 1)),
    "gaussians of two scales": lambda h, two: torch.tanh(torch.cat([h, 5 * two(h)], 1)),
    "stacked": lambda h, two: relu(torch.stack([relu(h), relu(two(h))], 1)).mean(1),
    "halves that are read differently": halves,
}


@pytest.mark.parametrize("name", JOINED)
def test_what_is_joined_and_split_keeps_which_entries_a_gradient_meets(name):
    with torch.no_grad():
        outputs = JOINED[name](torch.ones(2, 128), nn.Identity()).shape[1]
    agrees(lambda width: Between(JOINED[name], width, outputs), seeded(64, 64))


def again(h):
    return torch.where(h > -1e9, h, h)


MEASURED = {
    "a copy, tanh": (("where",), lambda h, two: torch.tanh(again(2 * h))),
    "a gate, tanh": (
        ("glu",), lambda h, two: torch.tanh(4 * torch.cat([functional.glu(h)] * 2, 1))
    ),
    "a copy, product, tanh": (("where",), lambda h, two: torch.tanh(again(h) * two(h))),
    "a copy of a relu, sum": (("where",), lambda h, two: again(relu(h)) + relu(two(h))),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_what_follows_a_measured_operation_has_the_law_of_its_entries(name):
    operations, function = MEASURED[name]
    agrees(lambda width: Between(function, width, width), seeded(64, 64), measured=operations)


def test_a_maximum_behind_a_measured_operation():
    """And what a gradient meets that is measured itself."""
    pool = functional.avg_pool2d(seeded(4, 3, 10, 10), 3, 1)

    def build(width):
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2), nn.Conv2d(width, width, 1),
        )  # fmt: skip

    agrees(build, pool, measured=("2 (local_response_norm)",))


GIVEN = {
    "joined, tanh": lambda x, two: torch.tanh(torch.cat([x, two(x)], 1)),
    "summed, tanh": lambda x, two: torch.tanh(x + 0.5 * two(x)),
    "positive and summed": lambda x, two: x.clamp_min(0) + relu(two(x)),
    "a row of data, tanh": lambda x, two: torch.tanh(relu(two(x)) + x.detach()[0]),
    "summed, norm, tanh": lambda x, two: torch.tanh(
        functional.layer_norm(x + relu(two(x)), x.shape[1:])
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_data_that_meet_what_is_drawn_have_the_law_of_their_entries(name):
    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.two, self.one = nn.Linear(128, 128), nn.Linear(128 * (1 + ("joined" in name)), 64)

        def forward(self, x):
            return self.one(GIVEN[name](x, self.two))

    agrees(Model, 2 * seeded(64, 128))


def agreeing(share, samples=64):
    """Samples that have this share of their mean square in common."""
    return (1 - share) ** 0.5 * seeded(samples, 65)[:, 1:] + share**0.5 * seeded(1, 64)


NORMED = {
    "leaky relu": (lambda: nn.LeakyReLU(0.3), agreeing(0.6), {}),
    "gelu, not monotone": (nn.GELU, agreeing(0.6), {"eps": 1e-2}),
    "relu, units that are off": (nn.ReLU, agreeing(0.6), {"eps": 1e-2}),
    "few samples": (nn.Identity, agreeing(0.0, 8), {}),
}


@pytest.mark.parametrize("name", NORMED)
def test_what_a_norm_divides_by_goes_with_the_entries_of_a_channel(name):
    activation, x, options = NORMED[name]

    def build(width):
        norm = nn.BatchNorm1d(width, **options)
        return nn.Sequential(
            nn.Linear(64, width), activation(), norm, nn.Tanh(), nn.Linear(width, width)
        )

    agrees(build, x, width=256, predictions=20)


def test_so_it_does_with_statistics_of_earlier_passes():
    x = agreeing(0.6)

    def build(width):
        norm = nn.BatchNorm1d(width, 1e-2, momentum=None)
        layers = nn.Linear(64, width), nn.GELU(), norm, nn.Tanh(), nn.Linear(width, width)
        model = benchmark.drawn(nn.Sequential(*layers))
        model(x)
        return model.eval()

    network = benchmark.Network(build, lambda: x)
    for ratio in benchmark.compare(network, 256, 40, 20):
        assert ratio.error < 0.06, ratio
        assert abs(ratio.ratio - 1) < 0.05 + 3 * ratio.error, ratio


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, lambda width: nn.GroupNorm(2, width)])
def test_a_norm_gives_joined_parts_their_shares_of_the_gradient(norm):
    class Model(Between):
        def __init__(self, width):
            super().__init__(self.join, width, 2 * width)
            self.norm = norm(2 * width)

        def join(self, h, two):
            return relu(self.norm(torch.cat([relu(h), 5 * two(h)], 1)))

    agrees(Model, seeded(64, 64))


@pytest.mark.parametrize("last", [nn.BatchNorm2d, lambda width: nn.Tanh()])
def test_a_convolution_of_few_weights_behind_which_a_norm_or_an_activation_stands(last):
    def build(width):
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width), last(width),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, width),
        )  # fmt: skip

    agrees(build, seeded(4, 3, 6, 6), width=256)


def test_a_maximum_over_overlapping_windows_of_joined_parts():
    """Parts differ in how far positions agree, and what wins often is what is large."""
    pool = functional.avg_pool2d(seeded(4, 3, 10, 10), 3, 1)

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 1)
            self.three = nn.Conv2d(width, width, 5, padding=2)
            self.pool, self.head = nn.MaxPool2d(3, 1, 1), nn.Conv2d(2 * width, width, 1)

        def forward(self, x):
            h = relu(self.one(x))
            parts = torch.cat([self.two(self.pool(h)), self.three(h)], 1)
            return self.head(self.pool(relu(parts)))

    agrees(Model, pool, width=96)
