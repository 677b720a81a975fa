"""What a sweep found: one table of all points' results, one of the points, a chart and a page about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas.api.types import infer_dtype

from kinetics_lab.book import results
from kinetics_lab.book.grids import brief, canonical
from kinetics_lab.book.sweep_points import Line, line_of, state
from kinetics_lab.files import write_table

if TYPE_CHECKING:
    import altair as alt

KIND = "kinetics-lab sweep"
TEMPLATE = Path(__file__).parents[1] / "templates" / "sweep_summary.ipynb"
MOST_SERIES = 8  # that a chart can tell apart


def read_sweep(out: Path | str) -> dict[str, Any]:
    """The content of ``sweep.json``: ``grid``, ``notebook``, ``axes``, ``show``, ``points`` (parameters by name)."""
    return dict(json.loads(Path(out, "sweep.json").read_text(encoding="utf-8")))


def read_log(out: Path | str) -> list[Line]:
    """The lines of ``runs.jsonl``; a last one without its end was torn by a kill and is left out.

    Raises ValueError naming the line for any other that is not whole.
    """
    path = Path(out, "runs.jsonl")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            entry = json.loads(line)
            lines.append({**entry, "name": str(entry["name"]), "state": str(entry["state"])})
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path} line {number} is not a run's line: {line[:80]!r}") from None
    return lines


def gather(out: Path | str) -> Path | None:
    """Write ``results.parquet``: the rows of every point that is done, its name and parameters in front of them.

    Columns ``sweep.point`` and ``param.<name>`` cannot clash with a result's own, which must not begin like that.
    A column of values of several kinds, lists or mappings is kept as JSON text. None, and no file, without rows.
    """
    out, tables = Path(out), []
    for name, parameters in read_sweep(out)["points"].items():
        # that of a point under way lies in a folder of another name
        found = results.read_result(out / "points" / name)
        if found is not None and len(found):
            front = {"sweep.point": name} | {f"param.{key}": value for key, value in parameters.items()}
            columns = {key: pd.Series([value] * len(found), dtype=object) for key, value in front.items()}
            tables.append(pd.concat([pd.DataFrame(columns), found.reset_index(drop=True)], axis=1))
    path = out / "results.parquet"
    if not tables:
        path.unlink(missing_ok=True)
        return None
    whole = pd.concat([table.astype(object) for table in tables], ignore_index=True)
    whole = pd.DataFrame({name: _column(whole[name]) for name in whole})
    return write_table(path, whole)


def _column(values: pd.Series) -> pd.Series:
    """A column that a Parquet file can hold: values of one kind as they are, else as JSON text."""
    if _numeric(values):
        return pd.to_numeric(values)
    if not infer_dtype(values, skipna=True).startswith("mixed"):
        return values.infer_objects()
    return values.map(lambda value: json.dumps(value, default=_words), na_action="ignore")


def _words(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _numeric(values: pd.Series) -> bool:
    return infer_dtype(values, skipna=True) in ("integer", "floating", "mixed-integer-float")


def points_table(out: Path | str) -> pd.DataFrame:
    """A row for each point: ``state``, ``seconds`` of its last run, the axes' values, ``error`` (its first line)."""
    about, last = read_sweep(out), {line["name"]: line for line in read_log(out)}
    rows = []
    for name, parameters in about["points"].items():
        place = Path(out, "points", name)
        line = line_of(place, parameters) if (known := state(place)) != "left" else {}
        row = {"state": known, "seconds": last.get(name, line).get("seconds")}
        row |= {axis: brief(parameters, [axis]).partition("=")[2] for axis in about["axes"]}
        rows.append(row | {"error": line.get("error", "")})
    return pd.DataFrame(rows)


def drawable(table: pd.DataFrame, about: dict[str, Any]) -> tuple[pd.DataFrame, str, str]:
    """What there is to draw of all results: a table of ``x, y, which``, the axis and the column that they show.

    ``x`` is the axis of numbers with most values, else the first axis; ``y`` the column that the grid shows, else the
    first of numbers that differ; ``which`` tells apart what shares an x: other axes, then columns of text. Raises
    ValueError saying why there is nothing to draw.
    """
    axes = {name: values for name, values in about["axes"].items() if len({canonical(v) for v in values}) > 1}
    own = [str(name) for name in table if not str(name).startswith(results.RESERVED)]
    numbers = [name for name in own if _numeric(table[name]) and table[name].nunique() > 1]
    if about["show"] is not None and about["show"] not in numbers:
        raise ValueError(
            f"the result has no column {about['show']!r} of numbers that differ; it has {numbers}"
        )
    if not axes or not numbers:
        raise ValueError("no axis, or no column of numbers, takes more than one value")
    counts = {name: _numeric(table[f"param.{name}"]) * len(values) for name, values in axes.items()}
    x = max(counts, key=lambda name: counts[name])
    y = about["show"] or numbers[0]
    rows = pd.DataFrame({"x": table[f"param.{x}"], "y": table[y].astype(float), "which": y})
    words = [f"param.{name}" for name in axes if name != x]
    words += [name for name in own if table[name].map(lambda value: isinstance(value, str)).all()]
    for name in words:
        if not name.startswith("param.") and not rows.duplicated(["x", "which"]).any():
            break
        if table[name].nunique() > 1:
            first = rows["which"].eq(y).all()
            rows["which"] = (
                table[name].astype(str) if first else rows["which"] + ", " + table[name].astype(str)
            )
    if rows.duplicated(["x", "which"]).any():
        raise ValueError(f"a point has several rows of {y} that no column of text tells apart")
    return rows.dropna(subset=["y"]), x, y


def chart(out: Path | str) -> alt.LayerChart:
    """A result against an axis, as :func:`drawable` chooses them; ValueError saying why there is nothing to draw."""
    from kinetics_lab.book import charts

    path = Path(out, "results.parquet")
    if not path.exists():
        raise ValueError("no point that is done has handed over a row")
    rows, x, y = drawable(pd.read_parquet(path), read_sweep(out))
    series = list(rows["which"].unique())
    title = f"{y} by {x}"
    if len(series) > MOST_SERIES:
        rows = rows[rows["which"].isin(series[:MOST_SERIES])]
        title += f": the first {MOST_SERIES} of {len(series)}"
    numeric = [name for name in ("x", "y") if _numeric(rows[name])]
    log = {name: bool(0 < 16 * rows[name].min() <= rows[name].max()) for name in numeric}
    about = f"{y} against {x}, one {{}} for each combination of the other axes."
    if "x" in log:
        return charts.lines(
            rows.sort_values("x", kind="stable"), "x", "y", "which", points=True, log_x=log["x"], log_y=log["y"],
            x_title=x, y_title=y, title=title, description=about.format("line"),
        )  # fmt: skip
    return charts.compare(
        rows, "x", "y", "which", x_title=y, log_x=log["y"], title=title, description=about.format("mark")
    )


def summarize(out: Path | str) -> list[Path]:
    """Run the summary notebook over a sweep's folder: the notebook, and where nbconvert is installed a page."""
    from kinetics_lab.book.pages import pages
    from kinetics_lab.book.runs import run_notebook

    run = run_notebook(TEMPLATE, out=Path(out, "summary"), progress=False)
    return pages(run.executed, TEMPLATE)
