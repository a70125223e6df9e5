r"""Formulas at build time: KaTeX, run in an embedded JavaScript engine.

The Markdown extension leaves `\(…\)` and `\[…\]` in elements of class arithmatex; readers get HTML
for the eye and MathML for the ear, and no script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from html import escape, unescape
from pathlib import Path

_KATEX = Path(__file__).parent / "katex" / "katex.min.js"
_SPAN = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">'
    r"\s*\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]\s*</(?P=tag)>",
    re.S,
)
# What readers see of a formula, its single symbols, and the fonts that only these classes use.
_VISIBLE = re.compile(r'<span class="katex-html".*?</sk-formula>', re.S)
_LEAF = re.compile(r'<span class="([^"]*)"[^>]*>([^<]+)</span>')
_LEAF_FONTS = {
    "KaTeX_AMS-Regular": {"amsrm", "mathbb", "textbb"},
    "KaTeX_Caligraphic-Regular": {"mathcal"},
    "KaTeX_Main-Bold": {"mathbf", "textbf"},
    "KaTeX_Main-Italic": {"mathit", "textit"},
    "KaTeX_Math-BoldItalic": {"boldsymbol"},
    "KaTeX_Math-Italic": {"mathnormal"},
    "KaTeX_Typewriter-Regular": {"mathtt", "texttt"},
}
# KaTeX's classes for the fonts that the site does not ship: Fraktur, SansSerif, Script
_NO_FONT = re.compile(r'class="[^"]*\b((?:math|text)(?:bold)?(?:frak|sf|itsf|scr))\b')
_BARE = re.compile(r"\\\((.+?)\\\)", re.S)
# Strict: what LaTeX would refuse is refused, since it is most likely a slip. The error is caught
# in JavaScript, where its message has no stack.
_RENDER = """
function render(formulas) {
  return JSON.stringify(JSON.parse(formulas).map(function ([tex, display]) {
    try {
      return {html: katex.renderToString(tex, {
        displayMode: display, strict: "error", throwOnError: true})};
    } catch (error) {
      return {error: error.rawMessage || error.message};
    }
  }));
}
"""
_answers: dict[tuple[str, bool], dict[str, str]] = {}


class FormulaError(ValueError):
    """A formula that KaTeX refuses."""

    def __init__(self, tex: str, reason: str) -> None:
        self.tex, self.reason = tex, reason
        super().__init__(f"formula {tex!r}: {reason}")


@cache
def _engine():
    import quickjs

    engine = quickjs.Context()
    engine.eval(_KATEX.read_text(encoding="utf-8"))
    engine.eval(_RENDER)
    return engine.get("render")


def _ask(formulas: Iterable[tuple[str, bool]]) -> None:
    """Have KaTeX answer all at once: one call costs as much as a few formulas."""
    if asked := [formula for formula in dict.fromkeys(formulas) if formula not in _answers]:
        _answers.update(zip(asked, json.loads(_engine()(json.dumps(asked))), strict=True))


def render_formula(tex: str, *, display: bool = False) -> str:
    r"""A formula as HTML with MathML.

    Args:
        tex: LaTeX without its delimiters, such as `\sigma_w^2`.
        display: True for a formula on its own line.

    Raises:
        FormulaError: KaTeX cannot read it, or LaTeX would not.
    """
    tex = tex.strip()
    _ask([(tex, display)])
    result = _answers[tex, display]
    if "error" in result:
        raise FormulaError(tex, result["error"])
    if lacking := _NO_FONT.search(result["html"]):
        raise FormulaError(tex, f"the site has no font for \\{lacking[1]}")
    # The source is for editors that copy formulas; no reader sees or hears it.
    return re.sub(r"<annotation.*?</annotation>", "", result["html"])


def render_formulas(html: str, refuse: Callable[[FormulaError], None]) -> str:
    """Replace the formulas in a page's HTML.

    Args:
        html: the page as the Markdown extension left it.
        refuse: called for each formula that cannot be rendered; its source is then shown in place.
    """

    def replaced(match: re.Match[str]) -> str:
        # An element that never nests in itself, so that it can be found as a whole.
        formula = f"<sk-formula>{_rendered(*_asked(match), refuse)}</sk-formula>"
        return f'<{match["tag"]} class="sk-math">{formula}</{match["tag"]}>'

    _ask(map(_asked, _SPAN.finditer(html)))
    return _SPAN.sub(replaced, html)


def _asked(match: re.Match[str]) -> tuple[str, bool]:
    return unescape(match["tex"]).strip(), match["open"] == "["


def render_bare(text: str, refuse: Callable[[FormulaError], None]) -> str:
    r"""Replace `\(…\)` in text that lost its markup, such as a heading in a table of contents."""
    return _BARE.sub(lambda match: _rendered(unescape(match[1]), False, refuse), text)


def characters(html: str) -> dict[str, set[str]]:
    """The characters that the formulas of a rendered page show, by the font that shows them.

    Fonts not named share what stands under the empty name.
    """
    shown: dict[str, set[str]] = {font: set() for font in ("", *_LEAF_FONTS)}

    def note(leaf: re.Match[str]) -> str:
        classes, text = set(leaf[1].split()), unescape(leaf[2])
        own = [font for font, signs in _LEAF_FONTS.items() if signs & classes]
        for font in own:
            shown[font].update(text)
        return "" if own else text

    for formula in _VISIBLE.findall(html):
        shown[""].update(unescape(re.sub(r"<[^>]*>", "", _LEAF.sub(note, formula))))
    return shown


def _rendered(tex: str, display: bool, refuse: Callable[[FormulaError], None]) -> str:
    try:
        return render_formula(tex, display=display)
    except FormulaError as error:
        refuse(error)
        return f"<code>{escape(error.tex)}</code>"
