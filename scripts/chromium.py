"""Find a Chromium to look at the built site with, or install Debian's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The second is what Playwright's own Node.js needs, and a small Debian lacks.
PACKAGES = ("chromium", "libatomic1")


def ready() -> str | None:
    """The path of a Chromium that Playwright can drive, installed where that can be done.

    Raises:
        ValueError: `CHROMIUM` is set and names no program.
    """
    browser = find()
    if browser and drives():
        return browser
    browser = install() or browser
    if browser and drives():
        return browser
    if browser:
        print(f"Playwright does not start, so {browser} cannot be used; it may need libatomic1")
    return None


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
    path = _playwrights()
    return path if path and Path(path).exists() else None


def drives() -> bool:
    """Whether Playwright starts on this machine."""
    return _playwrights() is not None


def _playwrights() -> str | None:
    """Where Playwright would have its own Chromium; None where it does not start."""
    from playwright.sync_api import sync_playwright

    try:
        with sync_playwright() as playwright:
            return playwright.chromium.executable_path
    except Exception:  # it has no narrower kind for a driver that ends at once
        return None


def install() -> str | None:
    """Install Debian's Chromium where that can be done, and return its path."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return None
    print("Installing Chromium (about a minute)", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES],
    ):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            print(f"{' '.join(command)} failed: {said[-1]}", flush=True)
            return None
    return shutil.which("chromium")
