"""The charts: valid specs, required text, legible palettes, small offline output."""

from __future__ import annotations

import base64
import copy
import json
import re
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pandas as pd
import pytest

from kinetics_lab.book import charts
from kinetics_lab.book.charts import html as chart_html
from kinetics_lab.book.charts import parts as chart_parts
from kinetics_lab.book.charts import style
from kinetics_lab.book.charts.drawing import Drawing

ROOT = Path(__file__).parent.parent
WHITE, DARK = "#ffffff", "#121212"  # page colours of the book's theme
ABOUT = "Cost against length for two models; both bend upwards."

TABLE = pd.DataFrame(
    [
        {
            "model": m,
            "tokens": t,
            "flops": a * t,
            "bytes": b * t**2,
            "cost": a * t + b * t**2 + 1 / 3,
            "spare": t,
        }
        for m, a, b in [("small", 1.0, 0.01), ("large", 8.0, 0.02)]
        for t in [1024, 4096, 16384]
    ]
).assign(lo=lambda d: d.cost * 0.9, hi=lambda d: d.cost * 1.1)
CLAIMS = pd.DataFrame(
    {
        "family": ["Qwen3", "Qwen3", "OPT", "OPT"],
        "source": ["published", "ours"] * 2,
        "factor": [1.18, 1.15, 1.55, 1.56],
        "lo": [np.nan, 1.1, np.nan, 1.5],
        "hi": [np.nan, 1.2, np.nan, 1.6],
    }
)
TEXT = {"x_title": "length (tokens)", "y_title": "cost (FLOP)", "description": ABOUT}
MOVING = charts.Slider(
    "intensity", "intensity (FLOP/byte)", 500, 0, 1000, 10, "datum.flops + intensity * datum.bytes"
)
CHOOSING = charts.Slider.filter("tokens", "length (tokens)", [1024, 4096, 16384], 4096)
MENU = charts.Slider.filter("model", "model", ["small", "large"])


def make(kind: str) -> Any:
    """One chart of each kind and of each control."""
    curves = (TABLE, "tokens", "cost", "model")
    made = {
        "lines": lambda: charts.lines(
            *curves, **TEXT, title="Cost grows", log_x=True, log_y=True, dash="model", band=("lo", "hi"),
            points=True, reference=[(1e6, "a budget")], reference_x=[(4096, "4K")], sort=["small", "large"], ordered=True,
        ),
        "one line": lambda: charts.lines(TABLE[TABLE.model == "small"], "tokens", "cost", **TEXT),
        "moving": lambda: charts.lines(
            TABLE.drop(columns="cost"), *curves[1:], **TEXT, title="Cost", slider=MOVING, y_domain=(0, 1e9)
        ),
        "menu": lambda: charts.lines(TABLE, "tokens", "cost", **TEXT, slider=MENU),
        "bars": lambda: charts.stacked_bars(TABLE, "tokens", "cost", "model", **TEXT),
        "shares": lambda: charts.stacked_bars(TABLE, "tokens", "cost", "model", **TEXT, normalize=True),
        "rows": lambda: charts.stacked_bars(
            TABLE, "model", "cost", "model", **TEXT, horizontal=True, slider=CHOOSING, sort=["large", "small"]
        ),
        "compare": lambda: charts.compare(
            CLAIMS, "family", "factor", "source", x_title="growth (factor)", description=ABOUT, lo="lo", hi="hi",
            reference_x=[(1, "none")],
        ),
        "fit": lambda: charts.fit(TABLE, TABLE, "tokens", "cost", "model", **TEXT, band=("lo", "hi")),
        "heatmap": lambda: charts.heatmap(TABLE, "tokens", "model", "cost", **TEXT, value_title="cost (FLOP)", log=True),
        "ratios": lambda: charts.heatmap(
            TABLE, "tokens", "model", "cost", **TEXT, value_title="ratio", log=True, midpoint=1e5, cell_format=".2e"
        ),
        "regions": lambda: charts.regions(
            TABLE.assign(share=0.8), "tokens", "model", "model", **TEXT, sure="share", sort=["small", "large"]
        ),
    }  # fmt: skip
    return made[kind]()


KINDS = "lines", "one line", "moving", "menu", "bars", "shares", "rows", "compare", "fit", "heatmap", "ratios", "regions"  # fmt: skip


@pytest.fixture(autouse=True)
def _theme() -> None:
    charts.enable()


@cache
def figure(kind: str) -> str:
    """The HTML of a kind, drawn once for all tests."""
    return chart_html.figure_html(make(kind).to_dict())


def test_the_name_of_a_rule_stands_right_or_left() -> None:
    rules = [(1e6, "a budget"), (2e6, "a limit", "left")]
    spec = charts.lines(TABLE, "tokens", "cost", **TEXT, reference=rules).to_dict(validate=True)
    names = [layer for layer in spec["layer"] if layer["mark"].get("type") == "text"]
    assert [(n["mark"]["align"], n["encoding"]["x"]["value"]) for n in names] == [
        ("right", "width"),
        ("left", 0),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_valid_described_small_figure(kind: str) -> None:
    spec = make(kind).to_dict(validate=True)
    assert spec["description"] == ABOUT
    html = figure(kind)
    assert f'role="img" aria-label="{ABOUT}"' in html
    assert 'viewBox="0 0 ' in html
    assert len(html) < 30_000
    assert "http" not in html.replace("http://www.w3.org/", "")
    assert "unused_column" not in html  # a column nobody draws


@pytest.mark.parametrize("kind", ["lines", "fit", "heatmap"])
def test_equal_input_gives_equal_output(kind: str) -> None:
    assert chart_html.figure_html(make(kind).to_dict()) == figure(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_live_charts_draw_what_the_pictures_show(kind: str) -> None:
    """The page's spec (tables as rows, width of the page) draws the same marks as the notebook's."""
    import vl_convert

    spec = make(kind).to_dict()
    live = chart_html.live_spec(copy.deepcopy(spec))
    assert live["width"] == "container"
    named = {
        key: [dict(zip(names, row, strict=True)) for row in rows]
        for key, (names, *rows) in live["datasets"].items()
    }
    assert all(named.values())
    fixed = {**live, "datasets": named, "width": 640, "title": spec.get("title")}
    del fixed["autosize"]
    drawn = [
        re.sub(r"clip\d+|gradient_\d+", "", vl_convert.vegalite_to_svg(s, vl_version="6.4"))
        for s in (spec, {k: v for k, v in fixed.items() if v is not None})
    ]
    marks = [re.findall(r'<(?:path|line|text)[^>]*aria-roledescription="[^>]*', svg) for svg in drawn]
    assert marks[0]
    assert marks[0] == marks[1]


@pytest.mark.parametrize(
    ("kind", "title", "start"),
    [("lines", "Cost grows", None), ("moving", "Cost", "intensity (FLOP/byte): 500")],
)
def test_the_title_is_the_caption_and_a_controls_start_stays_in_the_picture(
    kind: str, title: str, start: str | None
) -> None:
    html = figure(kind)
    caption, picture = re.search(r"<figcaption>(.*)</figcaption>(.*)", html, re.S).groups()
    assert caption == f'<span class="kl-number"></span>{title}'
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture[: picture.index("<script")])
    assert title not in texts
    assert [text for text in texts if text.startswith("intensity (FLOP/byte): ")] == (
        [start] if start else []
    )
    blob = re.search(r'class="kl-spec">(.*)</script>', html, re.S)[1]
    assert "title" not in json.loads(blob)


def test_a_chart_without_a_title_says_its_description_and_markup_in_it_is_text() -> None:
    assert f'<span class="kl-number"></span>{ABOUT}</figcaption>' in figure("bars")
    odd = charts.lines(TABLE, "tokens", "cost", "model", **TEXT, title="a <b> & c")
    assert '<span class="kl-number"></span>a &lt;b&gt; &amp; c</figcaption>' in chart_html.figure_html(
        odd.to_dict()
    )


def test_a_notebook_gets_json_and_a_picture_but_no_html() -> None:
    bundle = make("lines")._repr_mimebundle_()
    assert set(bundle) == {chart_html.MIME, "image/png", "text/plain"}
    assert bundle["text/plain"] == ABOUT
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert "/v5" in bundle[chart_html.MIME]["$schema"]


def test_without_vl_convert_a_notebook_still_gets_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chart_html, "find_spec", lambda name: None)
    assert set(chart_html.mimebundle(make("bars").to_dict())) == {chart_html.MIME, "text/plain"}


def test_the_book_finds_the_plugin_and_draws_charts_only() -> None:
    (entry,) = entry_points(group="myst_nb.mime_renderers", name="kinetics_vegalite")
    plugin = entry.load()
    assert plugin is charts.MimeRender
    assert {builder for builder, mime, _ in plugin.mime_priority_overrides if mime == chart_html.MIME} >= {
        "html",
        "singlehtml",
    }
    renderer = SimpleNamespace(source="10_question.ipynb")
    data = SimpleNamespace(
        mime_type=chart_html.MIME, content=make("bars").to_dict(), cell_index=3, output_index=0
    )
    (node,) = plugin.handle_mime(renderer, data, False)
    assert node["format"] == "html"
    assert node.astext().startswith('<figure class="kl-chart"')
    assert plugin.handle_mime(renderer, SimpleNamespace(mime_type="image/png"), False) is None


def test_ids_of_equal_charts_on_one_page_differ_and_are_used() -> None:
    spec = make("fit").to_dict()
    first, second = (chart_html.figure_html(spec, place) for place in ("10.ipynb:3:0:", "10.ipynb:5:0:"))
    ids = [set(re.findall(r'\bid="([^"]+)"', html)) for html in (first, second)]
    assert len(ids[0]) > 1
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]+)\)", first)) <= ids[0]


def test_a_description_cannot_leave_its_attribute_or_the_script() -> None:
    spec = {**make("bars").to_dict(), "description": 'a "quote" </script> <b>'}
    html = chart_html.figure_html(spec)
    assert html.count("</script>") == 1
    assert 'aria-label="a &quot;quote&quot; &lt;/script&gt; &lt;b&gt;"' in html


def test_floats_are_rounded_to_six_digits() -> None:
    spec = make("lines").to_dict()
    costs = [row["cost"] for row in next(iter(spec["datasets"].values()))]
    assert costs == [float(f"{v:.6g}") for v in TABLE.cost]
    assert costs != list(TABLE.cost)


def test_a_missing_value_stays_missing_in_the_page() -> None:
    live = chart_html.live_spec(make("compare").to_dict())
    table = next(t for t in live["datasets"].values() if t[0][0] == "family")
    assert table[1] == ["Qwen3", 1.18, "published", None, None, "none"]


def luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("page", [WHITE, DARK, "#14181e"])
@pytest.mark.parametrize("colour", sorted({*charts.SERIES, *charts.SIZES}))
def test_series_stand_out_on_light_and_dark_pages(colour: str, page: str) -> None:
    a, b = sorted((luminance(colour), luminance(page)))
    assert (b + 0.05) / (a + 0.05) >= 3


def test_palettes() -> None:
    assert len(set(charts.SERIES)) == 8
    assert style.palette("abc") == list(charts.SERIES[:3])
    ordered = style.palette("abcd", ordered=True)
    assert [charts.SIZES.index(c) for c in ordered] == sorted(charts.SIZES.index(c) for c in ordered)
    assert (ordered[0], ordered[-1]) == (charts.SIZES[0], charts.SIZES[-1])


def test_text_takes_the_colour_of_the_page() -> None:
    for kind in KINDS:
        svg = re.search(r"<svg.*</svg>", figure(kind), re.S)[0]
        inks = set(re.findall(r'<text[^>]*fill="([^"]+)"', svg))
        assert inks <= {"currentColor", *(("#111111", "#ffffff") if kind in ("heatmap", "ratios") else ())}
        assert "currentColor" in inks


def test_colours_follow_the_given_order() -> None:
    table = pd.DataFrame({"x": [1, 2, 1, 2], "y": [1, 2, 3, 4], "m": ["b", "b", "a", "a"]})
    text = {"x_title": "x", "y_title": "y", "description": ABOUT}
    colour = charts.lines(table, "x", "y", "m", **text, sort=["a", "b"]).to_dict()["layer"][0]["encoding"][
        "color"
    ]
    assert colour["scale"] == {"domain": ["a", "b"], "range": list(charts.SERIES[:2])}
    assert charts.lines(table, "x", "y", "m", **text).to_dict()["layer"][0]["encoding"]["color"]["scale"][
        "domain"
    ] == ["b", "a"]


def axis(chart: Any, name: str) -> dict[str, Any]:
    return chart.to_dict()["layer"][0]["encoding"][name]


def test_log_axes() -> None:
    binary = axis(charts.lines(TABLE, "tokens", "cost", **TEXT, log_x=True, log_y=True), "x")
    assert binary["scale"]["base"] == 2
    assert binary["axis"]["values"][0] == 1024
    decimal = charts.lines(TABLE.assign(tokens=[50, 300, 6000] * 2), "tokens", "cost", **TEXT, log_x=True)
    assert axis(decimal, "x")["axis"]["values"] == [50, 100, 200, 500, 1000, 2000, 5000]
    assert axis(decimal, "x")["scale"]["base"] == 10


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (50, 6000, 10, [50, 100, 200, 500, 1000, 2000, 5000]),
        (1, 1e4, 10, [1, 3, 10, 30, 100, 300, 1000, 3000, 1e4]),
        (1, 1e8, 10, [10.0**k for k in range(9)]),
        (1, 1e20, 10, [10.0**k for k in range(0, 21, 2)]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, most: int, ticks: list[float]) -> None:
    assert chart_parts.log_ticks(low, high, most) == ticks


def test_bars_start_at_zero_and_keep_room_for_every_choice() -> None:
    length = make("rows").to_dict()["encoding"]["x"]
    assert length["stack"] == "zero"
    totals = TABLE.groupby(["model", "tokens"]).cost.sum()
    assert length["scale"]["domain"] == [0, pytest.approx(totals.max(), rel=1e-5)]


def test_a_slider_moves_what_is_drawn() -> None:
    """The picture shows the start value; another value changes the marks. Checked by Vega itself."""
    import vl_convert

    spec = make("moving").to_dict()
    (param,) = (p for p in spec["params"] if p["name"] == "intensity")
    assert param["bind"] == {
        "input": "range",
        "min": 0,
        "max": 1000,
        "step": 10,
        "name": "intensity (FLOP/byte) ",
    }
    first = vl_convert.vegalite_to_svg(spec, vl_version="6.4")
    assert "intensity (FLOP/byte): 500" in first
    param["value"] = 100
    assert vl_convert.vegalite_to_svg(spec, vl_version="6.4") != first


def test_a_filter_steps_through_its_values_and_a_menu_names_them() -> None:
    (param,) = (p for p in make("rows").to_dict()["params"] if p["name"] == "choose_tokens")
    assert (param["value"], param["bind"]["max"]) == (1, 2)
    assert chart_html.live_spec(make("rows").to_dict())["usermeta"] == {
        "values": {"choose_tokens": [1024, 4096, 16384]}
    }
    (param,) = (p for p in make("menu").to_dict()["params"] if p["name"] == "choose_model")
    assert param["bind"]["options"] == ["small", "large"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: charts.lines(TABLE, "tokens", "cost", **{**TEXT, "description": " "}), "description must be a non-empty text"),
        (lambda: charts.lines(TABLE, "tokens", "cost", **{**TEXT, "y_title": ""}), "y_title must be a non-empty text"),
        (lambda: charts.lines(TABLE, "token", "cost", **TEXT), r"column 'token' is not known; did you mean tokens\?"),
        (lambda: charts.lines(TABLE[:0], "tokens", "cost", **TEXT), "1 to 5000 rows; got 0"),
        (lambda: charts.lines(pd.concat([TABLE] * 900), "tokens", "cost", **TEXT), "a chart takes 1 to 5000 rows; got 5400"),
        (lambda: charts.lines(TABLE.rename(columns={"cost": "a.b"}), "tokens", "a.b", **TEXT), "without dots"),
        (lambda: charts.lines(TABLE.rename(columns={"model": "count"}), "tokens", "cost", "count", **TEXT), "not 'count'"),
        (lambda: charts.lines(TABLE.assign(cost=0.0), "tokens", "cost", **TEXT, log_y=True), "must be positive for a log axis"),
        (lambda: charts.lines(TABLE, "tokens", "cost", "model", **TEXT, sort=["small"]), "'large' is not known"),
        (lambda: charts.stacked_bars(TABLE.assign(cost=-1.0), "tokens", "cost", "model", **TEXT), "must not be negative"),
        (lambda: charts.compare(CLAIMS, "family", "factor", "source", x_title="x", description=ABOUT, lo="lo"), "together"),
        (lambda: charts.heatmap(TABLE.assign(cost=0.0), "tokens", "model", "cost", **TEXT, value_title="v", log=True), "log colours"),
        (lambda: charts.regions(TABLE, "tokens", "model", "model", **TEXT, sure="cost"), "must lie between 0 and 1"),
        (lambda: charts.Slider("two words", "x", 1, 0, 2, 1, "two words"), "plain name"),
        (lambda: charts.Slider("b", "x", 1, 0, 2, 1, "datum.y"), "must use the slider's name 'b'"),
        (lambda: charts.Slider("b", "x", 3, 0, 2, 1, "b"), "min <= value <= max"),
        (lambda: charts.Slider.filter("model", "model", ["small"], "large"), "must be one of"),
        (lambda: charts.Slider.filter("model", "model", []), "must be one of"),
        (lambda: style.palette("abcdefghi"), "at most 8 series: split it; got 9"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_band_leaves_a_chosen_axis_alone() -> None:
    import vl_convert

    table = TABLE.assign(lo=TABLE.cost * 0.9, hi=TABLE.cost * 1.1)
    chart = charts.lines(table, "tokens", "cost", **TEXT, band=("lo", "hi"), y_domain=(5e5, 2e6))
    scales = vl_convert.vegalite_to_vega(chart.to_dict())["scales"]
    (axis,) = (scale for scale in scales if scale["name"] == "y")
    assert axis["domain"] == [5e5, 2e6]
    assert not axis["zero"]


def test_the_nearest_point_tells_the_values_of_its_row() -> None:
    """The pointer is on a cell around the nearest mark (``datum``), whose row is ``datum.datum``."""
    import vl_convert

    marks = json.dumps(vl_convert.vegalite_to_vega(make("lines").to_dict(), vl_version="6.4")["marks"])
    tips = [json.loads(text) for text in re.findall(r'"tooltip": \{"signal": ("(?:[^"\\]|\\.)*")', marks)]
    near = [tip for tip in tips if "datum.datum" in tip]
    assert len(near) == 1
    assert 'toString(datum.datum["model"]' in near[0]
    assert not re.findall(r"(?<!datum\.)datum\[", near[0])


def test_the_bundle_holds_all_of_vega() -> None:
    text = charts.write_bundle(ROOT / "_build" / "bundle").read_text(encoding="utf-8")  # as the book has it
    assert len(text) > 500_000
    assert "window.vegaEmbed" in text
    assert not re.search(r"(?:src|href)=.?https?://", text)


def test_the_bundle_is_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vl_convert

    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda *_, **__: "vega(1)")
    target = charts.write_bundle(tmp_path / "static")
    assert target.name == "kl-vega.js"
    text = target.read_text(encoding="utf-8")
    assert text.splitlines()[1:] == ["(function () {", "vega(1)", "})();"]
    before = target.stat().st_mtime_ns
    assert charts.write_bundle(tmp_path / "static") == target
    assert target.stat().st_mtime_ns == before
    target.write_text("/* another version */\n", encoding="utf-8")
    charts.write_bundle(tmp_path / "static")
    assert target.read_text(encoding="utf-8") == text
    assert [p.name for p in (tmp_path / "static").iterdir()] == ["kl-vega.js"]


def test_the_theme_is_used_and_the_script_lies_beside_the_styles() -> None:
    assert alt.theme.active == "kinetics"
    config = make("bars").to_dict()["config"]
    assert config["axis"]["labelColor"] == "currentColor"
    assert json.dumps(config).count("#000") == 0
    assert {"kl-charts.js", "kinetics.css"} <= {p.name for p in (ROOT / "book" / "_static").iterdir()}


def test_extrapolated_points_are_rings() -> None:
    import vl_convert

    table = TABLE.assign(outside=TABLE.tokens > 2048)
    chart = charts.lines(table, "tokens", "cost", **TEXT, points=True, hollow="outside")
    svg = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version="6.4")
    marks = [mark for mark in re.findall(r"<path[^>]*>", svg) if 'aria-roledescription="point"' in mark]
    rings = [mark for mark in marks if "fill=" not in mark]
    assert len(marks) == len(table)
    assert len(rings) == table.outside.sum() == 4


def test_extrapolated_marks_are_hollow_and_extrapolated_cells_carry_a_ring() -> None:
    import vl_convert

    claims = CLAIMS.assign(outside=[True] + [False] * (len(CLAIMS) - 1))
    made = charts.compare(
        claims, "family", "factor", "source", x_title="x", description=ABOUT, hollow="outside"
    )
    drawn = vl_convert.vegalite_to_svg(made.to_dict(), vl_version="6.4")
    marks = [mark for mark in re.findall(r"<path[^>]*>", drawn) if 'aria-roledescription="point"' in mark]
    assert len(marks) == len(claims)
    assert sum('fill-opacity="0"' in mark for mark in marks) == 1
    table = TABLE.assign(outside=TABLE.tokens > 2048)
    made = charts.regions(table, "tokens", "model", "model", **TEXT, hollow="outside")
    drawn = vl_convert.vegalite_to_svg(made.to_dict(), vl_version="6.4")
    assert len(re.findall(r'aria-roledescription="point"', drawn)) == table.outside.sum()


def test_points_outside_the_axis_are_left_out_and_those_at_its_edge_stay_whole() -> None:
    import vl_convert

    chart = charts.lines(TABLE, "tokens", "cost", **TEXT, points=True, x_domain=(1024, 4096))
    svg = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version="6.4")
    assert len(re.findall(r'aria-roledescription="point"', svg)) == 4  # of six
    marks = next(layer for layer in chart.to_dict()["layer"] if layer["mark"]["type"] == "point")
    assert not marks["mark"].get("clip")


@pytest.mark.parametrize(
    ("names", "angle"), [("abcd", None), ([f"a rather long name {k}" for k in "abcdef"], -35)]
)
def test_names_too_wide_for_their_place_are_turned(names: Any, angle: int | None) -> None:
    table = pd.DataFrame({"name": list(names), "cost": 1.0, "part": "all"})
    bars = charts.stacked_bars(table, "name", "cost", "part", **TEXT)
    assert bars.to_dict()["encoding"]["x"]["axis"].get("labelAngle") == angle


def test_legends_fit_the_width() -> None:
    assert chart_parts.legend("abc")["columns"] == 3
    assert chart_parts.legend(["a name of twenty-five chars"] * 5)["columns"] == 2
    assert chart_parts.legend(["qwen3-0.6b"] * 6)["columns"] == 3  # three and three, not five and one


def named_at_ends(heights: Any, last: Any = None, **more: Any) -> tuple[list[Any], Any]:
    """The rows at the ends of lines with these last values, from the top down, and the legend of a chart of them."""
    rows = [
        (f"line {k}", x, height * x / 10)
        for k, height in enumerate(heights)
        for x in range(11)
        if last is None or x <= last[k]
    ]
    table = pd.DataFrame(rows, columns=["name", "x", "y"])
    asked: dict[str, Any] = {"y_domain": (0, 1), **TEXT, **more}
    spec = charts.lines(table, "x", "y", "name", **asked).to_dict(validate=True)
    line = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")
    drawn = next(rows for rows in spec["datasets"].values() if "x" in rows[0] and len(rows) == len(table))
    ends = sorted((row for row in drawn if row.get("_rise") is not None), key=lambda row: -row["y"])
    return ends, line["encoding"]["color"]["legend"]


def test_names_at_the_ends_of_lines_keep_apart_and_in_order() -> None:
    import vl_convert

    ends, legend = named_at_ends([0.3, 0.9, 0.88, 0.87])
    assert legend is None
    assert [row["name"] for row in ends] == ["line 1", "line 2", "line 3", "line 0"]
    at = np.array([-340 * row["y"] + row["_rise"] for row in ends])
    assert np.all(np.diff(at) >= 13 - 1e-6)
    assert max(abs(row["_rise"]) for row in ends) < 20
    assert ends[-1]["_rise"] == pytest.approx(0)  # far from the others: beside its end
    spread = {(row["name"], row["_rise"]) for row in named_at_ends([0.1, 0.5, 0.9])[0]}
    assert {rise for _, rise in spread} == {0}
    chart = charts.lines(TABLE, "tokens", "cost", "model", **TEXT, reference=[(1e6, "a budget")])
    svg = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version="6.4")
    assert "ends_marks" in svg
    assert "role-legend" not in svg


def test_long_names_at_ends_are_folded_and_have_the_room_of_their_lines() -> None:
    table = pd.DataFrame(
        {"name": ["block top-k of 32 tokens", "dense"] * 2, "x": [0, 0, 1, 1], "y": [0, 0, 0.52, 0.5]}
    )
    spec = charts.lines(table, "x", "y", "name", y_domain=(0, 1), **TEXT).to_dict(validate=True)
    rows = next(rows for rows in spec["datasets"].values() if "_end" in rows[0])
    ends = {row["_end"]: row for row in rows if row["_rise"] is not None}
    assert [*ends] == ["block top-k of\n32 tokens", "dense"]
    upper, lower = ends.values()
    apart = 340 * (upper["y"] - lower["y"]) + lower["_rise"] - upper["_rise"]
    assert apart == pytest.approx(26)


def test_a_folded_name_is_not_cut_at_an_equals_sign() -> None:
    assert chart_parts._folded("B = 128, b = 16") == "B\xa0=\xa0128,\nb\xa0=\xa016"


def test_names_at_ends_follow_a_control_that_chooses_rows() -> None:
    rows = [
        (name, who, x, x * end[who])
        for x in (0, 1)
        for who in (0, 1)
        for name, end in (("a", (0.5, 0.2)), ("b", (0.5, 0.9)))
    ]
    table = pd.DataFrame(rows, columns=["name", "who", "x", "y"])
    slider = charts.Slider.filter("who", "which", [0, 1])
    spec = charts.lines(table, "x", "y", "name", y_domain=(0, 1), slider=slider, **TEXT).to_dict(
        validate=True
    )
    drawn = next(rows for rows in spec["datasets"].values() if "_end" in rows[0])
    rise = {(row["name"], row["who"]): row["_rise"] for row in drawn if row["_rise"] is not None}
    assert abs(rise["a", 0] - rise["b", 0]) == pytest.approx(13)  # these end together
    assert rise["a", 1] == rise["b", 1] == 0  # these do not
    ends = next(layer for layer in spec["layer"] if layer.get("name") == "ends")
    assert any("choose_who" in str(step.get("filter")) for step in ends["transform"])


@pytest.mark.parametrize(
    ("expr", "named"),
    [("datum.x * datum.share + 0 * k", True), ("max(datum.x * datum.share, k * datum.x)", False)],
)
def test_names_at_ends_stay_where_a_slider_moves_lines_or_leave_to_a_legend(expr: str, named: bool) -> None:
    table = pd.DataFrame(
        [(name, x, share) for name, share in (("a", 0.5), ("b", 0.9)) for x in (0, 1)],
        columns=["name", "x", "share"],
    )
    slider = charts.Slider("k", "moves", 0.6, 0, 1, 0.1, expr)  # at its end the second makes the lines meet
    spec = charts.lines(table, "x", "y", "name", y_domain=(0, 1), slider=slider, **TEXT).to_dict(
        validate=True
    )
    line = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "line")
    assert (line["encoding"]["color"]["legend"] is None) == named


def test_a_legend_stays_where_names_have_no_place_and_follows_the_lines() -> None:
    ended, legend = named_at_ends([0.3, 0.9], last=[5, 10])  # a line that ends earlier
    assert (ended, legend["values"]) == ([], ["line 1", "line 0"])
    ended, legend = named_at_ends([0.9, 0.9, 0.9, 0.9, 0.9])  # many that end together
    assert ended == []
    assert legend["values"]
    assert (
        named_at_ends([0.3, 0.9], last=[5, 10], ordered=True)[1].get("values") is None
    )  # an order of their own
    assert named_at_ends([0.3, 0.9], y_domain=(0, 0.5))[0] == []  # an end outside the axis


def test_a_band_steps_as_its_line_does() -> None:
    for steps, shape in ((False, "linear"), (True, "step-after")):
        spec = charts.lines(
            TABLE, "tokens", "cost", "model", **TEXT, band=("lo", "hi"), steps=steps
        ).to_dict()
        marks = [layer["mark"] for layer in spec["layer"] if layer["mark"]["type"] in ("area", "line")]
        assert [mark["interpolate"] for mark in marks] == [shape, shape]


def test_an_axis_of_whole_numbers_has_no_halves() -> None:
    def least(values: list[float]) -> Any:
        spec = charts.lines(pd.DataFrame({"votes": values, "y": 1.0}), "votes", "y", **TEXT).to_dict()
        return spec["layer"][0]["encoding"]["x"]["axis"].get("tickMinStep")

    assert (least([1, 3, 5]), least([1, 2.5])) == (1, None)


def test_numbers_in_the_cells_only_where_there_is_room() -> None:
    def layers(columns: int) -> int:
        table = pd.DataFrame({"x": range(columns), "y": 1, "v": range(columns)})
        return len(charts.heatmap(table, "x", "y", "v", **TEXT, value_title="v").to_dict()["layer"])

    assert (layers(12), layers(13)) == (2, 1)


def test_a_name_keeps_its_colour_where_others_are_absent():
    sizes = ["a", "b", "c", "d"]
    whole = pd.DataFrame({"x": [1.0, 2] * 4, "y": 1.0, "size": np.repeat(sizes, 2)})

    def hues(table):
        chart = charts.lines(table, "x", "y", "size", ordered=True, sort=sizes, **TEXT).to_dict()
        scale = next(layer["encoding"]["color"]["scale"] for layer in chart["layer"] if "encoding" in layer)
        return dict(zip(scale["domain"], scale["range"], strict=True))

    all_of_them, some = hues(whole), hues(whole[whole["size"] != "b"])
    assert list(some) == ["a", "c", "d"]
    assert some.items() <= all_of_them.items()
    assert len(set(all_of_them.values())) == 4


def test_a_model_has_one_colour_in_all_figures():
    def hues(names, **options):
        table = pd.DataFrame({"x": [1.0, 2] * len(names), "y": 1.0, "m": np.repeat(names, 2)})
        scale = charts.lines(table, "x", "y", "m", **TEXT, **options).to_dict()["layer"][0]["encoding"][
            "color"
        ]["scale"]
        return dict(zip(scale["domain"], scale["range"], strict=True))

    six = hues(list(style.MODELS), ordered=True)
    assert list(six.values()) == style.palette("123456", ordered=True)
    pair = hues(["qwen3-8b", "llama3-70b", "qwen3-32b"])
    assert {name: pair[name] for name in ("qwen3-8b", "qwen3-32b")} == {
        name: six[name] for name in ("qwen3-8b", "qwen3-32b")
    }
    assert pair["llama3-70b"] not in six.values()


def test_steps_hold_a_value_and_round_numbers_of_a_log_axis_are_not_hidden():
    line = charts.lines(TABLE, "tokens", "cost", "model", **TEXT, steps=True, log_x=True).to_dict()["layer"][
        0
    ]
    assert line["mark"]["interpolate"] == "step-after"
    assert "tickCount" not in line["encoding"]["x"]["axis"]


def test_parts_of_bars_may_be_sizes():
    table = pd.DataFrame({"x": ["p"] * 4, "y": 1.0, "size": list("abcd")})
    hues = [
        charts.stacked_bars(table, "x", "y", "size", ordered=ordered, **TEXT).to_dict()["encoding"]["color"][
            "scale"
        ]["range"]
        for ordered in (True, False)
    ]
    assert hues == [style.palette("abcd", ordered=True), list(charts.SERIES[:4])]


def test_a_line_without_points_has_a_line_in_the_legend():
    dots = pd.DataFrame({"x": [1.0, 2], "y": [1.0, 2], "kind": "measured"})
    line = pd.DataFrame({"x": [1.0, 2], "y": [1.0, 2], "kind": "law"})
    chart = charts.fit(dots, line, "x", "y", "kind", **TEXT).to_dict()
    shapes = [
        layer["encoding"]["shape"]["scale"]
        for layer in chart["layer"]
        if "shape" in layer.get("encoding", {})
    ]
    assert dict(zip(shapes[0]["domain"], shapes[0]["range"], strict=True)) == {
        "measured": "circle",
        "law": style.BAR,
    }


def test_the_rest_of_a_map_is_its_ground():
    table = pd.DataFrame({"x": ["p", "q"], "y": ["r", "r"], "who": ["read", "not read"]})
    names = ["read", "not read"]
    made = charts.regions(table, "x", "y", "who", sort=names, rest="not read", **TEXT).to_dict()
    scale = made["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True))["not read"] == style.GROUND
    assert scale["range"][0] == charts.SERIES[0]
    with pytest.raises(ValueError, match="rest"):
        charts.regions(table, "x", "y", "who", sort=names, rest="nobody", **TEXT)


def test_cells_in_doubt_carry_signs_that_the_legend_and_the_description_name():
    import vl_convert

    table = TABLE.assign(share=[0.2, 0.5, 0.9, 0.49, 1.0, 0.8])
    made = charts.regions(table, "tokens", "model", "model", **TEXT, sure="share")
    drawn = vl_convert.vegalite_to_svg(made.to_dict(), vl_version="6.4")
    marks = [mark for mark in re.findall(r"<path[^>]*>", drawn) if 'aria-roledescription="point"' in mark]
    assert sorted(mark.count("M") for mark in marks) == [
        1,
        2,
        2,
    ]  # a stroke for 0.5, crosses for 0.2 and 0.49
    assert all(f">{word}<" in drawn for word in style.DOUBT)
    told = (
        "A cross marks cells that are less than half sure. A stroke marks cells that are less than 80% sure."
    )
    assert made.to_dict()["description"] == f"{ABOUT} {told}"
    sure = charts.regions(table.assign(share=0.8), "tokens", "model", "model", **TEXT, sure="share").to_dict()
    assert sure["description"] == ABOUT
    assert not any(word in json.dumps(sure) for word in style.DOUBT)
    assert '"opacity"' not in json.dumps(made.to_dict()["layer"])  # paleness says nothing


def test_ordered_names_stand_in_their_regions_where_these_have_most_room():
    rows = ["aaab", "aaab", "accc", "accc"]
    table = pd.DataFrame(
        [(x, y, f"size-{rows[y][x]}") for y in range(4) for x in range(4)], columns=["x", "y", "who"]
    )
    sizes = [f"size-{one}" for one in "abc"]
    layers = charts.regions(table, "x", "y", "who", sort=sizes, ordered=True, **TEXT).to_dict()
    (cells,) = layers["datasets"].values()
    said = {one["_label"]: (one["x"], one["_run"]) for one in cells if one["_label"]}
    assert {name: x for name, (x, _) in said.items()} == {"A": 1, "B": 3, "C": 2}  # the middle of three cells
    assert said["B"][1] == 1 < said["A"][1]
    assert all(one["who"] == f"size-{one['_label'].lower()}" for one in cells if one["_label"])


def test_a_name_in_a_map_of_low_rows_does_not_touch_the_sign_of_doubt():
    import vl_convert

    for n_rows in (4, 9, 14):
        cells = [(x, y, f"size-{'ab'[x > 2]}", 0.3) for y in range(n_rows) for x in range(6)]
        table = pd.DataFrame(cells, columns=["x", "y", "who", "share"])
        made = charts.regions(
            table, "x", "y", "who", sure="share", sort=["size-a", "size-b"], ordered=True, **TEXT
        )
        drawn = vl_convert.vegalite_to_svg(made.to_dict(), vl_version="6.4")
        place = r"translate\([-\d.]+,([-\d.]+)\)"
        texts = re.findall(r"<text[^>]*>", drawn)
        marks = [mark for mark in re.findall(r"<path[^>]*>", drawn) if 'aria-roledescription="point"' in mark]
        names = [float(re.search(place, text)[1]) for text in texts if 'font-weight="bold"' in text]
        signs = [float(re.search(place, mark)[1]) for mark in marks]
        assert (len(names), len(signs)) == (2, 6 * n_rows)
        for (
            foot
        ) in names:  # letters of nine pixels stand on it; a sign reaches four from its middle, two apart
            assert min(y - foot for y in signs if y > foot) >= 4 + 2
            assert min((foot - y for y in signs if y < foot), default=99) >= 9 + 4


def test_intervals_of_one_row_stand_one_below_the_other():
    import vl_convert

    pair = CLAIMS.assign(lo=CLAIMS.factor - 0.1, hi=CLAIMS.factor + 0.1)
    heights = []
    for table in (CLAIMS, pair):  # one interval a row; two
        made = charts.compare(
            table, "family", "factor", "source", x_title="x", description=ABOUT, lo="lo", hi="hi"
        )
        drawn = vl_convert.vegalite_to_svg(made.to_dict(), vl_version="6.4")
        marks = [mark for mark in re.findall(r"<path[^>]*>", drawn) if 'aria-roledescription="point"' in mark]
        heights.append(len({re.search(r"translate\([\d.]+,([\d.]+)\)", mark)[1] for mark in marks}))
    assert heights == [2, 4]


def test_a_drawing_is_one_picture_with_its_words_and_a_description():
    picture = Drawing(100, 50, "Short", 'Said "aloud"')
    picture.box(10, 20, 30, 10, "a < b", "search", depth=0.5)
    picture.arrow((0, 0), (0, 10))
    figure = ElementTree.fromstring(picture._repr_html_())
    assert figure.get("class") == "kl-drawing"
    caption, svg = figure
    assert (svg.get("viewBox"), svg.get("role"), svg.get("aria-label")) == (
        "0 0 100 50",
        "img",
        'Said "aloud"',
    )
    assert "".join(caption.itertext()) == "Short"
    rect, words, line, head = svg[:4]
    assert rect.get("fill").startswith("var(--kl-search, #")  # the page's colour, light or dark
    assert (words.text, words.get("x"), words.get("y")) == ("a < b", "25", "29")
    assert line.get("stroke") == "currentColor"
    assert head.get("transform") == "translate(0 10) rotate(90)"  # it points down
    with pytest.raises(KeyError):
        picture.box(0, 0, 1, 1, "", "gold")
