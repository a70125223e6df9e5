"""Run everything that can fail: build the site, then one pytest run over tests and pages."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts import chromium

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Exit status 0 when the site builds and every test passes.

    Args:
        arguments: given on to pytest, such as `-k gain`.
    """
    environment = dict(os.environ)
    try:
        browser = chromium.ready()
    except ValueError as reason:
        print(reason, file=sys.stderr)
        return 1
    if browser:
        environment["CHROMIUM"] = browser
    with tempfile.TemporaryDirectory(prefix="stabilitykit-site-") as site:
        start = time.monotonic()
        print("Building the site", flush=True)
        build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site]
        built = subprocess.run(build, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
        said = "FAILED to build" if built.returncode else "built"
        # The tests of the site need this; conftest.py repeats it under the results.
        environment["SITE_DIR"] = site
        environment["SITE_SAID"] = f"{said} in {time.monotonic() - start:.0f} s"
        tests = [sys.executable, "-m", "pytest", "--codeblocks", "-q", "-n", "auto"]
        tests += ["--dist", "worksteal", "tests", "docs", "README.md", *arguments]
        tested = subprocess.run(tests, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    return tested.returncode or built.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
