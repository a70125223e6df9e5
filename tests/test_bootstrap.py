"""Set-up from a fresh clone: its refusals in one line, and what an interruption leaves."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from scripts import bootstrap, chromium, serve

ROOT = Path(__file__).resolve().parents[1]


def make(folder, *arguments, **environment):
    """Run make in a clone, away from this run's own make and pytest."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


@pytest.fixture
def clone(tmp_path):
    """What set-up reads, in a folder without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    for name in ("bootstrap.py", "serve.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    return tmp_path


def stand_in(folder, name, script):
    """A program of the given name, to be found first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder / name


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """What set-up makes of an environment whose Python does not start."""
    folder = tmp_path_factory.mktemp("environment") / ".venv"
    (folder / "bin").mkdir(parents=True)
    stand_in(folder / "bin", "python", "exit 1")
    (folder / "left-over").touch()
    bootstrap.create(folder)
    return folder


class TestPython:
    @pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13), (2, 7, 18)])
    def test_too_old(self, version):
        with pytest.raises(bootstrap.Refused, match=r"^Python [\d.]+ is too old: 3\.11 or newer"):
            bootstrap.check_python(version)

    @pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 0), (4, 0, 0)])
    def test_new_enough(self, version):
        bootstrap.check_python(version)

    @pytest.mark.parametrize("missing", ["venv", "ensurepip", "ssl"])
    def test_missing_module(self, missing):
        def importing(name):
            if name == missing:
                raise ImportError(name)

        with pytest.raises(bootstrap.Refused, match=f"lacks the module {missing}") as refused:
            bootstrap.check_python((3, 11), importing)
        assert "apt-get install python3-venv" in str(refused.value)

    def test_none_there(self, clone):
        done = make(clone, "site", "PYTHON=python3.99")
        assert done.returncode
        assert "Set-up failed: there is no python3.99." in done.stderr

    def test_needed_is_the_packages(self):
        text = (ROOT / "pyproject.toml").read_text()
        assert 'requires-python = ">={}.{}"'.format(*bootstrap.NEEDED) in text

    def test_an_old_python_can_read_the_scripts(self):
        import ast

        for name in ("bootstrap.py", "serve.py"):
            ast.parse((ROOT / "scripts" / name).read_text(), feature_version=(3, 8))


class TestInstallation:
    def test_pips_reason(self, clone, environment):
        shutil.copytree(environment, clone / ".venv", symlinks=True)
        constraints = clone / "constraints.txt"
        constraints.write_text("setuptools<1\n")
        # No index at all: the same as no network, and quick.
        done = make(clone, "site", PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_EXTRA_INDEX_URL="")
        assert done.returncode
        reasons = [s for s in done.stderr.splitlines() if s.startswith("Set-up failed:")]
        assert len(reasons) == 1
        assert "pip failed: No matching distribution found for" in reasons[0]
        assert not (clone / ".venv" / "installed").exists()

    def test_last_error(self):
        said = "Collecting a\nERROR: first\nERROR: the cause\n\n[notice] unrelated\n"
        assert bootstrap.last_error(said) == "the cause"
        assert bootstrap.last_error("Killed\n") == "Killed"
        assert bootstrap.last_error("") == "it said nothing"

    @pytest.mark.parametrize(
        ("broken", "reason"),
        [
            (
                "NewConnectionError('<HTTPConnection object at 0x7f>: Failed to establish a new "
                "connection: [Errno 111] Connection refused')",
                "Connection refused",
            ),
            (
                "NameResolutionError(\"<HTTPSConnection object>: Failed to resolve 'host' "
                '([Errno -3] Temporary failure in name resolution)")',
                "Temporary failure in name resolution",
            ),
        ],
    )
    def test_no_network(self, broken, reason):
        said = (
            f"WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by "
            f"{broken}: /simple/a/\n"
            "ERROR: Cannot install stabilitykit because of conflicting dependencies.\n"
            "ERROR: ResolutionImpossible: for help visit the manual\n"
        )
        reached = f"the package index cannot be reached ({reason}): no network?"
        assert bootstrap.last_error(said) == reached

    def test_versions_that_conflict(self):
        said = "ERROR: Cannot install a and b.\n\nERROR: ResolutionImpossible: for help\n"
        assert bootstrap.last_error(said) == "Cannot install a and b."

    def test_no_network_in_earnest(self, clone, environment):
        """An index that refuses connections, on this machine; pip gives up after one more try."""
        shutil.copytree(environment, clone / ".venv", symlinks=True)
        done = make(
            clone,
            "site",
            PIP_INDEX_URL="http://127.0.0.1:9/simple",
            PIP_EXTRA_INDEX_URL="",
            PIP_FIND_LINKS="",
            PIP_RETRIES="1",
            PIP_CONFIG_FILE=os.devnull,
        )
        reason = "the package index cannot be reached (Connection refused): no network?"
        assert f"Set-up failed: pip failed: {reason}" in done.stderr

    def test_interrupted(self, clone):
        """An installation that is killed leaves no stamp, and the next one starts over."""
        python = clone / ".venv" / "bin" / "python"
        stand_in_pip = 'case "$*" in *--version*) exit 0;; *) echo "Collecting a"; sleep 60;; esac'
        python.parent.mkdir(parents=True)
        stand_in(python.parent, "python", stand_in_pip)
        process = subprocess.Popen(
            ["make", "site"],
            cwd=clone,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Whoever starts the tests in the background has it ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for line in process.stdout:
            if line.startswith("Installing"):
                break
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30)
        assert "interrupted" in process.stdout.read()
        assert not (clone / ".venv" / "installed").exists()

    def test_stamp(self, clone):
        """Set-up runs once, and again when what it installs has changed."""
        python = stand_in_python(clone, "echo pip $* >> calls")
        assert make(clone, ".venv/installed").returncode == 0
        assert make(clone, ".venv/installed").returncode == 0
        assert len((clone / "calls").read_text().splitlines()) == 2  # --version, install
        assert python.exists()
        os.utime(clone / "constraints.txt", (time.time() + 5, time.time() + 5))
        assert make(clone, ".venv/installed").returncode == 0
        assert len((clone / "calls").read_text().splitlines()) == 4

    def test_broken_environment_is_replaced(self, environment):
        assert not (environment / "left-over").exists()
        command = [environment / "bin" / "python", "-m", "pip", "--version"]
        assert b"pip" in subprocess.run(command, capture_output=True, check=True).stdout


def stand_in_python(clone, script):
    folder = clone / ".venv" / "bin"
    folder.mkdir(parents=True)
    return stand_in(folder, "python", script)


class TestPort:
    def test_taken(self, clone):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            done = make(clone, "serve", f"PORT={port}")
        assert done.returncode
        assert f"Port {port} is taken" in done.stderr
        assert f"make serve PORT={port + 1}" in done.stderr
        # Told at once, not after an installation.
        assert not (clone / ".venv").exists()

    def test_free(self):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            port = other.getsockname()[1]
        assert serve.refusal(str(port)) is None

    @pytest.mark.parametrize("port", ["", "0", "70000", "http", "-1", "80 80"])
    def test_no_number(self, port):
        assert serve.refusal(port) == f"PORT must be a number from 1 to 65535, got {port!r}"


class TestChromium:
    def test_named(self, monkeypatch):
        monkeypatch.setenv("CHROMIUM", sys.executable)
        assert chromium.find() == sys.executable

    def test_named_wrongly(self, monkeypatch):
        monkeypatch.setenv("CHROMIUM", "/no/such/chromium")
        with pytest.raises(ValueError, match="CHROMIUM='/no/such/chromium' is no program"):
            chromium.find()

    def test_systems(self, monkeypatch, tmp_path):
        program = stand_in(tmp_path, "chromium", "exit 0")
        monkeypatch.delenv("CHROMIUM", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert chromium.find() == str(program)

    def test_debians(self, monkeypatch, tmp_path):
        """Installs when there is an apt-get and the right to use it."""
        stand_in(tmp_path, "apt-get", f'echo "$*" >> {tmp_path}/calls')
        stand_in(tmp_path, "chromium", "exit 0")
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert chromium.install() is None
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert chromium.install() == str(tmp_path / "chromium")
        assert (
            (tmp_path / "calls")
            .read_text()
            .splitlines()[-1]
            .endswith("recommends chromium libatomic1")
        )

    def test_debian_fails(self, monkeypatch, tmp_path, capsys):
        stand_in(tmp_path, "apt-get", "echo 'E: no index' >&2; exit 100")
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert chromium.install() is None
        assert "apt-get update -qq failed: E: no index" in capsys.readouterr().out

    def test_playwright_that_does_not_start(self, monkeypatch, tmp_path, capsys):
        """As where its Node.js lacks a library: mended by the installation, else said."""
        program = stand_in(tmp_path, "chromium", "exit 0")
        monkeypatch.delenv("CHROMIUM", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("PLAYWRIGHT_NODEJS_PATH", str(stand_in(tmp_path, "node", "exit 127")))
        assert not chromium.drives()
        assert chromium.ready() is None
        assert f"{program} cannot be used; it may need libatomic1" in capsys.readouterr().out

        def install():
            monkeypatch.delenv("PLAYWRIGHT_NODEJS_PATH")
            return "installed"

        monkeypatch.setattr(chromium, "install", install)
        assert chromium.ready() == "installed"


def test_help_lists_every_target():
    done = make(ROOT)
    assert done.returncode == 0
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert {"serve", "test", "site", "update", "figures", "lint", "clean", "help"} <= listed


def test_all_that_is_installed_by_name_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = sum(project["optional-dependencies"].values(), project["dependencies"])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(pin) for pin in pins if re.fullmatch(r"[\w.-]+==[\w.]+", pin)}
    assert {plain(line) for line in asked} - pinned == set()


def plain(requirement):
    """The name of a requirement, spelt as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()
