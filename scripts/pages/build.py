"""Build pages: parse, run or recall, check; all problems of all pages at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import cache as store
from .child import Run
from .compare import check_outputs, check_prose
from .coverage import covered
from .draw import themed
from .parse import Claim, Page, parse
from .problems import PageError, PageErrors
from .run import Running, run
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


@dataclass(frozen=True)
class Building:
    """Pages on their way.

    Attributes:
        pages: by name, all that could be parsed.
    """

    pages: dict[str, Page]
    _futures: dict[str, Future[Built]]
    _pool: ThreadPoolExecutor
    _running: Running

    def __iter__(self) -> Iterator[str]:
        return iter(self._futures)

    def wait(self, name: str) -> Built:
        """The page once it is built, or PageErrors."""
        return self._futures[name].result()

    def stop(self) -> None:
        """End the pages that are running, and begin no further one."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._running.stop()


def start(
    paths: Sequence[Path],
    *,
    root: Path,
    jobs: int | None = None,
    cache: Path | None = None,
    timeout: float = TIMEOUT,
    report: Report | None = None,
    check: bool = True,
    png: bool = False,
) -> Building:
    """Begin to run every page and check it, pages side by side, in the order given.

    Args:
        paths: the Markdown files.
        root: the repository; pages are named relative to it.
        jobs: processes at once; by default one a core.
        cache: folder of results, None for no cache.
        timeout: seconds for one page.
        report: called as (page, "running" | "ran" | "cached" | "failed", seconds).
        check: False leaves outputs and prose unchecked, for rewriting them.
        png: draw every figure as PNG as well, not only the first of each page.
    """
    tell = report or (lambda *_: None)
    sources = store.sources_digest(root)

    def one(page: Page) -> Built:
        key = store.page_key(page, sources, png)
        result: Run | PageError | None = store.load(cache, key) if cache else None
        cached = result is not None
        if result is None:
            if page.blocks:
                tell(page.name, "running", 0.0)
                before = files(root)
                result = run(page, root, timeout, png, running)
                if running.stopped:
                    raise CancelledError
                if left := files(root) - before:
                    message = f"this page may not write in the repository, and left {min(left)}"
                    result = PageError(page.name, page.blocks[0].line, message)
            else:
                result = Run([], [], 0.0)
        if isinstance(result, PageError):
            tell(page.name, "failed", 0.0)
            raise PageErrors([result])
        if cache and not cached and page.blocks:
            store.store(cache, key, result)
        errors = covered(page)[1]
        if check:
            errors += check_outputs(page, result.outputs) + check_prose(page)
        if errors:
            tell(page.name, "failed", result.seconds)
            raise PageErrors(errors)
        tell(page.name, "cached" if cached or not page.blocks else "ran", result.seconds)
        return Built(page, result, cached)

    pool = ThreadPoolExecutor(jobs or os.cpu_count() or 1)
    running = Running()
    building = Building({}, {}, pool, running)
    for path in paths:
        name = path.resolve().relative_to(root.resolve()).as_posix()
        try:
            page = building.pages[name] = parse(path.read_text(encoding="utf-8"), name)
            building._futures[name] = pool.submit(one, page)
        except PageErrors as refused:
            tell(name, "failed", 0.0)
            building._futures[name] = Future()
            building._futures[name].set_exception(refused)
    return building


def build(paths: Sequence[Path], *, cache: Path | None = None, **options: Any) -> dict[str, Built]:
    """Run every page and check it.

    Args:
        paths: the Markdown files.
        cache: folder of results, None for no cache.
        options: of `start`.

    Returns:
        the pages by name.

    Raises:
        PageErrors: everything wrong with any of the pages.
    """
    # The longest first, so that no core is left waiting for one long page at the end.
    longest = sorted(paths, key=lambda path: -path.stat().st_size)
    building = start(longest, cache=cache, **options)
    built: dict[str, Built] = {}
    errors: list[PageError] = []
    try:
        for name in building:
            try:
                built[name] = building.wait(name)
            except PageErrors as wrong:
                errors += wrong.errors
    finally:
        building.stop()
    if errors:
        raise PageErrors(errors)
    if cache:
        store.prune(cache)
    return built
