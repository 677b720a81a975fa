"""What knowing the difficulty of problems would save, and what few draws tell of it.

python benchmarks/allocation.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from difficulty import log_lengths, scoring, write

from kinetics_lab import cost_table, find_hardware, pass_at_k, read_table
from kinetics_lab.laws.difficulty import (
    counts,
    expected,
    features,
    fit_law,
)
from kinetics_lab.laws.frontier import TRIALS

CHEAP = ("qwen3-4b", "block_topk:512:32")  # the cheapest setting that solves more than half with one answer
PRICES = np.geomspace(3e-3, 0.3, 25)  # accuracy that a second must buy, a rate for every point of a curve


def allocate(repeats: int = 20, few: int = 2) -> Path:
    """Five ways to spend seconds where a judge says at once which answer is right, each for a range of rates.

    A rate is the accuracy that a second must buy. Whatever is chosen is chosen on one half of the problems and paid on the other; "in
    hindsight" knows the chances of the problem itself.
    """
    base = read_table("aime24_qwen3_best_of_n")
    base = base[~base.policy.str.startswith("topk")]
    device = find_hardware("b200", "bf16")
    table = cost_table(base, device, TRIALS, dense_layers=1)
    n, c = table.n_traces.to_numpy(), table.n_correct.to_numpy()
    one = cost_table(base, device, (1,), dense_layers=1).set_index(["model", "policy", "problem"]).eflops
    table["second"] = (
        one.loc[list(zip(table.model, table.policy, table.problem, strict=True))].to_numpy()
        / device.peak_flops
    )
    missed = [
        np.where(table.n_trials > k, 1 - pass_at_k(n, c, np.minimum(np.maximum(k, 1), n)), 0)
        for k in range(1, 32)
    ]
    table["stopped"] = table.second * (1 + np.sum(missed, 0))
    table["paid"] = table.second * table.n_trials
    keys = ["model", "policy", "n_trials"]
    solved, stopped, paid = (
        table.pivot(index="problem", columns=keys, values=v) for v in ("accuracy", "stopped", "paid")
    )
    choose = ~scoring("aime24", solved.index)
    ways = {
        "one setting, all answers paid": (solved.to_numpy(), paid.to_numpy()),
        "one setting, stops when right": (solved.to_numpy(), stopped.to_numpy()),
        "escalates": _escalations(solved, stopped),
    }
    rows = [(way, *point) for way, (a, t) in ways.items() for point in _crossed(a, t, choose)]
    a, t = ways["escalates"]
    for rate in PRICES:
        best = (a - rate * t).argmax(1)[:, None]
        rows.append(
            (
                "in hindsight",
                rate,
                np.take_along_axis(t, best, 1).mean(),
                np.take_along_axis(a, best, 1).mean(),
            )
        )
    rows += _foreseen(base, solved, stopped, choose, repeats, few)
    found = pd.DataFrame(rows, columns=["way", "rate", "seconds", "accuracy"])
    return write("allocation", found.groupby(["way", "rate"], sort=False, as_index=False).mean().round(5))


def _crossed(a: np.ndarray, t: np.ndarray, choose: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """Rate, mean seconds, mean accuracy: the column that is best on one half of the problems, paid on the other."""
    for rate in PRICES:
        spent, right = np.empty(len(a)), np.empty(len(a))
        for half in (choose, ~choose):
            j = (a - rate * t)[half].mean(0).argmax()
            spent[~half], right[~half] = t[~half, j], a[~half, j]
        yield rate, spent.mean(), right.mean()


def _escalations(solved: pd.DataFrame, stopped: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Up to N1 answers of one setting, and where none is right up to N2 of another (or of none): accuracy and seconds."""
    a, t = solved.to_numpy(), stopped.to_numpy()
    pairs = [
        (i, j) for i, first in enumerate(solved) for j, then in enumerate(solved) if first[:2] != then[:2]
    ]
    i, j = np.array(pairs).T
    both = 1 - (1 - a[:, i]) * (1 - a[:, j]), t[:, i] + (1 - a[:, i]) * t[:, j]
    return np.hstack([0 * a[:, :1], a, both[0]]), np.hstack([0 * t[:, :1], t, both[1]])


def _foreseen(
    base: pd.DataFrame, solved: pd.DataFrame, stopped: pd.DataFrame, choose: np.ndarray, repeats: int, few: int
) -> Iterator[tuple[str, float, float, float]]:  # fmt: skip
    """A few cheap answers first. Where none is right, the law (from that) or their length says what to do next, or to give up."""
    known = features(list(base[["model", "policy"]].drop_duplicates().itertuples(index=False, name=None)))
    _, y, n = counts(base, known.names)
    cheap = known.names.index(CHEAP)
    length = log_lengths(base, known.names)[0][:, cheap]
    later = [k for k, column in enumerate(solved) if column[:2] != CHEAP]
    setting = [known.names.index(solved.columns[k][:2]) for k in later]
    trials = np.array([solved.columns[k][2] for k in later])
    a, t = solved.to_numpy()[:, later], stopped.to_numpy()[:, later]
    second = stopped[(*CHEAP, 1)].to_numpy()
    told = {
        "a few cheap answers, then by the law": np.zeros(a.shape),
        "a few cheap answers, then by length": np.zeros(a.shape),
    }
    for half in (choose, ~choose):
        law = fit_law(known, y[half], n[half])
        tried = np.zeros_like(n[~half])
        tried[:, cheap] = few
        wrong = law.draws(np.zeros_like(tried), tried, size=400)
        told["a few cheap answers, then by the law"][~half] = expected(wrong[:, :, setting], trials)
        unsolved = (1 - (y / n)[half, cheap]) ** few  # how likely the few are all wrong
        for k in range(a.shape[1]):
            line = np.polyfit(length[half], a[half, k], 1, w=np.sqrt(unsolved + 1e-3))
            told["a few cheap answers, then by length"][~half, k] = np.clip(
                np.polyval(line, length[~half]), 0, 1
            )
    means = np.where(choose[:, None], t[~choose].mean(0), t[choose].mean(0))
    for seed in range(repeats):
        right = np.random.default_rng(seed).hypergeometric(
            y[:, cheap].astype(int), (n - y)[:, cheap].astype(int), few
        )
        first = (
            np.where(right > 0, (few + 1) / (right + 1), few) * second
        )  # mean place of the first right of few
        for way, guess in told.items():
            for rate in PRICES:
                value = guess - rate * means
                j = value.argmax(1)
                go = (right == 0) & (value.max(1) > 0)
                at = np.arange(len(a)), j
                yield (
                    way,
                    rate,
                    (first + np.where(go, t[at], 0)).mean(),
                    np.where(right > 0, 1, np.where(go, a[at], 0)).mean(),
                )


if __name__ == "__main__":
    print(allocate())
