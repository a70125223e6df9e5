"""What the engine reads from a page, and what it refuses to read."""

import pytest

from scripts.pages import PageErrors, parse

CONT = "<!--pytest-codeblocks:cont-->"
FIRST = "```python\nx = 1\n```\n"


def refusals(text):
    with pytest.raises(PageErrors) as caught:
        parse(text, "docs/a.md")
    return [(error.line, error.message) for error in caught.value.errors]


def test_a_page_becomes_blocks_statements_and_expectations():
    page = parse(
        "---\ndescription: d\n---\n# T\n\n```python\nfor i in range(2):\n    print(i)\n"
        "#> 0\n#> 1\ny = 3; print(y)\n#> 3\n```\n",
        "docs/a.md",
    )
    (block,) = page.blocks
    assert block.line == 6
    assert [(u.line, u.end, u.expected) for u in block.units] == [
        (7, 8, ("0", "1")),
        (11, 11, ("3",)),
    ]


def test_a_claim_joins_its_comment_lines_and_keeps_its_evidence():
    page = parse(
        "```python\n# Claim: one is\n# still one.\nassert (\n    1 == 1\n)\n```\n", "docs/a.md"
    )
    (claim,) = page.blocks[0].claims
    assert claim.text == "one is still one."
    assert (claim.line, claim.anchor) == (2, "claim-1")
    assert claim.evidence == "assert (\n    1 == 1\n)"


def test_a_figure_comment_may_wrap_and_quote():
    page = parse(
        f'{FIRST}\n<!--figure: name="a-b" alt="An \\"odd\\"\nline" caption="C."-->\n',
        "docs/a.md",
    )
    figure = page.blocks[0].figure
    assert (figure.name, figure.alt, figure.caption) == ("a-b", 'An "odd" line', "C.")
    assert (figure.line, figure.end) == (5, 6)


@pytest.mark.parametrize(
    "fence",
    [
        "```{.python}",
        "``` python",
        '```python title="a"',
        "```py",
        "```Python",
        "```python3",
        "````python",
        "~~~python",
        "  ```python",
        "```pycon",
        "```{python}",
    ],
)
def test_fences_that_pytest_codeblocks_would_skip_are_refused(fence):
    ticks = fence.lstrip()[: len(fence.lstrip()) - len(fence.lstrip().lstrip("`~"))]
    ((line, message),) = refusals(f"text\n{fence}\nx = 1\n{ticks}\n")
    assert line == 2
    assert "pytest-codeblocks skips" in message


@pytest.mark.parametrize("shell", ["sh", "bash", "{.bash}"])
def test_shell_fences_are_refused(shell):
    assert refusals(f"```{shell}\nls\n```\n")[0][0] == 1


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (f"{CONT}\n{FIRST}", 1, "stray cont: there is no block before"),
        (f"{FIRST}\n{CONT}\n\ntext\n", 5, "stray cont: no ```python fence"),
        (f"{FIRST}\n{CONT}\n\n{FIRST}", 5, "stray cont: no ```python fence"),
        (f"{FIRST}\n{FIRST}", 5, "must be <!--pytest-codeblocks:cont-->"),
        (f"{FIRST}\n```text\na\n```\n{CONT}\n{FIRST}", 8, "would join the 'text' fence of line 5"),
        (f"<!--pytest-codeblocks:skip-->\n{FIRST}", 1, "only <!--pytest-codeblocks:cont-->"),
        (f"<!--pytest.mark.xfail-->\n{FIRST}", 1, "only <!--pytest-codeblocks:cont-->"),
        (f" {CONT}\n{FIRST}", 1, "only <!--pytest-codeblocks:cont-->"),
        ("```python\nx = (\n```\n", 2, "SyntaxError"),
        ("```python\n#> 1\nprint(1)\n```\n", 2, "stands under no statement"),
        ("```python\nprint(1)\n\n#> 1\n```\n", 4, "stands under no statement"),
        ("```python\nif True:\n    print(1)\n    #> 1\n```\n", 4, "starts at column 1"),
        ("```python\n# Claim: yes.\nx = 1\n```\n", 2, "no assert stands right below"),
        ("```python\n# claim: yes.\nassert True\n```\n", 2, "a claim is written"),
        ("```python\n" + "x = 1\n" * 26 + "```\n", 1, "has 26 lines, at most 25"),
        ("```python\nx = 1\n", 1, "never closed"),
        ("---\ntitle: a\n", 1, "no closing ---"),
        ('--8<-- "a.py"\n', 1, "snippet include"),
        (f'{FIRST}<!--figure: name="a" caption="b"-->\n', 4, "has no alt text"),
        (f'{FIRST}<!--figure: name="a" alt="" caption="b"-->\n', 4, "has no alt text"),
        (f'{FIRST}<!--figure: name="a" alt="b"-->\n', 4, "has no caption text"),
        (f'{FIRST}<!--figure: name="A b" alt="b" caption="c"-->\n', 4, "not kebab-case"),
        (f'{FIRST}<!--figure: name="a" alt="b" caption="c" id="d"-->\n', 4, "unknown key 'id'"),
        (f'{FIRST}<!--figure: name="a" alt="b" caption=c-->\n', 4, "cannot read 'caption=c'"),
        (f'{FIRST}\ntext\n<!--figure: name="a" alt="b" caption="c"-->\n', 6, "follows no python"),
    ],
)
def test_refusals_name_the_line(text, line, said):
    found = refusals(text)
    assert any(n == line and said in message for n, message in found), found


def test_a_figure_name_is_taken_once():
    figure = '<!--figure: name="a" alt="b" caption="c"-->\n'
    assert refusals(f"{FIRST}{figure}\n{CONT}\n{FIRST}{figure}") == [
        (10, 'figure name "a" is taken by line 4')
    ]


def test_every_refusal_of_a_page_is_reported_at_once():
    assert [line for line, _ in refusals("```py\nx\n```\n\n```bash\nls\n```\n")] == [1, 5]
