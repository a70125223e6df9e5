"""Rendered pages, kept between builds: Markdown and formulas take longer than all else."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink, TableOfContents

from scripts.pages import cache

_RENDERERS = (
    "mkdocs",
    "markdown",
    "pymdown-extensions",
    "pygments",
    "mkdocs-material",
    "mkdocs-jupyter",
    "mkdocstrings",
    "mkdocstrings-python",
    "mkdocs-autorefs",
    "griffelib",
    "nbconvert",
    "quickjs-ng",
)


@dataclass
class Rendered:
    """What a page became: its HTML, and what MkDocs and the site's search read in it."""

    html: str
    title: str
    toc: list[dict[str, Any]]
    anchors: list[str]
    links: dict[str, dict[str, str]]
    characters: dict[str, list[str]]
    sections: list[dict[str, str]]
    downloads: dict[str, str]


def surroundings(config: Path, files: Files) -> str:
    """A digest of all besides a page itself that decides how it is rendered."""
    digest = hashlib.sha256(config.read_bytes())
    # A change of the package may change any docstring that a page shows.
    for folder in (Path(__file__).resolve().parents[1], config.parent / "stabilitykit"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(repr([version(name) for name in _RENDERERS]).encode())
    digest.update(repr(sorted((file.src_uri, file.url) for file in files)).encode())
    return digest.hexdigest()


def key(*parts: str) -> str:
    """The name under which a page is kept."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load(folder: Path, key: str) -> Rendered | None:
    """A page as it was kept, or None when it was not, or not whole."""
    found = cache.load_json(folder, key)
    return Rendered(**found) if found is not None else None


def store(folder: Path, key: str, rendered: Rendered) -> None:
    """Keep a page."""
    cache.store_json(folder, key, asdict(rendered))


def load_group(folder: Path, key: str) -> tuple[dict[str, Rendered], dict[str, bytes]] | None:
    """Pages that refer to one another as they were kept, and the site's files made from them."""
    found = cache.load_json(folder, key)
    if found is None:
        return None
    pages = {name: Rendered(**page) for name, page in found["pages"].items()}
    return pages, {file: b64decode(content) for file, content in found["files"].items()}


def store_group(
    folder: Path, key: str, pages: dict[str, Rendered], files: dict[str, bytes]
) -> None:
    """Keep pages that refer to one another, all or none."""
    content = {
        "pages": {name: asdict(page) for name, page in pages.items()},
        "files": {file: b64encode(content).decode() for file, content in files.items()},
    }
    cache.store_json(folder, key, content)


def capture(
    page: Page, html: str, characters: dict, sections: list, downloads: dict[str, bytes]
) -> Rendered:
    """What MkDocs has learnt of a page while it rendered it."""
    return Rendered(
        html=html,
        title=str(page.title),
        toc=[_entry(link) for link in page.toc],
        anchors=sorted(page.present_anchor_ids or ()),
        links={file.src_uri: found for file, found in (page.links_to_anchors or {}).items()},
        characters={font: sorted(shown) for font, shown in characters.items()},
        sections=sections,
        downloads={file: content.decode() for file, content in downloads.items()},
    )


def restore(page: Page, rendered: Rendered, files: Files) -> None:
    """Tell MkDocs of a page what it would have learnt by rendering it."""
    page.title = rendered.title
    page.toc = TableOfContents([_link(entry) for entry in rendered.toc])
    page.present_anchor_ids = set(rendered.anchors)
    sources = files.src_uris
    page.links_to_anchors = {sources[uri]: found for uri, found in rendered.links.items()}


def _entry(link: AnchorLink) -> dict[str, Any]:
    children = [_entry(child) for child in link.children]
    return {"title": link.title, "id": link.id, "level": link.level, "children": children}


def _link(entry: dict[str, Any]) -> AnchorLink:
    link = AnchorLink(entry["title"], entry["id"], entry["level"])
    link.children = [_link(child) for child in entry["children"]]
    return link
