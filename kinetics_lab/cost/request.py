"""What decoding costs: FLOP, bytes and eFLOPs of one request (Section 3, Eqs. 1-4 and 8-10).

Three countings of the same decode:

- ``exact``: what a decoder really reads and multiplies, the sum over steps in closed form;
- ``paper``: the equations as printed, with what they leave out;
- ``released``: the authors' code as it is, faults included, so that their numbers can be matched.

All functions broadcast over arrays. Units: FLOP, bytes, seconds, tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.policies import BlockTopK, Dense, Local, Policy, TopK
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import among, require

COMBINES = ("add", "max")
Number = Any  # a float or an array of floats, whatever the arguments broadcast to


@dataclass(frozen=True)
class Cost:
    """Arithmetic (FLOP) and memory traffic (bytes) of the same work; scalars or arrays."""

    flops: Number
    bytes: Number
    __array_ufunc__ = None  # array * Cost is one Cost of arrays, not an array of Costs

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, factor: Number) -> Cost:
        return Cost(self.flops * factor, self.bytes * factor)

    __rmul__ = __mul__

    def eflops(self, hardware: Hardware, combine: str = "add") -> Number:
        """Equivalent FLOP (Eq. 3): the FLOP the hardware could have done in the time this takes.

        ``combine``: "add" sums arithmetic and traffic (no overlap), "max" takes the larger one (full
        overlap, Appendix A.1). The truth lies between.
        """
        among(COMBINES, combine, "combine")
        moved = self.bytes * hardware.intensity
        return self.flops + moved if combine == "add" else np.maximum(self.flops, moved)

    def seconds(self, hardware: Hardware, combine: str = "add") -> Number:
        """Time at the hardware's peak rates, s: a lower bound, never a prediction of a real engine."""
        return self.eflops(hardware, combine) / hardware.peak_flops


def attended(
    n_in: ArrayLike, n_out: ArrayLike, budget: ArrayLike = np.inf, n_out_sq: ArrayLike | None = None
) -> np.ndarray:
    """Cached tokens read during one decode: the integral of min(n_in + t, budget) for t in [0, n_out].

    For random lengths give ``n_out`` = E[L] and ``n_out_sq`` = E[L^2] (Eq. 10). Lengths then stand at two
    points with these moments, sqrt(E[L^2] - E[L]^2) to either side of E[L]; the result is exact where all
    lengths and both points lie on one side of ``budget - n_in``, and never above dense reading.
    """
    n_in, n_out, budget = (np.asarray(x, float) for x in (n_in, n_out, budget))

    def read(length: np.ndarray) -> np.ndarray:
        end = np.minimum(budget, n_in + length)
        ramp = np.maximum(end - n_in, 0)  # steps before the budget binds
        return end * length - ramp**2 / 2

    if n_out_sq is None:
        return read(n_out)
    square = np.asarray(n_out_sq, float)
    spread = np.sqrt(np.maximum(square - n_out**2, 0))
    # A spread above the mean would put one point below zero: it moves to zero, the other keeps the moments.
    wide = spread > n_out
    high = np.where(wide, square / np.maximum(n_out, 1e-300), n_out + spread)
    weight = np.where(wide, n_out / np.maximum(high, 1e-300), 0.5)
    return weight * read(high) + (1 - weight) * read(np.maximum(n_out - spread, 0))


def cost_parts(
    shape: ModelShape, policy: Policy, n_in: ArrayLike, n_out: ArrayLike, n_trials: ArrayLike = 1, *,
    n_out_sq: ArrayLike | None = None, counting: str = "exact", bytes_per_element: float = 2,
    share_prompt: bool = True, dense_layers: int = 0, params: ArrayLike | None = None, batch: ArrayLike | None = None,
) -> dict[str, Cost]:  # fmt: skip
    """The cost of one request by part: ``parameters``, ``attention``, ``search``. See :func:`decode_cost`."""
    n_in, n_out, n_trials = (np.asarray(x, float) for x in (n_in, n_out, n_trials))
    require((n_in >= 0) & np.isfinite(n_in), "n_in must be >= 0 and finite (tokens)", n_in)
    require((n_out >= 0) & np.isfinite(n_out), "n_out must be >= 0 and finite (tokens)", n_out)
    require((n_trials >= 1) & np.isfinite(n_trials), "n_trials must be >= 1", n_trials)
    require(bytes_per_element > 0, "bytes_per_element must be positive", bytes_per_element)
    rule = f"dense_layers must be 0..{shape.n_layers} for {shape.name}"
    require(0 <= dense_layers <= shape.n_layers, rule, dense_layers)
    if n_out_sq is not None:
        n_out_sq = np.asarray(n_out_sq, float)
        require(n_out_sq >= n_out**2 * (1 - 1e-9), "n_out_sq must be >= n_out**2 (it is E[L^2])", n_out_sq)
    among(_COUNT, counting, "counting")
    if params is None:
        released = shape.released_params or shape.n_active_params
        params = shape.n_matmul_params if counting == "exact" else released
    params = np.asarray(params, float)
    require(params > 0, "params must be positive (parameters)", params)

    weight_bytes = np.zeros(())
    if batch is not None:
        batch = np.asarray(batch, float)
        require(batch > 0, "batch must be positive (sequences decoded together)", batch)
        weight_bytes = shape.weights_read(batch) * bytes_per_element / batch * n_trials * n_out
    parameters = Cost(2 * params * n_trials * n_out, weight_bytes * np.ones_like(n_in))

    work = _Work(n_in, n_out, n_trials, n_out_sq, share_prompt, shape.gqa_ratio)
    whole = work.whole_context()
    own = dense = {"attention": whole, "search": (0 * whole[0], 0 * whole[1])}
    share = 0.0  # of layers that stay dense
    if not isinstance(policy, Dense):
        own, share = _COUNT[counting](policy, work), dense_layers / shape.n_layers

    def priced(kind: str, flops: float, elements: float) -> Cost:
        pairs = zip(own[kind], dense[kind], strict=True)
        computed, moved = ((1 - share) * sparse + share * full for sparse, full in pairs)
        return Cost(flops * computed, elements * bytes_per_element * moved)

    return {
        "parameters": parameters,
        "attention": priced("attention", shape.attention_flops_per_token, shape.kv_elements_per_token),
        "search": priced("search", shape.score_flops_per_token, shape.key_elements_per_token),
    }


def decode_cost(
    shape: ModelShape,
    policy: Policy,
    n_in: ArrayLike,
    n_out: ArrayLike,
    n_trials: ArrayLike = 1,
    **options: Any,
) -> Cost:
    """Cost of generating ``n_trials`` answers of ``n_out`` tokens to one prompt of ``n_in`` tokens.

    Options:
        n_out_sq: E[L^2] when ``n_out`` is a mean length E[L] (Eq. 10).
        counting: "exact", "paper" or "released" (see the module).
        bytes_per_element: stored size of a KV element (and of a weight, with ``batch``).
        share_prompt: dense attention and the scan for blocks read the prompt once for all trials, as Eq. 2
            does; chosen tokens never are shared, since each trial chooses its own.
        dense_layers: that many layers stay dense whatever the policy.
        params: P, parameters that multiply. Default: counted (exact) or the released table.
        batch: sequences decoded together, which share the weights' traffic. None: an endless batch, the
            paper's assumption, where weights cost no bytes.

    Raises ``ValueError`` naming the argument for values out of range and for a policy that the counting
    does not price. Left out in all countings: prefill, activations, sampling, communication.
    """
    parts = cost_parts(shape, policy, n_in, n_out, n_trials, **options)
    return parts["parameters"] + parts["attention"] + parts["search"]


def prefill_cost(shape: ModelShape, n_in: ArrayLike, *, params: ArrayLike | None = None) -> Cost:
    """Cost of reading the prompt, which the law leaves out: 2 P n_in plus causal attention, in FLOP.

    The output head is needed for the last prompt token only, and counted once. The traffic, one pass over the weights
    and one write of the cache for the whole batch, is small beside the arithmetic and not counted.
    """
    n_in = np.asarray(n_in, float)
    require(n_in >= 0, "n_in must be >= 0 (tokens)", n_in)
    params = shape.n_matmul_params if params is None else np.asarray(params, float)
    body = params - shape.head_params
    flops = 2 * (body * n_in + shape.head_params * np.minimum(n_in, 1))
    return Cost(flops + shape.attention_flops_per_token * attended(0, n_in), np.zeros_like(n_in))


def max_batch(
    shape: ModelShape,
    hardware: Hardware,
    context: ArrayLike,
    *,
    bytes_per_element: float = 2,
    reserve: float = 0.0,
) -> np.ndarray:
    """Sequences of ``context`` cached tokens that fit in memory beside all the weights (0 where none does).

    ``reserve``: share of the memory kept for activations and the allocator. Sparse attention reads fewer
    tokens and stores them all, so the policy makes no difference here.
    """
    context = np.asarray(context, float)
    require(context > 0, "context must be positive (tokens)", context)
    require(0 <= reserve < 1, "reserve must be in [0, 1) (share of the memory)", reserve)
    free = hardware.memory * (1 - reserve) - shape.n_params * bytes_per_element
    return np.maximum(np.floor(free / (shape.kv_bytes_per_token(bytes_per_element) * context)), 0)


# --- how many tokens each counting reads --------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    n_in: np.ndarray
    n_out: np.ndarray
    n_trials: np.ndarray
    n_out_sq: np.ndarray | None
    share_prompt: bool
    gqa_ratio: int

    @property
    def square(self) -> np.ndarray:
        return self.n_out**2 if self.n_out_sq is None else self.n_out_sq

    def whole_context(self) -> tuple[np.ndarray, np.ndarray]:
        """Token reads when every step passes over the whole context: those computed with, those moved."""
        prompt, own = self.n_in * self.n_out, self.n_trials * self.square / 2
        computed = self.n_trials * prompt + own
        return computed, (prompt + own if self.share_prompt else computed)


# Each returns token reads as (computed with, moved from memory) for the attention and the search of a sparse policy.
_Reads = dict[str, tuple[np.ndarray, np.ndarray]]
_NONE = (np.zeros(()), np.zeros(()))


def _exact(policy: Policy, work: _Work) -> _Reads:
    scanned = policy.keys_scored_per_token
    computed, moved = work.whole_context()
    reads = work.n_trials * attended(work.n_in, work.n_out, policy.tokens_read, work.n_out_sq)
    return {"attention": (reads, reads), "search": (scanned * computed, scanned * moved)}


def _published_budget(policy: Policy, counting: str) -> float:
    """Budget of a policy that the paper prices, or ``ValueError``."""
    extras = isinstance(policy, TopK) and not policy.oracle
    extras |= isinstance(policy, BlockTopK) and (policy.sink > 0 or policy.last_block)
    if type(policy) not in (TopK, BlockTopK, Local) or extras:
        raise ValueError(
            f"counting {counting!r} has no price for {policy}; it knows dense, topk:B, block_topk:B:b and "
            "local:window:sink (use counting='exact')"
        )
    return policy.tokens_read


def _paper(policy: Policy, work: _Work) -> _Reads:
    reads = work.n_trials * _published_budget(policy, "paper") * work.n_out  # Eq. 8: no ramp below the budget
    search = _NONE
    if isinstance(policy, BlockTopK):
        # Eq. 9 as printed: the prompt's compute term lacks the factor r that every other compute term has.
        computed = work.n_trials * (work.n_in * work.n_out / work.gqa_ratio + work.square / 2)
        search = (computed / policy.block_size, work.whole_context()[1] / policy.block_size)
    return {"attention": (reads, reads), "search": search}


def _released(policy: Policy, work: _Work) -> _Reads:
    budget = _published_budget(policy, "released")
    ramp = np.maximum(budget - work.n_in, 0) ** 2 / 2
    if not isinstance(policy, BlockTopK):
        reads = work.n_trials * (budget * work.n_out + ramp)  # adds the ramp that it should subtract
        return {"attention": (reads, reads), "search": _NONE}
    reads = work.n_trials * (budget * work.n_out - ramp)
    n_in, n_out, block = work.n_in, work.n_out, policy.block_size
    if work.n_out_sq is None:
        computed = work.n_trials * ((2 * n_in + n_out) // block) * n_out / 2
        moved = ((2 * n_in + n_out * work.n_trials) // block) * n_out / 2
    else:  # the floor acts on each length, which moments do not tell: left out, under one block in (2 n_in + n_out)
        computed, moved = (whole / block for whole in work.whole_context())
    return {"attention": (reads, reads), "search": (computed, moved)}


_COUNT = {"exact": _exact, "paper": _paper, "released": _released}
