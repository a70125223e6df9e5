"""Find a Chromium to look at the built site with, or install Debian's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of `$CHROMIUM`, a system's Chromium or Playwright's own, in this order.

    Raises:
        ValueError: `CHROMIUM` is set and names no program.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        if found := shutil.which(named):
            return found
        raise ValueError(f"CHROMIUM={named!r} is no program that can be run")
    for name in NAMES:
        if found := shutil.which(name):
            return found
    return _playwrights()


def _playwrights() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> str | None:
    """Install Debian's Chromium where that can be done, and return its path."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return None
    print("Installing Chromium (about a minute)", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"],
    ):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            print(f"{' '.join(command)} failed: {said[-1]}", flush=True)
            return None
    return shutil.which("chromium")
