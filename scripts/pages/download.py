"""A page as one script and one notebook, made from its blocks and prose."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

import jupytext
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from .build import Built
from .parse import CONT, Page

_MACHINERY = (CONT, "<!--covers:")


def downloads(built: Built) -> dict[str, bytes]:
    """The files to offer beside a page, `gain.py` and `gain.ipynb`; none without code."""
    if not built.page.blocks:
        return {}
    stem = PurePosixPath(built.page.name).stem
    notebook = _notebook(built.page)
    return {
        f"{stem}.py": jupytext.writes(notebook, fmt="py:percent").encode(),
        f"{stem}.ipynb": nbformat.writes(notebook).encode(),
    }


def _notebook(page: Page):
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

    for number, line in enumerate(page.lines, 1):
        if number in blocks:
            flush()
            cells.append(new_code_cell(blocks[number].code.rstrip("\n")))
        elif number in captions:
            text.append(captions[number].caption)
        elif number in prose and number not in hidden and not line.startswith(_MACHINERY):
            text.append(line)
    flush()
    for index, cell in enumerate(cells):
        cell["id"] = hashlib.sha256(f"{page.name}:{index}".encode()).hexdigest()[:8]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})
