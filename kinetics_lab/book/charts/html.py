"""Charts without a network: the notebook output, the picture in the page, the one local Vega bundle.

A notebook carries Vega-Lite JSON (which JupyterLab draws) and a PNG (which GitHub shows), never HTML that
would load scripts from elsewhere. In the book, `MimeRender` turns the JSON into an inline SVG and the spec;
``kl-charts.js`` makes the figure live when it is scrolled to.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from kinetics_lab.book.charts.drawing import caption
from kinetics_lab.book.charts.style import theme
from kinetics_lab.files import write_text

MIME = "application/vnd.vegalite.v5+json"  # JupyterLab registers v3 to v5, and draws newer specs under v5
VIEWS = {"hconcat", "vconcat", "concat", "facet", "repeat"}
_V5_SCHEMA = "https://vega.github.io/schema/vega-lite/v5.20.1.json"
VEGA_LITE = ".".join(alt.VEGALITE_VERSION.lstrip("v").split(".")[:2])  # as vl-convert names it: 6.4


def enable() -> None:
    """Use the theme and the offline renderer (Vega-Lite JSON and a PNG, never HTML) in this notebook.

    Styled tables (``df.style``) are shown in the book's style, too; text in them and in Markdown stays text.
    """
    from IPython import get_ipython
    from IPython.display import Markdown
    from pandas.io.formats.style import Styler

    alt.theme.register("kinetics", enable=True)(lambda: theme())  # type: ignore[arg-type, return-value]
    alt.renderers.register("kinetics", mimebundle)
    alt.renderers.enable("kinetics")
    if notebook := get_ipython():
        notebook.display_formatter.formatters["text/html"].for_type(Styler, table_html)
        notebook.display_formatter.formatters["text/markdown"].for_type(Markdown, markdown_text)


def mimebundle(spec: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Outputs of one chart for a notebook; the PNG only where vl-convert is installed."""
    svg = {**spec.get("usermeta", {}), "embedOptions": {"renderer": "svg"}}  # a canvas knows no currentColor
    bundle: dict[str, Any] = {
        MIME: {**spec, "$schema": _V5_SCHEMA, "usermeta": svg},
        "text/plain": str(spec.get("description") or "chart"),
    }
    if find_spec("vl_convert"):
        import vl_convert

        png = vl_convert.vegalite_to_png({**spec, "background": "white"}, vl_version=VEGA_LITE, scale=2)
        bundle["image/png"] = base64.b64encode(png).decode()
    return bundle


def static_svg(spec: dict[str, Any], uid: str, label: str) -> str:
    """The chart as one inline SVG: ids start with ``uid``, it scales with the page, ``label`` is read out."""
    import vl_convert

    config = {**spec.get("config", {}), "aria": False}  # one label for the figure instead of one a mark
    svg = vl_convert.vegalite_to_svg({**spec, "config": config}, vl_version=VEGA_LITE)
    # what follows is about tags alone
    svg = re.sub(r">[^<>]*<", lambda text: text[0].replace('"', "&quot;"), svg)
    for number, name in enumerate(dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg))):  # Vega counts on and on
        svg = re.sub(rf'(id="|url\(#){re.escape(name)}(?=["\)])', rf"\g<1>{uid}-{number}", svg)
    fonts = re.findall(r' font-family="[^"]*"', svg)
    for useless in (
        r'<path [^>]*\bopacity="0"/>|<path class="(?:fore|back)ground"[^>]*/>',  # nothing to see
        r'<g class="mark-path [^"]*_voronoi"[^>]*>(?:<path [^>]*/>)*</g>',  # where the pointer is near which point
        r' (?:aria-\w+|role)="[^"]*"| (?:stroke-)?opacity="1"| pointer-events="none"| font-family="[^"]*"',
        r"(?<=\d\.\d\d)\d+(?=[^<>]*>)",  # digits of attributes beyond a hundredth of a pixel
    ):
        svg = re.sub(useless, "", svg)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" style="max-width:{width}px"'
        f'{fonts[0] if fonts else ""} role="img" aria-label="{html.escape(label)}">{svg[svg.index(">") + 1 :]}'
    )


def live_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec that the page brings to life: tables without their names on every row, a single view as wide as the page."""
    told = ("$schema", "usermeta", "title")  # the caption is the title
    live = {k: v for k, v in spec.items() if k not in told}
    if values := spec.get("usermeta", {}).get("values"):
        live["usermeta"] = {"values": values}
    live["datasets"] = {name: _table(rows) for name, rows in spec.get("datasets", {}).items()}
    if not VIEWS & set(live) and not isinstance(live.get("width"), dict):
        live |= {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return live


def _table(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """A table as a row of names and rows of values, whole numbers without a fraction; ``kl-charts.js`` reads it back."""

    def short(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value

    return [list(rows[0]), *([short(row[name]) for name in rows[0]] for row in rows)]


def figure_html(spec: dict[str, Any], place: str = "") -> str:
    """HTML of one chart, its title as the caption; ``place`` (page, cell, output) keeps the ids of equal charts apart."""
    blob = json.dumps(live_spec(spec), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    uid = "kl" + hashlib.sha256((place + blob).encode()).hexdigest()[:10]
    description, (title, picture) = str(spec.get("description") or "chart"), _caption(spec)
    return (
        f'<figure class="kl-chart" id="{uid}">{caption(title or description)}'
        f'<div class="kl-static">{static_svg(picture, uid, description)}</div>'
        f'<script type="application/json" class="kl-spec">{blob}</script></figure>'
    )


def _caption(spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The title of a chart, and the chart without it; what a control is set to at first stays in the picture."""
    meta, shown = spec.get("usermeta", {}), {k: v for k, v in spec.items() if k != "title"}
    title = meta.get("title", spec.get("title", []))
    if "start" in meta:
        shown["title"] = {"text": {"expr": meta["start"]}, "fontSize": 12, "fontWeight": "normal"}
    return " ".join([title] if isinstance(title, str) else title), shown


def table_html(styler: Any) -> str:
    """HTML of a pandas Styler: the class of plain tables, numbers to the right, an id that is the same on every run.

    Whatever its formatters return is text: markup in a name is shown as it is written.
    """
    numbers = [i for i, dtype in enumerate(styler.data.dtypes) if dtype.kind in "iuf"]
    right = [{"selector": f".col{i}", "props": "text-align: right"} for i in numbers]
    uid = hashlib.sha256(styler.data.to_csv().encode()).hexdigest()[:8]
    shown = copy.copy(styler)
    shown.set_uuid(uid).set_table_attributes('class="dataframe"').set_table_styles(right, overwrite=False)
    if isinstance(shown.caption, str):
        shown.set_caption(html.escape(shown.caption))
    shown.data = shown.data.rename_axis(index=_escaped, columns=_escaped)
    for kind in ("_display_funcs", "_display_funcs_index", "_display_funcs_columns"):
        plain = getattr(shown, kind)
        ours: Any = defaultdict(partial(partial, _shown, plain.default_factory()))
        ours.update({place: partial(_shown, show) for place, show in plain.items()})
        setattr(shown, kind, ours)
    return str(shown.to_html())


def _escaped(text: Any) -> Any:
    return html.escape(text) if isinstance(text, str) else text


def _shown(show: Callable[[Any], Any], value: Any) -> Any:
    return _escaped(show(value))


def literal(text: object) -> str:
    """Text of data, a model's name for example, for a sentence in Markdown: its signs are signs, no markup."""
    line = re.sub(r"[\\`*_{}\[\]<>#|~$&!@^]", r"\\\g<0>", " ".join(str(text).split()))
    return re.sub(r"(?i)(?<=www)\.|:(?=//)", r"\\\g<0>", line)  # nor links


def markdown_text(shown: Any) -> str:
    """What a Markdown output says, without HTML: a tag that came with a name is shown as it is written."""
    from markdown_it import MarkdownIt

    text, reader = str(shown.data), MarkdownIt("commonmark")

    def tags(tokens: Any) -> list[str]:
        own = [token.content for token in tokens if token.type in ("html_inline", "html_block")]
        return own + [tag for token in tokens for tag in tags(token.children or ())]

    while found := tags(reader.parse(text)):  # escaping one tag may uncover another
        for tag in found:
            text = text.replace(tag, tag.replace("<", "&lt;"))
    return text


def cards(groups: Mapping[str, pd.DataFrame]) -> str:
    """HTML of tables with the same columns of texts, a heading above each; on a narrow screen every row is a card.

    A cell is a text, of which later lines are small, or a list of pairs (text, address) that becomes links. All are escaped.
    """

    def cell(name: str, value: Any) -> str:
        if isinstance(value, list):
            inner = ", ".join(f'<a href="{html.escape(to)}">{html.escape(text)}</a>' for text, to in value)
        else:
            text = re.sub(r"(?<=\d) (?=%|s\b|min\b|GB\b)", "\N{NO-BREAK SPACE}", str(value))
            first, *more = html.escape(text).split("\n")
            inner = first + "".join(f"<br><small>{line}</small>" for line in more)
        return f'<td data-label="{html.escape(name)}: ">{inner}</td>' if inner else "<td></td>"

    lines, names = list[str](), [str(name) for name in next(iter(groups.values()))]
    for heading, table in groups.items():
        lines.append(f'<tr class="kl-group"><th colspan="{len(names)}">{html.escape(heading)}</th></tr>')
        for row in table[names].itertuples(index=False):
            lines.append(f"<tr>{''.join(map(cell, names, row))}</tr>")
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    return f'<table class="dataframe kl-cards"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


class MimeRender:
    """MyST-NB plugin (entry point group ``myst_nb.mime_renderers``): charts of notebooks in the book."""

    mime_priority_overrides = tuple((builder, MIME, 5) for builder in ("html", "dirhtml", "singlehtml"))

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[Any] | None:
        """Nodes for a Vega-Lite output, None for any other."""
        if data.mime_type != MIME:
            return None
        from docutils import nodes

        spec = data.content if isinstance(data.content, dict) else json.loads(data.content)
        source = Path(getattr(renderer, "source", "") or "").name
        place = f"{source}:{data.cell_index}:{data.output_index}:"
        return [nodes.raw(text=figure_html(spec, place), format="html", classes=["output"])]


def write_bundle(folder: Path) -> Path:
    """Write ``kl-vega.js`` (Vega, Vega-Lite, Vega-Embed in one script) into ``folder``, whole or not at all.

    A file that is there already for the same versions is kept as it is.
    """
    import vl_convert

    target = folder / "kl-vega.js"
    stamp = f"/* Vega, Vega-Lite {VEGA_LITE} and Vega-Embed (BSD-3-Clause), by vl-convert {version('vl-convert-python')} */\n"
    if target.is_file() and target.read_text(encoding="utf-8").startswith(stamp):
        return target
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    folder.mkdir(parents=True, exist_ok=True)
    # its top-level constants would collide with those of Sphinx's own scripts: keep them in a function
    return write_text(target, f"{stamp}(function () {{\n{bundle}\n}})();\n")
