"""When a printed line agrees with the page, and which numbers prose may say."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.pages import parse
from scripts.pages.compare import agree, check_prose


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("std 0.6513", "std 0.6513"),
        ("std 0.6514", "std 0.6513"),
        ("std 0.65134", "std 0.651"),
        ("1.2243e-04", "1.2244e-04"),
        ("1.00e-03", "9.99e-04"),
        ("-0.00", "0.00"),
        ("[ 0.43  -0.42]", "[0.43 -0.42]"),
        ("nan at layer 30", "nan at layer 30"),
        ("tensor([1.0000, 2.0000])", "tensor([1.0000, 2.0001])"),
        ("[0. 2.]", "[0. 2.]"),
    ],
)
def test_agreement(printed, expected):
    assert agree(printed, expected)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("std 0.6515", "std 0.6513"),
        ("69 steps", "70 steps"),
        ("69.0 steps", "69 steps"),
        ("1.2243e-04", "1.2243e-05"),
        ("0.5 a", "0.5 b"),
        ("0.5", "0.5 0.5"),
        ("0.5", "-0.5"),
        ("nan", "0.5"),
        ("inf", "nan"),
        ("layer1 0.5", "layer2 0.5"),
        ("[0. 2.]", "[0. 1.]"),
        ("2", "2."),
        ("2.0", "2."),
    ],
)
def test_disagreement(printed, expected):
    assert not agree(printed, expected)


@given(st.integers(-(10**12), 10**12), st.integers(1, 8), st.sampled_from([-1, 1]))
def test_one_unit_of_the_last_digit_is_the_whole_tolerance(value, digits, sign):
    expected = Decimal(value).scaleb(-digits)
    unit = Decimal(sign).scaleb(-digits)
    assert agree(f"{expected + unit:f}", f"{expected:f}")
    assert not agree(f"{expected + unit * Decimal('1.01'):f}", f"{expected:f}")


def prose(text):
    code = "```python\nscale = 0.25\nprint(2 / 3, 1e5)\n#> 0.667 100000.0\n```\n"
    return [(e.line, e.message) for e in check_prose(parse(code + text, "docs/a.md"))]


@pytest.mark.parametrize(
    "text",
    [
        "`0.667`",
        "`0.25`",
        "`-0.25`",
        "`100,000`",
        "`x1`",
        "`torch 2.13`",
        "[a 1.2345](b)",
        "$1.2345$",
        "about 0.5",
        "arXiv:1502.01852",
        "``0.667``",
        "version 2.13.0",
    ],
)
def test_prose_may_say(text):
    assert prose(text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`0.668`", "the number `0.668` is printed nowhere"),
        ("`0.67`", "the number `0.67` is printed nowhere"),
        ("`1e6`", "printed nowhere"),
        ("it is 0.6667 here", "write the number 0.6667 as inline code"),
        ("about 2e-12 remains", "write the number 2e-12 as inline code"),
    ],
)
def test_prose_may_not_say(text, said):
    ((line, message),) = prose(f"\nfirst\n{text}\n")
    assert line == 8
    assert said in message


def test_captions_are_prose():
    text = '<!--figure: name="a" alt="b" caption="**C.** It is `0.1` here."-->\n'
    assert prose(text) == [(6, "the number `0.1` is printed nowhere on this page")]
