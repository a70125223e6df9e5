"""How second moments pass elementwise functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabilitykit import _law
from stabilitykit._activations import Activation
from stabilitykit._apart import through
from stabilitykit._fields import Field, compact, pointwise
from stabilitykit._gaussian import GaussianMeans
from stabilitykit._tape import State, Tape

_GRID = 33  # variances at which an activation's moments are computed when positions differ


class Elementwise:
    """Functions of one tensor, with their Gaussian means kept for the next layer."""

    def __init__(self) -> None:
        self._means: dict[Any, GaussianMeans] = {}

    def means(self, key: Any, function: Callable[[Tensor], Tensor]) -> GaussianMeans:
        if key not in self._means:
            self._means[key] = GaussianMeans(Activation(function))
        return self._means[key]

    def __call__(
        self, tape: Tape, state: State, key: Any, function: Callable[[Tensor], Tensor]
    ) -> State:
        means = self.means(key, function)
        grid, where = _variances(state.square)
        floor = float(grid[0])  # of an interval in which f²/q is smooth
        if not torch.isfinite(grid).all():
            nan = torch.full((), math.nan, dtype=torch.float64).to(state.square.device)
            lost = State(nan.expand(state.square.shape), _law.gaussian())
            tape.step(lambda: state.receive(None if lost.gradient is None else lost.square))
            return lost
        points = grid.sqrt()[:, None] * state.law.values
        values, slopes = (
            torch.from_numpy(part.copy()).reshape(points.shape)
            for part in means.activation(points.flatten().numpy())
        )
        second = values.square().mean(1)
        exact = None
        if state.law.gaussian:
            moments, errors = means.moments(grid.numpy())
            fine = np.isfinite(moments) & (errors <= 1e-6 * moments)
            if fine.all():
                second, exact = torch.from_numpy(moments[0]), torch.from_numpy(moments[1])
        square = pointwise(lambda f: where(f, second / grid) * f.clamp(min=floor), state.square)
        typical = max(state.scale, 0.0) ** 0.5 * state.law.values
        image, steepness = (
            torch.from_numpy(part.copy()) for part in means.activation(typical.numpy())
        )
        result = State(square, _law.Law(image), like=state)
        if not monotone(image[state.law.values.argsort()]):
            result.behind = state
        if state.apart is not None:
            shares = state.apart, state.sizes
            result.apart = through(*shares, state.law, means, state.scale, image, steepness)

        def back() -> None:
            if result.gradient is None:
                return
            weights = result.weights
            if weights is None:
                factors = slopes.square().mean(1) if exact is None else exact
            else:
                factors = (slopes.square() * weights).mean(1)
            gradient = result.gradient * pointwise(lambda f: where(f, factors), state.square)
            mine = steepness.square() if weights is None else steepness.square() * weights
            state.receive(gradient, _law.normalised(mine))

        tape.step(back)
        return result


def monotone(values: Tensor) -> bool:
    steps = values.diff()
    return bool((steps >= 0).all() or (steps <= 0).all())


def _variances(square: Field) -> tuple[Tensor, Callable[[Field, Tensor], Field]]:
    """A grid of variances that covers a field, and interpolation from the grid to the field."""
    low, high = (float(v) for v in compact(square).aminmax())
    if not math.isfinite(high) or high <= low * (1 + 1e-6):
        grid = torch.tensor([max((low + high) / 2, 1e-280)], dtype=torch.float64)
        return grid, lambda field, values: torch.full_like(field, float(values[0]))
    floor = max(low, high * 1e-12, 1e-280)
    grid = torch.logspace(math.log(floor), math.log(high), _GRID, base=math.e, dtype=torch.float64)
    grid[0], grid[-1] = floor, high

    def interpolate(field: Field, values: Tensor) -> Field:
        flat = field.clamp(floor, high).log().cpu().numpy()
        found = np.interp(flat, grid.log().numpy(), values.numpy())
        return torch.from_numpy(np.asarray(found)).to(field.device).reshape(field.shape)

    return grid, interpolate
