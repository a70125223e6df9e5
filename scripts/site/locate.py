"""Where on a page something stands that was refused after Markdown had lost its line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_OPENING, _CLOSING = r"(?:\$\$?|\\\(|\\\[)\s*", r"\s*(?:\$|\\\)|\\\])"


def formula_line(tex: str, paths: Sequence[Path]) -> tuple[Path, int]:
    """The first of some files that holds a formula, and its line there."""
    words = r"\s+".join(map(re.escape, tex.split()))
    texts = [(path, path.read_text(encoding="utf-8")) for path in paths]
    for pattern in (f"{_OPENING}({words}){_CLOSING}", f"({words})"):
        for path, text in texts:
            if found := re.search(pattern, text):
                return path, _line(text, found.start(1))
    return paths[0], 1


def link_line(target: str, text: str) -> int:
    """The line of the first link to a target."""
    target = re.escape(target)
    for pattern in (rf"(?:\]\(|\]:|\bhref=)\s*[<\"']?({target})[>\"')\s]", f"({target})"):
        if found := re.search(pattern, text):
            return _line(text, found.start(1))
    return 1


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
