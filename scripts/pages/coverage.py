"""Which item of the curriculum each block covers, said by `<!--covers: item, item-->` above it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path, PurePosixPath

from .parse import CONT, Page
from .problems import PageError

_COVERS = re.compile(r"^<!--covers:\s*(?P<items>[a-z0-9-]+(?:\s*,\s*[a-z0-9-]+)*)\s*-->$")


@dataclass(frozen=True)
class Covered:
    """A block that covers an item: `line` is the block's opening fence."""

    item: str
    comment: int
    line: int


def covered(page: Page) -> tuple[list[Covered], list[PageError]]:
    """The items that a page covers, and its covers comments that stand above no block."""
    fences = {block.line for block in page.blocks}
    found: list[Covered] = []
    errors = []
    seen: dict[str, int] = {}
    for number, content in page.prose:
        if "<!--covers" not in content:
            continue
        match = _COVERS.match(content)
        below = number + 1
        if below <= len(page.lines) and page.markdown[below - 1] == CONT:
            below += 1
        if not match or below not in fences:
            expected = "expected <!--covers: item, item--> on the line above a block and its cont"
            errors.append(PageError(page.name, number, f"{content.strip()!r}: {expected}"))
            continue
        for item in re.split(r"\s*,\s*", match["items"]):
            if item in seen:
                errors.append(
                    PageError(page.name, number, f"item {item!r} is covered at line {seen[item]}")
                )
            seen[item] = number
            found.append(Covered(item, number, below))
    return found, errors


def read_curriculum(path: Path) -> dict[str, dict[str, str]]:
    """The list of items: page name such as `docs/signal/gain.md` -> item -> its sentence."""
    rooms = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        f"docs/{room}/{page}.md": items
        for room, pages in rooms.items()
        for page, items in pages.items()
    }


def gaps(pages: Iterable[Page], curriculum: dict[str, dict[str, str]]) -> list[PageError]:
    """Items without a block, on pages that exist, and covered items that no list knows."""
    errors = []
    for page in pages:
        found, _ = covered(page)
        items = curriculum.get(page.name, {})
        for entry in found:
            if entry.item not in items:
                errors.append(
                    PageError(
                        page.name, entry.comment, f"item {entry.item!r} is not in the curriculum"
                    )
                )
        missing = items.keys() - {entry.item for entry in found}
        errors += [PageError(page.name, 1, f"no block covers {item!r}") for item in sorted(missing)]
    return errors


def coverage_table(
    pages: Mapping[str, Page], curriculum: dict[str, dict[str, str]], name: str
) -> str:
    """Every item of the curriculum with a link to its block, as one Markdown table a page.

    Args:
        pages: the pages that exist, by name.
        curriculum: as `read_curriculum` gives it.
        name: the page that shows the table, from which its links start.
    """
    parts, done, count = [], 0, 0
    for page, items in curriculum.items():
        found = (
            {entry.item: entry.line for entry in covered(pages[page])[0]} if page in pages else {}
        )
        link = relpath(page, PurePosixPath(name).parent)
        rows = ["| Item | Where |", "| --- | --- |"]
        for item, sentence in items.items():
            where = f"[line {found[item]}]({link}#{item})" if item in found else "not yet written"
            rows.append(f"| {sentence} | {where} |")
        done, count = done + len(found.keys() & items.keys()), count + len(items)
        parts.append(f"## {page.removeprefix('docs/').removesuffix('.md')}\n\n" + "\n".join(rows))
    return (
        "\n\n".join([f"**{done} of {count} items** have their block in this build.", *parts]) + "\n"
    )
