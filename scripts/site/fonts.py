"""Fonts cut down to the characters that a site shows."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from scripts.pages.cache import write_whole


def subset_font(path: Path, characters: Iterable[str]) -> None:
    """Rewrite a WOFF2 file with the glyphs of these characters alone."""
    write_whole(path, _subset(path.read_bytes(), "".join(sorted(set(characters)))))


@cache
def _subset(content: bytes, characters: str) -> bytes:
    from fontTools import subset

    options = subset.Options(flavor="woff2", hinting=False, layout_features=["*"])
    font = subset.load_font(io.BytesIO(content), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=characters)
    subsetter.subset(font)
    made = io.BytesIO()
    subset.save_font(font, made, options)
    return made.getvalue()
