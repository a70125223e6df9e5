"""A page's HTML as readers see it: what is code told from what is output, and what failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from scripts.pages import PageError

from .lighten import lighten

_OUTPUT = re.compile(r'<span class="c1">(#&gt;.*?)</span>')
_CLAIM = re.compile(r'<span class="c1"># Claim: .*?</span>(?:\n<span class="c1"># .*?</span>)*')


def mend(html: str) -> str:
    """Mark outputs and claims in code, let tables scroll, and drop what no reader sees."""
    html = _OUTPUT.sub(r'<span class="sk-out">\1</span>', html)
    html = _CLAIM.sub(r'<span class="sk-claimed">\g<0></span>', html)
    html = html.replace("<table>", '<div class="sk-table"><table class="sk-rows">')
    html = html.replace("</table>", "</table></div>")
    html = re.sub(r"<th([^>]*)></th>", r"<td\1></td>", html)  # a corner is no header
    return lighten(html)


def failed(errors: Sequence[PageError]) -> str:
    """What a live server shows above a page that fails."""
    lines = "".join(f"<li><code>{escape(str(error))}</code></li>" for error in errors)
    title = '<p class="admonition-title">This page fails</p>'
    return f'<div class="admonition failure">{title}<ul>{lines}</ul></div>\n\n'
