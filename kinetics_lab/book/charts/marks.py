"""The figure kinds: lines, points with a fitted line, stacked bars, a comparison, a heat map, regions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from kinetics_lab.book.charts import parts
from kinetics_lab.book.charts.parts import Names, Range, Rules
from kinetics_lab.book.charts.style import BAR, DASHES, DOUBT, GROUND, HEIGHT, INK, SERIES, SHAPES
from kinetics_lab.book.charts.tables import Slider, begin, order, span
from kinetics_lab.errors import among, require


def lines(
    table: pd.DataFrame, x: str, y: str, series: str | None = None, *, x_title: str, y_title: str,
    description: str, title: str | None = None, log_x: bool | int = False, log_y: bool = False,
    x_domain: Range = None, y_domain: Range = None, dash: str | None = None, band: tuple[str, str] | None = None,
    points: bool = False, hollow: str | None = None, reference: Rules = (), reference_x: Rules = (),
    slider: Slider | None = None, sort: Names = None, ordered: bool = False, tooltip_columns: Sequence[str] | None = None,
    steps: bool = False,
) -> alt.LayerChart:  # fmt: skip
    """One line a series, named at its end or in a legend; a click on a name brings it out, the pointer reads the nearest point.

    ``series`` gives the colour (in the order ``sort``; ``ordered`` takes the small-to-large palette), ``dash`` the line style, ``band`` two
    columns shaded around the line, ``points`` marks on every row, hollow where the column ``hollow`` is true (extrapolated, say). ``steps`` holds a value up to the
    next row. ``reference`` draws named horizontal rules at values of y (a third value puts the name left), ``reference_x`` vertical ones. ``log_x`` may be 2. With a `Slider` that has an ``expr``, ``y`` is computed from the other columns and need not be in the
    table; give ``y_domain`` then, so that the axis stays put while the reader moves it.
    """
    known_y = [] if slider and slider.expr else [y]
    texts = {"x_title": x_title, "y_title": y_title, "description": description}
    data = begin(table, [x, *known_y, series, dash, hollow, *(band or ())], texts, slider, tooltip_columns)
    tips = parts.tooltips(data, {x: x_title, y: y_title}, tooltip_columns or [series, dash, x, y])
    xs, ys = span(data, x), span(data, *known_y, *(band or ()))
    ys = np.append(ys, [value for value, *_ in reference]) if len(ys) else ys
    steady = bool(slider and slider.column)
    place = {
        "x": parts.position(alt.X, x, x_title, xs, log_x, x_domain, steady),
        "y": parts.position(alt.Y, y, y_title, ys, log_y, y_domain, steady),
        "color": parts.colour(data, series, sort, ordered, symbolType="stroke", symbolSize=400),
    }
    plain, own = series is not None and dash is None, ordered or sort is not None
    room = parts.ends(data, (x, y, str(series)), (xs, ys), place, own, slider) if plain else 0.0
    base = alt.Chart(data).encode(**place)
    if dash is not None:
        base = base.encode(detail=alt.Detail(field=dash, type="nominal"))
    base = slider.transform(base, y) if slider else base
    look: Any = {"clip": bool(x_domain or y_domain), "interpolate": "step-after" if steps else "linear"}
    line = base.mark_line(strokeWidth=2.5, **look)
    if series is not None:
        where: Any = {"on": "@ends_marks:click", "toggle": "true"} if room else {"bind": "legend"}
        pick = alt.selection_point(name="pick", fields=[series], **where)
        line = line.encode(opacity=alt.condition(pick, alt.value(1), alt.value(0.15))).add_params(pick)
    if dash is not None:
        dashes, stroke = order(data, dash, None), {"symbolType": "stroke", "symbolStrokeColor": INK}
        key = parts.legend(dashes, **stroke, symbolSize=400, orient="bottom", offset=4)
        line = line.encode(strokeDash=parts.named(alt.StrokeDash, dash, dashes, DASHES, key))
    near = alt.selection_point(name="near", on="pointerover", nearest=True, empty=False, clear="pointerout")
    seen = alt.condition(near, alt.value(1), alt.value(0.9 if points else 0))
    inside = parts.within(base, **{x: x_domain, y: y_domain})
    marks = inside.mark_point(filled=True, size=70).encode(opacity=seen, tooltip=tips).add_params(near)
    if hollow is not None:
        outside = alt.datum[hollow] == "True"  # as tables write flags
        rings = inside.mark_point(filled=False, size=60, strokeWidth=2, opacity=1).encode(tooltip=tips)
        marks = alt.layer(marks.transform_filter(~outside), rings.transform_filter(outside))
    layers = [*parts.band(base, band, **look), line, marks]
    layers += [*parts.end_names(base, str(series), room), *parts.rules(reference, reference_x, room=room)]
    chart = alt.layer(*layers, padding={"top": 28 if room else 4, "bottom": 4, "left": 4, "right": 4})
    return parts.finish(chart, title, description, slider)


def fit(
    points: pd.DataFrame, line: pd.DataFrame, x: str, y: str, series: str | None = None, *, x_title: str,
    y_title: str, description: str, title: str | None = None, log_x: bool | int = True, log_y: bool = True,
    x_domain: Range = None, y_domain: Range = None, band: tuple[str, str] | None = None, reference: Rules = (),
    sort: Names = None, ordered: bool = False, tooltip_columns: Sequence[str] | None = None,
) -> alt.LayerChart:  # fmt: skip
    """Measured ``points`` and the fitted ``line`` (both with columns x, y, series), log-log unless told.

    ``band`` names two columns of ``line``; ``tooltip_columns`` the columns of ``points`` shown under the pointer.
    """
    texts = {"x_title": x_title, "y_title": y_title, "description": description}
    dots = begin(points, [x, y, series], texts, None, tooltip_columns)
    curve = begin(line, [x, y, series, *(band or ())], texts)
    both = pd.concat([dots, curve], ignore_index=True)
    place: dict[str, Any] = {
        "x": parts.position(alt.X, x, x_title, span(both, x), log_x, x_domain),
        "y": parts.position(alt.Y, y, y_title, span(both, y, *(band or ())), log_y, y_domain),
        "color": parts.colour(both, series, sort, ordered),
    }
    drawn = alt.Chart(curve).encode(**place)
    if series is not None:
        names, dotted = order(both, series, sort), set(order(dots, series, sort))
        signs = [shape if name in dotted else BAR for name, shape in zip(names, SHAPES, strict=False)]
        place["shape"] = parts.named(alt.Shape, series, names, signs, parts.legend(names))
    tips = parts.tooltips(dots, {x: x_title, y: y_title}, tooltip_columns or [series, x, y])
    marks = parts.within(alt.Chart(dots), **{x: x_domain, y: y_domain})
    marks = marks.mark_point(filled=True, size=60, opacity=0.9).encode(**place, tooltip=tips)
    below = [*parts.band(drawn, band, clip=True), drawn.mark_line(strokeWidth=2, clip=True)]
    chart = alt.layer(*below, marks, *parts.rules(reference, ()))
    return parts.finish(chart, title, description)


def stacked_bars(
    table: pd.DataFrame, x: str, y: str, part: str, *, x_title: str, y_title: str, description: str,
    title: str | None = None, normalize: bool = False, horizontal: bool = False, slider: Slider | None = None,
    y_domain: Range = None, sort: Names = None, sort_x: Names = None, ordered: bool = False,
) -> alt.Chart:  # fmt: skip
    """Bars from zero, split by ``part``: what makes up a time or a cost.

    ``normalize`` shows shares, ``horizontal`` puts the groups of ``x`` on rows (good for names). ``sort``
    orders the parts (``ordered`` as in `lines`), ``sort_x`` the groups. A `Slider` works as in `lines`.
    """
    known_y = [] if slider and slider.expr else [y]
    texts = {"x_title": x_title, "y_title": y_title, "description": description}
    data = begin(table, [x, *known_y, part], texts, slider)
    values = span(data, *known_y)
    require(values >= 0, f"column {y!r} must not be negative in stacked bars", values)
    totals, steady = np.empty(0), bool(slider and slider.column and not normalize)
    if steady and slider:  # room for the tallest bar of every choice
        totals = np.append(data.groupby([x, slider.column], observed=True)[y].sum().to_numpy(float), 0)
    length = parts.position(alt.X if horizontal else alt.Y, y, y_title, totals, False, y_domain, steady)
    length["stack"] = "normalize" if normalize else "zero"
    if normalize:
        length["axis"] = alt.Axis(format="%")
    groups = parts.category(alt.Y if horizontal else alt.X, data, x, x_title, sort_x)
    place = {"x": length, "y": groups} if horizontal else {"x": groups, "y": length}
    hue = parts.colour(data, part, sort, ordered, symbolType="square")
    tips = parts.tooltips(data, {x: x_title, y: y_title}, [x, part, y])
    rank = json.dumps(order(data, part, sort))  # the stack follows the order of the legend
    bars = alt.Chart(data).mark_bar().transform_calculate(_rank=f"indexof({rank}, datum[{json.dumps(part)}])")
    bars = bars.encode(**place, color=hue, order=alt.Order(field="_rank", type="quantitative"), tooltip=tips)
    bars = slider.transform(bars, y) if slider else bars
    height = {"height": alt.Step(34)} if horizontal else {}
    return parts.finish(bars.properties(**height), title, description, slider)


def compare(
    table: pd.DataFrame, label: str, value: str, source: str, *, x_title: str, description: str,
    title: str | None = None, lo: str | None = None, hi: str | None = None, log_x: bool | int = False,
    x_domain: Range = None, reference_x: Rules = (), sort: Names = None, sort_label: Names = None,
    hollow: str | None = None,
) -> alt.LayerChart:  # fmt: skip
    """Published beside ours: a row for each ``label``, a mark for each ``source``, an interval ``lo`` to ``hi``.

    ``sort`` orders the sources, ``sort_label`` the rows. Hollow are the first source, or the marks whose column ``hollow`` is true.
    Where a row has several intervals, they stand one below the other.
    """
    require((lo is None) == (hi is None), "lo and hi must be given together", [lo, hi])
    texts = {"x_title": x_title, "description": description}
    data = begin(table, [label, value, source, lo, hi, hollow], texts)
    names = order(data, source, sort)
    key = parts.legend(names, offset=8 + 16 * len(reference_x))
    hue = parts.colour(data, source, names, False, offset=key["offset"])
    base = alt.Chart(data).encode(y=parts.category(alt.Y, data, label, None, sort_label))
    low = alt.X(field=value, type="quantitative", aggregate="min", title=x_title)
    gap = base.mark_rule(opacity=0.25, strokeWidth=1.5).encode(x=low, x2=alt.X2(field=value, aggregate="max"))
    layers, shown, step = [gap], [label, source, value], 30
    if lo is not None and hi is not None:
        ends = zip(data[lo], data[hi], strict=True)
        data["interval"] = [f"{a:.4g} to {b:.4g}" if a <= b else "none" for a, b in ends]
        shown.append("interval")
        if (data[lo] < data[hi]).groupby(data[label]).sum().max() > 1:
            base = base.encode(yOffset=alt.YOffset(field=source, type="nominal", sort=names))
            layers, step = [], max(30, 11 * len(names) + 8)
        reach = base.mark_rule(strokeWidth=2.5)
        layers.append(reach.encode(x=alt.X(field=lo, type="quantitative"), x2=alt.X2(field=hi), color=hue))
    xs = np.append(span(data, *[c for c in (value, lo, hi) if c]), [v for v, _ in reference_x])
    at_x = parts.position(alt.X, value, x_title, xs, log_x, x_domain)
    at_x["axis"]["grid"] = True
    if x_domain is None:  # whole marks and intervals
        at_x["scale"]["padding"] = 8
    dots = base.mark_point(size=95 if step == 30 else 60, strokeWidth=2, opacity=1).encode(
        x=at_x,
        color=hue,
        shape=parts.named(alt.Shape, source, names, ["diamond", *SHAPES], key),
        fill=parts.named(alt.Fill, source, names, [SERIES[0] if hollow else "transparent", *SERIES[1:]], key),
        tooltip=parts.tooltips(data, {value: x_title}, [*shown, *([hollow] if hollow else [])]),
    )
    if hollow is not None:
        dots = dots.encode(fillOpacity=alt.condition(alt.datum[hollow] == "True", alt.value(0), alt.value(1)))
    chart = alt.layer(*layers, dots, *parts.rules((), reference_x, above=True))
    return parts.finish(chart.properties(height=alt.Step(step, **{"for": "position"})), title, description)


def heatmap(
    table: pd.DataFrame, x: str, y: str, value: str, *, x_title: str, y_title: str, value_title: str,
    description: str, title: str | None = None, log: bool = False, midpoint: float | None = None,
    cell_format: str | None = None, sort_x: Names = None, sort_y: Names = None, slider: Slider | None = None,
) -> alt.LayerChart:  # fmt: skip
    """A cell for each (x, y), coloured by ``value``; the numbers stand in the cells when there are few.

    ``log`` colours by orders of magnitude; ``midpoint`` takes two hues around that value (1 for ratios).
    ``cell_format`` is the d3 format of the numbers; numeric rows grow upwards. The slider must be a filter.
    """
    texts = {"x_title": x_title, "y_title": y_title, "value_title": value_title, "description": description}
    data = begin(table, [x, y, value], texts, slider)
    hue, pale = _shades(data, value, value_title, log, midpoint)
    base = alt.Chart(data).encode(**parts.grid(data, x, y, x_title, y_title, sort_x, sort_y))
    base = slider.transform(base, value) if slider else base
    tips = parts.tooltips(data, {x: x_title, y: y_title, value: value_title}, [x, y, value])
    layers = [base.mark_rect().encode(color=hue, tooltip=tips)]
    across, down = data[x].nunique(), data[y].nunique()
    if across <= 12 and across * down <= 120:
        cell = f"datum[{json.dumps(value)}]"
        style = json.dumps(cell_format) if cell_format else f"abs({cell}) < 1000 ? '.3~r' : '.3~s'"
        room = f"width / {across} / 3"  # for five characters; smaller ones on a phone, or none
        size = alt.ExprRef(expr=f"{room} < 7 ? 0 : min(11, {room})")
        text = base.transform_calculate(_text=f"format({cell}, {style})").mark_text(fontSize=size)
        ink = alt.condition(pale, alt.value("#111111"), alt.value("#ffffff"))
        layers.append(text.encode(text=alt.Text(field="_text", type="nominal"), color=ink, tooltip=tips))
    return parts.finish(alt.layer(*layers), title, description, slider)


def _shades(
    data: pd.DataFrame, value: str, title: str, log: bool, midpoint: float | None
) -> tuple[alt.Color, str]:
    """The colour of a heat map's cells, and the Vega expression that tells which cells are pale."""
    values = span(data, value)
    require((values > 0) | (not log), f"column {value!r} must be positive for log colours", values)
    warp, back = (np.log, np.exp) if log else (float, float)
    low, high = float(warp(values.min())), float(warp(values.max()))
    cell = f"datum[{json.dumps(value)}]"
    seen = f"log({cell})" if log else cell
    pale = f"{seen} > {(low + high) / 2:.6g}"
    if midpoint is not None:  # dark at both ends, pale in the middle
        centre = float(warp(midpoint))
        reach = max(high - centre, centre - low) or 1.0
        low, high = centre - reach, centre + reach
        pale = f"abs({seen} - {centre:.6g}) < {0.6 * reach:.6g}"
    ends = [float(f"{back(v):.6g}") for v in (low, high)]
    scheme: Any = "viridis" if midpoint is None else "blueorange"
    scale = alt.Scale(type="log" if log else "linear", domain=ends, nice=False, scheme=scheme)
    key = alt.Legend(
        title=title, titleLimit=0, titleFontWeight="normal", gradientLength=220, tickCount=5,
        labelExpr=parts.NUMBER, values=parts.log_ticks(ends[0], ends[1], 5) if log else alt.Undefined,
    )  # fmt: skip
    return alt.Color(field=value, type="quantitative", scale=scale, legend=key), pale


def regions(
    table: pd.DataFrame, x: str, y: str, name: str, *, x_title: str, y_title: str, description: str,
    title: str | None = None, sure: str | None = None, sort: Names = None, ordered: bool = False,
    sort_x: Names = None, sort_y: Names = None, slider: Slider | None = None, rest: str | None = None,
    hollow: str | None = None,
) -> alt.Chart | alt.LayerChart:  # fmt: skip
    """Who wins where: a cell for each (x, y) in the colour of ``name``; where names are ``ordered``, they stand in the map.

    A stroke stands in cells that are less than 80% ``sure`` (0 to 1), a cross in those less than half sure, a ring in those
    whose column ``hollow`` is true (extrapolated, say). A cell may be missing: nobody wins there. Cells named ``rest`` are
    grey. Numeric rows grow upwards; the slider must be a filter.
    """
    texts = {"x_title": x_title, "y_title": y_title, "description": description}
    data = begin(table, [x, y, name, sure, hollow], texts, slider)
    hue = parts.colour(data, name, sort, ordered, symbolType="square", symbolStrokeWidth=0)
    if ordered:
        choices = data.groupby(slider.column, sort=False) if slider else [("", data)]
        data = pd.concat([parts.inscribed(one, x, y, name, sort_x, sort_y) for _, one in choices])
    if rest is not None:
        among(names := order(data, name, sort), rest, f"{name}, rest:")
        hue["scale"]["range"][names.index(rest)] = GROUND
    cells = alt.Chart(data).encode(
        **parts.grid(data, x, y, x_title, y_title, sort_x, sort_y),
        color=hue,
        tooltip=parts.tooltips(data, {x: x_title, y: y_title}, [name, sure, x, y, hollow]),
    )
    above = HEIGHT / data[y].nunique() / 3  # where a name stands over a sign; signs make way in low rows
    signs, sign = list[Any](), dict[str, Any](strokeWidth=1.5, yOffset=max(12 - above, 0) if ordered else 0)
    if sure is not None:
        shares = span(data, sure)
        require((shares >= 0) & (shares <= 1), f"column {sure!r} must lie between 0 and 1", shares)
        known = ((one, place) for one, (*place, _, _) in DOUBT.items())
        doubts = {one: (a, b) for one, (a, b) in known if ((shares >= a) & (shares < b)).any()}
        description += "".join(f" {DOUBT[one][2]} marks cells that are {one}." for one in doubts)
        key = parts.legend([*doubts, ""], symbolStrokeColor=INK, orient="bottom", offset=4)
        shape = parts.named(alt.Shape, "_doubt", [*doubts], [DOUBT[one][3] for one in doubts], key)
        for one, (least, below) in doubts.items():
            unsure = cells.transform_filter((alt.datum[sure] >= least) & (alt.datum[sure] < below))
            unsure = unsure.transform_calculate(_doubt=f"'{one}'")
            signs.append(unsure.mark_point(size=60, **sign).encode(shape=shape))
    if hollow is not None:
        signs.append(cells.transform_filter(alt.datum[hollow] == "True").mark_point(size=40, **sign))
    if ordered:
        room = f"width / {data[x].nunique()} * datum._run > 8 * length(datum._label)"  # on a phone some names have none
        size = alt.ExprRef(expr=f"{room} ? 12 : 0")
        text = cells.transform_filter("datum._label").mark_text(fontSize=size, fontWeight="bold", dy=-above)
        signs.append(text.encode(text=alt.Text(field="_label", type="nominal")))
    marks = [one.encode(color=alt.value(INK)) for one in signs]
    rects = cells.mark_rect(stroke=INK, strokeOpacity=0.2, strokeWidth=0.5)
    layers = [slider.transform(one, name) if slider else one for one in (rects, *marks)]
    return parts.finish(alt.layer(*layers) if marks else layers[0], title, description, slider)
