"""The cache is fast, and never trusted further than its checksum."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.pages import build
from scripts.pages.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = "# T\n\n```python\nx = {n}\nprint(x, __import__('time').time_ns())\n```\n"


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# T\n\n```python\nx = 1\nprint(x)\n#> 1\n```\n")
    return folder


def run(docs, **options):
    options.setdefault("cache", docs.parent / "cache")
    return build([docs / "a.md"], root=docs.parent, **options)["docs/a.md"]


def test_an_unchanged_page_is_recalled_and_a_changed_one_runs(docs):
    assert not run(docs).cached
    assert run(docs).cached
    page = docs / "a.md"
    page.write_text("# Another title\n\nMore prose.\n\n" + page.read_text())
    assert run(docs).cached, "prose is not part of the key"
    page.write_text(page.read_text().replace("x = 1", "x = 1 + 0"))
    assert not run(docs).cached


def test_a_recalled_page_is_still_checked(docs):
    run(docs)
    page = docs / "a.md"
    page.write_text(page.read_text().replace("#> 1", "#> 2"))
    with pytest.raises(Exception, match=r"docs/a\.md:6: printed '1', expected '2'"):
        run(docs)


def test_a_change_in_the_package_runs_the_page_again(docs):
    package = docs.parent / "stabilitykit"
    package.mkdir()
    (package / "__init__.py").write_text("one = 1\n")
    assert not run(docs).cached
    assert run(docs).cached
    (package / "__init__.py").write_text("one = 2\n")
    assert not run(docs).cached


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "other"])
def test_a_damaged_entry_is_run_again(docs, damage):
    run(docs)
    (entry,) = (docs.parent / "cache").glob("*.json")
    whole = entry.read_bytes()
    if damage == "truncate":
        entry.write_bytes(whole[: len(whole) // 2])
    elif damage == "flip":
        assert whole.count(b'["1"]') == 1
        entry.write_bytes(whole.replace(b'["1"]', b'["2"]'))
    elif damage == "empty":
        entry.write_bytes(b"")
    else:
        entry.write_bytes(b"[]")
    again = run(docs)
    assert not again.cached
    assert again.run.outputs == [[[], ["1"]]]
    assert run(docs).cached


COMMAND = [sys.executable, "-m", "scripts.pages", "check"]


def many(tmp_path, count=8):
    docs = tmp_path / "docs"
    docs.mkdir()
    for n in range(count):
        (docs / f"p{n}.md").write_text(
            f"# T\n\n```python\nx = sum(range({n}, 1000))\nprint(x)\n"
            f"#> {sum(range(n, 1000))}\n```\n"
        )
    return sorted(docs.glob("*.md"))


def test_a_build_killed_at_any_moment_leaves_nothing_that_a_later_build_trusts(tmp_path):
    pages = many(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    cache = tmp_path / ".cache" / "pages"
    for entries in (0, 1, 4):  # while it starts, and as soon as so much of the cache is written
        process = subprocess.Popen(
            [*COMMAND, "--root", tmp_path, *pages],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.5)
        while len(os.listdir(cache) if cache.exists() else ()) < entries:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = len(list(cache.glob("*.json")))
    assert killed < len(pages)
    built = build(pages, root=tmp_path, cache=cache)
    for n, name in enumerate(sorted(built)):
        assert built[name].run.outputs == [[[], [str(sum(range(n, 1000)))]]]
    assert sum(b.cached for b in built.values()) == killed
    assert all(b.cached for b in build(pages, root=tmp_path, cache=cache).values())


def test_two_builds_at_once_do_not_harm_each_other(tmp_path):
    pages = many(tmp_path, count=4)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    builds = [
        subprocess.Popen(
            [*COMMAND, "--root", tmp_path, *pages],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    for process in builds:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert "4 pages hold" in said
    cache = tmp_path / ".cache" / "pages"
    assert all(b.cached for b in build(pages, root=tmp_path, cache=cache).values())
    assert not list(cache.glob(".*.part"))


def test_update_rewrites_only_what_disagrees(docs, capsys):
    page = docs / "a.md"
    page.write_text(
        "# T\n\n```python\nprint(1 / 3)\n#> 0.33334\nprint(2)\n#> 3\n#> 4\nprint(5)\n"
        "for n in range(2):\n    print(n)\n```\n"
    )
    arguments = ["--root", str(docs.parent), str(page)]
    assert main(["check", *arguments]) == 1
    assert "docs/a.md:7: printed '2', expected '3'" in capsys.readouterr().err
    assert main(["update", *arguments]) == 0
    assert page.read_text() == (
        "# T\n\n```python\nprint(1 / 3)\n#> 0.33334\nprint(2)\n#> 2\nprint(5)\n#> 5\n"
        "for n in range(2):\n    print(n)\n#> 0\n#> 1\n```\n"
    )
    assert main(["check", *arguments]) == 0
    assert "1 pages hold, 0 claims proved" in capsys.readouterr().out


def test_figures_are_written_as_files(docs):
    page = docs / "a.md"
    page.write_text(
        "```python\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\n```\n"
        '<!--figure: name="two-points" alt="b" caption="c"-->\n\n'
        "<!--pytest-codeblocks:cont-->\n```python\nplt.plot([2, 1])\n```\n"
        '<!--figure: name="falling" alt="b" caption="c"-->\n'
    )
    to = docs.parent / "figures"
    # A build before it draws as PNG only what links to the page show.
    assert main(["check", "--root", str(docs.parent), str(page)]) == 0
    assert main(["figures", "--root", str(docs.parent), "--to", str(to), str(page)]) == 0
    names = ["falling.png", "falling.svg", "two-points.png", "two-points.svg"]
    assert sorted(p.name for p in (to / "a").iterdir()) == names


def test_a_page_that_is_not_there_gets_one_line(docs, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["check", "--root", str(docs.parent), str(docs / "b.md")])
    assert "b.md is not a file below" in capsys.readouterr().err
