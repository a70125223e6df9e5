"""Rewrite the `#>` lines of a page to what its statements print."""

from __future__ import annotations

from .build import Built
from .compare import agree


def updated(built: Built) -> str:
    """The page's text with every disagreeing output replaced; agreeing lines stay as they are."""
    lines = built.page.lines
    units = [
        (unit, printed)
        for block, by_unit in zip(built.page.blocks, built.run.outputs, strict=True)
        for unit, printed in zip(block.units, by_unit, strict=True)
    ]
    # From the bottom up, so that the line numbers above stay true.
    for unit, printed in reversed(units):
        same = len(printed) == len(unit.expected) and all(map(agree, printed, unit.expected))
        if not same:
            fresh = [f"#> {line}".rstrip() for line in printed]
            lines[unit.end : unit.end + len(unit.expected)] = fresh
    return "\n".join(lines) + "\n"
