"""Accelerators: dense peak by precision, memory bandwidth and capacity, each from its datasheet.

The cost law needs one number of the hardware, its arithmetic intensity (FLOP per byte), and that number
has a precision: the same GPU has twice the intensity in FP8 that it has in BF16. Peaks here are DENSE
ones; datasheets often print the figure with structured sparsity, which is twice as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kinetics_lab.errors import lookup, require

#: Bytes of one element stored in each precision.
ELEMENT_BYTES: dict[str, float] = {"bf16": 2, "fp8": 1, "int8": 1, "fp4": 0.5, "paper": 2}


@dataclass(frozen=True)
class Hardware:
    """One accelerator (or ``n_devices`` of them taken together) at one precision.

    ``peaks``: dense FLOP/s by precision (integer operations count as FLOP); ``bandwidth``: bytes/s;
    ``memory``: bytes; both are of all devices together.
    """

    name: str
    peaks: Mapping[str, float]
    bandwidth: float
    memory: float
    source: str
    precision: str = "bf16"
    n_devices: int = 1

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
        require(n_devices >= 1, "n_devices must be at least 1", n_devices)
        name = f"{n_devices} x {self.name}" if n_devices > 1 else self.name
        return replace(
            self,
            name=name,
            peaks={precision: peak * n_devices for precision, peak in self.peaks.items()},
            bandwidth=self.bandwidth * n_devices,
            memory=self.memory * n_devices,
            n_devices=self.n_devices * n_devices,
        )

    def with_intensity(self, intensity: float) -> Hardware:
        """The same peak with the bandwidth changed so that the intensity is ``intensity`` FLOP/byte."""
        require(intensity > 0, "intensity must be positive (FLOP/byte)", intensity)
        return replace(self, name=f"{self.name} at I={intensity:g}", bandwidth=self.peak_flops / intensity)


def _tera(**peaks: float) -> dict[str, float]:
    return {precision: peak * 1e12 for precision, peak in peaks.items()}


#: Accelerators by name. "b200-paper" is the B200 as the paper takes it: 4500 TFLOP/s (the FP8, or sparse
#: BF16, rate) beside KV elements of 2 bytes, so its one precision is called "paper".
HARDWARE: dict[str, Hardware] = {
    hw.name: hw
    for hw in (
        Hardware("b200-paper", _tera(paper=4500), 8e12, 192e9, "arXiv 2506.05333, Section 3: I = 562.5; memory as announced, 192 GB", "paper"),
        Hardware(
            "b200", _tera(bf16=2250, fp8=4500, fp4=9000), 8e12, 180e9, "NVIDIA DGX B200 datasheet, per GPU, dense"
        ),
        Hardware("h200", _tera(bf16=989.5, fp8=1979), 4.8e12, 141e9, "NVIDIA H200 SXM datasheet, dense"),
        Hardware("h100", _tera(bf16=989.5, fp8=1979), 3.35e12, 80e9, "NVIDIA H100 SXM datasheet, dense"),
        Hardware("a100", _tera(bf16=312, int8=624), 2.039e12, 80e9, "NVIDIA A100 80GB SXM datasheet, dense"),
        Hardware("l40s", _tera(bf16=362.05, fp8=733), 0.864e12, 48e9, "NVIDIA L40S datasheet, dense"),
        Hardware("mi300x", _tera(bf16=1307.4, fp8=2614.9), 5.3e12, 192e9, "AMD Instinct MI300X data sheet, dense"),
        Hardware("tpu-v5e", _tera(bf16=197, int8=393), 0.819e12, 16e9, "Google Cloud TPU v5e documentation"),
    )
}  # fmt: skip


def find_hardware(name: str, precision: str | None = None, n_devices: int = 1) -> Hardware:
    """The accelerator called ``name``, at ``precision`` (default: its own); near matches in the error."""
    found = lookup(HARDWARE, name, "hardware")
    return (found.at(precision) if precision else found).times(n_devices)
