"""Clocks: what turns the work of a decode step into seconds.

:class:`Datasheet` divides FLOP and bytes by peak rates: with "max" a bound, never a prediction. :class:`Measured` sums
the times of real kernels (:mod:`kinetics_lab.cost.silicon`). :class:`Calibrated` is the law with four constants that
were fitted to measured times. All answer the same two questions: how long one step takes, by part, and how long a
whole answer takes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.fit import Layout, weight_bytes
from kinetics_lab.cost.hardware import Hardware, find_hardware
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import Dense, Policy
from kinetics_lab.cost.precision import Precision
from kinetics_lab.cost.request import Cost, cost_parts
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.silicon import BYTES, Silicon
from kinetics_lab.cost.silicon.grid import OutsideGridWarning
from kinetics_lab.cost.silicon.serving import prefill_seconds as measured_prefill
from kinetics_lab.cost.step import over_link, prefill_flops, prefill_seconds, sent, step_parts, step_seconds
from kinetics_lab.errors import require

Parts = dict[str, np.ndarray]
DENSE = Dense()
NODES = 12  # of the integral over an answer: exact for polynomials of degree 23, and kernels are smoother than that
HELD = ("qwen3-1.7b", "qwen3-8b")  # models whose steps judge a fit and never enter it


class Clock(Protocol):
    """What every clock can say. ``label`` names it for titles; ``measured`` tells whether kernels were timed."""

    measured: ClassVar[bool] = False

    @property
    def label(self) -> str: ...

    def step(self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, policy: Policy = DENSE, tp: int = 1) -> Parts:  # fmt: skip
        """Seconds of one decode step of ``batch`` sequences with ``context`` cached tokens, by part."""

    def inside(self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, tp: int = 1) -> np.ndarray:
        """Whether a step lies within what was measured; a clock that computes has no outside."""
        return np.ones(np.broadcast_shapes(np.shape(batch), np.shape(context)), bool)

    def prefill(self, shape: ModelShape, n_in: ArrayLike, tp: int = 1) -> np.ndarray:
        """Seconds to read one prompt of ``n_in`` tokens."""


@dataclass(frozen=True)
class Datasheet(Clock):
    """Peak rates. ``combine``: "max" (arithmetic and traffic of a part overlap: a bound) or "add" (they do not).

    ``precision``: how weights and cache are stored (None: all in the hardware's own); ``layout``: how the model is spread
    over several of these devices (None: tensor parallel).
    """

    hardware: Hardware
    combine: str = "max"
    precision: Precision | None = None
    layout: Layout | None = None

    @property
    def label(self) -> str:
        return f"{self.hardware.name} at its datasheet's rates"

    def step(self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, policy: Policy = DENSE, tp: int = 1) -> Parts:  # fmt: skip
        """Seconds by part: ``parameters``, ``attention``, ``search``, ``state`` if any, ``communication`` (NaN: unknown link)."""
        precision, layout = self._stored, self.layout or Layout(tp)
        parts = step_parts(shape, batch, context, policy, precision=precision, layout=layout)
        return step_seconds(self.hardware, precision, parts, self.combine)

    def prefill(self, shape: ModelShape, n_in: ArrayLike, tp: int = 1, cached: float = 0.0) -> np.ndarray:
        """Seconds to read one prompt at datasheet rates, of which a share ``cached`` is there already."""
        how: dict[str, Any] = {"precision": self._stored, "layout": self.layout or Layout(tp)}
        return prefill_seconds(shape, self.hardware, n_in, cached=cached, **how)

    @property
    def _stored(self) -> Precision:
        own = self.hardware.precision
        return self.precision or Precision(own, own, embedding=own)


@dataclass(frozen=True)
class Measured(Clock):
    """Kernels measured by NVIDIA's collector, summed.

    No engine's block top-k was measured over a grouped cache. A policy's attention and search then take what dense
    attention takes, times the bytes they move over those that it moves: the law at the measured efficiency of dense attention.
    """

    silicon: Silicon
    measured: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return str(self.silicon)

    def step(self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, policy: Policy = DENSE, tp: int = 1) -> Parts:  # fmt: skip
        """Seconds by part: ``parameters``, ``attention``, ``search``, ``communication``; see `Silicon.step`."""
        found = self.silicon.step(shape, batch, context, tp)
        dense = found["attention"]
        if isinstance(policy, Dense):
            return found | {"search": np.zeros_like(dense)}
        sparse, whole = (cost_parts(shape, one, context, 1) for one in (policy, Dense()))
        share = {name: sparse[name].bytes / whole["attention"].bytes for name in ("attention", "search")}
        return found | {name: dense * part for name, part in share.items()}

    def inside(self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, tp: int = 1) -> np.ndarray:
        """Whether the kernels of a step were measured there or between: see `Silicon.inside`."""
        return self.silicon.inside(shape, batch, context, tp)

    def prefill(self, shape: ModelShape, n_in: ArrayLike, tp: int = 1) -> np.ndarray:
        """Seconds to read one prompt, by kernels."""
        return measured_prefill(shape, self.silicon, n_in, tp)


@dataclass(frozen=True)
class Calibrated(Clock):
    """The law with four constants fitted to measured times: for shapes and policies that nobody timed.

    Each layer takes ``layer`` seconds to start; products read ``weights`` bytes/s, attention, search and states ``cache`` bytes/s, unless
    their arithmetic at ``matrix`` FLOP/s takes longer; links have their datasheet's rate. ``error``: median |predicted / measured - 1|
    (``p90``: nine in ten) on times that the fit has not seen, NaN where there are none. ``precision``, ``layout``: as for `Datasheet`.
    """

    name: str
    layer: float
    weights: float
    cache: float
    matrix: float
    precision: Precision = field(default_factory=Precision)
    error: float = np.nan
    p90: float = np.nan
    silicon: Silicon | None = field(default=None, compare=False)  # whose times were fitted, if a collector's
    layout: Layout | None = None

    @property
    def label(self) -> str:
        return f"the cost law with four constants fitted to {self.name}"

    def step(self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, policy: Policy = DENSE, tp: int = 1) -> Parts:  # fmt: skip
        """Seconds by part: as those of `Datasheet`; ``parameters`` include the start of the layers."""
        layout = self.layout or Layout(tp)
        parts = step_parts(shape, batch, context, policy, precision=self.precision, layout=layout)
        link, products = parts.pop("communication").bytes, parts.pop("parameters")
        start = shape.n_layers * self.layer + self._seconds(products, self.weights)
        rest = {name: self._seconds(part, self.cache) for name, part in parts.items()}
        return {"parameters": start, **rest, "communication": self._over_link(link)}

    def prefill(self, shape: ModelShape, n_in: ArrayLike, tp: int = 1, cached: float = 0.0) -> np.ndarray:
        """Seconds to read one prompt of which a share ``cached`` is there, and to start the layers."""
        layout, new = self.layout or Layout(tp), np.asarray(n_in, float) * (1 - cached)
        computed = sum(prefill_flops(shape, n_in, cached).values()) / self.matrix / layout.tensor
        passed = np.maximum(computed, weight_bytes(shape, self.precision, layout) / self.weights)
        return passed + shape.n_layers * self.layer + self._over_link(sent(shape, new, layout))

    def _over_link(self, moved: ArrayLike) -> np.ndarray:
        return over_link(find_hardware(self.silicon.gpu).link if self.silicon else 0.0, moved)

    def _seconds(self, work: Cost, bandwidth: float) -> np.ndarray:
        return np.maximum(work.bytes / bandwidth, work.flops / self.matrix)

    def times(self, rows: pd.DataFrame) -> np.ndarray:
        """Seconds of rows with ``layers``, ``bytes``, ``flops`` and, of these, ``weight_bytes`` and ``gemm_flops``."""
        products = Cost(rows["gemm_flops"].to_numpy(float), rows["weight_bytes"].to_numpy(float))
        whole = Cost(rows["flops"].to_numpy(float), rows["bytes"].to_numpy(float))
        rest = self._seconds(whole + -1 * products, self.cache)
        return self.layer * rows["layers"].to_numpy(float) + self._seconds(products, self.weights) + rest

    @classmethod
    def fit(cls, name: str, rows: pd.DataFrame, seconds: ArrayLike, held: ArrayLike = False) -> Calibrated:
        """The constants that come nearest to ``seconds`` in logarithms, by robust least squares.

        ``rows``: as for `times`, those of ``kinetics-lab measure`` or of measured steps; ``held``: rows that only
        judge. A rate that decides no row's time stays at the fastest rate that any row shows.
        Raises ``ValueError`` for fewer than six rows to fit on and for times that are not positive.
        """
        from scipy.optimize import least_squares

        seconds, held = np.asarray(seconds, float), np.broadcast_to(held, len(rows))
        require(int((~held).sum()) >= 6, "a fit needs at least 6 rows", int((~held).sum()))
        require((seconds > 0) & np.isfinite(seconds), "seconds must be positive and finite", seconds)
        fastest = [float((rows[name] / seconds).max()) for name in ("weight_bytes", "bytes", "flops")]
        start = np.log([seconds.min() / rows["layers"].max() / 2, *fastest])

        def law(logs: np.ndarray) -> Calibrated:
            layer, weights, cache, matrix = (float(value) for value in np.exp(logs))
            return cls(name, layer, weights, cache, matrix)

        fit = least_squares(
            lambda logs: np.log(law(logs).times(rows[~held]) / seconds[~held]), start,
            bounds=(start - 12, start + 12), loss="soft_l1", f_scale=0.1,
        )  # fmt: skip
        off = np.abs(law(fit.x).times(rows) / seconds - 1)[held]
        error, p90 = np.quantile(off, [0.5, 0.9]).tolist() if len(off) else (np.nan, np.nan)
        return replace(law(fit.x), error=error, p90=p90)


def measured_steps(silicon: Silicon) -> pd.DataFrame:
    """Steps of the dense Qwen3 models within what was measured: their work, as `Calibrated.fit` wants it, and ``seconds``.

    Columns ``model``, ``batch`` (up to 512), ``context`` and ``parameters``, ``attention`` (seconds), too.
    """
    sizes, parts = (BYTES[silicon.weights], BYTES[silicon.kv]), []
    grid = np.meshgrid(2.0 ** np.arange(10), 2.0 ** np.arange(9, 18))
    for shape in (one for one in MODELS.values() if one.family == "qwen3"):
        batch, context = (axis.ravel() for axis in grid)
        there = silicon.inside(shape, batch, context)
        batch, context = batch[there], context[there]
        products, cached = (cost_parts(shape, DENSE, context, 1, batch=batch, bytes_per_element=x) for x in sizes)  # fmt: skip
        with warnings.catch_warnings():  # the grid of products has holes beside what `inside` looks at
            warnings.simplefilter("ignore", OutsideGridWarning)
            step = silicon.step(shape, batch, context)
        gemm, read = batch * products["parameters"], batch * cached["attention"]
        parts.append(pd.DataFrame({
            "model": shape.name, "layers": shape.n_layers, "batch": batch, "context": context,
            "weight_bytes": gemm.bytes, "gemm_flops": gemm.flops, "bytes": gemm.bytes + read.bytes,
            "flops": gemm.flops + read.flops, "parameters": step["parameters"], "attention": step["attention"],
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True).assign(seconds=lambda t: t.parameters + t.attention)


def calibrated(silicon: Silicon) -> Calibrated:
    """Four constants of a GPU under an engine, fitted to its measured steps and judged on models it has not seen."""
    steps, weights = measured_steps(silicon), silicon.weights
    alike = dict.fromkeys(("vectors", "router", "lookup", "conv"), weights)  # as measured_steps counts
    stored = Precision(weights, silicon.kv, embedding=weights, apart=alike)
    held = steps.model.isin(HELD).to_numpy()
    found = Calibrated.fit(str(silicon), steps, steps.seconds, held)
    return replace(found, silicon=silicon, precision=stored)


def answer_seconds(
    clock: Clock, shape: ModelShape, n_in: ArrayLike, n_out: ArrayLike, batch: ArrayLike = 1, policy: Policy = DENSE,
    tp: int = 1, n_out_sq: ArrayLike | None = None,
) -> Parts:  # fmt: skip
    """Seconds by part to decode ``n_out`` tokens after ``n_in``, ``batch`` answers side by side; prefill left out.

    The integral of the step's time over the answer (Gauss and Legendre). Divide by ``batch`` for what one answer
    costs of the device. All arguments but ``policy`` and ``tp`` broadcast. ``n_out_sq``: E[L^2] where ``n_out`` is a
    mean length E[L]: longer answers are under way for longer, so contexts reach up to E[L^2] / E[L] (exact where a
    step's time grows linearly with its context).
    """
    n_in, n_out, batch = (np.asarray(x, float) for x in (n_in, n_out, batch))
    require((n_out > 0) & np.isfinite(n_out), "n_out must be positive and finite (tokens)", n_out)
    at, weights = np.polynomial.legendre.leggauss(NODES)
    share, weights = (at + 1) / 2, weights / 2
    reach = n_out if n_out_sq is None else np.asarray(n_out_sq, float) / n_out
    context = n_in[..., None] + reach[..., None] * share
    steps = clock.step(shape, batch[..., None], np.maximum(context, 1.0), policy, tp)
    return {name: n_out * (part * weights).sum(-1) for name, part in steps.items()}


def parse_clock(text: str) -> Clock:
    """A clock from text: ``h200`` (its datasheet) or ``h200:vllm``, ``h200:vllm:fp8``, ``h200:vllm:fp8:fp8``.

    After the device: the engine, the precision of the weights, that of the KV cache (bf16 unless said). ``fitted:`` in
    front of these takes the law with four constants in place of the kernels. ``ValueError`` names what is unknown.
    """
    device, *rest = str(text).split(":")
    try:
        if device == "fitted":
            require(len(rest) in (2, 3, 4), "a fitted clock reads fitted:DEVICE:ENGINE:WEIGHTS:KV", text)
            return calibrated(Silicon(*rest))
        require(len(rest) <= 3, "a clock reads DEVICE, or DEVICE:ENGINE:WEIGHTS:KV", text)
        return Measured(Silicon(device, *rest)) if rest else Datasheet(find_hardware(device))
    except ValueError as error:
        raise ValueError(f"clock {text!r}: {error}") from None
