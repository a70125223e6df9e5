"""What one build of the site knows."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mkdocs.structure.files import File

from scripts.pages import Building, Built, PageError, PageErrors
from scripts.site.kept import Rendered
from scripts.site.locate import link_line

_LINK_WARNING = re.compile(
    r"Doc file '(?P<page>[^']+)' contains an?[\w ]* link(?: to)? '(?P<link>[^']*)'"
)


@dataclass
class Site:
    """What one build knows; a live server starts a fresh one at every change."""

    root: Path
    docs: Path
    files: dict[str, File] = field(default_factory=dict)
    building: Building | None = None
    shown: ExitStack = field(default_factory=ExitStack)  # the progress of the pages
    built: dict[str, Built] = field(default_factory=dict)
    characters: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    drawings: dict[str, list[str]] = field(default_factory=dict)
    errors: list[PageError] = field(default_factory=list)
    waited: set[str] = field(default_factory=set)
    warned: set[str] = field(default_factory=set)
    surroundings: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    kept: dict[str, Rendered] = field(default_factory=dict)
    group: dict[str, Rendered | None] = field(default_factory=dict)
    group_key: str = ""
    group_files: dict[str, bytes] = field(default_factory=dict)
    plugins_warned: bool = False
    sections: list[dict[str, str]] = field(default_factory=list)
    downloads: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def name(self, file: File) -> str:
        """What the engine calls a page."""
        return (self.docs / file.src_uri).relative_to(self.root).as_posix()

    def refuse(self, name: str, line: int, message: str) -> None:
        self.errors.append(PageError(name, line, message))

    def wait(self, *names: str) -> None:
        """Return when these pages, or all, are in `built` or have their `errors` told."""
        assert self.building
        for name in names or self.building:
            if name in self.waited or name not in self.building:
                continue
            self.waited.add(name)
            try:
                self.built[name] = self.building.wait(name)
            except PageErrors as wrong:
                self.errors += wrong.errors

    def close(self) -> None:
        """Run no further page."""
        if self.building:
            self.building.stop()
        self.shown.close()


class Heard(logging.Handler):
    """Remember that a plugin warned: what it warned of would not be seen again."""

    def __init__(self, site: Site) -> None:
        super().__init__(logging.WARNING)
        self.site = site

    def emit(self, record: logging.LogRecord) -> None:
        self.site.plugins_warned = True


class NameLine(logging.Filter):
    """Put page and line in front of MkDocs' warnings on links, which name the page alone."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    def filter(self, record: logging.LogRecord) -> bool:
        found = _LINK_WARNING.search(record.getMessage())
        if found:
            path = self.site.docs / found["page"]
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            line = link_line(found["link"], text)
            name = path.relative_to(self.site.root).as_posix()
            self.site.warned.add(name)
            record.msg, record.args = f"{name}:{line}: {record.getMessage()}", ()
        return True


def listen(site: Site) -> None:
    """Hear what MkDocs and its plugins warn of, in place of the last build."""
    links, plugins = (
        logging.getLogger("mkdocs.structure.pages"),
        logging.getLogger("mkdocs.plugins"),
    )
    for known in links.filters[:]:
        if isinstance(known, NameLine):
            links.removeFilter(known)
    for handler in plugins.handlers[:]:
        if isinstance(handler, Heard):
            plugins.removeHandler(handler)
    links.addFilter(NameLine(site))
    plugins.addHandler(Heard(site))
