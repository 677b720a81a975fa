"""The look of the charts: palettes, sizes of a figure, the Vega-Lite configuration.

Text and rules are drawn in ``currentColor``, so one picture serves a light and a dark page; the colours of
the series keep a contrast of at least 3:1 on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kinetics_lab.errors import require

SERIES = ("#3182ce", "#d9731a", "#0f9bab", "#dc4b5d", "#9267d6", "#2f9e5f", "#a8763e", "#d05aa8")
# small -> large: neighbours differ in hue and in lightness, also for readers who tell red from green badly
SIZES = ("#2ea566", "#556f6c", "#548ef3", "#6b58af", "#9a1ff9", "#b86bb9", "#f35512")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "wedge")
DASHES: tuple[list[int], ...] = ([], [6, 4], [2, 3], [10, 3, 2, 3])
BAR = "M-1,-0.12L1,-0.12L1,0.12L-1,0.12Z"  # in a legend, of a series that is a line alone
# of a cell: from and below which share of the resamples it has which sign
DOUBT = {
    "less than half sure": (0, 0.5, "A cross", "M-0.7,0.7L0.7,-0.7M-0.7,-0.7L0.7,0.7"),
    "less than 80% sure": (0.5, 0.8, "A stroke", "M-0.7,0.7L0.7,-0.7"),
}
GROUND = "rgba(128, 128, 128, 0.25)"  # on a light and on a dark page
INK = "currentColor"
WIDTH, HEIGHT = 640, 340
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


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
            "customFormatTypes": True,  # for names in tooltips
            "axis": {**text, **axis, "tickOpacity": 0.5, "titleFontWeight": "normal", "titlePadding": 8},
            "axisX": {"grid": False, "labelAngle": 0, "labelOverlap": "greedy", "labelSeparation": 6},
            "axisY": {**horizontal, "domain": False, "ticks": False, "labelPadding": 6},
            "legend": {**text, **legend, "symbolStrokeWidth": 2.5, "symbolOpacity": 1, "offset": 28},
            "title": {"color": INK, "fontSize": 15, "anchor": "start", "offset": 10},
            "text": {"color": INK, "fontSize": 12},
            "rule": {"color": INK},
            "view": {"stroke": None},
            "range": {"category": list(SERIES), "ordinal": list(SIZES)},
        },
    }


DROPPED = (3, 5, 1, 4, 2)  # of SIZES, where there are fewer names, in this order


def palette(names: Sequence[Any], ordered: bool = False) -> list[str]:
    """One colour a series: well apart, or from small to large when ``ordered``. ValueError beyond the palette."""
    colours = SIZES if ordered else SERIES
    require(len(names) <= len(colours), f"a chart takes at most {len(colours)} series: split it", len(names))
    left_out = DROPPED[: len(colours) - len(names)] if ordered else ()
    return [one for k, one in enumerate(colours) if k not in left_out][: len(names)]


# a model of the paper has one colour in all figures; others beside it take what is far from these
_NAMES = [f"qwen3-{size}b" for size in ("0.6", "1.7", "4", "8", "14", "32")]
MODELS = dict(zip(_NAMES, palette(_NAMES, ordered=True), strict=True))
BESIDE = tuple(SERIES[k] for k in (2, 7, 6, 3, 1, 0, 5, 4))
