"""What watching a training step costs: `sk.Probe` beside what else people use.

Three models, each trained by AdamW: the ratio to the bare step (median over rounds; in each round
every method runs between two runs of the bare step) and the peak of memory above the bare step's,
with what the method keeps from step to step. The probe's records, which are made when they are
asked for, are read after each step. "naive hooks" reads mean, std, norms and nan of every output,
gradient and parameter with `.item()`. Each peer from a package runs in a process of its own, beside
its own bare step: TorchLens leaves torch's functions replaced, which slows all that comes after it.
Budgets are for one thread, so that a second core is there for whatever else the machine does. Where
all cores share the model's products, the bare step is shorter and the hooks are not: a row of its
own says what the probe costs then. Peers that are not installed are named and left out:
`pip install -e .[bench]` brings them. On a GPU also the step's time and how often the host waits
for the device. Run from the repository root:

    python -m scripts.benchmarks.probe --rounds 9 --json probe.json
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import stabilitykit as sk
from scripts.benchmarks._methods import METHODS
from scripts.benchmarks._workloads import MODELS, Step, Training

RATIO = {"MLP 20×512": 1.20, "CNN, 8 layers": 1.10, "transformer, 4 layers": 1.05}  # mode "hybrid"
IDLE, MEMORY = 1.03, 2 * 2**20


def settle(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_memory(step: Step, device: str) -> int:
    """Largest sum of what torch allocated during one step, above where it started.

    Gradients of the step before must be gone: whether the profiler counts their end is uncertain.
    """
    if device != "cpu":
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        settle(device)
        return torch.cuda.max_memory_allocated() - start
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    total = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        total += change
        peak = max(peak, total)
    return peak


def synchronisations(step: Step) -> int:
    """How often the host waits for the device in one step."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def steady_heap() -> None:
    """Keep glibc from giving freed memory back and asking for it again, at random between steps.

    That costs the bare step up to a tenth of its time, which is not the methods' doing.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD


def timed(step: Step, steps: int, device: str) -> float:
    """Median seconds of a step, after one to warm up."""
    step()
    settle(device)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        settle(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def held_memory(method: str, training: Training, device: str) -> int:
    """Peak from before the method is set up to the end of its second step."""

    def run() -> None:
        with METHODS[method][0](training) as step:
            step()
            step()

    training.optimizer.zero_grad()
    return peak_memory(run, device)


def measure(name: str, methods: list[str], rounds: int, steps: int, device: str) -> dict[str, Any]:
    """One model: every round runs all methods, each between two runs of the bare step."""
    training = Training(MODELS[name], device)
    for _ in range(3):
        training.step()
    others = [method for method in methods if method != "bare"]
    memory = {method: held_memory(method, training, device) for method in methods}
    waits: dict[str, int] = {}
    times: dict[str, list[float]] = {method: [] for method in methods}
    ratios: dict[str, list[float]] = {method: [] for method in others}
    for turn in range(rounds):
        before = timed(training.step, steps, device)
        for method in others[turn % len(others) :] + others[: turn % len(others)]:
            with METHODS[method][0](training) as step:
                here = timed(step, steps, device)
                if turn == 0 and device != "cpu":
                    waits[method] = synchronisations(step)
            after = timed(training.step, steps, device)
            ratios[method].append(2 * here / (before + after))
            times[method].append(here)
            times["bare"].append(after)
            before = after
    rows = []
    for method in methods:
        more = memory[method] - memory["bare"]
        around = sorted(ratios.get(method, [1.0]))
        row: dict[str, Any] = {
            "method": method,
            "milliseconds": 1e3 * statistics.median(times[method]),
            "ratio": statistics.median(around),
            "ratio_quartiles": [around[len(around) // 4], around[-1 - len(around) // 4]],
            "ratio_of_fastest": min(times[method]) / min(times["bare"]),
            "extra_peak_bytes": more,
            "synchronisations": waits.get(method),
        }
        budget = {"probe, hybrid": RATIO[name], "probe, idle": IDLE}.get(method)
        if budget is not None:
            row |= {"budget": budget, "within": row["ratio"] <= budget and more <= MEMORY}
        rows.append(row)
    return {"model": name, "rows": rows}


def apart(method: str, name: str, arguments: argparse.Namespace, threads: int) -> list[Any]:
    """The bare step's row and one method's, measured in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, "-m", "scripts.benchmarks.probe", "--only", method]
        command += ["--model", name, "--threads", str(threads), "--json", str(path)]
        for option in ("rounds", "steps"):
            command += [f"--{option}", str(getattr(arguments, option))]
        # Exit status 1 is a budget that is missed, which the row says, too.
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode > 1:
            raise SystemExit(f"{' '.join(command)} failed")
        return json.loads(path.read_text(encoding="utf-8"))["models"][0]["rows"]


def with_threads(name: str, arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """The probe where more cores share the model's products, and none its hooks."""
    bare, row = apart("probe, hybrid", name, arguments, threads)
    row = {key: value for key, value in row.items() if key not in ("budget", "within")}
    row["method"] += f", {threads} threads"
    return row | {"bare_milliseconds": bare["milliseconds"]}


def show(report: dict[str, Any]) -> None:
    console = Console(width=max(100, Console().width))
    for model in report["models"]:
        bare_ms = model["rows"][0]["milliseconds"]
        table = Table(title=f"{model['model']}: bare step {bare_ms:.1f} ms")
        table.add_column("method")
        for column in ("of the bare step", "quartiles", "budget", "within", "MiB", "host waits"):
            table.add_column(column, justify="right")
        for row in model["rows"]:
            within = row.get("within")
            table.add_row(
                row["method"],
                f"{row['ratio']:.3f}",
                "–".join(f"{ratio:.2f}" for ratio in row["ratio_quartiles"]),
                f"{row['budget']:.2f}" if "budget" in row else "",
                "" if within is None else "[green]yes" if within else "[red]no",
                f"{row['extra_peak_bytes'] / 2**20:.2f}",
                "" if row["synchronisations"] is None else str(row["synchronisations"]),
            )
        console.print(table)
    for peer in report["left_out"]:
        console.print(f"Left out, since not installed: {peer}")


def versions() -> dict[str, str]:
    found = {"stabilitykit": sk.__version__, "python": platform.python_version()}
    for package in ("torch", "tensorboard", "wandb", "torchlens"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.probe",
        description="What watching a training step costs: sk.Probe beside what else people use.",
        epilog="Exit status 1 when a budget is missed. Other work on the machine slows the times.",
    )
    parser.add_argument("--rounds", type=int, default=9, help="repetitions (default: 9)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--ours", action="store_true", help="only the bare step and the probe")
    for option, known, said in (("only", list(METHODS)[1:], "method"), ("model", MODELS, "model")):
        chosen = f"only this {said}: {'; '.join(known)}"
        parser.add_argument(f"--{option}", choices=list(known), metavar=said.upper(), help=chosen)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.steps, arguments.threads) < 1:
        parser.error("--rounds, --steps and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    os.environ["KINETO_LOG_LEVEL"] = "6"  # the profiler reports its starts and stops
    steady_heap()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    methods = [m for m in METHODS if not arguments.ours or m == "bare" or m.startswith("probe")]
    if arguments.only:
        methods = ["bare", arguments.only]
    missing = [m for m in methods if METHODS[m][1] and not importlib.util.find_spec(METHODS[m][1])]
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        },
        "rounds": arguments.rounds,
        "budgets": {"hybrid": RATIO, "idle": IDLE, "extra_peak_bytes": MEMORY},
        "left_out": missing,
    }
    left = [method for method in methods if method not in missing]
    here = [m for m in left if not METHODS[m][1] or arguments.only]
    report["models"] = [
        measure(name, here, arguments.rounds, arguments.steps, device)
        for name in MODELS
        if arguments.model in (None, name)
    ]
    cores = os.cpu_count() or 1
    more = device == "cpu" and cores > arguments.threads and not (arguments.ours or arguments.only)
    for model in report["models"]:
        name, rows = model["model"], model["rows"]
        if more:
            ours = sum(row["method"].startswith(("bare", "probe")) for row in rows)
            rows.insert(ours, with_threads(name, arguments, cores))
        rows += [apart(m, name, arguments, arguments.threads)[1] for m in left if m not in here]
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    rows = [row for model in report["models"] for row in model["rows"]]
    return 0 if all(row.get("within", True) for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
