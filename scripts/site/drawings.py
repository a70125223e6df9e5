"""Drawings stay out of the way while Markdown works, which would parse their every element."""

from __future__ import annotations

import re

SVG = re.compile(r'<svg class="sk-svg".*?</svg>', re.S)
_PLACE = re.compile(r'<svg id="sk-drawing-(\d+)"></svg>')


def take_out(markdown: str) -> tuple[str, list[str]]:
    """A page with an empty element in place of each drawing, and the drawings."""
    drawings: list[str] = []

    def place(match: re.Match[str]) -> str:
        drawings.append(match[0])
        return f'<svg id="sk-drawing-{len(drawings) - 1}"></svg>'

    return SVG.sub(place, markdown), drawings


def put_back(html: str, drawings: list[str]) -> str:
    """The page that Markdown made, with its drawings."""
    return _PLACE.sub(lambda match: drawings[int(match[1])], html)
