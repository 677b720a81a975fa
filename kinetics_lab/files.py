"""Files written whole or not at all, folders locked: what every room writes with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout


@contextmanager
def at_path(path: Path) -> Iterator[None]:
    """Make an OSError from within name a file: a full disk shows when buffers are written, and then without one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill ``<path>.part`` and rename it: the file is whole or not there. OSError names the path."""
    part = path.with_name(path.name + ".part")
    try:
        with at_path(path):
            write(part)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all; returns the path."""
    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table without its index as Parquet, whole or not at all; returns the path."""
    return write_whole(path, lambda part: table.to_parquet(part, index=False))


@contextmanager
def locked(path: Path, busy: Exception | None = None) -> Iterator[None]:
    """Hold the file's lock: of two processes the second waits and then finds the work done, or is told ``busy``.

    The system lets go of the lock of a process that ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path).acquire(blocking=busy is None)
    except Timeout as error:
        raise busy or error from None
    with lock:
        yield


def is_ours(folder: Path, record: str, kind: str) -> bool:
    """Whether a folder may be written to: not there, empty, or its JSON file ``record`` says that it is of this kind."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names <= {".lock", f"{record}.part"}:  # all there is when killed at the start
        return True
    try:
        return bool(json.loads((folder / record).read_text(encoding="utf-8"))["kind"] == kind)
    except (OSError, ValueError, KeyError, TypeError):
        return False
