"""A built page as the Markdown that a site generator shows."""

from __future__ import annotations

from .build import Built, Figure
from .coverage import covered
from .parse import CONT


def render(built: Built) -> str:
    """The page with its figures inlined, its claims anchored and its machinery removed."""
    page, lines = built.page, built.page.lines
    figures = {figure.name: figure for figure in built.figures}
    replaced: dict[int, str] = {}
    dropped: set[int] = set()
    for entry in covered(page)[0]:
        anchor = f'<a id="{entry.item}" class="sk-claim"></a>'
        replaced[entry.comment] = replaced.get(entry.comment, "") + anchor
    for block in page.blocks:
        if block.line > 1 and lines[block.line - 2] == CONT:
            dropped.add(block.line - 1)
        if block.claims:
            anchors = "".join(
                f'<a id="{claim.anchor}" class="sk-claim"></a>' for claim in block.claims
            )
            replaced[block.line] = f"{anchors}\n\n{lines[block.line - 1]}"
        if block.figure:
            dropped.update(range(block.figure.line, block.figure.end + 1))
            replaced[block.figure.line] = _html(figures[block.figure.name])
    shown = (
        replaced.get(n, line)
        for n, line in enumerate(lines, 1)
        if n in replaced or n not in dropped
    )
    return "\n".join(shown) + "\n"


def _html(figure: Figure) -> str:
    return (
        f'\n<figure class="sk-figure" id="figure-{figure.name}" markdown="1">\n'
        f'<div class="sk-plot" tabindex="0" role="group" aria-label="Figure, scrollable">'
        f"{figure.themed_svg}</div>\n"
        f'<figcaption markdown="span">{figure.caption}</figcaption>\n</figure>\n'
    )
