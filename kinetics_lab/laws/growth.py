"""How tokens and KV budget grow with cost where all problems share a budget, as the paper's Figure 7 says."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.errors import require
from kinetics_lab.laws.frontier import curves
from kinetics_lab.laws.powerlaw import fit_power_law, grid_bounds
from kinetics_lab.laws.resample import Bootstrap, bootstrap


@dataclass(frozen=True)
class SharedBudget:
    """One KV budget for all problems, the number of trials free for each: the reading behind the paper's Figure 7.

    ``accuracy`` and ``tokens`` (N E[L], NaN where nothing fits) are arrays [budget, problem, cost] of the best
    number of trials under each cost; they do not depend on which other problems there are.
    """

    budgets: np.ndarray
    costs: np.ndarray
    accuracy: np.ndarray = field(repr=False)
    tokens: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, table: pd.DataFrame, costs: ArrayLike) -> SharedBudget:
        """From a cost table of one model and one kind of policy (rows without a finite budget are left out)."""
        text = table.policy.unique()
        reads = {str(name): parse_policy(str(name)).tokens_read for name in text}
        names = sorted((name for name in reads if np.isfinite(reads[name])), key=lambda name: reads[name])
        require(len(names) > 0, "the cost table must hold a policy with a KV budget", list(text))
        found = curves(table[table.policy.isin(names)], costs, by="policy")
        accuracy = np.stack([found[name].values("accuracy") for name in names])
        tokens = np.stack([found[name].values("tokens", np.nan) for name in names])
        return cls(np.array([reads[name] for name in names]), found[names[0]].costs, accuracy, tokens)

    def best(self, problems: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        """For each cost the budget of highest mean accuracy (of equal ones the smallest), and the tokens with it.

        Tokens are the largest N E[L] over the problems, the paper's definition. Both NaN where nothing is solved.
        ``problems``: positions, with repetitions in a resample.
        """
        chosen = np.arange(self.accuracy.shape[1]) if problems is None else np.asarray(problems)
        mean = self.accuracy[:, chosen].mean(1).round(12)  # equal but for rounding is equal
        top = mean.argmax(0)
        tokens = np.fmax.reduce(self.tokens[:, chosen], axis=1)[top, np.arange(len(self.costs))]
        solved = mean.max(0) > 0
        return np.where(solved, self.budgets[top], np.nan), np.where(solved, tokens, np.nan)


def growth_exponents(shared: SharedBudget, s_star: float, n_boot: int = 1000, seed: int = 0) -> Bootstrap:
    """How optimal tokens and KV budget grow with cost, with intervals over problems.

    Four numbers: the exponents of the tokens, of the budget (censored by the grid of budgets tried), of budget +
    ``s_star`` (the cached tokens that weigh as much as the matrices), and the sum of the first and the third. Since
    cost = const * tokens * (budget + s_star), that sum is near 1 where the costliest problem uses up the cap.
    """

    def fit(problems: np.ndarray) -> list[float]:
        budget, tokens = shared.best(problems)
        kept = np.isfinite(budget)
        if kept.sum() < 5:
            return [np.nan] * 4
        x, bounds = shared.costs[kept], grid_bounds(budget[kept], shared.budgets)
        of_tokens = fit_power_law(x, tokens[kept], level=None).b
        of_budget = fit_power_law(x, budget[kept], censored=bounds, level=None).b
        of_both = fit_power_law(x, budget[kept] + s_star, level=None).b
        return [of_tokens, of_budget, of_both, of_tokens + of_both]

    return bootstrap(fit, shared.accuracy.shape[1], n_boot, seed)
