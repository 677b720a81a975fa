"""What fits on how many devices: layouts of a model, the batch beside its weights, or the reason that none fits.

A layout says how a model is spread. Tensor parallelism splits matrices and heads; it copies what cannot be split: a KV
head where there are fewer heads than devices, a latent cache, index keys, norms, routers. Data parallel attention
copies attention and splits the sequences instead. Routed experts are spread over all devices in both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.precision import Precision
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Mixer
from kinetics_lab.errors import MOST, require

BF16 = Precision()
COUNTS = (1, 2, 4, 8)  # devices of one node


@dataclass(frozen=True)
class Layout:
    """``tensor``: devices that share each layer; ``data``: groups of them, each with its own sequences."""

    tensor: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        sizes = (self.tensor, self.data)
        require(min(sizes) >= 1, "a layout needs tensor and data >= 1 (devices)", sizes)

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.tensor * self.data

    def __str__(self) -> str:
        ways = {"tensor": self.tensor, "data": self.data}
        return ", ".join(f"{way} parallel {n}" for way, n in ways.items() if n > 1) or "one device"

    def why_not(self, shape: ModelShape) -> str:
        """Why a model cannot be laid out so, or an empty text."""
        for one in shape.mixers:
            if not isinstance(one, Attention):
                continue
            if one.heads % self.tensor:
                return f"{one.heads} query heads do not split over {self.tensor} devices"
            if not one.latent and self.tensor % one.kv_heads and one.kv_heads % self.tensor:
                return f"{one.kv_heads} KV heads neither split over {self.tensor} devices nor divide them"
        return ""

    def held(self, mixer: Mixer) -> dict[str, float]:
        """The share of a mixer's cache that one device of a group holds, by kind."""
        kv = 1.0
        if isinstance(mixer, Attention) and not mixer.latent:
            kv = max(1, mixer.kv_heads / self.tensor) / mixer.kv_heads
        return {"kv": kv, "index": 1.0, "state": 1 / self.tensor, "conv": 1 / self.tensor}

    def matrices(self, shape: ModelShape) -> dict[str, float]:
        """The share of the parameters that one device holds, by kind (``PARAMETER_KINDS``)."""
        split = ("mixer", "ffn", "shared", "other", "head", "embedding", "lookup")
        share = dict.fromkeys(split, 1 / self.tensor)
        copied = 0.0  # key and value projections of heads that two devices hold, and those down to a latent
        for one, count in shape.mixers.items():
            if isinstance(one, Attention) and one.owns:
                copied += count * shape.hidden * one.entry * (self.held(one)["kv"] - 1 / self.tensor)
        share["mixer"] += copied / max(shape.parameters["mixer"], 1)
        return share | {"experts": 1 / self.devices, "router": 1.0, "vectors": 1.0}


ALONE = Layout()  # one device


def parse_layout(text: str) -> Layout:
    """A layout from text: ``tensor:8``, or ``tensor:1,data:8`` for attention that is data parallel."""
    found = re.fullmatch(r"tensor:([1-9]\d{0,5})(?:,data:([1-9]\d{0,5}))?", text)
    require(found is not None, "a layout reads tensor:N or tensor:N,data:M", text)
    return Layout(*(int(size or 1) for size in found.groups()))  # type: ignore[union-attr]


@dataclass(frozen=True)
class Fit:
    """A model on devices: the layout, the ``batch`` of sequences that fits beside the weights, or why none does.

    ``weights``, ``sequence``: bytes that a device holds of the weights, and of each sequence of its group; ``memory``:
    bytes it offers, the reserve taken off. ``batch`` is of all groups; 0 with a ``reason`` where nothing fits.
    """

    shape: ModelShape
    hardware: Hardware
    precision: Precision
    layout: Layout
    batch: int
    weights: float
    sequence: float
    memory: float
    reason: str = ""

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.layout.devices

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        many = f"{self.devices} × {self.hardware.title}" if self.devices > 1 else f"one {self.hardware.title}"
        return f"{self.shape.name} on {many} ({self.layout}): a batch of {self.batch:,}"


def weight_bytes(shape: ModelShape, precision: Precision = BF16, layout: Layout = ALONE) -> float:
    """Bytes of the weights that one device holds."""
    share = layout.matrices(shape)
    return sum(share[kind] * precision.bytes(kind) * count for kind, count in shape.parameters.items())


def cache_bytes(
    shape: ModelShape, context: ArrayLike, precision: Precision = BF16, layout: Layout = ALONE, *, read: bool = False
) -> np.ndarray:  # fmt: skip
    """Bytes that one device of a group holds for one sequence of ``context`` tokens, or, states left out, reads in a step."""
    context, total = np.asarray(context, float), np.zeros(np.shape(context))
    for mixer, count in shape.mixers.items():
        if not read or isinstance(mixer, Attention):
            share, found = layout.held(mixer), mixer.read(context) if read else mixer.stored(context)
            for kind, elements in found.items():
                total = total + count * share[kind] * precision.bytes(kind) * elements
    return total


def fit(
    shape: ModelShape, hardware: Hardware, precision: Precision = BF16, context: float = 16384, batch: float | None = None,
    *, reserve: float = 0.1, devices: int | None = None, layout: Layout | None = None,
) -> Fit:  # fmt: skip
    """The smallest number of devices that hold the model and ``batch`` sequences of ``context`` tokens (None: one).

    Of several layouts on as many devices the one with room for most sequences. ``hardware`` is one device, ``reserve``
    the share of its memory kept for activations and the allocator; ``devices`` or ``layout`` fix what is tried.
    Raises ``ValueError`` for arguments out of range; what does not fit is no error but a ``reason``.
    """
    require(np.isfinite(context) and context > 0, "context must be positive and finite (tokens)", context)
    require(0 <= reserve < 1, "reserve must be in [0, 1) (share of the memory)", reserve)
    rule = f"batch must be at least 1, at most {MOST:g} (sequences)"
    require(batch is None or 1 <= batch <= MOST, rule, batch)
    same = layout is None or devices in (None, layout.devices)
    require(same, f"devices must be those of the layout ({layout})", devices)
    devices = layout.devices if layout else devices
    rule = "devices must be at least 1, at most a million"
    require(devices is None or 1 <= devices <= 10**6, rule, devices)
    require(hardware.n_devices == 1, "hardware must be one device; give devices= or layout=", hardware.name)
    wanted = 1 if batch is None else batch
    tried = list[Fit]()
    for count in COUNTS if devices is None else (devices,):
        ways = [way for way in ([layout] if layout else layouts(shape, count)) if not way.why_not(shape)]
        found = [_filled(shape, hardware, precision, context, reserve, way) for way in ways]
        tried += found
        if found and max(one.batch for one in found) >= wanted:
            return max(found, key=lambda one: (one.batch, one.layout.tensor))
    if not tried:
        way = layout or Layout(devices or COUNTS[-1])
        why = f"{shape.name}: {way.why_not(shape)}"
        return Fit(shape, hardware, precision, way, 0, np.nan, np.nan, np.nan, why)
    most = max(tried, key=lambda one: (one.batch, one.devices))
    return replace(most, batch=0, reason=_reason(most, context, wanted))


def layouts(shape: ModelShape, count: int) -> list[Layout]:
    """Those to try on so many devices: data parallel attention, too, where tensor parallelism would copy caches."""
    copied = any(isinstance(one, Attention) and (one.latent or one.kv_heads < count) for one in shape.mixers)
    return [Layout(count), Layout(1, count)] if count > 1 and copied else [Layout(count)]


def _filled(
    shape: ModelShape, hardware: Hardware, precision: Precision, context: float, reserve: float, way: Layout
) -> Fit:
    weights, memory = weight_bytes(shape, precision, way), hardware.memory * (1 - reserve)
    each = float(cache_bytes(shape, context, precision, way))
    batch = max(int((memory - weights) // each), 0) * way.data if each else 0
    return Fit(shape, hardware, precision, way, batch, weights, each, memory)


def _reason(most: Fit, context: float, wanted: float) -> str:
    """One sentence: what it takes, what there is, and what would hold it."""
    whole, count = weight_bytes(most.shape, most.precision), most.devices
    has = f"{count} × {most.hardware.title} {'has' if count == 1 else 'have'} {most.memory * count / 1e9:,.1f} GB"
    what = f"{most.shape.name}: {whole / 1e9:,.1f} GB of weights"
    if most.weights < most.memory:
        what += f" and {wanted:,.0f} x {most.sequence / 1e9:,.2f} GB of cache a device"
        return f"{what} at {context:,.0f} tokens; {has} beside the reserve, room for {most.batch:,} sequences"
    room = most.memory
    return f"{what}; {has} beside the reserve, {int(np.ceil(whole / room))} would hold them"
