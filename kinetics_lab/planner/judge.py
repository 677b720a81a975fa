"""How much of a plan is luck: settings chosen on one half of the trials, judged on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from kinetics_lab.errors import require
from kinetics_lab.laws.frontier import SETTING, Allocation
from kinetics_lab.planner.offers import who
from kinetics_lab.planner.strategy import Majority, Strategy

UNIT = ["model", "policy", "problem"]  # traces of one problem are exchangeable


def judged(
    table: pd.DataFrame, data: pd.DataFrame, n_splits: int, seed: int, make: Callable[..., Strategy], costs: np.ndarray,
    allocate: Callable[..., Allocation],
) -> np.ndarray | str:  # fmt: skip
    """[seen, unseen, spent; cost]: settings chosen on each half of the trials, scored on both; or why that cannot be.

    The half that chooses says what a setting costs, too; what is spent is what it costs on the other half.
    """
    require(n_splits >= 1, "n_splits must be >= 1", n_splits)
    fits = table.n_trials <= table.n_traces // 2
    fits = fits.groupby([table[name] for name in SETTING], dropna=False).transform("all")
    table = table[fits].reset_index(drop=True)
    table = table.astype(dict.fromkeys(["task", *UNIT], "category"))  # compared many times
    if table.empty:
        return "not judged out of sample: that takes twice as many traces of each problem as N"
    made = make(table.n_trials.to_numpy())
    if isinstance(made, Majority) and "votes" in table:
        return "not judged out of sample: a vote takes the answers themselves"
    if "drawn" in data:
        return "not judged out of sample: predicted settings have no traces"
    if table.cap.notna().any() and "trial" not in data:
        return "not judged out of sample: with length caps that takes the traces, not their summary"
    halved = (
        split_traces(table, data, n_splits, seed) if "trial" in data else split_counts(table, n_splits, seed)
    )
    unit, found = table.cost.mean() / table.eflops.mean(), []
    n, c = table.n_traces.to_numpy(int), table.n_correct.to_numpy(int)
    for seen in halved:
        halves = []
        for size, right in ((n // 2, seen), (n - n // 2, c - seen)):
            one = made.of(size, right)
            eflops = one.paid * table.each + one.waves * table.wave + table.once
            halves.append(table.assign(accuracy=one.accuracy.round(12), eflops=eflops, cost=eflops * unit))
        for choose, judge in (halves, halves[::-1]):
            chosen = allocate(choose, costs)
            other = Allocation(judge, chosen.problems, chosen.costs, chosen.rows)
            found.append([chosen.accuracy, other.accuracy, other.values("cost").mean(0)])
    scores = np.mean(found, 0)
    scores[:, scores[2] == 0] = np.nan  # nothing fits
    return scores


def split_counts(table: pd.DataFrame, n_splits: int, seed: int) -> Iterator[np.ndarray]:
    """For each row of a table of whole answers, right ones in a random half of its traces, drawn from the counts alone."""
    units = table.groupby(UNIT, sort=False, observed=True)
    place, n, c = units.ngroup().to_numpy(), *units[["n_traces", "n_correct"]].first().to_numpy(int).T
    rng = np.random.default_rng(seed)
    for _ in range(n_splits):
        yield rng.hypergeometric(c, n - c, n // 2)[place]


def split_traces(table: pd.DataFrame, traces: pd.DataFrame, n_splits: int, seed: int) -> Iterator[np.ndarray]:
    """The same from the ``traces`` behind the table: a trial is in the same half at every cap, and in settings of as many.

    So where trial t of two settings was drawn with the same random numbers, no half knows of the other.
    """
    servers = traces[UNIT[:2]].drop_duplicates()
    traces = traces.merge(servers[who(servers).isin(table.who.unique())], on=UNIT[:2])
    unit = traces.groupby(UNIT, observed=True).ngroup().to_numpy()
    units = traces.assign(unit=unit).drop_duplicates("unit").astype(dict.fromkeys(UNIT, str))
    place = table[UNIT].astype(str).merge(units[[*UNIT, "unit"]], how="left", validate="many_to_one").unit
    trial = traces.groupby(["problem", "trial"], observed=True).ngroup().to_numpy()
    caps_, cap = np.unique(table.cap.fillna(np.inf), return_inverse=True)
    least = np.searchsorted(caps_, traces.tokens_out)  # the shortest cap that an answer ends within
    right = np.flatnonzero(traces.correct.to_numpy(bool) & (least < len(caps_)))
    size, rng = np.bincount(unit), np.random.default_rng(seed)
    middle, shape = np.cumsum(size) - size + size // 2, (len(size), len(caps_))
    cell = np.ravel_multi_index((unit[right], least[right]), shape)
    for _ in range(n_splits):
        drawn = unit << 32 | rng.permutation(trial.max() + 1)[trial]
        half = np.sort(drawn)[middle]  # of each unit, the first of the other half
        seen = cell[drawn[right] < half[unit[right]]]
        yield np.bincount(seen, minlength=np.prod(shape)).reshape(shape).cumsum(1)[place, cap]
