"""More thinking or more tries: what N tries solve at equal tokens, with guesses taken out, and a rule to choose by.

A *run* is a summary of one model at one effort on one task: one row per problem with ``n_traces``, ``n_correct`` and
``mean_tokens`` (see :mod:`kinetics_lab.traces.table`). A perfect judge looks at each answer and stops at the first right one.

The rule needs four numbers that people publish, accuracy and mean tokens at two efforts, and two constants, which are
fitted on one half of the models and judged on the other (:func:`halves`). With a judge: take the higher effort where it solves more
than :meth:`Rule.tries` expects of the lower one for the same tokens; else try again at the lower. Without a judge: take the higher effort.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

from kinetics_lab.errors import require
from kinetics_lab.laws.resample import interval, problem_weights
from kinetics_lab.traces.table import pass_at_k


def halves(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Models dealt into two halves by the SHA-256 of their names, those with several efforts and the others each for itself.

    Rules are fitted on the first and judged on the second.
    """
    efforts = table.groupby("model", observed=True).effort.nunique()
    found: tuple[list[str], list[str]] = ([], [])
    for names in (efforts.index[efforts > 1], efforts.index[efforts == 1]):
        order = sorted(map(str, names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        for half, dealt in zip(found, (order[::2], order[1::2]), strict=True):
            half.extend(dealt)
    return found


def unguessed(n: ArrayLike, c: ArrayLike, choices: float = np.inf) -> np.ndarray:
    """Right answers that are not guesses, of n answers to a question with that many choices (formula scoring).

    Guesses are right once in ``choices``: behind every wrong answer stand 1 / (choices - 1) right guesses. A model
    that is wrong more often than guesses are knows nothing of the question: 0. Not a whole number in general.
    """
    n, c = np.asarray(n, float), np.asarray(c, float)
    require(choices > 1, "choices must be more than 1", choices)
    return np.maximum(c - (n - c) / (choices - 1), 0.0)


def stopping(run: pd.DataFrame, tries: ArrayLike, choices: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """What at most N tries solve and use in the mean, stopping at the first right answer: [N in ``tries``, problem].

    Returns the probability of a right answer (Pass@N, guesses taken out) and tokens. Tokens are expected tries times
    E[L], whatever ties length to success (Wald). Counts and E[L] come from the same answers, which ties
    the two estimates, an error of the order of 1 / n_traces. ``ValueError`` for more tries than answers.
    """
    n, k = run.n_traces.to_numpy(int), np.atleast_1d(np.asarray(tries))[:, None]
    count = unguessed(n, run.n_correct, choices)
    whole = np.floor(count + 1e-9).astype(int)
    found = []
    for c in (whole, np.minimum(whole + 1, n)):
        missed = 1 - pass_at_k(n, c, k)
        # The sum of C(n - c, j) / C(n, j) over j < k, the chance that j + 1 tries are needed.
        found.append((1 - missed, (n + 1 - (n - k + 1) * missed) / (c + 1)))
    more = np.clip(count - whole, 0, 1)  # between two whole counts: either, with these odds
    solved, drawn = ((1 - more) * low + more * high for low, high in zip(*found, strict=True))
    return solved, drawn * run.mean_tokens.to_numpy(float)


@dataclass(frozen=True)
class Rule:
    """How tries and tokens grow where only accuracy A and mean tokens of one try are known.

    Success rates of problems are taken as Beta distributed, with mean A and one ``concentration`` s for every model
    and task. Of the errors of one try, N tries then leave the product of (s (1 - A) + k) / (s + k) over k = 1..N-1, about
    N^(-s A). Where a try is right, its problem takes ``shorter`` times the tokens of a problem where it is wrong.
    """

    concentration: float
    shorter: float

    def left(self, accuracy: ArrayLike, n: ArrayLike) -> np.ndarray:
        """Share of the errors of one try that N tries leave."""
        s, n = self.concentration, np.asarray(n, float)
        wrong = s * (1 - np.asarray(accuracy, float))
        return np.exp(gammaln(wrong + n) - gammaln(wrong + 1) + gammaln(s + 1) - gammaln(s + n))

    def tries(self, accuracy: float, tokens: float, budget: float, most: int = 8) -> float:
        """Accuracy of as many tries, at most ``most``, as ``budget`` tokens a problem buy (of ``tokens`` each)."""
        n = np.arange(1, most + 1)
        wrong = (1 - accuracy) * self.left(accuracy, n)
        again = tokens / (1 - accuracy + accuracy * self.shorter)  # of a try at a problem that one try missed
        used = np.cumsum(np.r_[tokens, again * wrong[:-1]])
        return float(np.interp(budget, np.r_[0, used], np.r_[0, 1 - wrong]))

    def thinks(self, low: tuple[float, float], high: tuple[float, float]) -> bool:
        """Whether the higher effort solves more than tries at the lower for the same tokens; (accuracy, tokens) of both."""
        return high[0] > self.tries(*low, high[1])


def fit_rule(runs: Sequence[tuple[pd.DataFrame, float]]) -> Rule:
    """The constants from runs and their numbers of choices: ``concentration`` by least squares in accuracy over all N, ``shorter``
    as a geometric mean over the runs; every run counts alike."""
    curves, ratios = [], []
    for run, choices in runs:
        solved, used = stopping(run, range(1, int(run.n_traces.min()) + 1), choices)
        curves.append(solved.mean(1))
        if 0 < curves[-1][0] < 1:
            right, wrong = (np.average(used[0], weights=share) for share in (solved[0], 1 - solved[0]))
            ratios.append(np.log(right / wrong))

    def miss(s: float) -> float:
        left = [Rule(s, 1).left(curve[0], np.arange(1, len(curve) + 1)) for curve in curves]
        errors = [1 - curve - (1 - curve[0]) * part for curve, part in zip(curves, left, strict=True)]
        return float(sum(np.mean(error**2) for error in errors))

    best = minimize_scalar(miss, bounds=(0.01, 10), method="bounded")
    return Rule(float(best.x), float(np.exp(np.mean(ratios))))


def duels(table: pd.DataFrame, choices: float = np.inf, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Every two efforts of each model on one task: the higher once, the lower as often as the same tokens buy.

    A row for each pair whose lower effort has four answers to every problem. Columns ``model``, ``low``,
    ``high``; ``tries`` (at most); tokens and accuracy of one try, guesses taken out, ``tokens_low``, ``tokens_high``,
    ``accuracy_low``, ``accuracy_high``; ``accuracy_tries``, a mix of two N where the tokens fall between; ``used``, the
    share of the tokens that the tries need (below 1: there are no more answers to draw); ``gain`` = accuracy_high -
    accuracy_tries with its 95 % interval over problems ``gain_from``, ``gain_to`` (both efforts on the same redrawn problems).
    """
    rows = []
    for model, runs in table.groupby("model", sort=False, observed=True):
        efforts = {str(e): run.set_index("problem") for e, run in runs.groupby("effort", observed=True)}
        for effort, run in efforts.items():
            twice = run.index[run.index.duplicated()]
            require(not len(twice), f"{model}, {effort}: each problem must have one row", list(twice[:1]))
        order = sorted(efforts, key=lambda e: efforts[e].mean_tokens.mean())
        for low, high in combinations(order, 2):
            shared = efforts[low].index.intersection(efforts[high].index)
            cheap, dear = efforts[low].loc[shared], efforts[high].loc[shared]
            if len(shared) > 1 and (most := int(cheap.n_traces.min())) >= 4:
                row = {"model": model, "low": low, "high": high, "tries": most}
                rows.append(row | _duel(cheap, dear, most, choices, n_boot, seed))
    return pd.DataFrame(rows)


def _duel(
    cheap: pd.DataFrame, dear: pd.DataFrame, most: int, choices: float, n_boot: int, seed: int
) -> dict[str, Any]:
    solved, used = stopping(cheap, range(1, most + 1), choices)
    (once,), (tokens,) = stopping(dear, 1, choices)
    everyone = np.full((1, len(cheap)), 1 / len(cheap))  # the first row of weights: no resample
    weights = np.vstack([everyone, problem_weights(len(cheap), n_boot, seed)])
    curves = (np.pad(weights @ x.T, ((0, 0), (1, 0))) for x in (used, solved))  # [resample, N], from N = 0
    budget = weights @ tokens
    tries = np.array([np.interp(b, x, y) for b, x, y in zip(budget, *curves, strict=True)])
    gain = weights @ once - tries
    low, high = interval(gain[1:], len(cheap))
    return {
        "tokens_low": used[0].mean(), "tokens_high": tokens.mean(), "accuracy_low": solved[0].mean(),
        "accuracy_high": once.mean(), "accuracy_tries": tries[0], "used": min(1.0, used[-1].mean() / budget[0]),
        "gain": gain[0], "gain_from": float(low), "gain_to": float(high),
    }  # fmt: skip
