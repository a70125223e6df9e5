"""The command line: exit status, one clear line for what fails, and files."""

import json
import os
import subprocess
import sys

import pytest

from stabilitykit.__main__ import main

SOURCE = """
import torch
from torch import nn
from helper import WIDTH

torch.set_num_threads(1)

def net(bias=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    model[0].bias.data.add_(bias)
    batch = torch.randn(64, 16), torch.arange(64) % 4
    return model, batch, nn.functional.cross_entropy

def good():
    model, *rest = net()
    return model, *rest, torch.optim.SGD(model.parameters(), lr=0.1)

def dead():
    return net(-30.0)

def fails():
    raise OSError("no\\ndata")

def leaves():
    raise SystemExit(3)

def pair():
    return net()[:2]

def nothing():
    pass

def broken():
    model, (x, t), loss_fn = net()
    return model, (x[:, :3], t), loss_fn

value = 3

def loader():
    model, (x, t), loss_fn = net()
    data = torch.utils.data.TensorDataset(x, t)
    return model, torch.utils.data.DataLoader(data, 32), loss_fn

def mapping():
    model, (x, t), loss_fn = net()
    return model, {"x": x}, loss_fn

class Größe(nn.Module):
    def __init__(self):
        super().__init__()
        self.größe = nn.Linear(16, 4)
        self.größe.weight.data.fill_(float("nan"))

    def forward(self, x):
        return self.größe(x)

def odd():
    _, *rest = net()
    return Größe(), *rest
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    (tmp_path / "helper.py").write_text("WIDTH = 32\n")
    path = tmp_path / "train.py"
    path.write_text(SOURCE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield path
    for name in ("helper", "train"):
        sys.modules.pop(name, None)


def test_a_healthy_model_gives_0(source, capsys):
    assert main(["diagnose", f"{source}:good"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("healthy (3 layers, loss 1.")
    assert err == ""


def test_findings_give_1(source, capsys):
    assert main(["diagnose", f"{source}:dead"]) == 1
    out, err = capsys.readouterr()
    assert "dead-units at 0" in out
    assert "nn.init.zeros_(model.get_submodule('0').bias)" in " ".join(out.split())
    assert err == ""


def test_both_files_are_written(source, tmp_path, capsys):
    html, numbers = tmp_path / "r.html", tmp_path / "r.json"
    assert main(["diagnose", f"{source}:dead", "--html", str(html), "--json", str(numbers)]) == 1
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads(numbers.read_text())["findings"][0]["code"] == "dead-units"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("god", "train.py has no function 'god'; did you mean 'good'?"),
        ("value", "train.py has no function 'value'\n"),
        ("fails", "train.py:fails, line 23 raised OSError: no data"),
        ("leaves", "train.py:leaves, line 26 raised SystemExit: 3"),
        ("pair", "returned tuple of 2; expected (model, batch, loss_fn) or (model, batch, loss"),
        ("nothing", "returned NoneType; expected (model, batch, loss_fn)"),
        ("broken", "forward of layer '0' raised RuntimeError: mat1 and mat2"),
        ("loader", "got DataLoader; take one batch of it: next(iter(loader))"),
        ("mapping", "got dict; a mapping goes first: (mapping, targets)"),
        ("a b", "is not of the form FILE.py:FACTORY"),
        ("", "is not of the form FILE.py:FACTORY"),
    ],
)
def test_what_cannot_run_gives_2_and_one_line(source, capsys, name, said):
    assert main(["diagnose", f"{source}:{name}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("stabilitykit: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def make(:\n", "line 1 raised SyntaxError"),
        ("x = 1\nimport nowhere_to_be_found\n", "line 2 raised ModuleNotFoundError"),
    ],
)
def test_a_file_that_does_not_run_gives_2(tmp_path, capsys, content, said, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    path = tmp_path / "bad.py"
    path.write_text(content)
    assert main(["diagnose", f"{path}:make"]) == 2
    assert f"{path}, {said}" in capsys.readouterr().err


def test_a_line_is_named_whichever_way_the_file_is(source, capsys, monkeypatch):
    monkeypatch.chdir(source.parent)
    assert main(["diagnose", f"{source.name}:fails"]) == 2
    assert "train.py:fails, line 23 raised OSError: no data" in capsys.readouterr().err
    broken = source.with_name("broken_syntax.py")
    broken.write_text("def make(:\n")
    assert main(["diagnose", f"../{source.parent.name}/{broken.name}:make"]) == 2
    assert "broken_syntax.py, line 1 raised SyntaxError" in capsys.readouterr().err


def test_a_missing_file_or_folder_gives_2(source, tmp_path, capsys):
    assert main(["diagnose", f"{tmp_path / 'none.py'}:make"]) == 2
    assert "none.py is not a file" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("")
    assert main(["diagnose", f"{tmp_path / 'notes.txt'}:make"]) == 2
    assert "notes.txt is not a Python file" in capsys.readouterr().err
    assert main(["diagnose", f"{source}:good", "--html", str(tmp_path / "none" / "r.html")]) == 2
    assert "r.html cannot be written" in capsys.readouterr().err
    assert main(["diagnose", f"{source}:good", "--json", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_nothing(source, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "r.html")

    monkeypatch.setattr(os, "replace", full)
    assert main(["diagnose", f"{source}:good", "--html", str(tmp_path / "r.html")]) == 2
    assert "r.html cannot be written" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["helper.py", "train.py"]


def test_help_says_what_the_factory_returns_and_each_exit_status(capsys):
    with pytest.raises(SystemExit) as left:
        main(["diagnose", "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "(model, batch, loss_fn, optimizer)",
        "0 healthy",
        "1 findings",
        "2 could not run",
    ):
        assert part in text
    assert "--html" in text
    assert "--json" in text


def test_wrong_usage_gives_2(capsys):
    for arguments in ([], ["diagnos"], ["diagnose"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2


def test_the_module_runs_as_a_program(source):
    command = [sys.executable, "-m", "stabilitykit", "diagnose", f"{source}:dead"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "dead-units at 0" in done.stdout
    assert done.stderr == ""


def piped(source, name, stdout, *more):
    command = [sys.executable, "-m", "stabilitykit", "diagnose", f"{source}:{name}", *more]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("name", "status"), [("good", 0), ("dead", 1)])
def test_a_reader_that_leaves_early_changes_neither_status_nor_files(
    source, tmp_path, name, status
):
    read, write = os.pipe()
    os.close(read)
    numbers = tmp_path / "r.json"
    process = piped(source, name, write, "--json", str(numbers))
    os.close(write)
    assert process.communicate()[1] == ""
    assert process.returncode == status
    assert json.loads(numbers.read_text())["healthy"] is (status == 0)


def test_output_that_cannot_be_written_gives_2_and_one_line(source):
    with open("/dev/full", "w") as full:
        process = piped(source, "dead", full)
        error = process.communicate()[1]
    assert error == "stabilitykit: standard output cannot be written: No space left on device\n"
    assert process.returncode == 2


def test_names_that_the_terminal_cannot_spell_are_escaped(source, tmp_path):
    html = tmp_path / "r.html"
    command = [sys.executable, "-m", "stabilitykit", "diagnose", f"{source}:odd"]
    run = subprocess.run(
        [*command, "--html", str(html)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert r"non-finite at gr\xf6\xdfe.weight" in run.stdout
    assert "größe.weight" in html.read_text(encoding="utf-8")


def test_numbers_can_go_to_standard_output(source, capsys):
    assert main(["diagnose", f"{source}:dead", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["code"] == "dead-units"
    assert main(["diagnose", f"{source}:dead", "--html", "-"]) == 1
    assert capsys.readouterr().out.startswith("<!doctype html>")


def test_two_reports_are_two_files(source, tmp_path, capsys):
    same = str(tmp_path / "r")
    assert main(["diagnose", f"{source}:good", "--html", same, "--json", same]) == 2
    assert f"--html and --json both name {same}" in capsys.readouterr().err
    assert not os.path.exists(same)


def test_the_file_finds_its_own_arguments(tmp_path, capsys):
    path = tmp_path / "argued.py"
    path.write_text("import sys\nraise ValueError(sys.argv)\n")
    mine = list(sys.argv)
    assert main(["diagnose", f"{path}:make"]) == 2
    assert f"ValueError: ['{path}']" in capsys.readouterr().err
    assert sys.argv == mine


def test_a_file_that_cannot_be_written_is_named_as_given(source, capsys):
    assert main(["diagnose", f"{source}:good", "--html", "/proc/r.html"]) == 2
    assert capsys.readouterr().err.startswith("stabilitykit: /proc/r.html cannot be written: ")
