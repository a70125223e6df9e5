"""The adapter between the page engine and MkDocs, which knows both."""

from __future__ import annotations

import gc
import json
import logging
import re
import shutil
import sys
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import TextIO
from urllib.parse import urljoin

from jinja2 import FileSystemBytecodeCache
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.utils.meta import get_data

# The `mkdocs` command does not put the repository on the path, and MkDocs takes off what a hook
# put there when it was loaded: `on_config` puts it back for the processes that run the pages.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.pages import Built, cache, downloads, render, start
from scripts.pages.coverage import coverage_table, read_curriculum
from scripts.pages.notebook import clean, execute
from scripts.pages.parse import CONT
from scripts.pages.progress import progress
from scripts.pages.run import fork_server, preload_package
from scripts.site import kept
from scripts.site.claims import claims_table
from scripts.site.costs import costs_table
from scripts.site.drawings import put_back, take_out
from scripts.site.fonts import embed_fonts
from scripts.site.formulas import (
    FormulaError,
    characters,
    render_bare,
    render_formulas,
)
from scripts.site.locate import formula_line, link_line
from scripts.site.lock import locked
from scripts.site.mend import failed, mend
from scripts.site.navigation import written
from scripts.site.search import sections
from scripts.site.state import Site, listen
from scripts.site.stylesheets import trim_site

log = logging.getLogger("mkdocs.stabilitykit")

_REPOSITORY = str(Path(__file__).resolve().parents[1])

_CLAIMS, _COVERAGE, _COSTS = "<!--claims-->", "<!--coverage-->", "<!--costs-->"
_REFERS = re.compile(r"^::: |\]\[")


_site = Site(Path(), Path())
_lock: TextIO | None = None
_serving = False


def on_startup(*, command, dirty) -> None:
    global _serving
    _serving = command == "serve"
    if not _serving:
        gc.disable()  # a sixth of a build that changes nothing, and it ends soon
        preload_package()
    if _serving or not (Path(_REPOSITORY) / ".cache" / "pages").exists():
        fork_server()  # it loads for seconds, beside whatever comes before the first page


def on_config(config):
    """Start a build afresh."""
    global _site, _lock
    if _REPOSITORY not in sys.path:
        sys.path.insert(0, _REPOSITORY)
    root = Path(config.config_file_path).resolve().parent
    _site.close()
    _site = Site(root, Path(config.docs_dir).resolve())
    if _lock:
        _lock.close()
    _lock = locked(config.site_dir, root / ".cache" / "locks")
    listen(_site)
    config.nav = written(config.nav or [], _site.docs)
    return config


def on_files(files, config):
    """Begin to run every page; what fails is told in `on_env`, with all that fails later.

    Pages run while others are rendered.
    """
    files = Files(sorted(files, key=_turn))
    _site.files = {
        _site.name(file): file
        for file in files.documentation_pages()
        if file.src_uri.endswith((".md", ".py")) and file.abs_src_path
    }
    report = _site.shown.enter_context(progress(len(_site.files)))
    _site.building = start(
        [_site.root / name for name in _site.files],
        root=_site.root,
        cache=_site.root / ".cache" / "pages",
        report=report,
    )
    _site.surroundings = kept.surroundings(Path(config.config_file_path), files)
    if docstrings := config.plugins.get("mkdocstrings"):
        _compile_once(docstrings.get_handler("python").env)
    _recall_group()
    return files


def _turn(file: File) -> tuple[int, bool, int]:
    """First what need not run, while the processes start; last what tells of all the others.

    Between them notebooks, which take long to render, and the longest pages come first, so that at
    the end nothing waits for one.
    """
    path = Path(file.abs_src_path or "")
    if path.suffix not in {".md", ".py"}:
        return 0, True, 0
    text = path.read_text(encoding="utf-8")
    if _CLAIMS in text or _COVERAGE in text:
        return 2, True, 0
    notebook = path.suffix == ".py"
    return int(notebook or "```python" in text), not notebook, -len(text)


def _recall_group() -> None:
    """Pages that show docstrings or refer to them are kept together, since they link by name."""
    assert _site.building
    texts = {
        name: "\n".join(page.lines)
        for name, page in _site.building.pages.items()
        if any(_REFERS.search(text) for _, text in page.prose)
    }
    _site.group = dict.fromkeys(texts)
    _site.group_key = kept.key(_site.surroundings, *texts, *texts.values())
    if found := kept.load_group(_rendered(), _site.group_key):
        pages, _site.group_files = found
        _site.group |= pages


def _compile_once(env) -> None:
    """Keep the templates' bytecode between builds; compiling them takes a second."""
    folder = _site.root / ".cache" / "templates"
    folder.mkdir(parents=True, exist_ok=True)
    env.bytecode_cache = FileSystemBytecodeCache(str(folder))


@event_priority(100)  # before mkdocs-jupyter asks where the notebook is
def on_pre_page(page, *, config, files):
    """Wait for the page's own run."""
    name = _site.name(page.file)
    _site.wait(name)
    if name.endswith(".py") and name in _site.built:
        # mkdocs-jupyter renders what the engine has run: see `on_page_markdown`.
        page.file.abs_src_path = str(_notebooks() / f"{name.removesuffix('.py')}.ipynb")
    return page


def on_page_read_source(*, page, config):
    """A notebook is not read as text; it is written once it is clear that it will be rendered."""
    name = _site.name(page.file)
    return "" if name.endswith(".py") and name in _site.built else None


def on_page_markdown(markdown, *, page, config, files):
    """The page as the engine renders it, its claims, and the links to its downloads."""
    name = _site.name(page.file)
    errors = [error for error in _site.errors if error.name == name]
    built = _site.built.get(name)
    notebook = name.endswith(".py")
    if notebook and built:
        _, page.meta = get_data("\n".join(built.page.markdown))
    if errors and not notebook:
        return failed(errors) + markdown.replace(CONT + "\n", "")
    inserted = []
    if _CLAIMS in markdown or _COVERAGE in markdown:
        _site.wait()
    if _CLAIMS in markdown:
        inserted.append((_CLAIMS, claims_table(_site.built, name)))
    if _COVERAGE in markdown:
        curriculum = read_curriculum(_site.root / "scripts" / "curriculum.toml")
        pages = {name: built.page for name, built in _site.built.items()}
        inserted.append((_COVERAGE, coverage_table(pages, curriculum, name)))
    if _COSTS in markdown:
        measured = _site.root / "scripts" / "benchmarks" / "probe.json"
        inserted.append((_COSTS, costs_table(measured)))
    if built:
        drawn = [drawing.svg for drawing in built.run.drawings if drawing]
        text = "\n".join(built.page.lines)
        key = kept.key(name, _site.surroundings, text, *drawn, *(table for _, table in inserted))
        _site.keys[name] = key
        if found := _site.group.get(name) or kept.load(_rendered(), key):
            _site.kept[name] = found
            page.content, page.render = "", lambda config, files: None
            return ""
    if built and notebook:  # mkdocs-jupyter shows it, and `on_page_content` mends it
        execute(built, _notebooks())
    elif built:
        markdown, _ = get_data(render(built))
        markdown, _site.drawings[name] = take_out(markdown + _offered(built))
    for marker, table in inserted:
        markdown = markdown.replace(marker, table)
    return markdown


def _rendered() -> Path:
    return _site.root / ".cache" / "rendered"


def _notebooks() -> Path:
    return _site.root / ".cache" / "notebooks"


def on_page_content(html, *, page, config, files):
    """Formulas as HTML, and the outputs in code told apart from it."""
    name = _site.name(page.file)
    if found := _site.kept.get(name):
        kept.restore(page, found, files)
    else:
        errors = len(_site.errors)
        html, shown = _mended(html, page, files)
        offered = _site.downloads.get(name, {})
        found = kept.capture(page, html, shown, sections(html, page.url), offered)
        failed = len(_site.errors) > errors or name in _site.warned
        if name in _site.group:
            _site.group[name] = None if failed else found
        elif name in _site.keys and not failed:
            kept.store(_rendered(), _site.keys[name], found)
    for font, shown in found.characters.items():
        _site.characters[font] |= set(shown)
    _site.sections += found.sections
    _site.downloads[name] = {file: text.encode() for file, text in found.downloads.items()}
    return found.html


def _mended(html: str, page, files) -> tuple[str, dict[str, set[str]]]:
    """A page's HTML for readers, and the characters of its formulas by font."""
    name = _site.name(page.file)
    if name.endswith(".py"):
        html = _notebook(html, page, files)

    def refuse(error: FormulaError) -> None:
        package = sorted((_site.root / "stabilitykit").rglob("*.py"))
        path, line = formula_line(error.tex, [_site.root / name, *package])
        _site.refuse(path.relative_to(_site.root).as_posix(), line, str(error))

    html = render_formulas(html, refuse)
    shown = characters(html)
    entries = list(page.toc)
    while entries:
        entry = entries.pop()
        entry.title = render_bare(entry.title, refuse)
        entries += entry.children
    return mend(put_back(html, _site.drawings.get(name, []))), shown


@event_priority(-200)  # when mkdocstrings and autorefs have written all they write
def on_env(env, *, config, files):
    """Fail with everything that is wrong; a live server shows it and goes on."""
    _site.wait()
    _site.shown.close()
    _compile_once(env)
    _keep_group(Path(config.site_dir))
    for error in sorted(set(_site.errors)):
        print(error, file=sys.stderr)
    if _site.errors:
        count = len(set(_site.errors))
        message = f"{count} problem{'s' if count > 1 else ''} on the pages"
        if not _serving:
            raise PluginError(message)
        log.error(message)
    return env


def _keep_group(site: Path) -> None:
    group = {name: found for name, found in _site.group.items() if found}
    if _site.group_files or not group or len(group) < len(_site.group) or _site.plugins_warned:
        return
    for name, found in group.items():
        if page := _site.files[name].page:
            found.html = page.content or ""
    made = {name: site / name for name in ("objects.inv", "assets/_mkdocstrings.css")}
    files = {name: path.read_bytes() for name, path in made.items()}
    kept.store_group(_rendered(), _site.group_key, group, files)


def on_page_context(context, *, page, config, nav):
    """What the template says of a page to those who link to it."""
    built = _site.built.get(_site.name(page.file))
    if built and built.figures:
        figure = built.figures[0]
        path = f"{_figures(page.file)}/{figure.name}.png"
        context["figure"] = {"url": urljoin(config.site_url or "", path), "alt": figure.alt}
    return context


def on_shutdown() -> None:
    """Also when a build is interrupted or fails."""
    _site.close()


def on_post_build(*, config) -> None:
    """Write what pages offer beside their text; keep what few readers need out of first visits."""
    site = Path(config.site_dir)
    for name, built in _site.built.items():
        file = _site.files[name]
        for offered, content in _site.downloads.get(name, {}).items():
            _write(site / PurePosixPath(file.dest_uri).parent / offered, content)
        for figure in built.figures:
            _write(site / _figures(file) / f"{figure.name}.svg", figure.svg)
            if figure.png:
                _write(site / _figures(file) / f"{figure.name}.png", figure.png)
    # By page, since the order in which pages are rendered follows their length.
    found = sorted(_site.sections, key=lambda section: section["location"].partition("#")[0])
    index = json.dumps({"docs": found}, ensure_ascii=False).encode()
    _write(site / "search" / "search_index.json", index)
    for name, content in _site.group_files.items():
        _write(site / name, content)
    shutil.rmtree(site / "assets" / "javascripts")  # Material's, which no page loads
    cache.prune(_rendered())
    cache.prune(_site.root / ".cache" / "pages")
    if not _serving:
        formulas = site / "assets" / "katex" / "katex.min.css"
        if formulas.exists():
            embed_fonts(formulas, _site.characters, _rendered())
        trim_site(site)
        gc.freeze()  # else the end of the process searches for two seconds what it throws away
    if _lock:
        _lock.close()


def _notebook(html: str, page, files) -> str:
    """A notebook's HTML as that of a page, its links followed as MkDocs follows a page's."""
    name = _site.name(page.file)
    page.links_to_anchors = {}

    def link(target: str) -> str:
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            return target
        uri = normpath(f"{PurePosixPath(page.file.src_uri).parent}/{path}")
        file = files.get_file_from_path(uri) if path else page.file
        if file is None:
            text = (_site.root / name).read_text(encoding="utf-8")
            _site.refuse(name, link_line(target, text), f"the link {target!r} leads to no file")
            return target
        if anchor:
            page.links_to_anchors.setdefault(file, {})[anchor] = target
        url = file.url_relative_to(page.file) if path else ""
        return url + f"#{anchor}" * bool(anchor)

    built = _site.built.get(name)
    html = clean(html, built, link) + (_offered(built) if built else "")
    page.present_anchor_ids = set(re.findall(r'\bid="([^"]+)"', html))
    errors = [error for error in _site.errors if error.name == name]
    return failed(errors) + html if errors else html


def _offered(built: Built) -> str:
    """A page's last line: what it can be downloaded as."""
    files = _site.downloads[built.page.name] = downloads(built)
    links = " or ".join(
        f'<a href="{file}" download>{PurePosixPath(file).suffix}</a>' for file in files
    )
    return f'\n<p class="sk-downloads">This page as {links}</p>\n' if links else ""


def _figures(file) -> str:
    """The folder of a page's figure files in the site."""
    return f"figures/{PurePosixPath(file.src_uri).with_suffix('')}"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
