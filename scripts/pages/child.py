"""What happens in a page's own process."""

from __future__ import annotations

import ast
import base64
import contextlib
import gc
import io
import linecache
import os
import signal
import sys
import time
import traceback
import types
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .draw import capture, style
from .parse import Page, parse


@dataclass(frozen=True)
class Drawing:
    """One captured figure; as PNG only where somebody will see it."""

    svg: str
    png: bytes | None


@dataclass(frozen=True)
class Run:
    """What a page did: printed lines by block and statement, a drawing or None by block."""

    outputs: list[list[list[str]]]
    drawings: list[Drawing | None]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "outputs": self.outputs,
            "drawings": [
                d and {"svg": d.svg, "png": d.png and base64.b64encode(d.png).decode()}
                for d in self.drawings
            ],
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        drawings = [
            d and Drawing(d["svg"], d["png"] and base64.b64decode(d["png"], validate=True))
            for d in data["drawings"]
        ]
        return cls(data["outputs"], drawings, data["seconds"])


class _Refused(Exception):
    """A page's failure as (line, message)."""


def child(
    sender: Connection, name: str, text: str, root: str, workdir: str, timeout: float, png: bool
) -> None:
    """Run a page here, and send its lines as they are reached and what it did in the end."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    # A page whose build was killed has nobody to stop it: the kernel does.
    signal.alarm(int(timeout) + 10)
    os.chdir(workdir)
    # What the fork server loaded is no garbage; to look through it again takes a sixth of the time.
    gc.freeze()
    sys.path.insert(0, root)
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        sender.send(("done", _execute(parse(text, name), sender, root, png)))
    except _Refused as refused:
        sender.send(("error", refused.args))
    finally:
        sender.close()


def _execute(page: Page, sender: Connection, root: str, png: bool) -> Run:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(style())
    import torch
    from matplotlib import pyplot

    torch.set_num_threads(1)
    _protect(Path(root).resolve())
    # Shown by the engine, not by the block; without a screen `show` would only warn.
    pyplot.show = lambda *_, **__: None
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    start = time.perf_counter()
    outputs: list[list[list[str]]] = []
    drawings: list[Drawing | None] = []
    for block in page.blocks:
        printed = []
        for unit in block.units:
            sender.send(("at", unit.line))
            printed.append(_run_unit(unit, page.name, module.__dict__))
        outputs.append(printed)
        # A link to the page shows its first figure, in a format that all who link can read.
        drawings.append(_drawing(block, page.name, pyplot, png or not any(drawings)))
    return Run(outputs, drawings, time.perf_counter() - start)


def _run_unit(unit, name: str, namespace: dict[str, Any]) -> list[str]:
    code = compile(ast.Module(list(unit.nodes), []), name, "exec", dont_inherit=True)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as caught:
            for category in (UserWarning, RuntimeWarning, FutureWarning):
                warnings.simplefilter("always", category)
            exec(code, namespace)
    except BaseException as error:
        raise _Refused(*_where(error, unit.line, name)) from None
    for warning in caught:
        if issubclass(warning.category, (UserWarning, RuntimeWarning, FutureWarning)):
            raise _Refused(
                unit.line,
                f"a reader would see {warning.category.__name__}: {warning.message}; mend the "
                "cause or silence it in the block",
            )
    return [line.rstrip() for line in printed.getvalue().splitlines()]


def _where(error: BaseException, line: int, name: str) -> tuple[int, str]:
    """The page's line that failed, and the message, also when the package raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename == name]
    line = (ours[-1].lineno or line) if ours else line
    said = "".join(traceback.format_exception_only(error)).strip().replace("\n", " ")
    source = linecache.getline(name, line).strip()
    message = f"{said}\n    {source}"
    last = frames[-1]
    if last.filename != name:
        where = Path(last.filename)
        message += f"\n    raised at {where.parent.name}/{where.name}:{last.lineno}: {last.line}"
    return line, message


def _drawing(block, name: str, pyplot, png: bool) -> Drawing | None:
    numbers = pyplot.get_fignums()
    try:
        if not numbers:
            if block.figure:
                raise _Refused(
                    block.figure.line, "this figure comment follows a block that draws nothing"
                )
            return None
        if block.figure is None:
            raise _Refused(
                block.line,
                'this block draws: write <!--figure: name="…" alt="…" caption="…"--> under it',
            )
        if len(numbers) > 1:
            raise _Refused(block.line, f"this block draws {len(numbers)} figures, one is allowed")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                figure = pyplot.figure(numbers[0])
                return Drawing(*capture(figure, f"{name}/{block.figure.name}", png))
        except Exception as error:
            raise _Refused(block.line, f"drawing this figure failed: {error!r}") from None
    finally:
        pyplot.close("all")


def _protect(root: Path) -> None:
    """Refuse whatever would write inside the repository; a page's own directory is elsewhere."""
    prefix = str(root) + os.sep
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changes = {
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "shutil.rmtree",
        "shutil.move",
        "shutil.copyfile",
    }

    def inside(path: object) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        absolute = os.path.realpath(os.fsdecode(path))
        return absolute.startswith(prefix) and "__pycache__" not in absolute

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            refused = bool(flags & writing) and inside(path)
        elif event in changes:
            # Copying reads its first path and writes its second.
            paths = args[1:2] if event in {"shutil.copyfile", "os.link", "os.symlink"} else args[:2]
            path = next((p for p in paths if inside(p)), None)
            refused = path is not None
        else:
            return
        if refused:
            raise PermissionError(f"a page may not write in the repository: {os.fsdecode(path)}")

    sys.addaudithook(hook)
