"""What watching a training costs, as a Markdown table of the benchmark's own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def costs_table(measured: Path) -> str:
    """One row a method, two columns a model: the time of a step and the memory that it adds.

    Args:
        measured: what `python -m scripts.benchmarks.probe --json` wrote.
    """
    report = json.loads(measured.read_text(encoding="utf-8"))
    models = report["models"]
    rows: dict[str, dict[str, Any]] = {}
    for model in models:
        for row in model["rows"]:
            rows.setdefault(row["method"], {})[model["model"]] = row
    names = [model["model"] for model in models]
    lines = [["", *(cell for name in names for cell in (name, "MiB"))]]
    lines.append(["---", *["--:"] * (2 * len(names))])
    lines += [
        [method, *(cell for name in names for cell in _cells(of.get(name)))]
        for method, of in rows.items()
    ]
    bare = ", ".join(f"{model['rows'][0]['milliseconds']:.1f}" for model in models)
    faster = [row for row in rows.values() if any("bare_milliseconds" in r for r in row.values())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    said = (
        f"Median time of a step, as a multiple of the bare step's ({bare} ms). MiB: by how much "
        "the peak of the memory that torch allocates is higher than in the bare step; what other "
        "libraries allocate is not counted."
    )
    for of in faster:
        one = next(iter(of.values()))
        times = ", ".join(f"{of[name]['bare_milliseconds']:.1f}" for name in names if name in of)
        said += f" In the row “{one['method']}” the bare step takes {times} ms."
    return f"{table}\n\n{said} {_where(report)}\n"


def _cells(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:  # not measured on this model
        return "", ""
    return f"{row['ratio']:.2f}", f"{row['extra_peak_bytes'] / 2**20:.1f}"


def _where(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"Measured on {report['date'][:10]}, {machine['device']}, {machine['threads']} thread, "
        f"{report['rounds']} rounds in turn with the bare step; {versions}."
    )
