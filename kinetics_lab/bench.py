"""The bench: how a time is taken, on which device and by which code.

The call is captured in a CUDA graph and replayed, where it can be captured. CUDA events stand around each replay;
before each, another buffer four times the L2 cache is *read*, which evicts the inputs without leaving writes for
the timed call to pay for. Calls that are compared are timed in alternation.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]
Row = dict[str, Any]
WARM_S = 0.15  # of load before a case is timed
CPU = "cpu-interpreter"  # label and folder of rehearsals on a CPU, which are not measurements
HOST = "host"  # this computer's own processor, timed in plain PyTorch and fp32: measurements


# ---- timing ---------------------------------------------------------------------------------------------------


def summary(seconds: Iterable[float], how: str) -> Row:
    """``us`` (median), ``p20_us`` and ``p80_us`` in microseconds, ``n`` repetitions, ``how``: graph, events, clock.

    Percentiles interpolate between neighbours.
    """
    sample = np.asarray(list(seconds), float) * 1e6
    p20, median, p80 = (float(x) for x in np.percentile(sample, [20, 50, 80]))
    return {"us": median, "p20_us": p20, "p80_us": p80, "n": len(sample), "how": how}


def sentence(error: Exception) -> str:
    """An exception's type and first line, at most 300 characters."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"[:300]


class CaptureError(RuntimeError):
    """A capture broke off. PyTorch's allocator and random numbers go on as if it lasted: end the process."""


def captured(call: Call) -> Any:
    """The call as a ``torch.cuda.CUDAGraph``, warmed up; None where it waits for the GPU, which no graph can hold.

    That is found out before a capture is begun. Raises :class:`CaptureError` where one breaks off all the same.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
        torch.cuda.synchronize()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls itself a prototype that does not see every wait
            torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            return None
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except Exception as error:
        raise CaptureError(f"the capture of a CUDA graph broke off: {sentence(error)}") from error
    return graph


class WallTimer:
    """The host's clock, for rehearsals on a CPU."""

    least, most, target_s = 2, 2, 0.0
    broken = ""  # why nothing can be timed in this process any more

    def warm(self) -> None:
        """Bring the device to speed."""

    def prepare(self, call: Call) -> tuple[Call, str]:
        """Warm up; returns what to run in its place, and how it is timed."""
        call()
        return call, "clock"

    def sample(self, run: Call, reset: Call) -> Any:
        """One repetition, to be read by :meth:`seconds`."""
        reset()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def seconds(self, sample: Any) -> float:
        """The time of one repetition, s."""
        return float(sample)


class CudaTimer(WallTimer):
    """CUDA events around graph replays, the L2 cache evicted before each."""

    least, most, target_s = 20, 100, 0.25

    def __init__(self) -> None:
        import torch

        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.randn(l2, device="cuda")  # fp32: four times the cache
        self.sink = torch.zeros((), device="cuda")

    def warm(self) -> None:
        """Keep the GPU busy for a while: its clocks fell while a case was compiled, and need tens of milliseconds."""
        import torch

        end = time.perf_counter() + WARM_S
        while time.perf_counter() < end:
            for _ in range(20):
                torch.sum(self.buffer, dim=0, out=self.sink)
            torch.cuda.synchronize()

    def prepare(self, call: Call) -> tuple[Call, str]:
        """Warm up, which compiles, and capture; a call that cannot be captured is timed as it is."""
        try:
            graph = captured(call)
        except CaptureError as error:
            self.broken = str(error)
            raise
        if graph is None:
            return call, "events"
        graph.replay()
        return graph.replay, "graph"

    def sample(self, run: Call, reset: Call) -> Any:
        """A pair of events, so that the host stays ahead of the GPU."""
        import torch

        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        reset()
        torch.sum(self.buffer, dim=0, out=self.sink)
        start.record()
        run()
        stop.record()
        return start, stop

    def seconds(self, sample: Any) -> float:
        """The time between the two events, s; waits for the second."""
        start, stop = sample
        stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e-3


def time_together(
    calls: Mapping[str, Call],
    timer: WallTimer,
    resets: Mapping[str, Call] | None = None,
    optional: Collection[str] = (),
) -> dict[str, Row]:
    """Time calls in alternation: each round runs every one once, so that clocks drift under all alike.

    ``resets[name]``, or else ``resets[""]``, runs untimed before each repetition of a call. One trial round
    and the timer's target decide how many rounds follow. An ``optional`` call that cannot be prepared leaves its
    ``error`` in place of times, and the others theirs.
    """
    resets = {"": lambda: None, **(resets or {})}
    reset = {name: resets.get(name, resets[""]) for name in calls}
    runs, failed = {}, {}
    for name, call in calls.items():
        reset[name]()
        try:
            runs[name] = timer.prepare(call)
        except Exception as error:
            if name not in optional or timer.broken:
                raise
            failed[name] = {"error": sentence(error)}
    timer.warm()
    trial_s = sum(timer.seconds(timer.sample(run, reset[name])) for name, (run, _) in runs.items())
    samples: dict[str, list[Any]] = {name: [] for name in runs}
    for _ in range(rounds(trial_s, timer)):
        for name, (run, _) in runs.items():
            samples[name].append(timer.sample(run, reset[name]))
    timed = {name: summary(map(timer.seconds, samples[name]), how) for name, (_, how) in runs.items()}
    return timed | failed


def rounds(round_s: float, timer: WallTimer | type[WallTimer]) -> int:
    """Rounds of ``round_s`` seconds that the timer's target allows, within its bounds."""
    return max(timer.least, min(timer.most, int(timer.target_s / max(round_s, 1e-9))))


# ---- device and code ------------------------------------------------------------------------------------------


def kernels_digest(device: str = "cuda") -> str:
    """Twelve hex digits of the source of the attention that is timed, by which rows of different code are told apart."""
    if device == HOST:
        return _digest([Path(__file__).with_name("host.py")])
    spec = importlib.util.find_spec("kinetics_kernels")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "kinetics_kernels cannot be imported: install kinetics-lab or set PYTHONPATH=kernels"
        )
    return _digest(sorted(Path(spec.submodule_search_locations[0]).glob("*.py")))


def _digest(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


def _output(*command: str) -> str | None:
    """A command's standard output, or None where there is no such command or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_state(device: str = "cuda") -> Row:
    """The code's part of the provenance. A copy without git may be told its ``commit`` by $KINETICS_COMMIT."""
    root = Path(__file__).resolve().parent.parent
    checkout = (root / "pyproject.toml").is_file() and (root / "kernels").is_dir()  # not a folder around us
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD") if checkout else None
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--", "kinetics_lab", "kernels")
    return {
        "commit": commit or os.environ.get("KINETICS_COMMIT", "unknown"),
        "dirty": None if commit is None else bool(changed),
        "kernels_digest": kernels_digest(device),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "flashinfer": _version("flashinfer-python"),
        "transformers": _version("transformers"),
    }


@dataclass
class Bench:
    """The device that measures: its name, its timer, its code."""

    device: str  # "cuda", HOST, or CPU for a rehearsal in Triton's interpreter
    gpu: str  # its name, or that of the processor
    timer: WallTimer
    uuid: str = ""
    floor_us: float | None = None  # what the timer says of a call that does next to nothing
    peers: dict[str, str] = field(default_factory=dict)  # name: "" where it has run, else why not
    code: Row = field(default_factory=code_state)  # read once: the code that runs, not the files of later

    @property
    def folder(self) -> str:
        """Name of the folder its rows go to: "nvidia-h200"."""
        return re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def on_host(self) -> bool:
        return self.device == HOST

    @property
    def kind(self) -> Row:
        """Arguments that make a tensor here: fp32 on a host; rehearsals in fp16, as the interpreter's bf16 is wrong."""
        import torch

        if self.on_gpu:
            return {"dtype": torch.bfloat16, "device": "cuda"}
        return {"dtype": torch.float32 if self.on_host else torch.float16, "device": "cpu"}

    def time(
        self,
        calls: Mapping[str, Call],
        resets: Mapping[str, Call] | None = None,
        optional: Collection[str] = (),
    ) -> Row:
        """Columns ``<call>_us``, ``_p20_us``, ``_p80_us``, ``_n`` and ``_how`` of calls timed in alternation.

        ``<call>_error`` in their place for an ``optional`` call that does not run.
        """
        timings = time_together(calls, self.timer, resets, optional)
        return {f"{name}_{key}": value for name, t in timings.items() for key, value in t.items()}

    def provenance(self) -> Row:
        """The columns that say where and by which code a row was measured, and the clocks at this moment."""
        query = ("--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader,nounits")
        seen = (_output("nvidia-smi", "-i", self.uuid, *query) if self.on_gpu else None) or ""
        driver, sm, memory = seen.split(", ") if seen.count(", ") == 2 else (None, "", "")
        clocks = {"sm_mhz": sm, "mem_mhz": memory}
        return {
            "device": self.device,
            "gpu": self.gpu,
            "driver": driver,
            **{name: int(mhz) if mhz.isdigit() else None for name, mhz in clocks.items()},
            "timer_floor_us": self.floor_us,
            **self.code,
        }

    def has_memory(self, needed: float) -> bool:
        """Whether ``needed`` bytes are free, after giving back what earlier cases left."""
        gc.collect()
        if self.on_host:
            from kinetics_lab import host

            return needed <= host.free_memory()
        if not self.on_gpu:
            return True
        import torch

        torch.cuda.empty_cache()
        return bool(torch.cuda.mem_get_info()[0] >= needed)

    def works(self) -> bool:
        """Whether this process can go on: not after a fault inside a kernel, nor after a broken capture."""
        if self.timer.broken or not self.on_gpu:
            return not self.timer.broken
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True


def open_bench(device: str, out: Path) -> Bench:
    """The bench of this machine's GPU ("cuda") or of its processor ("host"), or a rehearsal ("cpu").

    Only a temporary folder takes the rows of a rehearsal. Raises ``RuntimeError`` without PyTorch, or on any other
    device than the host without Triton and GPU, ``ValueError`` for a rehearsal's ``out`` elsewhere.
    """
    needed = ("torch",) if device == HOST else ("torch", "triton")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"measuring needs {' and '.join(missing)}: install the extra 'kernels'")
    if device == "cpu":
        place, temporary = out.resolve(), Path(tempfile.gettempdir()).resolve()
        if temporary not in place.parents or "measurements" in place.parts:
            rule = f"--out must be a folder under {temporary} and outside any 'measurements'"
            raise ValueError(f"rows of --device cpu are no measurements, so {rule}; got {out}")
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
        return Bench(CPU, CPU, WallTimer())
    if device == HOST:
        from kinetics_lab import host

        return Bench(HOST, host.processor(), host.HostTimer(), code=code_state(HOST))
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            "measuring needs a CUDA GPU, and PyTorch sees none: --dry-run lists the cases, and --device host times this "
            "computer's own processor"
        )
    bench = Bench("cuda", torch.cuda.get_device_name(0), CudaTimer())
    bench.uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    one = torch.zeros(1, device="cuda")
    bench.floor_us = time_together({"floor": lambda: one.add_(1)}, bench.timer)["floor"]["us"]
    return bench
