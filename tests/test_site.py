"""The built site in a real browser: every page, light, dark and on a phone."""

import gzip
import json
import re
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urljoin, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from lxml.html import document_fromstring
from playwright.sync_api import sync_playwright

# Budgets of the site, for a first visit on loopback
BYTES, SHIFT = 150_000, 0.01
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 800}
_RESOURCES = {
    "img": "src",
    "script": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
_LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect"}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def copyfile(self, source, outputfile):
        _, asked, mark = unquote(self.path).partition("?cut-at=")
        if not asked:
            return super().copyfile(source, outputfile)
        *pieces, rest = source.read().split(mark.encode(), maxsplit=8)
        for piece in pieces:
            outputfile.write(piece + mark.encode())
            outputfile.flush()
            time.sleep(0.1)  # several frames of the browser
        outputfile.write(rest)


@pytest.fixture(scope="session")
def address(site_dir):
    """The site, served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=site_dir))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser(chromium):
    """A browser without a memory."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Open a page as a first visitor; yields the tab and what went wrong while it was open."""

    @contextmanager
    def opened(page, size=DESK, scheme="light"):
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        tab, problems, responses = context.new_page(), [], []

        def asked(request):
            if urlsplit(request.url).hostname != "127.0.0.1":
                problems.append(f"asked another host: {request.url}")

        def answered(response):
            responses.append(response)
            if response.status >= 400:
                problems.append(f"{response.status}: {response.url}")

        def failed(request):
            if request.failure != "net::ERR_ABORTED":  # by a reload, on its way
                problems.append(f"failed: {request.url}")

        tab.on("request", asked)
        tab.on("response", answered)
        tab.on("requestfailed", failed)
        tab.on("console", lambda message: problems.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: problems.append(f"script: {error}"))
        tab.goto(urljoin(address, page), wait_until="load")
        tab.evaluate("document.fonts.ready")
        yield tab, problems, responses
        context.close()

    return opened


def sources(root):
    """The pages' addresses by their sources, since parameters are wanted before a site is."""
    docs = root / "docs"
    names = (p.relative_to(docs) for p in [*docs.rglob("*.md"), *docs.rglob("*.py")])
    made = (name.with_suffix("").as_posix() + "/" for name in names if name.parts[0] != "overrides")
    return sorted(re.sub(r"(^|/)index/$", r"\1", name) for name in made)


def pytest_generate_tests(metafunc):
    """One test a page."""
    if "page" in metafunc.fixturenames:
        pages = sources(metafunc.config.rootpath)
        metafunc.parametrize("page", pages, ids=[page or "start" for page in pages])


def test_the_site_has_every_page_and_no_other(site_dir, root):
    found = (path.relative_to(site_dir).parent.as_posix() for path in site_dir.rglob("index.html"))
    assert sorted("" if name == "." else f"{name}/" for name in found) == sources(root)


# What a page looks like now, as lists of what should not be there.
LOOK = r"""() => {
  const all = (query) => [...document.querySelectorAll(query)].filter((e) => e.checkVisibility());
  const text = document.querySelector("article").cloneNode(true);
  text.querySelectorAll("pre, code, svg, .katex").forEach((e) => e.remove());
  const loaded = new Set([...document.fonts].filter((f) => f.status === "loaded")
    .map((f) => f.family.replaceAll('"', "")));
  const families = all(".katex-html span").filter((e) => e.textContent.trim() && !e.children.length)
    .map((e) => getComputedStyle(e).fontFamily.split(",")[0].replaceAll('"', ""));
  const page = document.documentElement;
  return {
    "wider than the window": page.scrollWidth > page.clientWidth ? [page.scrollWidth] : [],
    "formulas left as source": text.textContent.match(/\$|\\\(|\\\[/g) || [],
    "formulas without width": all(".katex").filter((e) => e.getBoundingClientRect().width < 1)
      .map((e) => e.textContent),
    "formulas in a font that is not there": [...new Set(families)].filter((f) => !loaded.has(f)),
    "figures too small to see": all(".sk-svg").map((e) => e.getBoundingClientRect())
      .filter((box) => box.width < 200 || box.height < 100).map((box) => box.width),
    "figures without a text": [...document.querySelectorAll(".sk-svg")]
      .filter((e) => !(e.getAttribute("aria-label") || "").trim()).map((e) => e.outerHTML),
    "scrolling boxes that keys do not reach": all(".sk-plot, .sk-math, .sk-table, pre > code")
      .filter((e) => e.scrollWidth > e.clientWidth && e.tabIndex < 0).map((e) => e.textContent),
  };
}"""
# A figure is one image, and the visible half of a formula is hidden from readers by ear: their
# thousands of elements have nothing to tell axe. Of words of code one of each colour will do.
LESS = """() => {
  const heavy = document.querySelectorAll(".sk-svg, .katex-html, .katex math");
  for (const element of heavy) element.replaceChildren();
  const seen = new Set();
  for (const word of document.querySelectorAll("pre span[class]:not(:has(*))")) {
    const kind = `${word.closest(".sk-claimed, .sk-out")?.className} ${word.className}`;
    if (seen.has(kind)) word.remove();
    seen.add(kind);
  }
}"""
# For its colours one of each element in each place will do.
DISTINCT = """() => {
  const seen = new Set();
  const place = (e) => e ? `${place(e.parentElement)} ${e.localName}.${e.className}` : "";
  for (const element of document.querySelectorAll("body *:not(:has(*))")) {
    const kind = place(element);
    if (seen.has(kind)) element.remove();
    seen.add(kind);
  }
}"""
MEASURE = """() => new Promise((done) => {
  const paints = [], shifts = [];
  new PerformanceObserver((list) => paints.push(...list.getEntries()))
    .observe({ type: "largest-contentful-paint", buffered: true });
  new PerformanceObserver((list) => shifts.push(...list.getEntries()))
    .observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done([
    Math.max(...paints.map((e) => e.startTime)),
    shifts.filter((e) => !e.hadRecentInput).reduce((sum, e) => sum + e.value, 0)]), 100);
})"""


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_first_visit_is_small_steady_and_whole(visit, page, size, record_property):
    with visit(page, size) as (tab, problems, responses):
        paint, shift = tab.evaluate(MEASURE)
        total = sum(len(gzip.compress(response.body(), 6)) for response in responses)
        # Recorded and not asserted: how soon a page paints depends on what else the machine does.
        record_property("visit", {"page": page, "bytes": total, "paint": paint, "shift": shift})
        assert total <= BYTES
        assert shift <= SHIFT
        assert {what: list(seen) for what, seen in tab.evaluate(LOOK).items() if seen} == {}
        if size is DESK:
            assert violations(tab) == []
        assert problems == []


@pytest.mark.parametrize("width", [320, 768, 960, 1100, 1220, 1920])
def test_text_keeps_its_margin_at_every_width(visit, width):
    with visit("signal/gain/", {"width": width, "height": 800}) as (tab, _, _):
        box = tab.locator("article h1").bounding_box()
        assert box["x"] >= 12
        assert box["x"] + box["width"] <= width - 12
        assert tab.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(
    ("name", "mark", "shown", "limit"),
    [
        ("reference/sources/", "</tr>", "article table", SHIFT),
        # One formula is little: it moves all that it may if the limit is the page's.
        ("reference/gains/", 'style="height', "article div.sk-math sk-formula", 0),
    ],
    ids=["table", "formula"],
)
def test_what_comes_in_pieces_moves_nothing(visit, name, mark, shown, limit):
    with visit(f"{name}?cut-at={quote(mark)}") as (tab, problems, _):
        assert tab.evaluate(MEASURE)[1] <= limit
        assert tab.locator(shown).first.is_visible()
        assert problems == []


def violations(tab):
    """The rules that axe finds broken on a page that was opened in the light scheme."""
    broken = []
    tab.evaluate(Axe().axe_script)  # once for three runs
    colours = {"runOnly": ["color-contrast"]}
    passes = [
        ("light", LESS, {"rules": {"color-contrast": {"enabled": False}}}),
        ("light", DISTINCT, colours),
        ("dark", DISTINCT, colours),
    ]
    for scheme, thin, rules in passes:
        tab.evaluate(thin)
        tab.emulate_media(color_scheme=scheme)
        shown = {"light": "default", "dark": "slate"}[scheme]
        tab.wait_for_function(f"document.body.dataset.mdColorScheme === '{shown}'")
        options = rules | {"resultTypes": ["violations"]}
        for found in tab.evaluate("(options) => axe.run(options)", options)["violations"]:
            nodes = [node["html"] for node in found["nodes"]]
            broken.append(f"{scheme}: {found['id']} {nodes}")
    return broken


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        ("article.innerHTML += '<img src=\"../assets/logo.svg\">'", "light: image-alt "),
        ("article.querySelector('p').innerHTML += '<a href=\"#x\"></a>'", "light: link-name "),
        ("article.querySelector('pre span.nb').style.color = '#ccc'", "light: color-contrast "),
        (
            "document.querySelector('[data-md-color-scheme]')"
            ".style.setProperty('--sk-muted', '#777')",
            "dark: color-contrast ",
        ),
    ],
)
def test_what_is_wrong_is_found_among_what_is_left(visit, made, rule):
    with visit("") as (tab, _, _):
        tab.evaluate(f"() => {{ const article = document.querySelector('article'); {made} }}")
        assert any(found.startswith(rule) for found in violations(tab))


def test_search_finds_the_gain(visit):
    with visit("") as (tab, problems, responses):
        assert not any("search_index.json" in response.url for response in responses)
        tab.keyboard.press("/")
        tab.keyboard.type("gain")
        tab.wait_for_selector(".sk-search li a[href*='signal/gain/']")
        assert tab.inner_text(".sk-search [role=status]").endswith("found")
        axe = Axe().run(tab)
        assert axe.violations_count == 0, axe.generate_report()
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("Enter")
        tab.wait_for_url("**/*gain*/**")
        assert "gain" in tab.inner_text("article").lower()
        assert problems == []


def test_search_says_when_there_is_nothing(visit):
    with visit("") as (tab, problems, _):
        tab.click(".sk-find")
        tab.keyboard.type("xyzzy <b>")
        tab.wait_for_function(
            "document.querySelector('.sk-search [role=status]').textContent === 'Nothing found'"
        )
        tab.keyboard.press("Escape")
        tab.wait_for_selector(".sk-search", state="hidden")
        assert problems == []


LOOKS = """() => {
  const line = document.querySelector(".sk-svg [style*='--sk-c']");
  return [document.body.dataset.mdColorScheme, getComputedStyle(line).stroke,
    getComputedStyle(document.body).backgroundColor];
}"""


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_toggle_recolours_the_page_and_its_figures(visit, system):
    with visit("", scheme=system) as (tab, problems, _):
        before = tab.evaluate(LOOKS)
        assert before[0] == {"light": "default", "dark": "slate"}[system]
        tab.click(".sk-theme")
        after = tab.evaluate(LOOKS)
        assert all(one != other for one, other in zip(before, after, strict=True))
        tab.reload()
        assert tab.evaluate(LOOKS) == after  # the choice is kept
        tab.click(".sk-theme")
        assert tab.evaluate(LOOKS) == before
        # Back at what the system says, the page follows the system again.
        tab.emulate_media(color_scheme="dark" if system == "light" else "light")
        tab.wait_for_function(f"document.body.dataset.mdColorScheme === '{after[0]}'")
        assert tab.evaluate(LOOKS) == after
        assert problems == []


def test_the_navigation_opens_on_a_phone_by_key(visit):
    with visit("", PHONE) as (tab, problems, _):
        tab.focus("button[for=__drawer]")
        tab.keyboard.press("Enter")
        tab.wait_for_function(
            "document.querySelector('.md-sidebar--primary').getBoundingClientRect().x >= 0"
        )
        assert problems == []


def test_copying_leaves_the_outputs_out(visit):
    with visit("") as (tab, problems, _):
        tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
        block = tab.locator(".highlight", has_text="#>").first
        block.hover()
        block.locator(".sk-copy").click()
        tab.wait_for_selector("text=Copied")
        copied = tab.evaluate("navigator.clipboard.readText()")
        assert "import" in copied
        assert "#>" not in copied
        assert problems == []


def test_the_contents_show_what_is_being_read(visit):
    with visit("signal/gain/") as (tab, problems, _):
        heading = tab.locator("article h2").nth(2)
        heading.evaluate("(e) => scrollTo(0, e.getBoundingClientRect().top + scrollY - 80)")
        name = heading.get_attribute("id")
        tab.wait_for_selector(f".md-sidebar--secondary a.md-nav__link--active[href='#{name}']")
        assert tab.locator(".md-sidebar--secondary a.md-nav__link--active").count() == 1
        assert problems == []


def test_the_first_key_offers_to_skip_the_navigation(visit):
    with visit("") as (tab, problems, _):
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.matches('.md-skip')")
        tab.keyboard.press("Enter")
        assert problems == []


@pytest.fixture(scope="module")
def trees(site_dir):
    """Every HTML file of the site, parsed."""
    return {
        path.relative_to(site_dir).as_posix(): document_fromstring(path.read_text("utf-8"))
        for path in site_dir.rglob("*.html")
    }


def test_every_link_of_the_site_leads_somewhere(site_dir, trees):
    anchors = {name: set(tree.xpath("//@id | //a/@name")) for name, tree in trees.items()}
    broken = []
    for name, tree in trees.items():
        for address in tree.xpath("//a/@href"):
            parts = urlsplit(urljoin(f"http://site/{name}", address))
            if parts.hostname != "site" or name == "404.html":
                continue
            path = parts.path.lstrip("/")
            path += "index.html" if path == "" or path.endswith("/") else ""
            known = anchors.get(path, {parts.fragment})
            if not (site_dir / path).is_file() or parts.fragment not in known | {""}:
                broken.append((name, address))
    assert broken == []


def test_nothing_is_loaded_from_another_host(site_dir, trees):
    foreign = []

    def check(name, address):
        host = urlsplit(urljoin(f"http://site/{name}", address.strip())).hostname
        if host not in {"site", None}:
            foreign.append((name, address))

    for name, tree in trees.items():
        for tag, attribute in _RESOURCES.items():
            for address in tree.xpath(f"//{tag}/@{attribute}"):
                check(name, address)
        for link in tree.xpath("//link[@href]"):
            if _LOADING_LINKS & set(link.get("rel", "").split()):
                check(name, link.get("href"))
        for css in tree.xpath("//style/text() | //@style"):
            for address in _urls(css):
                check(name, address)
    for path in site_dir.rglob("*.css"):
        for address in _urls(path.read_text("utf-8")):
            check(path.relative_to(site_dir).as_posix(), address)
    assert foreign == []


def _urls(css):
    urls = re.findall(r"""url\(\s*["']?([^"')]+)""", css)
    return [url for url in urls if not url.startswith("data:")] + re.findall(
        r"""@import\s+["']([^"']+)""", css
    )


def test_downloads_are_there_and_compile(site_dir, trees):
    found = 0
    for name, tree in trees.items():
        for address in tree.xpath("//a[@download]/@href"):
            path = (site_dir / name).parent / address
            text = path.read_text("utf-8")
            if path.suffix == ".ipynb":
                cells = json.loads(text)["cells"]
                text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
            compile(text, str(path), "exec")
            assert text.strip()
            found += 1
    assert found >= 2


def test_the_page_for_what_is_not_there_is_ours(site_dir):
    text = (site_dir / "404.html").read_text("utf-8")
    assert "site.css" in text
