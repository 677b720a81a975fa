"""How many cached tokens a decode reads, computed with and moved from memory, by counting.

The sums over the steps of a decode, in closed form, for attention as a model has it and under a published policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.policies import BlockTopK, Local, Policy, TopK
from kinetics_lab.cost.shapes.parts import Attention


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

    return _mean(read, n_out, n_out_sq)


def _mean(
    read: Callable[[np.ndarray], np.ndarray], n_out: np.ndarray, n_out_sq: ArrayLike | None
) -> np.ndarray:
    """The mean of ``read`` over lengths with these moments; see :func:`attended`."""
    if n_out_sq is None:
        return read(n_out)
    square = np.asarray(n_out_sq, float)
    spread = np.sqrt(np.maximum(square - n_out**2, 0))
    # A spread above the mean would put one point below zero: it moves to zero, the other keeps the moments.
    wide = spread > n_out
    high = np.where(wide, square / np.maximum(n_out, 1e-300), n_out + spread)
    weight = np.where(wide, n_out / np.maximum(high, 1e-300), 0.5)
    return weight * read(high) + (1 - weight) * read(np.maximum(n_out - spread, 0))


@dataclass(frozen=True)
class Work:
    n_in: np.ndarray
    n_out: np.ndarray
    n_trials: np.ndarray
    n_out_sq: np.ndarray | None
    share_prompt: bool

    @property
    def square(self) -> np.ndarray:
        return self.n_out**2 if self.n_out_sq is None else self.n_out_sq

    def whole_context(self) -> tuple[np.ndarray, np.ndarray]:
        """Token reads when every step passes over the whole context: those computed with, those moved."""
        prompt, own = self.n_in * self.n_out, self.n_trials * self.square / 2
        computed = self.n_trials * prompt + own
        return computed, (prompt + own if self.share_prompt else computed)

    def recent(self, window: float, chunk: float) -> tuple[np.ndarray, np.ndarray]:
        """The same where a step sees the last ``window`` tokens, or its own ``chunk``."""
        if window == chunk == np.inf:
            return self.whole_context()
        n_in, n_out, square = self.n_in, self.n_out, self.n_out_sq
        if chunk < np.inf:
            open_ = n_in % chunk  # prompt tokens in the chunk that is being filled
            of_prompt = _mean(lambda length: open_ * np.minimum(length, chunk - open_), n_out, square)

            def sawtooth(n: np.ndarray) -> np.ndarray:  # the integral of n mod chunk
                return (n // chunk * chunk**2 + (n % chunk) ** 2) / 2

            each = _mean(lambda length: sawtooth(open_ + length), n_out, square) - sawtooth(open_)
        else:
            each = attended(n_in, n_out, window, square)
            of_prompt = each - attended(0, n_out, window, square)
        computed = self.n_trials * each
        return computed, (computed - (self.n_trials - 1) * of_prompt if self.share_prompt else computed)


# Each returns token reads as (computed with, moved from memory) for the attention and the search of a sparse policy.
Reads = dict[str, tuple[np.ndarray, np.ndarray]]
_NONE = (np.zeros(()), np.zeros(()))


def own_reads(attention: Attention, work: Work) -> Reads:
    """Entries that attention reads as the model was trained, and entries whose index keys it scans."""
    computed, moved = work.recent(attention.window, attention.chunk)
    seen = computed / attention.stride, moved / attention.stride
    if attention.topk == np.inf:
        return {"attention": seen, "search": _NONE}
    budget = attention.topk * attention.stride
    chosen = work.n_trials * attended(work.n_in, work.n_out, budget, work.n_out_sq) / attention.stride
    return {"attention": (chosen, chosen), "search": seen}


def _exact(policy: Policy, work: Work, ratio: int) -> Reads:
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


def _paper(policy: Policy, work: Work, ratio: int) -> Reads:
    reads = work.n_trials * _published_budget(policy, "paper") * work.n_out  # Eq. 8: no ramp below the budget
    search = _NONE
    if isinstance(policy, BlockTopK):
        # Eq. 9 as printed: the prompt's compute term lacks the factor r that every other compute term has.
        computed = work.n_trials * (work.n_in * work.n_out / ratio + work.square / 2)
        search = (computed / policy.block_size, work.whole_context()[1] / policy.block_size)
    return {"attention": (reads, reads), "search": search}


def _released(policy: Policy, work: Work, ratio: int) -> Reads:
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


COUNTINGS = {"exact": _exact, "paper": _paper, "released": _released}
