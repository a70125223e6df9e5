"""The training loop of the lessons: mini-batches, a history, a progress bar."""

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass
class History:
    """What happened, epoch by epoch; every array begins with the epochs that were run.

    Attributes:
        losses: mean training loss [epochs], each batch measured just before its step; with a loss
            function that gives one loss a network, [epochs, networks].
        test_losses: loss on the test set after each epoch, None without a test set.
        test_accuracies: share of test points whose largest output is the class, in the shape of
            the losses; None unless the targets are classes [n].
        gradient_rms: for each parameter tensor, the root mean square of its gradient over entries
            and steps of the epoch, [epochs]; empty unless asked for.
        diverged: the epoch (from 1) in which the loss was not finite and training stopped.
    """

    losses: np.ndarray
    test_losses: np.ndarray | None = None
    test_accuracies: np.ndarray | None = None
    gradient_rms: dict[str, np.ndarray] = field(default_factory=dict)
    diverged: int | None = None


def _optimizer(chosen: Any, model: nn.Module, lr: float | None) -> torch.optim.Optimizer:
    if isinstance(chosen, torch.optim.Optimizer):
        if lr is not None:
            raise ValueError(f"lr={lr!r}: the given optimizer has its own, leave lr out")
        return chosen
    if isinstance(chosen, str):
        if chosen.lower() not in OPTIMIZERS:
            near = difflib.get_close_matches(chosen.lower(), OPTIMIZERS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            names = ", ".join(OPTIMIZERS)
            raise ValueError(f"optimizer must be one of {names}, got {chosen!r}{hint}")
        chosen = OPTIMIZERS[chosen.lower()]
    if not callable(chosen):
        raise TypeError(
            "optimizer must be a name, a torch.optim.Optimizer or a factory (parameters, lr=…), "
            f"got {chosen!r}"
        )
    if lr is None or not 0 < lr < float("inf"):
        raise ValueError(f"lr must be a positive finite number, got {lr!r}")
    return chosen(model.parameters(), lr=lr)


def _pair(name: str, data: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise TypeError(f"{name} must be a pair (inputs, targets), got {type(data).__name__}")
    x, y = data
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise TypeError(
            f"{name} must be a pair of tensors, got {type(x).__name__} and {type(y).__name__}"
        )
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{name} must pair inputs with targets, got {len(x)} and {len(y)}")
    return x, y


class _Bar:
    """A progress bar with the loss, or nothing at all."""

    def __init__(self, wanted: bool | None, epochs: int) -> None:
        self.bar = None
        if wanted or (wanted is None and sys.stderr.isatty()):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self.bar = Progress(
                TextColumn("epoch"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("loss {task.fields[loss]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("fit", total=epochs, loss="–")

    def __enter__(self) -> Callable[[int, float], None]:
        if self.bar is not None:
            self.bar.start()
        return self.report

    def report(self, epoch: int, loss: float) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=epoch, loss=f"{loss:.4g}")

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


@torch.no_grad()
def _evaluate(model: nn.Module, data: tuple[Tensor, Tensor], loss_fn: LossFunction) -> tuple:
    model.eval()
    outputs = model(data[0])
    model.train()
    hits = None
    if not data[1].is_floating_point() and data[1].ndim == 1 and outputs.ndim in (2, 3):
        hits = (outputs.argmax(-1) == data[1]).double().mean(-1).numpy()
    return loss_fn(outputs, data[1]).double().numpy(), hits


def fit(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    *,
    loss_fn: LossFunction,
    lr: float | None = None,
    epochs: int,
    batch_size: int | None = None,
    optimizer: str | torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] = "sgd",
    seed: int = 0,
    test: tuple[Tensor, Tensor] | None = None,
    gradients: bool = False,
    progress: bool | None = None,
) -> History:
    """Train a model and keep what happened.

    Batches are shuffled anew in each epoch by a generator of their own, so the same seed gives the
    same run whatever else draws random numbers. Training stops in the first epoch with a loss that
    is not finite, before that loss touches the weights, and marks the history.

    Args:
        model: the model; trained in place and left in its training or evaluation mode.
        data: inputs [n, ...] and targets [n, ...].
        loss_fn: from (outputs, targets) to the loss of a batch: a scalar, or a vector with one
            entry for each of many independent networks (see `Ensemble`), which are then trained
            side by side.
        lr: the learning rate; leave it out when `optimizer` is an instance.
        epochs: how often to go through the data.
        batch_size: points in a batch, all of them by default; a smaller last batch is kept.
        optimizer: "sgd", "adam", "adamw", "adagrad" or "rmsprop", an instance, or a factory that is
            called with (parameters, lr=lr).
        seed: seed of the shuffling.
        test: inputs and targets to evaluate on after each epoch.
        gradients: also record the gradients' root mean squares.
        progress: show a progress bar on stderr; by default only when that is a terminal.

    Returns:
        The history, in float64 arrays.

    Raises:
        ValueError: sizes or numbers that cannot be meant, an unknown optimizer.
        TypeError: data that are not pairs of tensors.

    Examples:
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> line = nn.Linear(1, 1)
        >>> history = fit(line, (x, 3 * x), loss_fn=nn.functional.mse_loss, lr=0.5, epochs=50)
        >>> round(line.weight.item(), 4), history.losses.shape
        (3.0, (50,))
    """
    x, y = _pair("data", data)
    test = None if test is None else _pair("test", test)
    batch_size = len(x) if batch_size is None else batch_size
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    stepper = _optimizer(optimizer, model, lr)
    shuffle = torch.Generator().manual_seed(seed)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses: list[np.ndarray] = []
    tests: list[tuple] = []
    rms: dict[str, list[float]] = {name: [] for name in named} if gradients else {}
    diverged = None
    was_training = model.training
    model.train()
    with _Bar(progress, epochs) as report:
        for epoch in range(1, epochs + 1):
            total: Any = 0.0
            squares = dict.fromkeys(rms, 0.0)
            batches = torch.randperm(len(x), generator=shuffle).split(batch_size)
            for batch in batches:
                loss = loss_fn(model(x[batch]), y[batch])
                if loss.ndim > 1:
                    raise ValueError(
                        "loss_fn must return a scalar, or a vector with one loss a network; "
                        f"got shape {list(loss.shape)}"
                    )
                if not loss.isfinite().all():
                    diverged = epoch
                    break
                stepper.zero_grad()
                loss.sum().backward()
                for name in squares:
                    if (gradient := named[name].grad) is not None:
                        squares[name] += gradient.double().square().mean().item()
                stepper.step()
                total = total + len(batch) / len(x) * loss.detach().double().numpy()
            if diverged:
                break
            losses.append(np.asarray(total))
            for name, square in squares.items():
                rms[name].append((square / len(batches)) ** 0.5)
            if test is not None:
                tests.append(_evaluate(model, test, loss_fn))
            report(epoch, float(np.mean(total)))
    model.train(was_training)
    classified = bool(tests) and tests[0][1] is not None
    return History(
        losses=np.array(losses, dtype=float),
        test_losses=np.array([t[0] for t in tests], dtype=float) if test is not None else None,
        test_accuracies=np.array([t[1] for t in tests]) if classified else None,
        gradient_rms={name: np.array(values) for name, values in rms.items()},
        diverged=diverged,
    )
