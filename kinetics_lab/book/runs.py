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
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event
from typing import Any

from kinetics_lab.book.parameters import check_parameters, read_notebook, read_parameters
from kinetics_lab.book.results import ROW, TABLE
from kinetics_lab.data import data_dir
from kinetics_lab.errors import among
from kinetics_lab.files import at_path, is_ours, locked, write_text

LIBRARIES = ("altair", "ipykernel", "numpy", "pandas", "papermill", "pyarrow", "scipy", "vl-convert-python")
# modules no notebook calls: changing them leaves every run valid
ROOF = (
    *(f"cli/{name}.py" for name in ("__init__", "__main__", "ask", "chapters", "machine", "shared")),
    *(f"book/{name}.py" for name in ("build", "grids", "sweep", "sweep_points", "sweep_report")),
)
KIND = "kinetics-lab run"
KEPT_RUNS = 4  # run folders kept per notebook in a cache: the newest by use
QUIET = {
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # silences the debugger's note on frozen modules
    "PYTHONHASHSEED": "0",  # sets print in one order on every run
}


class NotebookError(RuntimeError):
    """A notebook that raised, or whose kernel died; the message names notebook, cell and exception."""


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
    def claims(self) -> list[dict[str, Any]]:
        """What the notebook recorded, in order, each with the notebook's stem added."""
        path = self.folder / "claims.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [{"notebook": self.notebook.stem, **json.loads(line)} for line in lines]


def project_root(path: Path | str) -> Path:
    """Nearest folder above ``path`` with a ``pyproject.toml`` or ``_config.yml``, else the file's own folder."""
    path = Path(path).resolve()
    for folder in path.parents:
        if (folder / "pyproject.toml").exists() or (folder / "_config.yml").exists():
            return folder
    return path.parent


# ---- the key of a run -----------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Python's version and those of the libraries whose output a notebook shows."""
    found = {"python": platform.python_version()}
    for name in ("kinetics-lab", *LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def source_digest(root: Path) -> str:
    """Hash of what every notebook may import or read: package and kernel source, the data manifest, measured rows."""
    package = Path(__file__).parents[1]
    files = [p for p in package.rglob("*.py") if p.relative_to(package).as_posix() not in ROOF]
    files += (root / "kernels" / "kinetics_kernels").rglob("*.py")
    files += [*data_dir().glob("MANIFEST.toml"), *data_dir().glob("measurements/*/*.parquet")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def run_keys(notebook: Path | str, sets: Iterable[Mapping[str, Any]], extra: Iterable[str] = ()) -> list[str]:
    """Twelve hex digits for each set of parameters, which change when the run's result may.

    They depend on the notebook's text, the parameters, the source, the data, the versions and ``extra``.
    """
    cells = [[c.cell_type, c.source, c.metadata] for c in read_notebook(notebook).cells]
    source, libraries = source_digest(project_root(notebook)), versions()
    facts = ([cells, dict(parameters), source, libraries, list(extra)] for parameters in sets)
    texts = (json.dumps(fact, sort_keys=True, default=str) for fact in facts)
    return [hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts]


def run_key(notebook: Path | str, parameters: Mapping[str, Any], extra: Iterable[str] = ()) -> str:
    """The key of one run, as :func:`run_keys` has it."""
    return run_keys(notebook, [parameters], extra)[0]


# ---- one run --------------------------------------------------------------------------------------------------


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


@contextmanager
def _kernel_manager(
    env: Mapping[str, str], cwd: Path, started: Callable[[int], None] | None
) -> Iterator[type]:
    """A kernel manager class whose kernels get ``env``, start in ``cwd`` and talk through sockets in a short folder.

    ``started`` hears of the kernel's process id, which is its process group as well.
    """
    from jupyter_client.manager import AsyncKernelManager

    with tempfile.TemporaryDirectory(prefix="kl-") as sockets:  # a Unix socket's path has room for 107 bytes

        class RunKernelManager(AsyncKernelManager):
            def __init__(self, **kwargs: Any) -> None:
                # ipc: no port is picked beforehand, so parallel runs cannot race for one
                super().__init__(transport="ipc", connection_file=f"{sockets}/kernel.json", **kwargs)

            async def start_kernel(self, **kwargs: Any) -> None:  # type: ignore[override]
                await super().start_kernel(
                    **kwargs | {"env": os.environ | QUIET | dict(env), "cwd": str(cwd)}
                )
                if started is not None:
                    started(self.provisioner.pid)  # type: ignore[union-attr]

        yield RunKernelManager


def _tidy(executed: Path, notebook: Path, root: Path) -> None:
    """Drop machine paths and chance from an executed notebook: two runs then differ only in timestamps."""
    import nbformat

    book = nbformat.read(executed, as_version=4)
    book.metadata.papermill.input_path = os.path.relpath(notebook.resolve(), root)
    book.metadata.papermill.output_path = notebook.name
    for cell in book.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
    nbformat.write(book, executed)


def run_notebook(
    notebook: Path | str,
    parameters: Mapping[str, Any] | None = None,
    *,
    out: Path | str,
    kernel: str = "python3",
    progress: bool = True,
    env: Mapping[str, str] | None = None,
    key: str | None = None,
    started: Callable[[int], None] | None = None,
) -> RunResult:
    """Execute a notebook with papermill into the run folder ``out``, replacing an earlier run there.

    The kernel starts in the project's root and finds the folder under way in ``KINETICS_RUN_DIR``; ``env`` adds to
    its environment; ``started`` is called with its process id. Raises ValueError (parameter, kernel),
    FileExistsError (``out`` holds something else), OSError with a path, or NotebookError (a cell raised, or the
    declared result was not handed over; ``<out>.part`` keeps the half-executed notebook).
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
    with at_path(part):
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
        with _kernel_manager({**(env or {}), "KINETICS_RUN_DIR": str(part)}, root, started) as manager:
            _execute(notebook, parameters, part, kernel, progress, manager)
        if result and not (part / result).exists():
            raise NotebookError(f"{notebook} declares {result} and did not hand it over; the run is {part}")
        seconds = round(time.perf_counter() - began, 2)
        _tidy(part / notebook.name, notebook, root)
        _write_record(part, record | {"seconds": seconds})
        _remove(out)
        part.rename(out)
    return RunResult(notebook, out, str(record["key"]), seconds)


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")


def _execute(
    notebook: Path, parameters: Mapping[str, Any], part: Path, kernel: str, progress: bool, manager: type
) -> None:
    """Run every cell with papermill; a cell that raises and a kernel that dies end in NotebookError."""
    import papermill
    from nbclient.exceptions import CellControlSignal

    executed = part / notebook.name
    try:
        papermill.execute_notebook(
            str(notebook.resolve()),
            str(executed),
            parameters,
            kernel_name=kernel,
            language="python",
            progress_bar=progress,
            kernel_manager_class=manager,
            shutdown_kernel="immediate",  # a polite request gets lost now and then and costs 2.5 s
        )
    except papermill.PapermillExecutionError as error:
        number = error.cell_index + (0 if parameters else 1)  # papermill put one cell in for parameters
        cell = f"cell {number} ({error.source.strip().splitlines()[0]!r}...)"
        told = f"{notebook}: {cell} raised {error.ename}: {error.evalue}; the run so far is {executed}"
        raise NotebookError(told) from error
    except (CellControlSignal, RuntimeError) as error:
        told = f"{notebook}: the kernel failed: {error}; the run so far is {executed}"
        raise NotebookError(told) from error


# ---- all runs of the book -------------------------------------------------------------------------------------


def _cached(notebook: Path, parameters: Mapping[str, Any], cache: Path, claims: Path | None) -> RunResult:
    """The run of this notebook in the cache, executed if it is not there yet."""
    extra = [hashlib.sha256(claims.read_bytes()).hexdigest()] if claims else []
    key = run_key(notebook, parameters, extra)
    folder = cache / f"{notebook.stem}-{key}"
    with locked(cache / ".locks" / notebook.stem):
        if (folder / "run.json").exists():
            os.utime(folder)
            seconds = json.loads((folder / "run.json").read_text(encoding="utf-8"))["seconds"]
            return RunResult(notebook, folder, key, seconds, reused=True)
        env = {"KINETICS_CLAIMS": str(claims)} if claims else {}
        result = run_notebook(notebook, parameters, out=folder, progress=False, env=env, key=key)
        earlier = [p for p in cache.glob(f"{notebook.stem}-{'[0-9a-f]' * 12}*") if p != folder and _is_run(p)]
        earlier.sort(key=lambda p: (p.suffix != ".part", p.stat().st_mtime))  # unfinished ones go first
        for stale in earlier[: 1 - KEPT_RUNS]:
            _remove(stale)
    return result


def collects_claims(notebook: Path | str) -> bool:
    """Whether the notebook reads the claims of all others (metadata ``kinetics: {collects_claims: true}``)."""
    return bool(read_notebook(notebook).metadata.get("kinetics", {}).get("collects_claims", False))


def declared_result(notebook: Path | str) -> str | None:
    """The file in which the notebook hands over its result (metadata ``kinetics: {result: ...}``), if it does."""
    name = read_notebook(notebook).metadata.get("kinetics", {}).get("result")
    if name is not None and name not in (TABLE, ROW):
        raise ValueError(f"{notebook}: the declared result must be {TABLE} or {ROW}; got {name!r}")
    return name


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

    # set in the worker itself, which would else start the next run before this thread hears of it
    broken = Event()

    def run(path: Path, claims: Path | None) -> RunResult:
        if broken.is_set():
            raise CancelledError
        try:
            return _cached(path, parameters[path.stem], cache, claims)
        except NotebookError:
            raise
        except BaseException:
            broken.set()
            raise

    def execute(batch: list[Path], claims: Path | None) -> None:
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            futures = {pool.submit(run, path, claims): path for path in batch}
            try:
                for future in as_completed(futures):
                    report(futures[future], future)
            except BaseException:  # Ctrl-C, a full disk: what is under way ends, the rest never starts
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def report(path: Path, future: Future[RunResult]) -> None:
        try:
            results[path] = result = future.result()
            note = "kept" if result.reused else f"{result.seconds:.1f} s"
        except CancelledError:
            return  # the run that broke speaks for itself
        except NotebookError as error:
            failures.append(str(error))
            note = "failed"
        print(f"[{len(results) + len(failures)}/{len(paths)}] {path.stem} {note}", flush=True)

    collectors = [path for path in paths if collects_claims(path)]
    execute([path for path in paths if path not in collectors], None)
    if collectors and not failures:
        claims = (claim for path in paths if path in results for claim in results[path].claims)
        lines = "".join(json.dumps(claim) + "\n" for claim in claims)
        merged = cache / f"claims-{hashlib.sha256(lines.encode()).hexdigest()[:12]}.jsonl"
        with locked(cache / ".locks" / "claims"):
            write_text(merged, lines)
            for stale in sorted(cache.glob("claims-*.jsonl"), key=lambda p: p.stat().st_mtime)[:-KEPT_RUNS]:
                stale.unlink()
        execute(collectors, merged)
    if failures:
        raise NotebookError("\n".join(failures))
    return [results[path] for path in paths]
