"""A probe that measures every layer of a model while it trains; it measures and never judges."""

from __future__ import annotations

import difflib
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import nn

from stabilitykit._checks import count
from stabilitykit._fitting import Fitting
from stabilitykit._ledger import MODES
from stabilitykit._recorder import Recorder
from stabilitykit._records import NonFinite, ParameterRecord, Record, scalars
from stabilitykit._sentences import visible

if TYPE_CHECKING:
    import pandas

Callback = Callable[[dict[str, float], int], Any]

# What a table in a narrow terminal can do without, the first first.
_DISPENSABLE = ("output", "mean", "update", "flat", "dead", "kind")


class Probe:
    """Record what passes through each layer, forward and backward, in every n-th step.

    A step ends with `optimizer.step()`; without an optimiser each call of the model is one. Several
    forwards before the optimiser's step (gradient accumulation) are further calls of the same step.
    With an optimiser, forwards in eval mode without gradients do not count. Of calls in several
    threads at once, those of the thread that came first are recorded.

    Layers are the modules without children, multi-head attention, and the functional activations
    (named by the module that calls them), but for those that torch.jit made and those whose output
    holds no dense tensor of floats. The model trains as it would without the probe: nothing is
    replaced, random numbers and gradients stay the same, and at the end of the `with` block, by
    whatever way it is left, no hook remains; in copies that are made or saved meanwhile the hooks
    do nothing. While a step is recorded, compiled modules run eagerly. The host waits for the
    device once in a recorded step, once more where FSDP shards the parameters, whose numbers are
    then those of the whole model, and once more where a weight or a gradient is not finite or has
    just become too small or large for float32's squares. All else is of this process.

    Modes:
        sampled: every number from 1,024 entries spread evenly over the tensor; no `dead`.
        hybrid: moments and `saturated` from that sample; `dead`, the gradients' norms, and whether
            outputs and parameters' gradients are finite, from the whole tensor (how many entries
            are not is estimated from the sample).
        exact: everything from the whole tensor in float64, at the price of copies.

    Args:
        model: watched in place. The module inside DistributedDataParallel or torch.compile is
            meant, whose names the records carry.
        optimizer: whose steps are the steps; needed for `update_ratio`.
        every: record steps 0, every, 2·every, …; the others cost nothing.
        mode: "sampled", "hybrid" or "exact".
        callback: called as callback(values, step) after each recorded step with a flat dict such
            as {"rms/0.linear": 1.02}; `wandb.log` and `mlflow.log_metrics` fit.
        scaler: the GradScaler in use, whose scale is then taken out of `grad_rms`. A step of the
            optimiser that it leaves out, and whose gradients are then set to None, counts as well.

    Raises:
        TypeError: the model is no module, the optimiser no optimiser, the callback not callable.
        ValueError: an unknown mode, `every` below 1, a parameter on the meta device.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with Probe(model, optimizer) as probe:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(64, 8)).square().mean().backward()
        ...         optimizer.step()
        >>> [(r.layer, r.kind) for r in probe.records if r.step == 2]
        [('0', 'linear'), ('1', 'relu'), ('2', 'linear')]
        >>> all(0 < p.update_ratio < 1 for p in probe.parameters if p.parameter.endswith("weight"))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 1,
        mode: str = "hybrid",
        callback: Callback | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={model!r} is not an nn.Module")
        if isinstance(unwrapped(model), torch.jit.ScriptModule):
            raise TypeError(
                "model is a torch.jit.ScriptModule, which takes no hooks; "
                "give the nn.Module that it was made of"
            )
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer={optimizer!r} is not a torch.optim.Optimizer")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback={callback!r} is not callable")
        if scaler is not None and not hasattr(scaler, "scale"):
            raise TypeError(f"scaler={scaler!r} is not a torch.amp.GradScaler")
        if count("every", every) < 1:
            raise ValueError(f"every={every!r} is below 1")
        if mode not in MODES:
            near = difflib.get_close_matches(str(mode), MODES, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"mode={mode!r} is unknown{hint} Known: {', '.join(MODES)}")
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                raise ValueError(
                    f"model: parameter {name!r} is on the meta device and has no values; "
                    "give the model values with to_empty and initialise it first"
                )
        self._recorder = Recorder(unwrapped(model), optimizer, every, mode, callback, scaler)
        # The hooks know the recorder and not the probe, so that a forgotten probe can be collected.
        self._end = weakref.finalize(self, self._recorder.stop)
        self._end.atexit = False

    def __enter__(self) -> Probe:
        self._recorder.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._recorder.finish(failed=kind is not None)

    @property
    def records(self) -> list[Record]:
        """One record per layer call and recorded step, in the order of the forward pass.

        They are made when they are first asked for, from the numbers that each step left.
        """
        self._recorder.catch_up()
        return list(self._recorder.records)

    @property
    def parameters(self) -> list[ParameterRecord]:
        """One record per parameter and recorded step."""
        self._recorder.catch_up()
        return list(self._recorder.parameters)

    @property
    def first_nonfinite(self) -> NonFinite | None:
        """Where nan or infinity was first seen in a recorded step; None where it was not."""
        self._recorder.catch_up()
        return self._recorder.first_nonfinite

    def dicts(self) -> list[dict[str, Any]]:
        """The layers' records as plain dicts, with the fields of `Record` as keys.

        Examples:
            >>> model = nn.Linear(4, 2)
            >>> with Probe(model) as probe:
            ...     _ = model(torch.ones(3, 4))
            >>> [(row["kind"], row["shape"]) for row in probe.dicts()]
            [('linear', (3, 2))]
        """
        return [record._asdict() for record in self.records]

    def frame(self) -> pandas.DataFrame:
        """The layers' records as a pandas frame, a row a record, a column a field of `Record`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as missing:
            raise ImportError("Probe.frame needs pandas: pip install pandas") from missing
        return pandas.DataFrame(self.records, columns=list(Record._fields))

    def table(self, step: int = -1) -> Table:
        """One recorded step as a table of rich, for `rich.print`: a row a layer call.

        flat is `Record.saturated`; update is `ParameterRecord.update_ratio` of the layer's weight;
        nan/inf counts the entries of the output and of its gradient that are not finite. Where the
        terminal is too narrow for all columns, a line under the table names those left out.

        Args:
            step: its number, or -1 for the last one.

        Raises:
            ValueError: that step was not recorded.
        """
        records = self.records
        steps = sorted({record.step for record in records})
        if not steps or (step != -1 and step not in steps):
            known = ", ".join(map(str, steps if len(steps) < 9 else [*steps[:4], "…", steps[-1]]))
            raise ValueError(f"step={step!r} was not recorded; recorded: {known or 'none'}")
        step = steps[-1] if step == -1 else step
        updates = {p.parameter: p.update_ratio for p in self.parameters if p.step == step}
        table = Fitting(_DISPENSABLE, title=f"Step {step}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("layer", overflow="fold")
        for column in ("kind", "output"):
            table.add_column(column, no_wrap=True)
        numbers = ("mean", "rms", "flat", "dead", "grad rms", "update", "nan/inf")
        for column in numbers:
            table.add_column(column, justify="right", no_wrap=True)
        for record in records:
            if record.step != step:
                continue
            bad = record.nonfinite + (record.grad_nonfinite or 0)
            weight = f"{record.layer}.weight".lstrip(".")
            again = f" ({record.call})" if record.call else ""
            table.add_row(
                Text(visible(record.layer + again)),
                Text(visible(record.kind)),
                "×".join(map(str, record.shape)),
                *(f"{value:.3g}" for value in (record.mean, record.rms)),
                *(_shown(value, ".1%") for value in (record.saturated, record.dead)),
                _shown(record.grad_rms, ".2e"),
                _shown(updates.get(weight), ".1e"),
                Text(str(bad), style="red") if bad else "",
            )
        return table

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write every number as TensorBoard scalars; `tensorboard --logdir folder` shows them.

        Tags are those that `callback` gets, such as "rms/0.linear" or "update_ratio/0.weight".

        Args:
            folder: where the event file goes; made when it is not there.

        Returns:
            The folder.

        Raises:
            ImportError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as missing:
            raise ImportError("Probe.write needs TensorBoard: pip install tensorboard") from missing
        with SummaryWriter(str(folder)) as writer:
            for tag, step, value in scalars(self.records, self.parameters):
                writer.add_scalar(tag, value, step)
        return Path(folder)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        if "torch._dynamo" in sys.modules and hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
