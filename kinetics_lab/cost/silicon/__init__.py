"""Decode steps in seconds, from kernels that NVIDIA's collector measured on nine GPUs.

The tables in ``data/silicon`` hold the time of each kernel alone, its inputs warm, the mean of 6 to 20 replays, no
spread and no clock: see the manifest. Between grid points not the time is interpolated but its ratio to a law of a
few constants that is fitted to the table itself (log-linear): the law carries the shape, the table the GPU. Outside
the grid the nearest ratio holds, and :class:`OutsideGridWarning` names the range; ``inside`` says it without.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.silicon.grid import Grid, OutsideGridWarning
from kinetics_lab.cost.silicon.laws import constants
from kinetics_lab.cost.silicon.tables import BYTES, ENGINE_NAMES, HEAD_DIM, L2_BYTES, rows
from kinetics_lab.errors import among, require

if TYPE_CHECKING:
    import pandas as pd

    from kinetics_lab.cost.shapes import ModelShape

ROUTING = "power_law_1.2"  # how tokens choose experts; "balanced" is the other one


class Silicon:
    """Kernel times of one GPU under one engine, at one precision of weights and one of the KV cache.

    ``gpu``: a key of ``L2_BYTES``; ``engine``: of ``ENGINE_NAMES``; ``weights``, ``kv``: of ``BYTES``. All times are
    seconds, all arguments broadcast.
    """

    def __init__(self, gpu: str, engine: str = "vllm", weights: str = "bf16", kv: str = "bf16") -> None:
        self.gpu, self.engine, self.weights, self.kv = gpu, engine, weights, kv
        self._products, self._attention = rows("gemm", gpu, engine), rows("attention", gpu, engine)
        among(sorted(self._products.dtype.unique()), weights, f"weights on {gpu} under {engine}")
        among(sorted(self._attention.kv.unique()), kv, f"kv on {gpu} under {engine}")
        self._products = self._products[self._products.dtype == weights]
        self._attention = self._attention[self._attention.kv == kv]
        self._pairs = self._attention[["q_heads", "kv_heads"]].drop_duplicates()
        self._heads: dict[tuple[int, int], Grid] = {}

    def __repr__(self) -> str:
        return f"{self.gpu}:{self.engine}, weights {self.weights}, KV cache {self.kv}, measured by NVIDIA's collector"

    @cached_property
    def _gemm(self) -> Grid:
        t, size = self._products, BYTES[self.weights]
        rate, bandwidth = self.matrix_rate, self.bandwidth

        def law(m: np.ndarray, n: np.ndarray, k: np.ndarray) -> np.ndarray:
            return 2e-6 + np.maximum((n * k * size + 2.0 * m * (n + k)) / bandwidth, 2.0 * m * n * k / rate)

        return Grid({"m": t.m, "n": t.n, "k": t.k}, t.us * 1e-6, law)

    def gemm(self, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> np.ndarray:
        """A product of ``m`` tokens with an n x k weight, the quantisation of activations included."""
        return self._gemm("gemm", m, n, k)

    def heads(self, q_heads: int, kv_heads: int) -> tuple[int, int]:
        """The measured pair of heads that stands for this one: the same KV heads, the nearest group.

        Raises ``ValueError`` where no pair has as many KV heads.
        """
        fitting = self._pairs[self._pairs.kv_heads == kv_heads].q_heads
        known = sorted(int(n) for n in self._pairs.kv_heads.unique())
        timed = f"attention on {self.gpu} under {self.engine} was measured with KV heads {known}"
        require(len(fitting) > 0, timed, kv_heads)
        return int(min(fitting, key=lambda n: (abs(np.log(n / q_heads)), n))), kv_heads

    def _attention_grid(self, q_heads: int, kv_heads: int) -> Grid:
        pair = self.heads(q_heads, kv_heads)
        if pair not in self._heads:
            t = self._attention[(self._attention.q_heads == pair[0]) & (self._attention.kv_heads == pair[1])]
            size = 2 * kv_heads * HEAD_DIM * BYTES[self.kv]  # bytes a cached token
            start, tile, byte = self._attention_law

            def law(batch: np.ndarray, work: np.ndarray) -> np.ndarray:
                return start + tile * batch * kv_heads + byte * work * size

            # Over batch and batch x context, as the collector's grid ends at equal work: it has few holes so.
            self._heads[pair] = Grid({"batch": t.batch, "work": t.batch * t.context}, t.us * 1e-6, law)
        return self._heads[pair]

    def cold_attention(self, above: float = 2.0) -> tuple[pd.DataFrame, np.ndarray]:
        """The attention rows whose cache exceeds ``above`` x L2 (at 2 nothing is warm), and the bytes that each reads."""
        t = self._attention
        moved = (2.0 * HEAD_DIM * BYTES[self.kv]) * (t.batch * t.kv_heads * t.context).to_numpy(float)
        cold = moved > above * L2_BYTES[self.gpu]
        return t[cold], moved[cold]

    @cached_property
    def _attention_law(self) -> np.ndarray:
        """Seconds to start, a sequence and KV head, and a byte of KV, fitted to what is cold.

        Where too little is, a byte takes what large weights take, and all rows tell the rest.
        """
        t, moved = self.cold_attention()
        if few := len(t) < 200:  # hardly anything beyond the cache
            t, moved = self.cold_attention(0)
        seconds = t.us.to_numpy(float) * 1e-6
        terms = np.stack([np.ones(len(t)), t.batch * t.kv_heads], 1)
        if few:
            least = 1 / self._weight_bandwidth
            rest = np.maximum(seconds - moved * least, 0)
            found = np.append(constants(terms, seconds, rest), least)
        else:
            found = constants(np.column_stack([terms, moved]), seconds)
        return np.maximum(found, [1e-6, 0, 1e-15])

    def attention(self, q_heads: int, kv_heads: int, batch: ArrayLike, context: ArrayLike) -> np.ndarray:
        """Dense decode attention of one layer: ``batch`` sequences of ``context`` cached tokens, heads of 128."""
        batch, context = np.asarray(batch, float), np.asarray(context, float)
        return self._attention_grid(q_heads, kv_heads)("attention", batch, batch * context)

    def experts(self, model: str, tokens: ArrayLike, ep: int = 1, tp: int = 1) -> np.ndarray:
        """The routed experts of one layer, ``tokens`` in all, split over ``tp`` or ``ep`` GPUs."""
        t = rows("experts", self.gpu, self.engine)
        known = sorted(t.model.unique())
        among(known, model, f"model whose experts were measured on {self.gpu} under {self.engine}")
        # FP8 experts in blocks are what an FP8 checkpoint runs; gpt-oss comes in MXFP4
        types = {"fp8": ["fp8_block", "fp8"]}.get(self.weights, [self.weights])
        types = ["w4a16_mxfp4", "w4a8_mxfp4_mxfp8"] if model.startswith("gpt-oss") else types
        t = t[(t.model == model) & t.dtype.isin(types) & (t.ep == ep) & (t.tp == tp) & (t.routing == ROUTING)]
        asked = f"{types[0]}, tp={tp}, ep={ep}, {ROUTING}"
        others = f"experts of {model} on {self.gpu} under {self.engine} have rows of other settings"
        require(len(t) > 0, others, asked)
        t = t.groupby("tokens", as_index=False)[["us"]].min()
        return Grid({"tokens": t.tokens}, t.us * 1e-6, lambda n: 1e-5 + 0 * n)("experts", tokens)

    def all_reduce(self, gpus: int, elements: ArrayLike) -> np.ndarray:
        """An all-reduce of 2-byte ``elements`` over ``gpus`` of one node; nothing for one."""
        if gpus == 1:
            return np.zeros(np.shape(elements))
        t = rows("allreduce", self.gpu, self.engine)
        t = t[t.gpus == gpus].groupby("elements", as_index=False)[["us"]].min()
        require(len(t) > 0, f"all-reduce on {self.gpu} under {self.engine} was not measured on so many", gpus)
        slope = float(t.us.iloc[-1] * 1e-6 / t.elements.iloc[-1])  # large ones take the link's time
        return Grid({"elements": t.elements}, t.us * 1e-6, lambda n: 5e-6 + slope * n)("all_reduce", elements)

    def why_not(self, shape: ModelShape, tp: int = 1) -> str:
        """Why a model cannot be priced, or an empty text."""
        if not shape.is_uniform:
            return "its layers differ, or do not attend to the whole context"
        if shape.is_mla:
            return "latent attention, timed as a whole module: see the serving runs"
        if shape.head_dim != HEAD_DIM:
            return f"heads of {shape.head_dim}, measured: {HEAD_DIM}"
        if shape.n_q_heads % tp:
            return f"{shape.n_q_heads} query heads do not split over {tp} GPUs"
        try:
            self.heads(shape.n_q_heads // tp, max(1, shape.n_kv_heads // tp))
            if shape.n_experts:
                self.experts(shape.name, 1, tp=tp)
        except ValueError as error:
            return str(error)
        return ""

    def step(
        self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, tp: int = 1
    ) -> dict[str, np.ndarray]:
        """Seconds of one decode step by part: ``parameters``, ``attention``, ``communication``.

        ``batch`` sequences of ``context`` cached tokens, split over ``tp`` GPUs. Kernels only: norms, rotary embedding,
        activation functions, sampling and the host are not in it. The output head is a product four times wider
        than any that was measured; its ratio is the widest one's.
        Raises ``ValueError`` with the reason for a model that was not measured.
        """
        if why := self.why_not(shape, tp):
            raise ValueError(f"{shape.name} has no measured kernels: {why}")
        batch, context = np.broadcast_arrays(np.asarray(batch, float), np.asarray(context, float))
        q, kv, width = shape.n_q_heads // tp, max(1, shape.n_kv_heads // tp), shape.hidden
        each, place = np.unique(batch, return_inverse=True)  # products do not know the context
        products = self.products(shape, each, tp) + self._quiet(each, shape.vocab / tp, width)
        return {
            "parameters": products[place].reshape(batch.shape),
            "attention": shape.n_layers * self.attention(q, kv, batch, context),
            "communication": 2 * shape.n_layers * self.all_reduce(tp, batch * width),
        }

    def products(self, shape: ModelShape, tokens: np.ndarray, tp: int = 1, ep: int = 1) -> np.ndarray:
        """All layers' products and experts for ``tokens``, split over ``tp`` GPUs, the experts over ``ep`` of them; no head."""
        q, kv, width = shape.n_q_heads // tp, max(1, shape.n_kv_heads // tp), shape.hidden

        def block(ffn: float) -> np.ndarray:
            return self.gemm(tokens, 2 * ffn / tp, width) + self.gemm(tokens, width, ffn / tp)

        attend = 0 * tokens  # of MLA: in the module that was measured
        if not shape.is_mla:
            pair = ((q + 2 * kv) * shape.head_dim, width), (width, q * shape.head_dim)
            attend = np.sum([self.gemm(tokens, n, k) for n, k in pair], 0)
        if not shape.n_experts:
            return np.asarray(shape.n_layers * (attend + block(shape.ffn)))
        routed = self._quiet(tokens, shape.n_experts, width) + self.experts(shape.name, tokens, ep, tp // ep)
        first = shape.n_dense_layers
        sparse = shape.n_layers - first
        if always := shape.parameters["shared"] / (3 * width * sparse):  # hidden units of shared experts
            routed = routed + block(always)
        dense = first * block(shape.ffn) if first else 0
        return np.asarray(shape.n_layers * attend + sparse * routed + dense)

    def _quiet(self, m: np.ndarray, n: float, k: float) -> np.ndarray:
        """A product whose width is known to lie outside the grid: the router's and the output head's."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideGridWarning)
            return self.gemm(m, n, k)

    def inside(self, shape: ModelShape, batch: ArrayLike, context: ArrayLike, tp: int = 1) -> np.ndarray:
        """Whether a step lies within what was measured (its attention and its tokens)."""
        batch, context = np.asarray(batch, float), np.asarray(context, float)
        grid = self._attention_grid(shape.n_q_heads // tp, max(1, shape.n_kv_heads // tp))
        return grid.inside(batch, batch * context) & self._gemm.inside(batch, 4096.0, 4096.0)

    @cached_property
    def matrix_rate(self) -> float:
        """95th percentile of the rate of large products (m >= 2048, n and k >= 4096), FLOP/s."""
        t = self._products.query("m >= 2048 and n >= 4096 and k >= 4096")
        return float(np.percentile(2.0 * t.m * t.n * t.k / (t.us * 1e-6), 95))

    @cached_property
    def _weight_bandwidth(self) -> float:
        t, weights = self._products, self._products.n * 1.0 * self._products.k * BYTES[self.weights]
        large = weights > 512e6
        return float(np.percentile((weights / (t.us * 1e-6))[large], 95))

    @cached_property
    def bandwidth(self) -> float:
        """95th percentile of bytes/s read by products of weights over 512 MB or by attention above 8 x L2, the better."""
        t, read = self.cold_attention(8)
        rates = read / (t.us * 1e-6)
        return max(self._weight_bandwidth, float(np.percentile(rates, 95)) if len(rates) else 0.0)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity as measured, FLOP/byte."""
        return self.matrix_rate / self.bandwidth


def measured_engines(gpu: str, weights: str = "bf16", kv: str = "bf16") -> list[Silicon]:
    """The GPU under every engine that was measured on it in these precisions."""
    found = []
    for engine in ENGINE_NAMES:
        with suppress(ValueError):  # not measured
            found.append(Silicon(gpu, engine, weights, kv))
    return found


def kernel_shares(silicon: Silicon, q_heads: int, kv_heads: int, each: bool = False) -> pd.DataFrame:
    """Decode attention as it was measured: ``megabytes`` of KV, ``rate`` (bytes/s); ``each`` batch and context, or the
    median of those that read as much.
    """
    t, read = silicon.cold_attention(0)
    t = t.assign(megabytes=read / 1e6, rate=read / (t.us * 1e-6))
    t = t[(t.q_heads == q_heads) & (t.kv_heads == kv_heads)]
    if each:
        return t[["batch", "context", "us", "megabytes", "rate"]]
    size = 2 ** np.round(np.log2(t.megabytes))  # contexts differ by one token
    return t.groupby(size, as_index=False)[["megabytes", "rate"]].median()
