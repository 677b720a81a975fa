"""Tables of counts (problem, answers, right ones, mean length), which a plan takes as they are."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab.errors import require
from kinetics_lab.files import opened
from kinetics_lab.traces.sources import records
from kinetics_lab.traces.table import GROUP
from kinetics_lab.traces.trial import TraceFileError, stem_of

#: The columns of a summary by the names that others give them; blanks and capitals do not matter.
NAMES = {name: name for name in ("problem", "n_traces", "n_correct", "mean_tokens", "mean_sq_tokens")}
NAMES |= dict.fromkeys(("n", "n_samples", "num_samples"), "n_traces")
NAMES |= dict.fromkeys(("correct", "c", "num_correct"), "n_correct")
NAMES |= dict.fromkeys(("avg_tokens", "average_tokens", "mean_length"), "mean_tokens")
NAMES |= dict.fromkeys(("mean_square", "mean_square_tokens"), "mean_sq_tokens")
_NUMBERS = ["cap", "tokens_in", "n_traces", "n_correct", "mean_tokens", "mean_sq_tokens"]
_NEEDED = {"problem", "n_traces", "n_correct", "mean_tokens"}


def _named(column: str) -> str:
    folded = "_".join(column.lower().split())
    return NAMES.get(folded, folded)


def holds_counts(record: Any) -> bool:
    """Whether a record is a row of counts: it has all of problem, n, correct and mean tokens, by any of their names."""
    return isinstance(record, dict) and {_named(name) for name in record} >= _NEEDED


def read_counts(path: Path) -> pd.DataFrame | None:
    """The summary that a file of counts holds (CSV, Parquet or JSON), or None where its first row is no such row.

    Needed: ``problem``, ``n``, ``correct`` (of the n), ``mean tokens`` (E[L]), or their names in a summary. Where
    others are missing, a warning says what is assumed: model and task are the file's name, the policy is dense, a
    prompt has no tokens, and all answers to a problem have one length, E[L^2] = E[L]^2, the least that it can be.
    """
    rows: list[Any] = []
    with opened(path) as file:
        try:
            for line, record in records(file):
                if not rows and not holds_counts(record):
                    return None
                if isinstance(record, ValueError):
                    raise ValueError(f"{path}:{line}: {record}")
                rows.append(record)
        except (OSError, EOFError, TraceFileError, csv.Error):
            return None  # whatever is wrong with it, read_traces says so
    if not rows:
        return None
    table = pd.DataFrame(rows).rename(columns=_named)
    twice = table.columns[table.columns.duplicated()]
    require(len(twice) == 0, f"{path}: each column of the counts must be there once", list(twice))
    numbers = table.columns.intersection(_NUMBERS)
    for name in table.columns.intersection(GROUP):
        for value in table[name]:
            require(isinstance(value, str | int | float), f"{path}: {name} must be text", value)
    table = table.assign(**{name: _numbers(table[name]) for name in numbers})
    return _completed(table, path)


def _numbers(column: pd.Series) -> pd.Series:
    """Texts as numbers, exactly; a column with anything else stays as it is, for the check of summaries to name."""
    try:
        found = column.replace("", np.nan).astype(float)
    except (TypeError, ValueError):
        return column
    return found.astype(int) if (found % 1 == 0).all() and (found.abs() < 2**53).all() else found


def _completed(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The counts with the columns that they lack, and a warning of what these were assumed to be."""
    stem, square = stem_of(path), pd.to_numeric(table.mean_tokens, errors="coerce") ** 2
    same = (
        "answers of one length (without mean_sq_tokens, E[L^2]; attention then costs at least what is said)"
    )
    assumed: dict[str, tuple[Any, str]] = {
        "model": (stem, f"model {stem!r}"), "task": (stem, f"task {stem!r}"), "policy": ("dense", "policy 'dense'"),
        "tokens_in": (0, "prompts of no tokens (prompts then cost nothing)"), "mean_sq_tokens": (square, same),
    }  # fmt: skip
    if lacks := [name for name in assumed if name not in table]:
        told = "; ".join(assumed[name][1] for name in lacks)
        warnings.warn(f"{path}: counts without all columns: assumed {told}", stacklevel=4)
    table = table.assign(**{name: assumed[name][0] for name in lacks})
    return table[[name for name in (*GROUP, *_NUMBERS) if name in table]]
