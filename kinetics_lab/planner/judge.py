"""How much of a plan is luck: settings chosen on one half of the trials, judged on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from kinetics_lab.errors import require
from kinetics_lab.laws.frontier import SETTING, Allocation
from kinetics_lab.planner.offers import who, with_caps
from kinetics_lab.planner.strategy import Majority, Strategy

UNIT = ["model", "policy", "problem"]  # traces of one problem are exchangeable


def judged(
    table: pd.DataFrame, data: pd.DataFrame, caps: Sequence[int], n_splits: int, seed: int,
    make: Callable[..., Strategy], costs: np.ndarray, allocate: Callable[..., Allocation],
) -> np.ndarray | str:  # fmt: skip
    """[seen, unseen, spent; cost]: settings chosen on each half of the trials, scored on both; or why that cannot be.

    The half that chooses says what a setting costs, too; what is spent is what it costs on the other half.
    """
    require(n_splits >= 1, "n_splits must be >= 1", n_splits)
    keys = [table[name] for name in SETTING]
    table = table[
        (table.n_trials <= table.n_traces // 2).groupby(keys, dropna=False).transform("all")
    ].reset_index(drop=True)
    if table.empty:
        return "not judged out of sample: that takes twice as many traces of each problem as N"
    made = make(table.n_trials.to_numpy())
    if isinstance(made, Majority) and "votes" in table:
        return "not judged out of sample: a vote takes the answers themselves"
    if "drawn" in data:
        return "not judged out of sample: predicted settings have no traces"
    if table.cap.notna().any() and "trial" not in data:
        return "not judged out of sample: with length caps that takes the traces, not their summary"
    split = split_traces if table.cap.notna().any() else split_counts
    unit, found = table.cost.mean() / table.eflops.mean(), []
    n, c = table.n_traces.to_numpy(int), table.n_correct.to_numpy(int)
    for seen in split(table, data, caps, n_splits, seed):
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


def split_counts(
    table: pd.DataFrame, traces: pd.DataFrame, caps: Sequence[int], n_splits: int, seed: int
) -> Iterator[np.ndarray]:
    """For each row of a table of whole answers, right ones in a random half of its traces, drawn from the counts alone."""
    place = table.groupby(UNIT, sort=False, observed=True).ngroup().to_numpy()
    n, c = (
        table.groupby(UNIT, sort=False, observed=True)[name].first().to_numpy(int)
        for name in ("n_traces", "n_correct")
    )
    rng = np.random.default_rng(seed)
    for _ in range(n_splits):
        yield rng.hypergeometric(c, n - c, n // 2)[place]


def split_traces(
    table: pd.DataFrame, traces: pd.DataFrame, caps: Sequence[int], n_splits: int, seed: int
) -> Iterator[np.ndarray]:
    """The same with length caps: a trace is in the same half at every cap. ``traces``: what ``table`` was made from."""
    traces = traces[who(traces).isin(table.who)]
    alone = traces.assign(problem=traces.problem.astype(str) + "\t" + traces.trial.astype(str))
    each = with_caps(alone, caps)  # every trace by itself, at every cap
    trace = each.groupby(UNIT).ngroup().to_numpy()
    each["problem"] = each.problem.str.rsplit("\t", n=1).str[0]
    unit = np.zeros(trace.max() + 1, int)
    unit[trace] = each.groupby(UNIT).ngroup()
    each["cell"] = cell = each.groupby([*UNIT, "cap"], dropna=False).ngroup().to_numpy()
    cells = each.drop_duplicates("cell")[[*UNIT, "cap", "cell"]]
    place = table[[*UNIT, "cap"]].merge(cells, how="left", validate="many_to_one").cell.to_numpy()
    size, half = np.bincount(unit), np.bincount(unit) // 2
    rng, right = np.random.default_rng(seed), each.n_correct.to_numpy()
    for _ in range(n_splits):
        order = np.lexsort((rng.random(len(unit)), unit))
        rank = np.empty(len(unit), int)
        rank[order] = np.arange(len(unit)) - np.repeat(np.cumsum(size) - size, size)
        yield np.bincount(cell, right * (rank < half[unit])[trace])[place].astype(int)
