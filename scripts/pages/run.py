"""Run one page in a process of its own, watched by the clock."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .child import Run, child
from .parse import Page
from .problems import PageError

_preloaded = ["scripts.pages.preload"]
_REPOSITORY = str(Path(__file__).resolve().parents[2])
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_lock = threading.Lock()


class Running:
    """The processes of pages that run now."""

    def __init__(self) -> None:
        self.stopped = False
        self._processes: set[Any] = set()
        self._lock = threading.Lock()

    def add(self, process) -> None:
        with self._lock:
            self._processes.add(process)
            if self.stopped:
                _kill(process)

    def remove(self, process) -> None:
        with self._lock:
            self._processes.discard(process)

    def stop(self) -> None:
        """End them all, and every one that is added later."""
        with self._lock:
            self.stopped = True
            for process in self._processes:
                _kill(process)


def run(
    page: Page, root: Path, timeout: float, png: bool = False, running: Running | None = None
) -> Run | PageError:
    """Run a page's blocks from top to bottom in one namespace.

    Args:
        page: the parsed page.
        root: the repository; a page may read in it and may not write in it.
        timeout: seconds that the whole page may take.
        png: draw every figure as PNG as well, not the first one only.
        running: knows the page's process while it runs, and may end it.

    Returns:
        what the page did, or the error that stopped it.
    """
    running = running or Running()
    context = fork_server()
    receiver, sender = context.Pipe(duplex=False)
    workdir = tempfile.mkdtemp(prefix="page-")
    process = context.Process(
        target=child,
        args=(sender, page.name, page.text, str(root), workdir, timeout, png),
        daemon=True,
    )
    process.start()
    sender.close()
    running.add(process)
    try:
        result = _watch(page, process, receiver, timeout)
        if isinstance(result, Run):
            process.join(1)  # else what it registered, such as locks, is reported as leaked
        return result
    finally:
        running.remove(process)
        if process.is_alive():
            _kill(process)
        process.join()
        receiver.close()
        shutil.rmtree(workdir, ignore_errors=True)


def preload_package() -> None:
    """Load stabilitykit once for all pages, where it will not change while this process lives."""
    _preloaded[1:] = ["stabilitykit", "stabilitykit.plots"]


def fork_server():
    """Where pages' processes come from; it starts at the first call and takes seconds to load."""
    context = multiprocessing.get_context("forkserver")
    # One thread a page: two under load were 20 times slower on small models.
    wanted = dict.fromkeys(_THREADS, "1") | {"PYTHONPATH": _REPOSITORY}
    with _lock:
        before = {key: os.environ.get(key) for key in wanted}
        os.environ.update(wanted)
        try:
            context.set_forkserver_preload(_preloaded)
            multiprocessing.forkserver.ensure_running()
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
    return context


def _watch(page: Page, process, receiver: Connection, timeout: float) -> Run | PageError:
    deadline = time.monotonic() + timeout
    line = page.blocks[0].line if page.blocks else 1
    while True:
        if not receiver.poll(max(0.0, deadline - time.monotonic())):
            return PageError(
                page.name, line, f"this statement was still running when the page had {timeout:g} s"
            )
        try:
            kind, value = receiver.recv()
        except (EOFError, ConnectionResetError):
            process.join()
            return PageError(
                page.name, line, f"the page's process died here (exit status {process.exitcode})"
            )
        if kind == "at":
            line = value
        elif kind == "error":
            return PageError(page.name, *value)
        else:
            return value


def _kill(process) -> None:
    # The page's own children go with it: it leads a process group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
