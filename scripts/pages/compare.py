"""When a printed line agrees with the one on the page, and when a number in prose was printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from decimal import Decimal

from .parse import Page
from .problems import PageError

_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w]|\.\d)")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_BARE = re.compile(
    r"(?<![\w./:\-–])[-−]?\d+(?:\.\d{3,}(?:[eE][-+]?\d+)?|(?:\.\d+)?[eE][-+]?\d+)(?![\w/]|\.\d)"
)
# What is no prose: formulas, links with their text, HTML tags, code spans.
_NOT_PROSE = re.compile(r"\$\$.*?\$\$|\$[^$]+\$|!?\[[^\]]*\]\([^)]*\)|<[^>]*>|https?://\S+", re.S)


def agree(printed: str, expected: str) -> bool:
    """Whether two lines say the same.

    Text must be equal up to the width of spaces. Whole numbers, `2.` among them, must be equal;
    other numbers may differ by one unit in the last digit that the expectation prints.
    """
    words, numbers = _split(printed)
    expected_words, expected_numbers = _split(expected)
    return (
        words == expected_words
        and len(numbers) == len(expected_numbers)
        and all(map(_close, numbers, expected_numbers))
    )


def _split(line: str) -> tuple[str, list[str]]:
    # A sign belongs to its number, so that rounding to -0.00 does not change the text.
    numbers = _NUMBER.findall(line)
    return " ".join(_NUMBER.sub(" 0 ", line).split()), numbers


def _close(printed: str, expected: str) -> bool:
    a, b = _decimal(printed), _decimal(expected)
    if whole := re.fullmatch(r"[-+−]?\d+(\.?)", expected):
        return a == b and re.fullmatch(rf"[-+−]?\d+{re.escape(whole[1])}", printed) is not None
    exponent = b.as_tuple().exponent
    assert isinstance(exponent, int)
    return abs(a - b) <= Decimal(1).scaleb(exponent)


def _decimal(number: str) -> Decimal:
    return Decimal(number.replace("−", "-").rstrip("."))


def check_outputs(page: Page, outputs: Sequence[Sequence[Sequence[str]]]) -> list[PageError]:
    """Compare what every statement printed with the `#>` lines under it."""
    errors = []
    for block, printed_block in zip(page.blocks, outputs, strict=True):
        for unit, printed in zip(block.units, printed_block, strict=True):
            for n, (got, expected) in enumerate(zip(printed, unit.expected, strict=False), 1):
                if not agree(got, expected):
                    errors.append(
                        PageError(
                            page.name, unit.end + n, f"printed {got!r}, expected {expected!r}"
                        )
                    )
                    break
            else:
                if len(printed) > len(unit.expected):
                    missing = printed[len(unit.expected)]
                    errors.append(
                        PageError(
                            page.name,
                            unit.end + len(unit.expected),
                            f"printed {missing!r}, which no #> line expects",
                        )
                    )
                elif len(printed) < len(unit.expected):
                    expected = unit.expected[len(printed)]
                    errors.append(
                        PageError(
                            page.name,
                            unit.end + len(printed) + 1,
                            f"expected {expected!r}, but nothing more was printed",
                        )
                    )
    return errors


def check_prose(page: Page) -> list[PageError]:
    """Every number in prose must have been printed, or stand as a literal, on this page."""
    known = _known_numbers(page)
    errors = []
    for line, content in _masked(page.prose):
        for match in _SPAN.finditer(content):
            number = match[2].strip().replace(",", "").replace(" ", "").rstrip("%")
            if _NUMBER.fullmatch(number) and _decimal(number) not in known:
                errors.append(
                    PageError(
                        page.name,
                        line,
                        f"the number `{match[2]}` is printed nowhere on this page",
                    )
                )
        for match in _BARE.finditer(_SPAN.sub(" ", content)):
            errors.append(
                PageError(
                    page.name,
                    line,
                    f"write the number {match[0]} as inline code, so that it is checked",
                )
            )
    return errors


def _masked(prose: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The prose lines without formulas, links and tags, which may span lines."""
    if not prose:
        return []
    # Figure comments hold captions, which are prose: only their delimiters go.
    text = "\n".join(content for _, content in prose).replace("<!--", " ").replace("-->", " ")
    blank = _NOT_PROSE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    return [(line, content) for (line, _), content in zip(prose, blank.split("\n"), strict=True)]


def _known_numbers(page: Page) -> set[Decimal]:
    known: set[Decimal] = set()
    for block in page.blocks:
        for unit in block.units:
            for expected in unit.expected:
                for number in _NUMBER.findall(expected):
                    known |= {_decimal(number), abs(_decimal(number))}
            for node in unit.nodes:
                for leaf in ast.walk(node):
                    if isinstance(leaf, ast.Constant) and type(leaf.value) in (int, float):
                        value = Decimal(repr(leaf.value))
                        if value.is_finite():
                            known |= {value, -value}
    return known
