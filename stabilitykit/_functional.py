"""What is written down of one call of a functional activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stabilitykit._calls import NOT_FLAT, Flatness, Seen
from stabilitykit._flatness import argument, described, units_dimension
from stabilitykit._ledger import Ledger
from stabilitykit._quiet import in_backward, plain, quiet
from stabilitykit._samples import SAMPLE, has_values


def flatness_of(
    ledger: Ledger,
    last: Seen | None,
    channels_first: bool | None,
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Flatness | None:
    """Where its argument lies, as places in the ledger; None where that has no values.

    Args:
        ledger: where the numbers go.
        last: the output of the layer before, which may be the argument.
        channels_first: where units are, as in `units_dimension`.
        function: the activation.
        args: what it gets.
        kwargs: what it gets by name.
    """
    given: Any = args[0] if args else kwargs.get("input")
    with quiet(given):
        if not has_values(given):
            return None
        if in_backward() or given.is_complex():
            return NOT_FLAT
        args = tuple(plain(a) if isinstance(a, Tensor) else a for a in args)
        if kwargs:
            kwargs = {k: plain(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        activation = described(function, args, kwargs)
        if activation is None:
            return NOT_FLAT
        z = argument(function, args, kwargs)
        dimension = units_dimension(z.shape, channels_first)
        cheap = ledger.mode == "hybrid" and z.numel() > SAMPLE and z.dim() > 1
        cheap &= z is given and not z.is_complex() and not z.is_inference()
        if cheap and activation.apply is not None:
            sample = None
            if last is not None and last.drained == ledger.drained:
                sample = last.sample if last.still(z) else None
            return Flatness(whole=ledger.activation(z, sample, activation, dimension))
        intervals = activation.intervals
        return Flatness(ledger.saturation(z, intervals), ledger.dead(z, intervals, dimension))
