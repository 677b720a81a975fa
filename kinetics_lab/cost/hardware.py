"""Accelerators: dense peak by precision, memory bandwidth and capacity, each from its datasheet.

The cost law needs one number of the hardware, its arithmetic intensity (FLOP per byte), and that number
has a precision: the same GPU has twice the intensity in FP8 that it has in BF16. Peaks here are DENSE
ones; datasheets often print the figure with structured sparsity, which is twice as large.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from kinetics_lab.data import data_path
from kinetics_lab.errors import is_label, lookup, require
from kinetics_lab.files import read_text

#: Bytes of one stored element by precision. FP4 formats count their scales: NVFP4 has a byte for 16 elements, MXFP4
#: (and MXFP8) one for 32; int4 a 2-byte scale for 128, as GPTQ and AWQ checkpoints do. "fp4" is the bare element.
ELEMENT_BYTES: dict[str, float] = {
    "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "mxfp8": 33 / 32, "int8": 1, "nvfp4": 9 / 16, "mxfp4": 17 / 32,
    "int4": 0.5 + 2 / 128, "int4-g32": 0.5 + 2 / 32, "fp4": 0.5, "paper": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """One accelerator (or ``n_devices`` of them taken together) at one precision.

    ``peaks``: dense FLOP/s by precision (integer operations count as FLOP); ``bandwidth``: bytes/s;
    ``memory``: bytes that the device reports; all three are of all devices together. ``link``: bytes/s that one device
    sends to the others of its node, one direction (0: not known). ``called``: its name among people.
    """

    name: str
    peaks: Mapping[str, float]
    bandwidth: float
    memory: float
    source: str
    precision: str = "bf16"
    n_devices: int = 1
    link: float = 0.0
    called: str = ""

    def __post_init__(self) -> None:
        lookup(self.peaks, self.precision, f"{self.name}: precision")
        known = {} if math.isnan(self.memory) else {"memory": self.memory}  # a fitted machine has none
        _positive(f"{self.name}:", dict(self.peaks) | {"bandwidth": self.bandwidth} | known)

    @property
    def title(self) -> str:
        """The name that pages show, such as "H200 SXM" or "8 × H200 SXM"."""
        one = self.called or self.name.rpartition(" x ")[2].upper()
        return f"{self.n_devices} × {one}" if self.n_devices > 1 else one

    @property
    def label(self) -> str:
        """The device, its precision and whose rates these are, for the badge of a page."""
        precision = "FP8 rate, BF16 bytes" if self.precision == "paper" else self.precision.upper()
        return f"{self.title} · {precision} · datasheet (ideal rates)"

    @property
    def peak_flops(self) -> float:
        """Dense peak at this precision, FLOP/s."""
        return self.peaks[self.precision]

    @property
    def intensity(self) -> float:
        """Arithmetic intensity I at this precision, FLOP/byte."""
        return self.peak_flops / self.bandwidth

    @property
    def bytes_per_element(self) -> float:
        """Bytes of a KV element or weight stored at this precision."""
        return ELEMENT_BYTES[self.precision]

    def at(self, precision: str) -> Hardware:
        """The same device at another precision; ``ValueError`` where it has no such peak."""
        lookup(self.peaks, precision, f"{self.name}: precision")
        return replace(self, precision=precision)

    def times(self, n_devices: int) -> Hardware:
        """``n_devices`` working as one, communication not counted: an upper bound."""
        require(1 <= n_devices <= 10**6, "n_devices must be at least 1, at most a million", n_devices)
        name = f"{n_devices} x {self.name}" if n_devices > 1 else self.name
        peaks = {precision: peak * n_devices for precision, peak in self.peaks.items()}
        total = {one: getattr(self, one) * n_devices for one in ("bandwidth", "memory", "n_devices")}
        return replace(self, name=name, peaks=peaks, **total)

    def with_intensity(self, intensity: float) -> Hardware:
        """The same peak with the bandwidth changed so that the intensity is ``intensity`` FLOP/byte."""
        require(intensity > 0, "intensity must be positive (FLOP/byte)", intensity)
        return replace(self, name=f"{self.name} at I={intensity:g}", bandwidth=self.peak_flops / intensity)


def read_hardware(path: str | PathLike[str]) -> dict[str, Hardware]:
    """The devices of a TOML file laid out as ``data/hardware.toml``, which is the example to copy.

    Raises ``ValueError`` naming the file, the device and the key for what is missing, unknown or not a positive number.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(read_text(path, 1))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    require(len(tables) > 0, f"{path}: must hold a table a device, [my-gpu] for example", "none")
    return {name: _device(path, name, table) for name, table in tables.items()}


MEMORY = {"bytes": 1, "gib": 2**30, "mib": 2**20}


def _device(path: Path, name: str, table: Any) -> Hardware:
    where = f"{path}: [{name}]"
    require(isinstance(table, Mapping), f"{where} must be a table", table)
    label = "must be words and digits with single signs between them, as in A100 SXM (80 GB)"
    for what, given in ((f"{path}: the name of a device", name), (f"{where} name", table.get("name", name))):
        require(is_label(given), f"{what} {label}", given)
    for key in table:
        lookup(dict.fromkeys([*MEMORY, "name", "peaks", "bandwidth", "link", "source"]), key, f"{where} key")
    for key in ("peaks", "bandwidth", "source"):
        require(key in table, f"{where} needs {key}; it has", [*table])
    units = [unit for unit in MEMORY if unit in table]
    require(len(units) == 1, f"{where} needs its memory once, as mib, gib or bytes", units or [*table])
    peaks, unit = table["peaks"], units[0]
    rule = f"{where} peaks must read {{ bf16 = 312 }} (Tera-FLOP/s)"
    require(isinstance(peaks, Mapping) and len(peaks) > 0, rule, peaks)
    _positive(where, {f"peaks.{key}": value for key, value in peaks.items()})
    _positive(where, {key: table[key] for key in ("bandwidth", unit, "link") if key in table})
    for key in peaks:
        lookup(ELEMENT_BYTES, key, f"{where} precision")
    return Hardware(
        name,
        {key: peak * 1e12 for key, peak in peaks.items()},
        table["bandwidth"] * 1e12,
        float(table[unit] * MEMORY[unit]),
        str(table["source"]),
        "bf16" if "bf16" in peaks else next(iter(peaks)),
        link=table.get("link", 0) * 1e9,
        called=table.get("name", ""),
    )


def _positive(where: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number and 0 < value < float("inf"), f"{where} {key} must be a positive number", value)


#: Accelerators by name, from ``data/hardware.toml``. "b200-paper" is the B200 as the paper takes it: 4500 TFLOP/s (the
#: FP8, or sparse BF16, rate) beside KV elements of 2 bytes, so its one precision is called "paper".
HARDWARE: dict[str, Hardware] = read_hardware(data_path("hardware"))


def find_hardware(name: str | PathLike[str], precision: str | None = None, n_devices: int = 1) -> Hardware:
    """The accelerator called ``name``, at ``precision`` (default: its own); near matches in the error.

    A path that ends in ``.toml`` is a file of your own (:func:`read_hardware`) with one device.
    """
    name, known = fspath(name), HARDWARE
    if name.endswith(".toml"):
        known = read_hardware(name)
        require(len(known) == 1, f"{name}: must hold one device to be given as hardware", [*known])
        [name] = known
    found = lookup(known, name, "hardware")
    return (found.at(precision) if precision else found).times(n_devices)
