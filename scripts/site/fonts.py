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

_FACE = re.compile(r"@font-face\s*\{[^}]*\}")
_URL = re.compile(r"url\(([\w/.-]+\.woff2)\)")

# What cuts a font: a font kept by another cutter is not taken.
_HOW = version("fonttools").encode() + Path(__file__).read_bytes()


def embed_fonts(sheet: Path, characters: Mapping[str, Iterable[str]], folder: Path) -> None:
    """Write a style sheet's fonts into it, each with the glyphs that are shown and no others.

    A font that comes after the text moves the text when it comes; these come with the sheet.

    Args:
        sheet: a style sheet that names WOFF2 files beside or below it.
        characters: by a font file's stem, with those of the other fonts under the empty name.
        folder: where fonts once cut are kept.
    """
    taken = set()

    def embedded(face: re.Match[str]) -> str:
        found = _URL.search(face[0])
        if not found:
            return face[0]
        path = sheet.parent / found[1]
        taken.add(path)
        shown = characters.get(path.stem, characters[""])
        content, text = path.read_bytes(), "".join(sorted(set(shown)))
        key = sha256(content + text.encode() + _HOW).hexdigest()
        cut = cache.load_json(folder, key)
        if cut is None:
            cut = base64.b64encode(subset_font(content, text)).decode()
            cache.store_json(folder, key, cut)
        # A font of no glyphs is none: browsers refuse it, aloud.
        return face[0].replace(found[0], f"url(data:font/woff2;base64,{cut})") if cut else ""

    written = _FACE.sub(embedded, sheet.read_text(encoding="utf-8"))
    cache.write_whole(sheet, written.encode())
    for path in taken:
        path.unlink()


def subset_font(content: bytes, characters: str) -> bytes:
    """A WOFF2 font with the glyphs of these characters alone; nothing when it has none of them."""
    from fontTools import subset

    options = subset.Options(flavor="woff2", hinting=False, layout_features=["*"])
    font = subset.load_font(io.BytesIO(content), options)
    if not font.getBestCmap().keys() & {ord(character) for character in characters}:
        return b""
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=characters)
    subsetter.subset(font)
    made = io.BytesIO()
    subset.save_font(font, made, options)
    return made.getvalue()
