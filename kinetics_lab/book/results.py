"""A notebook's part in its run: it checks what it was given, hands over one declared result and words for pages of text, and badges its page.

A notebook declares its result in its metadata, ``kinetics: {result: "result.parquet"}`` (a table) or
``"result.json"`` (one row), and hands it over with :func:`hand_over`. ``run_notebook`` refuses a run without it.
With :func:`tell` it names words, numbers above all, which the build puts where a page says ``{{ name }}``.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from kinetics_lab.book.parameters import assigned, checked, read_notebook, scalar
from kinetics_lab.errors import require
from kinetics_lab.files import read_text, write_table, write_text

TABLE, ROW, TOLD = "result.parquet", "result.json", "told.json"
RESERVED = ("param.", "sweep.")  # columns that a sweep puts in front of a result's own
Result = TypeVar("Result", pd.DataFrame, Mapping[str, Any])


def check_injected(namespace: dict[str, Any]) -> None:
    """``check_injected(globals())`` in a chapter: refuses what papermill put in unless the cell above it declares it.

    Text is read as YAML where none is wanted, or anything: papermill's ``-p`` gives ``[1, 2]`` as text, ``-r`` also 8.
    """
    cells: list[str] = namespace.get("In", [])
    at = max((i for i, cell in enumerate(cells) if cell.startswith("# Parameters\n")), default=0)
    declared = assigned(next((cell for cell in reversed(cells[:at]) if assigned(cell)), ""))
    for name in assigned(cells[at]) if at else ():
        value = namespace[name]
        if isinstance(value, str) and not isinstance(declared.get(name), str):
            value = scalar(value, name)
        namespace[name] = value = checked("this chapter", declared, name, value, "")
        require(name != "n_boot" or value >= 20, "n_boot must be >= 20, for intervals", value)


def hand_over(result: Result) -> Result:
    """Hand over a notebook's result and return it; outside a run (no ``KINETICS_RUN_DIR``) only return it.

    A DataFrame becomes ``result.parquet``: named index levels become columns, an unnamed index is dropped. A
    mapping of names to plain values becomes ``result.json``, one row, null where a number is not finite. Raises ValueError for column names that are
    no text, not unique or begin like a sweep's own (``param.``, ``sweep.``); OSError with the path.
    """
    table = result if isinstance(result, pd.DataFrame) else None
    index: list[Any] = [] if table is None else list(table.index.names)
    named: list[Any] = [name for name in index if name is not None]
    names: list[Any] = [*named, *result]
    require(all(isinstance(name, str) for name in names), "a result's columns must be named by text", names)
    require(len(set(names)) == len(names), "a result's columns must differ in name", names)
    taken = [name for name in names if name.startswith(RESERVED)]
    require(not taken, f"columns that begin with {' or '.join(RESERVED)} are a sweep's own", taken)
    folder = os.environ.get("KINETICS_RUN_DIR")
    if folder and table is not None:
        write_table(Path(folder, TABLE), table.reset_index(named) if named else table)
    elif folder:
        write_text(Path(folder, ROW), json.dumps(_plain(dict(result)), allow_nan=False) + "\n")
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
    """A value as JSON has it: NumPy's as Python's own, null for a number that is not finite."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
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
        row = json.loads(read_text(path))
        require(isinstance(row, dict), f"{ROW} must hold one object", row)
        return pd.DataFrame([row])
    return None


class Badge:
    """Of which device, precision and clock a page's times and prices are; the last expression of a cell near its top.

    ``told``: texts, one for each clock that the page uses.
    """

    def __init__(self, *told: str) -> None:
        require(all(told) and len(told) > 0, "a badge needs texts", told)
        self.told = told

    def __repr__(self) -> str:
        return "Times and prices: " + "; ".join(self.told)

    def _repr_html_(self) -> str:
        each = " ".join(f"<span>{html.escape(text)}</span>" for text in self.told)
        return f'<p class="kl-badge">Times and prices: {each}</p>'
