"""Inline figures and highlighted code in fewer bytes, looking the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from .drawings import SVG

_GLYPH = re.compile(
    r'<path id="[a-z0-9-]*?-(?P<glyph>DejaVu[\w-]*-[0-9a-f]+)" (?P<rest>[^>]*)/>\s*'
)
_GLYPH_USE = re.compile(r'href="#[a-z0-9-]*?-(DejaVu[\w-]*-[0-9a-f]+)"')
_PATH = re.compile(r'(?<=\bd=")[^"]*')
_PLACE = re.compile(r'translate\([^)]*\)| [xy]="[^"]*"')
_DECIMALS = re.compile(r"-?\d*\.\d+")
_TOKEN = re.compile(r"[A-Za-z]|-?\d*\.?\d+(?:e-?\d+)?")
# Names, signs and spaces have the colour of plain code.
_PLAIN = re.compile(r'<span class="(?:n|nn|o|p|w)">([^<]*)</span>')
_STYLE = re.compile(r"<defs>\s*<style[^>]*>\*\{stroke-linejoin[^<]*</style>\s*</defs>\s*")
_NUMBERS = {"M": 2, "L": 2, "Q": 4, "C": 6, "Z": 0}


def lighten(html: str) -> str:
    """A page's HTML with the same figures and code in fewer bytes.

    Glyph outlines are most of a small figure. All figures of a page draw from one set of them,
    which stands before the page's content.
    """
    glyphs: dict[str, str] = {}

    def light(match: re.Match[str]) -> str:
        svg, own = _lighten(match[0])
        glyphs.update(own)
        return svg

    html = _PLAIN.sub(r"\1", SVG.sub(light, html))
    if not glyphs:
        return html
    outlines = "".join(f'<path id="{name}" {glyphs[name]}/>' for name in sorted(glyphs))
    hidden = '<svg class="sk-glyphs" width="0" height="0" aria-hidden="true">'
    return f"{hidden}<defs>{outlines}</defs></svg>\n{html}"


@cache
def _lighten(svg: str) -> tuple[str, dict[str, str]]:
    """One figure, and the outlines that it draws from, by their names on the page."""
    glyphs = {match["glyph"]: match["rest"].strip() for match in _GLYPH.finditer(svg)}
    svg = _STYLE.sub("", svg)  # for all of the page; site.css has it for figures
    svg = _GLYPH_USE.sub(r'href="#\1"', _GLYPH.sub("", svg))
    svg = _PATH.sub(lambda match: relative(match[0]), svg)
    svg = _PLACE.sub(
        lambda match: _DECIMALS.sub(lambda n: _short(_tenths(n[0]) / 10), match[0]), svg
    )
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    return re.sub(r"<defs>\s*</defs>\s*", "", svg), glyphs


def relative(path: str) -> str:
    """A path's commands M, L, Q, C and Z to a tenth of a unit, each from where the last ended.

    Rounding does not add up: every point is rounded where it is, before differences are taken.
    A path with any other command is left as it is.
    """
    parts: list[str] = []
    here = start = (0, 0)  # in tenths
    last = ""
    for command, numbers in _commands(path):
        if _NUMBERS.get(command) != len(numbers):
            return path
        if command == "Z":
            parts.append("z")
            here, last = start, ""
            continue
        tenths = [_tenths(number) for number in numbers]
        points = list(zip(tenths[::2], tenths[1::2], strict=True))
        steps = [value for x, y in points for value in (x - here[0], y - here[1])]
        shown = "".join(("" if step < 0 else " ") + _short(step / 10) for step in steps)
        # After m, and after the same command, the letter may be left out.
        name = command.lower()
        parts.append(shown if name == last and name != "m" else name + shown.lstrip())
        here, last = points[-1], name
        if command == "M":
            start = here
    return "".join(parts)


def _commands(path: str) -> Iterator[tuple[str, list[str]]]:
    command, numbers = "", list[str]()
    for token in _TOKEN.findall(path):
        if token.isalpha():
            if command:
                yield command.upper() if command in "zZ" else command, numbers
            command, numbers = token, []
        else:
            numbers.append(token)
    if command:
        yield command.upper() if command in "zZ" else command, numbers


def _tenths(number: str) -> int:
    return round(10 * float(number))


def _short(number: float) -> str:
    """At most one decimal, no zero before the point."""
    shown = f"{number:.1f}".removesuffix(".0")
    return re.sub(r"^(-?)0\.", r"\1.", shown.replace("-0", "0") if shown == "-0" else shown)
