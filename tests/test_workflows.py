"""The workflows hold what `make lint` and their readers expect of them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BIN = Path(sys.executable).parent


def zizmor(path):
    command = [BIN / "zizmor", "--offline", "--quiet", "--persona=pedantic", path]
    return subprocess.run(command, capture_output=True, text=True)


def schema(path):
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", path]
    return subprocess.run(command, capture_output=True, text=True)


def test_names():
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "pages.yml"]


@pytest.mark.parametrize("check", [zizmor, schema])
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_clean(path, check):
    done = check(path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_actions_are_pinned(path):
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


@pytest.mark.parametrize(
    ("old", "new", "check"),
    [
        (r"@[0-9a-f]{40} # v7.0.1", "@v7", zizmor),
        (r"contents: read", "contents: write", zizmor),
        (r"with:\s+persist-credentials: false", "", zizmor),
        (r"runs-on: .*", "", schema),
        (r"timeout-minutes: 45", "timeout-minutes: soon", schema),
    ],
)
def test_the_checks_can_fail(tmp_path, old, new, check):
    """Test the test: a workflow made worse is refused."""
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    copy = Path(shutil.copy(ROOT / ".github" / "workflows" / "ci.yml", folder))
    text, count = re.subn(old, new, copy.read_text(), count=1)
    assert count == 1
    copy.write_text(text)
    assert check(copy).returncode


def test_ci_calls_the_same_script():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_least_permissions():
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {}
        writes = {
            name: {k for k, v in job["permissions"].items() if v == "write"}
            for name, job in workflow["jobs"].items()
        }
        assert writes in (
            {"test": set(), "portable": set()},
            {"build": set(), "deploy": {"pages", "id-token"}},
        )
