"""The page engine: parse a page, run its blocks, check what it says, draw its figures.

It knows Markdown pages and Python, and nothing of the site generator that shows them.
"""

from .build import Building, Built, build, start
from .download import downloads
from .parse import Page, parse
from .problems import PageError, PageErrors
from .render import render

__all__ = [
    "Building",
    "Built",
    "Page",
    "PageError",
    "PageErrors",
    "build",
    "downloads",
    "parse",
    "render",
    "start",
]
