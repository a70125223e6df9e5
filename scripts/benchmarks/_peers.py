"""What else people watch a training step with, as methods of the benchmark."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scripts.benchmarks._workloads import Step, Training


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
