"""From a summary of traces to a law: price every setting, choose the best under each cost, say how sure that is.

A *summary* has one row per model, policy and problem: how many traces, how many correct, the moments of
their lengths (see :mod:`kinetics_lab.traces.table`). :func:`cost_table` prices each row for each number of trials N.
An :class:`Allocation` says which setting every problem gets under every cost; all curves, winners, intervals
and token counts are read off it (how sure they are: :mod:`kinetics_lab.laws.resample`). Costs are eFLOPs, lengths tokens, accuracies shares of problems solved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.clock import Clock, answer_seconds
from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import Dense, Policy, parse_policy
from kinetics_lab.cost.request import decode_cost
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import among, lookup, require
from kinetics_lab.traces.table import pass_at_k

TRIALS = (1, 2, 4, 8, 16, 32)
SUMMARY = (
    "model", "task", "policy", "problem", "tokens_in", "n_traces", "n_correct", "mean_tokens", "mean_sq_tokens",
)  # fmt: skip
SETTING = ("model", "policy", "cap", "n_trials")  # what a user chooses; a problem gets one of these


def cost_table(
    summary: pd.DataFrame, hardware: Hardware, trials: Sequence[int] = TRIALS, *, shapes: Mapping[str, ModelShape] = MODELS,
    combine: str = "add", params: Mapping[str, float] | None = None, price_as: Callable[[Policy], Policy] | None = None,
    clock: Clock | None = None, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """Cost and accuracy of every setting for every problem: a row per summary row and N <= its traces.

    Best-of-N is a summary of whole traces with several ``trials`` (accuracy Pass@N); Long-CoT a summary at
    several length caps (column ``cap``) with ``trials=(1,)``; both grids at once are one more choice.

    Args:
        summary: columns of ``SUMMARY`` and, for Long-CoT, ``cap``.
        params: P by model where the counting's own is not wanted.
        price_as: the policy to price a row as, given its own (sink tokens that the engine read, for example).
        clock: seconds by this clock in place of FLOP and bytes at peak rates: ``eflops`` is then what the hardware could
            have done in that time (Eq. 3), and columns ``seconds`` (of the whole device) and ``inside`` (whether the
            longest context lies within what was measured) are added. Needs the option ``batch``; no prompt is shared.
        options: of :func:`kinetics_lab.cost.request.decode_cost` (counting, dense_layers, ...); the size of a cached
            element is the hardware's unless told.

    Added columns: ``n_trials`` (N), ``accuracy``, ``tokens`` (N E[L]), ``flops``, ``bytes``, ``eflops``. Raises
    ``ValueError`` for a missing column, an unknown model or policy, an empty summary, numbers of trials below one, or a
    clock without a batch.
    """
    for column in SUMMARY:
        among(summary, column, "the summary lacks a column: column")
    require(len(summary) > 0, "the summary must have at least one row", len(summary))
    require(all(n >= 1 for n in trials) and len(trials) > 0, "trials must be numbers >= 1", list(trials))
    summary = summary if "cap" in summary else summary.assign(cap=np.nan)
    options = {"bytes_per_element": hardware.bytes_per_element} | options
    parts = []
    for (name, text), rows in summary.groupby(["model", "policy"], sort=False, observed=True):
        shape, policy = lookup(shapes, name, "model"), parse_policy(str(text))
        n = np.repeat(np.asarray(trials, int), len(rows))
        table = pd.concat([rows] * len(trials), ignore_index=True).assign(n_trials=n)
        table = table[table.n_trials <= table.n_traces].reset_index(drop=True)
        own = (params or {}).get(str(name))
        read = price_as(policy) if price_as else policy
        names = ("tokens_in", "mean_tokens", "n_trials", "mean_sq_tokens")
        n_in, mean, n_trials, square = moments = [table[column].to_numpy(float) for column in names]
        found = decode_cost(shape, read, n_in, mean, n_trials, n_out_sq=square, params=own, **options)
        priced = {"flops": found.flops, "bytes": found.bytes, "eflops": found.eflops(hardware, combine)}
        if clock is not None:
            require("batch" in options, "a clock needs batch (answers decoded together)", sorted(options))
            priced |= _timed(moments, shape, read, clock, options["batch"], options.get("dense_layers", 0))
            priced["eflops"] = priced["seconds"] * hardware.peak_flops
        parts.append(table.assign(tokens=n_trials * mean, **priced))
    table = pd.concat(parts, ignore_index=True)
    rule = f"no row has as many traces as trials={list(trials)}"
    require(len(table) > 0, rule, int(summary.n_traces.max()))
    table["accuracy"] = pass_at_k(table.n_traces, table.n_correct, table.n_trials)
    return table


def _timed(
    moments: Sequence[np.ndarray],
    shape: ModelShape,
    policy: Policy,
    clock: Clock,
    batch: float,
    dense_layers: int,
) -> dict[str, np.ndarray]:
    """Seconds of the device for every row, its answers decoded in batches of ``batch``; whether all was measured."""
    n_in, mean, n_trials, square = moments

    def took(one: Policy) -> np.ndarray:
        parts = answer_seconds(clock, shape, n_in, mean, batch, one, n_out_sq=square)
        return np.sum(list(parts.values()), 0)

    seconds, share = took(policy), dense_layers / shape.n_layers
    if share and not isinstance(policy, Dense):  # the products are the same in both
        seconds = (1 - share) * seconds + share * took(Dense())
    return {"seconds": n_trials * seconds / batch, "inside": clock.inside(shape, batch, n_in + square / mean)}


@dataclass(frozen=True)
class Allocation:
    """The setting that each problem gets under each cost: ``rows[problem, cost]`` of ``table``, -1 for none."""

    table: pd.DataFrame
    problems: np.ndarray
    costs: np.ndarray
    rows: np.ndarray

    def values(self, column: str, missing: float = 0.0) -> np.ndarray:
        """A column of the chosen rows, shape [problem, cost]; ``missing`` where nothing fits."""
        among(self.table, column, "column")
        return np.where(self.rows < 0, missing, self.table[column].to_numpy(float)[self.rows])

    @property
    def accuracy(self) -> np.ndarray:
        """Mean over problems for each cost; a problem that nothing fits counts as unsolved."""
        return self.values("accuracy").mean(0)

    @property
    def tokens(self) -> np.ndarray:
        """Optimal tokens under a linear cost: the largest N E[L] over the problems (Section 3); NaN for none."""
        values = self.values("tokens", np.nan)
        return np.where(np.isnan(values).all(0), np.nan, np.nanmax(np.nan_to_num(values, nan=-np.inf), 0))


def _checked(table: pd.DataFrame, costs: ArrayLike, score: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The costs; of each row the place of its problem among the sorted ones, and these."""
    costs = np.asarray(costs, float)
    require(costs.ndim == 1 and costs.size > 0, "costs must be a list of eFLOPs", costs)
    rising = (costs > 0) & (np.diff(costs, prepend=0) > 0)
    require(rising, "costs must be positive and ascending (eFLOPs)", costs)
    for column in ("problem", "eflops", score):
        among(table, column, "the cost table lacks a column: column")
    require(len(table) > 0, "the cost table must have at least one row", len(table))
    tasks = table.task.unique() if "task" in table else [""]
    require(len(tasks) == 1, "one allocation is for one task", sorted(map(str, tasks)))
    place, problems = pd.factorize(table.problem, sort=True)
    return costs, place, np.asarray(problems)


def oracle_allocation(
    table: pd.DataFrame, costs: ArrayLike, score: str = "accuracy", ties: str = "cheapest"
) -> Allocation:
    """For each problem the setting of highest ``score`` that costs no more than the cap (Algorithms 1 and 2).

    As released, a setting's cost is its MEAN over the problem's traces. Of equal scores the ``ties``
    ("cheapest" or "dearest") one is taken; that matters for tokens spent and for scores on other trials.
    """
    among(("cheapest", "dearest"), ties, "ties")
    costs, problem, problems = _checked(table, costs, score)
    price, value = table.eflops.to_numpy(float), table[score].to_numpy(float)
    rows = np.full((len(problems), len(costs)), -1)
    for i in range(len(problems)):
        own = np.flatnonzero(problem == i)
        own = own[pareto_frontier(price[own], value[own], equals=ties == "dearest")]
        place = np.searchsorted(price[own], costs, side="right") - 1
        rows[i] = np.where(place >= 0, own[place], -1)
    return Allocation(table, problems, costs, rows)


def uniform_allocation(table: pd.DataFrame, costs: ArrayLike, score: str = "accuracy") -> Allocation:
    """One setting for ALL problems: what a user can do who cannot tell hard problems from easy ones.

    The mean cost over the problems is compared with the cap. Settings that lack a problem are left out.
    """
    costs, problem, problems = _checked(table, costs, score)
    keys = [name for name in SETTING if name in table]
    setting = table.groupby(keys, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    n_settings = setting.max() + 1
    if (twice := table.duplicated([*keys, "problem"])).any():
        require(False, "a setting must have one row per problem", table[twice].head(1).to_dict("records"))
    rows = np.full((n_settings, len(problems)), -1)
    rows[setting, problem] = np.arange(len(table))
    rows = rows[(rows >= 0).all(1)]
    if not len(rows):
        require(False, "no setting covers every problem", table[keys].drop_duplicates().to_dict("records"))
    price = table.eflops.to_numpy(float)[rows].mean(1)
    value = table[score].to_numpy(float)[rows].mean(1).round(12)  # equal but for rounding is equal
    front = pareto_frontier(price, value)
    place = np.searchsorted(price[front], costs, side="right") - 1
    chosen = np.where(place[:, None] >= 0, rows[front[place]], -1)
    return Allocation(table, problems, costs, chosen.T)


def mean_allocation(table: pd.DataFrame, costs: ArrayLike, score: str = "accuracy") -> Allocation:
    """For each problem its own setting, chosen in hindsight so that the MEAN cost over the problems stays below each cap.

    Money goes where the next unit of it adds most to ``score``: up the concave hull of every problem's settings. No
    allocation does better at the mean cost that this one has (between two steps of the hull some of a cap is left over).
    """
    costs, problem, problems = _checked(table, costs, score)
    price_, value = table.eflops.to_numpy(float), table[score].to_numpy(float)
    steps = list[tuple[float, int, float, int]]()  # gain for each unit of cost, problem, cost, row
    for i in range(len(problems)):
        own = np.flatnonzero(problem == i)
        own = own[pareto_frontier(price_[own], value[own])]
        x, y, at = np.r_[0, price_[own]], np.r_[0, value[own]], 0
        while at < len(own):
            gains = (y[at + 1 :] - y[at]) / (x[at + 1 :] - x[at])
            to = at + 1 + int(gains.argmax())
            if gains.max() <= 0:
                break
            steps.append((-float(gains.max()), i, float(x[to] - x[at]), int(own[to - 1])))
            at = to
    steps.sort(key=lambda step: step[0])  # stable: a problem's own steps stay in order
    taken = np.searchsorted(np.cumsum([cost for *_, cost, _ in steps]) / len(problems), costs, side="right")
    rows = np.full((len(problems), len(costs)), -1)
    for j, (_, i, _, row) in enumerate(steps):
        rows[i, taken > j] = row
    return Allocation(table, problems, costs, rows)


def curves(
    table: pd.DataFrame, costs: ArrayLike, by: str = "model", allocate: Callable[..., Allocation] = oracle_allocation
) -> dict[str, Allocation]:  # fmt: skip
    """One allocation for each value of the column ``by``, in order of appearance."""
    among(table, by, "column")
    return {str(name): allocate(rows, costs) for name, rows in table.groupby(by, sort=False, observed=True)}


def pareto_frontier(cost: ArrayLike, value: ArrayLike, equals: bool = False) -> np.ndarray:
    """Indices of the points that no cheaper (or equally dear) point equals (unless ``equals``) or beats, by ascending cost."""
    cost, value = np.asarray(cost, float), np.asarray(value, float)
    alike = cost.shape == value.shape and cost.ndim == 1
    require(alike, "cost and value must be equally long", (cost.shape, value.shape))
    order = np.lexsort((-value, cost))
    before = np.maximum.accumulate(np.r_[-np.inf, value[order]])[:-1]
    return order[(value[order] > before) | (equals & (value[order] == before))]


def cost_to_reach(costs: ArrayLike, accuracy: ArrayLike, levels: ArrayLike) -> np.ndarray:
    """Smallest of ``costs`` at which the (never falling) ``accuracy`` reaches each level; NaN where none does."""
    costs, accuracy, levels = (np.asarray(x, float) for x in (costs, accuracy, levels))
    require(np.diff(accuracy) >= -1e-12, "accuracy must not fall with the cost", accuracy)
    place = np.searchsorted(np.maximum.accumulate(accuracy), levels - 1e-12)
    return np.where(place < len(costs), costs[np.minimum(place, len(costs) - 1)], np.nan)


def reigns(costs: ArrayLike, names: Sequence[str]) -> pd.DataFrame:
    """Where which name wins: one row per unbroken run, with its first and last cost ("" is nobody)."""
    costs, who = np.asarray(costs, float), np.asarray(names, object)
    starts = np.flatnonzero(np.r_[True, who[1:] != who[:-1]])
    ends = np.r_[starts[1:] - 1, len(who) - 1]
    table = pd.DataFrame({"winner": who[starts], "from_cost": costs[starts], "to_cost": costs[ends]})
    return table[table.winner != ""].reset_index(drop=True)
