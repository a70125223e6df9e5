"""The first place where a step is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stabilitykit._findings import Finding, finding
from stabilitykit._measure import tensors
from stabilitykit._verdicts import owner


def first_nonfinite(
    before: dict[str, Tensor],
    gradients: dict[str, Tensor | None],
    inputs: Any,
    targets: Any,
    loss: Tensor,
    place: Any,
    records: Sequence[Any],
) -> Finding | None:
    """non-finite: the first place on the way from the input to the gradients, or None.

    Inputs may hold what is not finite as long as nothing comes of it: a mask of −inf for attention,
    gaps that the model or the loss leaves out.

    Args:
        before: the parameters before the step.
        gradients: theirs, None where there is none.
        inputs: of the batch.
        targets: of the batch.
        loss: of the batch.
        place: what the probe saw first.
        records: of the probe.
    """

    def bad(values: list[Tensor]) -> int:
        return sum(int((~t.isfinite()).sum()) for t in values if t.is_floating_point())

    wrong = [n for n, g in gradients.items() if g is not None and bad([_dense(g)])]
    spread = bool(wrong) or not bool(loss.isfinite())
    spread = spread or any(r.nonfinite or r.grad_nonfinite for r in records)
    for part, value in (("inputs", inputs), ("targets", targets)) if spread else ():
        if number := bad(tensors(value)):
            return finding(
                *("non-finite", "input", f"{number} entries of the {part} are nan or infinite", 0),
                f"Mend the data, or fill the gaps: `{part} = torch.nan_to_num({part}, nan=0.0, "
                "posinf=0.0, neginf=0.0)`.",
            )
    for name, weight in before.items():
        if number := bad([weight]):
            layer = name.rpartition(".")[0]
            return finding(
                *("non-finite", name, f"{number} entries of {name} are nan or infinite", 0),
                f"Draw that layer's weights again: `{owner(layer)}.reset_parameters()`.",
            )
    if place is not None and place.direction == "forward":
        return finding(
            *("non-finite", place.layer, f"nan or infinite in forward, call {place.call}", 0),
            "Bring the signal back into the range of the format: `sk.lsuv(model, batch)`.",
        )
    if not bool(loss.isfinite()):
        return finding(
            *("non-finite", "loss", f"a loss of {float(loss)} of finite outputs", "a number"),
            "Keep the loss away from log(0), 0/0 and overflow, for example by "
            "`loss_fn = nn.functional.cross_entropy` on logits.",
        )
    if not spread:
        return None
    layer = place.layer if place is not None else wrong[0]
    return finding(
        *("non-finite", layer, "nan or infinite in backward", 0),
        "Keep its input away from where the slope is infinite, as sqrt(x + 1e-8) does for sqrt; "
        "`torch.autograd.set_detect_anomaly(True)` shows the line.",
    )


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient
