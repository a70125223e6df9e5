"""Time and accuracy of gains and mean-field grids against their budgets and against plain rules.

Per activation: `sk.gain` of an activation not seen before, beside `scipy.integrate.quad` on the
same torch function and a Gauss–Hermite rule, interleaved round by round; and a grid of q*, χ and
depth scale. Times are the median of the rounds. Run from the repository root:

    python -m scripts.benchmarks.theory --rounds 9 --json theory.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from rich.console import Console
from rich.table import Table
from scipy import integrate
from torch.nn import functional

import stabilitykit as sk

GAIN_BUDGET = 0.030  # seconds for a new activation
GRID_BUDGET = 1.0  # seconds for q*, χ and depth scale
SMOOTH_ERROR, KINKED_ERROR = 1e-12, 1e-8
HERMITE_NODES = 64


def five_kinks(z: torch.Tensor) -> torch.Tensor:
    """Piecewise linear, with kinks at odd places."""
    places, steps = (-1.33, -0.00123, 0.1, 0.7123, 2.1), (-2.0, -1.0, 1.0, 0.5, 1.0)
    pieces = [s * functional.relu(z - p) for p, s in zip(places, steps, strict=True)]
    return torch.stack(pieces).sum(dim=0)


ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    "tanh": (torch.tanh, SMOOTH_ERROR),
    "sigmoid": (torch.sigmoid, SMOOTH_ERROR),
    "gelu": (functional.gelu, SMOOTH_ERROR),
    "silu": (functional.silu, SMOOTH_ERROR),
    "mish": (functional.mish, SMOOTH_ERROR),
    "softplus": (functional.softplus, SMOOTH_ERROR),
    "relu": (functional.relu, KINKED_ERROR),
    "selu": (functional.selu, KINKED_ERROR),
    "softsign": (functional.softsign, KINKED_ERROR),
    "hardtanh": (functional.hardtanh, KINKED_ERROR),
    "hardswish": (functional.hardswish, KINKED_ERROR),
    "|z - 0.3|": (lambda z: (z - 0.3).abs(), KINKED_ERROR),
    "five kinks": (five_kinks, KINKED_ERROR),
}


def slope(function: Callable[[torch.Tensor], torch.Tensor], z: Any) -> Any:
    """f' at numpy points, by autograd."""
    leaf = torch.as_tensor(z, dtype=torch.float64).clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0].numpy()


def by_quad(function: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Backward gain by adaptive quadrature that is not told the kinks."""
    weight = 1 / math.sqrt(2 * math.pi)
    moment, _ = integrate.quad(
        lambda z: float(slope(function, z)) ** 2 * math.exp(-z * z / 2) * weight,
        -12,
        12,
        epsabs=0,
        epsrel=1e-10,
        limit=200,
    )
    return 1 / math.sqrt(moment)


def by_hermite(function: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Backward gain by a Gauss–Hermite rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(HERMITE_NODES)
    return 1 / math.sqrt(weights @ slope(function, nodes) ** 2 / math.sqrt(2 * math.pi))


def timed(function: Callable[[Any], Any], argument: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(argument)
    return time.perf_counter() - start, result


def measure_gains(rounds: int) -> list[dict[str, Any]]:
    """One row per activation; every round runs all activations and all methods once."""
    methods: dict[str, Callable[[Any], Any]] = {
        "gain": sk.gain,
        "quad": by_quad,
        "hermite": by_hermite,
    }
    times: dict[tuple[str, str], list[float]] = {}
    results: dict[tuple[str, str], Any] = {}
    for _ in range(rounds):
        for name, (function, _) in ACTIVATIONS.items():
            for method, run in methods.items():
                seconds, results[name, method] = timed(run, function)
                times.setdefault((name, method), []).append(seconds)
    rows = []
    for name, (_, tolerance) in ACTIVATIONS.items():
        ours = results[name, "gain"]
        seconds = statistics.median(times[name, "gain"])
        rows.append(
            {
                "activation": name,
                "forward": ours.forward,
                "backward": ours.backward,
                "stated_error": ours.error,
                "error_budget": tolerance,
                "seconds": seconds,
                "fastest": min(times[name, "gain"]),
                "within": seconds <= GAIN_BUDGET and ours.error <= tolerance,
                "quad_seconds": statistics.median(times[name, "quad"]),
                "quad_difference": abs(results[name, "quad"] - ours.backward),
                "hermite_seconds": statistics.median(times[name, "hermite"]),
                "hermite_difference": abs(results[name, "hermite"] - ours.backward),
            }
        )
    return rows


def measure_grids(rounds: int, size: int) -> list[dict[str, Any]]:
    """One row per activation: q*, χ and depth scale on a grid, from nothing."""
    weight, bias = np.meshgrid(np.linspace(0.5, 4, size), np.linspace(0, 0.5, size))

    def solve(name: str) -> sk.MeanField:
        field = sk.MeanField(name, weight, bias)
        field.depth_scale()
        return field

    names = ("tanh", "erf", "hardtanh", "relu", "gelu", "selu")
    times: dict[str, list[float]] = {name: [] for name in names}
    rows = []
    for _ in range(rounds):
        for name in names:
            times[name].append(timed(solve, name)[0])
    for name in names:
        q = np.asarray(solve(name).fixed_point())
        live = np.flatnonzero((np.isfinite(q) & (q > 0)).ravel())[:: max(1, size * size // 500)]
        w, b, q = weight.ravel()[live], bias.ravel()[live], q.ravel()[live]
        residual = np.abs(w * sk.second_moment(name, q) + b - q) / q
        seconds = statistics.median(times[name])
        rows.append(
            {
                "activation": name,
                "points": size * size,
                "seconds": seconds,
                "fastest": min(times[name]),
                "largest_residual": float(residual.max()),
                "within": seconds <= GRID_BUDGET,
            }
        )
    return rows


def show(report: dict[str, Any]) -> None:
    console = Console(width=max(100, Console().width))
    mark = {True: "[green]yes", False: "[red]no"}
    table = Table(title=f"sk.gain at q = 1 (budget {1e3 * GAIN_BUDGET:.0f} ms)")
    for column in ("activation", "ms", "stated error", "budget", "within"):
        table.add_column(column, justify="left" if column == "activation" else "right")
    for column in ("quad ms", "quad off by", f"Hermite {HERMITE_NODES} off by"):
        table.add_column(column, justify="right", style="dim")
    for row in report["gains"]:
        table.add_row(
            row["activation"],
            f"{1e3 * row['seconds']:.1f}",
            f"{row['stated_error']:.0e}",
            f"{row['error_budget']:.0e}",
            mark[row["within"]],
            f"{1e3 * row['quad_seconds']:.1f}",
            f"{row['quad_difference']:.0e}",
            f"{row['hermite_difference']:.0e}",
        )
    console.print(table)
    table = Table(title=f"q*, χ and depth scale on a grid (budget {GRID_BUDGET:.0f} s)")
    for column in ("activation", "points", "seconds", "largest residual", "within"):
        table.add_column(column, justify="left" if column == "activation" else "right")
    for row in report["grids"]:
        table.add_row(
            row["activation"],
            f"{row['points']}",
            f"{row['seconds']:.2f}",
            f"{row['largest_residual']:.0e}",
            mark[row["within"]],
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.theory",
        description="Time and accuracy of gains and mean-field grids against their budgets.",
        epilog="Exit status 1 when a budget is missed. Other work on the machine slows the times.",
    )
    parser.add_argument("--rounds", type=int, default=9, help="repetitions (default: 9)")
    parser.add_argument("--size", type=int, default=100, help="side of the grid (default: 100)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.size < 2 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1 and --size at least 2")
    torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "stabilitykit": sk.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "rounds": arguments.rounds,
        "budgets": {"gain_seconds": GAIN_BUDGET, "grid_seconds": GRID_BUDGET},
    }
    sk.gain("relu")  # the first call pays for torch's lazy set-up
    report["gains"] = measure_gains(arguments.rounds)
    report["grids"] = measure_grids(max(1, arguments.rounds // 3), arguments.size)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["within"] for row in report["gains"] + report["grids"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
