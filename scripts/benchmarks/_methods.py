"""The ways to watch a training step that the benchmark compares."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import stabilitykit as sk
from scripts.benchmarks._peers import anomaly, naive, tensorboard, torchlens, wandb_watch
from scripts.benchmarks._workloads import Step, Training

Method = Callable[[Training], contextlib.AbstractContextManager[Step]]


@contextlib.contextmanager
def bare(training: Training) -> Iterator[Step]:
    yield training.step


def probed(**options: Any) -> Method:
    @contextlib.contextmanager
    def run(training: Training) -> Iterator[Step]:
        with sk.Probe(training.model, training.optimizer, **options) as probe:

            def step() -> None:
                training.step()
                len(probe.records)  # which are made when they are asked for

            yield step

    return run


@contextlib.contextmanager
def removed(training: Training) -> Iterator[Step]:
    with sk.Probe(training.model, training.optimizer):
        training.step()
    yield training.step


# Each with the package that it needs.
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
