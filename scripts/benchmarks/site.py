"""Time to build the same pages by our engine, by mkdocs-jupyter and by markdown-exec.

Three builds of each: from nothing, again with nothing changed, and with one page changed; and what
an author waits for under `mkdocs serve`, from saving a page, not the first one, to seeing it. The
tools take turns in every round, and every build is checked for what its blocks print and draw. The
same text without code tells what MkDocs itself takes. Run from the repository root:

    python -m scripts.benchmarks.site
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jupytext
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
STATES = ("cold", "warm", "one page", "served")
PATIENCE = 180.0  # seconds until a server that shows no change is given up
DRAWINGS = 2  # a page

SETUP = """\
import matplotlib
import matplotlib.pyplot as plt
import torch

torch.set_num_threads(1)
torch.manual_seed({page})
x = torch.randn(256, 200)
weights = torch.randn(200, 256, 256) / 16"""
DRAW = """\
fig, ax = plt.subplots()
for weight in weights:
    x = torch.tanh(weight @ x)
ax.plot(x.std(1))
print("{said}", x.shape)"""


@dataclass(frozen=True)
class Tool:
    """One way to build: its page format and its lines of mkdocs.yml."""

    name: str
    suffix: str
    page: Callable[[int, int], str]
    config: str
    drawing: str  # what a drawing is in its HTML
    package: str | None = None


def said(page: int, edit: int, drawing: int) -> str:
    """What a block prints, other on every page and after every edit."""
    return f"page {page} edit {edit} drawing {drawing}:"


def ours(page: int, edit: int) -> str:
    parts = [f"# Page {page}\n\nText.\n\n```python\n{SETUP.format(page=page)}\n```\n"]
    for n in range(DRAWINGS):
        line = said(page, edit, n)
        parts.append(
            f"\nText.\n\n<!--pytest-codeblocks:cont-->\n```python\n{DRAW.format(said=line)}\n"
            f"#> {line} torch.Size([256, 200])\n```\n"
            f'<!--figure: name="drawing-{n}" alt="A line." caption="A line."-->\n'
        )
    return "".join(parts)


def jupyter(page: int, edit: int) -> str:
    parts = ["# %% [markdown]", f"# # Page {page}", "#", "# Text.", ""]
    # The plugin hands MPLBACKEND down to the kernel; inline is what shows figures there.
    parts += ["# %%", "%matplotlib inline\n" + SETUP.format(page=page), ""]
    for n in range(DRAWINGS):
        parts += ["# %% [markdown]", "# Text.", ""]
        parts += ["# %%", DRAW.format(said=said(page, edit, n)), ""]
    notebook = jupytext.reads("\n".join(parts), fmt="py:percent")
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return jupytext.writes(notebook, fmt="ipynb")


def markdown_exec(page: int, edit: int) -> str:
    setup = SETUP.format(page=page).replace("import matplotlib\n", "import io\nimport matplotlib\n")
    setup = setup.replace("matplotlib\nimport", 'matplotlib\nmatplotlib.use("Agg")\nimport', 1)
    parts = [
        f"# Page {page}\n\nText.\n\n"
        f'```python exec="1" source="above" session="page{page}"\n{setup}\n```\n'
    ]
    for n in range(DRAWINGS):
        shown = DRAW.format(said=said(page, edit, n))
        shown += "\nbuffer = io.StringIO()\nfig.savefig(buffer, format='svg')\nplt.close(fig)"
        shown += "\nprint(buffer.getvalue()[buffer.getvalue().index('<svg') :])"
        parts.append(
            f'\nText.\n\n```python exec="1" html="1" source="above" session="page{page}"\n'
            f"{shown}\n```\n"
        )
    return "".join(parts)


def plain(page: int, edit: int) -> str:
    return f"# Page {page}, edit {edit}\n\n" + "Text.\n\n" * (DRAWINGS + 1)


HOOKS = f"hooks: [{ROOT / 'scripts' / 'mkdocs_hooks.py'}]\nplugins: []\n"
FENCES = "markdown_extensions: [pymdownx.superfences, pymdownx.highlight]\n"
TOOLS = (
    Tool("this engine", ".md", ours, HOOKS + FENCES, 'class="sk-svg"'),
    Tool(
        "mkdocs-jupyter",
        ".ipynb",
        jupyter,
        "plugins:\n  - mkdocs-jupyter:\n      execute: true\n      allow_errors: false\n",
        "data:image/png",
        "mkdocs-jupyter",
    ),
    Tool(
        "markdown-exec",
        ".md",
        markdown_exec,
        FENCES + "plugins:\n  - markdown-exec\n",
        "<svg ",
        "markdown-exec",
    ),
    Tool("no code", ".md", plain, FENCES + "plugins: []\n", ""),
)


class Site:
    """A tool's pages in a folder of their own."""

    def __init__(self, tool: Tool, folder: Path, pages: int) -> None:
        self.tool, self.folder, self.pages = tool, folder, pages
        self.edits = dict.fromkeys(range(pages), 0)
        (folder / "docs").mkdir(parents=True)
        config = f"site_name: benchmark\ntheme:\n  name: material\n  font: false\n{tool.config}"
        (folder / "mkdocs.yml").write_text(config)
        (folder / "docs" / "index.md").write_text("# Start\n\nText.\n")
        for page in range(pages):
            self.write(page)

    def write(self, page: int) -> None:
        path = self.folder / "docs" / f"page{page}{self.tool.suffix}"
        path.write_text(self.tool.page(page, self.edits[page]))

    def forget(self) -> None:
        """Remove what an earlier build left; new text, since a cache elsewhere may know it."""
        subprocess.run(["rm", "-rf", self.folder / ".cache", self.folder / "site"], check=True)
        for page in range(self.pages):
            self.edit(page)

    def edit(self, page: int) -> None:
        self.edits[page] += 1
        self.write(page)

    def build(self) -> float:
        """Seconds of one build, checked for what every page printed and drew."""
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build"],
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(
                f"{self.tool.name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
            )
        for page in range(self.pages):
            html = (self.folder / "site" / f"page{page}" / "index.html").read_text()
            if missing := self.missing(page, html):
                raise SystemExit(f"{self.tool.name}: page {page} lacks {missing!r}")
        return seconds

    def missing(self, page: int, html: str) -> str | None:
        """What a page should show and does not."""
        text = re.sub(r"<[^>]*>", "", html)
        expected = [f"Page {page}, edit {self.edits[page]}"]
        if self.tool.drawing:
            lines = (said(page, self.edits[page], n) for n in range(DRAWINGS))
            expected = [f"{line} torch.Size([256, 200])" for line in lines]
            if html.count(self.tool.drawing) < DRAWINGS:
                return "a drawing"
        return next((line for line in expected if line not in text), None)

    def serve(self) -> float:
        """Seconds from saving a page to seeing it, the second time that a server sees it change."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "mkdocs", "serve", "--livereload"]
        server = subprocess.Popen(
            [*command, "--dev-addr", f"127.0.0.1:{port}"],
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.wait(port)
            self.edit(0)
            self.wait(port)
            self.edit(0)
            return self.wait(port)
        finally:
            server.terminate()
            server.wait()

    def wait(self, port: int) -> float:
        """Seconds until the server shows the first page as it is."""
        start = time.perf_counter()
        while time.perf_counter() - start < PATIENCE:
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{port}/page0/"
                html = urllib.request.urlopen(url, timeout=PATIENCE).read().decode()
                if not self.missing(0, html):
                    return time.perf_counter() - start
            time.sleep(0.05)
        raise SystemExit(f"{self.tool.name}: the server shows no change")


def environment() -> dict[str, str]:
    """For the builds: the plugin's kernels choose their own backend."""
    kept = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    return kept | {"NO_MKDOCS_2_WARNING": "1"}


def measure(tools: tuple[Tool, ...], pages: int, rounds: int, console: Console) -> dict:
    """Seconds by tool and state, [rounds], the tools taking turns."""
    seconds: dict[str, dict[str, list[float]]] = {
        tool.name: {state: [] for state in STATES} for tool in tools
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        sites = [Site(tool, Path(folder) / str(n), pages) for n, tool in enumerate(tools)]
        for turn in range(rounds):
            # Another one goes first in every round.
            for site in sites[turn % len(sites) :] + sites[: turn % len(sites)]:
                console.print(f"round {turn + 1} of {rounds}: {site.tool.name}", style="dim")
                site.forget()
                seconds[site.tool.name]["cold"].append(site.build())
                seconds[site.tool.name]["warm"].append(site.build())
                site.edit(turn % pages)
                seconds[site.tool.name]["one page"].append(site.build())
                seconds[site.tool.name]["served"].append(site.serve())
    return seconds


def table(seconds: dict, pages: int) -> Table:
    """Medians, and how many times ours each is."""
    rounds = len(seconds["this engine"]["cold"])
    made = Table(title=f"{pages} pages, median of {rounds} rounds, seconds (times ours)")
    made.add_column("tool")
    for state in STATES:
        made.add_column(state, justify="right")
    for name, states in seconds.items():
        row = [name]
        for state in STATES:
            own = statistics.median(seconds["this engine"][state])
            middle = statistics.median(states[state])
            row.append(f"{middle:.2f} ({middle / own:.2f})")
        made.add_row(*row)
    return made


def versions() -> dict[str, str]:
    names = ("mkdocs", "mkdocs-material", "mkdocs-jupyter", "markdown-exec", "torch", "matplotlib")
    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 once everything was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=4, help="pages of a site (default 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--json", type=Path, help="also write every number here")
    options = parser.parse_args(arguments)
    if options.pages < 1 or options.rounds < 1:
        parser.error("--pages and --rounds must be at least 1")
    console = Console()
    tools = []
    for tool in TOOLS:
        if tool.package and versions()[tool.package] == "not installed":
            console.print(f"{tool.name} is not installed: pip install -e '.[bench]'")
        else:
            tools.append(tool)
    seconds = measure(tuple(tools), options.pages, options.rounds, console)
    console.print(table(seconds, options.pages))
    console.print(f"{os.cpu_count()} cores;", ", ".join(f"{k} {v}" for k, v in versions().items()))
    if options.json:
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "cores": os.cpu_count(),
            "versions": versions(),
            "pages": options.pages,
            "seconds": seconds,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
