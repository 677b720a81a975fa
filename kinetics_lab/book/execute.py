"""One notebook executed by papermill: its kernel, its failures as one error; and workers that do many side by side."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from kinetics_lab.errors import absent, report, require

Submit = Callable[..., Future[Any]]  # takes a function and its arguments
What = TypeVar("What")

QUIET = {
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # silences the debugger's note on frozen modules
    "PYTHONHASHSEED": "0",  # sets print in one order on every run
}


class NotebookError(RuntimeError):
    """A notebook that raised, or whose kernel died; the message names notebook, cell and exception."""


@contextmanager
def kernel_manager(
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


def tidy(executed: Path, notebook: Path, root: Path) -> None:
    """Drop machine paths, addresses of objects and chance from an executed notebook: two runs differ only in times."""
    import nbformat

    book = nbformat.read(executed, as_version=4)
    book.metadata.papermill.input_path = os.path.relpath(notebook.resolve(), root)
    book.metadata.papermill.output_path = notebook.name
    for i, cell in enumerate(book.cells):
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
        for j, output in enumerate(cell.get("outputs", ())):
            told = output.get("data", output)
            for name in told.keys() & {"text/plain", "text"}:
                told[name] = re.sub(r" at 0x[0-9a-f]+", "", told[name])
            if drawn := re.search(r'<table id="(T_[0-9a-f]{5})"', told.get("text/html", "")):  # of pandas
                told["text/html"] = told["text/html"].replace(drawn[1], f"T_{i}_{j}")
    nbformat.write(book, executed)


def execute(
    notebook: Path, parameters: Mapping[str, Any], part: Path, root: Path, env: Mapping[str, str],
    started: Callable[[int], None] | None, *, kernel: str, progress: bool,
) -> None:  # fmt: skip
    """Run every cell with papermill, from ``root``; a cell that raises and a kernel that dies end in NotebookError."""
    import papermill
    from nbclient.exceptions import CellControlSignal
    from zmq import ZMQError

    executed = part / notebook.name
    files = str(notebook.resolve()), str(executed)
    # a polite request to the kernel to end gets lost now and then and costs 2.5 s
    options: dict[str, Any] = {"kernel_name": kernel, "language": "python", "shutdown_kernel": "immediate"}
    try:
        with kernel_manager(env, root, started) as manager:
            options |= {"progress_bar": progress, "kernel_manager_class": manager}
            papermill.execute_notebook(*files, parameters, **options)
    except papermill.PapermillExecutionError as error:
        number = error.cell_index + (0 if parameters else 1)  # papermill put one cell in for parameters
        cell = f"cell {number} ({error.source.strip().splitlines()[0]!r}...)"
        told = f"{notebook}: {cell} raised {error.ename}: {error.evalue}; the run so far is {executed}"
        raise NotebookError(told) from error
    except (CellControlSignal, RuntimeError, ZMQError) as error:
        told = f"{notebook}: the kernel failed: {error}; the run so far is {executed}"
        raise NotebookError(told) from error
    tidy(executed, notebook, root)


def outcomes(futures: Mapping[Future[Any], What]) -> Iterator[tuple[What, Any]]:
    """What was submitted and its result, as they end; raises the first exception that is not a mere cancelling."""
    for future in as_completed(futures):
        if future.cancelled() or not isinstance(future.exception(), CancelledError):
            yield futures[future], future.result()


@contextmanager
def local_workers(count: int) -> Iterator[Submit]:
    """So many threads, each for a kernel of its own; whatever stops this kills the kernels under way.

    Functions are called with ``stopping``, an event, and ``started``, which wants to hear of each kernel.
    """
    stopping, kernels = Event(), set[int]()

    def kill(kernel: int) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(kernel, signal.SIGKILL)

    def run(function: Callable[..., Any], *args: Any) -> Any:
        mine: list[int] = []

        def started(kernel: int) -> None:
            mine.append(kernel)
            kernels.add(kernel)
            if stopping.is_set():
                kill(kernel)

        if stopping.is_set():
            raise CancelledError
        try:
            return function(*args, stopping=stopping, started=started)
        except BaseException:  # no other may start before the caller hears of it
            stopping.set()
            raise
        finally:
            kernels.difference_update(mine)

    with ThreadPoolExecutor(count) as pool:
        try:
            yield lambda *call: pool.submit(run, *call)
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for kernel in list(kernels):
                kill(kernel)
            raise


def dask_workers(
    count: int, scheduler: str | None, resources: Mapping[str, float]
) -> AbstractContextManager[Submit]:
    """Workers of a dask scheduler, or so many processes of this machine, each with its own of the visible GPUs.

    Each call takes ``resources``; functions are called with ``env``, what their kernels' environment has besides.
    Raises ValueError without dask.distributed, or where the GPUs do not suffice.
    """
    if find_spec("distributed") is None:
        raise absent("distributed", "executor dask")
    amount = resources.get("GPU", 0)
    require(float(amount).is_integer() and amount >= 0, "resource GPU must be a whole number", amount)
    each, visible = int(amount), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(count * each)]
    rule = f"{count} workers with {each} GPU each need {count * each} devices in CUDA_VISIBLE_DEVICES"
    require(bool(scheduler) or len(names) >= count * each, rule, visible)
    own = each and not scheduler  # whoever starts a scheduler's workers sets their devices
    devices = [",".join(names[i * each : (i + 1) * each]) for i in range(count)] if own else []
    return _dask(count, scheduler, dict(resources) or None, devices)


@contextmanager
def _dask(
    count: int, scheduler: str | None, resources: dict[str, float] | None, devices: list[str]
) -> Iterator[Submit]:
    from distributed import Client, KilledWorker, LocalCluster

    options: dict[str, Any] = {"n_workers": count, "threads_per_worker": 1, "resources": resources}
    options |= {"dashboard_address": None, "silence_logs": "ERROR"}
    with ExitStack() as stack:
        cluster = scheduler or stack.enter_context(LocalCluster(**options))
        client = stack.enter_context(Client(cluster))
        offers = [each["resources"] for each in client.scheduler_info(n_workers=-1)["workers"].values()]
        wanted = resources or {}
        if not any(all(offer.get(name, 0) >= n for name, n in wanted.items()) for offer in offers):
            report(f"waiting for a worker: the scheduler has none with {wanted}")
        pool = client.get_executor(pure=False, resources=resources)
        try:
            yield partial(pool.submit, _on_dask, devices)
        except (KilledWorker, CancelledError) as error:  # out of memory, say, or the scheduler is gone
            raise RuntimeError(f"the cluster gave a point up: {error}") from error
        finally:
            pool.shutdown(wait=False)


def _on_dask(devices: list[str], function: Callable[..., Any], *args: Any) -> Any:
    """Call a function on a dask worker; of ``devices`` the worker with number i has the i-th."""
    from distributed import get_worker

    return function(*args, env={"CUDA_VISIBLE_DEVICES": devices[int(get_worker().name)]} if devices else {})
