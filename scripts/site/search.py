"""What the site's search reads: a page's sections as plain text."""

from __future__ import annotations

import re
from html import unescape

_HEADING = re.compile(r'<h([1-6])[^>]*\bid="(?P<id>[^"]+)"[^>]*>(?P<title>.*?)</h\1>', re.S)
# Tick labels are no prose, and a formula stands there once for the eye and once for the ear.
_UNREAD = re.compile(r"<svg\b.*?</svg>|<sk-formula\b.*?</sk-formula>", re.S)
_MATHML = re.compile(r"<sk-formula\b.*?(<math\b.*?</math>).*?</sk-formula>", re.S)
_PERMALINK = re.compile(r'<a class="headerlink".*?</a>', re.S)


def sections(html: str, url: str) -> list[dict[str, str]]:
    """A rendered page cut at its headings, each with location, title and text.

    Args:
        html: the page's content.
        url: where the page stands in the site.
    """
    found = list(_HEADING.finditer(html))
    ends = [heading.start() for heading in found[1:]] + [len(html)]
    return [
        {
            "location": url if heading[1] == "1" else f"{url}#{heading['id']}",
            "title": _plain(_MATHML.sub(r"\1", _PERMALINK.sub("", heading["title"]))),
            "text": _plain(_UNREAD.sub(" ", html[heading.end() : end])),
        }
        for heading, end in zip(found, ends, strict=True)
    ]


def _plain(html: str) -> str:
    spaced = re.sub(r"</?(?:p|li|td|th|div|pre|h\d|summary|figcaption|br)\b[^>]*>", " ", html)
    return " ".join(unescape(re.sub(r"<[^>]*>", "", spaced)).split())
