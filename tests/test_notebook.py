"""A percent script as a page, as an executed notebook, and that notebook's HTML."""

import json
import re
from pathlib import Path

import pytest

from scripts.pages import PageErrors, build, downloads, parse
from scripts.pages.notebook import clean, execute
from scripts.pages.script import script_lines
from scripts.pages.update import updated

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """\
# ---
# description: One sentence.
# ---

# %% [markdown]
# # A question?
#
# Text with *emphasis*, $a_1 < b_2$, `code $5` and [a page](../signal/gain.md#table).
#
# $$\\sigma_w^2 = 1$$

# %%
import matplotlib.pyplot as plt

value = 0.651347
print(f"{value:.4f} <b>")
#> 0.6513 <b>

# %% [markdown]
# ## The picture
#
# It was `0.6513`.

# %%
# Claim: The value lies below one.
assert value < 1
fig, ax = plt.subplots()
ax.plot([0, value])

# %% [markdown]
# <!--figure: name="a-line"
# alt="A rising line."
# caption="**It rises.** From [nought](../index.md)."-->
#
# <!--fold: Answers-->
#
# Hidden at first.

# %%
print("last")
#> last

# %% [markdown]
# <!--fold: end-->
#
# The end.
"""


def line_of(text):
    return SCRIPT.splitlines().index(text) + 1


@pytest.fixture
def write(tmp_path):
    """A repository of one script, and what the engine makes of it."""

    def written(text, **options):
        script = tmp_path / "docs" / "clinic" / "small.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(text)
        options = {"root": tmp_path, "jobs": 1} | options
        return build([script], **options)["docs/clinic/small.py"]

    return written


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    script = root / "docs" / "clinic" / "small.py"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT)
    return build([script], root=root, jobs=1)["docs/clinic/small.py"]


@pytest.fixture(scope="module")
def html(built, tmp_path_factory):
    """What mkdocs-jupyter makes of the executed notebook."""
    from mkdocs_jupyter.convert import nb2html

    path = execute(built, tmp_path_factory.mktemp("notebooks"))
    return nb2html(str(path), execute=False, allow_errors=False)


class TestScript:
    def test_every_line_keeps_its_place(self):
        lines = script_lines(SCRIPT, "small.py")
        source = SCRIPT.splitlines()
        assert len(lines) == len(source)
        for made, was in zip(lines, source, strict=True):
            if was.startswith("# %%") or not was:
                assert made in {"", "```python", "```", "<!--pytest-codeblocks:cont-->"}
            else:
                assert made in {was, re.sub("^# ?", "", was)}

    def test_is_a_page(self):
        page = parse(SCRIPT, "docs/clinic/small.py")
        assert [block.line for block in page.blocks] == [
            n for n, text in enumerate(SCRIPT.splitlines(), 1) if text == "# %%"
        ]
        assert page.blocks[0].units[-1].expected == ("0.6513 <b>",)
        assert page.blocks[1].claims[0].text == "The value lies below one."
        assert page.blocks[1].figure.name == "a-line"
        assert page.text == SCRIPT

    def test_code_at_the_end(self):
        page = parse("# %% [markdown]\n# Text.\n\n# %%\nx = 1\n", "a.py")
        assert page.blocks[0].code == "x = 1\n"

    @pytest.mark.parametrize(
        ("text", "line", "said"),
        [
            ("x = 1\n", 1, "'x = 1' stands in no code cell"),
            ("# %% [markdown]\nText\n", 2, "'Text' stands in no code cell"),
            ("# %% [raw]\n# x\n", 1, "neither # %% nor # %% [markdown]"),
            ("# %%\nx = 1\n# %% [markdown]\n# y\n", 3, "a blank line ends the cell"),
            ("# %%\nx = 1\n\n# %%\ny = 1\n", 4, "a markdown cell stands between"),
        ],
    )
    def test_refuses(self, text, line, said):
        with pytest.raises(PageErrors) as refused:
            parse(text, "docs/a.py")
        assert f"docs/a.py:{line}: " in str(refused.value)
        assert said in str(refused.value)

    def test_every_cell_of_the_lesson_is_jupytexts(self):
        """The same cells that jupytext reads, so that editors open what the site shows."""
        import jupytext

        path = ROOT / "docs" / "clinic" / "digits.py"
        page = parse(path.read_text(encoding="utf-8"), "docs/clinic/digits.py")
        cells = [c.source for c in jupytext.read(path).cells if c.cell_type == "code"]
        assert [block.code.strip() for block in page.blocks] == cells


def test_first_page_cures_its_patient_in_fifteen_lines():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    code = parse(text, "docs/index.md").blocks[0].code
    assert "sk.gain(" in code
    assert sum(1 for line in code.splitlines() if line and not line.startswith("#>")) <= 15


class TestLies:
    """Each is refused with the script's own line."""

    @pytest.mark.parametrize(
        ("old", "new", "at", "said"),
        [
            ("#> 0.6513 <b>", "#> 0.6516 <b>", "#> 0.6513 <b>", "printed '0.6513 <b>', expected"),
            ("#> last\n", "", "# Claim: The value lies below one.", None),
            ("It was `0.6513`", "It was `0.7513`", "# It was `0.6513`.", "printed nowhere"),
            ('# alt="A rising line."\n', "", '# <!--figure: name="a-line"', "no alt text"),
            ("assert value < 1", "assert value < 0", "assert value < 1", "AssertionError"),
            ("value = 0.651347", "value = 1 / 0", "value = 0.651347", "ZeroDivisionError"),
        ],
    )
    def test_refused(self, write, old, new, at, said):
        assert SCRIPT.count(old) == 1
        line = line_of(at) if said else line_of("#> last") - 1
        with pytest.raises(PageErrors) as refused:
            write(SCRIPT.replace(old, new))
        assert f"docs/clinic/small.py:{line}: " in str(refused.value)
        assert (said or "no #> line expects") in str(refused.value)


class TestNotebook:
    def test_outputs(self, built, tmp_path):
        notebook = json.loads(execute(built, tmp_path).read_text())
        first, second, third = (c for c in notebook["cells"] if c["cell_type"] == "code")
        assert "".join(first["outputs"][0]["text"]) == "0.6513 <b>\n"
        assert "#>" not in "".join(first["source"])
        figure = second["outputs"][0]["data"]
        assert "".join(figure["image/svg+xml"]).startswith("<svg")
        assert 'id="figure-a-line"' in "".join(figure["text/html"])
        assert [c["execution_count"] for c in (first, second, third)] == [1, 2, 3]

    def test_same_bytes_every_time(self, built, tmp_path):
        assert execute(built, tmp_path / "a").read_bytes() == (
            execute(built, tmp_path / "b").read_bytes()
        )
        written = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
        assert written == [tmp_path / "a" / "docs" / "clinic" / "small.ipynb"]

    def test_the_packages_sources_are_in_the_key(self, write, tmp_path):
        """Unlike the plugin's own cache, ours runs again when the package changes."""
        cache = tmp_path / "cache"
        package = tmp_path / "stabilitykit"
        package.mkdir()
        (package / "__init__.py").write_text("value = 1\n")
        assert not write(SCRIPT, cache=cache).cached
        assert write(SCRIPT, cache=cache).cached
        (package / "__init__.py").write_text("value = 2\n")
        assert not write(SCRIPT, cache=cache).cached
        entries = sorted(cache.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        entries[-1].write_bytes(entries[-1].read_bytes()[:-40])
        assert not write(SCRIPT, cache=cache).cached

    def test_update(self, write):
        wrong = SCRIPT.replace("#> 0.6513 <b>", "#> 0.9 <b>").replace("#> last\n", "")
        assert updated(write(wrong, check=False)) == SCRIPT

    def test_downloads_are_whole(self, built):
        offered = downloads(built)
        assert sorted(offered) == ["small.ipynb", "small.py"]
        notebook = json.loads(offered["small.ipynb"])
        assert "".join(notebook["cells"][0]["source"]).startswith("# A question?\n")
        namespace = {}
        exec(compile(offered["small.py"], "small.py", "exec"), namespace)
        namespace["plt"].close("all")
        assert namespace["value"] == 0.651347


class TestClean:
    def test_the_traps_are_there(self, html):
        """What is cleaned away; when the plugin stops adding it, so may we."""
        assert len(html) > 400_000
        assert "https://cdnjs.cloudflare.com" in html
        assert "<style" in html

    def test_nothing_of_the_plugins_is_left(self, built, html):
        made = re.sub("<svg.*?</svg>", "", clean(html, built), flags=re.S)
        assert not re.search(r"<(style|script|link|clipboard-copy)\b|jp-|cdnjs|In\s\[", made)
        assert set(re.findall(r"https?://[^\"'/]+", made)) <= {"http://www.w3.org"}
        assert len(made) < 30_000

    def test_text(self, built, html):
        made = clean(html, built)
        assert '<h1 id="a-question">A question?<a class="headerlink"' in made
        assert "<em>emphasis</em>" in made
        assert '<span class="arithmatex">\\(a_1 &lt; b_2\\)</span>' in made
        assert '<span class="arithmatex">\\[\\sigma_w^2 = 1\\]</span>' in made
        assert "<code>code $5</code>" in made
        assert "<!--" not in made

    def test_links(self, built, html):
        made = clean(html, built, lambda target: target.replace(".md", "/"))
        assert 'href="../signal/gain/#table"' in made
        assert 'href="../index/"' in made  # in the figure's caption
        assert 'href="#a-question"' in made

    def test_cells(self, built, html):
        made = clean(html, built)
        code = '<div class="language-python highlight"><pre><span></span><code>'
        assert made.count(code) == 3
        assert '<pre class="sk-printed"' in made
        assert "0.6513 &lt;b&gt;</pre>" in made
        anchor = '<a id="claim-1" class="sk-claim"></a>'
        assert made.index(anchor) < made.index("# Claim: The value")

    def test_figure_as_it_was_drawn(self, built, html):
        made = clean(html, built)
        assert built.figures[0].themed_svg in made
        assert made.count("<figure") == 1

    def test_fold_over_cells(self, built, html):
        made = clean(html, built)
        folded = re.search(r"<details><summary>Answers</summary>(.*?)</details>", made, re.S)
        assert "Hidden at first." in folded[1]
        assert "last</pre>" in folded[1]
        assert "The end." not in folded[1]

    def test_without_a_result(self, html):
        """A live server shows a script that fails, too."""
        assert "A question?" in clean(html, None)
