"""The command line: `python -m stabilitykit diagnose FILE.py:FACTORY`."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

import stabilitykit
from stabilitykit import report
from stabilitykit._files import write
from stabilitykit.diagnosis import diagnose

HEALTHY, FINDINGS, FAILED = 0, 1, 2

EPILOG = """
FACTORY is a function without arguments in FILE.py. It returns (model, batch, loss_fn) or
(model, batch, loss_fn, optimizer):

  batch      (inputs, targets); inputs is a tensor, or a tuple or dict unpacked into forward;
             of a DataLoader take one: next(iter(loader))
  loss_fn    called as loss_fn(outputs, targets), gives a scalar
  optimizer  of the model's parameters; its step is then judged as well

What is written to F goes to standard output, in place of the text, where F is -.

The file is run, as by `python FILE.py`, but under another name than __main__.

Each finding names the page that explains it, as a file of stabilitykit's repository. Set the
environment variable STABILITYKIT_SITE to the address of its site, and its own is named instead.

exit status:
  0  healthy
  1  findings, warnings among them
  2  could not run, or not as asked; standard error says why

example:
  python -m stabilitykit diagnose train.py:make --html report.html
"""


class Failure(Exception):
    """Something that the reader can mend, in one line."""


def parser() -> argparse.ArgumentParser:
    """The arguments, with their help."""
    top = argparse.ArgumentParser(prog="python -m stabilitykit", description=stabilitykit.__doc__)
    top.add_argument("--version", action="version", version=stabilitykit.__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "diagnose",
        help="run one step of a model and say what is wrong with it",
        description="Run one training step of a model, say what is wrong, where it starts and "
        "what to do about it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "target", metavar="FILE.py:FACTORY", help="what makes the model, see below"
    )
    command.add_argument("--html", metavar="F", type=Path, help="also write one HTML file")
    command.add_argument("--json", metavar="F", type=Path, help="also write all numbers as JSON")
    return top


def load(path: Path) -> ModuleType:
    """Run a file as a module; what stands beside it can be imported, as by `python FILE.py`."""
    if not path.is_file():
        raise Failure(f"{path} is not a file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Failure(f"{path} is not a Python file; expected a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    mine, sys.argv = sys.argv, [str(path)]
    try:
        _own(lambda: spec.loader.exec_module(module), path, str(path))  # type: ignore[union-attr]
    finally:
        sys.argv = mine
    return module


def _own(run: Any, path: Path, what: str) -> Any:
    """Run the reader's code; what it raises becomes one line that names theirs."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        name = path.resolve()  # frames have it as absolute
        own = [f.lineno for f in frames if Path(f.filename).resolve() == name]
        line = own[-1] if own else None
        if isinstance(error, SyntaxError) and Path(error.filename or "").resolve() == name:
            line = error.lineno
        place = what if line is None else f"{what}, line {line}"
        said = " ".join(str(error).split())
        raise Failure(f"{place} raised {type(error).__name__}: {said}") from error


def made(target: str) -> tuple[Any, ...]:
    """What the factory returns, checked for its shape."""
    file, colon, name = target.rpartition(":")
    if not (colon and file and name.isidentifier()):
        raise Failure(f"{target!r} is not of the form FILE.py:FACTORY")
    path = Path(file)
    module = load(path)
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [key for key, value in vars(module).items() if callable(value)]
        near = difflib.get_close_matches(name, functions, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Failure(f"{path} has no function {name!r}{hint}")
    result = _own(factory, path, target)
    if not isinstance(result, (tuple, list)) or len(result) not in (3, 4):
        length = f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
        raise Failure(
            f"{target} returned {type(result).__name__}{length}; "
            "expected (model, batch, loss_fn) or (model, batch, loss_fn, optimizer)"
        )
    return tuple(result)


def run(arguments: argparse.Namespace) -> int:
    """Diagnose, print and write; the exit status."""
    if arguments.html is not None and arguments.html == arguments.json:
        raise Failure(f"--html and --json both name {arguments.html}; expected two files")
    targets = {report.to_html: arguments.html, report.to_json: arguments.json}
    shown = next((content for content, target in targets.items() if target == Path("-")), None)
    targets = {c: target for c, target in targets.items() if target is not None and c is not shown}
    for path in targets.values():
        if path.is_dir() or not path.parent.is_dir():
            raise Failure(f"{path} cannot be written: its folder is missing, or it is one itself")
    parts = made(arguments.target)
    try:
        diagnosis = diagnose(*parts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Failure(" ".join(str(error).split())) from error
    for content, target in targets.items():
        try:
            write(target, content(diagnosis))
        except OSError as error:
            raise Failure(f"{target} cannot be written: {error.strerror or error}") from error
    if isinstance(sys.stdout, io.TextIOWrapper):  # whose encoding may lack what names hold
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if shown is not None:
            print(shown(diagnosis), flush=True)
        else:
            _Console(soft_wrap=False, highlight=False).print(report.text(diagnosis))
    except BrokenPipeError:  # whoever read it, such as `head`, has seen enough
        _silence()
    except OSError as error:
        _silence()
        raise Failure(f"standard output cannot be written: {error.strerror or error}") from error
    return HEALTHY if diagnosis.healthy else FINDINGS


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the status to `run`: that of rich would mean findings."""
        raise BrokenPipeError


def _silence() -> None:
    """Send what is left for standard output nowhere: the end of the program flushes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those after the program's name; of this process unless given.

    Returns:
        The exit status: 0 healthy, 1 findings, 2 could not run.
    """
    try:
        return run(parser().parse_args(arguments))
    except Failure as failure:
        print(f"stabilitykit: {failure}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
