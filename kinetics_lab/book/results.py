"""What a notebook hands over: one declared result, written into its run folder, and words for pages of text.

A notebook declares its result in its metadata, ``kinetics: {result: "result.parquet"}`` (a table) or
``"result.json"`` (one row), and hands it over with :func:`hand_over`. ``run_notebook`` refuses a run without it.
With :func:`tell` it names words, numbers above all, which the build puts where a page says ``{{ name }}``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from kinetics_lab.errors import require
from kinetics_lab.files import write_table, write_text

TABLE, ROW, TOLD = "result.parquet", "result.json", "told.json"
RESERVED = ("param.", "sweep.")  # columns that a sweep puts in front of a result's own


Result = TypeVar("Result", pd.DataFrame, Mapping[str, Any])


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


def tell(**words: str) -> None:
    """Name words for the book's pages of text; outside a run (no ``KINETICS_RUN_DIR``) do nothing."""
    if folder := os.environ.get("KINETICS_RUN_DIR"):
        write_text(Path(folder, TOLD), json.dumps(told_in(folder) | words) + "\n")


def told_in(folder: Path | str) -> dict[str, str]:
    """The words that the run in ``folder`` has named so far."""
    path = Path(folder, TOLD)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def with_words(page: str, words: Mapping[str, str]) -> str:
    """The page with every ``{{ name }}`` replaced; ValueError for a name that no chapter has told."""
    try:
        return re.sub(r"\{\{ (\w+) \}\}", lambda found: words[found[1]], page)
    except KeyError as error:
        raise ValueError(f"a page asks for {error}, which no chapter tells") from None


def _plain(value: Any) -> Any:
    """A NumPy value as Python's own."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ValueError(f"a result's values must be numbers, texts, truth values or None; got {value!r}")


def read_result(folder: Path | str) -> pd.DataFrame | None:
    """What the run in ``folder`` handed over, as a table; None where it handed over nothing."""
    if (path := Path(folder, TABLE)).exists():
        return pd.read_parquet(path)
    if (path := Path(folder, ROW)).exists():
        return pd.DataFrame([json.loads(path.read_text(encoding="utf-8"))])
    return None
