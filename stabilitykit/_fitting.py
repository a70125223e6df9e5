"""A table that a narrow terminal can hold: it leaves out columns instead of the ends of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table

# Convention: what the first column, which may be wrapped, gets at least.
NAME = 12


class Fitting(Table):
    """A rich table whose first column is wrapped, and of whose others some can be done without.

    Args:
        dispensable: headers of the columns to leave out where there is no room for all, the first
            one first; a line under the table then names them.
        **options: those of `Table`.

    Examples:
        >>> table = Fitting(["spare"], box=None)
        >>> for header in ("name", "spare", "number"):
        ...     table.add_column(header, no_wrap=True)
        >>> table.add_row("a", "0.123456789", "7")
        >>> Console(width=16).print(table)  # doctest: +NORMALIZE_WHITESPACE
        name  number
        a     7
        no room: spare
    """

    def __init__(self, dispensable: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.dispensable = tuple(dispensable)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        gone = 0
        while gone < len(self.dispensable):
            table = self._without(self.dispensable[:gone], NAME)
            wide = options.update(max_width=10_000)
            if Measurement.get(console, wide, table).maximum <= options.max_width:
                break
            gone += 1
        table = self._without(self.dispensable[:gone])
        if gone:
            table.caption = f"no room: {', '.join(self.dispensable[:gone])}"
            table.caption_justify = "left"
        yield from table.__rich_console__(console, options)

    def _without(self, headers: Sequence[str], name: int | None = None) -> Table:
        first, *others = self.columns
        columns: list[Column] = [first, *(c for c in others if c.header not in headers)]
        table = Table(title=self.title, box=self.box, padding=self.padding)
        for column in columns:
            table.add_column(
                column.header,
                justify=column.justify,
                no_wrap=column.no_wrap,
                overflow=column.overflow,
                max_width=name if column is first else None,
            )
        for row in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*row)
        return table
