"""Figures and style sheets in fewer bytes."""

import re

import pytest

from scripts.site.lighten import lighten, relative
from scripts.site.stylesheets import html_words, trim, words_of

FIGURE = (
    '<svg class="sk-svg" role="img" aria-label="A" viewBox="0 0 9 9" '
    'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    '<defs> <style type="text/css">*{{stroke-linejoin: round}}</style> </defs>'
    '<g id="{0}-axes_1"><g transform="translate(1.25 2.34) scale(0.09 -0.09)"><defs>'
    '<path id="{0}-DejaVuSans-41" d="M 1 2 Q 3 4 5 6 z " transform="scale(0.015625)"/></defs>'
    '<use xlink:href="#{0}-DejaVuSans-41"/></g>'
    '<defs><path id="{0}-m12ab" d="M 0 0 L 0 3.5 "/></defs>'
    '<use xlink:href="#{0}-m12ab" x="10.26" y="197.40"/></g></svg>'
)


def test_figures_of_a_page_share_their_glyphs():
    made = lighten(f"<p>{FIGURE.format('one')}</p>{FIGURE.format('the-other')}")
    assert made.count('d="M 1 2 Q 3 4 5 6 z "') == 1
    assert made.startswith('<svg class="sk-glyphs"')
    assert made.count('<use href="#DejaVuSans-41"/>') == 2
    ids = re.findall(r'id="([^"]*)"', made)
    assert sorted(ids) == ["DejaVuSans-41", "one-m12ab", "the-other-m12ab"]
    assert set(re.findall(r'href="#([^"]*)"', made)) == set(ids)
    assert 'aria-label="A"' in made
    assert "translate(1.2 2.3) scale(0.09 -0.09)" in made  # a scale is never rounded
    assert 'x="10.3" y="197.4"' in made
    assert "xlink" not in made
    assert "<style" not in made  # it would hold for the whole page


def test_a_page_without_figures_stays_as_it_is():
    assert lighten("<p>text</p>") == "<p>text</p>"


def test_code_keeps_the_colours_that_it_has():
    code = '<span class="k">for</span><span class="w"> </span><span class="n">x</span>'
    assert lighten(code) == '<span class="k">for</span> x'


def absolute(path):
    """The points of a path of m, l, q, c and z, each a list of numbers, read back."""
    points, here, start = [], (0.0, 0.0), (0.0, 0.0)
    for command, body in re.findall(r"([mlqcz])([^mlqcz]*)", path):
        if command == "z":
            here = start
            continue
        numbers = [float(n) for n in re.findall(r"-?\d*\.?\d+", body)]
        step = {"m": 2, "l": 2, "q": 4, "c": 6}[command]
        for i in range(0, len(numbers), step):
            part = numbers[i : i + step]
            found = [(here[0] + x, here[1] + y) for x, y in zip(part[::2], part[1::2], strict=True)]
            points += found
            here = found[-1]
            start = here if command == "m" else start
    return points


def test_relative_paths_end_where_absolute_ones_do():
    import numpy as np

    numbers = np.random.default_rng(0).uniform(-50, 500, (1000, 6)).round(2)
    parts = [f"M {numbers[0, 0]} {numbers[0, 1]}"]
    wanted = [tuple(numbers[0, :2])]
    for n, row in enumerate(numbers[1:]):
        count = {0: 2, 1: 4, 2: 6}[n % 3]
        parts.append("LQC"[n % 3] + " " + " ".join(map(str, row[:count])))
        wanted += [tuple(row[i : i + 2]) for i in range(0, count, 2)]
    path = " ".join(parts)
    made = relative(path)
    assert len(made) < len(path)
    # Half a tenth from rounding, and what decimal fractions add up to in floats
    assert np.abs(np.array(absolute(made)) - np.array(wanted)).max() <= 0.05 + 1e-6


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("M 1 2 L 3 4 L 3.04 5 z M 1 1 L 2 2 ", "m1 2l2 2 0 1zm0-1l1 1"),
        ("M 0.5 0.25 L 0.4 -0.25", "m.5 .2l-.1-.4"),
        ("M 1e1 1e-3 L 0 0", "m10 0l-10 0"),
        ("M 0 0 A 1 1 0 0 1 2 2", "M 0 0 A 1 1 0 0 1 2 2"),
        ("", ""),
    ],
)
def test_short_paths(path, made):
    assert relative(path) == made


CSS = """@charset "utf-8";/* a } */.a{color:red}/* .b, it's */.a{color:blue}
.b,.a .c{top:0}.d:not(.x)>.a{left:0}
@media print{.b{top:1px}.a{top:2px}}@media screen{.b{top:0}}
@font-face{font-family:F;src:url(f.woff2)}[class~="z"] p{background:url("data:,};{")}
:root{--used:1;--chain:var(--deep);--deep:2;--unused:var(--gone);--gone:3}.a{top:var(--used)}"""


def test_rules_for_unknown_classes_go():
    made = trim(CSS, {"a"})
    for kept in (
        '@charset "utf-8";',
        ".a{color:red}.a{color:blue}",
        "@media print{.a{top:2px}}",
        "@font-face{font-family:F;src:url(f.woff2)}",
        '[class~="z"] p{background:url("data:,};{")}',
        "--used:1;",
    ):
        assert kept in made
    for gone in (".b", ".c", ".d", "screen", "--unused", "--gone", "--chain", "--deep"):
        assert gone not in made
    assert ".d:not(.x)>.a{left:0}" in trim(CSS, {"a", "d"})


def test_nothing_goes_where_all_is_known():
    made = trim(CSS, words_of(CSS))
    assert re.sub(r"\s|/\*.*?\*/", "", made) == re.sub(r"\s|/\*.*?\*/", "", CSS)


def test_words_are_those_that_a_class_could_be():
    html = '<p id=x class="md-nav a_1">note</p><b class=c style="--md-a:1"><script>on("d")</script>'
    assert html_words(html) >= {"md-nav", "a_1", "c", "--md-a", "d"}
    assert "note" not in html_words(html)
    assert "--md-hue" in words_of("e.style.setProperty('--md-hue', 1)")
