"""The wheel holds the package and nothing else, and works where the repository is not."""

import json
import math
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
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


def test_requires_nothing_of_development(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        lines = archive.read(name).decode().splitlines()
    needed = [x for x in lines if x.startswith("Requires-Dist") and "extra ==" not in x]
    assert len(needed) == 6
    assert not any("mkdocs" in line or "pytest" in line for line in needed)
    assert "Requires-Python: >=3.11" in lines


def test_smoke(python, tmp_path):
    script = """
import json, sys
import stabilitykit as sk
loaded = sorted({"matplotlib", "pandas", "sklearn", "scripts"} & set(sys.modules))
data = sk.digits()
model = sk.MLP([64, 16, 10], "relu")
print(json.dumps({
    "file": sk.__file__, "loaded": loaded, "relu": sk.gain("relu").forward,
    "outputs": list(model(data.test_x).shape), "path": sys.path,
}))
"""
    said = json.loads(run(python, "-I", "-c", script, cwd=tmp_path))
    environment = python.parents[1]
    assert Path(said["file"]).is_relative_to(environment)
    assert not any(Path(entry).resolve() == ROOT for entry in said["path"])
    assert said["loaded"] == []
    assert said["relu"] == pytest.approx(math.sqrt(2), abs=1e-12)
    assert said["outputs"] == [539, 10]
