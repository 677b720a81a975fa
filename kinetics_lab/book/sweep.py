"""A sweep: every point of a grid as one notebook run in a folder of its own, resumed where it was stopped.

``OUT`` holds ``sweep.json`` (the grid, which marks the folder as a sweep's), ``points/<name>/`` (a run folder for
each point done), ``points/<name>.error.txt`` (why one failed), ``runs.jsonl`` (a line for each run),
``results.parquet`` (the points' results) and ``summary/`` (a page about it all). A point's name is its notebook's
and a hash of all that its result depends on: changed code or data make new points, and no parameter is ever part
of a path. The folders alone tell what is done; killed at any instant, a sweep loses the points under way.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinetics_lab.book import sweep_points
from kinetics_lab.book.grids import Grid, brief, read_grid
from kinetics_lab.book.runs import declared_result, project_root, run_keys, versions
from kinetics_lab.book.sweep_points import Line, line_of, state
from kinetics_lab.book.sweep_report import KIND, gather, read_log, summarize
from kinetics_lab.errors import among, require
from kinetics_lab.files import at_path, is_ours, locked, write_text

EXECUTORS = ("local", "dask")


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
    grid = read_grid(grid_path)
    return [
        f"{state(Path(out, 'points', name)):6}  {name}  {brief(p, p)}" for name, p in _named(grid).items()
    ]


def sweep(
    grid_path: Path | str,
    out: Path | str,
    *,
    executor: str = "local",
    workers: int = 2,
    scheduler: str | None = None,
    resources: Mapping[str, float] | None = None,
    retry: bool = False,
    progress: bool = True,
    summary: bool = True,
) -> SweepResult:
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
    if executor == "dask":
        sweep_points.need_dask()

    def tell(text: str) -> None:
        if progress:
            print(text, file=sys.stderr, flush=True)

    grid, out = read_grid(grid_path), Path(os.path.abspath(out))
    declared_result(grid.notebook)  # a wrong declaration is no point's fault
    with _claimed(out):
        points = _named(grid)
        _write_marker(out, grid, points)
        log = _Log(out)
        states = {name: state(out / "points" / name) for name in points}
        for name, known in states.items():
            if known != "left" and (name, known) not in log.seen:  # killed between a folder and its line
                log.add(line_of(out / "points" / name, points[name]))
        todo = [name for name, known in states.items() if known == "left" or (retry and known == "failed")]
        if todo:
            gather(out)  # of what was stopped: no table of another grid or older code is left to be read
        notebook = str(grid.notebook.resolve())
        tasks = [
            {
                "notebook": notebook,
                "parameters": points[name],
                "place": str(out / "points" / name),
                "key": name.rpartition("-")[2],
            }
            for name in todo
        ]
        lines = (
            sweep_points.local(tasks, workers)
            if executor == "local"
            else sweep_points.dask(tasks, workers, scheduler, resources or {}, tell)
        )
        watch = _Watch(grid, states, todo, workers, log.mean_seconds(points), tell)
        try:
            with closing(lines):  # type: ignore[type-var]
                for line in lines if tasks else ():
                    log.add(line)
                    watch.ended(line)
        except BaseException:
            again = ["kinetics-lab", "sweep", str(grid_path), "-o", str(out), "--executor", executor]
            again += ["--scheduler", scheduler] if scheduler else ["--workers", str(workers)]
            if resources:
                again += ["--resources", *(f"{name}={amount:g}" for name, amount in resources.items())]
            again += ["--retry"] * retry
            tell(f"stopped: {watch.counts()}; what is done is kept, go on with\n  {shlex.join(again)}")
            raise
        results = gather(out)
        pages = summarize(out) if summary else []
    failed = {
        name: line_of(out / "points" / name, {})["error"] for name in states if states[name] == "failed"
    }
    return SweepResult(out, len(points), sum(s == "done" for s in states.values()), failed, results, pages)


# ---- the folder -----------------------------------------------------------------------------------------------


def _named(grid: Grid) -> dict[str, dict[str, Any]]:
    """The points' parameters by name."""
    keys = run_keys(grid.notebook, grid.points)
    return {f"{grid.notebook.stem}-{key}": point for key, point in zip(keys, grid.points, strict=True)}


def _claimed(out: Path) -> AbstractContextManager[None]:
    """Hold the folder for one sweep: it is a sweep's, or empty, or made now."""
    if not is_ours(out, "sweep.json", KIND):
        raise FileExistsError(f"{out} exists and is not a sweep's folder; give another place for the sweep")
    busy = FileExistsError(f"another sweep is at work in {out}; wait for it or give another place")
    return locked(out / ".lock", busy)


def _write_marker(out: Path, grid: Grid, points: Mapping[str, dict[str, Any]]) -> None:
    """``sweep.json``: what the summary and a later sweep need to know of this one."""
    root = project_root(grid.notebook)
    facts = {
        "kind": KIND,
        "grid": grid.path.name,
        "notebook": os.path.relpath(grid.notebook.resolve(), root),
        "axes": grid.axes,
        "show": grid.show,
        "versions": versions(),
        "points": points,
    }
    write_text(out / "sweep.json", json.dumps(facts, indent=1) + "\n")


class _Log:
    """``runs.jsonl``: whole lines only; one that a kill has torn is cut off before the next is written."""

    def __init__(self, out: Path) -> None:
        self.path = out / "runs.jsonl"
        self.lines = read_log(out)
        self.seen = {(line["name"], line["state"]) for line in self.lines}
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def add(self, line: Line) -> None:
        with at_path(self.path), self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def mean_seconds(self, names: Iterable[str]) -> float | None:
        """Mean time of the runs of these points, None where none is known."""
        known = set(names)
        seconds = [line["seconds"] for line in self.lines if line["name"] in known and "seconds" in line]
        return sum(seconds) / len(seconds) if seconds else None


class _Watch:
    """Progress over the grid: a line for each point that ends, with the time left."""

    def __init__(
        self,
        grid: Grid,
        states: dict[str, str],
        todo: list[str],
        workers: int,
        mean: float | None,
        tell: Callable[[str], None],
    ) -> None:
        self.axes, self.states, self.workers, self.tell = list(grid.axes), states, workers, tell
        self.left, self.seconds = set(todo), list[float]()
        kept = sum(known == "failed" for name, known in states.items() if name not in self.left)
        note = f"; {kept} failed before and stay so (--retry runs them again)" if kept else ""
        self.total = len(states)
        ends = self._ends(mean) if mean and todo else ""
        self.tell(f"{grid.notebook.stem}: {self.total} points, {len(todo)} to run{ends}{note}")

    def ended(self, line: Line) -> None:
        self.states[line["name"]] = line["state"]
        self.left.discard(line["name"])
        self.seconds.append(line.get("seconds", 0.0))
        took = f"{line.get('seconds', 0):.1f} s"
        what = took if line["state"] == "done" else f"FAILED after {took}: {line['error'][:300]}"
        mean = sum(self.seconds) / len(self.seconds)
        self.tell(
            f"[{self.total - len(self.left)}/{self.total}] {brief(line['parameters'], self.axes)}: {what}"
            f" ({self.counts()}{self._ends(mean) if self.left else ''})"
        )

    def counts(self) -> str:
        done, failed = (sum(known == what for known in self.states.values()) for what in ("done", "failed"))
        return f"{done} done, {failed} failed, {self.total - done - failed} left"

    def _ends(self, mean: float) -> str:
        """Time left, as words: each worker has as many points to run as the others."""
        seconds = mean * -(-len(self.left) // self.workers)
        unit, size = next(((u, s) for u, s in (("h", 3600), ("min", 60)) if seconds >= 2 * s), ("s", 1))
        return f", about {seconds / size:.0f} {unit}"
