"""pytest-codeblocks and the page engine must run the same program on every page."""

import subprocess
import sys
from pathlib import Path

import pytest
from pytest_codeblocks.main import extract_from_file

from scripts.pages import build, parse
from scripts.pages.__main__ import find_pages

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *(path for path in find_pages(ROOT) if path.suffix == ".md")]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_same_blocks(path):
    page = parse(path.read_text(encoding="utf-8"), path.name)
    collected = [b for b in extract_from_file(path) if b.syntax in {"python", "sh", "bash"}]
    # All blocks of a page are one chain, so the plugin sees one program or none.
    expected = ["".join(block.code for block in page.blocks)] if page.blocks else []
    assert [block.code for block in collected] == expected
    assert [block.lineno for block in collected] == [block.line for block in page.blocks[:1]]


def test_there_are_pages():
    assert len(PAGES) > 1


def test_what_the_readme_prints_is_true():
    assert len(build([README], root=ROOT)["README.md"].page.blocks) == 2


PAGE = """\
# A page

```python
import stabilitykit as sk
scale = 2
```

Text.

<!--pytest-codeblocks:cont-->
```python
# A comment.

{line}
```
"""


FAILURES = {
    "assert scale == 3": "AssertionError",
    "scale / 0": "ZeroDivisionError: division by zero",
    "raise ValueError('first\\nsecond')": "ValueError: first",
}
MESSES = """\
```python
from pathlib import Path

import matplotlib.pyplot as plt
import torch

torch.set_default_dtype(torch.float64)
torch.manual_seed(3)
plt.rcParams["font.size"] = 99
plt.plot([1])
Path("left").touch()
```
"""
EXPECTS_NO_MESS = """\
```python
from pathlib import Path

import matplotlib.pyplot as plt
import torch

assert torch.tensor(1.0).dtype == torch.float32
assert torch.initial_seed() != 3
assert plt.rcParams["font.size"] != 99
assert not plt.get_fignums()
assert not Path("left").exists()
```
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What one run says of pages that fail, a page that leaves a mess and one that finds none."""
    folder = tmp_path_factory.mktemp("pages")
    texts = [PAGE.format(line=line) for line in FAILURES] + [MESSES, EXPECTS_NO_MESS]
    pages = [folder / f"page{n}.md" for n in range(len(texts))]
    for page, text in zip(pages, texts, strict=True):
        page.write_text(text)
    # The pages lie outside the repository, so its conftest is named.
    command = [sys.executable, "-m", "pytest", "--codeblocks", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-p", "conftest"]
    done = subprocess.run([*command, *map(str, pages)], cwd=ROOT, capture_output=True, text=True)
    assert not (ROOT / "left").exists()
    return done.stdout


@pytest.mark.parametrize("number", range(len(FAILURES)))
def test_failure_names_the_line_of_the_page(output, number):
    line, said = list(FAILURES.items())[number]
    assert f"page{number}.md:14: {said}" in output
    assert f"    {line}" in output


def test_pages_do_not_touch_each_other(output):
    assert f"{len(FAILURES)} failed, 2 passed" in output
