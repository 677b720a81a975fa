"""How sure: winners, cheapest models and advantages on problems drawn anew, choices judged on other trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtrit

from kinetics_lab.errors import require
from kinetics_lab.laws.frontier import Allocation, oracle_allocation
from kinetics_lab.traces.table import pass_at_k


def problem_weights(n_problems: int, n_boot: int, seed: int = 0) -> np.ndarray:
    """Bootstrap over problems: weights [n_boot, n_problems], each row a resample with replacement, summing to 1.

    Problems are the unit because a benchmark samples problems; trials of one problem share its difficulty.
    """
    require(n_problems >= 2, "a bootstrap over problems needs at least two", n_problems)
    require(n_boot >= 1, "n_boot must be >= 1", n_boot)
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_problems, np.full(n_problems, 1 / n_problems), n_boot) / n_problems


def interval(draws: ArrayLike, n_units: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first axis of resamples of ``n_units`` problems; draws that are NaN are left out.

    Resamples of n units spread less than samples of n do, by sqrt((n - 1) / n), and their spread is itself estimated.
    So the percentiles lie as far out as Student's t would for a mean: 1.9 and 98.1 % for 95 % of 30 problems
    (expanded percentiles, Hesterberg 2015). Chapter 30 computes what that covers.
    """
    require(0 < level < 1, "level must lie between 0 and 1", level)
    require(n_units >= 2, "an interval needs at least two units that were resampled", n_units)
    far = stdtrit(n_units - 1, (1 - level) / 2) * (n_units / (n_units - 1)) ** 0.5
    low, high = np.nanquantile(np.asarray(draws, float), [ndtr(far), ndtr(-far)], axis=0)
    return low, high


@dataclass(frozen=True)
class Bootstrap:
    """An estimate with its resampled values (first axis) and their percentile interval."""

    value: Any
    draws: np.ndarray = field(repr=False)
    low: Any
    high: Any


def bootstrap(
    fit_function: Callable[[np.ndarray], ArrayLike], n_units: int, n_boot: int = 1000, seed: int = 0
) -> Bootstrap:
    """Resample units (problems) and refit: the interval of anything that is computed from problems.

    ``fit_function(indices)`` gets the positions of the problems in a resample (with repetitions; all of them
    once for the estimate) and returns a number or an array: it makes the points (x, y) from these problems
    and fits them. Draws that are NaN are left out; ``ValueError`` where more than a tenth are.
    """
    weights = problem_weights(n_units, n_boot, seed)
    units = np.arange(n_units)
    value = np.asarray(fit_function(units), float)
    counts = np.rint(weights * n_units).astype(int)
    draws = np.array([fit_function(np.repeat(units, row)) for row in counts], float)
    lost = float(np.isnan(draws).mean(0).max())
    require(lost <= 0.1, "at most a tenth of the resamples may fail (NaN)", lost)
    low, high = interval(draws, n_units)
    return Bootstrap(value, draws, low, high)


def _redrawn(
    found: Mapping[str, Allocation], n_boot: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The costs that all curves share, accuracies [name, problem, cost], and means [resample, name, cost]."""
    first = next(iter(found.values()))
    for name, one in found.items():
        same = np.array_equal(one.problems, first.problems) and np.array_equal(one.costs, first.costs)
        require(same, "curves must share problems and costs", name)
    values = np.stack([one.values("accuracy") for one in found.values()])
    weights = problem_weights(len(first.problems), n_boot, seed)
    return first.costs, values, np.einsum("bp,npc->bnc", weights, values)


def winners(found: Mapping[str, Allocation], n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Which curve is highest at each cost, and how sure that is.

    Columns ``cost``, ``winner`` ("" where all are zero), its ``accuracy``, ``low`` and ``high`` (95 %
    interval over problems, the winner chosen anew in each resample), and for each name the share of resamples that
    it wins: pointwise, at this cost alone; in chapter 30's simulation about one in nine of the shares of 90 % or more is of a
    curve that is not the best. Of equal curves the first named wins.
    """
    costs, values, draws = _redrawn(found, n_boot, seed)
    draws = draws.round(12)
    mean, names = values.mean(1).round(12), np.array([*found, ""], object)  # equal up to rounding is equal
    top = np.where(mean.max(0) > 0, mean.argmax(0), len(found))
    table = {"cost": costs, "winner": names[top], "accuracy": mean.max(0)}
    won = np.where(draws.max(1) > 0, draws.argmax(1), len(found))  # [resample, cost]
    table["low"], table["high"] = interval(draws.max(1), values.shape[1])
    return pd.DataFrame(table | {name: (won == i).mean(0) for i, name in enumerate(found)})


def known_interval(draws: np.ndarray, n_problems: int) -> tuple[float, float, float]:
    """The 95 % interval over the draws that are finite (NaN where none is), and the share of the draws that are.

    An accuracy is out of reach in some resamples: what it costs there is not known.
    """
    finite = draws[np.isfinite(draws)]
    low, high = interval(finite, n_problems) if len(finite) else (np.nan, np.nan)
    return float(low), float(high), len(finite) / len(draws)


def cheapest(
    found: Mapping[str, Allocation], levels: ArrayLike, n_boot: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, np.ndarray]:
    """Which curve reaches an accuracy at the lowest cost: a row per level that any of them reaches.

    Columns ``level``, ``winner``, ``cost`` (the first of the curves' costs that is enough), ``low`` and
    ``high`` (95 % interval, from the resamples over problems that reach the level), ``reached`` (share of resamples that do),
    ``sure`` (share of ALL resamples in which the same curve wins). Of equally cheap curves the first named wins. The array [resample, row] holds
    the winner's place in ``found`` for each resample, -1 where none reaches the level.
    """
    costs, values, draws = _redrawn(found, n_boot, seed)
    costs, names, rows = np.append(costs, np.inf), list(found), []
    n_problems = values.shape[1]
    winners = []
    for level in np.atleast_1d(np.asarray(levels, float)):
        mean = costs[(values.mean(1) < level - 1e-12).sum(-1)]  # curves never fall: count what is too cheap
        if not np.isfinite(mean.min()):
            continue
        resampled = costs[(draws < level - 1e-12).sum(-1)]
        least = resampled.min(1)
        low, high, reached = known_interval(least, n_problems)
        winners.append(np.where(np.isfinite(least), resampled.argmin(1), -1))
        sure = (winners[-1] == mean.argmin()).mean()
        rows.append((level, names[mean.argmin()], mean.min(), low, high, reached, sure))
    table = pd.DataFrame(rows, columns=["level", "winner", "cost", "low", "high", "reached", "sure"])
    return table, np.stack(winners, 1) if winners else np.empty((n_boot, 0), int)


def cost_to_solve(
    table: pd.DataFrame, levels: ArrayLike, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The least mean cost (eFLOPs) at which one setting for all problems solves a share of them; inf where none does.

    ``weights`` [resample, problem]: see `problem_weights`. Two arrays: [level], on the problems themselves, and [resample, level], the
    setting chosen anew in each resample. Settings that lack a problem are left out.
    """
    keys = ["model", "policy", "cap", "n_trials"]
    known = table.assign(cap=table.cap.fillna(0))
    wide = known.pivot(index=keys, columns="problem", values=["accuracy", "eflops"]).dropna()
    accuracy, cost = (wide[name].to_numpy(float).T for name in ("accuracy", "eflops"))
    rule = "one setting at least must cover every problem"
    require(accuracy.size > 0, rule, table[keys].drop_duplicates().to_dict("records"))
    whole = np.full((1, accuracy.shape[0]), 1 / accuracy.shape[0])
    found = []
    for some in (whole, weights):
        solved, spent = (some @ values for values in (accuracy, cost))  # [resample, setting]
        least = [np.where(solved >= level - 1e-12, spent, np.inf).min(1) for level in np.atleast_1d(levels)]
        found.append(np.stack(least, 1))
    return found[0][0], found[1]


def advantage(
    base: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], costs: ArrayLike, levels: ArrayLike,
    n_boot: int = 1000, seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, float]]:  # fmt: skip
    """How much cheaper, and how much better, the best of ``other`` is than the best of ``base``.

    Both are accuracies [problem, cost] by name: of allocations (``one.values("accuracy")``), or of choices
    judged on other trials (:func:`out_of_sample`). Returns a row per ``level`` that both reach, and the
    largest gap. Columns: ``ratio``, first cost at which base reaches the level over that of other; ``low`` and
    ``high``, the 95 % interval from the resamples over problems in which both reach it, and ``reached``, their share. The
    gap in accuracy at equal cost is a dict ``gap``, ``low``, ``high``, ``cost`` and the accuracies there,
    ``base`` and ``other``; where it is largest is found anew in each resample, which serves both sides. A largest gap is too
    large in the mean; ``split``, ``split_low`` and ``split_high`` are for one half of the problems where the other half says
    that it is largest, over 50 halvings, with the resamples' spread about it.
    """
    costs = np.asarray(costs, float)
    n_problems = len(next(iter(base.values())))
    for name, one in [*base.items(), *other.items()]:
        rule = f"{name!r} must be [problem, cost] like the others"
        require(one.shape == (n_problems, len(costs)), rule, one.shape)
    weights = problem_weights(n_problems, n_boot, seed)
    values = [np.stack(list(side.values())) for side in (base, other)]  # [name, problem, cost]
    means = [side.mean(1).max(0) for side in values]
    draws = [np.einsum("bp,npc->bnc", weights, side).max(1) for side in values]

    def reach(curve: np.ndarray, level: float) -> np.ndarray:
        there = curve >= level - 1e-12
        return np.where(there.any(-1), costs[there.argmax(-1)], np.nan)

    rows = []
    for level in np.atleast_1d(np.asarray(levels, float)):
        ratio = float(reach(means[0], level) / reach(means[1], level))
        resampled = reach(draws[0], level) / reach(draws[1], level)
        if np.isfinite(ratio):
            rows.append((level, ratio, *known_interval(resampled, n_problems)))
    place = int((means[1] - means[0]).argmax())
    largest = (draws[1] - draws[0]).max(1)
    low, high = interval(largest, n_problems)
    split = _split_gap(values[0], values[1], seed)
    gap = {"gap": means[1][place] - means[0][place], "low": low, "high": high, "cost": costs[place]}
    gap |= {"base": means[0][place], "other": means[1][place]}
    lean = largest.mean() - split
    gap |= {"split": split, "split_low": low - lean, "split_high": high - lean}
    return pd.DataFrame(rows, columns=["level", "ratio", "low", "high", "reached"]), gap


def _split_gap(base: np.ndarray, other: np.ndarray, seed: int) -> float:
    """The gap [name, problem, cost] where one half of the problems says that it is largest, on the other half; a mean."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(50):
        halves = np.array_split(rng.permutation(base.shape[1]), 2)
        gaps = [other[:, half].mean(1).max(0) - base[:, half].mean(1).max(0) for half in halves]
        found += [gaps[1][gaps[0].argmax()], gaps[0][gaps[1].argmax()]]
    return float(np.mean(found))


def split_trials(
    table: pd.DataFrame, n_splits: int, seed: int = 0, traces: pd.DataFrame | None = None
) -> Iterator[pd.DataFrame]:
    """Each problem's traces dealt into two halves at random, ``n_splits`` times.

    Yields the rows that both halves can score (N <= half of the traces) with columns ``first`` and ``second``,
    Pass@N on each half. Traces of a setting are exchangeable, so the number correct in a half is
    hypergeometric and counts suffice. Where trial t of one setting shares random numbers with trial t of another, give the
    ``traces`` behind the table: a trial is then in the same half in all settings of a problem. Raises ``ValueError`` for a table with length caps: the same traces
    stand behind every cap, and counts do not tell which trace is which; and for traces that are not those of the table.
    """
    require(n_splits >= 1, "n_splits must be >= 1", n_splits)
    if "cap" in table and table.cap.notna().any():
        raise ValueError("split_trials needs settings without length caps; split the traces instead")
    keys = ["model", "policy", "problem"]
    units = table.drop_duplicates(keys).reset_index(drop=True)
    half = units.n_traces.to_numpy() // 2
    correct, total = units.n_correct.to_numpy(), units.n_traces.to_numpy()
    unit = table.groupby(keys, sort=False, observed=True).ngroup().to_numpy()
    fits = table.n_trials.to_numpy() <= half[unit]
    require(fits.any(), "every setting needs at least two traces a problem", int(total.max()))
    table, unit = table[fits].reset_index(drop=True), unit[fits]
    rng, trials = np.random.default_rng(seed), table.n_trials.to_numpy()
    if traces is not None:
        named = traces.astype(dict.fromkeys(keys, str)).pivot(index=keys, columns="trial", values="correct")
        right = named.reindex(pd.MultiIndex.from_frame(units[keys].astype(str))).to_numpy(float)
        whole = np.isfinite(right).all() and np.array_equal(right.sum(1), correct)
        rule = "traces must be those behind the table, with the same trials in every setting"
        require(whole, rule, right.shape)
        problem = pd.factorize(units.problem)[0]
        order = np.tile(np.arange(right.shape[1]), (problem.max() + 1, 1))
    for _ in range(n_splits):
        if traces is None:
            seen = rng.hypergeometric(correct, total - correct, half)
        else:
            taken = rng.permuted(order, axis=1) < half[0]
            seen = (right * taken[problem]).sum(1).astype(int)
        first = pass_at_k(half[unit], seen[unit], trials)
        second = pass_at_k((total - half)[unit], (correct - seen)[unit], trials)
        yield table.assign(first=first, second=second)


def out_of_sample(
    halves: Iterable[pd.DataFrame], costs: ArrayLike, allocate: Callable[..., Allocation] = oracle_allocation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Accuracy when settings are chosen and scored on the same half of the trials, and on different halves.

    ``halves``: cost tables from :func:`split_trials`. Three arrays [problem, cost], means over the splits (each half chooses once):
    accuracy on the half that chose, on the other (their difference is the optimism of choosing and scoring on the same trials,
    for half as many as there are), and what the choices cost (eFLOPs, 0 where nothing fits).
    """
    found = []
    for table in halves:
        for choose, judge in (("first", "second"), ("second", "first")):
            chosen = allocate(table, costs, score=choose)
            found.append([chosen.values(name) for name in (choose, judge, "eflops")])
    seen, unseen, spent = np.mean(found, 0)
    return seen, unseen, spent
