"""Run and check pages from the command line: `python -m scripts.pages --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .build import TIMEOUT, build
from .cache import write_whole
from .problems import PageErrors
from .progress import progress
from .run import preload_package
from .update import updated

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every page holds, 1 when one does not."""
    parser = _parser()
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    paths = [p.resolve() for p in options.pages] or find_pages(root)
    for path in paths:
        if not (path.is_file() and path.is_relative_to(root)):
            parser.error(f"{path} is not a file below {root}")
    if root == ROOT:
        preload_package()
    cache = None if options.no_cache else root / ".cache" / "pages"
    updating = options.command == "update"
    try:
        with progress(len(paths)) as report:
            pages = build(
                paths,
                root=root,
                jobs=options.jobs,
                cache=cache,
                timeout=options.timeout,
                report=report,
                check=not updating,
                png=options.command == "figures",
            )
    except PageErrors as wrong:
        for error in wrong.errors:
            print(error, file=sys.stderr)
        print(f"{len(wrong.errors)} problems", file=sys.stderr)
        return 1
    if updating:
        for name, built in pages.items():
            text = updated(built)
            if text != built.page.text:
                write_whole(root / name, text.encode())
                print(f"updated {name}")
    elif options.command == "figures":
        for name, built in pages.items():
            folder = options.to / Path(name).relative_to("docs").with_suffix("")
            for figure in built.figures:
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / f"{figure.name}.svg", figure.svg)
                if figure.png:
                    write_whole(folder / f"{figure.name}.png", figure.png)
        count = sum(len(built.figures) for built in pages.values())
        print(f"{count} figures in {options.to}")
    else:
        claims = sum(len(built.claims) for built in pages.values())
        print(f"{len(pages)} pages hold, {claims} claims proved")
    return 0


def find_pages(root: Path) -> list[Path]:
    """Every page of the site's sources: Markdown, and notebooks as scripts."""
    docs = root / "docs"
    found = [*docs.rglob("*.md"), *docs.rglob("*.py")]
    return sorted(p for p in found if "overrides" not in p.relative_to(docs).parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.pages", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("pages", nargs="*", type=Path, help="Markdown files; by default all")
    common.add_argument("--root", type=Path, default=ROOT, help="the repository")
    common.add_argument("--jobs", type=int, help="pages at once; by default one a core")
    common.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one page")
    common.add_argument("--no-cache", action="store_true", help="run every page afresh")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", parents=[common], help="run the pages and check what they say")
    commands.add_parser("update", parents=[common], help="rewrite the #> lines that disagree")
    figures = commands.add_parser("figures", parents=[common], help="write every figure as files")
    figures.add_argument("--to", type=Path, default=Path("figures"), help="the folder to write to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
