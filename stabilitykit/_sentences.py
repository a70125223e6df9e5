"""A finding in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.text import Text

from stabilitykit._findings import Finding

SEVERITIES = {
    "error": "error: mend this before you train",
    "warning": "warning: training may be slow, or end worse than it could",
}


def shown(value: float | str | None) -> str:
    """A measured or expected value in few digits.

    Examples:
        >>> shown(0.000123456), shown("none"), shown(float("inf")), shown(None)
        ('0.000123', 'none', 'inf', '')
    """
    return "" if value is None else value if isinstance(value, str) else f"{value:.3g}"


def visible(text: str) -> str:
    """A text whose characters all can be seen: the others, which may steer a terminal, as escapes.

    Examples:
        >>> visible("encoder" + chr(27) + "[31m, größe")
        'encoder\\\\x1b[31m, größe'
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def compared(one: Finding) -> str:
    """What was measured, what a healthy model has, and what theory predicts for these weights.

    Examples:
        >>> from stabilitykit._findings import finding
        >>> compared(finding("vanishing-signal", "0", 3.1e-05, 1.0, "Do `this`."))
        'measured 3.1e-05, expected 1'
    """
    said = f"measured {shown(one.measured)}, expected {shown(one.expected)}"
    theory = f", predicted for these weights {shown(one.predicted)}"
    return said if one.predicted is None else said + theory


def explanation(one: Finding) -> str:
    """Whether the scale of the weights explains it; nothing where theory has no prediction."""
    return {
        None: "",
        True: "The scale of weights and biases explains it.",
        False: "Something else than the scale of weights and biases does it: rescaling alone may "
        "not cure it.",
    }[one.explained]


def read(one: Finding) -> str:
    """Where its page is: on the site, of which STABILITYKIT_SITE has the address, or its source.

    Examples:
        >>> from stabilitykit._findings import finding
        >>> read(finding("dead-units", "0", 1.0, 0.6, "Do `this`."))
        "docs/signal/seeds.md in stabilitykit's repository"
    """
    if site := os.environ.get("STABILITYKIT_SITE"):
        return f"{site.rstrip('/')}/{one.page}"
    return f"docs/{one.page.rstrip('/')}.md in stabilitykit's repository"


class Indented:
    """A line of text under a heading; where it is wrapped, what follows is indented as well."""

    def __init__(self, line: str, style: str = "", indent: int = 2) -> None:
        self.line, self.indent = Text(line, style=style), indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        width = max(options.max_width - self.indent, 1)
        kept: Any = {"overflow": options.overflow, "no_wrap": options.no_wrap}
        for line in self.line.wrap(console, width, **kept):
            line.rstrip()
            yield Text(" " * self.indent) + line


def steps(remedy: str) -> list[Indented]:
    """A remedy's words, and each of its statements on a line of its own, to be copied."""
    words, *rest = remedy.split("`")
    lines = [Indented(visible(words.strip()))]
    for place, part in enumerate(rest):
        if place % 2:  # what stands between two statements
            lines += [Indented(visible(part.strip()))] if part.strip(" .") else []
        else:
            lines += [Indented(visible(call), indent=4) for call in part.split("; ")]
    return lines
