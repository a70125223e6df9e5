"""The adapter between the page engine and MkDocs, on small sites that are then corrupted."""

import ast
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from html import unescape

import pytest
import yaml
from mkdocs.commands import build as mkdocs
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import sync_playwright

PAGES = {
    "index.md": """\
# A site

See [the page](room/page.md#claim-1), [its figure](room/page.md#figure-half) and
[all claims](claims.md).
""",
    "room/page.md": """\
---
description: One half, twice.
---
# What is \\(1/2\\), or $\\chi$?

```python
import matplotlib.pyplot as plt
half = 1 / 2
print(half)
#> 0.5
# Claim: One half
# is | below one.
assert half < 1 and "|" != "*"
```

Text with $\\sigma_w^2$ and `0.5`, and a sum:

$$
\\boxed{\\sum_i x_i = 1}
$$

<!--pytest-codeblocks:cont-->
```python
fig, ax = plt.subplots()
ax.plot([0, half], label="a $tick$")
```
<!--figure: name="half" alt="A line up to one half." caption="**It rises** to $1/2$."-->

| a | b |
| - | - |
| 1 | 2 |
""",
    "claims.md": "# Claims\n\n<!--claims-->\n",
}


def write(root, folder, pages=PAGES, **settings):
    """Write a small site that differs from the real one in its pages alone."""
    docs = folder / "docs"
    for name, text in pages.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(text)
    shutil.copytree(root / "docs" / "assets", docs / "assets", dirs_exist_ok=True)
    if (compiled := root / ".cache" / "templates").exists():  # by the build of the real site
        shutil.copytree(compiled, folder / ".cache" / "templates", dirs_exist_ok=True)
    settings = {
        "INHERIT": str(root / "mkdocs.yml"),
        "hooks": [str(root / "scripts" / "mkdocs_hooks.py")],
        "theme": {"custom_dir": str(root / "docs" / "overrides")},
        "site_url": "https://example.org/",
        "nav": [*pages, "unwritten.md", {"Nothing yet": ["also/unwritten.md"]}],
        "watch": [],
        "plugins": [],
    } | settings
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    return folder


def build(project):
    """Build a small site strictly; returns whether it could be built."""
    config = load_config(str(project / "mkdocs.yml"), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        mkdocs.build(config)
    except Abort:
        return False
    finally:
        config.plugins.on_shutdown()
    return True


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The small site, built."""
    project = write(root, tmp_path_factory.mktemp("good"))
    assert build(project)
    return project / "site"


@pytest.fixture
def refused(root, tmp_path, caplog, capfd):
    """Build a small site that must fail, and return what was said."""

    def said(pages, **settings):
        project = write(root, tmp_path, pages, **settings)
        caplog.set_level(logging.WARNING, "mkdocs")
        assert not build(project)
        return capfd.readouterr().err + caplog.text

    return said


def test_a_page_shows_its_figure_claims_outputs_and_formulas(site):
    html = (site / "room" / "page" / "index.html").read_text()
    figure = re.search(r'<figure class="sk-figure" id="figure-half".*?</figure>', html, re.S)[0]
    assert 'aria-label="A line up to one half."' in figure
    assert "<strong>It rises</strong>" in figure
    assert "var(--sk-c0)" in figure
    assert "DejaVuSans" not in re.sub('href="#.*?"', "", figure)  # the page's figures share glyphs
    assert (
        '<a class="sk-claim" id="claim-1">' in html or '<a id="claim-1" class="sk-claim">' in html
    )
    assert '<span class="sk-out">#&gt; 0.5</span>' in html
    claimed = re.search(r'<span class="sk-claimed">(.*?</span>)</span>', html, re.S)[1]
    assert re.sub("<[^>]*>", "", claimed) == "# Claim: One half\n# is | below one."
    assert html.count('<span class="katex">') >= 5  # title, contents, text, sum, caption
    assert 'class="arithmatex"' not in html
    assert "pytest-codeblocks" not in html
    assert "<!--figure" not in html
    assert '<div class="sk-table"><table class="sk-rows">' in html


def test_a_page_offers_its_downloads_and_its_figure_files(site):
    html = (site / "room" / "page" / "index.html").read_text()
    for file in ("page.py", "page.ipynb"):
        assert f'<a href="{file}" download>' in html
    ast.parse((site / "room" / "page" / "page.py").read_text())
    cells = json.loads((site / "room" / "page" / "page.ipynb").read_text())["cells"]
    assert [cell["cell_type"] for cell in cells].count("code") == 2
    assert (site / "figures" / "room" / "page" / "half.svg").read_text().startswith("<svg")
    assert (site / "figures" / "room" / "page" / "half.png").read_bytes()[:4] == b"\x89PNG"


def test_a_page_tells_those_who_link_to_it_what_it_shows(site):
    html = (site / "room" / "page" / "index.html").read_text()
    told = dict(re.findall(r'<meta property="(og:[\w:]+)" content="([^"]*)"', html))
    assert told["og:image"] == "https://example.org/figures/room/page/half.png"
    assert told["og:image:alt"] == "A line up to one half."
    assert told["og:description"] == "One half, twice."
    assert told["og:url"] == "https://example.org/room/page/"
    assert "og:image" not in (site / "index.html").read_text()


def test_claims_stand_on_one_page_with_their_evidence(site):
    html = (site / "claims" / "index.html").read_text()
    assert "<strong>1 claim</strong> on 1 page hold in this build." in html
    row = re.search(r"<td>One half is \| below one.</td>(.*?)</tr>", html, re.S)[1]
    assert unescape(row.split("code>")[1].removesuffix("</")) == 'half < 1 and "|" != "*"'
    assert 'href="../room/page/#claim-1"' in row
    assert "holds" in row


def test_the_search_index_holds_what_readers_read(site):
    docs = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    text = " ".join(doc["text"] for doc in docs if doc["location"].startswith("room/page/"))
    assert "and 0.5, and a sum" in text
    assert text.count("tick") == 1  # in the code, and not as a label of the figure
    assert "σ" not in text  # nor the three spellings of a formula
    assert "What is 1/2, or χ?" in [doc["title"] for doc in docs]


def test_the_site_has_one_small_script(site):
    html = (site / "room" / "page" / "index.html").read_text()
    assert re.findall(r'<script[^>]* src="([^"]*)"', html) == ["../../assets/site.js"]
    assert [path.name for path in site.rglob("*.js")] == ["site.js"]


def test_the_navigation_holds_what_is_written(site):
    html = (site / "index.html").read_text()
    assert 'href="room/page/"' in html
    assert "Nothing yet" not in html


def contents(folder):
    """What a site holds, but for the date in its sitemap."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("sitemap.xml")
    }


def test_two_builds_are_the_same_with_and_without_kept_pages(root, tmp_path, site, monkeypatch):
    project = write(root, tmp_path)
    assert build(project)
    assert contents(project / "site") == contents(site)
    monkeypatch.setattr("scripts.site.formulas.render_formula", None)  # nothing is rendered again
    assert build(project)
    assert contents(project / "site") == contents(site)


def test_a_kept_page_is_shown_as_long_as_it_is_true(root, tmp_path, caplog, capfd):
    project = write(root, tmp_path)
    assert build(project)
    page = project / "docs" / "room" / "page.md"
    page.write_text(PAGES["room/page.md"].replace("and a sum", "and a difference"))
    assert build(project)
    assert "and a difference" in (project / "site" / "room" / "page" / "index.html").read_text()
    page.rename(page.with_name("moved.md"))
    (project / "docs" / "index.md").touch()
    assert not build(
        write(root, tmp_path, {"room/moved.md": page.with_name("moved.md").read_text()})
    )
    assert "docs/index.md:3: " in capfd.readouterr().err + caplog.text


DOCSTRINGS = {
    "index.md": "# A\n\nSee [twice][small.twice].\n",
    "api.md": "# API\n\n::: small\n",
}


def documented(root, folder, docstring="Two times. See [`once`][small.once]."):
    """A small site that shows the docstrings of a small package."""
    (folder / "small.py").write_text(
        f'def once(x):\n    """One time."""\n\n\ndef twice(x):\n    """{docstring}"""\n'
    )
    python = {"paths": [str(folder)], "options": {"show_root_heading": True}}
    plugins = [{"mkdocstrings": {"handlers": {"python": python}}}]
    return write(root, folder, DOCSTRINGS, plugins=plugins)


def test_pages_with_docstrings_are_kept_together(root, tmp_path, monkeypatch):
    project = documented(root, tmp_path)
    assert build(project)
    first = contents(project / "site")
    assert b'href="#small.once"' in first["api/index.html"]
    assert b'href="api/#small.twice"' in first["index.html"]
    assert first["objects.inv"]
    with monkeypatch.context() as patched:
        # nothing is rendered again
        patched.setattr("mkdocs.structure.pages.Page.render", None)
        assert build(project)
    assert contents(project / "site") == first
    page = project / "docs" / "index.md"
    page.write_text(page.read_text() + "\nMore.\n")
    assert build(project)
    assert b"More." in contents(project / "site")["index.html"]


def test_a_broken_reference_is_told_by_every_build(root, tmp_path, caplog):
    project = documented(root, tmp_path, "Two times. See [`thrice`][small.thrice].")
    for _ in range(2):
        caplog.clear()
        assert not build(project)
        assert "Could not find cross-reference target 'small.thrice'" in caplog.text


PAGE = "room/page.md"


@pytest.mark.parametrize(
    ("page", "old", "new", "line", "message"),
    [
        (PAGE, "#> 0.5", "#> 0.7", 10, "printed '0.5', expected '0.7'"),
        (PAGE, "assert half < 1", "assert half > 1", 13, "AssertionError"),
        (PAGE, "```python\nfig", "```python title='a'\nfig", 23, "pytest-codeblocks skips the"),
        (PAGE, "| a | b |", "<!--pytest-codeblocks:cont-->\n\n| a | b |", 29, "stray cont: no "),
        (
            PAGE,
            "half = 1 / 2",
            "import stabilitykit as sk; half = sk.gain('tahn').forward",
            8,
            "\n    raised at stabilitykit/_activations.py:",
        ),
        (PAGE, 'alt="A line up to one half."', 'alt=""', 27, "this figure has no alt text"),
        (PAGE, "and `0.5`", "and `0.6`", 16, "the number `0.6` is printed nowhere"),
        (PAGE, "$\\sigma_w^2$", "$\\sgima_w^2$", 16, "Undefined control sequence: \\sgima"),
        (PAGE, "\\sum_i x_i = 1", "\\sum_i x_{i = 1", 19, "formula '\\\\boxed{\\\\sum_i x_{i"),
        (PAGE, "to $1/2$.", "to $\\half$.", 27, "Undefined control sequence: \\half"),
        (PAGE, "or $\\chi$?", "or $\\hci$?", 4, "Undefined control sequence: \\hci"),
        ("index.md", "room/page.md#claim-1", "room/pgae.md", 3, "link 'room/pgae.md'"),
        ("index.md", "page.md#claim-1", "page.md#claim-2", 3, "anchor '#claim-2'"),
        ("index.md", "page.md#figure-half", "page.md#figure-hlaf", 3, "anchor '#figure-hlaf'"),
        ("index.md", "(claims.md)", "(/claims.md)", 4, "absolute link '/claims.md'"),
        ("index.md", "(claims.md)", "(claims/)", 4, "unrecognized relative link 'claims/'"),
    ],
)
def test_a_corrupted_page_fails_the_build_and_names_the_line(
    refused, page, old, new, line, message
):
    assert old in PAGES[page]
    said = refused(PAGES | {page: PAGES[page].replace(old, new)})
    # a message goes on in indented lines
    told = re.findall(rf"docs/{re.escape(page)}:{line}: .*(?:\n    .*)*", said)
    assert told, said
    assert any(message in problem for problem in told), told


def test_the_line_is_that_of_the_fault_not_of_its_likes(refused):
    page = "# T\n\n$a_1$, a_ in `a_`, [x](data.md)\n\nText.\n\n$a_$ and [y](a.md)\n"
    said = refused({"index.md": page, "data.md": "# D\n"})
    assert "docs/index.md:7: formula 'a_'" in said
    assert "docs/index.md:7: Doc file 'index.md' contains a link 'a.md'" in said


def test_all_that_is_wrong_is_told_at_once(refused):
    page = PAGES[PAGE].replace("print(half)", "print(half, 2)")
    index = PAGES["index.md"] + "\n$\\x$ and $\\y$\n"
    said = refused({**PAGES, PAGE: page, "index.md": index})
    told = re.findall(r"^docs/[\w/.]+:\d+: [\w ]+", said, re.M)
    assert told == [
        "docs/index.md:6: formula ",
        "docs/index.md:6: formula ",
        f"docs/{PAGE}:10: printed ",
    ]
    assert "3 problems on the pages" in said


def test_a_page_that_the_navigation_forgets_is_refused(refused):
    said = refused(PAGES, nav=["index.md", "claims.md"])
    assert PAGE in said
    assert "not included" in said


def test_a_failed_build_says_so_without_a_traceback(root, tmp_path):
    project = write(root, tmp_path, {"index.md": "# A\n\nA formula $\\x$.\n"})
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "docs/index.md:3: formula '\\\\x': Undefined control sequence" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_builds_of_one_folder_take_turns(root, tmp_path):
    pages = {f"p{n}.md": f"# Page {n}\n\nText.\n" for n in range(20)}
    project = write(root, tmp_path, {"index.md": "# A\n"} | pages)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    kept = {"cwd": project, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    builds = [subprocess.Popen(command, **kept) for _ in range(3)]
    said = [build.communicate(timeout=120)[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0, 0], said
    assert sum("Waiting for another build" in text for text in said) >= 1
    assert len(list((project / "site").rglob("index.html"))) == 21


def test_a_reader_sees_each_change_as_it_is_saved(root, tmp_path, chromium):
    """`make serve` without its set-up, and a tab that nobody reloads."""
    project = write(
        root,
        tmp_path,
        PAGES | {"index.md": PAGES["index.md"] + "\n```python\nprint(1)\n#> 1\n```\n"},
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(root / "scripts" / "serve.py"), "--port", port]
    log = tmp_path / "log"
    with log.open("w") as output, sync_playwright() as playwright:
        server = subprocess.Popen(
            command, cwd=project, stdout=output, stderr=output, env=os.environ | {"CI": ""}
        )
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()

        def wait_for(text):
            told = "text => document.querySelector('article').innerText.includes(text)"
            try:
                tab.wait_for_function(told, arg=text, timeout=60_000)
            except PlaywrightError as error:
                pytest.fail(f"{text!r} was not shown; the server said:\n{log.read_text()}{error}")

        try:
            while server.poll() is None and "Serving on" not in log.read_text():
                time.sleep(0.1)
            tab.goto(f"http://127.0.0.1:{port}/room/page/")
            wait_for("#> 0.5")
            page = project / "docs" / PAGE
            before = len(log.read_text())
            page.write_text(PAGES[PAGE].replace("half = 1 / 2", "half = 1 / 4"))
            wait_for(f"docs/{PAGE}:10: printed '0.25', expected '0.5'")
            page.write_text(PAGES[PAGE].replace("1 / 2\n", "2 / 4\n").replace("Text", "New text"))
            wait_for("New text")
            said = log.read_text()[before:]
            assert f"docs/{PAGE}: ran" in said
            assert "docs/index.md: ran" not in said  # unchanged pages are not run again
            assert server.poll() is None
        finally:
            browser.close()
            server.terminate()
            server.wait(30)


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, other):
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["default", "slate"])
def test_colours_can_be_told_from_their_background(root, scheme):
    css = (root / "docs" / "assets" / "site.css").read_text()
    rules = re.search(rf'\[data-md-color-scheme="{scheme}"\] {{(.*?)}}', css, re.S)[1]
    colours = dict(re.findall(r"--sk-([\w-]+): (#[0-9a-f]{6});", rules))
    assert {f"c{n}" for n in range(8)} <= colours.keys()
    for name, colour in colours.items():
        if name in {"bg", "code-bg", "grid"}:
            continue
        # WCAG 2.2: 3 for graphics (1.4.11), 4.5 for text (1.4.3)
        wanted = 3 if re.fullmatch(r"c\d", name) else 4.5
        assert _contrast(colour, colours["bg"]) >= wanted, name
        if wanted > 3:
            assert _contrast(colour, colours["code-bg"]) >= wanted, name


def test_figure_files_have_the_colours_of_the_light_theme(root):
    from scripts.pages.draw import COLOURS

    css = (root / "docs" / "assets" / "site.css").read_text()
    for colour, variable in COLOURS.items():
        assert f"{variable}: {colour};" in css
