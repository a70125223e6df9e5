"""What a page can do wrong, as messages that name the page and the line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class PageError:
    """One refusal: `docs/page.md:12: what is wrong and what was expected`."""

    name: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.name}:{self.line}: {self.message}"


class PageErrors(Exception):
    """Everything wrong with the pages of one build, all pages tried."""

    def __init__(self, errors: Iterable[PageError]) -> None:
        self.errors = sorted(errors)
        super().__init__("\n".join(map(str, self.errors)))
