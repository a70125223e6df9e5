"""Runs the blocks that pytest-codeblocks collects as the page engine does; shares the site."""

from __future__ import annotations

import gc
import os

# Before anything imports torch: two processes with two threads each are many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

import traceback
from pathlib import Path

import pytest
from pytest_codeblocks.plugin import TestBlock

from scripts import chromium as browser

ROOT = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def site_dir(root) -> Path:
    """The built site: the one that `make test` has just built, else that of `make site`."""
    site = Path(os.environ.get("SITE_DIR", root / "site"))
    if not (site / "index.html").exists():
        pytest.fail(f"there is no built site in {site}: see the build above, or run make site")
    return site


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium; without one these tests are skipped, except where CI=true."""
    found = browser.find()
    if not found:
        reason = "no Chromium found: install one, or name it with CHROMIUM=/path"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Give each page a folder of its own and leave nothing behind for the next one."""
    if not isinstance(item, TestBlock):
        return (yield)
    import matplotlib as mpl
    import torch
    from matplotlib import pyplot

    gc.collect()
    gc.freeze()  # what is loaded by now; looking through it takes a sixth of a page's time
    here, dtype = Path.cwd(), torch.get_default_dtype()
    os.chdir(item.config._tmp_path_factory.mktemp("page"))
    torch.manual_seed(torch.Generator().initial_seed())
    try:
        with mpl.rc_context({"figure.max_open_warning": 0}):
            return (yield)
    finally:
        pyplot.close("all")
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(True)
        os.chdir(here)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Say which line of the page failed; the plugin knows only where its first block starts."""
    report = yield
    if isinstance(item, TestBlock) and call.when == "call" and report.failed:
        report.longrepr = describe(item.path, call.excinfo.value)
    return report


def describe(path: Path, error: BaseException) -> str:
    """A failure of a page's joined blocks as `docs/page.md:LINE: error`, with the source line.

    Args:
        path: the page.
        error: what pytest-codeblocks raised, or the block's own error.
    """
    from scripts.pages import PageErrors, parse

    # The plugin wraps every error; the block's own one is its context.
    cause = error.__context__ or error
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    try:
        page = parse(path.read_text(encoding="utf-8"), name)
    except PageErrors as refused:
        return str(refused)
    lines = [
        block.line + n for block in page.blocks for n in range(1, len(block.code.splitlines()) + 1)
    ]
    if isinstance(cause, SyntaxError) and cause.filename == "<string>":
        joined = cause.lineno
    else:
        frames = traceback.extract_tb(cause.__traceback__)
        joined = next((f.lineno for f in reversed(frames) if f.filename == "<string>"), None)
    line = lines[joined - 1] if joined else page.blocks[0].line
    said = "".join(traceback.format_exception_only(cause)).strip()
    return f"{name}:{line}: {said}\n    {page.lines[line - 1].strip()}"


def pytest_terminal_summary(terminalreporter):
    """Under the results: what `make test` did besides them."""
    if said := os.environ.get("SITE_SAID"):
        browser = os.environ.get("CHROMIUM", "none")
        terminalreporter.write_line(f"site {said}; browser: {browser}")
