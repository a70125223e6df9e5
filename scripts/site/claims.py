"""The claims of all pages as one Markdown table a page, each with its evidence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from os.path import relpath
from pathlib import PurePosixPath

from scripts.pages import Built, Page


def claims_table(pages: Mapping[str, Built], name: str) -> str:
    """Every claim with a link to its place, the assertion behind it and its result.

    Args:
        pages: the built pages by name; they hold, or the build would have refused them.
        name: the page that shows the table, from which its links start.
    """
    proved = {page: built for page, built in pages.items() if built.claims}
    count = sum(len(built.claims) for built in proved.values())
    parts = [f"**{_plural(count, 'claim')}** on {_plural(len(proved), 'page')} hold in this build."]
    for page, built in proved.items():
        link = relpath(page, PurePosixPath(name).parent)
        parts.append(f"## {_title(built.page)}\n")
        rows = ["| Claim | Evidence | Where | Result |", "| --- | --- | --- | --- |"]
        for claim in built.claims:
            said = claim.text.replace("|", "\\|")
            where = f"[line {claim.line}]({link}#{claim.anchor})"
            rows.append(f"| {said} | {_code(claim.evidence)} | {where} | holds |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _title(page: Page) -> str:
    heading = next((text for _, text in page.prose if text.startswith("# ")), page.name)
    return heading.removeprefix("# ").strip()


def _code(evidence: str) -> str:
    """An assertion as one table cell: HTML, since Markdown's code cannot hold every sign."""
    shown = escape(re.sub(r"\s*\n\s*", " ", evidence.removeprefix("assert ")))
    for sign in "|*_`$\\[]~^":
        shown = shown.replace(sign, f"&#{ord(sign)};")
    return f"<code>{shown}</code>"
