"""One build at a time writes into a folder."""

from __future__ import annotations

import fcntl
import hashlib
import logging
from pathlib import Path
from typing import TextIO

log = logging.getLogger("mkdocs.stabilitykit")


def locked(site: str, folder: Path) -> TextIO:
    """Wait until no other build writes into a site's folder.

    Args:
        site: the folder of the built site.
        folder: where the lock's file stands, since builds empty the site's folder.

    Returns:
        the lock, which is let go when it is closed or its process ends, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(Path(site).resolve()).encode()).hexdigest()[:16]
    lock = (folder / f"{name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("Waiting for another build of %s", site)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
