"""One result a page, trusted only when it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .child import Run
from .draw import COLOURS
from .parse import Page

_LIBRARIES = ("torch", "matplotlib", "numpy", "scipy", "scikit-learn")
_KEEP_SECONDS = 14 * 24 * 3600  # convention: entries unused for two weeks go


def sources_digest(root: Path) -> str:
    """A digest of everything besides the page that decides what its blocks do."""
    digest = hashlib.sha256()
    engine = Path(__file__).parent
    for folder in (root / "stabilitykit", engine):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    for library in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            digest.update(f"{library}={version(library)};".encode())
    digest.update(f"python={sys.version};{sorted(COLOURS)}".encode())
    return digest.hexdigest()


def page_key(page: Page, sources: str, png: bool = False) -> str:
    """The key of a page's run: its code and figure names, not its prose or expectations.

    Args:
        page: as parsed.
        sources: of `sources_digest`.
        png: whether every figure is drawn as PNG as well.
    """
    blocks = [
        [
            "\n".join(line for line in block.code.splitlines() if not line.startswith("#>")),
            block.figure and block.figure.name,
        ]
        for block in page.blocks
    ]
    return hashlib.sha256(json.dumps([page.name, sources, png, blocks]).encode()).hexdigest()


def load(folder: Path, key: str) -> Run | None:
    """The stored run, or None when there is none or it is damaged."""
    found = load_json(folder, key)
    try:
        return None if found is None else Run.from_json(found)
    except (ValueError, KeyError, TypeError):
        return None


def store(folder: Path, key: str, run: Run) -> None:
    """Write a run so that a reader sees all of it or nothing."""
    store_json(folder, key, run.to_json())


def load_json(folder: Path, key: str) -> Any:
    """What was stored under a key, or None when that is nothing or damaged."""
    path = folder / f"{key}.json"
    try:
        digest, body = path.read_bytes().split(b"\n", 1)
        if digest.decode() != hashlib.sha256(body).hexdigest():
            return None
        found = json.loads(body)
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return found


def store_json(folder: Path, key: str, content: Any) -> None:
    """Write what JSON can hold so that a reader sees all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    body = json.dumps(content, ensure_ascii=False).encode()
    write_whole(folder / f"{key}.json", hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by way of a temporary neighbour, never leaving half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files private; a page keeps its mode, a new file gets the usual one.
        os.chmod(temporary, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def prune(folder: Path) -> None:
    """Remove what no build has used for two weeks, leftovers of killed builds included."""
    oldest = time.time() - _KEEP_SECONDS
    for path in [*folder.glob("*.json"), *folder.glob(".*.part")]:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
