"""The likelihood of power laws y = a x^b + c (its maximum and what lies near it: ``kinetics_lab.laws.regions``).

The curve is handled as ``level + slope * h(t)`` with t = log(x / centre), h(t) = (exp(b t) - 1) / b: its value
and steepness at the middle of the data, and its exponent. That form stays well conditioned where (a, b, c) do
not (a and c run to infinity as b passes 0, the law y = level + slope * t); c = 0 means slope = b * level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from kinetics_lab.errors import among, require

SPACES = ("log", "linear")
STEEPEST = 30.0  # |b| log(x_max / x_min) beyond which a curve is a step at one end, not a law
LOG_SIGMA = (-6.9, 4.6)  # 0.001 to 100: where censored fits look (bounds that one curve meets want sigma = 0)
SIGMA_PLACE = 2  # of log sigma in the vector of a censored fit


def log_ratio(x: ArrayLike, centre: float) -> np.ndarray:
    """log(x / centre), x checked."""
    x = np.asarray(x, float)
    require(np.isfinite(x) & (x > 0), "x must be positive and finite", x)
    return np.log(x / centre)


def rise(t: np.ndarray, b: Any) -> np.ndarray:
    """h(t) = (exp(b t) - 1) / b, and t where b = 0."""
    flat = np.abs(b) < 1e-12
    return np.where(flat, t, np.expm1(b * t) / np.where(flat, 1.0, b))


def values_at(curve: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Curves [..., 3] at log ratios t: shape [..., *t.shape]."""
    level, slope, b = (curve[..., i].reshape(curve.shape[:-1] + (1,) * t.ndim) for i in range(3))
    with np.errstate(over="ignore"):
        return level + slope * rise(t, b)


def doubling(curve: np.ndarray, t: np.ndarray) -> np.ndarray:
    """y(2 x) / y(x) of curves [..., 3]; inf where y(x) is not positive and no factor says what happens."""
    now, then = values_at(curve, t), values_at(curve, t + np.log(2))
    return np.where(now > 0, then / np.where(now > 0, now, 1.0), np.inf)


def abc(curve: np.ndarray, centre: float, offset: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b, c of y = a x^b + c, from curves [..., 3]."""
    level, slope, b = np.moveaxis(curve, -1, 0)
    if not offset:
        return level * centre**-b, b, np.zeros_like(b)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return slope / b * centre**-b, b, level - slope / b


@dataclass(frozen=True)
class Data:
    """Points in the space of the errors, and what the likelihood says of fits.

    A fit is a vector: with an offset (level, slope[, log sigma][, b]), without one (log level in log space, else
    level; b[, log sigma]). Sigma is in it only where data are censored (elsewhere the residuals give the best
    one), b not where ``power`` fixes it. Methods take several fits, as rows.
    """

    t: np.ndarray  # log(x / centre)
    target: np.ndarray  # y / unit, its log in log space; the middle of the bounds where censored
    bounds: tuple[np.ndarray, np.ndarray] | None  # in log space
    centre: float
    unit: float
    log: bool
    offset: bool
    power: float | None = None

    @property
    def n(self) -> int:
        return len(self.t)

    @property
    def k(self) -> int:
        """Parameters of the curve."""
        return 3 if self.offset and self.power is None else 2

    @property
    def sigma_unit(self) -> float:
        """What a residual of 1 is worth: in y for linear errors."""
        return 1.0 if self.log else self.unit

    @property
    def steepest(self) -> float:
        return STEEPEST / float(np.ptp(self.t))

    def take(self, index: np.ndarray) -> Data:
        bounds = self.bounds and (self.bounds[0][index], self.bounds[1][index])
        return replace(self, t=self.t[index], target=self.target[index], bounds=bounds)

    def natural(self, fits: np.ndarray) -> np.ndarray:
        """Rows (level, slope, b) of curves in units of y."""
        level, second = fits[:, 0], fits[:, 1]
        if self.offset:
            b = fits[:, -1] if self.power is None else np.full(len(fits), self.power)
            return np.stack([level * self.unit, second * self.unit, b], 1)
        level = (np.exp(level) if self.log else level) * self.unit
        return np.stack([level, level * second, second], 1)

    def curve(self, fits: np.ndarray) -> np.ndarray:
        """Fitted targets, [fits, points]."""
        if not self.offset and self.log:
            return fits[:, :1] + fits[:, 1:2] * self.t
        values = values_at(self.natural(fits) / [self.unit, self.unit, 1], self.t)
        return np.log(np.maximum(values, 1e-300)) if self.log else values

    def squares(self, fits: np.ndarray) -> np.ndarray:
        rest = np.sum((self.target - self.curve(fits)) ** 2, 1)
        return np.maximum(np.nan_to_num(rest, nan=np.inf), self.n * 1e-26)  # rounding, in units of y

    def density(self, fits: np.ndarray, sigma: Any = None) -> np.ndarray:
        """Log-density (log-probability of the bounds, where censored) of each point, [fits, points]."""
        curve = self.curve(fits)
        if self.bounds is None:
            width = sigma * self.sigma_unit * np.sqrt(2 * np.pi)
            return -(((self.target - curve) / sigma) ** 2) / 2 - np.log(width)
        from scipy.special import log_ndtr

        sigma = self.sigma(fits)[:, None]
        low, high = ((bound - curve) / sigma for bound in self.bounds)
        # the tail that keeps its digits
        low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
        exact = self.bounds[0] == self.bounds[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))
        point = -(low**2) / 2 - np.log(sigma * np.sqrt(2 * np.pi))
        return np.nan_to_num(np.where(exact, point, inside), nan=-1e6, neginf=-1e6)

    @property
    def width(self) -> float:
        """Median width of the closed bounds of censored data (0 where none is closed)."""
        low, high = self.bounds or (np.empty(0), np.empty(0))
        closed = np.isfinite(low) & np.isfinite(high)
        return float(np.median(high[closed] - low[closed])) if closed.any() else 0.0

    def sigma(self, fits: np.ndarray) -> np.ndarray:
        """The residual scales in the vectors of fits to censored data."""
        return np.exp(np.clip(fits[:, SIGMA_PLACE], *LOG_SIGMA))

    def loss(self, fits: np.ndarray) -> np.ndarray:
        """Negative log-likelihood, the best sigma put in where data are not censored."""
        if self.bounds is not None:
            return -self.density(fits).sum(1)
        variance = self.squares(fits) / self.n * self.sigma_unit**2
        return self.n / 2 * (np.log(2 * np.pi * variance) + 1)


def checked(x: ArrayLike, y: ArrayLike, offset: bool, space: str, censored: Any) -> Data:
    """The checked input."""
    among(SPACES, space, "space")
    require(censored is None or space == "log", "censored data need space='log'", space)
    x, y = np.asarray(x, float), np.asarray(y, float)
    require(x.ndim == 1 and x.shape == y.shape, "x and y must be lists of one length", (x.shape, y.shape))
    require(np.isfinite(x) & (x > 0), "x must be positive and finite", x)
    require(np.isfinite(y), "y must be finite", y)
    k = 3 if offset else 2
    require(len(x) > k, f"a fit with {k} parameters needs at least {k + 1} points", len(x))
    distinct = len(np.unique(x))
    require(distinct >= k, f"a fit with {k} parameters needs x at {k} different values or more", distinct)
    t = np.log(x)
    centre = float(np.exp((t.min() + t.max()) / 2))
    if space == "linear":
        unit = float(np.abs(y).max()) or 1.0
        return Data(t - np.log(centre), y / unit, None, centre, unit, False, offset)
    require(y > 0, "y must be positive in log space", y)
    unit = float(np.exp(np.log(y).mean()))
    target, bounds = np.log(y / unit), None
    if censored is not None:
        low, high = (np.asarray(bound, float) for bound in censored)
        require(low.shape == high.shape == y.shape, "censored bounds must be as long as y", low.shape)
        wrong = ~((low >= 0) & (low <= high) & (high > 0) & (low < np.inf))
        rule = "censored bounds must be 0 <= lower <= upper"
        require(not wrong.any(), rule, np.stack([low, high], 1)[wrong])
        require((low <= y) & (y <= high), "y must lie within its censored bounds", y)
        with np.errstate(divide="ignore"):
            bounds = np.log(low / unit), np.log(high / unit)
    return Data(t - np.log(centre), target, bounds, centre, unit, True, offset)
