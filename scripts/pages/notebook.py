"""A script that the engine ran, as an executed notebook, and that notebook's HTML made ours.

The engine runs a script as it runs a page: same process, cache, checks and figures. The notebook
plugin then only renders. What it adds of its own, half a megabyte of styles, scripts from other
hosts and wrappers, is taken off again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup, Comment, NavigableString, Tag
from markdown import markdown
from nbformat.v4 import new_code_cell, new_output

from .build import Built, Figure
from .cache import write_whole
from .download import notebook
from .parse import Block

_FORMULA = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^\s$](?:[^$]*[^\s$])?)\$", re.S)
_FOLD = re.compile(r"\s*fold: (?P<summary>.+?)\s*")
_OPENING = re.compile("\N{STX}fold (.*?)\N{ETX}")


def execute(built: Built, folder: Path) -> Path:
    """Write the executed notebook of a script that was built.

    Args:
        built: what the engine made of the script.
        folder: where to write it, whole or not at all.

    Returns:
        the notebook's path.
    """
    page = built.page
    numbers = {block.line: number for number, block in enumerate(page.blocks)}
    made = notebook(page, lambda block: _cell(built, numbers[block.line]), lambda figure: "")
    path = (folder / page.name).with_suffix(".ipynb")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, nbformat.writes(made).encode())
    return path


def _cell(built: Built, number: int) -> nbformat.NotebookNode:
    block = built.page.blocks[number]
    printed = [line for unit in built.run.outputs[number] for line in unit]
    outputs = []
    if printed:
        outputs.append(new_output("stream", name="stdout", text="\n".join(printed) + "\n"))
    if block.figure:
        figure = next(f for f in built.figures if f.name == block.figure.name)
        # The plugin parses what it shows, and `clean` puts the figure in: see there.
        stub = f'<figure id="figure-{figure.name}"></figure>'
        data = {"image/svg+xml": figure.svg.decode(), "text/html": stub}
        outputs.append(new_output("display_data", data=data))
    code = "\n".join(line for line in block.code.splitlines() if not line.startswith("#>"))
    return new_code_cell(code.strip(), outputs=outputs, execution_count=number + 1)


def _html(figure: Figure, link: Callable[[str], str]) -> str:
    caption = markdown(figure.caption).removeprefix("<p>").removesuffix("</p>")
    caption = re.sub(
        r'(?<= href=")[^"]*', lambda target: escape(link(unescape(target[0]))), caption
    )
    return (
        f'<figure class="sk-figure" id="figure-{figure.name}">'
        '<div class="sk-plot" tabindex="0" role="group" aria-label="Figure, scrollable">'
        f"{figure.themed_svg}</div><figcaption>{caption}</figcaption></figure>"
    )


def clean(html: str, built: Built | None, link: Callable[[str], str] = lambda to: to) -> str:
    """The plugin's HTML as one of our pages would be, without its styles, scripts and wrappers.

    Args:
        html: what mkdocs-jupyter made of the notebook.
        built: what the engine made of it; None when it failed, and figures are missing.
        link: from the target of a link as written to the one for readers.

    Returns:
        the cells one below the other; formulas await rendering, in elements of class arithmatex.
    """
    start, end = html.index('<div class="jupyter-wrapper">'), html.index("<!-- jp-Notebook -->")
    soup = BeautifulSoup(html[start:end], "html.parser")
    blocks = iter(built.page.blocks if built else ())
    parts: list[str] = []
    for cell in soup.select(".jupyter-wrapper .jp-Notebook-cell"):
        if cell.find(class_="jp-Notebook-cell"):
            continue  # the plugin puts each code cell into a second one
        text = cell.find(class_="jp-RenderedMarkdown")
        if text:
            parts.append(_text(text, link))
        else:
            parts.append(_code(cell, next(blocks, None)))
    made = "\n".join(parts)
    for figure in built.figures if built else ():
        # As it was written: an HTML parser spells the SVG's names its own way.
        made = made.replace(_placeholder(f"figure {figure.name}"), _html(figure, link))
    made = made.replace(_placeholder("fold end"), "</details>")
    return _OPENING.sub(r"<details><summary>\1</summary>", made)


def _placeholder(said: str) -> str:
    return f"\N{STX}{said}\N{ETX}"


def _code(cell: Tag, block: Block | None) -> str:
    parts = [f'<a id="{c.anchor}" class="sk-claim"></a>' for c in (block.claims if block else ())]
    if pre := cell.select_one(".highlight-ipynb pre"):
        parts.append(
            f'<div class="language-python highlight"><pre><span></span><code>'
            f"{pre.decode_contents().removeprefix('<span></span>')}</code></pre></div>"
        )
    for output in cell.select(".jp-OutputArea-output"):
        if figure := output.find("figure"):
            parts.append(_placeholder(str(figure["id"]).replace("-", " ", 1)))
        elif pre := output.find("pre"):
            said = escape(pre.get_text().rstrip(), quote=False)
            parts.append(
                '<pre class="sk-printed" tabindex="0" role="group" aria-label="Output">'
                f"{said}</pre>"
            )
    return "\n".join(parts)


def _text(text: Tag, link: Callable[[str], str]) -> str:
    for comment in text.find_all(string=lambda string: isinstance(string, Comment)):
        # An element ends where its cell ends, so what folds several cells is told by comments.
        fold = _FOLD.fullmatch(comment)
        comment.replace_with(_placeholder(f"fold {fold['summary']}") if fold else "")
    for anchor in text.find_all("a"):
        if "anchor-link" in (anchor.get("class") or ()):
            anchor["class"], anchor["title"] = "headerlink", "Link to this section"
        elif anchor.has_attr("href"):
            anchor["href"] = link(str(anchor["href"]))
    for string in list(text.find_all(string=True)):
        if type(string) is NavigableString and not string.find_parent(["code", "pre"]):
            found = _with_formulas(string)
            if found:
                string.replace_with(BeautifulSoup(found, "html.parser"))
    return text.decode_contents().strip()


def _with_formulas(string: str) -> str | None:
    """The text with its formulas marked, or None when it has none."""

    def marked(match: re.Match[str]) -> str:
        if match["display"]:
            return f'<span class="arithmatex">\\[{match["display"]}\\]</span>'
        return f'<span class="arithmatex">\\({match["inline"]}\\)</span>'

    made = _FORMULA.sub(marked, escape(string, quote=False))
    return made if made != escape(string, quote=False) else None
