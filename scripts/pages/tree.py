"""What stands in the repository, so that what a page leaves there is seen."""

from __future__ import annotations

import os
from pathlib import Path

_OTHERS = {"__pycache__", "site"}  # written by whoever builds beside a page, as hidden files are


def files(root: Path) -> set[str]:
    """The paths of all files below a folder, but for hidden ones and those of builds."""
    found, folders = set(), [str(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _OTHERS:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    found.add(os.path.relpath(entry.path, root))
    return found
