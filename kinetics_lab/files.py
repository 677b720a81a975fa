"""What a notebook hands over: one declared result, written into its run folder for whoever gathers runs.

A notebook declares its result in its metadata, ``kinetics: {result: "result.parquet"}`` (a table) or
``"result.json"`` (one row), and hands it over with :func:`record`. ``run_notebook`` refuses a run without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from kinetics_lab.errors import require

TABLE, ROW = "result.parquet", "result.json"
RESERVED = ("param.", "sweep.")  # columns that a sweep puts in front of a result's own

Result = TypeVar("Result", pd.DataFrame, Mapping[str, Any])


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
    """Hold the file's lock: of two processes the second waits and then finds the work done, or is told ``busy``."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise busy or error from None
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


def record(result: Result) -> Result:
    """Hand over a notebook's result and return it; outside a run (no ``KINETICS_RUN_DIR``) only return it.

    A DataFrame becomes ``result.parquet``: named index levels become columns, an unnamed index is dropped. A
    mapping of names to plain values becomes ``result.json``, one row. Raises ValueError for column names that are
    no text, not unique or begin like a sweep's own (``param.``, ``sweep.``); OSError with the path.
    """
    names: list[Any] = list(result)
    if isinstance(result, pd.DataFrame):
        named = [name for name in result.index.names if name is not None]
        names = named + names
    require(all(isinstance(name, str) for name in names), "a result's columns must be named by text", names)
    require(len(set(names)) == len(names), "a result's columns must differ in name", names)
    taken = [name for name in names if name.startswith(RESERVED)]
    require(not taken, f"columns that begin with {' or '.join(RESERVED)} are a sweep's own", taken)
    if folder := os.environ.get("KINETICS_RUN_DIR"):
        if isinstance(result, pd.DataFrame):
            unnamed = [i for i, name in enumerate(result.index.names) if name is None]
            table = result.reset_index(unnamed, drop=True) if unnamed else result
            table = table.reset_index() if named else table
            write_table(Path(folder, TABLE), table)
        else:
            write_text(Path(folder, ROW), json.dumps(dict(result), default=_plain) + "\n")
    return result


def _plain(value: Any) -> Any:
    """A NumPy value as Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"a result's values must be numbers, texts, truth values or None; got {value!r}")


def read(folder: Path | str) -> pd.DataFrame | None:
    """What the run in ``folder`` handed over, as a table; None where it handed over nothing."""
    if (path := Path(folder, TABLE)).exists():
        return pd.read_parquet(path)
    if (path := Path(folder, ROW)).exists():
        return pd.DataFrame([json.loads(path.read_text(encoding="utf-8"))])
    return None
