"""Set up `.venv` with everything that the site and the tests need.

Standard library only, and no syntax newer than Python 3.8, so that an old Python reaches the line
that says so. Failures take one line.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (3, 11)  # pyproject.toml's requires-python


class Refused(Exception):
    """Why set-up cannot go on, in one line."""


def check_python(version, import_module=__import__):
    """Refuse a Python that is too old or lacks what a virtual environment needs.

    Args:
        version: as `sys.version_info`.
        import_module: what imports a module by name.

    Raises:
        Refused: the reason and what to do about it.
    """
    if tuple(version[:2]) < NEEDED:
        raise Refused(
            "Python {}.{} is too old: {}.{} or newer is needed. "
            "Name another one: make PYTHON=python3.13".format(*version[:2], *NEEDED)
        )
    for module in ("venv", "ensurepip", "ssl"):
        try:
            import_module(module)
        except ImportError:
            raise Refused(
                f"{sys.executable} lacks the module {module}. On Debian and Ubuntu: "
                "apt-get install python3-venv; or name another Python: make PYTHON=python3.13"
            ) from None


def create(folder):
    """Create the environment, replacing one whose Python or pip does not start."""
    import venv

    python = folder / "bin" / "python"
    works = (
        python.exists()
        and not subprocess.run(
            [str(python), "-m", "pip", "--version"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode
    )
    if not works:
        print(f"Creating {_shown(folder)}", flush=True)
        try:
            venv.EnvBuilder(with_pip=True, clear=True).create(str(folder))
        except (OSError, subprocess.CalledProcessError) as error:
            raise Refused(f"Creating {_shown(folder)} failed: {error}") from None
    return python


def install(python, arguments):
    """Run pip, showing what it is at and the time gone.

    Args:
        python: the environment's Python.
        arguments: what to install, as pip's own arguments.

    Raises:
        Refused: pip's last error line and where its whole output is.
    """
    command = [str(python), "-m", "pip", "install", "--progress-bar", "off", "--no-input"]
    command += ["--disable-pip-version-check", *arguments]
    # Outside the environment: a run that is killed leaves it behind for whoever asks why.
    log = Path(tempfile.gettempdir()) / f"stabilitykit-install-{os.getpid()}.log"
    print("Installing (about two minutes with an empty pip cache)", flush=True)
    start = time.monotonic()
    live = sys.stdout.isatty()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        cwd=str(ROOT),
    )
    doing = [""]
    reader = threading.Thread(target=_follow, args=(process.stdout, log, doing), daemon=True)
    reader.start()
    try:
        # pip is silent while it downloads, which is when one wonders whether it still runs.
        while not _ended(process, 1 if live else 15):
            said = f"{time.monotonic() - start:4.0f} s  {doing[0][:60]}"
            print(f"\r\x1b[K{said}" if live else said, end="" if live else "\n", flush=True)
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()
        reader.join()
        if live:
            print("\r\x1b[K", end="")
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")
        raise Refused(f"pip failed: {last_error(said)} (its whole output: {log})")
    log.unlink()
    print(f"Installed in {time.monotonic() - start:.0f} s", flush=True)


def _follow(lines, log, doing):
    """Keep pip's output in the log, and what it is at in `doing`."""
    with log.open("w", encoding="utf-8") as whole:
        for line in lines:
            whole.write(line)
            match = re.match(r"\s*(Collecting|Downloading|Building|Installing)\b([^(]*)", line)
            if match:
                doing[0] = (match.group(1) + match.group(2)).strip()
            elif line.startswith("WARNING: Retrying"):
                doing[0] = "Waiting for the package index"


def _ended(process, seconds):
    """Whether the process ends within these seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def last_error(output):
    """The line of pip's output that says why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line[len("ERROR:") :].strip() for line in lines if line.startswith("ERROR:")]
    # When the index was given up on, what pip says of versions is a consequence.
    given_up = re.search(r"Retry\(total=0.*?(?:\[Errno -?\d+\] )?([\w ]+)[\"')]*: /", output)
    if given_up:
        return f"the package index cannot be reached ({given_up.group(1).strip()}): no network?"
    if errors and errors[-1].startswith("ResolutionImpossible"):
        return errors[0]
    return (errors or lines or ["it said nothing"])[-1]


def _shown(path):
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def main(arguments=None):
    """Exit status 0 when the environment is ready, 1 with a one-line reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", default="dev", help="pyproject's optional dependencies")
    parser.add_argument("--stamp", type=Path, help="file written once everything is installed")
    options = parser.parse_args(arguments)
    try:
        check_python(sys.version_info)
        python = create(ROOT / ".venv")
        install(python, ["-c", "constraints.txt", "-e", f".[{options.extra}]"])
        if options.stamp:
            options.stamp.touch()
    except Refused as reason:
        print(f"Set-up failed: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nSet-up interrupted; the next run takes it up again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
