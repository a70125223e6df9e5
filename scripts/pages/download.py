"""A page as one script and one notebook, made from its blocks and prose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import PurePosixPath

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from .build import Built
from .parse import CONT, Block, FigureSpec, Page

_MACHINERY = (CONT, "<!--covers:")


def downloads(built: Built) -> dict[str, bytes]:
    """The files to offer beside a page, `gain.py` and `gain.ipynb`; none without code."""
    if not built.page.blocks:
        return {}
    stem = PurePosixPath(built.page.name).stem
    made = notebook(built.page)
    return {
        f"{stem}.py": jupytext.writes(made, fmt="py:percent").encode(),
        f"{stem}.ipynb": nbformat.writes(made).encode(),
    }


def notebook(
    page: Page,
    code: Callable[[Block], nbformat.NotebookNode] = lambda block: new_code_cell(
        block.code.rstrip("\n")
    ),
    caption: Callable[[FigureSpec], str] = lambda figure: figure.caption,
) -> nbformat.NotebookNode:
    """A page as a notebook, with the same cell ids every time.

    Args:
        page: the page.
        code: makes a block's cell.
        caption: the text that stands where the page shows a figure.
    """
    blocks = {block.line: block for block in page.blocks}
    prose = dict(page.prose)
    captions = {b.figure.line: b.figure for b in page.blocks if b.figure}
    hidden = {n for f in captions.values() for n in range(f.line, f.end + 1)}
    cells: list[nbformat.NotebookNode] = []
    text: list[str] = []

    def flush() -> None:
        said = "\n".join(text).strip()
        text.clear()
        if said:
            cells.append(new_markdown_cell(said))

    for number, line in enumerate(page.markdown, 1):
        if number in blocks:
            flush()
            cells.append(code(blocks[number]))
        elif number in captions:
            text.append(caption(captions[number]))
        elif number in prose and number not in hidden and not line.startswith(_MACHINERY):
            text.append(line)
    flush()
    for index, cell in enumerate(cells):
        cell["id"] = hashlib.sha256(f"{page.name}:{index}".encode()).hexdigest()[:8]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})
