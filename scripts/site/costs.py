"""What watching a training costs, as a Markdown table of the benchmark's own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def costs_table(measured: Path) -> str:
    """One row a method, one column a model: the step's time as a multiple of the bare step's.

    Args:
        measured: what `python -m scripts.benchmarks.probe --json` wrote.
    """
    report = json.loads(measured.read_text(encoding="utf-8"))
    models = report["models"]
    ratios: dict[str, list[float]] = {}
    for model in models:
        for row in model["rows"]:
            ratios.setdefault(row["method"], []).append(row["ratio"])
    head = ["", *(f"{m['model']}" for m in models)]
    lines = [head, ["---", *["--:"] * len(models)]]
    lines += [[method, *(f"{r:.2f}" for r in ratios[method])] for method in ratios]
    bare = ", ".join(f"{model['rows'][0]['milliseconds']:.1f}" for model in models)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    said = f"Median time of a step, as a multiple of the bare step's ({bare} ms)."
    return f"{table}\n\n{said} {_where(report)}\n"


def _where(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"Measured on {report['date'][:10]}, {machine['device']}, {machine['threads']} thread, "
        f"{report['rounds']} rounds with all methods in turn; {versions}."
    )
