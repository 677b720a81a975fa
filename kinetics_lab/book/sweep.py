"""A sweep: a notebook run once for each point of a grid, into a cache of runs that a stopped sweep goes on from.

The folder holds ``sweep.json`` (which marks it as a sweep's), ``points/`` (a run for each point done, named by its
key; ``<name>.error.txt`` for each that failed), ``results.parquet`` and ``summary.html``. The folders alone tell what
is done: killed at any instant, a sweep loses the points under way.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd
from pandas.api.types import infer_dtype, is_numeric_dtype

from kinetics_lab.book.execute import NotebookError, Submit, dask_workers, local_workers, outcomes
from kinetics_lab.book.pages import ALONE
from kinetics_lab.book.parameters import Grid, read_grid
from kinetics_lab.book.results import declared_result, read_result
from kinetics_lab.book.runs import cached_run, run_keys
from kinetics_lab.errors import among, report, require, sentence
from kinetics_lab.files import is_ours, locked, write_table, write_text

KIND = "kinetics-lab sweep"
EXECUTORS = ("local", "dask")
MOST_SERIES = 8  # that a chart can tell apart
MOST_ROWS = 500  # of the summary's table; all are in results.parquet

Points = dict[Path, dict[str, Any]]  # parameters by the folder of each point's run


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended: number of points and of those done, why others failed (by name), files for a reader."""

    out: Path
    points: int
    done: int
    failed: dict[str, str]
    results: Path | None = None
    pages: list[Path] = field(default_factory=list)


def listing(grid_path: Path | str, out: Path | str) -> list[str]:
    """A line for each point: its state in ``out``, its name, its parameters. Runs and writes nothing."""
    grid, folder = read_grid(grid_path), Path(out, "points")
    known = {path.name.removesuffix(".error.txt") for path in folder.glob("*")}
    points = ((_state(folder / n) if n in known else "left", n, p) for n, p in _names(grid))
    return [f"{state:6}  {name}  {_brief(point)}" for state, name, point in points]


def sweep(
    grid_path: Path | str, out: Path | str, *, executor: str = "local", workers: int = 2, scheduler: str | None = None,
    resources: Mapping[str, float] | None = None, retry: bool = False, progress: bool = True, summary: bool = True,
) -> SweepResult:  # fmt: skip
    """Run the points of a grid that ``out`` does not hold yet, gather their results and write a page about them.

    ``executor`` is "local" (``workers`` kernels of this machine at a time) or "dask" (``workers`` processes of this
    machine, or whatever ``scheduler`` has), where each point takes ``resources``, {"GPU": 1} for example. Points
    that failed stay so unless ``retry``. ``progress`` goes to stderr.

    Raises ValueError for a wrong grid or option, FileExistsError for a folder that is no sweep's or is in use,
    OSError with the path, SourceChangedError; KeyboardInterrupt passes once the kernels are gone. The same call goes on.
    """
    among(EXECUTORS, executor, "executor")
    require(workers >= 1, "workers must be at least 1", workers)
    for option, given in (("scheduler", scheduler), ("resources", resources)):
        require(not given or executor == "dask", f"{option} is for executor dask", given)
    pool = (
        local_workers(workers) if executor == "local" else dask_workers(workers, scheduler, resources or {})
    )
    grid, out = read_grid(grid_path), Path(os.path.abspath(out))
    declared_result(grid.notebook)  # a wrong declaration is no point's fault
    if not is_ours(out, "sweep.json", KIND):
        raise FileExistsError(f"{out} exists and is not a sweep's folder; give another place for the sweep")
    busy = FileExistsError(f"another sweep is at work in {out}; wait for it or give another place")
    with locked(out / ".lock", busy):
        points = {out / "points" / name: point for name, point in _names(grid)}
        names = {"grid": Path(grid_path).name, "notebook": grid.notebook.name}
        about = {"kind": KIND, **names, "axes": grid.axes}
        write_text(out / "sweep.json", json.dumps(about, indent=1) + "\n")
        gather(points, out)  # no table of another grid or of older code is left to be read if this is stopped
        again = ("left", "failed") if retry else ("left",)
        todo = {place: point for place, point in points.items() if _state(place) in again}
        _run(grid, todo, pool, report if progress else lambda _: None)
        results = gather(points, out)
        pages = [_page(grid, points, out)] if summary else []
    failed = {place.name: _why(place) for place in points if _state(place) == "failed"}
    done = sum(_state(place) == "done" for place in points)
    return SweepResult(out, len(points), done, failed, results, pages)


def _names(grid: Grid) -> Iterator[tuple[str, dict[str, Any]]]:
    """The points of a grid, each with its name, which has its key."""
    keys = run_keys(grid.notebook, grid.points)
    return zip([f"{grid.notebook.stem}-{key}" for key in keys], grid.points, strict=True)


def _brief(point: Mapping[str, Any], names: Any = None) -> str:
    """A point's parameters, or some of them, as ``name=value`` words."""
    words = {name: point[name] for name in names or point}
    return " ".join(f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in words.items())


def _state(place: Path) -> str:
    """``done``, ``failed`` or ``left``: what the folders say of a point."""
    if os.path.exists(f"{place}/run.json"):
        return "done"
    return "failed" if os.path.exists(f"{place}.error.txt") else "left"


def _error_file(place: Path) -> Path:
    """Where the traceback of a point lies that failed."""
    return Path(f"{place}.error.txt")


def _why(place: Path) -> str:
    """Why a point failed, in one line."""
    return _error_file(place).read_text(encoding="utf-8").partition("\n")[0]


def run_point(
    notebook: Path, point: Mapping[str, Any], place: Path, *,
    env: Mapping[str, str] | None = None, stopping: Event | None = None, started: Callable[[int], None] | None = None,
) -> tuple[float, str]:  # fmt: skip
    """Run one point into ``place``: its seconds, and why it failed, empty if it is done; then its traceback stays beside.

    Raises CancelledError where ``stopping`` was set meanwhile, else what ``cached_run`` does.
    """
    began, key = time.perf_counter(), place.name.rpartition("-")[2]
    _error_file(place).unlink(missing_ok=True)
    try:
        run = cached_run(notebook, point, place.parent, key=key, keep=0, env=env, started=started)
        return run.seconds, ""
    except NotebookError as error:
        if stopping is not None and stopping.is_set():
            raise CancelledError from error
        write_text(_error_file(place), f"{error}\n\n{''.join(traceback.format_exception(error))}")
        return time.perf_counter() - began, _why(place)


def _run(grid: Grid, todo: Points, pool: AbstractContextManager[Submit], tell: Callable[[str], None]) -> None:
    """Run the points left, with a line for each that ends."""
    tell(f"{grid.notebook.stem}: {len(grid.points)} points, {len(todo)} to run")
    began, ended = time.perf_counter(), 0
    if not todo:
        return
    try:
        with pool as submit:
            notebook = grid.notebook.resolve()
            futures = {submit(run_point, notebook, point, place): point for place, point in todo.items()}
            for point, (seconds, why) in outcomes(futures):
                ended += 1
                left = (time.perf_counter() - began) / ended * (len(todo) - ended)
                what = f"FAILED after {seconds:.1f} s: {why[:300]}" if why else f"{seconds:.1f} s"
                told = f"[{ended}/{len(todo)}] {_brief(point, grid.axes)}: {what}"
                tell(told + (f", about {left:.0f} s left" if left else ""))
    except BaseException:
        tell(f"stopped: {ended} of {len(todo)} points ended and are kept; the same command goes on")
        raise


def gather(points: Points, out: Path) -> Path | None:
    """Write ``results.parquet``: the rows of every point that is done, its name and parameters in front of them.

    Columns ``sweep.point`` and ``param.<name>`` cannot clash with a result's own, which must not begin like that.
    A column of values of several kinds, lists or mappings is kept as JSON text. None, and no file, without rows.
    A point whose result cannot be read has failed.
    """
    path, tables = out / "results.parquet", []
    for place, point in points.items():
        try:
            found = read_result(place)  # that of a point under way lies in a folder of another name
        except (ValueError, OSError) as error:  # not as a run left it: kept apart, and the point has failed
            apart = place.with_name(place.name + ".corrupt")
            shutil.rmtree(apart, ignore_errors=True)
            place.rename(apart)
            told = f"its result cannot be read, {sentence(error)}; it was moved to {apart}\n"
            write_text(_error_file(place), told)
            continue
        if found is not None and len(found):
            front = {"sweep.point": place.name} | {f"param.{name}": value for name, value in point.items()}
            columns = {name: pd.Series([value] * len(found), dtype=object) for name, value in front.items()}
            tables.append(pd.concat([pd.DataFrame(columns), found.reset_index(drop=True)], axis=1))
    if not tables:
        path.unlink(missing_ok=True)
        return None
    whole = pd.concat([table.astype(object) for table in tables], ignore_index=True)
    return write_table(path, pd.DataFrame({name: _column(whole[name]) for name in whole}))


def _column(values: pd.Series) -> pd.Series:
    """A column that a Parquet file can hold: values of one kind as they are, else as JSON text."""
    kind = infer_dtype(values, skipna=True)
    if kind in ("integer", "floating", "mixed-integer-float"):
        return pd.to_numeric(values)
    if not kind.startswith("mixed"):
        return values.infer_objects()
    plain = partial(json.dumps, default=lambda value: getattr(value, "tolist", value.__str__)())
    return values.map(plain, na_action="ignore")


def _page(grid: Grid, points: Points, out: Path) -> Path:
    """Write ``summary.html``: the column that the grid shows against its first axis, and a table of the points."""
    rows = [
        {"state": _state(place)}
        | {axis: _brief(point, [axis]).partition("=")[2] for axis in grid.axes}
        | ({"error": _why(place)} if _state(place) == "failed" else {})
        for place, point in points.items()
    ]
    states = [row["state"] for row in rows]
    told = ", ".join(f"{states.count(name)} {name}" for name in ("done", "failed", "left"))
    title = html.escape(grid.notebook.stem)
    table = pd.DataFrame(rows).to_html(index=False, na_rep="", max_rows=MOST_ROWS)
    style = "body { font-family: sans-serif; max-width: 54rem; margin: auto } img { width: 100% }"
    head = f'{ALONE}<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    text = f"<h1>{title}</h1><p>{len(rows)} points: {told}; their results are in results.parquet.</p>"
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{text}{_picture(grid, out)}{table}</body></html>\n'
    return write_text(out / "summary.html", page)


def _picture(grid: Grid, out: Path) -> str:
    """The shown column against the first axis, one series for each combination of the others; empty without any."""
    from kinetics_lab.book import charts
    from kinetics_lab.book.charts.html import mimebundle

    path = out / "results.parquet"
    found = pd.read_parquet(path) if path.exists() else pd.DataFrame()
    if grid.show not in found or not is_numeric_dtype(found[grid.show]):
        return ""
    x, *others = grid.axes
    each = ", ".join(others) or "points"
    words = found[[f"param.{name}" for name in others]].astype(str).agg(", ".join, axis=1)
    rows = pd.DataFrame({x: found[f"param.{x}"], grid.show: found[grid.show], each: words if others else ""})
    rows = rows[rows[each].isin(rows[each].unique()[:MOST_SERIES])].dropna()
    about = f"{grid.show} against {x}, for each combination of the other axes"
    if is_numeric_dtype(rows[x]):
        rows = rows.sort_values(x, kind="stable")
        titles: Any = {"x_title": x, "y_title": grid.show, "description": about}
        chart = charts.lines(rows, x, grid.show, each, points=True, **titles)
    else:
        chart = charts.compare(rows, x, grid.show, each, x_title=grid.show, description=about)
    png = mimebundle(chart.to_dict()).get("image/png")  # where vl-convert is installed
    return f'<img alt="{html.escape(about)}" src="data:image/png;base64,{png}">' if png else ""
