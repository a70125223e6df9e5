"""Build pages: parse, run or recall, check; all problems of all pages at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import cache as store
from .child import Run
from .compare import check_outputs, check_prose
from .coverage import covered
from .draw import themed
from .parse import Claim, Page, parse
from .problems import PageError, PageErrors
from .run import run
from .tree import files

TIMEOUT = 120.0  # convention: seconds for one page on a busy machine; the plan allows 8

Report = Callable[[str, str, float], None]


@dataclass(frozen=True)
class Figure:
    """A captured figure: `themed_svg` for inlining, `svg` and, where drawn, `png` as files."""

    name: str
    alt: str
    caption: str
    svg: bytes
    png: bytes | None

    @cached_property
    def themed_svg(self) -> str:
        return themed(self.svg.decode(), self.name, self.alt)


@dataclass(frozen=True)
class Built:
    """A page that ran and passed its checks."""

    page: Page
    run: Run
    cached: bool

    @property
    def seconds(self) -> float:
        return self.run.seconds

    @property
    def claims(self) -> tuple[Claim, ...]:
        return tuple(claim for block in self.page.blocks for claim in block.claims)

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        made = []
        for block, drawing in zip(self.page.blocks, self.run.drawings, strict=True):
            if block.figure and drawing:
                spec = block.figure
                made.append(
                    Figure(
                        spec.name,
                        spec.alt,
                        spec.caption,
                        drawing.svg.encode(),
                        drawing.png,
                    )
                )
        return tuple(made)


def build(
    paths: Sequence[Path],
    *,
    root: Path,
    jobs: int | None = None,
    cache: Path | None = None,
    timeout: float = TIMEOUT,
    report: Report | None = None,
    check: bool = True,
    png: bool = False,
) -> dict[str, Built]:
    """Run every page and check it, pages side by side.

    Args:
        paths: the Markdown files.
        root: the repository; pages are named relative to it.
        jobs: processes at once; by default one a core.
        cache: folder of results, None for no cache.
        timeout: seconds for one page.
        report: called as (page, "running" | "ran" | "cached" | "failed", seconds).
        check: False leaves outputs and prose unchecked, for rewriting them.
        png: draw every figure as PNG as well, not only the first of each page.

    Returns:
        the pages by name, in the order given.

    Raises:
        PageErrors: everything wrong with any of the pages.
    """
    tell = report or (lambda *_: None)
    sources = store.sources_digest(root)

    def one(path: Path) -> Built | list[PageError]:
        name = path.resolve().relative_to(root.resolve()).as_posix()
        try:
            page = parse(path.read_text(encoding="utf-8"), name)
        except PageErrors as refused:
            tell(name, "failed", 0.0)
            return refused.errors
        key = store.page_key(page, sources, png)
        result: Run | PageError | None = store.load(cache, key) if cache else None
        cached = result is not None
        if result is None:
            if page.blocks:
                tell(name, "running", 0.0)
                before = files(root)
                result = run(page, root, timeout, png)
                if left := files(root) - before:
                    message = f"this page may not write in the repository, and left {min(left)}"
                    result = PageError(name, page.blocks[0].line, message)
            else:
                result = Run([], [], 0.0)
        if isinstance(result, PageError):
            tell(name, "failed", 0.0)
            return [result]
        if cache and not cached and page.blocks:
            store.store(cache, key, result)
        errors = covered(page)[1]
        if check:
            errors += check_outputs(page, result.outputs) + check_prose(page)
        if errors:
            tell(name, "failed", result.seconds)
            return errors
        tell(name, "cached" if cached or not page.blocks else "ran", result.seconds)
        return Built(page, result, cached)

    # The longest first, so that no core is left waiting for one long page at the end.
    longest = sorted(paths, key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        done = dict(zip(longest, pool.map(one, longest), strict=True))
    results = [done[path] for path in paths]
    errors = [error for result in results if isinstance(result, list) for error in result]
    if errors:
        raise PageErrors(errors)
    if cache:
        store.prune(cache)
    return {built.page.name: built for built in results if isinstance(built, Built)}
