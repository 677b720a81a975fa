"""Fitted laws y = a x^b + c, each with an interval that covers.

Errors are Gaussian, in log y (``space="log"``) or in y. Intervals are profile-likelihood intervals: a fit keeps
the boundary of the region of all curves whose likelihood is close enough to the best one, and the interval
of anything is the range of its values over that region. "Close enough" takes Student's t into account, so
that for a straight line the interval is the textbook one, small samples included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.errors import among, require
from kinetics_lab.laws.likelihood import SIGMA_PLACE, Data, abc, checked, doubling, log_ratio, values_at
from kinetics_lab.laws.regions import best_fit, region, threshold

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
    region: np.ndarray = field(repr=False)  # [m, 3] as `curve`: ends of what is not ruled out

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The curve at ``x`` (positive)."""
        return values_at(self.curve, log_ratio(x, self.centre))

    def band(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Interval of the curve at each ``x`` (not of a new point: that also scatters by ``scale``)."""
        return self._span(values_at(self.region, log_ratio(x, self.centre)))

    def doubling_factor(self, x: ArrayLike) -> np.ndarray:
        """y(2 x) / y(x). Without an offset it is 2^b everywhere; with one it depends on x."""
        return doubling(self.curve, log_ratio(x, self.centre))

    def doubling_interval(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Interval of the doubling factor at each ``x``."""
        return self._span(doubling(self.region, log_ratio(x, self.centre)))

    def _span(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends of an interval from values on the curves of the region (first axis)."""
        if self.level is None:
            raise ValueError("this law was fitted with level=None and has no intervals; give level=0.95")
        return values.min(0), values.max(0)


def fit_power_law(
    x: ArrayLike, y: ArrayLike, *, offset: bool = False, space: str = "log",
    censored: tuple[ArrayLike, ArrayLike] | None = None, level: float | None = 0.95,
) -> PowerLaw:  # fmt: skip
    """Maximum-likelihood fit of y = a x^b (+ c with ``offset``), with profile-likelihood intervals.

    Args:
        space: Gaussian errors in "log" y (constant relative error) or in y ("linear").
        censored: (lower, upper) bounds of the true value of each point, for a y that is known only on a grid
            (see `grid_bounds`): 0 and inf leave a side open, equal bounds are an exact value. Needs "log". An interval
            takes closed bounds at as many x as there are parameters: "at least 362" everywhere says nothing of b.
        level: of the intervals; None leaves them out (many times quicker, for use inside a bootstrap). Where open
            bounds leave many curves equally likely, that gives the one nearest to least squares.

    Points read off one curve are not independent: their interval says how well this form describes the curve,
    not how another sample of problems would turn out. For that, resample the PROBLEMS behind it with
    :func:`kinetics_lab.laws.resample.bootstrap` and a function that makes the points anew.

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
    curves = np.empty((0, 3))
    if level is not None:
        curves = data.natural(region(data, best, threshold(data, best, level)))
    squares = float(data.squares(best[None])[0])
    spread = float(np.sum((data.target - data.target.mean()) ** 2))
    a, b, c = (float(value) for value in abc(curve, data.centre, offset))
    law = PowerLaw(
        a=a, b=b, c=c, intervals={}, level=level, space=space, n=data.n,
        scale=float(data.sigma(best[None])[0]) if data.bounds else data.sigma_unit * (squares / (data.n - data.k)) ** 0.5,
        r_squared=1 - squares / spread if spread and not data.bounds else float("nan"),
        log_likelihood=-float(data.loss(best[None])[0]), centre=data.centre, curve=curve, region=curves,
    )  # fmt: skip
    return law if level is None else replace(law, intervals=_intervals(data, law))


def _intervals(data: Data, law: PowerLaw) -> dict[str, tuple[float, float]]:
    """The ranges of a, b and c over the region."""
    # Noiseless data leave a region as small as rounding, which may miss the estimate.
    values = zip(abc(law.region, data.centre, data.offset), (law.a, law.b, law.c), strict=True)
    pairs = [(min(float(over.min()), best), max(float(over.max()), best)) for over, best in values]
    if data.offset:
        low, high = pairs[1]
        pairs[1] = (low if low > -data.steepest else -np.inf, high if high < data.steepest else np.inf)
        if not (low > 0 or high < 0) or np.isinf(pairs[1]).any():
            pairs[0] = pairs[2] = (-np.inf, np.inf)
    return dict(zip("abc", pairs, strict=True))


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


def compare_forms(
    x: ArrayLike, y: ArrayLike, forms: Sequence[str] = tuple(FORMS), *, space: str = "log",
    censored: tuple[ArrayLike, ArrayLike] | None = None, folds: int | None = None, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
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
    cases = (replace(whole, power=FORMS[form][0], offset=FORMS[form][1]) for form in n_parameters)
    rows = np.stack([_held_out(data, parts) for data in cases])  # [form, point]
    behind = rows[rows.mean(1).argmax()] - rows
    table = pd.DataFrame({
        "form": list(n_parameters), "parameters": list(n_parameters.values()), "held_out": rows.mean(1),
        "behind": behind.mean(1), "se": behind.std(1, ddof=1) / np.sqrt(whole.n),
    })  # fmt: skip
    return table.sort_values("behind").reset_index(drop=True)


def _held_out(data: Data, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Log-density of each point under a fit to the points outside its part."""
    found = np.full(data.n, np.nan)
    for part in parts:
        kept = data.take(np.setdiff1d(np.arange(data.n), part))
        best = best_fit(kept)
        spare = kept.n / (kept.n - kept.k)
        sigma = np.sqrt(kept.squares(best[None])[0] / kept.n * spare)
        if data.bounds:
            best[SIGMA_PLACE] = np.log(max(float(kept.sigma(best[None])[0]) * spare**0.5, data.width / 10))
        found[part] = data.take(part).density(best[None], sigma)[0]
    return found
