"""What decoding costs: FLOP, bytes and eFLOPs of one request (Section 3, Eqs. 1-4 and 8-10).

Three countings of the same decode:

- ``exact``: what a decoder really reads and multiplies, the sum over steps in closed form;
- ``paper``: the equations as printed, with what they leave out;
- ``released``: the authors' code as it is, faults included (block top-k far below its budget costs less than nothing), so that their numbers can be matched.

All functions broadcast over arrays. Units: FLOP, bytes, seconds, tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.countings import COUNTINGS, Work, own_reads
from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.policies import Dense, Policy
from kinetics_lab.cost.shapes import CACHE_KINDS, PARAMETER_KINDS, ModelShape
from kinetics_lab.cost.shapes.parts import State
from kinetics_lab.errors import among, counts, require

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
        """Time at peak rates, s: with "max" a lower bound; with "add" not one, since kernels overlap (chapter 24)."""
        return self.eflops(hardware, combine) / hardware.peak_flops


def cost_parts(
    shape: ModelShape, policy: Policy, n_in: ArrayLike, n_out: ArrayLike, n_trials: ArrayLike = 1, *,
    n_out_sq: ArrayLike | None = None, counting: str = "exact", bytes_per_element: float | Mapping[str, float] = 2,
    share_prompt: bool = True, dense_layers: int = 0, params: ArrayLike | None = None, batch: ArrayLike | None = None,
) -> dict[str, Cost]:  # fmt: skip
    """The cost of one request by part; see :func:`decode_cost`.

    ``parameters``; ``attention``; ``search`` (what a policy or the model's own index scans); and ``state`` where the
    model has layers that carry one: it is read and written by each step.
    """
    n_in, n_out = counts(n_in, "n_in", unit=" (tokens)"), counts(n_out, "n_out", unit=" (tokens)")
    n_trials = counts(n_trials, "n_trials", 1)
    size = element_sizes(bytes_per_element)
    if n_out_sq is not None:
        n_out_sq = np.asarray(n_out_sq, float)
        require(n_out_sq >= n_out**2 * (1 - 1e-9), "n_out_sq must be >= n_out**2 (it is E[L^2])", n_out_sq)
    among(COUNTINGS, counting, "counting")
    if params is None:
        released = shape.released_params or shape.n_active_params
        params = shape.n_matmul_params if counting == "exact" else released
    params = np.asarray(params, float)
    require(params > 0, "params must be positive (parameters)", params)

    weight_bytes = np.zeros(())
    if batch is not None:
        batch = np.asarray(batch, float)
        read = sum(size[kind] * met for kind, met in shape.parameters_read(batch).items())
        weight_bytes = read / batch * n_trials * n_out
    found = {"parameters": Cost(2 * params * n_trials * n_out, weight_bytes * np.ones_like(n_in))}
    work = Work(n_in, n_out, n_trials, n_out_sq, share_prompt)
    return found | _mixer_costs(shape, policy, work, counting, size, dense_layers)


def _mixer_costs(
    shape: ModelShape, policy: Policy, work: Work, counting: str, size: Mapping[str, float], dense_layers: int
) -> dict[str, Cost]:
    """What attention, indices and states cost. The policy thins out layers that read their whole cache, and no others."""
    rule = f"dense_layers must be 0..{shape.n_whole} for {shape.name}"
    require(0 <= dense_layers <= shape.n_whole, rule, dense_layers)
    share = dense_layers / max(shape.n_whole, 1)  # of layers that the policy leaves alone
    nothing = Cost(0 * work.whole_context()[0], 0 * work.whole_context()[1])
    found = {"attention": nothing, "search": nothing}
    for mixer, count in shape.mixers.items():
        if isinstance(mixer, State):
            once = count * work.n_trials * work.n_out
            moved = 2 * (mixer.recurrent * size["state"] + mixer.conv * size["conv"])
            found["state"] = found.get("state", nothing) + Cost(once * mixer.flops, once * moved)
            continue
        own = dense = own_reads(mixer, work)
        search_flops, search_bytes = 2 * mixer.index_heads * mixer.index, mixer.index * size["index"]
        if mixer.whole and not isinstance(policy, Dense):
            own = COUNTINGS[counting](policy, work, mixer.ratio)
            search_flops, search_bytes = mixer.score_flops, mixer.keys * size["kv"]

        for part, flops, moved in (
            ("attention", mixer.flops, mixer.entry * size["kv"]), ("search", search_flops, search_bytes)
        ):  # fmt: skip
            pairs = zip(own[part], dense[part], strict=True)
            a, b = ((1 - share) * mine + share * full if mixer.whole else mine for mine, full in pairs)
            found[part] += Cost(count * flops * a, count * moved * b)
    return found


def mixing(parts: Mapping[str, Cost]) -> Cost:
    """Of :func:`cost_parts` all but the parameters, as one: attention, what is scanned for it, and states."""
    return sum((part for name, part in parts.items() if name != "parameters"), Cost(0.0, 0.0))


def element_sizes(bytes_per_element: float | Mapping[str, float]) -> Mapping[str, float]:
    """Bytes of an element of each kind of cache and of parameters: one number for all, or a mapping that has them all."""
    kinds = (*CACHE_KINDS, *PARAMETER_KINDS)
    one = bytes_per_element
    sizes = one if isinstance(one, Mapping) else dict.fromkeys(kinds, one)
    require(min(sizes.values()) > 0, "bytes_per_element must be positive", one)
    return sizes


def decode_cost(
    shape: ModelShape, policy: Policy, n_in: ArrayLike, n_out: ArrayLike, n_trials: ArrayLike = 1, **options: Any
) -> Cost:  # fmt: skip
    """Cost of generating ``n_trials`` answers of ``n_out`` tokens to one prompt of ``n_in`` tokens.

    Options:
        n_out_sq: E[L^2] when ``n_out`` is a mean length E[L] (Eq. 10).
        counting: "exact", "paper" or "released" (see the module).
        bytes_per_element: stored size of a KV element (and of a weight, with ``batch``), or one for each kind
            (``CACHE_KINDS``, ``PARAMETER_KINDS``).
        share_prompt: dense attention and the scan for blocks read the prompt once for all trials, as Eq. 2
            does; chosen tokens never are shared, since each trial chooses its own.
        dense_layers: that many of the layers that read their whole cache stay dense whatever the policy.
        params: P, parameters that multiply. Default: counted (exact) or the released table.
        batch: sequences decoded together, which share the weights' traffic. None: an endless batch, the
            paper's assumption, where weights cost no bytes.

    A policy acts on layers that read their whole cache. Windows, chunks and the model's own choice of entries stay what
    they are: what each token chooses is not shared by trials, while windows share the prompt as far as they see it.

    Raises ``ValueError`` naming the argument for values out of range and for a policy that the counting
    does not price. Left out in all countings: prefill, activations, sampling, communication.
    """
    parts = cost_parts(shape, policy, n_in, n_out, n_trials, **options)
    return sum(parts.values(), Cost(0.0, 0.0))


def prefill_cost(shape: ModelShape, n_in: ArrayLike) -> Cost:
    """Cost of reading the prompt, which the law leaves out: 2 P n_in plus causal attention, in FLOP.

    The output head is needed for the last prompt token only, and counted once. Latent attention reads a prompt
    unabsorbed, with each head's own keys and values, unless attending to chosen entries in the absorbed form takes less. The traffic,
    one pass over the weights and one write of the cache for the whole batch, is small beside the arithmetic and not counted.
    """
    n_in = counts(n_in, "n_in", unit=" (tokens)")
    body = shape.n_matmul_params - shape.head_params
    flops = 2 * (body * n_in + shape.head_params * np.minimum(n_in, 1))
    work = Work(np.zeros_like(n_in), n_in, np.ones(()), None, False)
    for mixer, count in shape.mixers.items():
        if isinstance(mixer, State):
            flops = flops + count * mixer.flops * n_in
            continue
        reads = own_reads(mixer, work)
        pairs = mixer.flops * reads["attention"][0]
        if mixer.unabsorbed:
            all_pairs = own_reads(replace(mixer, topk=np.inf), work)["attention"][0]
            plain = 2 * mixer.heads * mixer.unabsorbed * all_pairs
            pairs = np.minimum(pairs, plain) if mixer.topk < np.inf else plain
        flops = flops + count * (pairs + 2 * mixer.index_heads * mixer.index * reads["search"][0])
    return Cost(flops, np.zeros_like(n_in))


def max_batch(
    shape: ModelShape, hardware: Hardware, context: ArrayLike, *,
    bytes_per_element: float | Mapping[str, float] = 2, reserve: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Sequences of ``context`` cached tokens that fit in memory beside all the weights (0 where none does).

    ``reserve``: share of the memory kept for activations and the allocator. Sparse attention reads fewer
    tokens and stores them all, so the policy makes no difference here.
    """
    context = np.asarray(context, float)
    require(context > 0, "context must be positive (tokens)", context)
    require(0 <= reserve < 1, "reserve must be in [0, 1) (share of the memory)", reserve)
    size = element_sizes(bytes_per_element)
    free = hardware.memory * (1 - reserve) - sum(size[kind] * n for kind, n in shape.parameters.items())
    each = sum(size[kind] * n for kind, n in shape.stored(context).items())
    return np.maximum(np.floor(free / each), 0)
