"""Predicted second moments beside those of networks drawn anew, layer by layer.

Each network is built with seeds 0, 1, …; `sk.predict` predicts and `sk.Probe` measures E[y²] of
each layer's output and E[(∂/∂y)²] of its gradient, for output gradients of random signs. Compared
are the means over the seeds, with the standard error of their ratio. Products of many random
factors have heavy tails, so the perceptrons are drawn more often than the others. Run from the
repository root:

    python -m scripts.benchmarks.prediction --json prediction.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import stabilitykit as sk

TOLERANCE = 0.05
Key = tuple[str, str, int]


def drawn(model: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Normal weights of variance gain²/n and small biases."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, 0, gain / fan_in**0.5)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, 0, 0.1)
    return model


def perceptron(width: int, activation: str) -> nn.Module:
    return drawn(sk.MLP([32, *[width] * 20], activation), sk.gain(activation).forward)


class Block(nn.Module):
    """Two convolutions beside a shortcut, relu after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(outputs) if norm else nn.Identity() for _ in range(2)
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(self.norms[1](self.second(out)) + self.shortcut(x))


def resnet(width: int, norm: bool) -> nn.Module:
    layers = [
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width) if norm else nn.Identity(),
        nn.ReLU(),
        Block(width, width, 1, norm),
        Block(width, width, 2, norm),
        Block(width, width, 1, norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, width),
    ]
    return drawn(nn.Sequential(*layers))


def vgg(width: int) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for _ in range(2):
        for _ in range(2):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(4 * width, width), nn.ReLU(), nn.Dropout(0.5)]
    return drawn(nn.Sequential(*layers, nn.Linear(width, width)))


class Encoder(nn.Module):
    """A pre-norm transformer encoder with torch's own starting weights."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(100, width)
        self.places = nn.Parameter(torch.randn(16, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.1, activation="gelu",
                batch_first=True, norm_first=True,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def images() -> Tensor:
    """Smooth random pictures, so that neighbours agree as in real ones."""
    generator = torch.Generator().manual_seed(1)
    return 3 * functional.avg_pool2d(torch.randn(8, 3, 10, 10, generator=generator), 3, 1)


def rows() -> Tensor:
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(1))


def sentences() -> Tensor:
    return torch.randint(0, 100, (8, 16), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Network:
    """A network, its batch, and how often and how wide it is drawn against the others.

    `required` is False where the theory's error at finite width, of order depth/width, is known to
    pass the tolerance; it is shown beside the same network at four times the width.
    """

    build: Callable[[int], nn.Module]
    batch: Callable[[], Tensor]
    times: int = 1
    required: bool = True


NETWORKS = {
    "20-layer perceptron, relu": Network(lambda w: perceptron(w, "relu"), rows, 8),
    "20-layer perceptron, tanh": Network(lambda w: perceptron(w, "tanh"), rows, 2),
    "20-layer perceptron, gelu": Network(lambda w: perceptron(w, "gelu"), rows, 4, False),
    "the same, four times as wide": Network(lambda w: perceptron(4 * w, "gelu"), rows),
    "ResNet without normalisation": Network(lambda w: resnet(w, False), images),
    "ResNet with batch norm": Network(lambda w: resnet(w, True), images),
    "VGG-like": Network(vgg, images, 4),
    "pre-norm transformer encoder": Network(Encoder, sentences),
}


@dataclass(frozen=True)
class Ratio:
    """Predicted over measured, with its standard error."""

    layer: str
    kind: str
    direction: str
    predicted: float
    measured: float
    ratio: float
    error: float


def measured(model: nn.Module, batch: Tensor) -> dict[Key, tuple[float, float]]:
    """Second moments of outputs and gradients in one pass, by layer, kind and call."""
    with sk.Probe(model, mode="exact") as probe:
        output = model(batch)
        output.backward(torch.randint(0, 2, output.shape).mul(2).sub(1).to(output))
    return {
        (r.layer, r.kind, r.call): (r.rms**2, float("nan") if r.grad_rms is None else r.grad_rms**2)
        for r in probe.records
    }


def compare(
    network: Network, width: int, seeds: int, predictions: int, change: float = 1.0,
    measured_operations: tuple[str, ...] = (),
) -> list[Ratio]:  # fmt: skip
    """Ratios by layer and direction, over `seeds` networks of which some are predicted.

    Args:
        change: factor on every measured second moment; for testing what the comparison sees.
        measured_operations: what predictions name as not modelled, and nothing else.
    """
    batch = network.batch()
    expected: dict[Key, list[tuple[float, float]]] = {}
    found: dict[Key, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = network.build(width)
        if seed < predictions:
            prediction = sk.predict(model, batch)
            if prediction.not_modelled != measured_operations:
                raise ValueError(f"not modelled: {prediction.not_modelled}")
            for row in prediction.layers:
                key = (row.layer, row.kind, row.call)
                expected.setdefault(key, []).append((row.forward, row.backward))
        for key, pair in measured(model, batch).items():
            found.setdefault(key, []).append(pair)
    if expected.keys() != found.keys():
        raise ValueError(f"layers differ: {sorted(expected.keys() ^ found.keys())}")
    results = []
    for key, pairs in found.items():
        theirs = torch.tensor(pairs, dtype=torch.float64) * change
        ours = torch.tensor(expected[key], dtype=torch.float64)
        for i, direction in enumerate(("forward", "backward")):
            mean = theirs[:, i].mean()
            parts = [
                values[:, i].std(correction=1) / values[:, i].mean() / len(values) ** 0.5
                for values in (theirs, ours)
            ]
            results.append(
                Ratio(
                    key[0], key[1], direction, float(ours[:, i].mean()), float(mean),
                    float(ours[:, i].mean() / mean), float(torch.stack(parts).norm()),
                )
            )  # fmt: skip
    return results


def worst(ratios: list[Ratio], direction: str) -> Ratio:
    """The layer farthest from 1; nan counts as farthest."""
    own = [r for r in ratios if r.direction == direction]
    return max(own, key=lambda r: abs(r.ratio - 1) if r.ratio == r.ratio else float("inf"))


def show(report: dict[str, Any]) -> None:
    table = Table(title=f"Predicted over measured second moments, width {report['width']}")
    table.add_column("network")
    for column in ("seeds", "layers", "forward, worst", "backward, worst", "within 5 %", "seconds"):
        table.add_column(column, justify="right")
    for name, entry in report["networks"].items():
        cells = [
            f"{entry[d]['ratio']:.3f} ± {entry[d]['error']:.3f} at {entry[d]['layer'] or 'model'}"
            for d in ("forward", "backward")
        ]
        mark = "[green]yes" if entry["within"] else "[red]no" if entry["required"] else "no"
        table.add_row(
            name, str(entry["seeds"]), str(entry["layers"]), *cells, mark, f"{entry['seconds']:.0f}"
        )
    Console(width=max(130, Console().width)).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.prediction",
        description="Predicted second moments beside those of networks drawn anew.",
        epilog="Exit status 1 when a mean of a layer differs by more than 5 %.",
    )
    parser.add_argument("--seeds", type=int, default=200, help="networks (default: 200)")
    parser.add_argument("--predictions", type=int, default=200, help="of which predicted (200)")
    parser.add_argument("--width", type=int, default=256, help="of every layer (default: 256)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.predictions) < 2 or arguments.width < 4:
        parser.error("--seeds and --predictions must be at least 2 and --width at least 4")
    torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"stabilitykit": sk.__version__, "torch": torch.__version__},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "width": arguments.width,
        "tolerance": TOLERANCE,
        "networks": {},
    }
    for name, network in NETWORKS.items():
        if arguments.only not in name:
            continue
        start = time.perf_counter()
        seeds = arguments.seeds * network.times
        ratios = compare(network, arguments.width, seeds, min(seeds, arguments.predictions))
        ends = {d: vars(worst(ratios, d)) for d in ("forward", "backward")}
        report["networks"][name] = {
            "seeds": seeds,
            "layers": len(ratios) // 2,
            **ends,
            "required": network.required,
            "within": all(abs(end["ratio"] - 1) <= TOLERANCE for end in ends.values()),
            "seconds": time.perf_counter() - start,
            "rows": [vars(r) for r in ratios],
        }
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    entries = report["networks"].values()
    return 0 if all(entry["within"] or not entry["required"] for entry in entries) else 1


if __name__ == "__main__":
    raise SystemExit(main())
