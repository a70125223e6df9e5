"""A notebook kept as a percent script, read line by line as the Markdown page that it is."""

from __future__ import annotations

import re

from .problems import PageError, PageErrors

CONT = "<!--pytest-codeblocks:cont-->"
_CELL = re.compile(r"^# ?%%(?P<kind>.*)$")


def script_lines(text: str, name: str) -> list[str]:
    """The script's lines as those of a page, each in its place, so that line numbers hold.

    A `# %%` line opens a fence, and the blank line that ends a cell closes it or carries the `cont`
    comment. So text stands between any two code cells, as in a lesson it should.

    Args:
        text: a script in jupytext's percent format.
        name: what messages call it, such as `docs/clinic/digits.py`.

    Raises:
        PageErrors: lines that no cell can hold.
    """
    lines = text.splitlines()
    made: list[str] = []
    errors: list[PageError] = []
    kind, codes = "header", 0
    for number, line in enumerate(lines, 1):
        cell = _CELL.match(line)
        if cell is None:
            if kind != "code" and line and not line.startswith("#"):
                errors.append(PageError(name, number, f"{line!r} stands in no code cell"))
            made.append(line if kind == "code" else re.sub(r"^# ?", "", line))
            continue
        previous, kind = kind, "code" if not cell["kind"].strip() else "markdown"
        if kind == "markdown" and cell["kind"].strip() != "[markdown]":
            errors.append(PageError(name, number, f"{line!r} is neither # %% nor # %% [markdown]"))
        if made and made[-1]:
            errors.append(PageError(name, number, "a blank line ends the cell before this one"))
        elif previous == kind == "code":
            errors.append(PageError(name, number, "a markdown cell stands between two code cells"))
        elif previous == "code":
            made[-1] = "```"
        elif kind == "code" and codes:
            made[-1] = CONT
        codes += kind == "code"
        made.append("```python" if kind == "code" else "")
    if errors:
        raise PageErrors(errors)
    return [*made, "```"] if kind == "code" else made
