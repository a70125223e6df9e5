"""Every item of the curriculum has a block, and every covers comment an item."""

from pathlib import Path

import pytest

from scripts.pages import PageErrors, build, parse, render
from scripts.pages.coverage import coverage_table, covered, gaps, read_curriculum

ROOT = Path(__file__).resolve().parents[1]
CURRICULUM = read_curriculum(ROOT / "scripts" / "curriculum.toml")
CONT = "<!--pytest-codeblocks:cont-->"
PAGE = f"""\
# T

<!--covers: first, second-->
```python
x = 1
```

<!--covers: third-->
{CONT}
```python
y = 2
```
"""


def test_items_belong_to_the_block_below():
    found, errors = covered(parse(PAGE, "docs/a/b.md"))
    assert not errors
    assert [(c.item, c.line) for c in found] == [("first", 4), ("second", 4), ("third", 10)]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("third-->", "third-->\n\ntext\n", 8),
        ("<!--covers: third-->", "<!--covers third-->", 8),
        ("<!--covers: third-->", "<!--covers: Third-->", 8),
        ("third", "first", 8),
    ],
)
def test_a_comment_that_covers_nothing_fails_the_build(tmp_path, old, new, line):
    (tmp_path / "docs").mkdir()
    path = tmp_path / "docs" / "a.md"
    path.write_text(PAGE.replace(old, new))
    with pytest.raises(PageErrors) as caught:
        build([path], root=tmp_path)
    assert line in [error.line for error in caught.value.errors]


def test_gaps_and_strangers_are_found():
    page = parse(PAGE, "docs/a/b.md")
    items = {"first": "1", "third": "3", "fourth": "4"}
    assert [(e.line, e.message) for e in gaps([page], {"docs/a/b.md": items})] == [
        (3, "item 'second' is not in the curriculum"),
        (1, "no block covers 'fourth'"),
    ]


def test_the_shown_page_has_an_anchor_for_each_item(tmp_path):
    (tmp_path / "docs").mkdir()
    path = tmp_path / "docs" / "a.md"
    path.write_text(PAGE)
    shown = render(build([path], root=tmp_path)["docs/a.md"])
    assert "covers" not in shown
    assert all(f'<a id="{item}"' in shown for item in ("first", "second", "third"))


def test_the_table_links_every_covered_item_and_owns_up_to_the_rest():
    items = {"docs/a/b.md": {"first": "One.", "fourth": "Four."}}
    table = coverage_table({"docs/a/b.md": parse(PAGE, "docs/a/b.md")}, items, "docs/c/d.md")
    assert "**1 of 2 items**" in table
    assert "| One. | [line 4](../a/b.md#first) |" in table
    assert "| Four. | not yet written |" in table


def test_every_item_of_the_curriculum_has_its_block():
    pages = [
        parse((ROOT / name).read_text(encoding="utf-8"), name)
        for name in CURRICULUM
        if (ROOT / name).exists()
    ]
    assert [str(error) for error in gaps(pages, CURRICULUM)] == []
