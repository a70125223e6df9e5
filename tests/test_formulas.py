"""Formulas rendered at build time."""

import base64
import io
import re

import pytest

from scripts.site.fonts import embed_fonts
from scripts.site.formulas import (
    FormulaError,
    characters,
    render_bare,
    render_formula,
    render_formulas,
)


def refuse(error):
    raise AssertionError(error)


def test_a_formula_is_for_the_eye_and_for_the_ear():
    html = render_formula(r"\sigma_w^2")
    assert "<mi>σ</mi><mi>w</mi><mn>2</mn>" in html  # MathML: σ with w below and 2 above
    assert '<span class="katex-html" aria-hidden="true">' in html
    assert "katex-display" not in html
    assert "katex-display" in render_formula(r"\sigma_w^2", display=True)


@pytest.mark.parametrize(
    ("tex", "reason"),
    [
        (r"\frac{1}{2", "expected '}'"),
        (r"\vraiance", r"Undefined control sequence: \\vraiance"),
        (r"\left( x", r"\\right"),
        ("a – b", "strict mode"),
        (r"x^{\mathsf T}", r"no font for \\mathsf"),
        (r"\mathfrak{g}", r"no font for \\mathfrak"),
    ],
)
def test_a_bad_formula_is_refused_with_its_text(tex, reason):
    with pytest.raises(FormulaError, match=reason) as refused:
        render_formula(tex)
    assert refused.value.tex == tex
    assert repr(tex) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_formulas_in_a_page_keep_their_places():
    html = (
        '<p>If <span class="arithmatex">\\(a &lt; b\\)</span>, then</p>'
        '<div class="arithmatex">\\[\nx\n= 1\n\\]</div><p>and $5 stays.</p>'
    )
    made = render_formulas(html, refuse)
    first, second = re.findall("(?s)<sk-formula>(.*?)</sk-formula>", made)
    assert "<mi>a</mi><mo>&lt;</mo><mi>b</mi>" in first
    assert "katex-display" in second
    assert "katex-display" not in first
    assert made.startswith('<p>If <span class="sk-math">')
    assert made.endswith("<p>and $5 stays.</p>")
    assert "arithmatex" not in made


def test_every_bad_formula_of_a_page_is_told():
    html = "".join(
        f'<span class="arithmatex">\\({tex}\\)</span>' for tex in (r"\x &lt;", "x", r"\y")
    )
    refused = []
    made = render_formulas(html, refused.append)
    assert [error.tex for error in refused] == [r"\x <", r"\y"]
    assert r"<code>\x &lt;</code>" in made


def test_formulas_in_a_table_of_contents():
    made = render_bare(r"What is \(\chi\)?", refuse)
    assert "<mi>χ</mi>" in made
    assert made.startswith("What is <span")
    assert made.endswith("?")


def test_characters_that_formulas_show():
    tex = r"\chi = \mathbb{E}[\mathcal{L}] + 1"
    html = render_formulas(rf'<p>é</p><span class="arithmatex">\({tex}\)</span>', refuse)
    shown = characters(html)
    assert shown["KaTeX_Math-Italic"] == {"χ"}
    assert shown["KaTeX_AMS-Regular"] == {"E"}
    assert shown["KaTeX_Caligraphic-Regular"] == {"L"}
    assert set("=[]+1") <= shown[""]
    assert not set("éhcχEL\\") & shown[""]


def test_fonts_come_with_their_style_sheet(root, tmp_path):
    from fontTools.ttLib import TTFont

    whole = root / "docs" / "assets" / "katex" / "fonts" / "KaTeX_Math-Italic.woff2"
    made = []
    for name in ("a", "b"):
        sheet, font = tmp_path / name / "x.css", tmp_path / name / "fonts" / whole.name
        font.parent.mkdir(parents=True)
        font.write_bytes(whole.read_bytes())
        (font.parent / "b.woff2").write_bytes(whole.read_bytes())
        faces = [
            f"@font-face{{src:url(fonts/{n}) format('woff2')}}" for n in ("b.woff2", font.name)
        ]
        sheet.write_text("".join(faces) + "a{top:0}")
        embed_fonts(sheet, {whole.stem: "σχ x", "": "中"}, tmp_path / "kept")
        assert not font.exists()
        made.append(sheet.read_text())
    assert made[0] == made[1]
    assert made[0].endswith("format('woff2')}a{top:0}")
    assert "b.woff2" not in made[0]  # of which nothing is shown
    content = base64.b64decode(re.search(r"url\(data:font/woff2;base64,(.*?)\)", made[0])[1])
    assert len(content) < whole.stat().st_size / 2
    before, after = TTFont(whole), TTFont(io.BytesIO(content))
    assert {chr(code) for code in after.getBestCmap()} >= set("σχx")
    assert not {chr(code) for code in after.getBestCmap()} & set("abc")
    glyph = before.getBestCmap()[ord("σ")]
    assert after["hmtx"][after.getBestCmap()[ord("σ")]] == before["hmtx"][glyph]
