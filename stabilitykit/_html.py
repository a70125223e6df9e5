"""One HTML page that needs nothing else: text is escaped, figures take the page's colours."""

from __future__ import annotations

import re
from html import escape as escaped
from typing import Any

from stabilitykit._sentences import visible

# The colours in which figures are drawn, and the CSS variables that replace them: light, dark.
COLOURS = {
    "#1f2430": ("fg", "#1f2430", "#e8eaf0"),
    "#5b6270": ("muted", "#5b6270", "#a6adbb"),
    "#d5d9e0": ("line", "#d5d9e0", "#3a4150"),
    "#fefefe": ("bg", "#fefefe", "#14171f"),
    "#0b6bcb": ("c0", "#0b6bcb", "#6cb2ff"),
    "#c4500c": ("c1", "#c4500c", "#ff9d5c"),
}
_FG, _MUTED, _LINE, _BG, _C0, _C1 = COLOURS

# rcParams of the figures. Text stays text, which is smaller and can be read aloud.
STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _FG,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _FG,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _FG,
    "ytick.labelcolor": _FG,
    "legend.frameon": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.prop_cycle": f"cycler('color', ['{_C0}', '{_C1}'])",
}

_CSS = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
* { box-sizing: border-box }
body { background: var(--bg); color: var(--fg); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 60rem; padding: 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
code { background: color-mix(in srgb, var(--fg) 9%, transparent); border-radius: .2rem;
  overflow-wrap: anywhere; padding: 0 .2rem }
article { border: 1px solid var(--line); border-left: .3rem solid var(--c1); border-radius: .3rem;
  margin: .8rem 0; padding: .2rem 1rem }
article.warning { border-left-color: var(--c0) }
h3 { font-size: 1rem; margin: .5rem 0; overflow-wrap: anywhere }
dl { display: grid; gap: .1rem .8rem; grid-template-columns: max-content 1fr; margin: .5rem 0 }
dt, caption, figcaption { color: var(--muted) } dd { margin: 0; overflow-wrap: anywhere }
a { color: var(--c0) } figure { margin: 1rem 0 } svg { height: auto; max-width: 100% }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .85rem; width: 100% }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .5rem; text-align: right }
th.word, td.word, caption { text-align: left }
td.word { max-width: 18rem; min-width: 5.5rem; overflow-wrap: anywhere }
td.word:first-child { min-width: 8rem }
"""


def escape(text: str, quote: bool = True) -> str:
    """Text as HTML shows it; what is no printable character stands as its escape.

    Examples:
        >>> escape("<b>" + chr(27))
        '&lt;b&gt;\\\\x1b'
    """
    return escaped(visible(text), quote=quote)


def themed(svg: str, name: str, alt: str) -> str:
    """A figure for inlining: the page's colours, ids of its own, its alt text as label.

    Args:
        svg: as matplotlib writes it, in the colours of `STYLE`.
        name: prefix of its ids, of letters and hyphens.
        alt: what a blind reader needs.
    """
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r' (?:xmlns|xmlns:xlink|version)="[^"]*"', "", svg)
    opening = f'<svg role="img" aria-label="{escape(alt, quote=True)}"'
    svg = svg.replace("<svg", opening, 1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'\b(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, (variable, _, _) in COLOURS.items():
        svg = re.sub(colour, f"var(--{variable})", svg, flags=re.IGNORECASE)
    return svg.strip()


def prose(text: str) -> str:
    """Escaped text, with `code` in backticks.

    Examples:
        >>> prose("Call `f(x<1)`.")
        'Call <code>f(x&lt;1)</code>.'
    """
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def table(caption: str, head: list[str], rows: list[list[str]], words: int = 1) -> str:
    """A table that scrolls sideways on its own; its first columns are words, not numbers."""
    kind = [' class="word"' if column < words else "" for column in range(len(head))]
    top = "".join(
        f'<th scope="col"{k}>{escape(cell)}</th>' for k, cell in zip(kind, head, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kind, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def article(title: str, kind: str, entries: dict[str, str]) -> str:
    """One finding; an entry that is an address becomes a link, which asks for nothing by itself."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{_linked(v)}</dd>" for k, v in entries.items())
    return f'<article class="{escape(kind)}"><h3>{prose(title)}</h3><dl>{items}</dl></article>'


def _linked(text: str) -> str:
    if re.fullmatch(r"https?://\S+", text):
        return f'<a href="{escape(text)}">{escape(text)}</a>'
    return prose(text)


def figure(svg: str, caption: str) -> str:
    """A themed figure with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def page(title: str, body: str) -> str:
    """The whole document."""
    light, dark = (
        " ".join(f"--{entry[0]}: {entry[column]};" for entry in COLOURS.values())
        for column in (1, 2)
    )
    css = _CSS.replace("LIGHT", light).replace("DARK", dark)
    # The policy forbids every request, whatever a name in the model contains.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )
