"""Fonts cut down to the characters that a site shows."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from .cache import write_whole


def subset_font(path: Path, characters: Iterable[str]) -> None:
    """Rewrite a WOFF2 file with the glyphs of these characters alone."""
    from fontTools import subset

    options = subset.Options(flavor="woff2", hinting=False, layout_features=["*"])
    font = subset.load_font(str(path), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(set(characters))))
    subsetter.subset(font)
    made = io.BytesIO()
    subset.save_font(font, made, options)
    write_whole(path, made.getvalue())
