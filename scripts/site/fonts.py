"""Fonts cut down to the characters that a site shows."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from scripts.pages import cache

_URL = re.compile(r"url\(([\w/.-]+\.woff2)\)")


def embed_fonts(sheet: Path, characters: Mapping[str, Iterable[str]], folder: Path) -> None:
    """Write a style sheet's fonts into it, each with the glyphs that are shown and no others.

    A font that comes after the text moves the text when it comes; these come with the sheet.

    Args:
        sheet: a style sheet that names WOFF2 files beside or below it.
        characters: by a font file's stem, with those of the other fonts under the empty name.
        folder: where fonts once cut are kept.
    """
    taken = set()

    def embedded(match: re.Match[str]) -> str:
        path = sheet.parent / match[1]
        taken.add(path)
        shown = characters.get(path.stem, characters[""])
        content, text = path.read_bytes(), "".join(sorted(set(shown)))
        key = sha256(content + text.encode() + version("fonttools").encode()).hexdigest()
        cut = cache.load_json(folder, key)
        if cut is None:
            cut = base64.b64encode(subset_font(content, text)).decode()
            cache.store_json(folder, key, cut)
        return f"url(data:font/woff2;base64,{cut})"

    cache.write_whole(sheet, _URL.sub(embedded, sheet.read_text(encoding="utf-8")).encode())
    for path in taken:
        path.unlink()


def subset_font(content: bytes, characters: str) -> bytes:
    """A WOFF2 font with the glyphs of these characters alone."""
    from fontTools import subset

    options = subset.Options(flavor="woff2", hinting=False, layout_features=["*"])
    font = subset.load_font(io.BytesIO(content), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=characters)
    subsetter.subset(font)
    made = io.BytesIO()
    subset.save_font(font, made, options)
    return made.getvalue()
