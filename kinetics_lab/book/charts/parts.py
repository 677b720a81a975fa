"""What all charts share: theme and palettes, the slider, checked tables, axes, tooltips, legends.

Text and rules are drawn in ``currentColor``, so one picture serves a light and a dark page; the colours of
the series keep a contrast of at least 3:1 on both.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from kinetics_lab.errors import among, unknown

if TYPE_CHECKING:
    from kinetics_lab.book.charts.slider import Slider

SERIES = ("#3182ce", "#d9731a", "#0f9bab", "#dc4b5d", "#9267d6", "#2f9e5f", "#a8763e", "#d05aa8")
SIZES = ("#3f9f5f", "#1c9a98", "#2f86c8", "#6673dd", "#8f5fd6", "#b34fb8", "#cf4a86")  # small -> large
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "wedge")
WIDTH, HEIGHT = 640, 340
Rules = Sequence[tuple[float, str]]
MAX_ROWS = 5000
INK = "currentColor"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# 1.5k, 2M, 0.05, 1e-6; lengths that are powers of two read 4K, 32K, 1M (K = 1024), as models' contexts do.
NUMBER = (
    "datum.value != 0 && abs(datum.value) < 1e-3 ? format(datum.value, '~e') : "
    "format(datum.value, abs(datum.value) >= 1e4 ? '~s' : '~r')"
)
BINARY = (
    "datum.value >= 1048576 ? datum.value / 1048576 + 'M' : "
    "datum.value >= 1024 ? datum.value / 1024 + 'K' : '' + datum.value"
)


def theme() -> dict[str, Any]:
    """The book's Vega-Lite configuration: light rules, no frame, no background, titles at the start."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
    axis = {"gridColor": INK, "gridOpacity": 0.12, "domainColor": INK, "domainOpacity": 0.5, "tickColor": INK}
    legend = {"orient": "top", "title": None, "labelLimit": 0, "rowPadding": 3, "columnPadding": 14}
    horizontal = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleY": -8, "titleX": 0}
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "background": None,
        "padding": 4,
        "config": {
            "font": FONT,
            "axis": {**text, **axis, "tickOpacity": 0.5, "titleFontWeight": "normal", "titlePadding": 8},
            "axisX": {"grid": False, "labelAngle": 0, "labelOverlap": "greedy"},
            "axisY": {**horizontal, "domain": False, "ticks": False, "labelPadding": 6},
            "legend": {**text, **legend, "symbolStrokeWidth": 2.5, "symbolOpacity": 1, "offset": 28},
            "title": {"color": INK, "fontSize": 15, "anchor": "start", "offset": 10},
            "text": {"color": INK, "fontSize": 12},
            "rule": {"color": INK},
            "view": {"stroke": None},
            "range": {"category": list(SERIES), "ordinal": list(SIZES)},
        },
    }


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


def check_text(**texts: str) -> None:
    for name, text in texts.items():
        if not str(text).strip():
            raise ValueError(f"{name} must be a non-empty text; got {text!r}")


def numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def binary(values: Any) -> bool:
    """Whether all values are powers of two with at least one from 1024 up."""
    v = np.unique(np.asarray(values, float))
    return bool(len(v) > 1 and v.min() >= 1 and v.max() >= 1024 and np.all(np.log2(v) % 1 == 0))


def tooltips(table: pd.DataFrame, titles: dict[str, str], columns: Sequence[str | None]) -> list[alt.Tooltip]:
    """What the pointer reads: axis titles as names, numbers in a readable format."""
    tips = []
    for column in dict.fromkeys(c for c in columns if c):
        title = titles.get(column) or column.replace("_", " ")
        if column in table and not numeric(table[column]):
            tips.append(alt.Tooltip(field=column, type="nominal", title=title))
            continue
        size = max(np.abs(span(table, column)), default=1.0)
        whole = column in table and pd.api.types.is_integer_dtype(table[column])
        style = (
            ",d" if whole and size < 1e7 else ".4~s" if size >= 1e6 else ",.4~g" if size >= 1e-3 else ".3~e"
        )
        tips.append(alt.Tooltip(field=column, type="quantitative", title=title, format=style))
    return tips


def log_ticks(low: float, high: float, most: int = 10) -> list[float]:
    """At most about ``most`` round numbers between two positive ones: powers of ten, with 2 and 5 where they fit."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    decades = max(np.log10(high / low), 1e-9)
    steps = (1, 2, 5) if 3 * decades <= most else (1, 3) if 2 * decades <= most else (1,)
    every = max(1, int(np.ceil(decades / most)))
    ticks = [float(f"{m}e{d}") for d in range(first, last + 1, every) for m in steps]
    return [t for t in ticks if low * 0.999 <= t <= high * 1.001]


def span(table: pd.DataFrame, *columns: str) -> np.ndarray:
    """All finite values of the columns that the table has (an empty array: none is known)."""
    known = [table[c].to_numpy(float) for c in columns if c in table]
    values = np.concatenate(known) if known else np.empty(0)
    return values[np.isfinite(values)]


def position(
    channel: type,
    column: str,
    title: str,
    values: np.ndarray,
    log: bool | int = False,
    domain: Any = None,
    steady: bool = False,
) -> Any:
    """A quantitative ``alt.X`` or ``alt.Y``; ``log`` is False, True or the base 2.

    ``domain`` cuts the axis there; ``steady`` keeps it at all ``values`` whatever a control filters out.
    Raises ValueError for a log axis with values that are not positive.
    """
    if log and len(values) and values.min() <= 0:
        raise ValueError(
            f"column {column!r} must be positive for a log axis; its smallest value is {values.min():g}"
        )
    limits = tuple(domain) if domain is not None else (values.min(), values.max()) if len(values) else None
    axis: dict[str, Any] = {"labelExpr": NUMBER}
    scale: dict[str, Any] = {"nice": domain is None and not log}
    if channel is alt.X:  # fewer labels on a phone
        axis["tickCount"] = alt.ExprRef(expr="ceil(width / 80)")
    if not log:  # said even with a domain, or a band's area would pull the axis to zero
        scale["zero"] = domain is None and channel is alt.Y
    if limits and (domain is not None or steady):
        low = min(0.0, limits[0]) if channel is alt.Y and not log and domain is None else limits[0]
        scale["domain"] = [float(f"{v:.6g}") for v in (low, limits[1])]
    if log:
        powers_of_two = (log == 2 and log is not True) or binary(values)
        scale |= {"type": "log", "base": 2 if powers_of_two else 10}
        if domain is None and channel is alt.Y:
            scale["padding"] = 6
        if limits and powers_of_two:
            powers = [2.0**k for k in range(int(np.ceil(np.log2(limits[0]))), int(np.log2(limits[1])) + 1)]
            axis["values"] = powers[:: max(1, len(powers) // 8)]
        elif limits:
            axis["values"] = log_ticks(*limits)
        if powers_of_two:
            axis["labelExpr"] = BINARY
    return channel(
        field=column, type="quantitative", title=title, scale=alt.Scale(**scale), axis=alt.Axis(**axis)
    )


def palette(names: Sequence[Any], ordered: bool = False) -> list[str]:
    """One colour a series: well apart, or from small to large when ``ordered``. ValueError beyond the palette."""
    colours = SIZES if ordered else SERIES
    if len(names) > len(colours):
        raise ValueError(f"a chart takes at most {len(colours)} series; got {len(names)}: split the chart")
    if not ordered:
        return list(colours[: len(names)])
    at = np.linspace(0, len(colours) - 1, len(names)) if len(names) > 1 else np.array([2.0])
    return [colours[round(k)] for k in at]


def legend(names: Sequence[Any], **style: Any) -> alt.Legend:
    """A legend in as many columns as the chart is wide; the page's script counts anew on a phone."""
    columns = int(WIDTH / (42 + 6.5 * max(len(str(n)) for n in names)))
    return alt.Legend(columns=max(1, min(len(names), columns)), **style)


def colour(
    table: pd.DataFrame, column: str | None, sort: Sequence[Any] | None, ordered: bool, **style: Any
) -> Any:
    """The colour of a series, in the order given or of appearance; the first colour where there is none."""
    if column is None:
        return alt.value(SERIES[0])
    names = order(table, column, sort)
    # small to large: a name keeps its colour where others of ``sort`` are absent
    wanted = [plain(v) for v in sort] if ordered and sort is not None and len(sort) <= len(SIZES) else names
    hues = dict(zip(wanted, palette(wanted, ordered), strict=True))
    scale = alt.Scale(domain=names, range=[hues[name] for name in names])
    return alt.Color(field=column, type="nominal", scale=scale, legend=legend(names, **style))


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


def upwards(table: pd.DataFrame, column: str, sort: Sequence[Any] | None) -> Sequence[Any]:
    """The rows of a grid from the top down: as ``sort`` says, else numbers grow upwards."""
    rows = order(table, column, sort)
    return rows[::-1] if sort is None and numeric(table[column]) else rows


def finish(chart: Any, title: str | None, description: str, slider: Slider | None = None) -> Any:
    """Title, description and control of a chart; the title ends with the control's value.

    ``usermeta`` keeps for the page, which shows that value beside the slider, the title without it and the
    values that a slider steps through.
    """
    head = textwrap.wrap(title, 76) if title else []
    if slider is None:
        return chart.properties(description=description, **({"title": head} if head else {}))
    text = alt.ExprRef(expr="[" + ", ".join([*map(json.dumps, head), slider.headline()]) + "]")
    meta = {"title": head, "values": {slider.name: list(slider.values)}}
    return chart.add_params(slider.param()).properties(
        description=description, title=alt.Title(text=text), usermeta=meta
    )


def category(
    channel: type, table: pd.DataFrame, column: str, title: str | None, sort: Sequence[Any] | None
) -> Any:
    """A discrete axis; lengths that are powers of two read 4K, 32K; names wider than their place are turned."""
    names = order(table, column, sort)
    expr = "datum.label"
    if numeric(table[column]):
        expr = BINARY if binary(names) else NUMBER
    axis: dict[str, Any] = {"labelExpr": expr, "labelLimit": 220, "labelOverlap": "parity"}
    wide = max(len(str(n)) for n in names) * 6.8 > WIDTH / len(names)
    if channel is alt.X and wide and not numeric(table[column]):
        axis |= {"labelAngle": -35, "labelOverlap": False}
    return channel(field=column, type="ordinal", title=title, sort=names, axis=alt.Axis(**axis))


def within(chart: Any, **domains: tuple[float, float] | None) -> Any:
    """Only the rows inside the domains of the named columns: marks at the edge stay whole, as clipping would not."""
    for column, domain in domains.items():
        if domain is not None:
            chart = chart.transform_filter(alt.FieldRangePredicate(field=column, range=list(domain)))
    return chart


def band(base: alt.Chart, columns: tuple[str, str] | None, cut: bool) -> list[alt.Chart]:
    """The area between two columns."""
    if columns is None:
        return []
    low, high = alt.Y(field=columns[0], type="quantitative"), alt.Y2(field=columns[1])
    return [base.mark_area(opacity=0.18, clip=cut).encode(y=low, y2=high)]


def rules(across: Rules, upright: Rules, above: bool = False) -> list[alt.Chart]:
    """Named rules at values of y (``across``) and of x (``upright``, named inside the chart or above it)."""
    layers: list[alt.Chart] = []
    right = "scale('x', datum.x) > 0.6 * width"  # names there stand on the left of their rule
    side, shift = alt.ExprRef(expr=f"{right} ? 'right' : 'left'"), alt.ExprRef(expr=f"{right} ? -5 : 5")
    for axis, channel, values in (("y", alt.Y, across), ("x", alt.X, upright)):
        for k, (value, name) in enumerate(values):
            place: dict[str, Any] = {axis: channel(field=axis, type="quantitative")}
            base = alt.Chart(pd.DataFrame([{axis: plain(value), "label": str(name)}])).encode(**place)
            if axis == "y":
                text = base.mark_text(align="right", dx=-2, dy=-7, fontSize=11).encode(x=alt.value("width"))
            else:  # one name below the other
                rise = -8 - 13 * k if above else 8 + 13 * k
                text = base.mark_text(align=side, dx=shift, dy=rise, fontSize=11).encode(y=alt.value(0))
            text = text.encode(text=alt.Text(field="label", type="nominal"))
            layers += [base.mark_rule(strokeDash=[4, 3], opacity=0.6), text]
    return layers
