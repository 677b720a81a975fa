"""The tables that charts draw, checked and cut to what a page has to carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab.errors import among, unknown

MAX_ROWS = 5000


def plain(value: Any) -> Any:
    """A NumPy scalar as a Python one, floats to six significant digits as in the tables."""
    value = value.item() if isinstance(value, np.generic) else value
    return float(f"{value:.6g}") if isinstance(value, float) else value


def tidy(table: pd.DataFrame, columns: Sequence[str | None]) -> pd.DataFrame:
    """The named columns only, floats to six significant digits: what a page has to carry."""
    wanted = list(dict.fromkeys(c for c in columns if c))
    for column in wanted:
        among(map(str, table.columns), column, "column")
        if any(sign in column for sign in ".[]:'\"\\") or column == "count":
            # Vega reads the signs as paths, and counts the rows of a group into a field "count"
            raise ValueError(
                f"column {column!r} needs a name without dots, brackets, colons, quotes, and not 'count'"
            )
    if not 1 <= len(table) <= MAX_ROWS:
        raise ValueError(
            f"a chart takes a table of 1 to {MAX_ROWS} rows; got {len(table)}: thin it out first"
        )
    out = table[wanted].reset_index(drop=True)
    for column in wanted:
        if pd.api.types.is_bool_dtype(out[column]):
            out[column] = out[column].astype(str)
        elif pd.api.types.is_float_dtype(out[column]):
            out[column] = [float(f"{v:.6g}") for v in out[column]]
    return out


def numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def binary(values: Any) -> bool:
    """Whether all values are powers of two with at least one from 1024 up."""
    v = np.unique(np.asarray(values, float))
    return bool(len(v) > 1 and v.min() >= 1 and v.max() >= 1024 and np.all(np.log2(v) % 1 == 0))


def span(table: pd.DataFrame, *columns: str) -> np.ndarray:
    """All finite values of the columns that the table has (an empty array: none is known)."""
    known = [table[c].to_numpy(float) for c in columns if c in table]
    values = np.concatenate(known) if known else np.empty(0)
    return values[np.isfinite(values)]


def order(table: pd.DataFrame, column: str, sort: Sequence[Any] | None) -> list[Any]:
    """Distinct values of a column: as ``sort`` says, else numbers ascending and names by appearance."""
    seen = [plain(v) for v in pd.unique(table[column].dropna())]
    if sort is None:
        return sorted(seen) if numeric(table[column]) else seen
    wanted = [plain(v) for v in sort]
    for name in seen:
        if name not in wanted:
            raise unknown(f"{column} in the table but not in sort:", name, [str(w) for w in wanted])
    return [w for w in wanted if w in seen]
