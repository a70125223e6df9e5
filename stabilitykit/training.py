"""The training loop of the lessons: mini-batches, a history, a progress bar."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stabilitykit import _checks
from stabilitykit._intake import check_optimizer

LossFunction = Callable[[Tensor, Tensor], Tensor]

# What torch raises on tensors that do not fit. Others, such as one that means to stop, pass.
_MISFITS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)

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
        check_optimizer(chosen, model)
        return chosen
    if isinstance(chosen, str):
        if chosen.lower() not in OPTIMIZERS:
            hint, names = _checks.nearest(chosen, OPTIMIZERS), ", ".join(OPTIMIZERS)
            raise ValueError(f"optimizer must be one of {names}, got {chosen!r}{hint}")
        chosen = OPTIMIZERS[chosen.lower()]
    if not callable(chosen):
        raise TypeError(
            "optimizer must be a name, a torch.optim.Optimizer or a factory (parameters, lr=…), "
            f"got {chosen!r}"
        )
    if lr is None:
        raise ValueError("lr must be a positive finite number, got None")
    lr = _checks.positive("lr", lr)
    try:
        made = chosen(model.parameters(), lr=lr)
    except TypeError as error:
        raise TypeError(
            f"optimizer={chosen!r} must be a factory (parameters, lr=…): {error}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer={chosen!r} must make a torch.optim.Optimizer, got {type(made).__name__}"
        )
    check_optimizer(made, model)
    return made


def _pair(name: str, data: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(data, (tuple, list)) and len(data) == 2):
        raise TypeError(f"{name} must be a pair (inputs, targets), got {type(data).__name__}")
    x, y = data
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise TypeError(
            f"{name} must be a pair of tensors, got {type(x).__name__} and {type(y).__name__}"
        )
    if not (x.ndim and y.ndim):
        raise ValueError(
            f"{name} must be tensors [n, ...], got shapes {list(x.shape)} and {list(y.shape)}"
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


def _outputs(model: nn.Module, name: str, inputs: Tensor) -> Any:
    try:
        return model(inputs)
    except _MISFITS as error:
        raise ValueError(
            f"{name}: model={type(model).__name__} failed on inputs of shape {list(inputs.shape)}, "
            f"{inputs.dtype}: {type(error).__name__}: {error}"
        ) from error


def _loss(loss_fn: LossFunction, name: str, outputs: Any, targets: Tensor) -> Tensor:
    try:
        loss = loss_fn(outputs, targets)
    except _MISFITS as error:
        shown = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"{name}: loss_fn failed on outputs {shown} and targets {list(targets.shape)}, "
            f"{targets.dtype}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn must return a torch tensor, got {type(loss).__name__} {loss!r}")
    if loss.ndim > 1:
        raise ValueError(
            "loss_fn must return a scalar, or a vector with one loss a network; "
            f"got shape {list(loss.shape)}"
        )
    return loss


@torch.no_grad()
def _evaluate(model: nn.Module, data: tuple[Tensor, Tensor], loss_fn: LossFunction) -> tuple:
    model.eval()
    outputs = _outputs(model, "test", data[0])
    model.train()
    loss = _loss(loss_fn, "test", outputs, data[1]).double().numpy()
    hits, classes = None, not data[1].is_floating_point() and data[1].ndim == 1
    if classes and isinstance(outputs, Tensor) and outputs.ndim in (2, 3):
        hits = (outputs.argmax(-1) == data[1]).double().mean(-1).numpy()
    return loss, hits


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
        ValueError: sizes or numbers that cannot be meant, an unknown optimizer, a model without
            parameters to train or one that the optimizer does not hold, and whatever the model or
            the loss function raises on the data, chained, with their shapes.
        TypeError: data that are not pairs of tensors, a model that is no module, a loss function
            that is none or returns no tensor.

    Examples:
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> line = nn.Linear(1, 1)
        >>> history = fit(line, (x, 3 * x), loss_fn=nn.functional.mse_loss, lr=0.5, epochs=50)
        >>> round(line.weight.item(), 4), history.losses.shape
        (3.0, (50,))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} is not an nn.Module")
    called = callable(loss_fn) and not isinstance(loss_fn, type)
    if not called:  # a class such as MSELoss would make a module from outputs and targets
        raise TypeError(
            f"loss_fn={loss_fn!r} is not a loss function; expected loss_fn(outputs, targets), as "
            "torch.nn.functional.mse_loss or torch.nn.MSELoss() is"
        )
    x, y = _pair("data", data)
    test = None if test is None else _pair("test", test)
    epochs = _checks.whole("epochs", epochs)
    batch_size = len(x) if batch_size is None else _checks.whole("batch_size", batch_size)
    shuffle = torch.Generator().manual_seed(_checks.seed("seed", seed))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(f"model={type(model).__name__} has no parameter that requires a gradient")
    stepper = _optimizer(optimizer, model, lr)
    losses: list[np.ndarray] = []
    tests: list[tuple] = []
    rms: dict[str, list[float]] = {name: [] for name in named} if gradients else {}
    diverged = None
    was_training = model.training
    model.train()
    try:
        with _Bar(progress, epochs) as report:
            for epoch in range(1, epochs + 1):
                total: Any = 0.0
                squares = dict.fromkeys(rms, 0.0)
                batches = torch.randperm(len(x), generator=shuffle).split(min(batch_size, len(x)))
                for batch in batches:
                    loss = _loss(loss_fn, "data", _outputs(model, "data", x[batch]), y[batch])
                    if not loss.requires_grad:
                        raise ValueError(
                            "loss_fn must depend on the outputs; its value carries no gradient"
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
    finally:
        model.train(was_training)
    classified = bool(tests) and tests[0][1] is not None
    return History(
        losses=np.array(losses, dtype=float),
        test_losses=np.array([t[0] for t in tests], dtype=float) if test is not None else None,
        test_accuracies=np.array([t[1] for t in tests]) if classified else None,
        gradient_rms={name: np.array(values) for name, values in rms.items()},
        diverged=diverged,
    )
