"""Which part of a diagnosis raised, when the reader's code does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def stage(what: str, entered: Sequence[str] = ()) -> Iterator[None]:
    """Say where an exception of the reader's code came from.

    Args:
        what: what is being done.
        entered: the modules whose forward has not ended.
    """
    try:
        yield
    except Exception as error:
        inner = entered[-1] if entered else ""
        place = f"{what} of layer {inner!r}" if inner else what
        raise RuntimeError(f"{place} raised {type(error).__name__}: {error}") from error
