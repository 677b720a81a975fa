"""The bench: which device measures, by which code; and what every row says of both."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from kinetics_lab import decode
from kinetics_lab.errors import absent
from kinetics_lab.measure import timers
from kinetics_lab.measure.timers import Calls, CudaTimer, HostTimer, Row, WallTimer, time_together

ROOT = Path(__file__).resolve().parents[2]  # of a checkout
CPU = "cpu-interpreter"  # label and folder of rehearsals on a CPU, which are not measurements
HOST = "host"  # this computer's own processor, timed in plain PyTorch and fp32: measurements
#: Digests that changed because code moved and not because it changed: the old one, and the one it has now.
MOVED = {"4dfd68209990": "a234d5732b9a"}
LEAST, LEAST_FP8 = (8, 0), (8, 9)  # compute capabilities from which on the kernels run, and those of fp8


def kernels_digest(device: str = "cuda") -> str:
    """Twelve hex digits of the source of the attention that is timed, by which rows of different code are told apart."""
    paths = [Path(decode.__file__).with_name("host.py")]
    if device != HOST:
        spec = importlib.util.find_spec("kinetics_kernels")
        if spec is None or not spec.submodule_search_locations:
            cure = "install kinetics-lab or set PYTHONPATH=kernels"
            raise RuntimeError(f"kinetics_kernels cannot be imported: {cure}")
        paths = list(Path(spec.submodule_search_locations[0]).glob("*.py"))
    return _digest({path.name: path.read_bytes() for path in paths})


def digest_at(commit: str) -> str | None:
    """The same of the kernels as a commit has them; None where this checkout does not know it."""
    command = ("git", "-C", str(ROOT), "archive", commit, "kernels/kinetics_kernels")
    try:
        made = subprocess.run(command, capture_output=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    with tarfile.open(fileobj=io.BytesIO(made)) as archive:
        files = {Path(one.name).name: archive.extractfile(one) for one in archive if one.name.endswith(".py")}
        return _digest({name: file.read() for name, file in files.items() if file})


def _digest(files: dict[str, bytes]) -> str:
    kept = sorted(name for name in files if name != "ladder.py")  # small kernels to learn from, never timed
    return hashlib.sha256(b"".join(name.encode() + b"\0" + files[name] for name in kept)).hexdigest()[:12]


def _output(*command: str) -> str | None:
    """A command's standard output, or None where there is no such command or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def code_state(device: str = "cuda") -> Row:
    """The code's part of the provenance. A copy without git may be told its ``commit`` by $KINETICS_COMMIT."""
    checkout = (ROOT / "pyproject.toml").is_file() and (ROOT / "kernels").is_dir()  # not a folder around us
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD") if checkout else None
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", "kinetics_lab", "kernels")
    return {
        "commit": commit or os.environ.get("KINETICS_COMMIT", "unknown"),
        "dirty": None if commit is None else bool(changed),
        "kernels_digest": kernels_digest(device),
        **{name: decode.version_of(name) for name in ("torch", "triton", "transformers")},
        "flashinfer": decode.version_of("flashinfer-python"),
        "flash_attn": decode.version_of("flash-attn-3") or decode.version_of("flash-attn"),
    }


@dataclass
class Bench:
    """The device that measures: its name, its timer, its code."""

    device: str  # "cuda", HOST, or CPU for a rehearsal in Triton's interpreter
    gpu: str  # its name, or that of the processor
    timer: WallTimer
    driver: str | None = None
    capability: tuple[int, int] = LEAST  # compute capability of a GPU: (9, 0) is sm_90
    floor_us: float | None = None  # what the timer says of a call that does next to nothing
    peers: dict[str, str] = field(default_factory=dict)  # name: "" where it has run, else why not
    code: Row = field(default_factory=code_state)  # read once: the code that runs, not the files of later

    @property
    def folder(self) -> str:
        """Name of the folder its rows go to: "nvidia-h200"."""
        return timers.folder_of(self.gpu)

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

    def time(self, calls: Calls, resets: Calls | None = None, optional: Collection[str] = ()) -> Row:
        """Columns ``<call>_us``, ``_p20_us``, ``_p80_us``, ``_n`` and ``_how`` of calls timed in alternation.

        ``<call>_error`` in their place for an ``optional`` call that does not run.
        """
        timings = time_together(calls, self.timer, resets, optional)
        return {f"{name}_{key}": value for name, t in timings.items() for key, value in t.items()}

    def provenance(self) -> Row:
        """The columns that say where and by which code a row was measured, and what the GPU did meanwhile."""
        origin = {"device": self.device, "gpu": self.gpu, "driver": self.driver}
        return {**origin, **self.timer.seen, "timer_floor_us": self.floor_us, **self.code}

    def has_memory(self, needed: float) -> bool:
        """Whether ``needed`` bytes are free, after giving back what earlier cases left."""
        gc.collect()
        if not self.on_gpu:
            return not self.on_host or needed <= timers.free_memory()
        import torch

        torch.cuda.empty_cache()
        return bool(torch.cuda.mem_get_info()[0] >= needed)

    def works(self) -> bool:
        """Whether this process can go on: not after a fault inside a kernel, nor after a broken capture."""
        try:
            if self.on_gpu and not self.timer.broken:
                import torch

                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return not self.timer.broken


def open_bench(device: str, out: Path) -> Bench:
    """The bench of this machine's GPU ("cuda") or of its processor ("host"), or a rehearsal ("cpu").

    Only a temporary folder takes the rows of a rehearsal. Raises ``RuntimeError`` without PyTorch, or on any other
    device than the host without Triton and a GPU of sm_80 or newer, ``ValueError`` for a rehearsal's ``out`` elsewhere.
    """
    needed = ("torch",) if device == HOST else ("torch", "triton")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise absent(missing[0], "measuring")
    if device == "cpu":
        place, temporary = out.resolve(), Path(tempfile.gettempdir()).resolve()
        if temporary not in place.parents or "measurements" in place.parts:
            rule = f"--out must be a folder under {temporary} and outside any 'measurements'"
            raise ValueError(f"rows of --device cpu are no measurements, so {rule}; got {out}")
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
        return Bench(CPU, CPU, WallTimer())
    if device == HOST:
        return Bench(HOST, timers.processor(), HostTimer(), code=code_state(HOST))
    import torch

    if not torch.cuda.is_available():
        instead = "--dry-run lists the cases, and --device host times this computer's own processor"
        raise RuntimeError(f"measuring needs a CUDA GPU, and PyTorch sees none: {instead}")
    name, capability = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    if capability < LEAST:
        newer = "sm_80 or newer (A100, A10, RTX 30 and later)"
        raise RuntimeError(f"measuring needs a GPU of {newer}; got {name}, sm_{capability[0]}{capability[1]}")
    timers.this_gpu()  # before anything is taken of it
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    driver = _output("nvidia-smi", "-i", uuid, "--query-gpu=driver_version", "--format=csv,noheader")
    bench = Bench("cuda", name, CudaTimer(uuid), driver, capability)
    one = torch.zeros(1, device="cuda")
    bench.floor_us = time_together({"floor": lambda: one.add_(1)}, bench.timer)["floor"]["us"]
    return bench
