"""How a time is taken, on a GPU, on a processor, or in a rehearsal.

A call is captured in a CUDA graph and replayed, where it can be captured. CUDA events stand around each replay;
before each, another buffer four times the L2 cache is *read*, which evicts the inputs without leaving writes for
the timed call to pay for. Calls that are compared are timed in alternation.
"""

from __future__ import annotations

import functools
import math
import platform
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_lab.decode.graph import CaptureError, captured
from kinetics_lab.errors import sentence

Row = dict[str, Any]
Call = Callable[[], Any]
Calls = Mapping[str, Call]
WARM_S = 0.15  # of load before a case is timed
#: What nvidia-smi is asked while calls are timed: columns of a row, and its names for them.
ASKED = {
    "sm_mhz": "clocks.sm",
    "mem_mhz": "clocks.mem",
    "power_w": "power.draw",
    "throttle": "clocks_throttle_reasons.active",
}
#: Bits of the last that tell what holds the clocks back (nvml.h); the others mean an idle GPU or somebody's setting.
THROTTLES = {0x4: "power", 0x8: "hardware", 0x20: "temperature", 0x40: "temperature", 0x80: "power"}


def summary(seconds: Iterable[float], how: str) -> Row:
    """``us`` (median), ``p20_us`` and ``p80_us`` in microseconds, ``n`` repetitions, ``how``: graph, events, clock.

    Percentiles interpolate between neighbours.
    """
    sample = np.asarray(list(seconds), float) * 1e6
    p20, median, p80 = (float(x) for x in np.percentile(sample, [20, 50, 80]))
    return {"us": median, "p20_us": p20, "p80_us": p80, "n": len(sample), "how": how}


class WallTimer:
    """The host's clock, for rehearsals on a CPU."""

    least, most, target_s = 1, 1, 0.0
    broken = ""  # why nothing can be timed in this process any more
    seen: Row = dict.fromkeys(ASKED)  # of the device while the last calls were timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note in ``seen`` what the device does under the load of this while."""
        yield

    def warm(self) -> None:
        """Keep the device busy for a while: its clocks fell while a case was compiled, and need tens of milliseconds."""
        end = time.perf_counter() + (WARM_S if self.target_s else 0.0)  # not in a rehearsal
        while time.perf_counter() < end:
            self.load()

    def load(self) -> None:
        """A moment's work."""

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

    def __init__(self, uuid: str) -> None:
        import torch

        self.uuid = uuid
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.randn(l2, device="cuda")  # fp32: four times the cache
        self.sink = torch.zeros((), device="cuda")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """As above; the GPU is kept busy until nvidia-smi has looked, for it is slower than a short case."""
        query = f"--query-gpu={','.join(ASKED.values())} --format=csv,noheader,nounits"
        command, looking = f"nvidia-smi -i {self.uuid} {query}".split(), None
        with suppress(OSError):  # no such command here
            looking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        yield
        self.seen, end = dict.fromkeys(ASKED), time.perf_counter() + 5.0
        if looking:
            while looking.poll() is None and time.perf_counter() < end:
                self.load()
            looking.kill()
            self.seen = told(looking.communicate()[0])

    def load(self) -> None:
        import torch

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


def told(line: str) -> Row:
    """Columns from a line of nvidia-smi: MHz, MHz, W, and what holds the clocks back; None where it does not say."""
    found: Row = dict.fromkeys(ASKED)
    for name, value in zip(ASKED, line.strip().split(", "), strict=False):
        if value.startswith("0x"):
            held = {why for bit, why in THROTTLES.items() if int(value, 16) & bit}
            found[name] = ", ".join(sorted(held)) or "nothing"
        elif value.replace(".", "", 1).isdigit():
            found[name] = float(value)
    return found


def time_together(
    calls: Calls, timer: WallTimer, resets: Calls | None = None, optional: Collection[str] = ()
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
    with timer.watching():
        for _ in range(rounds(trial_s, timer)):
            for name, (run, _) in runs.items():
                samples[name].append(timer.sample(run, reset[name]))
    timed = {name: summary(map(timer.seconds, samples[name]), how) for name, (_, how) in runs.items()}
    return timed | failed


def rounds(round_s: float, timer: WallTimer | type[WallTimer]) -> int:
    """Rounds of ``round_s`` seconds that the timer's target allows, within its bounds."""
    return max(timer.least, min(timer.most, int(timer.target_s / max(round_s, 1e-9))))


def _told(file: str, field: str) -> str | None:
    """The first value of a field in a file of Linux's /proc; None elsewhere."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)


def folder_of(name: str) -> str:
    """The folder of a device's rows: "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.cache
def this_gpu() -> tuple[str, float] | None:
    """Folder of this machine's GPU, and the whole GiB (in bytes) that were free when this was first asked; None without.

    Rounded and asked once, so that a run that goes on plans the same cases.
    """
    try:
        import torch

        return folder_of(torch.cuda.get_device_name(0)), torch.cuda.mem_get_info()[0] // 2**30 * 2.0**30
    except (ImportError, RuntimeError, AssertionError):
        return None


def free_memory() -> float:
    """Bytes that this computer has to give; without Linux no limit is known."""
    kilobytes = _told("meminfo", "MemAvailable")
    return 1024.0 * int(kilobytes.split()[0]) if kilobytes else math.inf


def processor() -> str:
    """The processor's name and how many threads PyTorch runs on it."""
    import torch

    name = _told("cpuinfo", "model name") or platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


class HostTimer(WallTimer):
    """The host's clock, its caches filled with other data before each repetition."""

    least, most, target_s = 7, 40, 3.0

    def __init__(self) -> None:
        import torch

        # fp32: 134 MB, more than caches hold; zeros would be one page of memory
        self.buffer = torch.ones(2**25)

    def load(self) -> None:
        self.buffer.sum()

    def sample(self, run: Call, reset: Call) -> Any:
        reset()
        self.load()
        return super().sample(run, lambda: None)
