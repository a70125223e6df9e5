"""The navigation, which names pages before they are written."""

from __future__ import annotations

from pathlib import Path


def written(nav: list, docs: Path) -> list:
    """The navigation without pages that do not exist and sections that hold none."""
    kept = []
    for item in nav:
        title, target = next(iter(item.items())) if isinstance(item, dict) else (None, item)
        target = written(target, docs) if isinstance(target, list) else target
        if target and (isinstance(target, list) or (docs / target).exists()):
            kept.append({title: target} if title else target)
    return kept
