"""The benchmarks' pages are one program in each format; README's block is found and written."""

import json
import re
from pathlib import Path

import pytest

from scripts.benchmarks import readme_times, site
from scripts.pages import parse

ROOT = Path(__file__).resolve().parents[1]


def test_ours_is_a_page():
    page = parse(site.ours(1, 2), "page.md")
    assert len(page.blocks) == 1 + site.DRAWINGS
    assert all(block.figure for block in page.blocks[1:])


def test_every_format_has_the_same_code():
    setup, draw = site.SETUP.format(page=1), site.DRAW.format(said=site.said(1, 2, 0))
    notebook = json.loads(site.jupyter(1, 2))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    texts = {"ours": site.ours(1, 2), "jupyter": "\n".join(cells)}
    texts["markdown-exec"] = site.markdown_exec(1, 2)
    for name, text in texts.items():
        for line in (setup + "\n" + draw).splitlines():
            assert line in text, (name, line)
    assert "torch" not in site.plain(1, 2)


def test_our_build_of_the_benchmark_shows_what_its_pages_print_and_draw(tmp_path):
    ours = site.Site(site.TOOLS[0], tmp_path / "0", pages=1)
    assert ours.build() > 0
    html = tmp_path / "0" / "site" / "page0" / "index.html"
    shown = html.read_text(encoding="utf-8")
    assert ours.missing(0, shown) is None
    assert ours.missing(0, shown.replace('class="sk-svg"', "")) == "a drawing"


def test_ratios():
    seconds = {
        "this engine": {state: [2.0, 1.0, 4.0] for state in site.STATES},
        "other": {state: [6.0, 5.0, 7.0] for state in site.STATES},
    }
    made = site.table(seconds, 3)
    assert list(made.columns[1].cells) == ["2.00 (1.00)", "6.00 (3.00)"]


@pytest.mark.parametrize(("seconds", "said"), [(59.6, "1 min 0 s"), (134.2, "2 min 14 s")])
def test_spoken(seconds, said):
    assert readme_times.spoken(seconds) == said


def test_readme_has_the_place():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    written = readme_times.MARKED.sub(readme_times.sentence(300, 100), text)
    assert "**5 min 0 s** with installation" in re.sub(r"\s+", " ", written)
    assert readme_times.MARKED.sub("", written) == readme_times.MARKED.sub("", text)
