"""Fitted laws y = a x^b + c, each with an interval that covers.

Errors are Gaussian, in log y (``space="log"``) or in y. Intervals are profile-likelihood intervals: a fit keeps
the boundary of the region of all curves whose likelihood is close enough to the best one, and the interval
of anything is the range of its values over that region. "Close enough" takes Student's t into account, so
that for a straight line the interval is the textbook one, small samples included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.errors import among, require
from kinetics_lab.laws.frontier import curves, interval, problem_weights
from kinetics_lab.laws.likelihood import (
    SIGMA_PLACE,
    Data,
    abc,
    best_fit,
    checked,
    doubling,
    log_ratio,
    region,
    threshold,
    values_at,
)

if TYPE_CHECKING:
    import pandas as pd

#: Forms that `compare_forms` knows, as (exponent if fixed, offset): all are y = a x^b + c or its limit b = 0.
FORMS: dict[str, tuple[float | None, bool]] = {
    "linear": (1.0, True),
    "log": (0.0, True),
    "power": (None, False),
    "power with offset": (None, True),
}


@dataclass(frozen=True)
class PowerLaw:
    """y = a x^b + c as fitted to ``n`` points.

    ``intervals`` holds those of a, b and c at ``level``; with an offset and an interval of b that holds 0,
    a and c have none (-inf, inf). ``scale`` is the residual standard deviation, in log y or in y as ``space``
    says (``r_squared`` too; NaN for censored data). ``log_likelihood`` is that of the data in this space.
    """

    a: float
    b: float
    c: float
    intervals: dict[str, tuple[float, float]]
    level: float | None
    space: str
    n: int
    scale: float
    r_squared: float
    log_likelihood: float
    centre: float = field(repr=False)
    curve: np.ndarray = field(repr=False)  # level, slope, b at the centre
    region: np.ndarray = field(repr=False)  # [m, 3] as `curve`: ends of what is not ruled out, or resamples
    n_groups: int = field(default=0, repr=False)  # that were resampled: the region holds resamples

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The curve at ``x`` (positive)."""
        return values_at(self.curve, log_ratio(x, self.centre))

    def band(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Interval of the curve at each ``x`` (not of a new point: that also scatters by ``scale``)."""
        t = log_ratio(x, self.centre)
        return _span(self, values_at(self.region, t))

    def doubling_factor(self, x: ArrayLike) -> np.ndarray:
        """y(2 x) / y(x). Without an offset it is 2^b everywhere; with one it depends on x."""
        return doubling(self.curve, log_ratio(x, self.centre))

    def doubling_interval(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Interval of the doubling factor at each ``x``."""
        t = log_ratio(x, self.centre)
        return _span(self, doubling(self.region, t))


def fit_power_law(
    x: ArrayLike,
    y: ArrayLike,
    *,
    offset: bool = False,
    space: str = "log",
    censored: tuple[ArrayLike, ArrayLike] | None = None,
    groups: ArrayLike | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    level: float | None = 0.95,
) -> PowerLaw:
    """Maximum-likelihood fit of y = a x^b (+ c with ``offset``), with profile-likelihood intervals.

    Args:
        space: Gaussian errors in "log" y (constant relative error) or in y ("linear").
        censored: (lower, upper) bounds of the true value of each point, for a y that is known only on a grid
            (see `grid_bounds`): 0 and inf leave a side open, equal bounds are an exact value. Needs "log". An interval
            takes closed bounds at as many x as there are parameters: "at least 362" everywhere says nothing of b.
        groups: a label for each point. Points of one group share their luck; intervals then come from
            ``n_boot`` resamples of whole groups (percentiles). To resample PROBLEMS behind a frontier, use
            `bootstrap` with a function that makes the points anew.
        level: of the intervals; None leaves them out (many times quicker, for use inside `bootstrap`). Where open
            bounds leave many curves equally likely, that gives the one nearest to least squares.

    Points read off one curve are not independent: their interval says how well this form describes the curve,
    not how another sample of problems would turn out.

    Raises ``ValueError`` for x that is not positive or all equal, y not positive in log space, anything not
    finite, lengths that differ, fewer points than parameters + 1, and bounds that are inverted or (for
    intervals) open at too many points.
    """
    data = checked(x, y, offset, space, censored)
    require(level is None or 0 < level < 1, "level must lie between 0 and 1", level)
    if level is not None and data.bounds:
        n_closed = len(np.unique(data.t[np.isfinite(data.bounds).all(0)]))
        rule = f"intervals need bounds closed on both sides at {data.k} different x (those at an end of a grid are open)"
        require(n_closed >= data.k, rule, n_closed)
    best = best_fit(data)
    curve = data.natural(best[None])[0]
    if level is None:
        curves = np.empty((0, 3))
    elif groups is None:
        curves = data.natural(region(data, best, threshold(data, best, level)))
    else:
        curves = _resample(data, np.asarray(groups), n_boot, seed)
    squares = float(data.squares(best[None])[0])
    spread = float(np.sum((data.target - data.target.mean()) ** 2))
    a, b, c = (float(value) for value in abc(curve, data.centre, offset))
    law = PowerLaw(
        a=a, b=b, c=c, intervals={}, level=level, space=space, n=data.n,
        scale=float(data.sigma(best[None])[0]) if data.bounds else data.sigma_unit * (squares / (data.n - data.k)) ** 0.5,
        r_squared=1 - squares / spread if spread and not data.bounds else float("nan"),
        log_likelihood=-float(data.loss(best[None])[0]), centre=data.centre, curve=curve, region=curves,
        n_groups=0 if groups is None else len(np.unique(groups)),
    )  # fmt: skip
    if level is None:
        return law
    ends = [_span(law, value) for value in abc(curves, data.centre, offset)]
    # Noiseless data leave a region as small as rounding, and a resample may miss the estimate.
    pairs = [(min(float(lo), v), max(float(hi), v)) for (lo, hi), v in zip(ends, (a, b, c), strict=True)]
    if offset:
        low, high = pairs[1]
        pairs[1] = (low if low > -data.steepest else -np.inf, high if high < data.steepest else np.inf)
        if not (low > 0 or high < 0) or np.isinf(pairs[1]).any():
            pairs[0] = pairs[2] = (-np.inf, np.inf)
    return replace(law, intervals=dict(zip("abc", pairs, strict=True)))


def grid_bounds(values: ArrayLike, grid: ArrayLike, rule: str = "nearest") -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a true value known only as a point of ``grid``, for ``censored``.

    "nearest": it was rounded to the nearest grid point on a log scale; "neighbours": the best of the grid's
    points, so the true optimum lies between the two neighbours (twice as wide). Open (0, inf) at the ends.
    """
    values, steps = np.asarray(values, float), np.unique(np.asarray(grid, float))
    require(len(steps) >= 2 and (steps > 0).all(), "grid must hold two positive values or more", steps)
    require(np.isin(values, steps), f"values must be points of the grid {steps.tolist()}", values)
    among(("nearest", "neighbours"), rule, "rule")
    place = np.searchsorted(steps, values)
    edges = np.sqrt(steps[1:] * steps[:-1])
    below, above = (edges, edges) if rule == "nearest" else (steps[:-1], steps[1:])
    return np.r_[0, below][place], np.r_[above, np.inf][place]


@dataclass(frozen=True)
class Bootstrap:
    """An estimate with its resampled values (first axis) and their percentile interval."""

    value: Any
    draws: np.ndarray = field(repr=False)
    low: Any
    high: Any


def bootstrap(
    fit_function: Callable[[np.ndarray], ArrayLike],
    n_units: int,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
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
    low, high = interval(draws, n_units, level)
    return Bootstrap(value, draws, low, high)


def compare_forms(
    x: ArrayLike,
    y: ArrayLike,
    forms: Sequence[str] = tuple(FORMS),
    *,
    space: str = "log",
    censored: tuple[ArrayLike, ArrayLike] | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Forms of a law by held-out likelihood: leave one out, or ``folds`` random parts.

    A row per form, best first: ``form``, ``parameters`` of the curve, ``held_out`` (mean log-density of a point
    that the fit has not seen; of its interval, where censored), ``behind`` (by how much less than the best)
    and ``se`` (standard error of that difference over the points). Bounds that one curve meets say little about the
    scatter; a new point is given at least a tenth of the bounds' median width.

    Raises ``ValueError`` for what `fit_power_law` refuses, an unknown form, and folds that leave a fit fewer points
    than parameters + 1: all four forms take five points, each left out in turn.
    """
    import pandas as pd

    whole = checked(x, y, True, space, censored)
    folds = whole.n if folds is None else folds
    require(2 <= folds <= whole.n, f"folds must be 2..{whole.n} (points)", folds)
    for form in forms:
        among(FORMS, form, "form")
    n_parameters = {form: 1 + (FORMS[form][0] is None) + FORMS[form][1] for form in forms}
    most, fewest = max(n_parameters.values()), whole.n - -(-whole.n // folds)
    rule = f"{folds} folds of {whole.n} points must leave every fit {most + 1} points ({most} parameters + 1)"
    require(fewest > most, rule, fewest)
    order = np.random.default_rng(seed).permutation(whole.n)
    parts = [np.sort(order[i::folds]) for i in range(folds)]
    rows: dict[str, np.ndarray] = {}
    for form in forms:
        power, offset = FORMS[form]
        data = replace(whole, offset=offset, power=power)
        rows[form] = np.full(whole.n, np.nan)
        for part in parts:
            kept = data.take(np.setdiff1d(np.arange(whole.n), part))
            best = best_fit(kept)
            spare = kept.n / (kept.n - kept.k)
            sigma = np.sqrt(kept.squares(best[None])[0] / kept.n * spare)
            if data.bounds:
                best[SIGMA_PLACE] = np.log(
                    max(float(kept.sigma(best[None])[0]) * spare**0.5, data.width / 10)
                )
            rows[form][part] = data.take(part).density(best[None], sigma)[0]
    top = max(rows, key=lambda form: rows[form].mean())
    behind = {form: rows[top] - row for form, row in rows.items()}
    table = pd.DataFrame(
        {
            "form": list(rows),
            "parameters": list(n_parameters.values()),
            "held_out": [row.mean() for row in rows.values()],
            "behind": [gap.mean() for gap in behind.values()],
            "se": [gap.std(ddof=1) / np.sqrt(whole.n) for gap in behind.values()],
        }
    )
    return table.sort_values("behind").reset_index(drop=True)


def _span(law: PowerLaw, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of an interval from values on the curves of the region (first axis)."""
    if law.level is None:
        raise ValueError("this law was fitted with level=None and has no intervals; fit it with level=0.95")
    return interval(values, law.n_groups, law.level) if law.n_groups else (values.min(0), values.max(0))


def _resample(data: Data, groups: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """Curves [n_boot, 3] refitted to whole groups drawn with replacement."""
    require(groups.shape == data.t.shape, "groups must be as long as x", groups.shape)
    members = [np.flatnonzero(groups == label) for label in np.unique(groups)]

    def refit(chosen: np.ndarray) -> np.ndarray:
        index = np.concatenate([members[i] for i in chosen])
        if len(np.unique(data.t[index])) < data.k:
            return np.full(3, np.nan)
        return data.natural(best_fit(data.take(index))[None])[0]

    return bootstrap(refit, len(members), n_boot, seed).draws


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
