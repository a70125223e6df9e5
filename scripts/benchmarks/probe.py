"""What watching a training step costs: `sk.Probe` beside what else people use.

Three models, each trained by AdamW: the ratio to the bare step (median over rounds, all methods
interleaved round by round) and the peak of memory above the bare step's. "naive hooks" reads mean,
std, norms and nan of every output, gradient and parameter with `.item()`. Peers that are not
installed are named and left out: `pip install -e .[bench]` brings them. On a GPU also the step's
time and how often the host waits for the device. Run from the repository root:

    python -m scripts.benchmarks.probe --rounds 9 --json probe.json
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import stabilitykit as sk

RATIO = {"MLP 20×512": 1.20, "CNN, 8 layers": 1.10, "transformer, 4 layers": 1.05}  # mode "hybrid"
IDLE, MEMORY = 1.03, 2 * 2**20
Step = Callable[[], None]


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [part for _ in range(20) for part in (nn.Linear(512, 512), nn.ReLU())]
    for layer in layers[::2]:  # by torch's default its signal dies out
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
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


MODELS = dict(zip(RATIO, (mlp, cnn, transformer), strict=True))


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


Method = Callable[[Training], contextlib.AbstractContextManager[Step]]


@contextlib.contextmanager
def bare(training: Training) -> Iterator[Step]:
    yield training.step


def probed(**options: Any) -> Method:
    @contextlib.contextmanager
    def run(training: Training) -> Iterator[Step]:
        with sk.Probe(training.model, training.optimizer, **options):
            yield training.step

    return run


@contextlib.contextmanager
def removed(training: Training) -> Iterator[Step]:
    with sk.Probe(training.model, training.optimizer):
        training.step()
    yield training.step


@contextlib.contextmanager
def naive(training: Training) -> Iterator[Step]:
    seen: list[tuple[float, ...]] = []

    def look(tensor: Tensor) -> None:
        values = (tensor.mean(), tensor.std(), tensor.norm(), tensor.isnan().any())
        seen.append(tuple(value.item() for value in values))

    def hook(module: nn.Module, _: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        look(tensor.detach())
        tensor.register_hook(look)

    def step() -> None:
        seen.clear()
        before = [parameter.detach().clone() for parameter in training.model.parameters()]
        training.step()
        for parameter, old in zip(training.model.parameters(), before, strict=True):
            for tensor in (parameter.detach(), parameter.grad, parameter.detach() - old):
                look(tensor)  # type: ignore[arg-type]

    leaves = [module for module in training.model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(hook) for module in leaves]
    try:
        yield step
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def anomaly(training: Training) -> Iterator[Step]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is slow
        detector = torch.autograd.detect_anomaly()
    with detector:
        yield training.step


@contextlib.contextmanager
def tensorboard(training: Training) -> Iterator[Step]:
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:

        def step() -> None:
            training.step()
            for name, parameter in training.model.named_parameters():
                writer.add_histogram(f"weight/{name}", parameter, 0)
                writer.add_histogram(f"gradient/{name}", parameter.grad, 0)

        yield step


@contextlib.contextmanager
def wandb_watch(training: Training) -> Iterator[Step]:
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        settings = wandb.Settings(silent=True, console="off", disable_git=True)
        run = wandb.init(mode="offline", dir=folder, project="benchmark", settings=settings)
        run.watch(training.model, log="all", log_freq=1)

        def step() -> None:
            training.step()
            run.log({})

        try:
            yield step
        finally:
            run.unwatch(training.model)
            run.finish()


@contextlib.contextmanager
def torchlens(training: Training) -> Iterator[Step]:
    import torchlens as lens

    def step() -> None:
        training.step()
        lens.trace(training.model, training.x)

    yield step


METHODS: dict[str, tuple[Method, str]] = {
    "bare": (bare, ""),
    "probe, hybrid": (probed(mode="hybrid"), ""),
    "probe, sampled": (probed(mode="sampled"), ""),
    "probe, exact": (probed(mode="exact"), ""),
    "probe, idle": (probed(every=10**9), ""),
    "probe, removed": (removed, ""),
    "naive hooks": (naive, ""),
    "detect_anomaly": (anomaly, ""),
    "TensorBoard histograms": (tensorboard, "tensorboard"),
    "wandb.watch, offline": (wandb_watch, "wandb"),
    "TorchLens": (torchlens, "torchlens"),
}


def settle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(step: Step, device: str) -> int:
    """Largest sum of what torch allocated during one step, above where it started.

    Gradients of the step before must be gone: whether the profiler counts their end is uncertain.
    """
    if device != "cpu":
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        settle(device)
        return torch.cuda.max_memory_allocated() - start
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    total = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        total += change
        peak = max(peak, total)
    return peak


def synchronisations(step: Step) -> int:
    """How often the host waits for the device in one step."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def measure(name: str, methods: list[str], rounds: int, steps: int, device: str) -> dict[str, Any]:
    """One model: every round runs all methods, each after a step to warm up."""
    training = Training(MODELS[name], device)
    for _ in range(3):
        training.step()
    times: dict[str, list[float]] = {method: [] for method in methods}
    memory: dict[str, int] = {}
    waits: dict[str, int] = {}
    for turn in range(rounds):
        for method in methods[turn % len(methods) :] + methods[: turn % len(methods)]:
            with METHODS[method][0](training) as step:
                step()
                settle(device)
                for _ in range(steps):
                    start = time.perf_counter()
                    step()
                    settle(device)
                    times[method].append(time.perf_counter() - start)
                if turn == 0:
                    training.optimizer.zero_grad()
                    memory[method] = peak_memory(step, device)
                if turn == 0 and device != "cpu":
                    waits[method] = synchronisations(step)
    middle = {method: statistics.median(times[method]) for method in methods}
    rows = []
    for method in methods:
        more = memory[method] - memory["bare"]
        row: dict[str, Any] = {
            "method": method,
            "milliseconds": 1e3 * middle[method],
            "ratio": middle[method] / middle["bare"],
            "ratio_of_fastest": min(times[method]) / min(times["bare"]),
            "extra_peak_bytes": more,
            "synchronisations": waits.get(method),
        }
        budget = {"probe, hybrid": RATIO[name], "probe, idle": IDLE}.get(method)
        if budget is not None:
            row |= {"budget": budget, "within": row["ratio"] <= budget and more <= MEMORY}
        rows.append(row)
    return {"model": name, "rows": rows}


def show(report: dict[str, Any]) -> None:
    console = Console(width=max(100, Console().width))
    for model in report["models"]:
        bare_ms = model["rows"][0]["milliseconds"]
        table = Table(title=f"{model['model']}: bare step {bare_ms:.1f} ms")
        table.add_column("method")
        for column in ("of the bare step", "budget", "within", "extra peak MiB", "host waits"):
            table.add_column(column, justify="right")
        for row in model["rows"]:
            within = row.get("within")
            table.add_row(
                row["method"],
                f"{row['ratio']:.3f}",
                f"{row['budget']:.2f}" if "budget" in row else "",
                "" if within is None else "[green]yes" if within else "[red]no",
                f"{row['extra_peak_bytes'] / 2**20:.2f}",
                "" if row["synchronisations"] is None else str(row["synchronisations"]),
            )
        console.print(table)
    for peer in report["left_out"]:
        console.print(f"Left out, since not installed: {peer}")


def versions() -> dict[str, str]:
    found = {"stabilitykit": sk.__version__, "python": platform.python_version()}
    for package in ("torch", "tensorboard", "wandb", "torchlens"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.probe",
        description="What watching a training step costs: sk.Probe beside what else people use.",
        epilog="Exit status 1 when a budget is missed. Other work on the machine slows the times.",
    )
    parser.add_argument("--rounds", type=int, default=9, help="repetitions (default: 9)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--ours", action="store_true", help="only the bare step and the probe")
    parser.add_argument("--model", choices=list(MODELS), help="only this one")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.steps, arguments.threads) < 1:
        parser.error("--rounds, --steps and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler reports its starts and stops
    device = "cuda" if torch.cuda.is_available() else "cpu"
    methods = [m for m in METHODS if not arguments.ours or m == "bare" or m.startswith("probe")]
    missing = [m for m in methods if METHODS[m][1] and not importlib.util.find_spec(METHODS[m][1])]
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        },
        "rounds": arguments.rounds,
        "budgets": {"hybrid": RATIO, "idle": IDLE, "extra_peak_bytes": MEMORY},
        "left_out": missing,
    }
    left = [method for method in methods if method not in missing]
    report["models"] = [
        measure(name, left, arguments.rounds, arguments.steps, device)
        for name in MODELS
        if arguments.model in (None, name)
    ]
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    rows = [row for model in report["models"] for row in model["rows"]]
    return 0 if all(row.get("within", True) for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
