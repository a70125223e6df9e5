"""Style sheets cut down to what a site can show."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from pathlib import Path

_CLASS = re.compile(r"\.(-?[A-Za-z_][\w-]*)")
_TOKEN = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|url\([^)"']*\)|/\*.*?\*/|[{};]""", re.S)
_GROUPS = ("@media", "@supports", "@layer", "@container")


def trim_site(site: Path) -> None:
    """Cut a built site's style sheets down to what its pages and scripts can show."""
    words: set[str] = set()
    for path in site.rglob("*.html"):
        words |= html_words(path.read_text(encoding="utf-8"))
    for path in site.glob("assets/**/*.js"):
        words |= words_of(path.read_text(encoding="utf-8"))
    sheets = {path: path.read_text(encoding="utf-8") for path in site.glob("assets/**/*.css")}
    # One sheet sets the colours that another uses.
    words |= {name for css in sheets.values() for name in re.findall(r"var\(\s*(--[\w-]+)", css)}
    for path, css in sheets.items():
        path.write_text(trim(css, words), encoding="utf-8")


def trim(css: str, words: Set[str]) -> str:
    """Drop rules for classes that occur nowhere, and custom properties that nothing then uses.

    Args:
        css: the style sheet.
        words: the classes and custom properties of the site's HTML, and all words of its scripts.
    """
    css = _TOKEN.sub(lambda token: "" if token[0].startswith("/*") else token[0], css)
    kept = _rules(css, words)
    while True:
        used = set(re.findall(r"var\(\s*(--[\w-]+)", kept)) | words
        # A declaration ends at a semicolon or brace that is in no string and no url().
        shorter = "".join(
            part
            for part in _declarations(kept)
            if not (found := re.match(r"\s*(--[\w-]+)\s*:", part)) or found[1] in used
        )
        if shorter == kept:
            return kept
        kept = shorter


def html_words(html: str) -> set[str]:
    """The classes and custom properties of a page, and all words of the scripts within it."""
    classes = re.findall(r"\sclass=(?:\"([^\"]*)\"|'([^']*)'|([^\s>\"']+))", html)
    words = {word for found in classes for value in found for word in value.split()}
    for script in re.findall(r"<script\b.*?</script>", html, re.S):
        words |= words_of(script)
    return words.union(re.findall(r"--[A-Za-z_][\w-]*", html))


def words_of(script: str) -> set[str]:
    """The words of a script that could be a class or a custom property."""
    return set(re.findall(r"-?-?[A-Za-z_][\w-]*", script))


def _rules(css: str, words: Set[str]) -> str:
    made = []
    for prelude, body in _blocks(css):
        name = prelude.strip()
        if body is None:
            made.append(prelude)
        elif name.startswith(_GROUPS):
            if inner := _rules(body, words):
                made.append(f"{name}{{{inner}}}")
        elif name.startswith("@"):
            made.append(f"{name}{{{body}}}")
        else:
            known = [s for s in _split(name) if all(c in words for c in _CLASS.findall(_bare(s)))]
            if known:
                made.append(f"{','.join(known)}{{{body}}}")
    return "".join(made)


def _bare(selector: str) -> str:
    """A selector without what it excludes or merely allows: those classes need not occur."""
    while (shorter := re.sub(r":(?:not|is|where|has)\([^()]*\)", "", selector)) != selector:
        selector = shorter
    return re.sub(r"\[[^\]]*\]", "", selector)


def _blocks(css: str) -> Iterator[tuple[str, str | None]]:
    """The top-level rules as (prelude, body); statements such as @charset have no body."""
    depth = start = opened = 0
    for token in _TOKEN.finditer(css):
        if token[0] == "{":
            depth += 1
            opened = token.start() if depth == 1 else opened
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                yield css[start:opened], css[opened + 1 : token.start()]
                start = token.end()
        elif token[0] == ";" and depth == 0:
            yield css[start : token.end()], None
            start = token.end()


def _split(selectors: str) -> list[str]:
    """Split a list of selectors at the commas that are in no bracket."""
    parts, depth = [""], 0
    for character in selectors:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _declarations(css: str) -> Iterator[str]:
    """The text cut after every semicolon and brace, to be joined again."""
    start = 0
    for token in _TOKEN.finditer(css):
        if token[0] in "{;":
            yield css[start : token.end()]
            start = token.end()
        elif token[0] == "}":
            yield css[start : token.start()]
            yield "}"
            start = token.end()
    yield css[start:]
