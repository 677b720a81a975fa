"""A sweep's points where they run: one point as a notebook run, kernels of this machine, workers of a dask cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any

from kinetics_lab.book.runs import NotebookError, run_key, run_notebook
from kinetics_lab.errors import require
from kinetics_lab.files import locked, write_text

Task = dict[str, Any]  # arguments of run_point
Line = dict[str, Any]  # what the log says of a run: name, parameters, state, date, seconds, host, error


class SourceChangedError(RuntimeError):
    """Notebook, package or data changed while a sweep was under way, or a worker has others."""


# ---- one point ------------------------------------------------------------------------------------------------


def error_file(place: Path) -> Path:
    """Where the traceback of a point lies that failed."""
    return place.with_name(place.name + ".error.txt")


def state(place: Path) -> str:
    """``done``, ``failed`` or ``left``: what the folders say of a point."""
    if (place / "run.json").exists():
        return "done"
    return "failed" if error_file(place).exists() else "left"


def line_of(place: Path, parameters: Mapping[str, Any]) -> Line:
    """The log's line of a point that is done or has failed, as far as the folders tell."""
    line: Line = {"name": place.name, "parameters": dict(parameters), "state": state(place)}
    if line["state"] == "failed":
        return line | {"error": error_file(place).read_text(encoding="utf-8").partition("\n")[0]}
    record = json.loads((place / "run.json").read_text(encoding="utf-8"))
    return line | {"date": record["date"], "seconds": record["seconds"]}


def run_point(
    notebook: str,
    parameters: Mapping[str, Any],
    place: str,
    key: str,
    env: Mapping[str, str] | None = None,
    stopping: Event | None = None,
    started: Callable[[int], None] | None = None,
) -> Line:
    """Run one point into the folder ``place``; returns its line for the log.

    A notebook that fails leaves its traceback beside the folder. Raises SourceChangedError where the code here gives
    another key, CancelledError where ``stopping`` was set meanwhile, OSError with the path at fault.
    """
    folder, began = Path(place), time.perf_counter()

    def check() -> None:
        if run_key(notebook, parameters) != key:
            raise SourceChangedError(
                f"{notebook}, the package or the data changed since the sweep began, or differ on "
                f"{socket.gethostname()}: the same command goes on, and runs anew what depends on them"
            )

    with locked(folder.parent / ".locks" / folder.name):  # a worker that was given up may still be at it
        if state(folder) == "done":
            return line_of(folder, parameters)
        check()
        error_file(folder).unlink(missing_ok=True)
        ended: Line = {}
        try:
            run_notebook(notebook, parameters, out=folder, progress=False, env=env, key=key, started=started)
        except NotebookError as error:
            if stopping is not None and stopping.is_set():
                raise CancelledError from error
            told = f"{error}\n\n{''.join(traceback.format_exception(error))}"
            write_text(error_file(folder), told)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            ended = {"date": now, "seconds": round(time.perf_counter() - began, 2)}
        else:
            try:
                check()
            except SourceChangedError:
                shutil.rmtree(folder)
                raise
        return line_of(folder, parameters) | ended | {"host": socket.gethostname()}


# ---- executors ------------------------------------------------------------------------------------------------


def local(tasks: list[Task], workers: int) -> Iterator[Line]:
    """Lines of points as they end, ``workers`` kernels at a time; whatever stops this kills the kernels under way."""
    stopping, kernels = Event(), set[int]()

    def kill(kernel: int) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(kernel, signal.SIGKILL)

    def run(task: Task) -> Line:
        mine: list[int] = []

        def started(kernel: int) -> None:
            mine.append(kernel)
            kernels.add(kernel)
            if stopping.is_set():
                kill(kernel)

        if stopping.is_set():
            raise CancelledError
        try:
            return run_point(**task, stopping=stopping, started=started)
        except BaseException:  # no point's own failure: no other may start before the sweep hears of it
            stopping.set()
            raise
        finally:
            kernels.difference_update(mine)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, task) for task in tasks]
        try:
            for future in as_completed(futures):
                # what broke the sweep speaks for itself
                if not isinstance(future.exception(), CancelledError):
                    yield future.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for kernel in list(kernels):
                kill(kernel)
            raise


def need_dask() -> None:
    """Raise ValueError where dask.distributed is not installed."""
    if find_spec("distributed") is None:
        raise ValueError("executor dask needs dask.distributed: pip install 'kinetics-lab[cluster]'")


def dask(
    tasks: list[Task],
    workers: int,
    scheduler: str | None,
    resources: Mapping[str, float],
    tell: Callable[[str], None],
) -> Iterator[Line]:
    """Lines of points as they end on dask workers: the scheduler's, or ``workers`` processes of this machine."""
    from distributed import Client, KilledWorker, LocalCluster
    from distributed import as_completed as completed

    devices = [] if scheduler else _devices(workers, resources)
    with ExitStack() as stack:
        cluster: Any = scheduler or stack.enter_context(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=40,  # logging.ERROR
                resources=dict(resources) or None,
            )
        )
        client = stack.enter_context(Client(cluster))
        offers = [each["resources"] for each in client.scheduler_info(n_workers=-1)["workers"].values()]
        if not any(all(offer.get(k, 0) >= v for k, v in resources.items()) for offer in offers):
            wanted = " with " + ", ".join(f"{k}={v:g}" for k, v in resources.items()) if resources else ""
            tell(f"waiting for a worker{wanted}: the scheduler has none yet")
        futures = [
            client.submit(_on_dask, task, devices, pure=False, resources=dict(resources) or None)
            for task in tasks
        ]
        try:
            for future in completed(futures):
                yield future.result()
        except (KilledWorker, CancelledError) as error:  # out of memory, say, or the scheduler is gone
            raise RuntimeError(f"the cluster gave a point up: {error}") from error
        finally:
            client.cancel(futures)


def _on_dask(task: Task, devices: list[str]) -> Line:
    """Run a point on a dask worker; of ``devices`` the worker with number i has the i-th."""
    from distributed import get_worker

    env = {"CUDA_VISIBLE_DEVICES": devices[int(get_worker().name)]} if devices else None
    return run_point(**task, env=env)


def _devices(workers: int, resources: Mapping[str, float]) -> list[str]:
    """Which GPUs each worker of this machine has, as CUDA_VISIBLE_DEVICES; none where points take no GPU."""
    amount = resources.get("GPU", 0)
    require(float(amount).is_integer() and amount >= 0, "resource GPU must be a whole number", amount)
    each, visible = int(amount), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(workers * each)]
    rule = f"{workers} workers with {each} GPU each need {workers * each} devices in CUDA_VISIBLE_DEVICES"
    require(len(names) >= workers * each, rule, visible)
    return [",".join(names[i * each : (i + 1) * each]) for i in range(workers)] if each else []
