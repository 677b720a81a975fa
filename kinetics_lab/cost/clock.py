"""Clocks: what turns the work of a decode step into seconds.

:class:`Datasheet` divides FLOP and bytes by peak rates: a bound, never a prediction. :class:`Measured` sums the times
of real kernels (:mod:`kinetics_lab.cost.silicon`). Both answer the same two questions: how long one step takes, by
part, and how long a whole answer takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.fit import Layout
from kinetics_lab.cost.hardware import Hardware, find_hardware
from kinetics_lab.cost.policies import Dense, Policy
from kinetics_lab.cost.precision import Precision
from kinetics_lab.cost.request import cost_parts
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.silicon import Silicon
from kinetics_lab.cost.step import step_parts, step_seconds
from kinetics_lab.errors import require

Parts = dict[str, np.ndarray]
DENSE = Dense()
NODES = 12  # of the integral over an answer: exact for polynomials of degree 23, and kernels are smoother than that


class Clock(Protocol):
    """What every clock can say. ``label`` names it for titles; ``measured`` tells whether kernels were timed."""

    @property
    def label(self) -> str: ...

    @property
    def measured(self) -> bool: ...

    def step(
        self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, policy: Policy = DENSE, tp: int = 1
    ) -> Parts:
        """Seconds of one decode step of ``batch`` sequences with ``context`` cached tokens, by part."""


@dataclass(frozen=True)
class Datasheet:
    """Peak rates. ``combine``: "max" (arithmetic and traffic of a part overlap: a bound) or "add" (they do not).

    ``precision``: how weights and cache are stored (None: all in the hardware's own); ``layout``: how the model is spread
    over several of these devices (None: tensor parallel).
    """

    hardware: Hardware
    combine: str = "max"
    precision: Precision | None = None
    layout: Layout | None = None
    measured: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return f"{self.hardware.name} at its datasheet's rates"

    def step(
        self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, policy: Policy = DENSE, tp: int = 1
    ) -> Parts:
        """Seconds by part: ``parameters``, ``attention``, ``search``, ``state`` if any, ``communication`` (NaN: unknown link)."""
        own = self.hardware.precision
        precision = self.precision or Precision(own, own, embedding=own)
        layout = self.layout or Layout(tp)
        parts = step_parts(shape, batch, context, policy, precision=precision, layout=layout)
        return step_seconds(self.hardware, precision, parts, self.combine)


@dataclass(frozen=True)
class Measured:
    """Kernels measured by NVIDIA's collector, summed.

    No engine's block top-k was measured over a grouped cache. A policy's attention and search then take what dense
    attention takes, times the bytes they move over those that it moves: the law at the measured efficiency of dense attention.
    """

    silicon: Silicon
    measured: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return str(self.silicon)

    def step(
        self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, policy: Policy = DENSE, tp: int = 1
    ) -> Parts:
        """Seconds by part: ``parameters``, ``attention``, ``search``, ``communication``; see `Silicon.step`."""
        found = self.silicon.step(shape, batch, context, tp)
        dense = found["attention"]
        if isinstance(policy, Dense):
            return found | {"search": np.zeros_like(dense)}
        sparse, whole = (cost_parts(shape, one, context, 1) for one in (policy, Dense()))
        share = {name: sparse[name].bytes / whole["attention"].bytes for name in ("attention", "search")}
        return found | {name: dense * part for name, part in share.items()}


def answer_seconds(
    clock: Clock,
    shape: ModelShape,
    n_in: ArrayLike,
    n_out: ArrayLike,
    batch: ArrayLike = 1,
    policy: Policy = DENSE,
    tp: int = 1,
) -> Parts:
    """Seconds by part to decode ``n_out`` tokens after ``n_in``, ``batch`` answers side by side; prefill left out.

    The integral of the step's time over the answer (Gauss and Legendre). Divide by ``batch`` for what one answer
    costs of the device. All arguments but the last two broadcast.
    """
    n_in, n_out, batch = (np.asarray(x, float) for x in (n_in, n_out, batch))
    require((n_out > 0) & np.isfinite(n_out), "n_out must be positive and finite (tokens)", n_out)
    at, weights = np.polynomial.legendre.leggauss(NODES)
    share, weights = (at + 1) / 2, weights / 2
    context = n_in[..., None] + n_out[..., None] * share
    steps = clock.step(shape, batch[..., None], np.maximum(context, 1.0), policy, tp)
    return {name: n_out * (part * weights).sum(-1) for name, part in steps.items()}


def parse_clock(text: str) -> Clock:
    """A clock from text: ``h200`` (its datasheet) or ``h200:vllm``, ``h200:vllm:fp8``, ``h200:vllm:fp8:fp8``.

    After the device: the engine, the precision of the weights, that of the KV cache (bf16 unless said).
    Raises ``ValueError`` naming what is unknown.
    """
    device, *rest = text.split(":")
    if not rest:
        return Datasheet(find_hardware(device))
    require(len(rest) <= 3, "a clock reads DEVICE, or DEVICE:ENGINE:WEIGHTS:KV", text)
    return Measured(Silicon(device, *rest))
