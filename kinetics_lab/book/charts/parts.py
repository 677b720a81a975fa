"""What all charts share: checked input, axes, tooltips, legends, rules, and how a chart is finished."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt
from scipy.optimize import isotonic_regression

from kinetics_lab.book.charts.style import BESIDE, HEIGHT, INK, MODELS, SERIES, SIZES, WIDTH, palette
from kinetics_lab.book.charts.tables import Slider, binary, numeric, order, plain, span
from kinetics_lab.errors import require

Names = Sequence[Any] | None
Range = tuple[float, float] | None
Rules = Sequence[tuple[Any, ...]]
# 1.5k, 2M, 0.05, 1e-6; lengths that are powers of two read 4K, 32K, 1M (K = 1024), as models' contexts do.
NUMBER = (
    "datum.value != 0 && abs(datum.value) < 1e-3 ? format(datum.value, '~e') : "
    "format(datum.value, abs(datum.value) >= 1e4 ? '~s' : '~r')"
)
BINARY = (
    "datum.value >= 1048576 ? datum.value / 1048576 + 'M' : "
    "datum.value >= 1024 ? datum.value / 1024 + 'K' : '' + datum.value"
)


def tooltips(table: pd.DataFrame, titles: dict[str, str], columns: Sequence[str | None]) -> list[alt.Tooltip]:
    """What the pointer reads: axis titles as names, numbers in a readable format."""
    tips = []
    for column in dict.fromkeys(c for c in columns if c):
        title = titles.get(column) or column.replace("_", " ")
        if column in table and not numeric(table[column]):
            # without a format, Vega-Lite looks for a name on the nearest mark, and not in the mark's row
            text = {"format": "", "formatType": "toString"}
            tips.append(alt.Tooltip.from_dict({"field": column, "type": "nominal", "title": title, **text}))
            continue
        size = max(np.abs(span(table, column)), default=1.0)
        whole = column in table and pd.api.types.is_integer_dtype(table[column])
        short = ".4~s" if size >= 1e6 else ",.4~g" if size >= 1e-3 else ".3~e"
        style = ",d" if whole and size < 1e7 else short
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


def position(
    channel: type, column: str, title: str, values: np.ndarray, log: bool | int = False,
    domain: Range = None, steady: bool = False,
) -> Any:  # fmt: skip
    """A quantitative ``alt.X`` or ``alt.Y``; ``log`` is False, True or the base 2.

    ``domain`` cuts the axis there; ``steady`` keeps it at all ``values`` whatever a control filters out.
    Raises ValueError for a log axis with values that are not positive.
    """
    require((values > 0) | (not log), f"column {column!r} must be positive for a log axis", values)
    limits = tuple(domain) if domain is not None else (values.min(), values.max()) if len(values) else None
    axis: dict[str, Any] = {"labelExpr": NUMBER}
    scale: dict[str, Any] = {"nice": domain is None and not log}
    if channel is alt.X and not log:  # fewer labels on a phone; a log axis would hide round numbers
        axis["tickCount"] = alt.ExprRef(expr="ceil(width / 80)")
        axis |= {"tickMinStep": 1} if np.all(values % 1 == 0) else {}
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
        axis |= {"labelExpr": BINARY} if powers_of_two else {}
        if limits and powers_of_two:
            powers = [2.0**k for k in range(int(np.ceil(np.log2(limits[0]))), int(np.log2(limits[1])) + 1)]
            axis["values"] = powers[:: max(1, len(powers) // 8)]
        elif limits:
            axis["values"] = log_ticks(*limits)
    looks = {"scale": alt.Scale(**scale), "axis": alt.Axis(**axis)}
    return channel(field=column, type="quantitative", title=plain(title), **looks)


def legend(names: Sequence[Any], **style: Any) -> alt.Legend:
    """A legend in as many columns as the chart is wide; the page's script counts anew on a phone."""
    room = max(1, int(WIDTH / (42 + 6.5 * max(len(str(n)) for n in names))))
    return alt.Legend(columns=-(-len(names) // -(-len(names) // room)), **style)  # in rows of equal length


def named(channel: type, column: str, names: Sequence[Any], signs: Sequence[Any], key: alt.Legend) -> Any:
    """A channel (colour, shape, dash) that gives each name its sign; there may be more signs than names."""
    scale = alt.Scale(domain=list(names), range=list(signs[: len(names)]))
    return channel(field=column, type="nominal", scale=scale, legend=key)


def colour(table: pd.DataFrame, column: str | None, sort: Names, ordered: bool, **style: Any) -> Any:
    """The colour of a series, in the order given or of appearance; the first colour where there is none."""
    if column is None:
        return alt.value(SERIES[0])
    names = order(table, column, sort)
    # small to large: a name keeps its colour where others of ``sort`` are absent
    wanted = [plain(v) for v in sort] if ordered and sort is not None and len(sort) <= len(SIZES) else names
    hues = dict(zip(wanted, palette(wanted, ordered), strict=True))
    if MODELS.keys() & set(names):
        hues = dict(zip([name for name in names if name not in MODELS], BESIDE, strict=False)) | MODELS
    return named(alt.Color, column, names, [hues[name] for name in names], legend(names, **style))


def finish(chart: Any, title: str | None, description: str, slider: Slider | None = None) -> Any:
    """Title, description and control of a chart; the title ends with the control's value.

    ``usermeta`` keeps for the page, which shows that value beside the slider, the title without it, what tells it in
    a picture, and the values that a slider steps through.
    """
    head = [plain(line) for line in textwrap.wrap(title, 76)] if title else []
    if slider is None:
        return chart.properties(description=description, **({"title": head} if head else {}))
    text = alt.ExprRef(expr=f"[{', '.join([*map(json.dumps, head), slider.headline()])}]")
    meta = {"title": head, "start": slider.headline(), "values": {slider.name: list(slider.values)}}
    told = {"description": description, "title": alt.Title(text=text), "usermeta": meta}
    return chart.add_params(slider.param()).properties(**told)


def category(channel: type, table: pd.DataFrame, column: str, title: str | None, sort: Names) -> Any:
    """A discrete axis; lengths that are powers of two read 4K, 32K; names wider than their place are turned."""
    names = order(table, column, sort)
    numbers = numeric(table[column])
    expr = (BINARY if binary(names) else NUMBER) if numbers else "datum.label"
    axis: dict[str, Any] = {"labelExpr": expr, "labelLimit": 260, "labelOverlap": "parity"}
    wide = max(len(str(n)) for n in names) * 6.8 > WIDTH / len(names)
    if channel is alt.X and wide and not numbers:
        axis |= {"labelAngle": -35, "labelOverlap": False}
    return channel(field=column, type="ordinal", title=plain(title), sort=names, axis=alt.Axis(**axis))


def grid(
    table: pd.DataFrame, x: str, y: str, x_title: str, y_title: str, sort_x: Names, sort_y: Names
) -> dict[str, Any]:
    """The axes of a map of cells; rows that are numbers grow upwards unless ``sort_y`` orders them."""
    rows = order(table, y, sort_y)
    if sort_y is None and numeric(table[y]):
        rows = rows[::-1]
    return {"x": category(alt.X, table, x, x_title, sort_x), "y": category(alt.Y, table, y, y_title, rows)}


def inscribed(data: pd.DataFrame, x: str, y: str, name: str, sort_x: Names, sort_y: Names) -> pd.DataFrame:
    """A map's cells with ``_label``, the short form of a name where its region has most room, and ``_run``, that many cells."""
    cells = data.drop_duplicates([x, y]).pivot(index=y, columns=x, values=name)
    cells = cells.reindex(index=order(data, y, sort_y), columns=order(data, x, sort_x))
    names, found, wide = order(data, name, None), {}, WIDTH / cells.shape[1]
    family = str(names[0]).partition("-")[0] + "-"
    family = family if all(str(one).startswith(family) for one in names) else "none"
    for one in names:
        inside, size = np.pad(cells.eq(one), 1), (3 * HEIGHT / cells.shape[0], wide)  # names are wide
        room = distance_transform_edt(inside, sampling=size)[1:-1, 1:-1]
        i, j = np.unravel_index(room.argmax(), room.shape)
        if room[i, j] > 33:
            text = str(one).removeprefix(family)
            text = text if text == one else text.upper()
            found[cells.index[i], cells.columns[j]] = text, 2 * room[i, j] / wide - 1
    told = [found.get(cell, ("", 0.0)) for cell in zip(data[y], data[x], strict=True)]
    _label, _run = zip(*told, strict=True)
    return data.assign(_label=_label, _run=_run)


def within(chart: Any, **domains: Range) -> Any:
    """Only the rows inside the domains of the named columns: marks at the edge stay whole, as clipping would not."""
    for column, domain in domains.items():
        if domain is not None:
            chart = chart.transform_filter(alt.FieldRangePredicate(field=column, range=list(domain)))
    return chart


def band(base: alt.Chart, columns: tuple[str, str] | None, **look: Any) -> list[alt.Chart]:
    """The area between two columns."""
    if columns is None:
        return []
    low, high = alt.Y(field=columns[0], type="quantitative"), alt.Y2(field=columns[1])
    return [base.mark_area(opacity=0.18, **look).encode(y=low, y2=high)]


def ends(
    data: pd.DataFrame, fields: tuple[str, str, str], known: Sequence[np.ndarray], place: dict[str, Any], ranked: bool, slider: Slider | None = None
) -> float:  # fmt: skip
    """Pixels right of lines for their names, which replace the legend: ``_rise`` in the table keeps them apart, wherever the ``slider`` stands.

    0 where a line ends earlier, names are long, many lines end together or pass each other; the legend then follows the lines unless ``ranked``.
    """
    x, y, series = fields
    drawn = (slider.drawn(data, y) if slider else data.assign(_at=0)).reset_index(names="_row")
    last = drawn.dropna(subset=[y, series]).sort_values(x).groupby([series, "_at"]).tail(1)
    last, at = last.sort_values(y, ascending=False), []  # where they end, 0 to 1 along each axis
    if last[series].nunique() < 2:
        return 0.0
    for column, scale, values in zip(fields, (place["x"]["scale"], place["y"]["scale"]), known, strict=False):
        low, high = (values.min(), values.max()) if scale["domain"] is alt.Undefined else scale["domain"]
        warp = np.log if scale["type"] == "log" else np.asarray
        low = warp(min(low, 0) if scale["zero"] is True else low)
        at.append(np.asarray((warp(last[column]) - low) / (warp(high) - low or 1)))
    last = last.assign(_end=last[series].astype(str).map(_folded), level=-HEIGHT * at[1], _rise=0.0)
    for _, here in last.groupby("_at"):
        tall = 13.0 * (1 + here["_end"].str.count("\n"))
        apart = tall.cumsum() - tall - here["level"]  # the dash stands beside the first line
        last.loc[here.index, "_rise"] = isotonic_regression(-apart).x + apart
    room = 26 + 6.8 * max(len(line) for name in last["_end"] for line in name.split("\n"))
    seen = (abs(at[1] - 0.5) < 0.51) & (abs(at[0] - 0.98) < 0.021)
    rows, rise = last.groupby("_row")[["_end", "_rise"]].first(), last.groupby("_row")["_rise"]
    if (
        seen.all()
        and room < WIDTH / 5
        and abs(last["_rise"]).max() < 20
        and (rise.max() - rise.min()).max() < 2
    ):
        data[["_end", "_rise"]] = rows
        place["color"]["legend"] = None
        place["x"]["scale"]["range"] = [0, {"expr": f"width - {room:.0f}"}]
        return room
    if not (ranked or slider):
        place["color"]["legend"]["values"] = last[series].to_list()
    return 0.0


def _folded(name: str) -> str:
    """A name on as few lines as have room beside a chart, cut between words, but not at an equals sign."""
    whole = name.replace(" = ", "\xa0=\xa0")
    return "\n".join(textwrap.wrap(whole, 14, break_long_words=False, break_on_hyphens=False))


def end_names(base: alt.Chart, series: str, room: float) -> list[alt.Chart]:
    """A dash in the colour of each line and its name, right of its end (see `ends`), where there is ``room``."""
    drawn, rise = base.transform_filter("isValid(datum._rise)"), alt.ExprRef(expr="datum._rise")
    drawn = drawn.encode(x=alt.value(alt.ExprRef(expr=f"width - {room:.0f}")))
    dash = drawn.mark_point(shape="stroke", size=100, strokeWidth=2.5, opacity=1, xOffset=13, yOffset=rise)
    name = {"text": alt.Text(field="_end", type="nominal"), "color": alt.value(INK)}
    text = drawn.mark_text(align="left", dx=22, dy=rise, fontSize=11, cursor="pointer", lineBreak="\n")
    return [dash, text.encode(**name).properties(name="ends")] if room else []


def rules(across: Rules, upright: Rules, above: bool = False, room: float = 0) -> list[alt.Chart]:
    """Named rules at values of y (``across``; a third value puts the name left) and of x (``upright``; named inside or above).

    ``room``: pixels on the right that are left free.
    """
    layers: list[alt.Chart] = []
    right = "scale('x', datum.x) > 0.6 * width"  # names there stand on the left of their rule
    edge: Any = alt.value(alt.ExprRef(expr=f"width - {room:.0f}") if room else "width")
    side, shift = alt.ExprRef(expr=f"{right} ? 'right' : 'left'"), alt.ExprRef(expr=f"{right} ? -5 : 5")
    places: list[Any] = [("y", alt.Y, k, *rule) for k, rule in enumerate(across)]
    places += [("x", alt.X, k, *rule) for k, rule in enumerate(upright)]
    for axis, channel, k, value, name, *left in places:
        base = alt.Chart(pd.DataFrame([{axis: plain(value), "label": str(name)}]))
        base = base.encode(**{axis: channel(field=axis, type="quantitative")})
        if axis == "y":
            text = base.mark_text(align="left" if left else "right", dx=2 if left else -2, dy=-7, fontSize=11)
            text = text.encode(x=alt.value(0) if left else edge)
            base = base.encode(x=alt.value(0), x2=edge)
        else:  # one name below the other
            rise = -8 - 13 * k if above else 8 + 13 * k
            text = base.mark_text(align=side, dx=shift, dy=rise, fontSize=11).encode(y=alt.value(0))
        layers += [base.mark_rule(strokeDash=[4, 3], opacity=0.6), text.encode(text="label:N")]
    return layers
