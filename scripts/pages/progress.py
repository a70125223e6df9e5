"""Progress of a build on stderr: a bar for people, plain lines for logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .build import Report


@contextmanager
def progress(total: int) -> Iterator[Report]:
    """Yield a `report` for `build` that shows which pages run and how long they took."""
    console = Console(stderr=True)
    if not console.is_terminal:

        def plain(name: str, state: str, seconds: float) -> None:
            if state in {"ran", "failed"}:
                print(f"{name}: {state} in {seconds:.1f} s", file=sys.stderr, flush=True)

        yield plain
        return
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("pages", total=total)
        running: dict[str, None] = {}

        def show(name: str, state: str, seconds: float) -> None:
            if state == "running":
                running[name] = None
            else:
                running.pop(name, None)
                bar.advance(task)
                if state != "cached":
                    bar.console.print(f"{name}: {state} in {seconds:.1f} s", highlight=False)
            bar.update(task, description=", ".join(running))

        yield show
