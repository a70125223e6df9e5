"""Three models to train, whose steps are watched."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[], None]


def mlp() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    for _ in range(20):
        linear = nn.Linear(512, 512)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")  # else the signal dies out
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(128, 512)


def cnn() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    widths = (3, 32, 32, 64, 64, 128, 128, 256, 256)
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        stride = 2 if before < after and place else 1
        layers += [
            nn.Conv2d(before, after, 3, stride, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))
    return model, torch.randn(32, 3, 32, 32)


def transformer() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(16, 64, 256)


MODELS = {"MLP 20×512": mlp, "CNN, 8 layers": cnn, "transformer, 4 layers": transformer}


class Training:
    """A model with its optimiser and one step of it."""

    def __init__(self, build: Callable[[], tuple[nn.Module, Tensor]], device: str) -> None:
        torch.manual_seed(0)
        model, x = build()
        self.model, self.x = model.to(device), x.to(device)
        with torch.no_grad():  # a loss that training does not bring to 0, nor gradients with it
            self.y = torch.randn_like(self.model(self.x))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self) -> None:
        self.optimizer.zero_grad()
        (self.model(self.x) - self.y).square().mean().backward()
        self.optimizer.step()
