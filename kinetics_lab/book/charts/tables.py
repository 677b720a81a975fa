"""What charts draw: tables checked and cut to what a page has to carry, and the control that changes them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kinetics_lab.errors import among, require, unknown

MAX_ROWS = 5000
# Vega groups rows in objects, and finds there what JavaScript gives every object: such a name gets an invisible end.
TAKEN = frozenset({"constructor", "hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf",
                   "__proto__", "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__"})  # fmt: skip


def plain(value: Any) -> Any:
    """A NumPy scalar as a Python one, floats to six significant digits as in the tables."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and value in TAKEN:
        return value + "\u200b"
    return float(f"{value:.6g}") if isinstance(value, float) else value


def begin(
    table: pd.DataFrame, columns: Sequence[str | None], texts: dict[str, str], slider: Slider | None = None,
    tooltip_columns: Sequence[str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The named columns of a chart and those of its control, floats to six significant digits.

    ValueError for an empty text or table, for too many rows, and for a column that is unknown or Vega cannot name.
    """
    for name, text in texts.items():
        require(str(text).strip() != "", f"{name} must be a non-empty text", text)
    needed = [*columns, *(slider.columns() if slider else []), *(tooltip_columns or ())]
    wanted = list(dict.fromkeys(c for c in needed if c))
    for column in wanted:
        among(map(str, table.columns), column, "column")
        # Vega reads the signs as paths, and counts the rows of a group into a field "count"
        taken = any(sign in column for sign in ".[]:'\"\\") or column == "count"
        require(
            not taken, "a column needs a name without dots, brackets, colons, quotes; not 'count'", column
        )
    require(1 <= len(table) <= MAX_ROWS, f"a chart takes 1 to {MAX_ROWS} rows", len(table))
    out = table[wanted].reset_index(drop=True)
    for column in [name for name in wanted if out[name].isin(TAKEN).any()]:
        out[column] = out[column].astype(object).map(plain)
    flags = dict.fromkeys(out.select_dtypes(["bool", "boolean"]), str)
    return out.astype(flags).assign(**{str(c): out[c].map(plain) for c in out.select_dtypes("number")})


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


SIGNS = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}


def _value(rule: Any, data: pd.DataFrame, known: dict[str, Any]) -> Any:
    """The value of a rule of arithmetic: of a `Slider.expr`, or of a part of it."""
    if isinstance(rule, ast.BinOp):
        return SIGNS[type(rule.op)](_value(rule.left, data, known), _value(rule.right, data, known))
    if isinstance(rule, ast.Call):
        return known[rule.func.id](*(_value(part, data, known) for part in rule.args))  # type: ignore[attr-defined]
    if isinstance(rule, ast.Attribute):
        return data[rule.attr]
    return known[rule.id] if isinstance(rule, ast.Name) else ast.literal_eval(rule)


@dataclass(frozen=True)
class Slider:
    """A control below the chart; the printed picture shows its start ``value``.

    ``expr`` computes the drawn column anew for every value: arithmetic, ``max`` and ``min`` over ``datum.<column>`` and
    ``name``, for example ``"datum.flops + intensity * datum.bytes"``. `Slider.filter` keeps instead the rows
    in which a column has the chosen value.
    """

    name: str
    label: str
    value: float | str
    min: float = 0
    max: float = 0
    step: float = 1
    expr: str = ""
    column: str = ""
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        require(self.name.isidentifier(), "Slider.name must be a plain name such as 'intensity'", self.name)
        if self.column:
            return
        require(self.name in self.expr, f"Slider.expr must use the slider's name {self.name!r}", self.expr)
        if not (isinstance(self.value, int | float) and self.min <= self.value <= self.max and self.step > 0):
            raise ValueError(f"Slider {self.name!r} needs min <= value <= max and step > 0; got {self}")

    @classmethod
    def filter(cls, column: str, label: str, values: Sequence[Any], value: Any = None) -> Slider:
        """A slider over ``values`` of ``column`` (a menu when they are text), starting at ``value`` or the first."""
        known = tuple(plain(v) for v in values)
        start = known[0] if value is None and known else plain(value)
        require(start in known, f"Slider.filter value must be one of {list(known)}", value)
        return cls(name=f"choose_{column}", label=label, value=start, column=column, values=known)

    def _by_index(self) -> bool:
        return bool(self.column) and not isinstance(self.values[0], str)

    def param(self) -> alt.Parameter:
        start, name = self.value, f"{self.label} "
        bind: Any = alt.binding_range(min=self.min, max=self.max, step=self.step, name=name)
        if self._by_index():  # a range input needs even steps, so it moves over the position in the list
            start = self.values.index(start)
            bind = alt.binding_range(min=0, max=len(self.values) - 1, step=1, name=name)
        elif self.column:
            bind = alt.binding_select(options=list(self.values), name=name)
        return alt.param(name=self.name, value=start, bind=bind)

    def _current(self) -> str:
        """Vega expression of the chosen value."""
        return f"{json.dumps(self.values)}[{self.name}]" if self._by_index() else self.name

    def headline(self) -> str:
        """Vega expression of the label with the chosen value, for the title."""
        number = not isinstance(self.value, str)
        shown = f'format({self._current()}, ",~g")' if number else self._current()
        return f"{json.dumps(self.label + ': ')} + {shown}"

    def columns(self) -> list[str]:
        """The columns of the table that the control needs."""
        used = re.findall(r"datum\.(\w+)|datum\[['\"]([^'\"]+)['\"]\]", self.expr)
        return [self.column] if self.column else [a or b for a, b in used]

    def drawn(self, data: pd.DataFrame, y: str) -> pd.DataFrame:
        """The rows that can be seen: ``_at`` says for which choice, of an ``expr`` for its start and both its ends."""
        if self.column:
            return data.assign(_at=data[self.column].astype(str))
        rule, known = ast.parse(self.expr, mode="eval").body, {"max": np.maximum, "min": np.minimum}
        at = {v: _value(rule, data, known | {self.name: v}) for v in (self.value, self.min, self.max)}
        return pd.concat([data.assign(_at=v, **{y: values}) for v, values in at.items()])

    def transform(self, chart: Any, y: str) -> Any:
        """The chart with ``y`` computed anew, or only the rows of the chosen value."""
        if self.column:
            return chart.transform_filter(f"datum[{json.dumps(self.column)}] == {self._current()}")
        return chart.transform_calculate(**{y: self.expr})
