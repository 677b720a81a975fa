"""Lengths read off a published cost axis, so that the same curve can be priced for other hardware.

A published curve says: this accuracy for that many FLOP. The law turns the FLOP back into tokens, and the
tokens into any other price: another intensity, another parameter count, another counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.models import find_model
from kinetics_lab.cost.policies import Dense, Policy
from kinetics_lab.cost.request import Cost, decode_cost
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import lookup, require
from kinetics_lab.laws.frontier import pareto_frontier, reigns

_LONGEST = 1e9  # tokens: beyond any context window


def length_at(
    shape: ModelShape, policy: Policy, cost: ArrayLike, n_in: ArrayLike, n_trials: ArrayLike = 1, *,
    hardware: Hardware | None = None, combine: str = "add", **options: Any,
) -> np.ndarray:  # fmt: skip
    """Generated tokens that ``cost`` pays for: the inverse of :func:`kinetics_lab.cost.request.decode_cost` in ``n_out``.

    Bisection, to 1e-9 of the length; ``cost``, ``n_in`` and ``n_trials`` broadcast. Where the counting makes
    the cost jump (the floors of the released block search) it is the length at the jump.

    Args:
        cost: FLOP of one request, or eFLOPs where ``hardware`` is given.
        combine: how FLOP and traffic make eFLOPs, "add" or "max" (with ``hardware``).
        options: of ``decode_cost``, but ``n_out_sq``: a second moment belongs to one known mean length.

    Raises ``ValueError`` for a cost that is not finite, is below the cost of no token at all, or pays for
    more than 1e9 tokens, and for whatever ``decode_cost`` refuses.
    """
    if "n_out_sq" in options:
        raise ValueError("n_out_sq cannot be given: length_at looks for one length, not a mean of several")
    cost, n_in, n_trials = np.broadcast_arrays(*(np.asarray(x, float) for x in (cost, n_in, n_trials)))
    require(np.isfinite(cost), "cost must be finite (FLOP, or eFLOPs with hardware)", cost)

    def paid(n_out: np.ndarray) -> np.ndarray:
        work = decode_cost(shape, policy, n_in, n_out, n_trials, **options)
        return np.asarray(work.eflops(hardware, combine) if hardware else work.flops)

    low, high = np.zeros(cost.shape), np.ones(cost.shape)
    least = paid(low)
    require(cost >= least, f"cost must be at least {np.max(least):.3g}, that of no token", cost)
    while (short := paid(high) < cost).any():
        require(not (short & (high > _LONGEST)).any(), "cost must pay for at most 1e9 tokens", cost)
        low, high = np.where(short, high, low), np.where(short, 2 * high, high)
    while ((high - low) > 1e-9 * high).any():
        middle = (low + high) / 2
        short = paid(middle) < cost
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return high


def lengths(table: pd.DataFrame, cost: str, n_in: float, **options: Any) -> np.ndarray:
    """Tokens that column ``cost`` of ``table`` (FLOP; eFLOPs with a ``hardware``) pays for, a row at a time.

    ``table`` has a column ``model`` of names in MODELS; attention is dense. Options and errors are those of
    :func:`length_at`.
    """
    found = np.empty(len(table))
    for name, rows in table.groupby("model").indices.items():
        paid = table[cost].to_numpy(float)[rows]
        found[rows] = length_at(find_model(str(name)), Dense(), paid, n_in, **options)
    return found


def price(
    table: pd.DataFrame, n_in: float, *, params: Mapping[str, float] | None = None, **options: Any
) -> Cost:
    """Cost of one dense answer of ``tokens`` generated tokens for each row of ``table`` (``model``, ``tokens``).

    ``params`` gives P by model where the counting's own is not wanted; options are those of ``decode_cost``.
    """
    flops, moved = np.empty(len(table)), np.empty(len(table))
    for name, rows in table.groupby("model").indices.items():
        n_out, own = table.tokens.to_numpy(float)[rows], (params or {}).get(str(name))
        found = decode_cost(find_model(str(name)), Dense(), n_in, n_out, params=own, **options)
        flops[rows], moved[rows] = found.flops, found.bytes
    return Cost(flops, moved)


def ladder(cost: ArrayLike, accuracy: ArrayLike, name: ArrayLike, order: Sequence[str]) -> pd.DataFrame:
    """From which cost on no earlier name of ``order`` wins any more: the steps under a frontier that flickers.

    Args:
        cost, accuracy, name: points of all curves together; the frontier is the best accuracy so far.
        order: the names, smallest model first.

    One row per name that has a step: ``winner``, ``from_cost``, ``to_cost``, ``times`` (their ratio) and
    ``accuracy`` at ``from_cost``. Raises ``ValueError`` for a name that ``order`` lacks.
    """
    cost, accuracy = np.asarray(cost, float), np.asarray(accuracy, float)
    front = pareto_frontier(cost, accuracy)
    place = {one: i for i, one in enumerate(order)}
    ranks = np.array([lookup(place, one, "name") for one in np.asarray(name, object)[front]], int)
    last = np.minimum.accumulate(ranks[::-1])[::-1]  # the earliest name that wins here or later
    steps = reigns(cost[front], list(np.asarray(order, object)[last]))
    reached = accuracy[front][np.searchsorted(cost[front], steps.from_cost)]
    return steps.assign(times=steps.to_cost / steps.from_cost, accuracy=reached)


def cost_at(cost: ArrayLike, accuracy: ArrayLike, level: ArrayLike) -> np.ndarray:
    """Cost at which a drawn curve reaches each level, interpolated on a log axis; NaN beyond its ends.

    For curves read from figures, which join their points; the cheapest POINT that reaches a level is
    :func:`kinetics_lab.laws.frontier.cost_to_reach`. ``cost`` ascends; dips of ``accuracy`` are levelled.
    """
    cost, accuracy, level = (np.asarray(x, float) for x in (cost, accuracy, level))
    require((cost > 0) & (np.diff(cost, prepend=0) > 0), "cost must be positive and ascending", cost)
    # On a flat stretch the first point counts: what follows is moved up by less than any reading error.
    rising = np.maximum.accumulate(accuracy) + 1e-12 * np.arange(len(accuracy))
    inside = (level >= rising[0]) & (level <= rising[-1])
    return np.where(inside, np.exp(np.interp(level, rising, np.log(cost))), np.nan)
