"""A diagnosis as text, JSON and HTML: whole, escaped, offline, and written whole or not at all."""

import dataclasses
import json
import math
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from zoo import healthy, nets, sick

import stabilitykit as sk
from stabilitykit import report
from stabilitykit._files import write
from stabilitykit._findings import CODES, PAGES, QUANTITIES, finding

EVIL = """<img src=x onerror=alert(1)>&"'"""


@pytest.fixture(scope="module")
def ill():
    """A diagnosis with findings, of a model whose names are hostile."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential()
    widths = [16, *[48] * 12, 4]
    for i, (n, m) in enumerate(pairwise(widths)):
        model.add_module(f"{i}{EVIL}", nn.Linear(n, m))
        if m != 4:
            model.add_module(f"act{i}", nn.Sigmoid())
    return sk.diagnose(model, nets.table(), F.cross_entropy)


@pytest.fixture(scope="module")
def well():
    torch.set_num_threads(1)
    return sk.diagnose(*healthy.build("mlp-3-gelu-adam"))


@pytest.fixture(scope="module")
def pages(ill, well):
    return {"ill": report.to_html(ill), "well": report.to_html(well)}


def printed(thing, width=60, **options):
    console = Console(width=width, record=True, **options, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(thing)
    return console.export_text()


class Reader(HTMLParser):
    """Tags, attributes and text; complains of tags that do not match."""

    EMPTY = ("meta", "br", "img", "link")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_text_says_every_finding_in_full(ill):
    text = " ".join(printed(report.text(ill)).split())
    assert text.startswith("2 findings (25 layers, loss 1.")
    for one in ill.findings:
        assert one.code in text
        assert QUANTITIES[one.code] in text
        assert f"page: docs/{one.page[:-1]}.md in stabilitykit's repository" in text
        said = f"measured {one.measured:.3g}, expected 1, predicted for these weights"
        said += f" {one.predicted:.3g} The scale of weights and biases explains it."
        assert f"{said} {one.remedy[:9]}" in text
    assert EVIL in text.replace(" ", "").replace("imgsrc=xon", "img src=x on")


def test_text_of_a_healthy_model_is_one_line(well):
    assert re.fullmatch(r"healthy \(7 layers, loss \d\.\d+\)\n", printed(report.text(well)))


def test_names_are_not_read_as_markup():
    one = finding("dead-units", "[red]x[/nope]", 1.0, 0.6, "Do: `a[0]; b[/c]`.")
    text = printed(report.text(sk.Diagnosis((one,), 1.0, (), (), None)))
    assert "[red]x[/nope]" in text
    assert "  Do:\n    a[0]\n    b[/c]\n" in text
    assert "[red]x[/nope]" in printed(report.table(sk.Diagnosis((one,), 1.0, (), (), None)), 200)


def test_what_a_narrow_terminal_wraps_stays_indented(ill):
    one = dataclasses.replace(ill.findings[0], layer="0")
    diagnosis = dataclasses.replace(ill, findings=(one,))
    lines = printed(report.text(diagnosis), 40).splitlines()
    under = lines[lines.index("vanishing-signal at 0, error") + 1 :]
    assert len(under) > 8
    assert all(line.startswith("  ") and line == line.rstrip() for line in under)
    assert all(len(line) <= 40 for line in under)
    words, call, _ = one.remedy.split("`")
    whole = f"  {words.strip()}\n    {call}\n"
    assert whole in printed(report.text(diagnosis), 400)
    assert whole in printed(report.text(diagnosis), 40, soft_wrap=True)


def test_the_severity_is_said_in_words(ill):
    for severity, said in (("error", "mend this"), ("warning", "training may be slow")):
        one = dataclasses.replace(ill.findings[0], severity=severity)
        diagnosis = dataclasses.replace(ill, findings=(one,))
        assert f", {severity}\n" in printed(report.text(diagnosis), 200)
        assert f"<dd>{severity}: {said}" in report.to_html(diagnosis)


def test_names_cannot_steer_a_terminal():
    one = finding("dead-units", "a\x1b[31m\r\nb\x9b", "nan at \x07", 0.6, "Do `c\x1b[0m`.")
    diagnosis = sk.Diagnosis((one,), 1.0, (), (), None)
    for said in (
        printed(report.text(diagnosis), 200),
        printed(report.table(diagnosis), 300),
        report.to_html(diagnosis),
    ):
        assert r"a\x1b[31m\r\nb\x9b" in said
        assert r"nan at \x07" in said
        assert r"c\x1b[0m" in said
        assert all(character.isprintable() or character == "\n" for character in said)


def test_what_theory_does_not_predict_is_left_out():
    one = finding("dead-units", "0", 1.0, 0.6, "Do: `this`.")
    diagnosis = sk.Diagnosis((one,), 1.0, (), (), None)
    assert "measured 1, expected 0.6\n  Do:\n    this\n" in printed(report.text(diagnosis))
    assert "<dt>predicted</dt>" not in report.to_html(diagnosis)
    assert "weights" not in report.to_html(diagnosis)
    assert json.loads(diagnosis.to_json())["findings"][0]["predicted"] is None


def test_what_the_scale_of_the_weights_does_not_explain_is_said(ill):
    one = dataclasses.replace(ill.findings[0], predicted=0.9, explained=False)
    diagnosis = dataclasses.replace(ill, findings=(one,))
    said = "Something else than the scale of weights and biases does it: rescaling alone may not"
    assert said in " ".join(printed(report.text(diagnosis)).split())
    assert said in report.to_html(diagnosis)
    assert json.loads(diagnosis.to_json())["findings"][0]["explained"] is False


def test_a_page_is_named_by_its_source_or_as_a_link_to_the_site(ill, monkeypatch):
    docs = Path(__file__).parent.parent / "docs"
    for code, page in PAGES.items():
        source = report.read(finding(code, "0", 1.0, 0.6, "Do `this`.")).removeprefix("docs/")
        assert (docs / source.removesuffix(" in stabilitykit's repository")).is_file(), page
    monkeypatch.setenv("STABILITYKIT_SITE", "https://example.org/kit")
    link = f"https://example.org/kit/{ill.findings[0].page}"
    assert link in printed(report.text(ill), 200)
    assert f'<dd><a href="{link}">{link}</a></dd>' in report.to_html(ill)
    for odd in ("javascript:alert(1)", 'https://x/"><b>'):
        monkeypatch.setenv("STABILITYKIT_SITE", odd)
        hrefs = [a["href"] for tag, a in Reader(report.to_html(ill)).tags if tag == "a"]
        assert all(href.startswith('https://x/"><b>/') for href in hrefs)


def test_the_table_has_a_row_a_finding(ill):
    table = ill.table()
    assert table.row_count == len(ill.findings) == 2
    cells = [column.header for column in table.columns]
    assert cells == ["code", "layer", "measured", "expected", "predicted", "remedy"]
    predicted = [str(cell) for cell in table.columns[4].cells]
    assert predicted == [f"{one.predicted:.3g}" for one in ill.findings]
    assert all(f"{one.predicted:.3g}" in report.to_html(ill) for one in ill.findings)


def test_json_holds_everything(ill):
    content = json.loads(ill.to_json())
    assert content["healthy"] is False
    assert content["findings"][0].keys() == {
        "code", "layer", "measured", "expected", "severity", "remedy", "page",
        "predicted", "explained",
    }  # fmt: skip
    assert content["findings"][0]["predicted"] == ill.findings[0].predicted > 0
    assert content["findings"][0]["measured"] == ill.findings[0].measured
    assert [layer["rms"] for layer in content["layers"]] == [r.rms for r in ill.records]
    assert content["layers"][0]["predicted"]["forward"] == ill.prediction.layers[0].forward
    assert len(content["parameters"]) == 26
    assert [one["amplitude"] for one in content["signals"]] == [s.amplitude for s in ill.signals]
    assert content["signals"][0].keys() == {
        "layer", "kind", "call", "weighted", "units", "source", "amplitude",
    }  # fmt: skip
    assert content["layers"][0]["layer"] == "0" + EVIL


def test_json_writes_what_is_not_finite_as_words():
    diagnosis = sk.diagnose(*sick.build("nan-in-a-weight"))
    content = json.loads(diagnosis.to_json(), parse_constant=pytest.fail)
    assert content["loss"] == "nan"
    assert content["layers"][-1]["rms"] == "nan"
    assert content["layers"][0]["predicted"] is None


def test_html_is_well_formed_and_asks_for_nothing(pages):
    for text in pages.values():
        page = Reader(text)
        names = {tag for tag, _ in page.tags}
        assert names.isdisjoint({"script", "img", "link", "iframe", "object", "base", "form"})
        for tag, attributes in page.tags:
            assert not any(key.startswith("on") for key in attributes), tag
            for key in ("href", "src", "xlink:href", "action"):
                assert attributes.get(key, "#").startswith("#")
        assert "@import" not in text
        assert set(re.findall(r"url\((.)", text)) <= {"#"}
        assert "://" not in text


def test_html_shows_names_as_they_are(ill, pages):
    page = Reader(pages["ill"])
    words = "".join(page.words)
    assert words.count("0" + EVIL) >= 3
    for one in ill.findings:
        assert one.code in words
        assert one.remedy.replace("`", "") in words


def test_html_has_figures_that_speak(pages):
    page = Reader(pages["ill"])
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) == 3
    assert all("by layer: measured" in one["aria-label"] for one in figures)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")}
    assert used <= set(ids)


def test_html_has_headings_in_order_and_named_columns(pages):
    for text in pages.values():
        tags = Reader(text).tags
        levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert re.findall(r"<th[^>]*></th>", text) == []
        scrolling = [attributes for _, attributes in tags if "tabindex" in attributes]
        assert len(scrolling) == 2
        assert all(one["role"] == "region" and one["aria-label"] for one in scrolling)


def test_html_names_what_theory_does_not_model(ill, pages):
    assert "Not modelled" not in pages["ill"]
    prediction = dataclasses.replace(ill.prediction, not_modelled=("1 (fft_fft)", "<b>"))
    text = report.to_html(dataclasses.replace(ill, prediction=prediction))
    assert (
        "Not modelled, measured instead: <code>1 (fft_fft)</code>, <code>&lt;b&gt;</code>" in text
    )


def test_figures_count_layer_calls_in_whole_numbers(pages):
    figures = re.findall(r"<svg.*?</svg>", pages["ill"], flags=re.DOTALL)
    for figure in figures:
        axis = figure.split('id="', 1)[1].split("matplotlib.axis_2")[0]
        ticks = re.findall(r">(\d+(?:\.\d+)?)</text>", axis)
        assert len(ticks) > 2
        assert all(tick.isdigit() for tick in ticks)


def test_html_follows_light_and_dark(pages):
    text = pages["ill"]
    svg = text[text.index("<svg") : text.rindex("</svg>")]
    assert "prefers-color-scheme: dark" in text
    assert {"var(--fg)", "var(--c0)"} <= set(re.findall(r"var\(--\w+\)", svg))
    left = set(re.findall(r"(?:fill|stroke): (#\w{3,6})", svg))
    assert left == set(), "a colour that does not follow the theme"


def test_html_is_the_same_on_every_run_and_small(ill, pages):
    assert report.to_html(ill) == pages["ill"]
    assert len(pages["ill"]) < 150_000


def test_html_without_a_prediction_has_no_figure():
    text = report.to_html(sk.diagnose(*sick.build("nan-in-inputs")))
    assert "<svg" not in text
    assert "nan" in text


def test_a_file_is_written_whole_or_not_at_all(tmp_path, well, pages, monkeypatch):
    path = tmp_path / "report.html"
    assert well.to_html(path) == path
    whole = path.read_text(encoding="utf-8")
    assert whole == pages["well"]
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~umask()

    def torn(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", torn)
    with pytest.raises(OSError, match="disk full"):
        write(path, "half")
    assert path.read_text(encoding="utf-8") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_missing_folder_is_an_error(tmp_path, well):
    with pytest.raises(FileNotFoundError):
        well.to_html(tmp_path / "none" / "report.html")


def test_every_code_says_what_is_measured():
    assert set(QUANTITIES) == set(CODES)


def test_numbers_are_short():
    assert report.shown(math.pi) == "3.14"
    assert report.shown(-math.inf) == "-inf"
