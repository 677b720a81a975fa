"""The control below a chart: a slider that computes a column anew, or one that picks rows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from kinetics_lab.book.charts.tables import plain


@dataclass(frozen=True)
class Slider:
    """A control below the chart; the printed picture shows its start ``value``.

    ``expr`` computes the drawn column anew for every value: a Vega expression over ``datum.<column>`` and
    ``name``, for example ``"datum.flops + intensity * datum.bytes"``. `Slider.filter` keeps instead the rows
    in which a column has the chosen value. ``format`` is a d3 number format for the value in the title.
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
    format: str = ",~g"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"Slider.name must be a plain name such as 'intensity'; got {self.name!r}")
        if self.column:
            return
        if self.name not in self.expr:
            raise ValueError(f"Slider.expr must use the slider's name {self.name!r}; got {self.expr!r}")
        if not (isinstance(self.value, int | float) and self.min <= self.value <= self.max and self.step > 0):
            raise ValueError(f"Slider {self.name!r} needs min <= value <= max and step > 0; got {self}")

    @classmethod
    def filter(cls, column: str, label: str, values: Sequence[Any], value: Any = None) -> Slider:
        """A slider over ``values`` of ``column`` (a menu when they are text), starting at ``value`` or the first."""
        known = tuple(plain(v) for v in values)
        start = known[0] if value is None and known else plain(value)
        if start not in known:
            raise ValueError(f"Slider.filter value must be one of {list(known)}; got {value!r}")
        return cls(name=f"choose_{column}", label=label, value=start, column=column, values=known)

    def _by_index(self) -> bool:
        return bool(self.column) and not isinstance(self.values[0], str)

    def param(self) -> alt.Parameter:
        if self.column and not self._by_index():
            menu = alt.binding_select(options=list(self.values), name=f"{self.label} ")
            return alt.param(name=self.name, value=self.value, bind=menu)
        start, low, high, step = self.value, self.min, self.max, self.step
        if self.column:  # a range input needs even steps, so it moves over the position in the list
            start, low, high, step = self.values.index(self.value), 0, len(self.values) - 1, 1
        bind = alt.binding_range(min=low, max=high, step=step, name=f"{self.label} ")
        return alt.param(name=self.name, value=start, bind=bind)

    def _current(self) -> str:
        """Vega expression of the chosen value."""
        return f"{json.dumps(self.values)}[{self.name}]" if self._by_index() else self.name

    def headline(self) -> str:
        """Vega expression of the label with the chosen value, for the title."""
        shown = self._current()
        if not isinstance(self.value, str):
            shown = f"format({shown}, {json.dumps(self.format)})"
        return f"{json.dumps(self.label + ': ')} + {shown}"

    def columns(self) -> list[str]:
        """The columns of the table that the control needs."""
        if self.column:
            return [self.column]
        used = re.findall(r"datum\.(\w+)|datum\[['\"]([^'\"]+)['\"]\]", self.expr)
        return [a or b for a, b in used]

    def transform(self, chart: Any, y: str) -> Any:
        if self.column:
            return chart.transform_filter(f"datum[{json.dumps(self.column)}] == {self._current()}")
        return chart.transform_calculate(**{y: self.expr})
