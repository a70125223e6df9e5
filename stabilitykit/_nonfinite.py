"""The first place where a step is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stabilitykit._findings import Finding, finding, not_finite
from stabilitykit._inputs import named
from stabilitykit._measure import WEIGHTED, tensors
from stabilitykit._origins import Place, Tracer
from stabilitykit._remedies import careful, owner, redrawn


def first_nonfinite(
    model: nn.Module,
    before: dict[str, Tensor],
    gradients: dict[str, Tensor | None],
    batch: tuple[Any, Any],
    loss: Tensor,
    place: Any,
    records: Sequence[Any],
    rescale: str,
    rewind: Callable[[], None],
    again: Callable[[], Any],
) -> Finding | None:
    """non-finite: the first place on the way from the input to the gradients, or None.

    Inputs may hold what is not finite as long as nothing comes of it: a mask of −inf for attention,
    gaps that the model or the loss leaves out.

    Args:
        model: in any state; `rewind` sees to that.
        before: the parameters before the step.
        gradients: theirs, None where there is none.
        batch: inputs and targets.
        loss: of the batch.
        place: what the probe saw first.
        records: of the probe.
        rescale: the remedy for all weights.
        rewind: puts the state back in which the step began.
        again: computes the loss from there.
    """
    wrong = [n for n, g in gradients.items() if g is not None and _bad(_dense(g))]
    spread = bool(wrong) or not bool(loss.isfinite())
    spread = spread or any(r.nonfinite or r.grad_nonfinite for r in records)
    if not spread:
        return None
    for part, value in zip(("inputs", "targets"), batch, strict=True):
        for one in named(value, part):
            if number := _bad(one.tensor):
                filled = f"torch.nan_to_num({one.expression}, nan=0.0, posinf=0.0, neginf=0.0)"
                return finding(
                    "non-finite",
                    one.layer if part == "inputs" else "input",
                    not_finite(number, one.expression),
                    0,
                    f"Mend the data, or fill the gaps: `{one.assign(filled)}`.",
                )
    for name, weight in before.items():
        if number := _bad(weight):
            said = not_finite(number, name)
            return finding("non-finite", name, said, 0, redrawn(model, name))
    for name, norm in model.named_modules():
        # In training they take in whatever the step itself makes.
        kept = isinstance(norm, nn.modules.batchnorm._NormBase) and not norm.training
        if kept and any(_bad(buffer) for buffer in norm.buffers(recurse=False)):
            call = f"{owner(name)}.reset_running_stats()"
            remedy = f"Gather its running statistics anew, in training mode: `{call}`."
            said = "running statistics that are nan or infinite"
            return finding("non-finite", name, said, 0, remedy)
    forward = place is not None and place.direction == "forward"
    origins = _Origins(model)
    rewind()
    outcome = origins.run(again)
    if forward or not bool(loss.isfinite()):
        origin = origins.forward or origins.of(outcome)
        layer = place.layer if forward else "loss"
        module = dict(model.named_modules()).get(layer) if forward else None
        if origin is None:
            plain = f"Keep what {layer!r} computes finite: no log(0), no 0/0, no overflow."
            remedy = rescale if isinstance(module, WEIGHTED) else plain
            said = "nan or infinite of finite numbers, in forward"
            return finding("non-finite", layer, said, 0, remedy)
        where, said = origin.place.layer, f"{origin.place.function} of finite numbers"
        remedy = "" if origin.overflow else careful(origin.place.function, where)
        said = f"{said} is nan or infinite, in forward"
        return finding("non-finite", where, said, 0, remedy or rescale)
    origin = origins.backward(outcome)
    if origin is None:
        layer = place.layer if place is not None else wrong[0]
        said, remedy = "nan or infinite, in backward", f"Keep the slopes behind {layer!r} finite."
        return finding("non-finite", layer, said, 0, remedy)
    where, function = origin.place.layer, origin.place.function
    said = f"the slope of {function} is nan or infinite, in backward"
    plain = f"Keep what {function} gets, at {where!r}, away from where its slope is infinite."
    remedy = rescale if origin.overflow else careful(function, where) or plain
    return finding("non-finite", where, said, 0, remedy)


def _bad(tensor: Tensor) -> int:
    return int((~tensor.isfinite()).sum()) if _continuous(tensor) else 0


def _continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


class _Origin(NamedTuple):
    place: Place
    overflow: bool  # what it was given was too large to be squared


class _Origins:
    """Follows what is not finite through a step, from the function that first made it."""

    def __init__(self, model: nn.Module) -> None:
        self.tracer = Tracer(model, self._seen, self._left)
        self.forward: _Origin | None = None  # of the first module's output that is not finite
        self._made: dict[int, tuple[Tensor, _Origin]] = {}
        self._nodes: dict[Any, Place] = {}  # of autograd's graph

    def run(self, again: Callable[[], Any]) -> Any:
        """Compute the loss under observation; None where that raises."""
        try:
            with self.tracer.on():
                return again()
        except Exception:
            return None

    def of(self, loss: Any) -> _Origin | None:
        """What made the loss nan or infinite."""
        return self._made[id(loss)][1] if id(loss) in self._made else None

    def _seen(self, place: Place, given: list[Tensor], made: list[Tensor], all_: Any) -> None:
        for tensor in made:
            if tensor.grad_fn is not None:
                self._nodes.setdefault(tensor.grad_fn, place)
        bad = [t for t in made if _bad(t)]
        if not bad:
            return
        known = [self._made[id(t)][1] for t in given if id(t) in self._made]
        numbers = [t for t in given if not any(t is m for m in made)]
        given_bad = any(_bad(t) for t in numbers) or _infinite(all_[:2])
        # Masks of −inf are given on purpose; nan that comes of them is not.
        if not known and given_bad and not any(bool(t.isnan().any()) for t in bad):
            return
        origin = known[0] if known else _Origin(place, _overflow(numbers))
        self._made.update({id(t): (t, origin) for t in bad})

    def _left(self, name: str, output: Any) -> None:
        if self.forward is None:
            found = [self._made[id(t)][1] for t in tensors(output) if id(t) in self._made]
            self.forward = found[0] if found else None

    def backward(self, loss: Any) -> _Origin | None:
        """What first gave a gradient that is not finite for one that is."""
        found: list[tuple[Any, bool]] = []
        above: dict[Any, Any] = {}

        def watch(node: Any) -> None:
            def hook(given: tuple[Any, ...], got: tuple[Any, ...]) -> None:
                if any(_bad(g) for g in tensors(given)) and not any(_bad(g) for g in tensors(got)):
                    found.append((node, _overflow(list(tensors(got)))))

            node.register_hook(hook)

        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            return None
        todo = [loss.grad_fn]
        above[loss.grad_fn] = None
        while todo:
            node = todo.pop()
            watch(node)
            for below, _ in node.next_functions:
                if below is not None and below not in above:
                    above[below] = node
                    todo.append(below)
        loss.backward()
        if not found:
            return None
        node, overflow = found[0]
        name = node.name().rsplit("::", 1)[-1].split("Backward")[0].lower()
        own = isinstance(node, torch.autograd.function.BackwardCFunction)
        while node is not None and node not in self._nodes:
            node = above[node]
        layer = self._nodes[node].layer if node else "loss"
        return _Origin(Place(name, f"{name} before {layer}" if own else layer), overflow)


def _infinite(value: Any) -> bool:
    """Whether a number among arguments is not finite."""
    if isinstance(value, (tuple, list)):
        return any(map(_infinite, value))
    if isinstance(value, dict):
        return _infinite(list(value.values()))
    return isinstance(value, float) and value - value != 0


def _overflow(given: list[Tensor]) -> bool:
    floating = [t for t in given if _continuous(t) and t.numel()]
    return any(float(t.abs().max()) > torch.finfo(t.dtype).max ** 0.5 for t in floating)
