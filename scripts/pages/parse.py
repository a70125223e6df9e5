"""A page's Markdown as blocks, statements, expected outputs, claims and figures."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field

from .problems import PageError, PageErrors
from .script import CONT, script_lines

MAX_BLOCK_LINES = 25  # convention: longer code belongs in the package

_FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})(?P<info>.*)$")
_PYTHON = re.compile(r"(?i)(?<![a-z])(py|python|python3|pycon|ipython)(?![a-z])")
_SHELL = re.compile(r"(?i)^\s*\{?\s*\.?(sh|bash|zsh)\b")
_FIGURE = re.compile(r"<!--\s*figure:(?P<body>.*?)-->", re.DOTALL)
_ATTRIBUTE = re.compile(r'\s*(?P<key>\w+)="(?P<value>(?:[^"\\]|\\.)*)"')
_KEBAB = re.compile(r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
_MARK = re.compile(r"<!--[-\s]*pytest[-.]")


@dataclass(frozen=True)
class Unit:
    """A top-level statement (or several that share a line) and what it should print."""

    line: int  # first line on the page
    end: int  # last line on the page, output lines not counted
    nodes: tuple[ast.stmt, ...]
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """A sentence that an assert proves."""

    text: str
    line: int
    evidence: str
    anchor: str


@dataclass(frozen=True)
class FigureSpec:
    """What the page says of the figure that a block draws."""

    name: str
    alt: str
    caption: str
    line: int
    end: int


@dataclass(frozen=True)
class Block:
    """One python fence: `line` is that of its opening fence."""

    line: int
    end: int
    code: str
    units: tuple[Unit, ...]
    claims: tuple[Claim, ...]
    figure: FigureSpec | None = None


@dataclass(frozen=True)
class Page:
    """A parsed page; `prose` holds each line that is neither code nor front matter."""

    name: str
    text: str
    blocks: tuple[Block, ...]
    prose: tuple[tuple[int, str], ...] = field(repr=False)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def markdown(self) -> list[str]:
        """The lines as Markdown, which differ from `lines` when the page is a script."""
        return _markdown(self.text, self.name)


@dataclass(frozen=True)
class _Fence:
    line: int
    end: int
    info: str
    is_python: bool


def parse(text: str, name: str) -> Page:
    """Read a page, refusing whatever a reader or pytest-codeblocks would take differently.

    Args:
        text: the page's Markdown, or a notebook as a percent script.
        name: what messages call it, such as `docs/signal/gain.md`; a script's ends in `.py`.

    Raises:
        PageErrors: every refusal on this page, each with its line.
    """
    reader = _Reader(text, name)
    page = reader.read()
    if reader.errors:
        raise PageErrors(reader.errors)
    return page


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.lines = _markdown(text, name)
        self.errors: list[PageError] = []
        self.claims = 0

    def refuse(self, line: int, message: str) -> None:
        self.errors.append(PageError(self.name, line, message))

    def read(self) -> Page:
        start = self._front_matter()
        fences, prose = self._fences(start)
        figures = self._figures(prose)
        self._check_comments(fences, prose)
        blocks = tuple(self._block(f, figures.pop(f.end, None)) for f in fences if f.is_python)
        for spec in figures.values():
            self.refuse(spec.line, "this figure comment follows no python block")
        names: dict[str, int] = {}
        for block in blocks:
            if block.figure:
                spec = block.figure
                if spec.name in names:
                    self.refuse(
                        spec.line,
                        f'figure name "{spec.name}" is taken by line {names[spec.name]}',
                    )
                names.setdefault(spec.name, spec.line)
        return Page(self.name, self.text, blocks, tuple(prose))

    def _front_matter(self) -> int:
        if self.lines and self.lines[0].strip() == "---":
            for index, line in enumerate(self.lines[1:], 1):
                if line.strip() == "---":
                    return index + 1
            self.refuse(1, "the front matter has no closing ---")
        return 0

    def _fences(self, start: int) -> tuple[list[_Fence], list[tuple[int, str]]]:
        fences: list[_Fence] = []
        prose: list[tuple[int, str]] = []
        index = start
        while index < len(self.lines):
            match = _FENCE.match(self.lines[index])
            if not match:
                if "--8<--" in self.lines[index]:
                    self.refuse(index + 1, "a snippet include is never run; write the code here")
                prose.append((index + 1, self.lines[index]))
                index += 1
                continue
            ticks, info = match["ticks"], match["info"]
            closing = re.compile(rf"^\s*{re.escape(ticks[0])}{{{len(ticks)},}}\s*$")
            end = index + 1
            while end < len(self.lines) and not closing.match(self.lines[end]):
                end += 1
            if end == len(self.lines):
                self.refuse(index + 1, "this fence is never closed")
            bare = self.lines[index] == "```python"
            if not bare and _PYTHON.search(info):
                self.refuse(
                    index + 1,
                    f"pytest-codeblocks skips the fence {self.lines[index].strip()!r}; "
                    "write a bare ```python at the start of the line",
                )
            if _SHELL.match(info):
                self.refuse(
                    index + 1, "pytest-codeblocks would run this shell fence; write ```console"
                )
            fences.append(_Fence(index + 1, end + 1, info.strip(), bare))
            index = end + 1
        return fences, prose

    def _check_comments(self, fences: list[_Fence], prose: list[tuple[int, str]]) -> None:
        """Hold the rule that every block after the first continues the one before."""
        by_line = {fence.line: n for n, fence in enumerate(fences)}
        continued = set()
        for line, content in prose:
            if content.strip() == CONT and content == CONT:
                n = by_line.get(line + 1)
                if n is None or not fences[n].is_python:
                    self.refuse(line, "stray cont: no ```python fence on the next line")
                    continue
                continued.add(line + 1)
                if n == 0:
                    self.refuse(line, "stray cont: there is no block before this one")
                elif not fences[n - 1].is_python:
                    self.refuse(
                        line,
                        f"cont would join the {fences[n - 1].info or 'plain'!r} fence of line "
                        f"{fences[n - 1].line} and never run; move that fence",
                    )
            elif _MARK.search(content):
                self.refuse(line, f"only {CONT} is allowed on a page, got {content.strip()!r}")
        python = [fence for fence in fences if fence.is_python]
        for fence in python[1:]:
            if fence.line not in continued:
                self.refuse(fence.line, f"the line above this block must be {CONT}")

    def _figures(self, prose: list[tuple[int, str]]) -> dict[int, FigureSpec]:
        """Figure comments by the line of the closing fence that they follow."""
        kept = dict(prose)
        masked = "\n".join(kept.get(n, "") for n in range(1, len(self.lines) + 1))
        found: dict[int, FigureSpec] = {}
        for match in _FIGURE.finditer(masked):
            line = masked.count("\n", 0, match.start()) + 1
            end = masked.count("\n", 0, match.end()) + 1
            values = self._attributes(match["body"], line)
            previous = line - 1
            while previous > 0 and not self.lines[previous - 1].strip():
                previous -= 1
            spec = FigureSpec(values["name"], values["alt"], values["caption"], line, end)
            found[previous] = spec
        return found

    def _attributes(self, body: str, line: int) -> dict[str, str]:
        values = {
            m["key"]: " ".join(m["value"].replace('\\"', '"').split())
            for m in _ATTRIBUTE.finditer(body)
        }
        rest = _ATTRIBUTE.sub("", body).strip()
        if rest:
            self.refuse(line, f'figure comment: cannot read {rest!r}, expected key="value" pairs')
        for key in sorted(values.keys() - {"name", "alt", "caption"}):
            self.refuse(line, f"figure comment: unknown key {key!r}; name, alt, caption are known")
        for key in ("alt", "caption"):
            if not values.get(key):
                self.refuse(line, f"this figure has no {key} text")
        name = values.get("name", "")
        if not _KEBAB.match(name):
            self.refuse(line, f"figure name {name!r} is not kebab-case, such as gain-by-q")
        return {key: values.get(key, "") for key in ("name", "alt", "caption")}

    def _block(self, fence: _Fence, figure: FigureSpec | None) -> Block:
        code = "\n".join(self.lines[fence.line : fence.end - 1]) + "\n"
        length = sum(1 for c in code.splitlines() if c.strip() and not c.startswith("#>"))
        if length > MAX_BLOCK_LINES:
            self.refuse(
                fence.line,
                f"this block has {length} lines, at most {MAX_BLOCK_LINES} are allowed: "
                "longer code becomes a function of the package",
            )
        try:
            tree = ast.parse("\n" * fence.line + code)  # so that nodes have the page's lines
        except SyntaxError as error:
            self.refuse(error.lineno or fence.line, f"SyntaxError: {error.msg}")
            return Block(fence.line, fence.end, code, (), (), figure)
        groups = _groups(tree.body)
        outputs, claims = self._comments(code, fence.line)
        units = []
        for nodes in groups:
            end = max(node.end_lineno or node.lineno for node in nodes)
            expected: list[str] = []
            while end + len(expected) + 1 in outputs:
                expected.append(outputs.pop(end + len(expected) + 1))
            units.append(Unit(_first_line(nodes[0]), end, tuple(nodes), tuple(expected)))
        for line in sorted(outputs):
            self.refuse(line, "this output line stands under no statement")
        made = []
        for line, end, text in claims:
            unit = next((u for u in units if u.line == end + 1), None)
            if unit is None or not isinstance(unit.nodes[0], ast.Assert):
                self.refuse(line, "no assert stands right below this claim")
                continue
            self.claims += 1
            evidence = "\n".join(self.lines[unit.line - 1 : unit.end])
            made.append(Claim(text, line, evidence, f"claim-{self.claims}"))
        return Block(fence.line, fence.end, code, tuple(units), tuple(made), figure)

    def _comments(
        self, code: str, offset: int
    ) -> tuple[dict[int, str], list[tuple[int, int, str]]]:
        """Output lines by page line, and claims as (first line, last line, text)."""
        outputs: dict[int, str] = {}
        claims: list[tuple[int, int, str]] = []
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type != tokenize.COMMENT:
                continue
            line, text = token.start[0] + offset, token.string
            alone = not token.line[: token.start[1]].strip()
            if text.startswith("#>"):
                if token.start[1]:
                    self.refuse(
                        line, "an output line starts at column 1, under its top-level statement"
                    )
                else:
                    outputs[line] = text[2:].removeprefix(" ").rstrip()
            elif re.match(r"#\s*claim\b", text, re.IGNORECASE):
                if not text.startswith("# Claim: ") or token.start[1]:
                    self.refuse(line, 'a claim is written "# Claim: …" at column 1')
                else:
                    claims.append((line, line, text.removeprefix("# Claim: ").strip()))
            elif claims and alone and line == claims[-1][1] + 1 and not token.start[1]:
                first, _, said = claims.pop()
                claims.append((first, line, f"{said} {text.lstrip('# ').strip()}"))
        return outputs, claims


def _markdown(text: str, name: str) -> list[str]:
    return script_lines(text, name) if name.endswith(".py") else text.splitlines()


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)])


def _groups(body: list[ast.stmt]) -> list[list[ast.stmt]]:
    """Statements that share a line belong together."""
    groups: list[list[ast.stmt]] = []
    for node in body:
        if groups and (groups[-1][-1].end_lineno or 0) >= node.lineno:
            groups[-1].append(node)
        else:
            groups.append([node])
    return groups
