"""A notebook's part in its run: it checks what it was given, and hands over one declared result.

A notebook declares its result in its metadata, ``kinetics: {result: "result.parquet"}`` (a table) or
``"result.json"`` (one row), and hands it over with :func:`hand_over`. ``run_notebook`` refuses a run without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from kinetics_lab.book.parameters import assigned, checked, read_notebook, scalar
from kinetics_lab.errors import require
from kinetics_lab.files import write_table, write_text

TABLE, ROW = "result.parquet", "result.json"

RESERVED = ("param.", "sweep.")  # columns that a sweep puts in front of a result's own


Result = TypeVar("Result", pd.DataFrame, Mapping[str, Any])


def check_injected(namespace: dict[str, Any]) -> None:
    """``check_injected(globals())`` in a chapter: refuses what papermill put in unless the cell above it declares it.

    Text is read as YAML where a number, a list or a mapping is wanted: papermill's ``-p`` gives ``[1, 2]`` as text.
    """
    cells: list[str] = namespace.get("In", [])
    at = max((i for i, cell in enumerate(cells) if cell.startswith("# Parameters\n")), default=0)
    declared = assigned(next((cell for cell in reversed(cells[:at]) if assigned(cell)), ""))
    for name in assigned(cells[at]) if at else ():
        value = namespace[name]
        if isinstance(value, str) and not isinstance(declared.get(name), str | None):
            value = scalar(value)
        namespace[name] = checked("this chapter", declared, name, value, "")


def hand_over(result: Result) -> Result:
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


def declared_result(notebook: Path | str) -> str | None:
    """The file in which the notebook hands over its result, if it does."""
    name = read_notebook(notebook).metadata.get("kinetics", {}).get("result")
    require(name in (None, TABLE, ROW), f"{notebook}: the declared result must be {TABLE} or {ROW}", name)
    return name


def collects_claims(notebook: Path | str) -> bool:
    """Whether the notebook reads the claims of all others (metadata ``kinetics: {collects_claims: true}``)."""
    return bool(read_notebook(notebook).metadata.get("kinetics", {}).get("collects_claims", False))


def read_result(folder: Path | str) -> pd.DataFrame | None:
    """What the run in ``folder`` handed over, as a table; None where it handed over nothing."""
    if (path := Path(folder, TABLE)).exists():
        return pd.read_parquet(path)
    if (path := Path(folder, ROW)).exists():
        return pd.DataFrame([json.loads(path.read_text(encoding="utf-8"))])
    return None
