"""What to run for a budget: model, policy, number of trials, length cap; how sure that is, and what it leaves.

Costs are those of the law (:mod:`kinetics_lab.cost.request`) at the hardware's peak rates, a lower bound. Accuracy is
Pass@N: more than one trial helps those who can tell a right answer from a wrong one.

A plan is a table with a row for each task and budget and these columns: ``task``; ``budget_s`` or ``budget_eflops``;
``setting`` and what it consists of, ``model``, ``policy``, ``cap``, ``n_trials`` (oracle allocation: the most frequent
one), ``share`` of problems that get it; ``oracle``: no engine can run it; ``accuracy`` with ``low`` and ``high``;
``cost_s`` or ``cost_eflops`` and ``tokens``, means over problems. Uniform allocation only: share of resamples in which
this model and policy win ``again``; ``runner_up``, the best setting of another model or policy, its
``runner_up_accuracy``, and the share in which the choice ``beats`` it (of equal ones the cheapest wins). ``seen`` and
``unseen``: accuracy if chosen on one half of the trials and judged on the same and on the other half, N <= half;
``spent_*``, what those choices cost. ``dense``, ``dense_setting``: what dense attention reaches with the best model.
``note``. In ``attrs``: ``left_out``, what was not considered and why; ``n_settings``, how many were, by task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import lookup, require
from kinetics_lab.laws.frontier import (
    SETTING,
    TRIALS,
    Allocation,
    curves,
    oracle_allocation,
    uniform_allocation,
)
from kinetics_lab.laws.resample import interval, out_of_sample, problem_weights, split_trials
from kinetics_lab.planner import offers as inputs
from kinetics_lab.traces.table import pass_at_k

ALLOCATIONS = {"uniform": uniform_allocation, "oracle": oracle_allocation}
UNITS = {"s": "device seconds", "eflops": "eFLOPs"}
KEYS = [*SETTING]
UNIT = ["model", "policy", "problem"]  # traces of one problem are exchangeable
_NONE: dict[str, Any] = {  # a row, in the order of its columns, of a budget that nothing fits
    "setting": "", "model": "", "policy": "", "cap": np.nan, "n_trials": 0, "share": 0.0, "oracle": False,
    **dict.fromkeys(("accuracy", "low", "high", "cost", "tokens", "again"), np.nan), "runner_up": "",
    **dict.fromkeys(("runner_up_accuracy", "beats", "seen", "unseen", "spent", "dense"), np.nan), "dense_setting": "",
}  # fmt: skip


def plan(
    data: pd.DataFrame, hardware: Hardware, budgets: ArrayLike, *,
    unit: str = "s", allocation: str = "uniform", policies: Sequence[str] = (), topk: str = "scan",
    trials: Sequence[int] = TRIALS, caps: Sequence[int] = (), shapes: Mapping[str, ModelShape] = MODELS,
    batch: float | str | None = None, reserve: float = 0.1,
    n_boot: int = 1000, n_splits: int = 50, seed: int = 0, level: float = 0.95, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """The best setting for each task and budget (ascending); a budget that nothing fits has a row that says so.

    Args:
        data: a trace table, or a summary of one (see :mod:`kinetics_lab.traces.table`).
        budgets: for all trials of one problem, in ``unit``: "s" for seconds of ONE device at its peak rates, or
            "eflops".
        allocation: "uniform", one setting for all problems, or "oracle", its own for each: the paper's
            procedure, which knows how hard a problem is and so an upper bound.
        policies: kinds ("block_topk") or policies ("topk:512") to choose among; empty: all in ``data``.
        topk: how oracle top-k gets its tokens: "scan" scores every key and pays for it, as a user must; "free"
            is the paper's price, which no engine can have; "out" leaves these policies out.
        trials, caps: numbers of answers N; lengths (tokens) to cut answers at, if ``data`` are traces.
        shapes: model shapes by the names in ``data``; see ``own_models``.
        batch, reserve: sequences that share the weights' traffic; see ``price``.
        n_boot, level: bootstrap over problems. n_splits: halvings of the trials. seed: of both.
        options: of ``cost_table`` and ``decode_cost`` (dense_layers, combine, ...).

    Returns the table that this module describes. Raises ``ValueError`` naming the argument, its value and what would
    be right.
    """
    lookup(ALLOCATIONS, allocation, "allocation")
    lookup(UNITS, unit, "unit")
    given = np.unique(np.asarray(budgets, float))
    require(given.size > 0, "budgets must hold a number at least", given)
    require((given > 0) & np.isfinite(given), f"budgets must be positive ({UNITS[unit]})", given)
    data = inputs.offered(inputs.checked(data), topk)
    names = inputs.wanted(data.policy.unique(), policies)
    data = data[data.policy.isin(names | {"dense"})]
    summary, trials = inputs.with_caps(data, caps), inputs.counts(trials)
    priced = inputs.price(summary, hardware, trials, shapes=shapes, batch=batch, reserve=reserve, **options)
    scale = 1.0 if unit == "eflops" else hardware.peak_flops / hardware.n_devices
    priced = priced.assign(cost=priced.eflops / scale, who=_who(priced))
    left_out, n_settings, plans = dict[str, str](), dict[str, int](), list[dict[str, Any]]()
    for task, rows in summary.groupby("task", sort=False):
        chosen, dense, lacks = inputs.comparable(rows, priced[priced.task == task], names, trials)
        left_out |= {f"{task}: {who}": why for who, why in lacks.items()}
        n_settings[str(task)] = chosen.groupby(KEYS, dropna=False).ngroups
        halves = _halves(chosen, data[data.task == task], caps, n_splits, seed)
        weights = problem_weights(rows.problem.nunique(), n_boot, seed)
        found = _rows(chosen, dense, given * scale, allocation, halves, weights, level, UNITS[unit])
        plans += [{"task": task, "budget": budget} | row for budget, row in zip(given, found, strict=True)]
    units = {name: f"{name}_{unit}" for name in ("budget", "cost", "spent")}
    result = pd.DataFrame(plans).rename(columns=units)
    device = f"{hardware.name} ({hardware.precision})"
    result.attrs = {"unit": unit, "allocation": allocation, "device": device, "level": level}
    result.attrs |= {"left_out": left_out, "n_settings": n_settings}
    return result


def _who(table: pd.DataFrame) -> pd.Series:
    """Model and policy: what one deploys."""
    return table.model.astype(str) + ", " + table.policy.astype(str)


def _text(setting: Mapping[str, Any]) -> str:
    """What to run, as text: ``4 x qwen3-8b, block_topk:512:32, cap 8192``."""
    cut = "" if pd.isna(setting["cap"]) else f", cap {setting['cap']:.0f}"
    return f"{setting['n_trials']} x {setting['model']}, {setting['policy']}{cut}"


def _rows(
    table: pd.DataFrame, dense: pd.DataFrame, costs: np.ndarray, allocation: str,
    halves: Iterator[pd.DataFrame] | str, weights: np.ndarray, level: float, unit: str,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each cost, from the tables of one task."""
    allocate = ALLOCATIONS[allocation]
    whole, reference = allocate(table, costs), allocate(dense, costs) if len(dense) else None
    rivals = curves(table, costs, "who", uniform_allocation) if allocation == "uniform" else {}
    unjudged, scores = "", np.full((3, len(costs)), np.nan)
    if isinstance(halves, str):
        unjudged = halves
    else:
        scores = np.array([each.mean(0) for each in out_of_sample(halves, costs, allocate, "cost")])
        scores[:, scores[2] == 0] = np.nan  # nothing fits
    mean = table.groupby(KEYS, dropna=False, as_index=False).cost.mean()
    cheapest = mean.loc[mean.cost.idxmin()]
    for k in range(len(costs)):
        row = _NONE | dict(zip(("seen", "unseen", "spent"), scores[:, k], strict=True))
        if reference is not None and (reference.rows[:, k] >= 0).any():
            best, _ = _most_frequent(reference, k)
            row |= {"dense": reference.accuracy[k], "dense_setting": _text(best)}
        unfit = int((whole.rows[:, k] < 0).sum())
        if unfit == len(whole.problems):
            least = f"{_text(cheapest)}, costs {cheapest.cost:.3g} {unit}"
            yield row | {"note": f"nothing fits; the cheapest, {least}"}
            continue
        setting, share = _most_frequent(whole, k)
        accuracy, cost, tokens = (whole.values(name)[:, k] for name in ("accuracy", "cost", "tokens"))
        low, high = interval(weights @ accuracy, len(accuracy), level)
        row |= setting | {"setting": _text(setting), "share": share, "accuracy": accuracy.mean()}
        row |= {"low": low, "high": high, "cost": cost.mean(), "tokens": tokens.mean()}
        row["oracle"] = bool(getattr(parse_policy(setting["policy"]), "oracle", False))
        if rivals:
            row |= _rivalry(rivals, f"{setting['model']}, {setting['policy']}", k, weights)
        partly = f"nothing fits {unfit} problems, which count as unsolved" if unfit else ""
        yield row | {"note": "; ".join(filter(None, (partly, unjudged)))}


def _most_frequent(found: Allocation, k: int) -> tuple[dict[str, Any], float]:
    """The setting that most problems get under cost k, and the share of the problems that get it."""
    rows = found.rows[:, k]
    counts = found.table.iloc[rows[rows >= 0]].groupby(KEYS, dropna=False, sort=False).size()
    names: Any = counts.idxmax()
    return dict(zip(SETTING, names, strict=True)), counts.max() / len(rows)


def _rivalry(rivals: Mapping[str, Allocation], who: str, k: int, weights: np.ndarray) -> dict[str, Any]:
    """How the winner ``who`` fares against every other model and policy under cost k, resampled over problems."""
    fits = {name: found for name, found in rivals.items() if found.rows[0, k] >= 0}
    names = sorted(fits, key=lambda name: fits[name].values("cost")[:, k].mean())  # the first of equals wins
    values = np.stack([fits[name].values("accuracy")[:, k] for name in names], axis=1)  # [problem, name]
    draws, mine = (weights @ values).round(12), names.index(who)
    again = {"again": (draws.argmax(1) == mine).mean()}
    others = [i for i in range(len(names)) if i != mine]
    if not others:
        return again
    second = max(others, key=lambda i: values[:, i].mean().round(12))
    pair = sorted((mine, second))
    beats = (draws[:, pair].argmax(1) == pair.index(mine)).mean()
    best, _ = _most_frequent(fits[names[second]], k)
    return again | {"runner_up": _text(best), "runner_up_accuracy": values[:, second].mean(), "beats": beats}


# --- chosen on one half of the trials, judged on the other ---------------------------------------


def _halves(
    table: pd.DataFrame, data: pd.DataFrame, caps: Sequence[int], n_splits: int, seed: int
) -> Iterator[pd.DataFrame] | str:
    """The table scored on two halves of the trials, ``n_splits`` times; or why that cannot be."""
    keys = [table[name] for name in SETTING]
    table = table[(table.n_trials <= table.n_traces // 2).groupby(keys, dropna=False).transform("all")]
    if table.empty:
        return "not judged out of sample: that takes twice as many traces of each problem as N"
    if table.cap.isna().all():
        return split_trials(table, n_splits, seed)
    if "trial" not in data:
        return "not judged out of sample: with length caps that takes the traces, not their summary"
    return split_traces(table, data, caps, n_splits, seed)


def split_traces(
    table: pd.DataFrame, traces: pd.DataFrame, caps: Sequence[int], n_splits: int, seed: int = 0
) -> Iterator[pd.DataFrame]:
    """``split_trials`` for a cost table with length caps: a trace is in the same half at every cap.

    ``traces`` is the trace table of one task that ``table`` was made from, N at most half of each problem's.
    """
    require(n_splits >= 1, "n_splits must be >= 1", n_splits)
    traces = traces[_who(traces).isin(table.who)]
    alone = traces.assign(problem=traces.problem.astype(str) + "\t" + traces.trial.astype(str))
    each = inputs.with_caps(alone, caps)  # every trace by itself, at every cap
    trace = each.groupby(UNIT).ngroup().to_numpy()
    each["problem"] = each.problem.str.rsplit("\t", n=1).str[0]
    unit = np.zeros(trace.max() + 1, int)
    unit[trace] = each.groupby(UNIT).ngroup()
    each["cell"] = cell = each.groupby([*UNIT, "cap"], dropna=False).ngroup().to_numpy()
    cells = each.drop_duplicates("cell")[[*UNIT, "cap", "cell"]]
    place = table[[*UNIT, "cap"]].merge(cells, how="left", validate="many_to_one").cell.to_numpy()
    size, half = np.bincount(unit), np.bincount(unit) // 2
    n, k = table.n_traces.to_numpy(), table.n_trials.to_numpy()
    rng, right = np.random.default_rng(seed), each.n_correct.to_numpy()
    for _ in range(n_splits):
        order = np.lexsort((rng.random(len(unit)), unit))
        rank = np.empty(len(unit), int)
        rank[order] = np.arange(len(unit)) - np.repeat(np.cumsum(size) - size, size)
        chosen = rank < half[unit]
        seen = np.bincount(cell, right * chosen[trace])[place].astype(int)
        first, second = pass_at_k(n // 2, seen, k), pass_at_k(n - n // 2, table.n_correct - seen, k)
        yield table.assign(first=first, second=second)
