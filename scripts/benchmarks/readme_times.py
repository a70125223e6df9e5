"""Measure `make test` in a fresh clone and write the times into README.md.

The clone is of the last commit, in a temporary folder with neither environment nor cache. The
second run keeps the environment and executes every page anew.

    make times
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKED = re.compile(r"(?<=<!--times-->\n).*?(?=<!--/times-->)", re.S)


def timed(folder: Path, log: Path) -> float:
    """Seconds of one `make test`; its output goes to a log, its failure ends everything."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    start = time.monotonic()
    with log.open("w") as output:
        done = subprocess.run(
            ["make", "test", f"PYTHON={sys.executable}"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    seconds = time.monotonic() - start
    closing = log.read_text().strip().splitlines()[-1:]
    print(f"{spoken(seconds)}: {' '.join(closing)}", flush=True)
    if done.returncode:
        raise SystemExit(f"make test failed, nothing was written; its output is in {log}")
    return seconds


def spoken(seconds: float) -> str:
    """Whole minutes and seconds, such as 2 min 14 s."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s"


def sentence(with_installation: float, without: float) -> str:
    """What README.md says between its markers."""
    day = datetime.now(UTC).date().isoformat()
    return (
        f"Measured on {day} by `make times` in a fresh clone ({os.cpu_count()} cores, Python "
        f"{platform.python_version()}): `make test` takes\n**{spoken(with_installation)}** with "
        f"installation and **{spoken(without)}** without, every page executed in both.\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 once README.md holds both times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    readme = ROOT / "README.md"
    if not MARKED.search(readme.read_text(encoding="utf-8")):
        raise SystemExit("README.md has no <!--times--> line with <!--/times--> below it")
    with tempfile.TemporaryDirectory(prefix="stabilitykit-times-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        log = Path(tempfile.gettempdir()) / "stabilitykit-times.log"
        with_installation = timed(clone, log)
        shutil.rmtree(clone / ".cache", ignore_errors=True)
        without = timed(clone, log)
    # Read again: it may have changed in the meantime.
    text = readme.read_text(encoding="utf-8")
    readme.write_text(MARKED.sub(sentence(with_installation, without), text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
