"""The wheel holds the package and nothing else, and works where the repository is not."""

import json
import math
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy, since building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("stabilitykit", "scripts", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of an environment with the wheel and what it depends on.

    Torch takes minutes to install. A `.pth` file lends it from this environment, and does not
    lend this environment's link to the repository: such links in lent folders are not followed.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    run(*command, "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    lent = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "lent.pth").write_text("\n".join(lent))
    return python


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "stabilitykit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert "stabilitykit/py.typed" in names


def test_requires_what_is_declared_and_nothing_of_development(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(needed) == sorted(project["dependencies"])
    names = {line.partition(">=")[0] for line in needed}
    assert names == {"torch", "numpy", "scipy", "matplotlib", "scikit-learn", "rich"}
    assert set(metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert metadata["Requires-Python"] == project["requires-python"] == ">=3.11"


def test_smoke(python, tmp_path):
    script = """
import json, sys
import torch
import stabilitykit as sk
loaded = sorted({"matplotlib", "pandas", "sklearn", "scripts"} & set(sys.modules))
data = sk.digits()
model = sk.MLP([64, 16, 10], "relu")
batch = data.train_x[:64], data.train_y[:64]
deep = sk.MLP([64] + [32] * 12 + [10], "sigmoid")
diagnosis = sk.diagnose(deep, batch, torch.nn.functional.cross_entropy)
drawn = sk.plots.svg(lambda ax: sk.plots.prediction(ax, [1, 2], [3, 4], "a line"), {})
print(json.dumps({
    "file": sk.__file__, "loaded": loaded, "relu": sk.gain("relu").forward,
    "outputs": list(model(data.test_x).shape), "path": sys.path, "drawn": drawn,
    "findings": [finding.code for finding in diagnosis.findings], "report": diagnosis.to_json(),
}))
"""
    said = json.loads(run(python, "-I", "-c", script, cwd=tmp_path))
    environment = python.parents[1]
    assert Path(said["file"]).is_relative_to(environment)
    assert not any(Path(entry).resolve() == ROOT for entry in said["path"])
    assert said["loaded"] == []
    assert said["relu"] == pytest.approx(math.sqrt(2), abs=1e-12)
    assert said["outputs"] == [539, 10]
    assert said["drawn"].count("<svg") == 1
    assert "vanishing-gradient" in said["findings"]
    report = json.loads(said["report"])
    assert [finding["code"] for finding in report["findings"]] == said["findings"]


def test_the_command_line_answers(python, tmp_path):
    help_text = run(python, "-I", "-m", "stabilitykit", "--help", cwd=tmp_path)
    assert help_text.startswith("usage: python -m stabilitykit")
    assert "diagnose" in help_text
