"""What to run for a budget: model, policy, number of answers, length cap; how sure that is, and what it leaves.

A plan is a table with a row for each task and budget and these columns: ``task``; ``budget_s``, ``_eflops`` or ``_usd``;
``setting`` and what it consists of, ``model``, ``policy``, ``cap``, ``n_trials`` (own settings for each problem: the most frequent
one), ``share`` of problems that get it; ``oracle``: no engine can run it; ``accuracy`` with ``low`` and ``high``, and ``best_case``
(of a vote whose answers are not known; ``accuracy`` is its worst case); ``cost_*``, ``tokens`` and ``draws``, means over problems;
``devices``, ``batch``, ``groups``, ``context`` (tokens that no prompt with its answer exceeds), ``ttft_s``, ``tpot_s``, ``answer_s``, ``usd`` and ``usd_per_mtok`` (see `price`). Uniform allocation only: share of resamples in which
this model and policy win ``again``; ``runner_up``, the setting of another model or policy that wins most often instead (of equal ones the best), its
``runner_up_accuracy`` and ``runner_up_cost``, and the share in which the choice ``beats`` it (of equal ones the cheapest wins); ``rivals``, where the choice wins again
in under 60 %: a tie with them; ``frugal``, the cheapest setting that solves at most two points less, its ``frugal_accuracy`` and ``frugal_cost`` (costs in the budget's unit). ``seen`` and ``unseen``: accuracy if chosen on one half of the trials and judged on the same and on the
other half, N <= half; ``spent_*``, what those choices cost. ``dense``, ``dense_setting``, ``dense_cost``: what dense attention reaches with the best
model. ``shape``: the name of its model's. ``note``. In ``attrs``: ``left_out``, what was not considered and why; ``n_settings``, how many were, by task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.clock import Clock
from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.errors import NothingFitsError, lookup, require
from kinetics_lab.laws import frontier
from kinetics_lab.laws.frontier import SETTING, Allocation
from kinetics_lab.laws.resample import interval, problem_weights
from kinetics_lab.planner import offers as inputs
from kinetics_lab.planner.judge import judged
from kinetics_lab.planner.price import SERVER, Stored, counts, price, stored
from kinetics_lab.planner.serve import with_contexts
from kinetics_lab.planner.strategy import parse_strategy

UNITS = {"s": "device seconds", "eflops": "eFLOPs", "usd": "dollars"}
KEYS = [*SETTING]
TIE = 0.6  # a choice that wins again in fewer resamples is none
FRUGAL = 0.02  # less is solved by a setting that is as good but for this
MEANS = ("accuracy", "best_case", "cost", "tokens", "draws", "devices", "batch", "groups", "context", "ttft", "tpot", "answer_s", "usd")  # fmt: skip
_NONE: dict[str, Any] = {  # a row, in the order of its columns, of a budget that nothing fits
    "setting": "", "model": "", "policy": "", "cap": np.nan, "n_trials": 0, "share": 0.0, "oracle": False,
    **dict.fromkeys(("accuracy", "low", "high", *MEANS[1:], "usd_per_mtok", "again"), np.nan), "runner_up": "",
    **dict.fromkeys(("runner_up_accuracy", "runner_up_cost", "beats", "frugal_accuracy", "frugal_cost"), np.nan), "rivals": "", "frugal": "",
    **dict.fromkeys(("seen", "unseen", "spent", "dense", "dense_cost"), np.nan), "dense_setting": "",
}  # fmt: skip

ALLOCATIONS: dict[str, Callable[..., Allocation]] = {
    "uniform": frontier.uniform_allocation, "oracle": frontier.oracle_allocation, "hindsight": frontier.mean_allocation,
}  # fmt: skip


def plan(
    data: pd.DataFrame, hardware: Hardware, budgets: ArrayLike, *,
    unit: str = "s", strategy: str = "until-right", allocation: str = "uniform", models: Sequence[str] = (), policies: Sequence[str] = (),
    topk: str = "out", trials: Sequence[int] = (), caps: Sequence[int] = (), max_seconds: float = np.inf,
    max_tpot: float = np.inf, n_boot: int = 1000, n_splits: int = 50, seed: int = 0, level: float = 0.95, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """The best setting for each task and budget (ascending); a budget that nothing fits has a row that says so.

    Args:
        data: a trace table, or a summary of one (see :mod:`kinetics_lab.traces.table`); with predicted settings, if you like (`with_predicted`).
        budgets: for all answers to one problem, in ``unit``: "s" for seconds of ONE device, "usd", or "eflops".
        strategy: what is done with answers, as `parse_strategy` reads it.
        allocation: "uniform", one setting for all problems, whose mean cost the budget caps. Two others know from the traces how hard each problem is,
            as no user does, and give it its own setting: "oracle" caps the cost of EACH problem, as in the paper (and may
            solve fewer than one setting for all, whose hard problems may cost more), "hindsight" the mean cost.
        models, policies: those to choose among, of policies also kinds ("block_topk"); empty: all in ``data``.
        topk: oracle top-k, which no engine offers: "out" leaves it out; "scan" scores every key and pays for it; "free" is the paper's price.
        trials, caps: numbers of answers N (trials; empty: every one), and lengths in tokens to cut answers at (caps), if ``data`` are traces.
        max_seconds, max_tpot: limits of a service: seconds to answer a problem (mean, at most), and per output token.
            With ``batch="within"`` each setting gets the largest batch that keeps them: the one that fits, or a power of two below it.
        n_boot: resamples of the problems. n_splits: halvings of the trials. seed: of both.
        level: share of the resamples that an interval holds.
        hardware: one device. options: of `price` and `answers`: hourly, shapes, precision, batch, devices, reserve, clock, ...

    Returns the table that this module describes. Raises ``ValueError`` naming the argument, its value and the rule.
    """
    allocate, make = lookup(ALLOCATIONS, allocation, "allocation"), parse_strategy(strategy)
    lookup(UNITS, unit, "unit")
    given, hourly = np.unique(np.asarray(budgets, float)), options.get("hourly", np.nan)
    require(given.size > 0, "budgets must hold a number at least", given)
    require((given > 0) & np.isfinite(given), f"budgets must be positive ({UNITS[unit]})", given)
    require(unit != "usd" or hourly > 0, "a budget in dollars needs the price of a device (hourly)", hourly)
    data = _of(models, inputs.offered(full := inputs.checked(data), topk))
    never, names = inputs.never_run(data), inputs.wanted(data.policy.unique(), policies)
    data = data[data.policy.isin(names | {"dense"})]
    summary = with_contexts(inputs.with_caps(data, caps), full)
    if strategy == "majority" and "answer" in data:
        summary = inputs.with_votes(summary, data)
    priced, refused = price(summary, hardware, trials, strategy=make, **options)
    scale = {"eflops": 1.0, "s": hardware.peak_flops, "usd": hardware.peak_flops * 3600 / hourly}
    priced = priced.assign(cost=priced.eflops / scale[unit], who=inputs.who(priced))
    priced = _within(priced, refused, max_seconds, max_tpot)
    left_out, n_settings, plans = dict[str, str](), dict[str, int](), list[dict[str, Any]]()
    every = counts(trials, int(summary.n_traces.max()))
    for task, rows in summary.groupby("task", sort=False):
        chosen, dense, lacks = inputs.comparable(rows, priced[priced.task == task], names, every, refused)
        left_out |= {f"{task}: {who}": why for who, why in (lacks | never.get(str(task), {})).items()}
        n_settings[str(task)] = chosen.groupby(KEYS, dropna=False).ngroups
        weights, costs = problem_weights(rows.problem.nunique(), n_boot, seed), given * scale[unit]
        whole, reference = allocate(chosen, costs), allocate(dense, costs) if len(dense) else None
        scores = judged(chosen, data[data.task == task], n_splits, seed, make, costs, allocate)
        rivals = frontier.curves(chosen, costs, "who", allocate) if allocation == "uniform" else {}
        found = _rows(whole, reference, rivals, scores, weights, level, UNITS[unit])
        plans += [{"task": task, "budget": budget} | row for budget, row in zip(given, found, strict=True)]
    units = {name: f"{name}_{unit}" for name in ("budget", "cost", "spent")}
    result = pd.DataFrame(plans).rename(columns=units | {"ttft": "ttft_s", "tpot": "tpot_s"})
    result = _told(data, result, options.get("shapes", MODELS))
    about: dict[Any, Any] = {"unit": unit, "allocation": allocation, "strategy": strategy, "level": level}
    result.attrs = _terms(hardware, **options) | about | {"left_out": left_out, "n_settings": n_settings}
    return result


def _of(models: Sequence[str], data: pd.DataFrame) -> pd.DataFrame:
    """The rows of these models; all for none."""
    held = {str(name): name for name in data.model.unique()}
    return data[data.model.isin([lookup(held, name, "model of the data") for name in models] or [*held])]


def _told(data: pd.DataFrame, result: pd.DataFrame, shapes: Mapping[str, Any]) -> pd.DataFrame:
    """The plan with names of shapes, and with notes, those first that name settings which were predicted and never run."""
    guessed, found = sorted({*inputs.who(data[data.drawn.notna()])} if "drawn" in data else ()), list[str]()
    for row in result.itertuples():
        named = [w for w in guessed if w in f"{row.setting}; {row.runner_up}; {row.rivals}; {row.frugal}"]
        told = [f"predicted, never run: {' and '.join(named)}" * bool(named), str(row.note)]
        found.append("; ".join(filter(None, told)))
    return result.assign(note=found, shape=[shapes[name].name if name else "" for name in result.model])


def _terms(
    hardware: Hardware, precision: Stored = None, clock: Clock | None = None, batch: float | str = "fits",
    reserve: float = 0.1, **_: Any,
) -> dict[Any, Any]:  # fmt: skip
    """On what terms a plan holds, for its text."""
    kept = stored(hardware, precision, clock)
    told = {"device": hardware.title, "weights": kept.weights, "kv": kept.kv, "batch": batch}
    if isinstance(precision, Mapping):
        caches = {one.kv for one in precision.values()}
        told |= {"weights": "as published", "kv": caches.pop() if len(caches) == 1 else "as published"}
    measured = bool(clock and clock.measured)
    label = clock.label + ", others by their bytes" * (precision is not None) if clock else "peak rates"
    return told | {"reserve": reserve, "clock": label, "measured": measured}


def _within(
    priced: pd.DataFrame, refused: dict[tuple[Any, ...], str], max_seconds: float, max_tpot: float
) -> pd.DataFrame:
    """The settings that keep the limits of a service; what is too slow at any N is told in ``refused``."""
    require(max_seconds > 0, "max_seconds must be positive (seconds to an answer)", max_seconds)
    require(max_tpot > 0, "max_tpot must be positive (seconds per output token)", max_tpot)
    free = max_seconds == max_tpot == np.inf
    rule = "batch must be finite where a service has limits"
    require(free or np.isfinite(priced.batch).all(), rule, "endless")
    mean = priced.groupby([*SERVER, "n_trials", "batch"], dropna=False).answer_s.transform("mean")
    keep = (mean <= max_seconds) & (priced.tpot <= max_tpot) | free
    most = priced[keep].groupby([*SERVER, "n_trials"], dropna=False).batch.transform("max")
    served = keep.groupby([priced[name] for name in SERVER], dropna=False).transform("any")
    for key, rows in priced[~served].groupby(SERVER, dropna=False, sort=False):
        quickest = f"{rows.tpot.min() * 1e3:.3g} ms a token, {mean[rows.index].min():.3g} s a problem"
        refused[key] = f"too slow: {quickest}"
    if not keep.any():
        limits = {"max_seconds": max_seconds, "max_tpot": max_tpot}
        kept = " and ".join(f"{name}={limit:g}" for name, limit in limits.items() if limit < np.inf)
        fastest = f"{priced.tpot.min():.3g} s a token, the shortest {mean.min():.3g} s a problem"
        raise NothingFitsError(f"no setting keeps {kept}; the fastest takes {fastest}")
    return priced[keep][priced.batch[keep] == most].reset_index(drop=True)  # of several batches the largest


def _text(setting: Mapping[Any, Any]) -> str:
    """What to run, as text: ``4 x qwen3-8b, block_topk:512:32, cap 8192``."""
    cut = "" if pd.isna(setting["cap"]) else f", cap {setting['cap']:.0f}"
    return f"{setting['n_trials']} x {setting['model']}, {setting['policy']}{cut}"


def _rows(
    whole: Allocation, reference: Allocation | None, rivals: Mapping[str, Allocation], found: np.ndarray | str,
    weights: np.ndarray, level: float, unit: str,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each cost, from the allocations of one task."""
    unjudged = found if isinstance(found, str) else ""
    scores = np.full((3, len(whole.costs)), np.nan) if isinstance(found, str) else found
    mean = whole.table.groupby(KEYS, dropna=False, as_index=False)[["cost", "accuracy"]].mean()
    [cheapest] = mean.nsmallest(1, "cost").to_dict("records")
    for k in range(len(whole.costs)):
        row = _NONE | dict(zip(("seen", "unseen", "spent"), scores[:, k], strict=True))
        if reference is not None and (reference.rows[:, k] >= 0).any():
            row |= {"dense": reference.accuracy[k], "dense_setting": _text(_most_frequent(reference, k)[0])}
            row["dense_cost"] = reference.values("cost")[:, k].mean()
        unfit = int((whole.rows[:, k] < 0).sum())
        if unfit == len(whole.problems):
            least = f"{_text(cheapest)}, costs {cheapest['cost']:.3g} {unit}"
            yield row | {"note": f"nothing fits; the cheapest, {least}"}
            continue
        setting, share = _most_frequent(whole, k)
        row |= setting | {"setting": _text(setting), "share": share}
        row |= {name: whole.values(name)[:, k].mean() for name in MEANS}
        row["usd_per_mtok"] = row["usd"] / row["tokens"] * 1e6
        row["low"], row["high"] = interval(weights @ whole.values("accuracy")[:, k], weights.shape[1], level)
        row["oracle"] = bool(getattr(parse_policy(setting["policy"]), "oracle", False))
        notes = [f"nothing fits {unfit} problems, which count as unsolved" if unfit else "", unjudged]
        if not whole.values("inside", 1)[:, k].all():
            notes.append("its times are extrapolated from those measured")
        if rivals:
            row |= _rivalry(rivals, f"{setting['model']}, {setting['policy']}", k, weights)
            near = mean[mean.cost < row["cost"] * (1 - 1e-9)]  # equal but for rounding is equal
            near = near[near.accuracy >= row["accuracy"] - FRUGAL - 1e-9]
            for less in near.nsmallest(1, "cost").to_dict("records"):
                row |= {"frugal": _text(less), **{f"frugal_{of}": less[of] for of in ("accuracy", "cost")}}
        if row["rivals"]:
            again = f"it wins again in {row['again']:.{int(row['again'] >= TIE - 0.005)}%} of resamples"
            notes.insert(0, f"a tie with {row['rivals']}: {again}, so other problems may turn the order")
        yield row | {"note": "; ".join(filter(None, notes))}


def _most_frequent(found: Allocation, k: int) -> tuple[dict[str, Any], float]:
    """The setting that most problems get under cost k, and the share of the problems that get it."""
    rows = found.rows[:, k]
    sizes = found.table.iloc[rows[rows >= 0]].groupby(KEYS, dropna=False, sort=False).size()
    names: Any = sizes.idxmax()
    return dict(zip(SETTING, names, strict=True)), sizes.max() / len(rows)


def _rivalry(rivals: Mapping[str, Allocation], who: str, k: int, weights: np.ndarray) -> dict[str, Any]:
    """How the winner ``who`` fares against every other model and policy under cost k, resampled over problems."""
    fits = {name: found for name, found in rivals.items() if found.rows[0, k] >= 0}
    names = sorted(fits, key=lambda name: fits[name].values("cost")[:, k].mean())  # the first of equals wins
    values = np.stack([fits[name].values("accuracy")[:, k] for name in names], axis=1)  # [problem, name]
    draws = (weights @ values).round(9)  # equal but for rounding, in any order of sums
    mine = names.index(who)
    won = np.bincount(draws.argmax(1), minlength=len(names)) / len(draws)
    others = [i for i in range(len(names)) if i != mine]
    if not others:
        return {"again": won[mine]}
    second = max(others, key=lambda i: (won[i], values[:, i].mean().round(12)))
    pair = sorted((mine, second))
    beats = (draws[:, pair].argmax(1) == pair.index(mine)).mean()
    best, _ = _most_frequent(fits[names[second]], k)
    near = [i for i in np.argsort(-won, kind="stable") if i != mine and won[i] >= 0.1]
    rival = "; ".join(f"{names[i]} ({won[i]:.0%})" for i in near or [second]) if won[mine] < TIE else ""
    told = {"again": won[mine], "runner_up": _text(best), "beats": beats, "rivals": rival}
    cost = fits[names[second]].values("cost")[:, k].mean()
    return told | {"runner_up_accuracy": values[:, second].mean(), "runner_up_cost": cost}


def better(plans: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Of plans for the same tasks and budgets, as with different strategies, the rows that solve most; of equal ones the cheapest.

    ``dense`` and what belongs to it are of the plan in which dense attention solves most.
    """
    rows = pd.concat(plans).reset_index(drop=True)
    names = [next(name for name in map(str, rows) if name.startswith(what)) for what in ("budget_", "cost_")]
    keys, rows["worse"] = ["task", names[0]], -rows.accuracy.round(9)
    found = rows.sort_values([*keys, "worse", names[1]], kind="stable").drop_duplicates(keys)
    dense = rows.sort_values("dense", ascending=False, kind="stable").drop_duplicates(keys).sort_values(keys)
    found = found.assign(**{of: dense[of].to_numpy() for of in ("dense", "dense_setting", "dense_cost")})
    found = found.drop(columns="worse").reset_index(drop=True)
    found.attrs = plans[0].attrs
    return found
