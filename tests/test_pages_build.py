"""Build small pages, corrupt them one lie at a time, and require the refusal to name the line."""

import os
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from scripts.pages import PageErrors, build, downloads, render, start

ROOT = Path(__file__).resolve().parents[1]

HONEST = """\
---
description: An honest page.
---
# Is one half a half?

```python
import matplotlib.pyplot as plt
import stabilitykit as sk
half = 1 / 2
print(f"half {half:.3f}, third {1 / 3:.3f}")
#> half 0.500, third 0.333
```

A third is `0.333`.

<!--pytest-codeblocks:cont-->
```python
# Claim: two halves make one.
assert 2 * half == 1
fig, ax = plt.subplots()
ax.plot([0, half])
ax.set_xlabel("x")
```
<!--figure: name="rising-line" alt="A line rises from zero to one half."
caption="**It rises.** One segment."-->

The end.
"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "docs").mkdir()

    def make(text, name="a.md", **options):
        path = tmp_path / "docs" / name
        path.write_text(text)
        return build([path], root=tmp_path, **options)[f"docs/{name}"]

    make.root = tmp_path
    return make


def corrupted(site, old, new, **options):
    assert HONEST.count(old) == 1, "the corruption must hit once"
    with pytest.raises(PageErrors) as caught:
        site(HONEST.replace(old, new), **options)
    return [(error.line, error.message) for error in caught.value.errors]


def test_an_honest_page_builds(site):
    built = site(HONEST)
    assert built.run.outputs[0] == [[], [], [], ["half 0.500, third 0.333"]]
    assert [c.text for c in built.claims] == ["two halves make one."]
    (figure,) = built.figures
    assert (figure.name, figure.alt) == ("rising-line", "A line rises from zero to one half.")
    assert figure.png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("#> half 0.500", "#> half 0.502", 11, "printed 'half 0.500, third 0.333', expected"),
        ("#> half 0.500, third 0.333\n", "", 10, "which no #> line expects"),
        ("third 0.333\n```", "third 0.333\n#> more\n```", 12, "nothing more was printed"),
        ("A third is `0.333`", "A third is `0.334`", 14, "`0.334` is printed nowhere"),
        ("2 * half == 1", "2 * half == 3", 19, "AssertionError"),
        ('alt="A line rises from zero to one half."', 'alt=""', 24, "has no alt text"),
        ("ax.plot([0, half])", "ax.plot([0, halb])", 21, "NameError: name 'halb'"),
        ("half = 1 / 2", "half = sk.no_such_name", 9, "AttributeError"),
        ("half = 1 / 2", "half = 1 / 2; import sys; sys.exit(3)", 9, "SystemExit: 3"),
        ("half = 1 / 2", "half = 1 / 2; import os; os._exit(3)", 9, "died here (exit status 3)"),
        ("half = 1 / 2", "half = 1 / 2; plt.figure(); plt.figure()", 6, "this block draws"),
        ("fig, ax = plt.subplots()", "plt.figure(); ax = plt.figure().gca()", 17, "2 figures"),
        (
            'fig, ax = plt.subplots()\nax.plot([0, half])\nax.set_xlabel("x")',
            "pass",
            22,
            "draws nothing",
        ),
        (
            "half = 1 / 2",
            "import warnings; warnings.warn('odd', stacklevel=1); half = 1 / 2",
            9,
            "a reader would see UserWarning: odd",
        ),
    ],
)
def test_lies_are_refused_with_their_line(site, old, new, line, said):
    found = corrupted(site, old, new)
    assert any(n == line and said in message for n, message in found), found


def test_an_error_inside_the_package_names_the_page_and_the_place(site):
    ((line, message),) = corrupted(
        site, "half = 1 / 2", "half = 1 / 2; import json; json.loads('{')"
    )
    assert line == 9
    assert "JSONDecodeError" in message
    assert "json.loads('{')" in message, "the page's source line"
    assert "raised at json/decoder.py:" in message


@pytest.mark.parametrize("stuck", ["while True: pass", "import time; time.sleep(1000)"])
def test_a_block_that_never_ends_is_stopped_and_named(site, stuck):
    start = time.monotonic()
    found = corrupted(site, "half = 1 / 2", f"{stuck}\nhalf = 1 / 2", timeout=3.0)
    assert found == [(9, "this statement was still running when the page had 3 s")]
    assert time.monotonic() - start < 60


def test_a_building_that_is_stopped_ends_the_pages_that_run(tmp_path):
    docs, told, begun = tmp_path / "docs", [], tmp_path / "begun"
    docs.mkdir()
    for name in ("a", "b"):
        code = f"from pathlib import Path\nimport time\nPath({str(begun)!r}).touch()\n"
        (docs / f"{name}.md").write_text(f"```python\n{code}time.sleep(1000)\n```\n")
    building = start(
        sorted(docs.glob("*.md")),
        root=docs,
        jobs=1,
        report=lambda page, what, seconds: told.append((page, what)),
    )
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    building.stop()
    stopped = time.monotonic()
    for name in ("a.md", "b.md"):
        with pytest.raises(CancelledError):
            building.wait(name)
    assert time.monotonic() - stopped < 30
    assert told == [("a.md", "running")]


def test_all_problems_of_all_pages_are_reported(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("```python\nassert 1 == 2\n```\n")
    (docs / "b.md").write_text("```python\nprint(1)\n```\n")
    with pytest.raises(PageErrors) as caught:
        build(sorted(docs.glob("*.md")), root=tmp_path)
    assert [(e.name, e.line) for e in caught.value.errors] == [("docs/a.md", 2), ("docs/b.md", 2)]


def test_pages_do_not_share_a_namespace_or_a_style(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text(
        "```python\nimport torch\nleaked = 1\ntorch.set_default_dtype(torch.float64)\n```\n"
    )
    (docs / "b.md").write_text(
        '```python\nimport torch\nprint("leaked" in globals(), torch.ones(1).dtype)\n'
        "#> False torch.float32\n```\n"
    )
    assert len(build([docs / "a.md", docs / "b.md"], root=tmp_path, jobs=1)) == 2


def test_a_page_writes_in_its_own_directory_only(site):
    target = site.root / "docs" / "left.txt"
    writing = "open('left.txt', 'w').write('x'); half = 1 / 2"
    site(HONEST.replace("half = 1 / 2", writing))
    for escape in (
        f"open({str(target)!r}, 'w')",
        f"__import__('os').mkdir({str(target)!r})",
        f"__import__('os').remove({str(site.root / 'docs' / 'a.md')!r})",
        f"open('here', 'w').close(); __import__('os').rename('here', {str(target)!r})",
        f"__import__('os').symlink({str(site.root)!r}, 'link'); open('link/docs/left.txt', 'w')",
    ):
        ((line, message),) = corrupted(site, "half = 1 / 2", f"half = 1 / 2; {escape}")
        assert line == 9
        assert "a page may not write in the repository" in message
    assert sorted(p.name for p in site.root.rglob("*")) == ["a.md", "docs"]


@pytest.mark.parametrize(
    "escape",
    [
        "__import__('torch').save(1, {!r})",  # by code that is not Python's
        "__import__('subprocess').run(['touch', {!r}])",
    ],
)
def test_what_a_page_leaves_in_the_tree_fails_it(site, escape):
    target = site.root / "docs" / "left.pt"
    ((line, message),) = corrupted(
        site, "half = 1 / 2", f"half = 1 / 2; {escape.format(str(target))}"
    )
    assert line == 6  # its first block
    assert message.endswith("left docs/left.pt")


def test_figures_and_downloads_are_the_same_bytes_on_every_run(site):
    first, second = site(HONEST), site(HONEST)
    assert first.figures == second.figures
    assert downloads(first) == downloads(second)


def test_a_figure_takes_its_colours_from_the_theme_and_its_ids_from_its_name(site):
    (figure,) = site(HONEST).figures
    assert "#0b6bcb" in figure.svg.decode()
    assert "#0b6bcb" not in figure.themed_svg
    assert "var(--sk-c0)" in figure.themed_svg
    assert "var(--sk-fg)" in figure.themed_svg
    assert ' id="rising-line-' in figure.themed_svg
    assert 'href="#rising-line-' in figure.themed_svg
    assert 'aria-label="A line rises from zero to one half."' in figure.themed_svg
    assert "\n" not in figure.themed_svg


def test_the_shown_page_has_figures_and_anchors_and_no_machinery(site):
    shown = render(site(HONEST))
    assert "pytest-codeblocks" not in shown
    assert "<!--figure" not in shown
    assert '<a id="claim-1" class="sk-claim"></a>' in shown
    assert shown.index('id="figure-rising-line"') > shown.index("ax.set_xlabel")
    assert "**It rises.** One segment." in shown
    assert shown.index("The end.") > shown.index("</figure>")


def test_downloads_run_as_they_stand(site, tmp_path):
    import subprocess
    import sys

    import nbformat

    files = downloads(site(HONEST))
    assert sorted(files) == ["a.ipynb", "a.py"]
    script = tmp_path / "a.py"
    script.write_bytes(files["a.py"])
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "half 0.500, third 0.333\n"
    notebook = nbformat.reads(files["a.ipynb"].decode(), as_version=4)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == [
        "markdown",
        "code",
        "markdown",
        "code",
        "markdown",
    ]


def test_powers_at_a_logarithmic_axis_are_text():
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from scripts.pages.draw import capture, style

    with mpl.rc_context(style()):
        axes = Figure().subplots()
        axes.loglog([1e-7, 1e3], [1, 4])
        svg, png = capture(axes.figure, "salt", png=False)
    assert svg.startswith("<svg")
    assert png is None
    labels = {t.get_text() for t in axes.get_xticklabels()}
    assert {"10⁻⁵", "10³"} <= labels
    assert "3×10⁰" in [t.get_text() for t in axes.get_yticklabels(which="both")]


def test_an_axis_of_many_powers_of_ten_has_no_ticks_between_them():
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from scripts.pages.draw import capture, style

    with mpl.rc_context(style()):
        axes = Figure().subplots()
        axes.loglog([1, 1e3], [20, 90])
        capture(axes.figure, "salt", png=False)
    assert len(axes.xaxis.get_minorticklocs()) == 0
    assert {30, 40, 50, 60, 70, 80} <= set(axes.yaxis.get_minorticklocs())
