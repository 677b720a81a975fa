"""Altair charts of the book: one function per figure kind, light and dark, no network anywhere.

Every function takes a tidy pandas table and column names and returns an Altair chart. Axis titles (with
units) and a ``description`` (the text read out instead of the picture) are required keywords. Unknown
columns, empty tables, more series than colours, a log axis with values that are not positive and missing
text raise ``ValueError``. Call `enable` once at the top of a notebook.
"""

from kinetics_lab.book.charts.html import MimeRender, enable, literal, write_bundle
from kinetics_lab.book.charts.marks import compare, fit, heatmap, lines, regions, stacked_bars
from kinetics_lab.book.charts.style import SERIES, SIZES, theme
from kinetics_lab.book.charts.tables import Slider

__all__ = [
    "SERIES", "SIZES", "MimeRender", "Slider", "compare", "enable", "fit", "heatmap", "lines", "literal", "regions",
    "stacked_bars", "theme", "write_bundle",
]  # fmt: skip
