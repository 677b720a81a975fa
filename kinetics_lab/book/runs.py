"""Executed notebooks: one run in its own folder, and a cache of runs that the tests and the book share.

A run folder holds ``<name>.ipynb`` (executed), ``run.json`` (what was run, with which versions, how long) and,
where the notebook recorded claims, ``claims.jsonl``. It is written as ``<folder>.part`` and renamed when every
cell has run, so a folder without ``.part`` is always whole; a failed run leaves its ``.part`` to be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any

from kinetics_lab.book.execute import QUIET, NotebookError, execute, local_workers, outcomes
from kinetics_lab.book.imports import dependencies
from kinetics_lab.book.parameters import check_parameters, project_root, read_notebook, read_parameters
from kinetics_lab.book.results import collects_claims, declared_result
from kinetics_lab.errors import among, require
from kinetics_lab.files import at_path, is_ours, locked, sole_writer, write_text

LIBRARIES = ("altair", "ipykernel", "numpy", "pandas", "papermill", "pyarrow", "scipy", "vl-convert-python")
KIND = "kinetics-lab run"
KEPT_RUNS = 4  # run folders kept per notebook in a cache: the newest by use


class SourceChangedError(RuntimeError):
    """What a run depends on changed while it was under way, or differs on the machine that runs it."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: ``folder`` holds it, ``executed`` is the notebook with its outputs, ``seconds`` its wall time."""

    notebook: Path
    folder: Path
    key: str
    seconds: float
    reused: bool = False

    @property
    def executed(self) -> Path:
        return self.folder / self.notebook.name

    @property
    def claims(self) -> str:
        """What the notebook recorded, in order, a line of JSON each."""
        path = self.folder / "claims.jsonl"
        return path.read_text(encoding="utf-8") if path.exists() else ""


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the libraries whose output a notebook shows."""
    found = {"python": platform.python_version()}
    for name in ("kinetics-lab", *LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def run_keys(notebook: Path | str, sets: Iterable[Mapping[str, Any]], extra: Iterable[str] = ()) -> list[str]:
    """Twelve hex digits for each set of parameters, which change when the run's result may.

    They depend on the notebook's text, the parameters, the versions, ``extra`` and whatever the code depends on
    (:func:`kinetics_lab.book.imports.dependencies`); of a notebook that collects claims on all notebooks beside it.
    """
    notebook, book, sets = Path(notebook), read_notebook(notebook), list(sets)
    cells = [[c.cell_type, c.source, c.metadata] for c in book.cells]
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    about = book.metadata.get("kinetics", {})
    beside = sorted(notebook.parent.glob("*.ipynb")) if about.get("collects_claims") else []
    others = [[path.name, *(cell.source for cell in read_notebook(path).cells)] for path in beside]
    told = [cells, about, versions(), QUIET, list(extra), others]
    needs = dependencies(code, sets, project_root(notebook))
    common = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    keys, last, shared = list[str](), dict[str, str](), common
    written = json.JSONEncoder(sort_keys=True, default=str).encode
    for parameters, needed in zip(sets, needs, strict=True):
        if needed is not last and needed != last:
            last, shared = needed, common + json.dumps(needed, sort_keys=True)
        keys.append(hashlib.sha256((shared + written(dict(parameters))).encode()).hexdigest()[:12])
    return keys


def run_key(notebook: Path | str, parameters: Mapping[str, Any], extra: Iterable[str] = ()) -> str:
    """The key of one run, as :func:`run_keys` has it."""
    return run_keys(notebook, [parameters], extra)[0]


def _is_run(folder: Path) -> bool:
    """Whether the folder is a run's (or empty, or not there), so that it may be replaced."""
    return not folder.is_file() and is_ours(folder, "run.json", KIND)


def _remove(folder: Path) -> None:
    """Delete a run folder, its record last: killed on the way, the rest is still known as a run."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "run.json":
            path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def run_notebook(
    notebook: Path | str, parameters: Mapping[str, Any] | None = None, *, out: Path | str, kernel: str = "python3",
    progress: bool = True, env: Mapping[str, str] | None = None, key: str | None = None,
    started: Callable[[int], None] | None = None,
) -> RunResult:  # fmt: skip
    """Execute a notebook with papermill into the run folder ``out``, replacing an earlier run there.

    The kernel starts in the project's root and finds the folder under way in ``KINETICS_RUN_DIR``; ``env`` adds to
    its environment; ``started`` is called with its process id. Raises ValueError (parameter, kernel),
    FileExistsError (``out`` holds something else, or another process writes it), OSError with a path, or NotebookError
    (a cell raised, or the declared result was not handed over; ``<out>.part`` keeps the half-executed notebook).
    """
    from jupyter_client.kernelspec import KernelSpecManager

    notebook, out = Path(notebook), Path(os.path.abspath(out))
    parameters = check_parameters(notebook, parameters or {})
    result = declared_result(notebook)
    among(sorted(KernelSpecManager().find_kernel_specs()), kernel, "kernel")
    part, root = out.with_name(out.name + ".part"), project_root(notebook)
    for folder in (out, part):
        if not _is_run(folder):
            raise FileExistsError(f"{folder} exists and is not a run folder; give another place for the run")
    with at_path(part), nullcontext() if key else sole_writer(out):  # a cache has locked it
        _remove(part)
        part.mkdir(parents=True)
        record = {
            "kind": KIND,
            "notebook": os.path.relpath(notebook.resolve(), root),
            "parameters": parameters,
            "key": key or run_key(notebook, parameters),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        _write_record(part, record)
        began = time.perf_counter()
        given = {**(env or {}), "KINETICS_RUN_DIR": str(part)}
        execute(notebook, parameters, part, root, given, started, kernel=kernel, progress=progress)
        if result and not (part / result).exists():
            raise NotebookError(f"{notebook} declares {result} and did not hand it over; the run is {part}")
        seconds = round(time.perf_counter() - began, 2)
        _write_record(part, record | {"seconds": seconds})
        _remove(out)
        part.rename(out)
    return RunResult(notebook, out, str(record["key"]), seconds)


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")


def cached_run(
    notebook: Path, parameters: Mapping[str, Any], cache: Path, *, key: str | None = None, claims: Path | None = None,
    keep: int = KEPT_RUNS, env: Mapping[str, str] | None = None, started: Callable[[int], None] | None = None,
) -> RunResult:  # fmt: skip
    """The run of this notebook in the cache, executed if it is not there yet; of two callers the second waits.

    ``keep``: so many runs of the notebook stay (0: all, and runs of different keys do not wait for each other).
    Raises SourceChangedError, and keeps no run, where the key is not ``key`` or another one after the run; else what
    ``run_notebook`` does.
    """
    extra = [hashlib.sha256(claims.read_bytes()).hexdigest()] if claims else []

    def now() -> str:
        return run_key(notebook, parameters, extra)

    key = key or now()
    folder = cache / f"{notebook.stem}-{key}"
    with locked(cache / ".locks" / (notebook.stem if keep else folder.name)):
        if (folder / "run.json").exists():
            os.utime(folder)
            require(_is_run(folder), "the cache must hold runs; delete what is none", str(folder))
            seconds = json.loads((folder / "run.json").read_text(encoding="utf-8")).get("seconds", 0.0)
            return RunResult(notebook, folder, key, seconds, reused=True)
        told = f"{notebook}, or code or data that it depends on, changed since this began, or differs on {{}}"
        if now() != key:
            raise SourceChangedError(told.format(platform.node()))
        env = dict(env or {}) | ({"KINETICS_CLAIMS": str(claims)} if claims else {})
        result = run_notebook(
            notebook, parameters, out=folder, progress=False, env=env, key=key, started=started
        )
        if now() != key:
            _remove(folder)
            raise SourceChangedError(told.format(platform.node()))
        if keep:
            old = (p for p in cache.glob(f"{notebook.stem}-{'[0-9a-f]' * 12}*") if p != folder and _is_run(p))
            # unfinished ones go first
            for stale in sorted(old, key=lambda p: (p.suffix != ".part", p.stat().st_mtime))[: 1 - keep]:
                _remove(stale)
    return result


def execute_all(
    notebooks: Sequence[Path | str], params_file: Path | str | None, cache: Path | str, *, jobs: int = 2
) -> list[RunResult]:
    """Run the notebooks, ``jobs`` at a time, reusing runs in ``cache``; results come in the order given.

    Notebooks that collect claims run after the others and find the merged claims in the file ``KINETICS_CLAIMS``.
    Every notebook is tried; NotebookError then tells of all that failed. ValueError for a wrong parameter file.
    """
    paths, cache = [Path(n) for n in notebooks], Path(os.path.abspath(cache))
    everything = sorted({p for path in paths for p in path.parent.glob("*.ipynb")})
    parameters = read_parameters(params_file, everything)
    results: dict[Path, RunResult] = {}
    failures: list[str] = []

    def run(
        path: Path, claims: Path | None, *, stopping: Event, started: Callable[[int], None]
    ) -> RunResult | str:
        try:
            return cached_run(path, parameters[path.stem], cache, claims=claims, started=started)
        except NotebookError as error:
            if stopping.is_set():
                raise CancelledError from error
            return str(error)

    def execute_batch(batch: list[Path], claims: Path | None) -> None:
        with local_workers(jobs) as submit:
            for path, ended in outcomes({submit(run, path, claims): path for path in batch}):
                if isinstance(ended, str):
                    failures.append(ended)
                    note = "failed"
                else:
                    results[path] = ended
                    note = "kept" if ended.reused else f"{ended.seconds:.1f} s"
                print(f"[{len(results) + len(failures)}/{len(paths)}] {path.stem} {note}", flush=True)

    collectors = [path for path in paths if collects_claims(path)]
    execute_batch([path for path in paths if path not in collectors], None)
    if collectors and not failures:
        lines = "".join(results[path].claims for path in paths if path in results)
        merged = cache / f"claims-{hashlib.sha256(lines.encode()).hexdigest()[:12]}.jsonl"
        with locked(cache / ".locks" / "claims"):
            write_text(merged, lines)
            times = {path: path.stat().st_mtime for path in cache.glob("claims-*.jsonl")}
            past = sorted((path for path in times if times[path] <= times[merged]), key=times.__getitem__)
            for stale in {*times} - {merged, *past[-KEPT_RUNS:]}:  # later ones: from before a clock went back
                stale.unlink()
        execute_batch(collectors, merged)
    if failures:
        raise NotebookError("\n".join(failures))
    return [results[path] for path in paths]
